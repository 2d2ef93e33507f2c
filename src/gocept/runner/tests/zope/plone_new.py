"""What ``gocept-runner new --plone`` writes runs on a Plone site."""

import subprocess
import sys
from pathlib import Path

from gocept.runner.tests import support
from gocept.runner.tests.zope.plones import Instance

CLI = 'import sys; from gocept.runner.cli import main; sys.exit(main())'


class NewTests(support.TestCase):

    def run_python(self, *args: str | Path) -> str:
        """Run Python with the project installed; returns its output."""
        done = subprocess.run(
            [sys.executable, *args], cwd=self.dir, text=True,
            env=support.child_environment() | {
                'PYTHONPATH': f'{self.dir}/target:'
                + support.child_environment()['PYTHONPATH']},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.assertEqual(0, done.returncode, done.stdout)
        return done.stdout

    def test_the_project_works(self) -> None:
        output = self.run_python('-c', CLI, 'new', '--plone', 'my-shop')
        self.assertIn(f'    {sys.prefix}/bin/zope-testrunner --test-path=src '
                      '-s my_shop\n', output)
        # In a place of its own, as the environment is that of other tests.
        self.run_python(
            '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check',
            '--no-build-isolation', '--no-deps', '--no-index',
            '--target', 'target', './my-shop')
        self.assertIn(
            'Ran 1 tests with 0 failures, 0 errors', self.run_python(
                '-m', 'zope.testrunner', '--test-path=target', '-s',
                'my_shop'))

        instance = Instance(self.dir / 'instance')
        instance.run(self.write('before.py', '''
            import sys
            import gocept.runner
            from DateTime import DateTime
            from plone import api

            @gocept.runner.once(principal='writer')
            def create():
                for name, expires in ('old', -1), ('new', 1):
                    document = api.content.create(
                        api.content.get('/news'), 'Document', name)
                    document.setExpirationDate(DateTime() + expires)
                    api.content.transition(document, 'publish')

            sys.exit(create())
            '''))
        self.assertIn('my-shop', self.run_python(
            '-c', CLI, 'list', '--config', instance.conf))
        self.assertIn('Retracted /Plone/news/old\n', self.run_python(
            '-c', CLI, 'run', 'my-shop', '--config', instance.conf,
            '--site', 'Plone', '--once'))
        states = instance.ask('plones.state(site)["states"]')
        self.assertEqual(
            ['private', 'published'],
            [states[f'/Plone/news/{name}'] for name in ('old', 'new')])
