"""The manual, run as tests: each narrative in an empty directory."""

import contextlib
import doctest
import functools
import logging
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import unittest
import unittest.mock
from collections.abc import Iterator

from gocept.runner.background.roster import servers
from gocept.runner.errors import KernelNotRunning
from gocept.runner.kernel import Kernel
from gocept.runner.tests.kernels import free_port
from gocept.runner.tests.support import (
    DEADLINE,
    child_environment,
    end_background,
    quiet_children,
    reset_process,
)
from gocept.runner.tests.victims import adopt_no_more

NARRATIVES = ('appmain.rst', 'background/background.rst',
              'boot/zopeconf.rst', 'executor/executor.rst',
              'kernel/kernel.rst', 'once.rst', 'operation/operation.rst',
              'operation/status.rst', 'operation/watchdog.rst',
              'schedule/schedule.rst',
              'spawn/spawn.rst', 'transaction.rst', 'zcml/zcml.rst')

# Pages of docs/ that are doctests, too; a wheel does not have them.
PAGES = sorted(
    str(page) for page
    in (pathlib.Path(__file__).parents[4] / 'docs').glob('*.rst')
    if '\n>>> ' in page.read_text(encoding='utf-8'))

OPTIONS = (doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
           | doctest.REPORT_NDIFF)


def write(name: str, text: str) -> None:
    """Write a file to the current directory."""
    path = pathlib.Path(name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(textwrap.dedent(text).lstrip('\n'))


def argv_of(command: str) -> list[str]:
    """The command, if it is one of ours by the Python that runs this."""
    program, *args = shlex.split(command)
    if program == 'python':
        program = sys.executable
    elif program == 'gocept-runner':
        program = sys.executable
        args = ['-c', 'import sys; from gocept.runner.cli import main; '
                'sys.argv[0] = "/srv/shop/bin/gocept-runner"; '
                'sys.exit(main())', *args]
    return [program, *args]


def sh(command: str, until: str = '') -> None:
    """Run a command, and print its output and any status that is not 0.

    If `until` is given, run it again and again, until its output has that.
    """
    end = time.monotonic() + DEADLINE
    while True:
        process = subprocess.run(
            argv_of(command), env=child_environment(), timeout=DEADLINE,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True)
        if until in process.stdout or time.monotonic() > end:
            break
    print(process.stdout, end='')
    if process.returncode:
        print(f'(status {process.returncode})')


def start(undo: contextlib.ExitStack, command: str, log: str, **more: str,
          ) -> subprocess.Popen[bytes]:
    """Start a command that goes on, and have its output in the file `log`."""
    with open(log, 'wb') as file:
        process = subprocess.Popen(
            argv_of(command), env=child_environment(**more),
            stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    undo.callback(process.wait)
    undo.callback(process.kill)
    return process


def end_kernels() -> None:
    """End what a narrative has left in the current directory."""
    for path in pathlib.Path.cwd().glob('*.sock'):
        with (contextlib.suppress(KernelNotRunning),
              Kernel(path, autostart=False) as kernel):
            for entry in kernel.list_processes().values():
                if entry['running']:
                    os.killpg(entry['pid'], signal.SIGKILL)
            kernel.stop(force=True)


def end_servers() -> None:
    """End the background servers that a narrative has left."""
    for server in servers():
        with contextlib.suppress(ProcessLookupError):  # it ended just now
            os.kill(server.pid, signal.SIGKILL)


@contextlib.contextmanager
def modules_of(directory: str) -> Iterator[None]:
    """Have modules found there, as those of a script in this directory."""
    before = set(sys.modules)
    sys.path.insert(0, directory)
    try:
        yield
    finally:
        sys.path.remove(directory)
        for name in set(sys.modules) - before:
            if (getattr(sys.modules[name], '__file__', None) or '').startswith(
                    directory):
                del sys.modules[name]


@contextlib.contextmanager
def own_handlers() -> Iterator[None]:
    """Remove the handlers that a zope.conf has given to the root logger."""
    root = logging.getLogger()
    level, before = root.level, list(root.handlers)
    try:
        yield
    finally:
        root.setLevel(level)
        for handler in root.handlers:
            if handler not in before:
                handler.close()
        root.handlers[:] = before


def set_up(test: doctest.DocTest) -> None:
    reset_process()
    undo = contextlib.ExitStack()
    directory = undo.enter_context(tempfile.TemporaryDirectory())
    undo.enter_context(contextlib.chdir(directory))
    undo.enter_context(modules_of(directory))
    undo.enter_context(own_handlers())
    undo.enter_context(unittest.mock.patch.dict(
        os.environ, XDG_STATE_HOME=os.path.join(directory, 'state')))
    undo.enter_context(quiet_children())
    undo.callback(end_kernels)
    undo.callback(end_servers)
    test.globs.update(
        write=write, sh=sh, start=functools.partial(start, undo),
        environment=child_environment(), port=free_port(),
        free_port=free_port, _undo=undo)


def tear_down(test: doctest.DocTest) -> None:
    end_background()
    adopt_no_more()
    test.globs['_undo'].close()
    reset_process()


def narratives(*paths: str, package: str | None = 'gocept.runner',
               ) -> unittest.TestSuite:
    """The tests that narratives are."""
    return doctest.DocFileSuite(
        *paths, package=package, module_relative=package is not None,
        setUp=set_up, tearDown=tear_down, optionflags=OPTIONS,
        encoding='utf-8')


def test_suite() -> unittest.TestSuite:
    return unittest.TestSuite([
        narratives(*NARRATIVES), narratives(*PAGES, package=None)])
