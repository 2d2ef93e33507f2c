"""A client for workers: a poller hands out the answers.

The descriptor that the poller knows stays the same when the connection is
another one. The journal of a transaction keeps what a transactional client is
to send, and gives back what an aborted transaction has fetched.
"""

import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

import zope.interface

from gocept.runner.background.client import HOST, PORT, Client
from gocept.runner.background.frames import AWAIT, EXEC, LONGEST, Message
from gocept.runner.background.pending import Pending, Timeout
from gocept.runner.background.session import Session
from gocept.runner.channel.journal import (
    Delivery,
    Journal,
    current_journal,
    known_journal,
)
from gocept.runner.channel.transactional import (
    REDELIVERIES,
    checked_redeliveries,
)
from gocept.runner.errors import NobodyListens, RunnerError, StillKept
from gocept.runner.interfaces import IJob, IWorkerClient
from gocept.runner.logs import Log
from gocept.runner.waits.closing import Closing
from gocept.runner.waits.forks import tell_forks
from gocept.runner.waits.readable import Readable
from gocept.runner.waits.source import Source

if TYPE_CHECKING:
    from gocept.runner.background.tls import TLS

log = Log('gocept.runner.background')

_STARTS = 2
"""How often one call starts a server. It may come in between that a server
which was about to end is found to run."""

T = TypeVar('T')

Tasks = Callable[[], Sequence[object]]
"""Returns what `Client.initialize` takes."""


@zope.interface.implementer(IJob)
class Job(Pending):
    """See `IJob`."""

    def __init__(self, client: 'WorkerClient', session: Session, flags: int,
                 pieces: list[bytes], retry: bool, key: object) -> None:
        super().__init__(session, EXEC, flags, pieces, retry)
        self.key = key
        self.is_kept = False
        """Whether it is sent when the transaction is committed."""
        self._client = client
        self._renewed: Message | None = None
        """The answer again, after it was decoded."""

    @property
    def done(self) -> bool:
        """See `IPending`."""
        return not self.is_kept and super().done

    def result(self, timeout: Timeout = ...) -> object:
        """See `IPending`."""
        if self.is_kept:
            raise StillKept(
                f'{self!r} is sent when its transaction is committed, so '
                'nobody can answer it before: fetch the answer in a later '
                'transaction')
        found = super().result(timeout)
        self._client.forget(self)
        return found

    def _decode(self, answer: Message) -> None:
        if self._client.transactional:
            self._renewed = answer._replace(pieces=[*answer.pieces])
        super()._decode(answer)

    def renew(self) -> None:
        """Have a value that the transaction before has not changed."""
        with self._lock:
            self._answer, self._renewed = self._renewed or self._answer, None

    def settle(self, *answer: object, **error: object) -> None:
        super().settle(*answer, **error)  # type: ignore[arg-type]
        self._client.take(self)

    def __repr__(self) -> str:
        key = '' if self.key is None else f' {self.key!r}'
        return f'<job{key} of {self._client!r}>'


class JobDelivery(Delivery):
    """A job that a transaction has fetched."""

    __slots__ = ('job',)

    def __init__(self, job: Job) -> None:
        super().__init__(b'')
        self.job = job


@zope.interface.implementer(IWorkerClient)
class WorkerClient(Client, Source, Closing):
    """See `IWorkerClient`.

    `start` is called when nobody listens, to start a server; `tasks` returns
    the tasks for a server that is not initialized.
    """

    def __init__(self, host: str = HOST, port: int = PORT,
                 token: str | None = None, *, tls: 'TLS | None' = None,
                 timeout: float | None = None, connect_timeout: float = 10,
                 heartbeat: float | None = 10,
                 by_value: Sequence[ModuleType] = (),
                 max_message: int = LONGEST, retry: bool = False,
                 transactional: bool = False,
                 redeliveries: int | None = REDELIVERIES,
                 start: Callable[[], object] | None = None,
                 tasks: Tasks | None = None, name: str = '') -> None:
        super().__init__(
            host, port, token, tls=tls, timeout=timeout,
            connect_timeout=connect_timeout, heartbeat=heartbeat,
            by_value=by_value, max_message=max_message, retry=retry,
            patient=None if start is None else False)
        self.name = name
        self.transactional = transactional
        self.redeliveries = checked_redeliveries(redeliveries)
        self.skipped = 0
        self.suspended = False
        self._retry = retry
        self._start = start
        self._tasks = tasks
        self._is_known = False  # that the server is initialized
        self._readable: Readable | None = None
        self._jobs: dict[Job, None] = {}  # that are sent, without an answer
        self._answered: deque[Job] = deque()
        self._returned: deque[JobDelivery] = deque()
        tell_forks(self)

    def __repr__(self) -> str:
        return (f'<client of the server {self.name!r}>' if self.name
                else super().__repr__())

    def after_fork(self) -> None:
        """In a forked child: the answers are the parent's."""
        readable, self._readable = self._readable, None
        if readable is not None:
            readable.close()
        self._jobs = {}
        self._answered.clear()
        self._returned.clear()

    # A server that is there

    def _served(self, call: Callable[[], T]) -> T:
        """Call; where nobody listens, start a server and call again.

        What is called back at the start of a child may use this client, so no
        lock is held.
        """
        starts = 0
        while True:
            try:
                found = call()
            except NobodyListens:
                starts += 1
                if (self._start is None or starts > _STARTS
                        or not self.address.is_local()):
                    raise
                self._start()
            else:
                self._follow()  # the connection may be another one
                return found

    def ensure_running(self) -> None:
        """See `IWorkerClient`."""
        self._session.receive()  # its end, perhaps
        self._served(self._session.fileno)
        if self._tasks is not None and (
                self._session.is_new or not self._is_known):
            if not self.status()['initialized']:
                super().initialize(*self._tasks())
            self._session.is_new, self._is_known = False, True

    # Calls

    def execute(self, exec_args: object, await_response: bool = False, *,
                timeout: Timeout = ...) -> object:
        """See `IWorkerClient`."""
        self._require_no_transaction('execute')
        self.ensure_running()
        return self._served(lambda: Client.execute(
            self, exec_args, await_response, timeout=timeout))

    def terminate(self, exit_args: object = None,
                  await_response: bool = False, *,
                  timeout: Timeout = ...) -> object:
        """See `IWorkerClient`."""
        self._require_no_transaction('terminate')
        return super().terminate(exit_args, await_response, timeout=timeout)

    def _require_no_transaction(self, method: str) -> None:
        if self._journal() is not None:
            raise StillKept(
                f'{self!r} sends requests when the transaction is committed, '
                f'so nobody can answer {method}() before: use submit(), and '
                'fetch the answer in a later transaction')

    def submit(self, exec_args: object, await_response: bool = True, *,
               timeout: Timeout = ..., key: object = None) -> Job:
        """See `IWorkerClient`."""
        pieces, flags = self._encode(exec_args)
        journal = self._journal()
        self.ensure_running()
        job = Job(self, self._session, flags | AWAIT if await_response
                  else flags, pieces, self._retry, key)
        if journal is None:
            self._send(job, timeout)
        else:
            job.is_kept = True
            written = journal.write(self)
            written.sizes.append(sum(map(len, pieces)))
            written.chunks.append(job)
        return job

    def _send(self, job: Job, timeout: Timeout = ...) -> None:
        self._jobs[job] = None
        try:
            self._served(lambda: self._session.send(job, timeout))
        except BaseException:
            self._jobs.pop(job, None)
            raise

    # What jobs call

    def take(self, job: Job) -> None:
        """It has its answer, or there will be none."""
        if self._jobs.pop(job, self) is None:
            self._answered.append(job)
            self._tell_ready()

    def forget(self, job: Job) -> None:
        """Somebody has its result, so a poller need not hand it out."""
        with suppress(ValueError):
            self._answered.remove(job)

    # What pollers call

    def fileno(self) -> int:
        """See `IWorkerClient`."""
        if self._readable is None:
            self._readable = Readable()
            self._follow()
        return self._readable.fileno()

    def _follow(self) -> None:
        """Have pollers wait for the connection as it is now."""
        fd = self._session.connected_fd
        if fd < 0:
            if self._jobs:  # it was lost; who collects has it made again
                self._tell_ready()
        elif self._readable is not None:
            with suppress(OSError):  # it was lost just now
                self._readable.follow(fd)

    @property
    def buffered(self) -> bool:
        return not self.suspended and bool(
            self._returned or self._answered
            or (self._jobs and self._session.connected_fd < 0))

    def fetch(self) -> Job | None:
        """See `IWorkerClient`."""
        jobs = self._take(1)
        if self.told:
            self.tell_fetched()
        return jobs[0] if jobs else None

    def collect(self) -> tuple[Sequence[Job], bool]:
        return self._take(sys.maxsize), False

    def _take(self, most: int) -> list[Job]:
        """So many jobs at most that are answered, or were given back."""
        if self.suspended:
            return []
        journal = self._journal()
        jobs: list[Job] = []
        if self._returned:
            while self._returned and len(jobs) < most and (
                    self._admits(journal, self._returned[0].group)):
                delivery = self._returned.popleft()
                jobs.append(delivery.job)
                if journal is not None:
                    journal.note(self, delivery)
        elif self._admits(journal):
            self._refresh()
            while self._answered and len(jobs) < most:
                jobs.append(self._answered.popleft())
                if journal is not None:
                    journal.note(self, JobDelivery(jobs[-1]))
        return jobs

    def _refresh(self) -> None:
        """Take the answers that are there, and connect again where requests
        are still to be sent."""
        try:
            self._session.receive()
            if self._jobs and self._session.connected_fd < 0:
                self._served(self._session.fileno)
        except (RunnerError, OSError) as error:
            log.warning('%r: %s', self, error)
            self._session.give_up(error)

    # Transactions

    def _journal(self) -> Journal | None:
        return current_journal() if self.transactional else None

    def _admits(self, journal: Journal | None, group: object = None) -> bool:
        """Whether a job of this group may be fetched now.

        If not, nothing more is fetched before the transaction ends.
        """
        if journal is None or journal.admits(group):
            return True
        self.suspended = True
        journal.wait(self)
        return False

    def give_back(self, deliveries: Sequence[Delivery],
                  is_alone: bool) -> None:
        """See `gocept.runner.channel.journal.Party`."""
        left = [each for each in deliveries if isinstance(each, JobDelivery)]
        if is_alone and self.redeliveries is not None and (
                left[0].failures > self.redeliveries):
            self.skipped += 1
            log.error(
                '%r: each transaction that has fetched the answer fails, so '
                'it is skipped (%d skipped by now). With redeliveries=None '
                '("none" in ZCML) it would come again until a transaction is '
                'committed', left[0].job, self.skipped)
            del left[0]
        for each in left:
            each.job.renew()
        self._returned.extendleft(reversed(left))
        self.resume()

    def unfetch(self, items: Sequence[Job]) -> None:
        """A poller could not hand these out."""
        journal = known_journal()
        self.give_back(
            [*map(JobDelivery, items)] if journal is None
            else journal.take_last(self, len(items)), False)

    def resume(self) -> None:
        """See `gocept.runner.channel.journal.Party`."""
        self.suspended = False
        self._tell_returned()

    def consume_end(self) -> None:
        """There is no end."""

    def acknowledge_fetched(self) -> None:
        """The server need not know."""

    def require_sent(self) -> None:
        """`StillKept` if the transaction of this thread has kept a job."""
        journal = known_journal()
        written = None if journal is None else journal.written_to(self)
        if written is not None and written.chunks:
            raise StillKept(
                f'{self!r}: {len(written.chunks)} requests are kept until the '
                'transaction is committed, so nobody can answer them; fetch '
                'the answers in a later transaction, or call '
                'transaction.commit() first')

    def vote(self) -> None:
        """The server is to be there, or the commit fails."""
        self.ensure_running()

    def send(self, jobs: Sequence[Job], is_end: bool) -> None:
        """Send what a transaction has kept.

        A job that cannot be sent is handed out with the error as its result.
        """
        for job in jobs:
            job.is_kept = False
            try:
                self._send(job)
            except (RunnerError, OSError) as error:
                log.error('%r is a request of a committed transaction, and '
                          'was not sent: %s', job, error)
                self._jobs[job] = None
                job.settle(error=error)

    # The end

    def close(self) -> None:
        """See `IWorkerClient`."""
        lost = len(self._jobs) + len(self._returned) + len(self._answered)
        if lost:
            log.warning('%r was closed with %d jobs whose answers nobody has '
                        'fetched', self, lost)
        super().close()
        self._session = self._open()
        self._call = self._session.call
        self._jobs = {}
        self._answered.clear()
        self._returned.clear()
        self._is_known = False
        readable, self._readable = self._readable, None
        if readable is not None:
            self._tell_closing(readable.fileno())
            self._tell_over()
            readable.close()
