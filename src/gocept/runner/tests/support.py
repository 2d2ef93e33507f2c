"""What several test modules need: zope.conf files, and programs to run."""

import contextlib
import logging
import math
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import types
import unittest
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any
from unittest import mock

import transaction
import zope.component.hooks
import zope.security.management
import zope.testing.cleanup

from gocept.runner.boot import environments, loggers
from gocept.runner.poller import Timer, background
from gocept.runner.process import forker
from gocept.runner.waits.forks import Lock
from gocept.runner.waits.standard import fill_standard

DEADLINE = 60
"""How long a test waits for an event, in seconds, before it fails."""

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


def child_environment(**more: str) -> dict[str, str]:
    """An environment in which a child finds what this process can import."""
    return os.environ | {
        'PYTHONPATH': os.pathsep.join(filter(None, sys.path)), **more}


def ignore_nothing() -> None:
    """Let children heed the signals that this process was made to ignore.

    As by nohup, or by a shell that has started it in the background.
    """
    for signum in SIGNALS:
        if signal.getsignal(signum) is signal.SIG_IGN:
            signal.signal(signum, signal.SIG_DFL)


def sqlite_conf(directory: pathlib.Path, history: str = 'true') -> str:
    """The `zope.conf` of a RelStorage on SQLite in this directory."""
    return f'''
        %import relstorage
        <zodb>
          <relstorage>
            keep-history {history}
            <sqlite3>
              data-dir {directory}/data
              <pragmas>
                synchronous off
              </pragmas>
            </sqlite3>
          </relstorage>
        </zodb>
        '''


@contextlib.contextmanager
def limited(process: subprocess.Popen[str]) -> Iterator[None]:
    """Kill it, and its group, if the block takes longer than a test waits."""
    def end() -> None:
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(process.pid) == process.pid:
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
    timer = threading.Timer(DEADLINE, end)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()  # no other test sees this thread


def rest_of(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Wait for its end; returns what it has still written to its pipes.

    `communicate` leaves out what was read ahead with a line before.
    """
    def read(stream: IO[str] | None) -> str:
        if stream is None:
            return ''
        with stream:
            return stream.read()

    with limited(process):
        with ThreadPoolExecutor() as threads:
            output, error = threads.map(
                read, (process.stdout, process.stderr))
        process.wait()
    return output, error


class Program:
    """A script that runs in a process group of its own."""

    interpreter: Sequence[str] = (sys.executable,)

    stderr = subprocess.STDOUT

    def __init__(self, script: pathlib.Path, *args: str,
                 cwd: pathlib.Path,
                 environment: Mapping[str, str] | None = None) -> None:
        ignore_nothing()
        self.process = subprocess.Popen(
            [*self.interpreter, str(script), *args], cwd=cwd,
            env=child_environment(**environment or {}),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=self.stderr, text=True, process_group=0)
        self.output = ''

    def wait_for(self, expected: str) -> None:
        """Read its output up to a line that contains `expected`."""
        assert self.process.stdout is not None
        with limited(self.process):
            for line in self.process.stdout:
                self.output += line
                if expected in line:
                    return
        raise AssertionError(
            f'{expected!r} not in the output of a program that ended:\n'
            + self.output)

    @property
    def pid(self) -> int:
        """The number of its process."""
        return self.process.pid

    def send(self, signum: int) -> None:
        """Send it a signal."""
        self.process.send_signal(signum)

    def end(self) -> int:
        """Wait for its end; returns the status."""
        output, _ = rest_of(self.process)
        self.output += output
        return self.process.returncode

    def close(self) -> None:
        """End it, whatever it does."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextlib.contextmanager
def quiet_children() -> Iterator[None]:
    """Have children write nowhere that inherit our standard error.

    What this process itself writes to `sys.stderr` is still shown.
    """
    before, ours = sys.stderr, os.dup(2)
    with open(os.devnull, 'wb') as null:
        os.dup2(null.fileno(), 2)
    try:
        with open(ours, 'w', closefd=False) as sys.stderr:
            yield
    finally:
        sys.stderr = before
        os.dup2(ours, 2)
        os.close(ours)


@contextlib.contextmanager
def replaced_modules(modules: Mapping[str, types.ModuleType | None],
                     ) -> Iterator[None]:
    """Import these in place of others; None for one that is missing.

    What is imported meanwhile stays. `mock.patch.dict` would forget it, and
    the next import would make it, and what it registers, a second time.
    """
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


class Slow:
    """Code of a user that goes on when another thread waits for a lock.

    It waits for that with a time-out, as for what is told in this thread. A
    thread that does not wait overtakes this code, which goes on at the end of
    the test then.
    """

    def __init__(self, case: unittest.TestCase,
                 is_awaited: Callable[[Lock], bool] = lambda lock: True, *,
                 longest: float = math.inf) -> None:
        self._case = case
        self._entered = threading.Event()
        self._goes_on = threading.Event()
        case.addCleanup(self.go_on)
        acquire = Lock.acquire

        def look(lock: Lock, blocking: bool = True, timeout: float = -1,
                 ) -> bool:
            if timeout > 0 and is_awaited(lock):
                self.go_on()
            return acquire(lock, blocking, min(timeout, longest))
        case.enterContext(mock.patch.object(Lock, 'acquire', look))

    def go_on(self) -> None:
        """Wait for nobody any more."""
        self._goes_on.set()

    def __call__(self, *args: object) -> None:
        self._entered.set()
        self._goes_on.wait(DEADLINE)

    def wait_entered(self) -> None:
        """Wait until a thread is in this code."""
        self._case.assertTrue(self._entered.wait(DEADLINE))


class TestCase(unittest.TestCase):
    """A directory of its own, and a process as if it were new."""

    make_program = Program

    def setUp(self) -> None:
        self.dir = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.dir, ignore_errors=True)
        self.addCleanup(reset_process)
        reset_process()
        self.enterContext(quiet_children())

    def write(self, name: str, text: str) -> pathlib.Path:
        """Write a file to the directory; returns its path."""
        path = self.dir / name
        path.write_text(textwrap.dedent(text).lstrip('\n'))
        return path

    def zope_conf(self, more: str = '<eventlog>\n</eventlog>',
                  name: str = 'zope.conf') -> str:
        """Write a zope.conf with a FileStorage; returns its path."""
        return str(self.write(name, '\n'.join([
            '<zodb>',
            '  <filestorage>',
            f'    path {self.dir}/Data.fs',
            '  </filestorage>',
            '</zodb>',
            textwrap.dedent(more), ''])))

    def program(self, text: str, *args: str,
                environment: Mapping[str, str] | None = None) -> Program:
        """Start a script in the directory, with zope.conf in it."""
        script = self.write('program.py', text)
        program = self.make_program(
            script, *args, cwd=self.dir, environment=environment)
        self.addCleanup(program.close)
        return program

    @contextlib.contextmanager
    def assertPutBack(self) -> Iterator[None]:
        """No site, interaction, descriptor or handler is left behind."""
        before = process_state()
        yield
        self.assertEqual(before, process_state())


def reset_process() -> None:
    """Forget components, configured loggers, site and interaction."""
    transaction.abort()
    zope.component.hooks.setSite(None)
    zope.security.management.endInteraction()
    zope.testing.cleanup.cleanUp()
    environments._Process.environment = None
    root = logging.getLogger()
    for handler in list(root.handlers):
        if handler in loggers.installed:
            root.removeHandler(handler)
            handler.close()
    for name in list(root.manager.loggerDict):
        if name.startswith('gocept.runner') or name in loggers.LIBRARIES:
            logging.getLogger(name).setLevel(logging.NOTSET)


def end_background() -> None:
    """End the threads of `gocept.runner.poller.background` and of the forker,
    if there are any."""
    for thread in threading.enumerate():
        if thread.name == 'gocept.runner.poller':
            settle()  # there may be an end that it has not noticed yet
            background().close()
            thread.join(DEADLINE)
        elif thread.name == 'gocept.runner.forker':
            forker._calls.put(sys.exit)
            thread.join(DEADLINE)


def settle() -> None:
    """Wait until the background thread is done with what it was doing."""
    done = threading.Event()
    background().register(Timer(0), lambda *result: done.set())
    if not done.wait(DEADLINE):
        raise AssertionError('the background thread does not answer')


def process_state() -> dict[str, Any]:
    """What a loop has to leave as it found it."""
    return {
        'site': zope.component.hooks.getSite(),
        'interaction': zope.security.management.queryInteraction(),
        'descriptors': open_descriptors(),
        'handlers': {signum: signal.getsignal(signum)
                     for signum in (*SIGNALS, signal.SIGUSR2)},
        'blocked': signal.pthread_sigmask(signal.SIG_BLOCK, ()),
    }


def open_descriptors() -> dict[str, str]:
    """The open descriptors of this process, and what they refer to."""
    fill_standard()  # as the first poller does, where the runner has no input
    targets = {}
    for fd in os.listdir('/proc/self/fd'):
        with contextlib.suppress(FileNotFoundError):
            targets[fd] = os.readlink(f'/proc/self/fd/{fd}')
    return targets
