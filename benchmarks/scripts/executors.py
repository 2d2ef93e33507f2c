"""The libraries that have executors, and a child for each kind of them.

The first argument of each script that uses this is the directory that has the
peer.
"""

import importlib
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.scripts import ready
from gocept.runner import executor as ours

TIMEOUT = 60
"""Seconds after which a start has failed."""


def libraries() -> dict[str, Any]:
    """The peer and ours, with the same names in them."""
    sys.path.append(sys.argv[1])
    return {'peer': importlib.import_module('mirakuru'), 'ours': ours}


def free_port() -> int:
    """A port that nobody has just now."""
    with socket.socket() as sock:
        sock.bind((ready.HOST, 0))
        port: int = sock.getsockname()[1]
        return port


class Home:
    """Makes executors, whose children have their files in one directory."""

    def __init__(self) -> None:
        self._directory = TemporaryDirectory()
        self._path = Path(self._directory.name)
        self._number = 0

    def make(self, library: Any, kind: str, delay: float = 0) -> Any:
        """An executor of that kind; it has the path `report`."""
        self._number += 1
        report = self._path / f'{self._number}.ready'
        where = (str(free_port()) if kind in ('tcp', 'http')
                 else str(self._path / f'{self._number}.{kind}'))
        command = self.command(kind, where, delay, report)
        make: Callable[[], Any] = {
            'output': lambda: library.OutputExecutor(
                command, 'ready', timeout=TIMEOUT),
            'tcp': lambda: library.TCPExecutor(
                command, ready.HOST, int(where), timeout=TIMEOUT),
            'http': lambda: library.HTTPExecutor(
                command, f'http://{ready.HOST}:{where}/', timeout=TIMEOUT),
            'unix': lambda: library.UnixSocketExecutor(
                command, where, timeout=TIMEOUT),
            'pid': lambda: library.PidExecutor(
                command, where, timeout=TIMEOUT),
            'notified': lambda: library.ConditionExecutor(
                command, library.notified(), timeout=TIMEOUT),
        }[kind]
        made = make()
        made.report = report
        return made

    def command(self, kind: str, where: str, delay: float,
                report: Path) -> list[str]:
        """What starts such a child."""
        return [sys.executable, '-I', '-S', ready.__file__, kind, where,
                str(delay), os.fspath(report)]

    def close(self) -> None:
        """Remove the directory."""
        self._directory.cleanup()
