"""A transactional worker whose background server is killed all the time.

Transactions hand out requests and fetch answers, and some of them fail. In the
end each request of a committed transaction has come back once: with its
answer, or with the error that the connection was lost.
"""

import contextlib
import os
import random
import signal
import tempfile
from collections.abc import Iterator
from unittest import mock

import transaction

from chaos.worker import check
from gocept.runner.errors import BackgroundError, RunnerError
from gocept.runner.poller import Poller
from gocept.runner.tests.background import jobs
from gocept.runner.tests.support import DEADLINE
from gocept.runner.zcml.servers import EagerServer

SIZES = 1, 1, 1000, 300_000
"""Bytes of a request, and of its answer."""


class Failure(Exception):
    """Raised when a transaction is to fail."""


def run(randomly: random.Random, runs: int) -> Iterator[str]:
    """Run transactions and kill; yields what was done each time."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(
            os.environ,
            XDG_STATE_HOME=stack.enter_context(tempfile.TemporaryDirectory())))
        server = EagerServer(
            'jobs', (f'{jobs.__name__}:init', f'{jobs.__name__}:run', None),
            start_timeout=DEADLINE,
            client={'transactional': True, 'redeliveries': None})
        stack.callback(server.child.kill)
        stack.callback(server.client.close)
        worker = Worker(server, stack.enter_context(Poller()))
        for _ in range(runs):
            what = worker.tick(randomly)
            if randomly.random() < 0.3:
                what += f', killed {worker.kill()}'
            yield what
        worker.finish()


class Worker:
    """What is handed out, and what has come back."""

    def __init__(self, server: EagerServer, poller: Poller) -> None:
        self._server = server
        self._poller = poller
        self._number = 0
        self._sent: dict[int, str] = {}  # by transactions that are committed
        poller.register(server.client)

    def tick(self, randomly: random.Random) -> str:
        """Fetch, and hand out; returns what was done."""
        self._poller.pause(randomly.choice((0, 0, 0.1)))
        fails = randomly.random() < 0.3
        try:
            came = self._fetch()
            sent = [self._submit(randomly) for _ in range(
                randomly.randrange(5))]
            if fails:
                raise Failure
            transaction.commit()
        except (Failure, RunnerError) as error:
            transaction.abort()
            return f'aborted by {type(error).__name__}'
        self._sent.update(sent)
        for key, _ in came:
            check(key in self._sent, f'{key} came twice, or was not sent')
            del self._sent[key]
        lost = sum(how != 'answer' for _, how in came)
        return f'sent {len(sent)}, got {len(came)} ({lost} errors)'

    def _submit(self, randomly: random.Random) -> tuple[int, str]:
        self._number += 1
        text = f'{self._number} ' + 'x' * randomly.choice(SIZES)
        self._server.client.submit(text, key=self._number)
        return self._number, text

    def _fetch(self) -> list[tuple[int, str]]:
        found = []
        for job, _ in self._poller.poll(0):
            try:
                _, text = job.result()
            except BackgroundError as error:
                found.append((job.key, type(error).__name__))
            else:
                check(text.startswith(f'{job.key} '),
                      f'{job.key} has the answer to {text[:9]}')
                found.append((job.key, 'answer'))
        return found

    def kill(self) -> str:
        """Kill the server, if it runs; returns what was done."""
        process = self._server.child.child
        if process is None or process.poll() is not None:
            return 'nobody'
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        return f'process {process.pid}'

    def finish(self) -> None:
        """Fetch what is left."""
        while self._sent:
            check(self._poller.pause(DEADLINE),
                  f'{len(self._sent)} answers do not come')
            for key, _ in self._fetch():
                check(key in self._sent, f'{key} came twice')
                del self._sent[key]
            transaction.commit()
