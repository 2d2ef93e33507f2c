"""The libraries that have executors, and a child for each kind of them.

The first argument of each script that uses this is the directory that has the
peer.
"""

import importlib
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


@contextmanager
def held_port() -> Iterator[int]:
    """A port that the system gives to nobody else until the context ends.

    It is bound, but not listened on, so a child that sets SO_REUSEADDR can
    listen on it. A port that is only known to be free may be given to a second
    child, or to the near end of a connection, before the first child has it.
    """
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((ready.HOST, 0))
        yield sock.getsockname()[1]


class Home:
    """Makes executors, whose children have their files in one directory."""

    def __init__(self) -> None:
        self._directory = TemporaryDirectory()
        self._path = Path(self._directory.name)
        self._number = 0

    @contextmanager
    def make(self, library: Any, kind: str, delay: float = 0) -> Iterator[Any]:
        """An executor of that kind, to be started and stopped in the context.

        It has the path `report`; its port, if any, is held meanwhile.
        """
        self._number += 1
        if kind in ('tcp', 'answer', 'http'):
            with held_port() as port:
                yield self._make(library, kind, str(port), delay)
        else:
            yield self._make(
                library, kind, str(self._path / f'{self._number}.{kind}'),
                delay)

    def _make(self, library: Any, kind: str, where: str, delay: float) -> Any:
        report = self._path / f'{self._number}.ready'
        command = self.command(kind, where, delay, report)
        make: Callable[[], Any] = {
            'output': lambda: library.OutputExecutor(
                command, 'ready', timeout=TIMEOUT),
            'tcp': lambda: library.TCPExecutor(
                command, ready.HOST, int(where), timeout=TIMEOUT),
            'answer': lambda: library.TCPExecutor(
                command, ready.HOST, int(where), send=b'PING\r\n',
                expect='PONG', timeout=TIMEOUT),
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
