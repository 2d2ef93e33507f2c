"""Copies of the kernel's code, with `fakedaemon` as the daemon."""

import ctypes
import json
import os
import pathlib
import re
import select
import shutil
import signal
import socket
import sys
import unittest
from collections.abc import Callable
from typing import Any, Self

import gocept.runner
from gocept.runner.kernel.client import autostart
from gocept.runner.kernel.keeper.options import Options
from gocept.runner.process.pidfd import hold
from gocept.runner.tests.leftovers import end_processes
from gocept.runner.tests.support import DEADLINE, TestCase
from gocept.runner.waits.deadline import Deadline, wait_for
from gocept.runner.waits.unixpath import short_address

_SOURCE = pathlib.Path(gocept.runner.__file__).parent


def make_release(where: pathlib.Path, version: str = 'fake 1',
                 code: str = '') -> dict[str, Any]:
    """Copy the code to a directory; what an upgrade to it is asked for with.

    `code` is added to the daemon's.
    """
    package = where / 'gocept' / 'runner'
    shutil.copytree(
        _SOURCE, package, ignore=lambda directory, names: [
            name for name in names if name == 'tests'])
    daemon = (pathlib.Path(__file__).parent / 'fakedaemon.py').read_text()
    (package / 'kernel' / 'daemon' / 'daemon.py').write_text(
        daemon.replace('fake 1', version) + code)
    return {'python': sys.executable, 'path': (str(where),)}


class Inotify:
    """Changes of files in a directory."""

    def __init__(self, directory: pathlib.Path) -> None:
        library = ctypes.CDLL(None, use_errno=True)
        self._fd = library.inotify_init1(os.O_CLOEXEC)
        library.inotify_add_watch(
            self._fd, os.fsencode(directory), 0x2 | 0x100 | 0x200)

    def wait(self, case: unittest.TestCase) -> None:
        case.assertTrue(wait_for(self._fd, select.POLLIN, Deadline(DEADLINE)),
                        'nothing has changed')
        os.read(self._fd, 65536)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *ignored: object) -> None:
        os.close(self._fd)


class KernelCase(TestCase):
    """A kernel with a fake daemon, in a directory of its own."""

    def setUp(self) -> None:
        super().setUp()
        self.addCleanup(end_processes, self.dir)
        self.release = self.make_release('one')
        self.path = str(self.dir / 'kernel')
        self.log = str(self.dir / 'kernel.log')
        self.options = Options(address=self.path, log=self.log).from_json({
            'address': self.path, 'log': self.log, **self.release})

    def make_release(self, name: str, version: str = 'fake 1',
                     code: str = '') -> dict[str, Any]:
        return make_release(self.dir / name, version, code)

    def be_impatient(self, release: str, module: str, name: str) -> None:
        """Have a release wait for less than a second, by a constant of it.

        For tests in which it waits in vain.
        """
        path = self.dir.joinpath(
            release, 'gocept', 'runner', 'kernel', f'{module}.py')
        before = path.read_text()
        path.write_text(after := re.sub(
            rf'(?m)^{name} = [\d.]+', f'{name} = 0.3', before))
        self.assertNotEqual(before, after)

    def start(self, **changes: Any) -> int | str:
        self.options = self.options._replace(**changes)
        started, address = autostart.start(self.options, DEADLINE)
        self.assertTrue(started)
        self.options = self.options._replace(address=address)
        self.addCleanup(self.end_at, address)
        return address

    def end_at(self, address: int | str) -> None:
        """End the kernel that listens there, if there is one."""
        self.options = self.options._replace(address=address)
        self.end()

    def end(self) -> None:
        """End the kernel, whatever it does."""
        try:
            who = self.ask('who')
        except OSError:
            return
        os.kill(who['keeper'], signal.SIGSTOP)  # no successor
        self.kill(who['pid'])
        self.kill(who['keeper'])

    def kill(self, pid: int, signum: int = signal.SIGKILL) -> None:
        """Send a signal, and wait for the end."""
        try:
            handle = hold(pid)
        except ProcessLookupError:
            return
        try:
            handle.signal(signum)
            self.assertTrue(wait_for(handle.fileno(), 1, Deadline(DEADLINE)))
        finally:
            handle.close()

    def connect(self) -> socket.socket:
        address = self.options.address
        if isinstance(address, int):
            sock = socket.socket()
        else:
            sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(DEADLINE)
        try:
            if isinstance(address, int):
                sock.connect(('127.0.0.1', address))
            else:
                with short_address(address) as path:
                    sock.connect(path)
        except BaseException:
            sock.close()
            raise
        return sock

    def send(self, sock: socket.socket, command: str,
             argument: object = None) -> None:
        """Send a command."""
        sock.sendall(f'{command} {json.dumps(argument)}\n'.encode())

    def ask(self, command: str, argument: object = None) -> Any:
        """Ask the daemon, and its successor if it dies meanwhile."""
        while True:
            with self.connect() as sock:
                try:
                    self.send(sock, command, argument)
                    with sock.makefile() as file:
                        line = file.readline()
                except (ConnectionResetError, BrokenPipeError):
                    continue
            if line:
                return json.loads(line)

    def ask_until(self, is_expected: Callable[[Any], object], command: str,
                  argument: object = None) -> Any:
        """Ask again until the answer is as expected; returns it."""
        deadline = Deadline(DEADLINE)
        while not is_expected(answer := self.ask(command, argument)):
            self.assertFalse(deadline.passed, f'{command}: {answer}')
        return answer

    def ask_successor(self, who: dict[str, Any]) -> dict[str, Any]:
        """Like ``ask('who')``, but another daemon has to answer."""
        found: dict[str, Any] = self.ask_until(
            lambda other: other['pid'] != who['pid'], 'who')
        return found

    def wait_for_log(self, text: str, count: int = 1) -> list[str]:
        """Wait until so many lines have the text; returns these."""
        with Inotify(self.dir) as changes:
            while len(found := [line for line in self.logged()
                                if text in line]) < count:
                changes.wait(self)
        return found

    def wait_until_gone(self, path: str) -> None:
        """Wait until there is no such file in the directory."""
        with Inotify(self.dir) as changes:
            while os.path.exists(path):
                changes.wait(self)

    def logged(self) -> list[str]:
        try:
            with open(self.log) as file:
                return file.read().splitlines()
        except FileNotFoundError:
            return []
