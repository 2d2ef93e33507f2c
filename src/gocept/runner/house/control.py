"""What others may ask the house: a Unix socket in its directory.

A request is one line of JSON: ``{"do": "reload"}``. The house answers with
lines of JSON, and closes the connection after the last one; see `Answer`.
Only the same user can enter the directory.
"""

import contextlib
import json
import os
import select
import socket
from collections.abc import Callable, Iterator
from typing import Literal, NotRequired, Protocol, TypedDict, cast

from gocept.runner.channel import SocketChannel
from gocept.runner.errors import EndpointClosedException, WriteBufferFull
from gocept.runner.house.record import HouseState
from gocept.runner.logs import Log
from gocept.runner.poller import Poller
from gocept.runner.waits.deadline import Deadline, wait_for
from gocept.runner.waits.unixpath import short_address

log = Log('gocept.runner.house')

NAME = 'control'

_LONGEST = 1000  # bytes of a request

_MOST = 16  # clients

Step = Literal['booting', 'done', 'failed', 'state', 'refused']


class Answer(TypedDict):
    """What the house says to a request."""

    step: Step
    """booting: the new template boots, and another answer follows."""

    text: NotRequired[str]
    state: NotRequired[HouseState]


class Answering(Protocol):
    """Who does what is asked for."""

    poller: Poller

    def state(self) -> HouseState:
        """How the house is."""

    def reload(self, answer: Callable[[Answer], None]) -> None:
        """Reload; `answer` is called for each step."""


class _Client:
    """One connection."""

    def __init__(self, channel: SocketChannel, control: 'Control') -> None:
        self.channel = channel
        self._said = b''
        self._control = control

    def hear(self, data: bytes, channel: SocketChannel) -> None:
        """A part of the request has come, or b'' for the end."""
        self._said += data
        if not data or len(self._said) > _LONGEST:
            self.close()
        elif b'\n' in self._said:
            line, self._said = self._said.split(b'\n', 1)
            self._control.do(line, self)

    def answer(self, answer: Answer) -> None:
        """Send a line; the last one ends the connection."""
        with contextlib.suppress(EndpointClosedException, WriteBufferFull):
            self.channel.write(json.dumps(answer).encode() + b'\n')
            if answer['step'] != 'booting':
                self.channel.write_eof()

    def close(self) -> None:
        """Let it go."""
        self._control.forget(self)
        self.channel.close()


class Control:
    """The socket, and its clients."""

    def __init__(self, directory: str, house: Answering) -> None:
        self._house = house
        self._path = os.path.join(directory, NAME)
        self._clients: list[_Client] = []
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)  # of a house that has died
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            with short_address(self._path) as address:
                self._socket.bind(address)
            self._socket.listen()
        except BaseException:
            self._socket.close()
            raise
        house.poller.add_server(self._socket, self._welcome)

    def _welcome(self, client: tuple[object, SocketChannel],
                 server: socket.socket) -> None:
        _, channel = client
        if len(self._clients) >= _MOST:
            self._house.poller.unregister(channel)
            channel.close()
            return
        known = _Client(channel, self)
        self._clients.append(known)
        self._house.poller.register(channel, known.hear)

    def do(self, line: bytes, client: _Client) -> None:
        """Do what a client asks for."""
        try:
            wish = json.loads(line)['do']
        except (ValueError, TypeError, KeyError, RecursionError):
            wish = None
        if wish == 'reload':
            self._house.reload(client.answer)
        elif wish == 'state':
            client.answer({'step': 'state', 'state': self._house.state()})
        else:
            client.answer({'step': 'refused', 'text': 'no such request'})

    def forget(self, client: _Client) -> None:
        """It has gone."""
        with contextlib.suppress(ValueError):
            self._clients.remove(client)

    def close(self) -> None:
        """Serve nobody any more."""
        for client in [*self._clients]:
            client.close()
        self._house.poller.unregister(self._socket)
        self._socket.close()
        with contextlib.suppress(OSError):
            os.unlink(self._path)


def ask(directory: str, wish: str, deadline: Deadline) -> Iterator[Answer]:
    """Ask the house of this directory, and return its answers.

    ConnectionError or FileNotFoundError if there is none. TimeoutError at the
    deadline.
    """
    with socket.socket(socket.AF_UNIX) as sock:
        with short_address(os.path.join(directory, NAME)) as address:
            sock.connect(address)
        sock.sendall(json.dumps({'do': wish}).encode() + b'\n')
        said = b''
        while True:
            if not wait_for(sock.fileno(), select.POLLIN, deadline):
                raise TimeoutError(f'no answer in {deadline}')
            data = sock.recv(2 ** 16)
            if not data:
                return
            *lines, said = (said + data).split(b'\n')
            for line in lines:
                yield cast(Answer, json.loads(line))
