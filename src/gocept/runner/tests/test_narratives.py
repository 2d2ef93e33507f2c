"""The manual, run as tests: each narrative in an empty directory."""

import contextlib
import doctest
import pathlib
import shlex
import subprocess
import sys
import tempfile
import textwrap
import unittest

from gocept.runner.tests.support import (
    DEADLINE,
    child_environment,
    end_background,
    quiet_children,
    reset_process,
)
from gocept.runner.tests.victims import adopt_no_more

NARRATIVES = ('appmain.rst', 'boot/zopeconf.rst', 'executor/executor.rst',
              'once.rst', 'spawn/spawn.rst', 'transaction.rst',
              'zcml/zcml.rst')

OPTIONS = (doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
           | doctest.REPORT_NDIFF)


def write(name: str, text: str) -> None:
    """Write a file to the current directory."""
    path = pathlib.Path(name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(textwrap.dedent(text).lstrip('\n'))


def sh(command: str) -> None:
    """Run a command, and print its output and any status that is not 0."""
    program, *args = shlex.split(command)
    if program == 'python':
        program = sys.executable
    elif program == 'gocept-runner':
        program = sys.executable
        args = ['-c', 'import sys; from gocept.runner.cli import main; '
                'sys.exit(main())', *args]
    process = subprocess.run(
        [program, *args], env=child_environment(), timeout=DEADLINE,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True)
    print(process.stdout, end='')
    if process.returncode:
        print(f'(status {process.returncode})')


def set_up(test: doctest.DocTest) -> None:
    reset_process()
    undo = contextlib.ExitStack()
    test.globs.update(
        write=write, sh=sh, environment=child_environment(), _undo=undo)
    directory = undo.enter_context(tempfile.TemporaryDirectory())
    undo.enter_context(contextlib.chdir(directory))
    undo.enter_context(quiet_children())


def tear_down(test: doctest.DocTest) -> None:
    end_background()
    adopt_no_more()
    test.globs['_undo'].close()
    reset_process()


def test_suite() -> unittest.TestSuite:
    return doctest.DocFileSuite(
        *NARRATIVES, package='gocept.runner', setUp=set_up,
        tearDown=tear_down, optionflags=OPTIONS, encoding='utf-8')
