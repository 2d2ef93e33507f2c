"""The subcommand ``gocept-runner new``: a project that works at once."""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import keyword
import os
import pwd
import re
import shlex
import shutil
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from gocept.runner import errors
from gocept.runner.cli.mistakes import UserError, guarded

FILES = {
    'pyproject.toml': '''\
[build-system]
requires = ["setuptools>=64"]
build-backend = "setuptools.build_meta"

[project]
name = "{name}"
version = "0.1"
dependencies = ["gocept.runner>={version}"]
optional-dependencies.test = ["gocept.runner[pytest]"]
scripts.{name} = "{module}:work"
''',
    '.gitignore': '''\
/.venv/
/Data.fs*
*.egg-info/
__pycache__/
''',
    'src/{module}.py': '''\
"""The worker of {name}."""

import logging

import gocept.runner
from zope.component.hooks import getSite

log = logging.getLogger(__name__)


@gocept.runner.appmain(ticks=60, principal='{module}.worker')
def work():
    """Count the ticks."""
    site = getSite()
    site.ticks = getattr(site, 'ticks', 0) + 1
    log.info('This is tick %d', site.ticks)
''',
    'tests/test_{module}.py': '''\
from pathlib import Path

import {module}

SITE = Path(__file__).parents[1] / 'site.zcml'


def test_work_counts_the_ticks(runner_config):
    config = runner_config(zcml=SITE)
    config.run_ticks({module}.work, ticks=2)
    with config.site() as site:
        assert site.ticks == 2
''',
    'zope.conf': '''\
site-definition $here/site.zcml
<zodb>
  <filestorage>
    path $here/Data.fs
  </filestorage>
</zodb>
''',
    'site.zcml': '''\
<configure xmlns="http://namespaces.zope.org/zope">
  <include package="gocept.runner" file="site.zcml" />
  <include package="gocept.runner" />
  <principal id="{module}.worker" title="The worker of {name}"
             login="{module}.worker" password_manager="SSHA" password="!" />
</configure>
''',
    '{name}.service': '''\
[Unit]
Description=The worker of {name}

[Service]
Type=notify
User={user}
WorkingDirectory={directory}
ExecStart="{command}"
ExecReload=/bin/kill -USR2 $MAINPID
KillMode=mixed
TimeoutStopSec=90
SuccessExitStatus=143
Restart=on-failure
RestartSec=5
RestartPreventExitStatus=2 66 67 78

[Install]
WantedBy=multi-user.target
''',
}
"""The files of a project, by their paths, as templates of `str.format`."""

BUILDOUT = {'.gitignore': FILES['.gitignore'] + '''\
/.installed.cfg
/bin/
/develop-eggs/
/eggs/
/parts/
''', 'buildout.cfg': '''\
[buildout]
develop = .
parts = {name}

[{name}]
recipe = zc.recipe.egg
eggs =
    {name}[test]
    gocept.runner
    pytest

[versions]
gocept.runner = {version}
'''}
"""What ``--buildout`` adds."""

PLONE = {
    'pyproject.toml': FILES['pyproject.toml'].partition('dependencies')[0]
                      + '''\
dependencies = ["gocept.runner>={version}", "plone.api"]
optional-dependencies.test = ["plone.app.testing", "zope.testrunner"]
# Plone reads the configure.zcml.
entry-points."z3c.autoinclude.plugin".target = "plone"

[tool.setuptools.package-data]
{module} = ["*.zcml"]
''',
    '.gitignore': '''\
/.venv/
*.egg-info/
__pycache__/
''',
    'src/{module}/__init__.py': '''\
"""The add-on {name}: a worker for Plone sites."""
''',
    'src/{module}/configure.zcml': '''\
<configure
    xmlns="http://namespaces.zope.org/zope"
    xmlns:runner="http://namespaces.gocept.com/runner">

  <include package="gocept.runner" />

  <runner:worker
      name="{name}"
      handler=".worker:work"
      ticks="60"
      principal="system" />

</configure>
''',
    'src/{module}/worker.py': '''\
"""The worker of {name}."""

import logging

from DateTime import DateTime
from plone import api

log = logging.getLogger(__name__)


def work():
    """Retract what has expired."""
    for brain in api.content.find(
            review_state='published', unrestricted=True,
            expires={{'query': DateTime(), 'range': 'max'}}):
        api.content.transition(
            brain._unrestrictedGetObject(), to_state='private')
        log.info('Retracted %s', brain.getPath())
''',
    'src/{module}/tests.py': '''\
import unittest

import plone.app.contenttypes
from DateTime import DateTime
from plone import api
from plone.app.testing import (
    PLONE_FIXTURE,
    TEST_USER_ID,
    IntegrationTesting,
    PloneSandboxLayer,
    applyProfile,
    setRoles,
)

import {module}
from {module}.worker import work


class Layer(PloneSandboxLayer):
    defaultBases = (PLONE_FIXTURE,)

    def setUpZope(self, app, configurationContext):
        self.loadZCML(package=plone.app.contenttypes)
        self.loadZCML(package={module})

    def setUpPloneSite(self, portal):
        applyProfile(portal, 'plone.app.contenttypes:default')
        portal.portal_workflow.setDefaultChain('simple_publication_workflow')


class WorkTests(unittest.TestCase):
    layer = IntegrationTesting(bases=(Layer(),), name='{module}')

    def test_it_retracts_what_has_expired(self):
        portal = self.layer['portal']
        setRoles(portal, TEST_USER_ID, ['Manager'])
        new, old = (api.content.create(portal, 'Document', each)
                    for each in ('new', 'old'))
        old.setExpirationDate(DateTime() - 1)
        for document in new, old:
            api.content.transition(document, 'publish')
            document.reindexObject()
        work()
        self.assertEqual(['published', 'private'], [
            api.content.get_state(document) for document in (new, old)])
''',
    '{name}.service': '''\
[Unit]
Description=The worker of {name}

[Service]
Type=notify
User={user}
# The zope.conf of the instance, and the path of the site.
ExecStart="{command}" run {name} --config /srv/plone/etc/zope.conf --site Plone
''' + FILES['{name}.service'].partition('ExecStart="{command}"\n')[2],
}
"""What takes the place of `FILES` with ``--plone``."""

EPILOG = '''\
The name of DIRECTORY becomes the name of the package and of its command. With
--plone, it becomes the name of the add-on and of its worker.
Nothing is written if there is something in DIRECTORY already, other than
hidden files such as .git. The tutorial, docs/tutorial.rst, shows the files,
and what to do with them.

examples:
  gocept-runner new shop
  gocept-runner new --buildout shop
  gocept-runner new --plone shop

statuses:
   0  success
   1  the files could not be written
   2  bad usage, or a directory that has no fitting name or is not empty
'''


def new(argv: Sequence[str]) -> int:
    """Write a project, and tell how to go on."""
    parser = argparse.ArgumentParser(
        'gocept-runner new', '%(prog)s [options] DIRECTORY',
        'Write a small project: a worker with a test, its zope.conf and '
        'site.zcml, and a unit of systemd; or an add-on for Plone.', EPILOG,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('directory', metavar='DIRECTORY',
                        help='a new or an empty directory, for instance "."')
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument('--buildout', action='store_true',
                      help='add a buildout.cfg')
    kind.add_argument('--plone', action='store_true',
                      help='write an add-on for Plone, with a worker that its '
                           'ZCML declares')
    options = parser.parse_args(argv)
    return guarded(parser.prog, lambda: _new(**vars(options)))


def _new(directory: str, buildout: bool, plone: bool) -> int:
    path = Path(os.path.abspath(directory))
    name, module = _names(path)
    steps = _steps(path, buildout, plone)
    if not plone and _is_command(name, module, steps.scripts):
        raise _taken(module, 'there is a command of this name already, which '
                     'it would replace or hide')
    values = {
        'name': name, 'module': module, 'user': _user(),
        'version': importlib.metadata.version(
            'gocept.runner').partition('+')[0],  # no range has a local one
        'directory': _in_unit(path),
        'command': _in_unit(
            steps.scripts / ('gocept-runner' if plone else name))}
    templates = PLONE if plone else FILES | (BUILDOUT if buildout else {})
    files = {file.format_map(values): text.format_map(values)
             for file, text in templates.items()
             # A repository that is there already may have this one.
             if file != '.gitignore' or not (path / file).exists()}
    _write(path, files)
    print(f'This is the project {name}, in {path}:')
    for file in files:
        print(f'    {file}')
    print('\nGo on with:')
    if path != Path.cwd():
        print(f'    cd {shlex.quote(directory)}')
    tries = [f'zope-testrunner --test-path=src -s {module}',
             f'gocept-runner run {name} --config ZOPE.CONF --site SITE --once',
             ] if plone else ['pytest', f'{name} --once']
    for step in (*steps.installation,
                 *(f'{steps.shown}{command}' for command in tries)):
        print(f'    {step}')
    return errors.SUCCESS


def _in_unit(path: Path) -> str:
    """A path for systemd, where "%" begins a specifier."""
    return str(path).replace('%', '%%')


def _names(path: Path) -> tuple[str, str]:
    """The name of the project and its command, and that of its module."""
    if not str(path).isprintable() or set(str(path)) & set('"\'\\$'):
        raise UserError(f'{str(path)!r} has a character that a unit of '
                        'systemd or ZCML cannot have; choose another '
                        'directory',
                        errors.BAD_USAGE)
    name = re.sub('[-_.]+', '-', path.name.lower())
    if not re.fullmatch('[a-z]([a-z0-9-]*[a-z0-9])?', name):
        plain = unicodedata.normalize('NFKD', name).encode('ascii', 'ignore')
        fitting = re.sub('[^a-z0-9]+', '-', plain.decode()).strip(
            '-0123456789')
        raise UserError(
            f'{path.name!r} is no name of a package, which begins with a '
            'letter and has letters, digits and "-"; '
            f'{f"{fitting!r} is one" if fitting else "choose another one"}',
            errors.BAD_USAGE)
    module = name.replace('-', '_')
    reason = ('it is a word of Python' if keyword.iskeyword(module) else
              'there is such a module already, which Python would not find '
              'any more' if _is_taken(module, path) else None)
    if reason is not None:
        raise _taken(module, reason)
    return name, module


def _taken(module: str, reason: str) -> UserError:
    name = module.replace('_', '-')
    return UserError(
        f'the project cannot have the name {module!r}: {reason}; choose '
        f"another one, such as '{name}-worker'", errors.BAD_USAGE)


def _is_taken(module: str, path: Path) -> bool:
    """Whether Python knows this module, other than from a project there."""
    if module in sys.stdlib_module_names:
        return True
    spec = importlib.util.find_spec(module)
    places = [] if spec is None else (
        spec.submodule_search_locations or [spec.origin or ''])
    ours = path, path / 'src' / f'{module}.py', path / 'src' / module
    return any(Path(place) not in ours for place in places)


def _is_command(name: str, module: str, scripts: Path) -> bool:
    """Whether the environment of the project, or PATH, has such a command.

    One that starts this module is that of a project which was there before.
    """
    if re.fullmatch('python[0-9-]*|pip[0-9-]*|activate|buildout|gocept-runner',
                    name):
        return True  # also where the environment is still to be made
    for script in scripts / name, shutil.which(name):
        with contextlib.suppress(OSError):
            if script is not None and not _starts(Path(script), module):
                return True
    return False


def _starts(script: Path, module: str) -> bool:
    """Whether it is a script that was generated for this module."""
    with open(script, errors='replace') as file:
        text = file.read(10_000)
    return f'from {module} import' in text or f'import {module}' in text


class _Steps(NamedTuple):
    """How the project is installed."""

    scripts: Path
    shown: str  # what stands before the name of a script
    installation: Sequence[str]


def _steps(path: Path, buildout: bool, plone: bool) -> _Steps:
    """In the environment of this program, if it was installed there, as pip
    may find no other gocept.runner of this version.

    An add-on needs the environment of its instance.
    """
    if plone and not _has_plone():
        return _Steps(Path('/srv/plone/bin'), 'PLONE/bin/', [
            "PLONE/bin/pip install -e '.[test]'"])
    if buildout:
        return _Steps(path / 'bin', 'bin/', [
            'python3 -m venv .venv', '.venv/bin/pip install zc.buildout',
            '.venv/bin/buildout'])
    scripts = Path(sys.prefix, 'bin')
    ours = scripts / 'gocept-runner'
    is_active = shutil.which(ours.name) == str(ours)
    has_pip = Path(scripts, 'pip').exists()
    install = "pip install -e '.[test]'"
    if not ours.exists() or not (is_active or has_pip):  # as that of pipx
        return _Steps(path / '.venv/bin', '.venv/bin/', [
            'python3 -m venv .venv', f'.venv/bin/{install}'])
    if not has_pip:
        install = f'uv {install}'
    shown = '' if is_active else f'{shlex.quote(str(scripts))}/'
    return _Steps(scripts, shown, [f'{shown}{install}'])


def _has_plone() -> bool:
    """Whether this is the environment of an instance of Plone."""
    try:
        importlib.metadata.version('Products.CMFPlone')
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # as in some containers
        return str(os.getuid())


def _write(path: Path, files: Mapping[str, str]) -> None:
    """Write all of `files`, or nothing."""
    try:
        if path.exists() and any(
                not each.name.startswith('.') for each in path.iterdir()):
            raise UserError(f'{path} is not empty, so nothing was written',
                            errors.BAD_USAGE)
        with contextlib.ExitStack() as undo:
            for directory in (*reversed(path.parents), path):
                _make(directory, undo)
            for name, text in files.items():
                for parent in reversed(Path(name).parents):
                    _make(path / parent, undo)
                with open(path / name, 'x', encoding='utf-8') as file:
                    undo.callback(os.unlink, path / name)
                    file.write(text)
            undo.pop_all()
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f'{error.filename} is no directory',
                        errors.BAD_USAGE) from error
    except OSError as error:
        raise UserError(
            f'{error.filename or path} cannot be written: {error.strerror}',
            errors.WORKER_FAILED) from error


def _make(directory: Path, undo: contextlib.ExitStack) -> None:
    if not directory.is_dir():
        directory.mkdir()
        undo.callback(directory.rmdir)
