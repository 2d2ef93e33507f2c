"""Programs that tests need beside Python, and the tests that lack them.

A test whose program is not installed is left out, and when the process ends
one line names the programs and their packages. If the environment has
NO_TEST_LEFT_OUT, as in CI, such a test fails.
"""

import atexit
import contextlib
import ctypes
import glob
import os
import pathlib
import shutil
import subprocess
import sys
import unittest
from typing import NoReturn

PACKAGES = {
    'chromium': 'chromium',
    'ip': 'iproute2',
    'nginx': 'nginx-light',
    'openssl': 'openssl',
    'postgres': 'postgresql',
    'redis-server': 'redis-server',
    'systemd-analyze': 'systemd',
}
"""The Debian package of each program."""

_IPC_RMID = 0


def path_of(name: str) -> str | None:
    """The path of a program, or None if it is not installed."""
    return shutil.which(name, path=os.pathsep.join((
        # Debian puts the programs of a server elsewhere.
        *sorted(glob.glob('/usr/lib/postgresql/*/bin'), reverse=True),
        os.environ.get('PATH', os.defpath), '/usr/sbin')))


def need(test: unittest.TestCase, name: str) -> str:
    """The path of a program; the test is left out if it is not installed."""
    found = path_of(name)
    if found is None:
        lack(test, name)
    return found


def lack(test: unittest.TestCase, name: str) -> NoReturn:
    """Leave the test out, or have it fail where none may be left out."""
    message = f'not installed: {described(name)}'
    if none_may_be_left_out():
        raise AssertionError(message)
    _left_out.add(test.id(), name)
    raise unittest.SkipTest(message)


def python_for_nobody(test: unittest.TestCase, file: str) -> str:
    """A Python that the user nobody can run, and which can read the file.

    Ours is in the home of root, perhaps. The test, which needs root to become
    another user, is left out if there is no such Python.
    """
    for python in os.path.realpath(sys.executable), '/usr/bin/python3':
        with contextlib.suppress(OSError):
            if not subprocess.run(
                    [python, '-I', '-S', '-c',
                     'import sys; open(sys.argv[1]).close()', file], cwd='/',
                    user=65534, group=65534, extra_groups=[],
                    stderr=subprocess.DEVNULL).returncode:
                return python
    raise unittest.SkipTest(f'the user nobody can run no Python or not {file}')


def free_memory(data: pathlib.Path) -> None:
    """Free the memory that a PostgreSQL which was killed has left.

    The next one in the directory would do it. Its file has the key and the
    number; see shmctl(2).
    """
    with contextlib.suppress(FileNotFoundError, IndexError):
        text = (data / 'postmaster.pid').read_text()
        _, number = text.splitlines()[6].split()
        ctypes.CDLL(None).shmctl(int(number), _IPC_RMID, None)


def none_may_be_left_out() -> bool:
    """Whether it is a failure that a program is not installed."""
    return bool(os.environ.get('NO_TEST_LEFT_OUT'))


def described(name: str) -> str:
    """A program, and how to get it."""
    return f'{name} (Debian package {PACKAGES[name]})'


class LeftOut:
    """The tests that were left out; printed when the process ends."""

    def __init__(self) -> None:
        self._tests: set[str] = set()
        self._programs: set[str] = set()

    def add(self, test: str, program: str) -> None:
        """Remember a test by its name, and the program that it lacks."""
        if not self._tests:
            atexit.register(self._tell, os.getpid())
        self._tests.add(test)
        self._programs.add(program)

    def __str__(self) -> str:
        programs = ', '.join(map(described, sorted(self._programs)))
        return f'Tests left out: {len(self._tests)}. Not installed: {programs}'

    def _tell(self, process: int) -> None:
        if os.getpid() == process:  # and not a fork of it
            print(self, flush=True)


_left_out = LeftOut()
