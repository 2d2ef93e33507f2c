"""What a client has asked, over one connection after another."""

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import monotonic

from gocept.runner.background.address import (
    Address,
    require_positive,
    served,
)
from gocept.runner.background.answers import require_python, value_of
from gocept.runner.background.frames import (
    AWAIT,
    BY_VALUE,
    EXEC,
    EXIT,
    INIT,
    RESPONSE,
    Message,
)
from gocept.runner.background.link import Broken, Link
from gocept.runner.background.pending import Pending, Timeout
from gocept.runner.background.turn import Settled, Turn
from gocept.runner.background.values import decode
from gocept.runner.errors import (
    BackgroundError,
    BackgroundTimeout,
    ConnectionLost,
    NobodyListens,
    NotInitialized,
    ServerNotRunning,
)
from gocept.runner.logs import Log
from gocept.runner.waits import forks
from gocept.runner.waits.deadline import NEVER, Deadline

log = Log('gocept.runner.background')

_SMALL = 2 ** 14
"""Bytes of a request that is sent without a look at what arrives."""

_FRESH = 0.1
"""Seconds after which the client looks whether the server has gone before it
sends a request. A look costs as much as a tenth of a short request."""

_PAUSE, _LONGEST_PAUSE = 0.05, 2.0
"""Seconds between two attempts to connect: the first, and at most."""

_GREETINGS = 3
"""How often a server may close the first connection before it is agreed on."""

_QUICK = 1.0
"""Seconds after which a server that closes such a connection would do it
again, as one with TLS does that waits for ours."""

_TRIES = 5
"""How often one request is sent at most."""

INIT_GOES_ON = ('an init task that runs goes on; initialize() again waits for '
                'it, with timeout=None without a limit')

_UNKNOWN_LIFE = bytes(4)

_RECEIPTS = {EXEC: "Received 'EXEC'", EXIT: "Received 'EXIT'"}


class Session:
    """The connection of a client, and the requests that have no answer yet.

    One thread at a time has the turn. It sends what is unsent, receives the
    answers to all requests, and connects anew where that is needed.
    """

    def __init__(self, address: Address, *, timeout: float | None,
                 connect_timeout: float, heartbeat: float | None,
                 max_message: int, retry: bool,
                 patient: bool = True) -> None:
        """Not `patient`: that nobody listens is an error at once, also where
        somebody has listened before."""
        self.address = address
        self.timeout = timeout
        self._connect_timeout = connect_timeout
        self._heartbeat = heartbeat
        self._max_message = max_message
        self._retry = retry
        self._patient = patient
        self._turn = Turn(heartbeat)
        self._generation = forks.generation
        self._link: Link | None = None
        self._owed: dict[int, Pending | None] = {}
        """What the server owes an answer to, by the ids on the connection;
        None where nobody waits for it any more."""
        self._unsent: deque[Pending] = deque()
        self._life = _UNKNOWN_LIFE
        self._is_expected = False
        """Whether somebody has listened there before."""
        self.is_new = False
        """Whether the server was started anew since it was last initialized
        here."""
        self._closing = threading.Event()

    def pending(self, kind: int, flags: int, pieces: list[bytes]) -> Pending:
        """A request that can be sent by `send`."""
        return Pending(self, kind, flags, pieces, self._retry)

    def deadline(self, timeout: Timeout) -> Deadline:
        """The end of a call that begins now."""
        if isinstance(timeout, float | int):
            return Deadline(timeout)
        if timeout is None or self.timeout is None:
            return NEVER
        return Deadline(self.timeout)

    # Calls

    def call(self, kind: int, flags: int, pieces: list[bytes],
             timeout: Timeout) -> object:
        """Send a request and return the value of its answer, or raise it."""
        if served and self.address.is_ours():
            self._require_another(kind, flags)
        if timeout is ...:
            timeout = self.timeout
        elif timeout is not None:
            require_positive(timeout=timeout)
        deadline = NEVER if timeout is None else Deadline(timeout)
        if self._generation != forks.generation:
            self._begin_anew()
        answer = pending = None
        self._turn.take(deadline)
        try:
            link = self._link
            if (link is not None and not self._owed
                    and not self._unsent and len(pieces) == 1
                    and len(pieces[0]) <= _SMALL and not flags & BY_VALUE
                    and self._is_fresh(link)):
                try:
                    answer = link.ask(kind, flags, pieces[0], timeout)
                except Broken as error:
                    pending = self._missed(
                        self.pending(kind, flags, pieces), link, error)
                except BaseException:
                    self._drop_torn()
                    raise
                if answer is None and pending is None:
                    pending = self.pending(kind, flags, pieces)
                    self._note(pending, link.number)
            else:
                pending = self.pending(kind, flags, pieces)
            if pending is not None:
                self._ask(pending, deadline)
        finally:
            self._turn.leave()
        if pending is not None:
            return pending.result()
        assert answer is not None and link is not None
        if answer.kind == RESPONSE and not answer.flags and answer.pieces:
            return decode(answer.pieces)
        return self.value(answer, kind, link.python)

    def send(self, pending: Pending, timeout: Timeout) -> None:
        """Send a request whose answer is waited for later."""
        deadline = self.deadline(timeout)
        self._check_fork()
        self._turn.take(deadline)
        try:
            self._unsent.append(pending)
            with self._tearing():
                while pending in self._unsent:
                    self._attempt(deadline)
        except BaseException:
            self._abandon(pending)
            raise
        finally:
            self._turn.leave()

    def wait_for(self, pending: Pending, timeout: Timeout) -> None:
        """See `Asked`."""
        if served and self.address.is_ours():
            self.receive()
            if not pending.settled:
                self._require_another(pending.kind, pending.flags)
        deadline = self.deadline(timeout)
        try:
            self._turn.take(deadline, pending)
        except Settled:
            return
        try:
            with self._tearing():
                self._settle_one(pending, deadline)
        finally:
            self._turn.leave()

    def receive(self) -> Sequence[Pending]:
        """Take what has arrived, without waiting; the requests settled."""
        self._check_fork()
        try:
            self._turn.take(Deadline(0))
        except BackgroundTimeout:
            return []
        try:
            with self._tearing():
                return [] if self._link is None else self._look(self._link)
        finally:
            self._turn.leave()

    def fileno(self) -> int:
        """The descriptor of the connection, which is made where needed."""
        self._check_fork()
        deadline = self.deadline(...)
        self._turn.take(deadline)
        try:
            with self._tearing():
                while self._link is None:
                    self._attempt(deadline)
                return self._link.fileno()
        finally:
            self._turn.leave()

    @property
    def connected_fd(self) -> int:
        """The descriptor of the connection; -1 if there is none now."""
        link = self._link
        return -1 if link is None else link.fileno()

    def give_up(self, error: BaseException) -> None:
        """Settle with this error what could not be sent."""
        self._turn.take(NEVER)
        try:
            while self._unsent:
                self._unsent.popleft().settle(error=error)
        finally:
            self._turn.leave()

    def value(self, answer: Message, kind: int, python: tuple[int, int],
              ) -> object:
        """See `Asked`."""
        if answer.size > self._max_message:
            raise BackgroundError(
                f'the server at {self.address} has responded with more than '
                f'{self._max_message} bytes: give the client a larger '
                'max_message=')
        try:
            return value_of(answer, {'message': _RECEIPTS.get(kind, '')},
                            python, self.address)
        except NotInitialized as error:
            if not self.is_new:
                raise
            raise NotInitialized(
                f'{error} (the server was started anew, and its state is '
                'gone: initialize it again)') from None

    def wait_for_end(self, deadline: Deadline) -> None:
        """Wait until the server has ended, which has said that it ends."""
        self._turn.take(deadline)
        try:
            with self._tearing():
                while self._link is not None:
                    try:
                        if not self._link.wait(deadline):
                            raise BackgroundTimeout(
                                f'the server at {self.address} ends, and has '
                                f'not ended in {deadline}: look at its exit '
                                'task')
                        self._take(self._link)
                    except Broken as error:
                        self._drop(str(error))
                self._is_expected = False
        finally:
            self._turn.leave()

    def hang_up(self) -> None:
        """Close the connection, as the server has ended."""
        self._turn.take(NEVER)
        try:
            self._is_expected = False
            self._drop('the server has ended')
        finally:
            self._turn.leave()

    def close(self) -> None:
        """Close the connection for good. Again does nothing."""
        self._check_fork()
        self._closing.set()
        link = self._link
        if link is not None and not self._turn.held:
            link.shut()  # another thread that waits for it wakes up
        self._turn.take(NEVER)
        try:
            self._drop('this client was closed')
        finally:
            self._turn.leave()

    # One request, at its turn

    def _missed(self, pending: Pending, link: Link, error: Broken,
                ) -> Pending:
        """The connection broke while it was asked."""
        self._drop(str(error))
        pending.tries = 1
        pending.may_have_arrived = link.was_sent
        self._keep_or_settle(pending, str(error))
        return pending

    def _require_another(self, kind: int, flags: int) -> None:
        """BackgroundError if the answer comes after our own task."""
        if kind == EXIT or (kind in (INIT, EXEC) and flags & AWAIT):
            raise BackgroundError(
                f'a task of the server at {self.address} waits for this '
                'server, which runs one task at a time: call the function '
                'itself, or execute() without await_response (to end the '
                'server, send SIGTERM to its process)')

    def _note(self, pending: Pending, number: int) -> None:
        """It was sent whole."""
        pending.number = number
        pending.may_have_arrived = True
        if not pending.retry:
            pending.pieces.clear()  # large ones are not needed any more
        self._owed[number] = pending

    def _is_fresh(self, link: Link) -> bool:
        """Whether the server was there a moment ago, or still is."""
        now = monotonic()
        if now - link.looked >= _FRESH:
            with self._tearing():
                self._look(link)
        link.looked = now
        if not self._owed:
            link.used = now
        return link is self._link

    def _look(self, link: Link) -> list[Pending]:
        """Take what has arrived; returns what is settled by that."""
        try:
            link.receive()
        except Broken as error:
            return self._take(link) + self._drop(str(error))
        return self._take(link)

    def _ask(self, pending: Pending, deadline: Deadline) -> None:
        """Wait until a request of this call is settled."""
        try:
            if not pending.may_have_arrived and not pending.settled:
                self._unsent.append(pending)
            with self._tearing():
                self._settle_one(pending, deadline)
        except BaseException:
            self._abandon(pending)
            raise

    def _settle_one(self, pending: Pending, deadline: Deadline) -> None:
        while not pending.settled:
            link = self._attempt(deadline)
            if link is None or pending.settled:
                continue
            if self._owed.get(pending.number) is not pending:
                pending.settle(error=ConnectionLost(
                    'an exception has interrupted the end of a connection to '
                    f'the server at {self.address}; whether the request was '
                    'run is not known'))
                return
            try:
                if not link.wait(deadline):
                    raise BackgroundTimeout(
                        f'the server at {self.address} has not answered in '
                        f'{deadline}: '
                        + (INIT_GOES_ON if pending.kind == INIT
                           else 'it may still run the request'))
                self._take(link)
            except Broken as error:
                self._drop(str(error))

    def _attempt(self, deadline: Deadline) -> Link | None:
        """Send what is unsent. None if the connection broke meanwhile."""
        try:
            if self._link is None:
                self._connect(deadline)
            link = self._link
            while self._unsent and link is not None:
                self._send_first(link, deadline)
        except Broken as error:
            self._drop(str(error))
            return None
        return link

    def _send_first(self, link: Link, deadline: Deadline) -> None:
        pending = self._unsent[0]
        if pending.flags & BY_VALUE:
            try:
                require_python(link.python, self.address)
            except BackgroundError as error:
                self._unsent.popleft()
                pending.settle(error=error)
                return
        if not self._is_fresh(link):
            raise Broken('the server has gone')
        # Until the end of this, nobody knows what was sent if an exception
        # of a signal handler comes.
        pending.may_have_arrived = True
        pending.tries += 1
        try:
            number = link.send(
                pending.kind, pending.flags, pending.pieces, deadline)
        except (Broken, BackgroundTimeout):
            pending.may_have_arrived = False
            raise
        self._note(pending, number)
        self._unsent.popleft()
        link.torn = False

    def _take(self, link: Link) -> list[Pending]:
        """Settle the requests whose answers are in the inbox."""
        settled = []
        while link.inbox:
            answer = link.inbox[0]
            # 0: the server has ended before all that it has not answered.
            for number in [answer.id] if answer.id else [*self._owed]:
                pending = self._owed.get(number)
                if pending is not None and not pending.settled:
                    pending.settle(answer, link.python)
                    settled.append(pending)
                self._owed.pop(number, None)
            del link.inbox[0]
        return settled

    def _abandon(self, pending: Pending) -> None:
        """Nobody waits for it any more."""
        if pending in self._unsent:
            self._unsent.remove(pending)
        if self._owed.get(pending.number) is pending:
            self._owed[pending.number] = None

    # Connections

    def _connect(self, deadline: Deadline) -> None:
        """Connect, and again with pauses where a server is expected."""
        limit = (deadline if deadline.left() < self._connect_timeout
                 else Deadline(self._connect_timeout))
        pause = _PAUSE
        attempts = 0
        while True:
            if self._closing.is_set():
                raise BackgroundError(
                    f'the client of the server at {self.address} was closed: '
                    'make another one')
            attempts += 1
            begin = monotonic()
            try:
                link = self.address.connect(
                    limit, self._max_message, self._heartbeat)
                break
            except (NobodyListens, Broken) as error:
                is_over = limit.left() <= pause or not (
                    (self._is_expected and self._patient) or (
                        isinstance(error, Broken) and attempts < _GREETINGS
                        and monotonic() - begin < _QUICK))
                if is_over:
                    tries = f' ({attempts} attempts in {limit})'
                    raise (NobodyListens if isinstance(error, NobodyListens)
                           else ServerNotRunning)(
                        f'{error}{tries if attempts > 1 else ""}') from None
            # Nothing tells when a server on another machine is back.
            self._closing.wait(min(pause, limit.left()))
            pause = min(2 * pause, _LONGEST_PAUSE)
        self._link = link
        self._is_expected = True
        if self._life not in (_UNKNOWN_LIFE, link.life):
            self.is_new = True
            log.warning('The server at %s was started anew since this client '
                        'has used it, so its state is a new one', self.address)
        self._life = link.life

    def _drop(self, reason: str) -> list[Pending]:
        """Close the connection; returns the requests that are settled by that.

        What the server has surely not received whole stays to be sent.
        """
        link, self._link = self._link, None
        if link is not None:
            link.close()
        known = [each for each in self._owed.values() if each is not None]
        every = [*known, *(each for each in self._unsent if each not in known)]
        self._owed.clear()
        self._unsent.clear()
        settled = []
        for pending in every:
            if pending.settled:
                continue
            if self._keep_or_settle(pending, reason):
                self._unsent.append(pending)
            else:
                settled.append(pending)
        return settled

    def _keep_or_settle(self, pending: Pending, reason: str) -> bool:
        """Whether the request can be sent again; else it is settled."""
        error = self._loss(pending, reason)
        if error is not None:
            pending.settle(error=error)
            return False
        pending.may_have_arrived = False
        return True

    def _loss(self, pending: Pending, reason: str) -> BackgroundError | None:
        """Why it cannot be sent again; None if it can."""
        if self._closing.is_set():
            return ConnectionLost(
                f'{reason}; whether the request was run is not known'
                if pending.may_have_arrived else reason)
        if pending.may_have_arrived and not pending.retry:
            return ConnectionLost(
                f'{reason}; whether the request was run is not known: look at '
                'what it does before you send it again, or give the client '
                'retry=True if it may run twice')
        if pending.tries >= _TRIES:
            return ConnectionLost(
                f'{reason}; the request was sent {pending.tries} times: look '
                'at the log of the server')
        return None

    @contextmanager
    def _tearing(self) -> Iterator[None]:
        """Close the connection if an exception leaves a part of a frame."""
        try:
            yield
        except BaseException:
            self._drop_torn()
            raise

    def _drop_torn(self) -> None:
        if self._link is not None and self._link.torn:
            self._drop(f'an exception has interrupted the connection to the '
                       f'server at {self.address}')

    # Forks

    def _check_fork(self) -> None:
        if self._generation != forks.generation:
            self._begin_anew()

    def _begin_anew(self) -> None:
        """Have nothing of the parent's in a forked child."""
        if self._link is not None:
            self._link.close()
            self._link = None
        self._owed = {}
        self._unsent = deque()
        if not self._closing.is_set():
            self._closing = threading.Event()
        self._generation = forks.generation
