"""What a house serves over HTTP: which pages there are, and who makes them.

An answer needs the states of the workers, which are files. The disk may hang,
and the main thread has to go on. So a thread of its own reads the files and
makes the answers. The main thread, where the clients are, sends them.
"""

import os
import threading
from collections.abc import Callable
from http import HTTPStatus
from queue import Full, Queue
from typing import TYPE_CHECKING, NamedTuple

from gocept.runner.errors import CannotStart, UsageError
from gocept.runner.house.census import Census, Resident
from gocept.runner.house.http import (
    MOST_CONNECTIONS,
    Answer,
    Request,
    Server,
    is_loopback,
    names_of,
)
from gocept.runner.logs import Log
from gocept.runner.poller import Poller, Timer
from gocept.runner.waits.names import address, listening, place, reason_of

if TYPE_CHECKING:
    from gocept.runner.house.part import Premises
    from gocept.runner.house.record import HouseState
    from gocept.runner.waits.deadline import Deadline

log = Log('gocept.runner.house')

_HTML = 'text/html; charset=utf-8'


class Web:
    """The part of a house that serves its pages; see `Part`.

    It listens from now on, so that a place that is taken is known before
    anything is started. CannotStart if nobody can listen there.
    """

    name = 'http'

    def __init__(self, host: str, port: int, *, with_page: bool = False,
                 ) -> None:
        try:
            self._socket = listening(host, port)
        except OSError as error:
            raise CannotStart(
                f'the page cannot be served at {place(host, port)}: '
                f'{reason_of(error)}; name another place with --http '
                '[HOST:]PORT') from error
        self._names = names_of(host)
        self._has_page = with_page or is_loopback(self._socket)
        self._house: Premises | None = None
        self._server: Server | None = None
        self._desk: Desk | None = None

    def start(self, house: 'Premises') -> None:
        """See `Part`."""
        self._house = house
        self._desk = Desk(house.poller)
        self._server = Server(
            house.poller, self._socket, self._handle, self._names)
        page = '' if self._has_page else (
            ', /healthz and /metrics only: the page shows the tracebacks of '
            'errors, and this address is not a loopback one; --http-page '
            'shows it')
        house.tell(self.name, f'Serving http://{self._server}/{page}')

    @property
    def address(self) -> str:
        """The host and the port, as they stand in a URL."""
        return place(*self._socket.getsockname()[:2])

    @property
    def ready(self) -> bool:
        """See `Part`."""
        return self._server is not None

    @property
    def ended(self) -> bool:
        """See `Part`."""
        return self._server is None or self._server.is_idle

    def stop(self, deadline: 'Deadline') -> None:
        """See `Part`."""
        self._end(Server.stop)

    def kill(self) -> None:
        """See `Part`."""
        self._end(Server.close)

    def _end(self, end: Callable[[Server], None]) -> None:
        if self._server is not None:
            end(self._server)
        self._socket.close()
        if self._desk is not None:
            self._desk.close()

    def _handle(self, request: Request, reply: Callable[[Answer], None],
                ) -> None:
        maker = _PAGES.get(request.path)
        if maker is None:
            pages = ' '.join(_PAGES)
            reply(Answer(f'404 Not Found: there are {pages}\n'.encode(),
                         HTTPStatus.NOT_FOUND))
        elif maker is _page and not self._has_page:
            reply(Answer(
                b'403 Forbidden: the page shows the tracebacks of errors. '
                b'Start gocept-runner up with --http-page to have it served '
                b'at an address that is not a loopback one.\n',
                HTTPStatus.FORBIDDEN))
        else:
            assert self._house is not None
            assert self._desk is not None
            self._desk.ask(Question(
                maker, request, self._house.state(), reply))


class Question(NamedTuple):
    """What the thread is asked for."""

    make: Callable[['Question', list[Resident]], Answer]
    request: Request
    house: 'HouseState'
    reply: Callable[[Answer], None]


class Desk:
    """The thread that makes answers; begun by the first question."""

    def __init__(self, poller: Poller) -> None:
        self._poller = poller
        self._questions: Queue[Question | None] = Queue(MOST_CONNECTIONS)
        self._census = Census()
        self._is_begun = False

    def ask(self, question: Question) -> None:
        """Have it answered soon, from the thread that polls."""
        try:
            if not self._is_begun:
                threading.Thread(target=self._run, daemon=True,
                                 name='gocept.runner.page').start()
                self._is_begun = True
            self._questions.put_nowait(question)
        except Full:
            question.reply(_unavailable(
                'the states of the workers are not read; does the disk hang?'))
        except RuntimeError as error:  # too many threads
            question.reply(_unavailable(str(error)))

    def close(self) -> None:
        """End the thread, if it does not hang."""
        if self._is_begun:
            try:
                self._questions.put_nowait(None)
            except Full:
                log.debug('The thread of the page hangs')

    def _run(self) -> None:
        while (question := self._questions.get()) is not None:
            try:
                answer = question.make(
                    question, self._census.take(question.house))
            except Exception:
                log.exception('There is no answer for %s',
                              question.request.path)
                answer = Answer(
                    b'500 Internal Server Error: the log says why\n',
                    HTTPStatus.INTERNAL_SERVER_ERROR)
            self._send(question, answer)

    def _send(self, question: Question, answer: Answer) -> None:
        timer = Timer(0.0)
        try:
            self._poller.register(
                timer, lambda *result: question.reply(answer))
        except RuntimeError:
            log.debug('The house has ended before an answer')


def _unavailable(reason: str) -> Answer:
    return Answer(f'503 Service Unavailable: {reason}\n'.encode(),
                  HTTPStatus.SERVICE_UNAVAILABLE)


def _page(question: Question, residents: list[Resident]) -> Answer:
    from gocept.runner.house import page
    renewal = None if question.request.query == 'still' else page.RENEWAL
    text = page.page(question.house, residents, os.uname().nodename,
                     renewal=renewal)
    return Answer(text.encode(), HTTPStatus.OK, _HTML, {
        'Content-Security-Policy': page.policy()})


def _health(question: Question, residents: list[Resident]) -> Answer:
    """Like ``gocept-runner status --check``, in one line."""
    ill = [each for each in residents if not each.healthy]
    if ill:
        sentences = '; '.join(' '.join(each.sentence.split()) for each in ill)
        text = f'not healthy: {len(ill)} of {len(residents)}: {sentences}'
        status = HTTPStatus.SERVICE_UNAVAILABLE
    else:
        count = len(residents)
        text, status = ('healthy: no workers yet' if not count else
                        f'healthy: {count} worker{"s" * (count > 1)}',
                        HTTPStatus.OK)
    return Answer(f'{text}\n'.encode(errors='backslashreplace'), status)


def _metrics(question: Question, residents: list[Resident]) -> Answer:
    try:
        from gocept.runner.house.metrics import metrics
    except ModuleNotFoundError as error:
        if error.name != 'prometheus_client':
            raise
        return Answer(
            b'404 Not Found: metrics need the package prometheus_client: pip '
            b'install "gocept.runner[metrics]"\n', HTTPStatus.NOT_FOUND)
    text, content_type = metrics(
        residents, question.request.headers.get('accept', ''))
    return Answer(text, HTTPStatus.OK, content_type)


_PAGES: dict[str, Callable[[Question, list[Resident]], Answer]] = {
    '/': _page, '/healthz': _health, '/metrics': _metrics}


def web_of(where: str, *, with_page: bool = False) -> Web:
    """The part that serves at ``[HOST:]PORT``; UsageError if it is no place.

    Without a host, this machine alone is served.
    """
    try:
        host, port = address(where)
    except ValueError as error:
        raise UsageError(f'--http: {error}') from error
    return Web(host, port, with_page=with_page)
