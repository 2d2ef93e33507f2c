"""The environments with Zope, as far as no index is needed."""

import importlib.util
import sys
from unittest import mock

from gocept.runner.tests.support import TestCase
from gocept.runner.tests.test_documents import CHECKOUT

PYTHON = '''\
    #!/bin/sh
    # A Python that only writes down what it is asked for.
    echo "$@" >> {dir}/calls
    case "$*" in
        *platform*) echo 3.11.7 x86_64;;
        *venv*) mkdir -p "$4/bin"; cp "$0" "$4/bin/python";;
        *pip*) test ! -e {dir}/no-index || {{ echo no index; exit 1; }};;
    esac
    '''


class EnvironmentsTests(TestCase):

    def setUp(self) -> None:
        super().setUp()
        spec = importlib.util.spec_from_file_location(
            'environments', CHECKOUT / 'environments' / '__init__.py')
        assert spec is not None and spec.loader is not None
        self.environments = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.environments)
        self.environments.CHECKOUT = self.dir  # type: ignore[attr-defined]
        self.python = self.write('python', PYTHON.format(dir=self.dir))
        self.python.chmod(0o755)
        self.write('setup.py', 'what it needs')
        (self.dir / 'constraints').mkdir()
        self.write('constraints/zope5.txt', 'Zope==5')
        self.home = self.dir / '.venv-zope5-3.11'

    def calls(self) -> str:
        """What Python was asked for, but for its version."""
        with mock.patch.object(sys, 'stderr'):
            python = self.environments.interpreter('zope5', str(self.python))
        self.assertEqual(self.home / 'bin' / 'python', python)
        calls = self.dir / 'calls'
        lines = calls.read_text().splitlines()
        calls.unlink()
        return '\n'.join(line for line in lines if 'platform' not in line)

    def test_it_is_made_once(self) -> None:
        venv, pip = self.calls().splitlines()
        self.assertEqual(f'-m venv --clear {self.home}', venv)
        self.assertIn(f'--constraint {self.dir}/constraints/zope5.txt', pip)
        self.assertIn(f'--editable {self.dir}[zope5,', pip)
        self.assertEqual('', self.calls())

    def test_it_is_made_anew_when_what_it_is_made_from_changes(self) -> None:
        self.calls()
        for name in 'setup.py', 'constraints/zope5.txt':
            with self.subTest(name):
                self.write(name, 'something else')
                self.assertIn('pip install', self.calls())
                self.assertEqual('', self.calls())

    def test_one_that_is_half_made_is_made_anew(self) -> None:
        (self.dir / 'no-index').touch()
        with self.assertRaisesRegex(
                self.environments.EnvironmentFailed,
                '(?s)^status 1 of .*pip install.*:\nno index\n$'):
            self.calls()
        (self.dir / 'no-index').unlink()
        self.assertIn('pip install', self.calls())
