"""The subcommand `new`; tests/test_tutorial.py runs what it writes."""

import contextlib
import importlib.metadata
import io
import os
import pwd
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from unittest import mock

from gocept.runner import cli, errors
from gocept.runner.cli.new import BUILDOUT, FILES
from gocept.runner.tests.services import need
from gocept.runner.tests.support import DEADLINE, TestCase, child_environment

TAKEN = (
    "the project cannot have the name '{0}': there is such a module already, "
    'which Python would not find any more; choose another one, such as '
    "'{0}-worker'")


class NewTests(TestCase):

    def setUp(self) -> None:
        super().setUp()
        self.dir = self.dir.resolve()
        self.enterContext(contextlib.chdir(self.dir))
        # By default, this program was not installed by pip.
        self.enterContext(mock.patch('sys.prefix', f'{self.dir}/prefix'))

    def new(self, *argv: str) -> tuple[int, str, str]:
        """The status, and what was written to standard output and error."""
        with (contextlib.redirect_stdout(io.StringIO()) as stdout,
              contextlib.redirect_stderr(io.StringIO()) as stderr):
            try:
                status = cli.main(['new', *argv])
            except SystemExit as error:
                status = error.code  # type: ignore[assignment]
        return status, stdout.getvalue(), stderr.getvalue()

    def files(self, directory: str = '.') -> set[str]:
        """All that is below the directory."""
        return {path.relative_to(directory).as_posix()
                for path in Path(directory).rglob('*') if path.is_file()}

    def assertRefused(
            self, directory: str, expected: str,
            status: int = errors.BAD_USAGE) -> None:
        before = set(self.dir.rglob('*'))
        self.assertEqual(
            (status, '', f'gocept-runner new: error: {expected}\n'),
            self.new(directory))
        self.assertEqual(before, set(self.dir.rglob('*')))

    def test_writes_a_project_and_tells_how_to_go_on(self) -> None:
        status, output, error = self.new('shop')
        self.assertEqual((0, ''), (status, error))
        self.assertEqual(
            {'pyproject.toml', '.gitignore', 'src/shop.py',
             'tests/test_shop.py', 'zope.conf', 'site.zcml', 'shop.service'},
            self.files('shop'))
        self.assertEqual(f'''\
This is the project shop, in {self.dir}/shop:
    pyproject.toml
    .gitignore
    src/shop.py
    tests/test_shop.py
    zope.conf
    site.zcml
    shop.service

Go on with:
    cd shop
    python3 -m venv .venv
    .venv/bin/pip install -e '.[test]'
    .venv/bin/pytest
    .venv/bin/shop --once
''', output)
        self.assertIn(f'ExecStart="{self.dir}/shop/.venv/bin/shop"\n',
                      Path('shop/shop.service').read_text())

    def test_goes_on_where_this_program_was_installed(self) -> None:
        scripts = self.dir / 'prefix' / 'bin'
        scripts.mkdir(parents=True)
        script = scripts / 'gocept-runner'
        script.touch(0o755)
        (scripts / 'pip').touch(0o755)
        for path, shown in (('/bin', f'{scripts}/'), (str(scripts), '')):
            with self.subTest(path), mock.patch.dict(os.environ, PATH=path):
                name = f'shop{len(path)}'
                _, output, _ = self.new(name)
                self.assertTrue(output.endswith(
                    f"    cd {name}\n"
                    f"    {shown}pip install -e '.[test]'\n"
                    f"    {shown}pytest\n"
                    f"    {shown}{name} --once\n"), output)
                self.assertIn(f'ExecStart="{scripts}/{name}"\n',
                              Path(name, f'{name}.service').read_text())

    def test_an_environment_without_pip(self) -> None:
        scripts = self.dir / 'prefix' / 'bin'
        scripts.mkdir(parents=True)
        (scripts / 'gocept-runner').touch(0o755)
        for path, shown in (  # as pipx and uv make them
                ('/bin', '.venv/bin/pip'), (str(scripts), 'uv pip')):
            with self.subTest(path), mock.patch.dict(os.environ, PATH=path):
                _, output, _ = self.new(f'shop{len(path)}')
                self.assertIn(f"    {shown} install -e '.[test]'\n", output)

    def test_buildout(self) -> None:
        _, output, _ = self.new('--buildout', 'shop')
        version = importlib.metadata.version('gocept.runner')
        self.assertTrue(Path('shop/buildout.cfg').read_text().endswith(
            f'\ngocept.runner = {version}\n'))
        self.assertLess({'/Data.fs*', '/parts/'}, {
            *Path('shop/.gitignore').read_text().splitlines()})
        self.assertIn('    .venv/bin/buildout\n    bin/pytest\n', output)
        self.assertIn(f'ExecStart="{self.dir}/shop/bin/shop"\n',
                      Path('shop/shop.service').read_text())

    def test_plone(self) -> None:  # tests/zope/plone_new.py runs it
        status, output, error = self.new('--plone', 'My.shop')
        self.assertEqual((0, ''), (status, error))
        self.assertEqual(f'''\
This is the project my-shop, in {self.dir}/My.shop:
    pyproject.toml
    .gitignore
    src/my_shop/__init__.py
    src/my_shop/configure.zcml
    src/my_shop/worker.py
    src/my_shop/tests.py
    my-shop.service

Go on with:
    cd My.shop
    PLONE/bin/pip install -e '.[test]'
    PLONE/bin/zope-testrunner --test-path=src -s my_shop
    PLONE/bin/gocept-runner run my-shop --config ZOPE.CONF --site SITE --once
''', output)
        self.assertIn(
            'ExecStart="/srv/plone/bin/gocept-runner" run my-shop '
            '--config /srv/plone/etc/zope.conf --site Plone\nExecReload=',
            Path('My.shop/my-shop.service').read_text())
        with open('My.shop/pyproject.toml', 'rb') as file:
            project = tomllib.load(file)['project']
        self.assertEqual({'z3c.autoinclude.plugin': {'target': 'plone'}},
                         project['entry-points'])

    def test_plone_has_a_buildout_of_its_own(self) -> None:
        status, output, error = self.new('--plone', '--buildout', 'shop')
        self.assertEqual((errors.BAD_USAGE, ''), (status, output))
        self.assertIn('not allowed with argument --plone', error)

    def test_an_empty_directory(self) -> None:
        Path('deep/shop').mkdir(parents=True)
        self.assertEqual(0, self.new('deep/shop/')[0])
        self.assertIn('zope.conf', self.files('deep/shop'))
        Path('deep/other').mkdir()
        with contextlib.chdir('deep/other'):
            status, output, _ = self.new('.')
        self.assertEqual(0, status)
        self.assertNotIn('    cd ', output)
        self.assertIn('src/other.py', self.files('deep/other'))

    def test_a_directory_below_others_that_do_not_exist(self) -> None:
        self.assertEqual(0, self.new('very/deep/shop')[0])
        self.assertIn('zope.conf', self.files('very/deep/shop'))

    def test_a_name_of_several_words(self) -> None:
        self.assertEqual(0, self.new('My_Web.shop')[0])
        self.assertLess({'src/my_web_shop.py', 'my-web-shop.service'},
                        self.files('My_Web.shop'))
        with open('My_Web.shop/pyproject.toml', 'rb') as file:
            project = tomllib.load(file)['project']
        self.assertEqual('my-web-shop', project['name'])
        self.assertEqual({'my-web-shop': 'my_web_shop:work'},
                         project['scripts'])

    def test_a_version_of_our_own(self) -> None:
        with mock.patch('importlib.metadata.version',
                        return_value='4.1+ours.2'):
            self.new('shop')
        self.assertIn('dependencies = ["gocept.runner>=4.1"]\n',
                      Path('shop/pyproject.toml').read_text())

    def test_overwrites_nothing(self) -> None:
        Path('shop/src').mkdir(parents=True)
        self.assertRefused('shop', f'{self.dir}/shop is not empty, so '
                           'nothing was written')
        Path('a-file').touch()
        self.assertRefused('a-file', f'{self.dir}/a-file is no directory')
        self.assertRefused(
            'a-file/shop', f'{self.dir}/a-file is no directory')

    def test_names_that_do_not_fit(self) -> None:
        for name, hint in (
                ('my shop', "'my-shop' is one"), ('2nd', "'nd' is one"),
                ('+', 'choose another one'), ('sh\xf6p', "'shop' is one"),
                ('\u03c0', 'choose another one'),
                ('-x-', "'x' is one")):
            self.assertRefused(
                f'./{name}', f'{name!r} is no name of a package, which '
                'begins with a letter and has letters, digits and "-"; '
                + hint)
        for name in 'json', 'zope', 'gocept', 'transaction', 'Test':
            self.assertRefused(name, TAKEN.format(name.lower()))
        self.assertRefused(
            'class', "the project cannot have the name 'class': it is a word "
            "of Python; choose another one, such as 'class-worker'")
        self.assertRefused(
            "ann's/shop", f'"{self.dir}/ann\'s/shop" has a character '
            'that a unit of systemd or ZCML cannot have; choose another '
            'directory')
        self.assertRefused(
            '$HOME/shop', f"'{self.dir}/$HOME/shop' has a character that a "
            'unit of systemd or ZCML cannot have; choose another directory')

    def test_names_of_commands(self) -> None:
        for name in ('python', 'python3', 'python3.11', 'pip3', 'activate',
                     'gocept-runner', 'ls'):
            self.assertRefused(
                name, f"the project cannot have the name "
                f"{re.sub('[-.]', '_', name)!r}: there is a command of this "
                'name already, which it would replace or hide; choose another '
                f"one, such as '{name.replace('.', '-')}-worker'")

    def test_a_command_of_a_project_that_was_there_before(self) -> None:
        Path('bin').mkdir()
        for text, status in (('from my_shop import work', 0),
                             ('import my_shop', 0), ('import other', 2)):
            self.write('bin/my-shop', f'#!/bin/python\n{text}\n').chmod(0o755)
            with mock.patch.dict(os.environ, PATH=f'{self.dir}/bin'):
                self.assertEqual(status, self.new(f'{status}{len(text)}/'
                                                  'my-shop')[0])

    def test_a_gitignore_that_is_there_is_kept(self) -> None:
        Path('shop').mkdir()
        Path('shop/.gitignore').write_text('*.sw?\n')
        status, output, _ = self.new('shop')
        self.assertEqual(0, status)
        self.assertNotIn('.gitignore', output)
        self.assertEqual('*.sw?\n', Path('shop/.gitignore').read_text())

    def test_a_project_of_the_same_name_that_was_there_before(self) -> None:
        self.enterContext(mock.patch.object(
            sys, 'path', [*sys.path, f'{self.dir}/shop/src', f'{self.dir}']))
        Path('shop').mkdir()  # as a package without __init__.py
        self.assertEqual(0, self.new('shop')[0])
        self.assertRefused('other/shop', TAKEN.format('shop'))

    def test_an_environment_in_the_directory_of_the_project(self) -> None:
        packages = self.dir / 'shop/.venv/lib'
        packages.mkdir(parents=True)
        (packages / 'shop.py').touch()
        with mock.patch.object(sys, 'path', [*sys.path, str(packages)]):
            self.assertRefused('shop', TAKEN.format('shop'))
        self.assertEqual(0, self.new('shop')[0])  # hidden files are no matter

    def test_a_full_disk_leaves_nothing_behind(self) -> None:
        done = subprocess.run(
            ['sh', '-c', 'ulimit -f 0; exec "$@"', '-', sys.executable, '-c',
             'import sys; from gocept.runner.cli import main; '
             'sys.exit(main())', 'new', 'deep/shop'],
            env=child_environment(), timeout=DEADLINE, text=True,
            capture_output=True)
        self.assertEqual(
            (errors.WORKER_FAILED, '',
             f'gocept-runner new: error: {self.dir}/deep/shop cannot be '
             'written: File too large\n'),
            (done.returncode, done.stdout, done.stderr))
        self.assertEqual([], list(self.dir.iterdir()))

    def test_where_nothing_may_be_written(self) -> None:
        self.assertRefused(
            '/proc/shop', '/proc/shop cannot be written: No such file or '
            'directory', errors.WORKER_FAILED)

    def test_a_user_without_a_name(self) -> None:
        with mock.patch.object(pwd, 'getpwuid', side_effect=KeyError):
            self.new('shop')
        self.assertIn(f'\nUser={os.getuid()}\n',
                      Path('shop/shop.service').read_text())

    def test_systemd_understands_the_unit(self) -> None:
        verify = need(self, 'systemd-analyze')
        directory = self.dir / 'a 100%h dir;'
        self.new(f'{directory}/shop')
        scripts = directory / 'shop/.venv/bin'
        scripts.mkdir(parents=True)
        (scripts / 'shop').touch(0o755)
        done = subprocess.run(
            [verify, 'verify', directory / 'shop/shop.service'],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=DEADLINE)
        self.assertEqual((0, ''), (done.returncode, done.stdout))

    def test_it_is_small(self) -> None:
        lines = [line for text in FILES.values()
                 for line in text.splitlines() if line]
        self.assertLess(len(lines), 62)
        self.assertEqual(['.gitignore', 'buildout.cfg'], [*BUILDOUT])
