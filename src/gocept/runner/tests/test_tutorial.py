"""docs/tutorial.rst, as a reader follows it, from an empty directory."""

import importlib.metadata
import os
import pwd
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import setuptools

from gocept.runner.tests.services import none_may_be_left_out
from gocept.runner.tests.support import DEADLINE, TestCase
from gocept.runner.tests.test_documents import CHECKOUT
from gocept.runner.tests.test_packaging import build_wheel

BLOCK = re.compile(  # what it is: commands, or a file, which is named before
    r'(?:(?P<how>^|to |adds )``(?P<file>[\w./]+)``(?:.|\n(?!\n))*:\n\n)?'
    r'\.\. code-block:: (?P<kind>\w+)\n\n(?P<text>(?:    .*\n|\n)+)',
    re.MULTILINE)

COMMAND = re.compile(r'^\$ (.*)\n((?:[^$].*\n|\n)*)', re.MULTILINE)

MARK = '@@@'

# A script of pytest, which an egg of pytest does not have.
PYTEST = '''\
#!/bin/sh
exec "$(dirname "$0")"/python -m pytest "$@"
'''

Step = tuple[str, str]  # a command, and what it is to print, or ''

BUILDOUT: list[Step] = [
    ('cd ..', ''), ('pip uninstall --yes shop', '...Successfully...'),
    ('gocept-runner new --buildout other/shop', '...    buildout.cfg\n...'),
    ('cd other/shop', '')]


class TutorialTests(TestCase):

    level = 2

    def setUp(self) -> None:
        super().setUp()
        self.home = self.dir.resolve() / 'home'
        self.home.mkdir()

    def steps(self, text: str) -> Iterator[Step]:
        """The commands, and what compares or writes the files."""
        user = pwd.getpwuid(os.getuid()).pw_name
        text = text.replace('/home/ann', str(self.home)).replace(
            'User=ann', f'User={user}')
        for number, block in enumerate(BLOCK.finditer(text)):
            content = textwrap.dedent(block['text']).strip('\n') + '\n'
            if block['kind'] == 'console':
                yield from COMMAND.findall(content)
            elif block['how'] == 'to ':
                self.write(str(number), content)
                yield f'cp {self.dir}/{number} {block["file"]}', ''
            else:
                yield f'cat {block["file"]}', content

    def follow(self, steps: list[Step], **environment: str) -> None:
        """Run the commands in one shell, and look at what they print."""
        script = self.write('script', ''.join(
            f'echo {MARK}\n{command}\n' for command, _ in steps))
        python = os.path.dirname(os.path.realpath(sys.executable))
        done = subprocess.run(
            ['bash', script], cwd=self.home, text=True, timeout=10 * DEADLINE,
            env={name: value for name, value in os.environ.items()
                 if name not in ('PYTHONPATH', 'VIRTUAL_ENV')} | environment
            | {'PATH': os.pathsep.join((python, os.environ['PATH'])),
               'HOME': str(self.home)},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT)
        output = done.stdout.split(f'{MARK}\n')[1:]
        self.assertEqual(len(steps), len(output), done.stdout)
        for (command, expected), printed in zip(steps, output, strict=True):
            if command.startswith('pip install'):
                expected = '...Successfully installed...'
            if expected:
                pattern = re.escape(expected).replace(r'\.\.\.', '.*')
                if not re.fullmatch(pattern, printed, re.DOTALL):
                    self.fail(f'$ {command}\n{printed}\n'
                              f'where this was expected:\n{expected}\n'
                              f'All output:\n{done.stdout}')

    def read(self) -> tuple[list[Step], list[Step]]:
        """The steps up to the part on buildout, and those of that part."""
        text = (CHECKOUT / 'docs/tutorial.rst').read_text()
        self.assertEqual('4.0.0.dev0',
                         importlib.metadata.version('gocept.runner'),
                         'The tutorial shows another version.')
        main, title, buildout = text.partition('\nWith buildout\n')
        self.assertTrue(title)
        return list(self.steps(main)), list(self.steps(buildout))

    def test_with_the_packages_that_are_here(self) -> None:
        steps, buildout = self.read()
        self.assertLess(25, len(steps))
        (venv, nothing), *rest = steps
        self.assertEqual('python3 -m venv venv', venv)
        self.write('pytest', PYTEST).chmod(0o755)
        self.write('here.pth', '\n'.join(self.importable()))
        self.follow(
            [(f'{venv}; cp {self.dir}/pytest venv/bin; '
              'cd venv/lib/python3*/site-packages; '
              'rm -rf *distutils* setuptools*; '  # that of venv is too old
              f'cp {self.dir}/here.pth .; cd ~', nothing), *rest,
             *BUILDOUT, *buildout],
            PIP_NO_INDEX='1', PIP_NO_DEPS='1',
            PIP_NO_BUILD_ISOLATION='0',  # pip's way to say that it is on
            PIP_FIND_LINKS=str(build_wheel().parent))

    def test_with_an_index(self) -> None:
        if not none_may_be_left_out():
            self.skipTest('it would ask an index for all packages')
        links = build_wheel().parent
        before = os.environ.get('PIP_FIND_LINKS', '')
        steps, _ = self.read()
        self.follow([
            *steps, *BUILDOUT, ('pip install zc.buildout', ''),
            (f'buildout buildout:find-links={shlex.quote(str(links))}',
             "...Generated script '.../bin/shop'.\n..."),
            ('bin/pytest', '... 1 passed ...'),
            ('bin/shop --once', '... INFO shop This is tick 1\n')],
            PIP_FIND_LINKS=f'{links} {before}')

    def importable(self) -> Iterator[str]:
        """Where the packages are that a project needs, but not our own."""
        tools = self.dir / 'tools'
        tools.mkdir()
        [place] = map(Path, setuptools.__path__)
        for name in 'setuptools*', '_distutils_hack*':
            for each in place.parent.glob(name):
                (tools / each.name).symlink_to(each)
        yield str(tools)
        eggs = [path for path in sys.path if path.endswith('.egg')]
        if not eggs:
            self.skipTest('the packages are not the eggs of a buildout')
        yield from eggs
