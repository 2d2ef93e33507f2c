"""The plugin of pytest, which is run as a program."""

import importlib.metadata
import json
import subprocess
import sys

from gocept.runner.tests.executors import ExecutorTestCase
from gocept.runner.tests.support import DEADLINE, child_environment

PLUGIN = 'gocept.runner.testing.plugin'


class PluginTests(ExecutorTestCase):

    def run_pytest(self, body, *args):
        """The status and the output of pytest for a module of tests."""
        self.write('test_it.py', body)
        done = subprocess.run(
            [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider',
             '-p', PLUGIN, '--rootdir', str(self.dir), 'test_it.py', *args],
            cwd=self.dir, timeout=DEADLINE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
            env=child_environment(PYTEST_DISABLE_PLUGIN_AUTOLOAD='1'))
        return done.returncode, done.stdout

    def test_pytest_finds_it(self):
        points = importlib.metadata.distribution(
            'gocept.runner').entry_points.select(group='pytest11')
        self.assertEqual({PLUGIN}, {point.value for point in points})

    def test_fixtures(self):
        status, output = self.run_pytest('''
            import os
            import gocept.runner
            from gocept.runner.interfaces import IRunner
            from zope.component import getUtility
            from zope.component.hooks import getSite

            @gocept.runner.once()
            def work():
                child = getUtility(IRunner).get_channel('child')
                getSite().text = child.read_until(b'.', 10)[0]

            paths = []

            def test_one(runner_config, fake_children):
                children = fake_children(
                    on_start=lambda child: child.put(b'hello.'))
                config = runner_config(
                    'app', zcml='<runner:app name="child" command="no" />')
                other = runner_config()
                paths.extend([config.path, other.path])
                assert config.run(work) == 0
                with config.site() as site:
                    assert site.text == b'hello'
                with other.site() as site:
                    assert site.__name__ is None
                with config.site():
                    work.worker()
                    assert len(children.all('child')) == 2
                with runner_config() as config:
                    pass
                assert not os.path.exists(config.path)

            def test_two():
                assert not any(map(os.path.exists, paths))

            def test_log(runner_config, caplog):
                assert runner_config().run(work) == 1
                assert 'Error in worker' in caplog.text

            def test_fails(runner_config):
                assert runner_config().run(work) == 0
            ''')
        self.assertEqual(1, status, output)
        self.assertIn('3 passed', output)
        self.assertIn('1 failed', output)
        self.assertIn('nothing is declared or was started as', output)

    def test_it_imports_nothing_before_it_is_used(self):
        status, output = self.run_pytest('''
            import json, sys

            def test_one():
                with open('modules', 'w') as file:
                    json.dump([*sys.modules], file)
            ''')
        self.assertEqual(0, status, output)
        modules = json.loads((self.dir / 'modules').read_text())
        self.assertEqual(
            {'gocept', 'gocept.runner', 'gocept.runner.testing', PLUGIN,
             'gocept.runner.waits', 'gocept.runner.waits.lazy'},
            {name for name in modules if name.split('.')[0] in (
                'gocept', 'ZODB', 'ZConfig', 'transaction', 'zope')})

    def test_fixtures_of_a_project_go_first(self):
        status, output = self.run_pytest('''
            import pytest

            @pytest.fixture
            def runner_config():
                return 'mine'

            def test_one(runner_config):
                assert runner_config == 'mine'
            ''', '-W', 'error')
        self.assertEqual(0, status, output)

    def test_help_is_one_sentence_for_each(self):
        self.write('test_it.py', '')
        _, output = self.run_pytest('', '--fixtures')
        for name in 'runner_config', 'fake_children':
            self.assertIn(f'{name} -- ', output)
            self.assertIn(f'Called like `gocept.runner.testing.{name}`',
                          ' '.join(output.split()))
