import os
import subprocess
import sys
import unittest
from unittest import mock

from gocept.runner.tests import services
from gocept.runner.tests.support import (
    DEADLINE,
    TestCase,
    child_environment,
)

LINE = ('Tests left out: 2. Not installed: no-such-program (Debian package '
        'no-such-package)')

LACKING = '''\
    import unittest
    from gocept.runner.tests import services

    services.PACKAGES['no-such-program'] = 'no-such-package'

    class LackingTests(unittest.TestCase):

        def test_one(self):
            services.need(self, 'no-such-program')

        def test_other(self):
            services.need(self, 'no-such-program')

        def test_that_lacks_nothing(self):
            pass
    '''


class ServicesTests(TestCase):

    def run_tests(self, **environment: str) -> tuple[int, list[str]]:
        """The status and the lines of a run of tests."""
        self.write('tests.py', LACKING)
        result = subprocess.run(
            [sys.executable, '-m', 'zope.testrunner', '--test-path',
             self.dir, '--all'], cwd=self.dir,
            env=child_environment(**environment), text=True,
            stdout=subprocess.PIPE, timeout=DEADLINE)
        return result.returncode, result.stdout.splitlines()

    def test_the_last_line_says_what_was_left_out(self) -> None:
        status, lines = self.run_tests(NO_TEST_LEFT_OUT='')
        self.assertEqual((0, LINE), (status, lines[-1]))
        self.assertIn('0 failures, 0 errors and 2 skipped', '\n'.join(lines))

    def test_where_none_may_be_left_out_it_fails(self) -> None:
        status, lines = self.run_tests(NO_TEST_LEFT_OUT='1')
        self.assertEqual(1, status)
        self.assertIn('2 failures, 0 errors and 0 skipped', '\n'.join(lines))
        self.assertIn('AssertionError: not installed: no-such-program '
                      '(Debian package no-such-package)', lines)
        self.assertNotIn('Tests left out', '\n'.join(lines))

    def test_a_fork_says_nothing(self) -> None:
        program = self.program('''\
            import os, sys
            from gocept.runner.tests import services

            services._left_out.add('a test', 'nginx')
            services._left_out.add('a test', 'openssl')
            if pid := os.fork():
                os.waitpid(pid, 0)
            sys.exit(0)
            ''')
        self.assertEqual(0, program.end())
        self.assertEqual(
            'Tests left out: 1. Not installed: nginx (Debian package '
            'nginx-light), openssl (Debian package openssl)\n',
            program.output)

    def test_a_program_that_is_there(self) -> None:
        program = self.write('nginx', '#!/bin/sh\n')
        program.chmod(0o755)
        with mock.patch.dict(os.environ, PATH=str(self.dir)):
            self.assertEqual(str(program), services.need(self, 'nginx'))

    def test_one_that_is_not(self) -> None:
        with (mock.patch.object(services, 'path_of', return_value=None),
              mock.patch.object(services, '_left_out') as left_out,
              mock.patch.dict(os.environ, NO_TEST_LEFT_OUT='')):
            self.assertRaisesRegex(
                unittest.SkipTest, 'package nginx-light',
                services.need, self, 'nginx')
        left_out.add.assert_called_once_with(self.id(), 'nginx')
