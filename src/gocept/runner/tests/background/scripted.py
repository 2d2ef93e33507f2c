"""A server that does what a test says, in a thread for each connection."""

import contextlib
import json
import pickle
import socket
import struct
import threading
from collections.abc import Callable
from typing import Self

from gocept.runner.background import handshake
from gocept.runner.background.frames import (
    FAILURE,
    RECEIPT,
    REQUESTS,
    RESPONSE,
    Message,
    Opener,
    Sealer,
)
from gocept.runner.background.handshake import PROOF_SIZE
from gocept.runner.tests.support import DEADLINE

TOKEN = 'the token of the tests'


class Conversation:
    """One connection, on the side of the server."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.messages: list[Message] = []

    def receive_exactly(self, size: int) -> bytes:
        data = b''
        while len(data) < size:
            piece = self.sock.recv(size - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def agree(self, token: str = TOKEN, life: bytes = b'life',
              python: tuple[int, int] | None = None) -> Self:
        """The handshake."""
        challenge = handshake.Challenge()
        data = bytearray(challenge.data)
        data[12:16] = life
        if python:
            data[8:10] = bytes(python)
        challenge.data = bytes(data)
        self.sock.sendall(challenge.data)
        agreed = challenge.check(
            self.receive_exactly(PROOF_SIZE), {0: token.encode(), 1: b'key'})
        if agreed is None:
            self.sock.sendall(handshake.refuse())
            raise EOFError
        self.sock.sendall(agreed.answer)
        self.sealer = Sealer(agreed.send)
        self.opener = Opener(agreed.receive, kinds=REQUESTS)
        return self

    def receive(self) -> Message:
        """The next message; EOFError."""
        while not self.messages:
            data = self.sock.recv(2 ** 16)
            if not data:
                raise EOFError
            self.messages += self.opener.feed(data)
        return self.messages.pop(0)

    def answer(self, kind: int, number: int, payload: bytes = b'',
               flags: int = 0) -> None:
        for frame in self.sealer.frames(kind, flags, number, [payload]):
            self.sock.sendall(b''.join(frame))

    def respond(self, request: Message, value: object, flags: int = 0,
                ) -> None:
        self.answer(RESPONSE, request.id, pickle.dumps(value), flags)

    def receipt(self, request: Message) -> None:
        self.answer(RECEIPT, request.id)

    def fail(self, request: Message, error: str, message: str = '',
             **more: str) -> None:
        self.answer(FAILURE, request.id, json.dumps(
            {'error': error, 'message': message, **more}).encode())

    def echo(self) -> None:
        """Respond with what is asked, until the client goes."""
        while True:
            request = self.receive()
            self.respond(request, pickle.loads(b''.join(request.pieces)))

    def reset(self) -> None:
        """Break the connection."""
        self.sock.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        self.sock.close()


Script = Callable[[Conversation], object]


class ScriptedServer:
    """Runs one script after another, each for one connection.

    The last one is run for all further connections. EOFError and a broken
    connection end a script; another exception is kept in `failures`.
    """

    def __init__(self, *scripts: Script, port: int = 0) -> None:
        self._scripts = list(scripts)
        self.failures: list[BaseException] = []
        self.connections = 0
        self._threads: list[threading.Thread] = []
        self._socks: list[socket.socket] = []
        self._sock = socket.create_server(('127.0.0.1', port))
        self.port: int = self._sock.getsockname()[1]
        self._start(self._accept)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _start(self, run: Callable[..., object], *args: object) -> None:
        thread = threading.Thread(target=run, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._sock.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections += 1
            self._socks.append(sock)
            script = (self._scripts.pop(0) if len(self._scripts) > 1
                      else self._scripts[0])
            self._start(self._run, script, sock)

    def _run(self, script: Script, sock: socket.socket) -> None:
        with sock:
            try:
                script(Conversation(sock))
            except (EOFError, ConnectionError):
                pass
            except Exception as error:
                self.failures.append(error)

    def close(self) -> None:
        """End all."""
        for sock in [self._sock, *self._socks]:
            with contextlib.suppress(OSError):  # it is closed
                sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        for thread in self._threads:
            thread.join(DEADLINE)
        if self.failures:
            raise self.failures[0]
