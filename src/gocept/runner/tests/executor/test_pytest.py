"""Executors as fixtures of pytest, which is run as a program."""

import os
import subprocess
import sys

from gocept.runner.tests.executors import ExecutorTestCase, is_gone
from gocept.runner.tests.support import DEADLINE, child_environment

FIXTURES = '''\
    import os
    import pathlib
    import pytest
    from gocept.runner.executor import OutputExecutor, SimpleExecutor
    from gocept.runner.executor.pytest import executor_fixture

    STARTS = pathlib.Path({starts!r})

    @pytest.fixture(scope='session')
    def word():
        return 'hello'

    def sleeper(word='hello', **options):
        return OutputExecutor(
            f'echo $$ >> {{STARTS}}; echo {{word}}; exec sleep 100', word,
            shell=True, **options)
    '''


class PytestTests(ExecutorTestCase):

    def run_pytest(self, body: str) -> tuple[int, str]:
        """The status and the output of pytest for a module of tests."""
        self.starts = self.dir / 'starts'
        text = FIXTURES.format(starts=str(self.starts)) + body
        self.write('test_it.py', text)
        done = subprocess.run(
            [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider',
             '--rootdir', str(self.dir), 'test_it.py'],
            cwd=self.dir, env=child_environment(), timeout=DEADLINE,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return done.returncode, done.stdout

    def started(self) -> list[int]:
        return list(map(int, self.starts.read_text().split()))

    def test_one_executor_for_all_tests(self) -> None:
        status, output = self.run_pytest('''
    service = executor_fixture(lambda word: sleeper(word))

    def test_one(service):
        assert service.running()
        assert service.command.endswith('sleep 100')

    def test_two(service):
        with service.stopped():
            assert not service.running()
        assert service.running()
    ''')
        self.assertEqual(0, status, output)
        self.assertEqual(2, len(self.started()))  # with the one after stopped
        self.assertTrue(all(map(is_gone, self.started())))

    def test_scope_and_name_and_what_it_requires(self) -> None:
        status, output = self.run_pytest('''
    base = sleeper()

    def make():
        return sleeper(requires=[base])

    made = executor_fixture(make, scope='function', name='service')

    def test_one(service):
        assert base.running()

    def test_two(service):
        assert service.running()
    ''')
        self.assertEqual(0, status, output)
        self.assertEqual(4, len(self.started()))
        self.assertTrue(all(map(is_gone, self.started())))

    def test_one_that_does_not_start(self) -> None:
        status, output = self.run_pytest('''
    service = executor_fixture(lambda: OutputExecutor(
        'echo no disk; exit 3', 'ready', shell=True))

    def test_one(service):
        pass
    ''')
        self.assertEqual(1, status)
        self.assertIn('non-zero code: 3', output)
        self.assertIn('no disk', output)
        self.assertIn('1 error', output)

    def test_a_fixture_that_is_not_there(self) -> None:
        status, output = self.run_pytest('''
    service = executor_fixture(lambda nonsense: sleeper(nonsense))

    def test_one(service):
        pass
    ''')
        self.assertEqual(1, status)
        self.assertIn("fixture 'nonsense' not found", output)
        self.assertFalse(os.path.exists(self.starts))
