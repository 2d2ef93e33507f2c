"""A server that answers requests, as a peer or a bare socket would have it.

usage: serving.py SIDE PEERS

Prints its port. It ends with its standard input.

* raw: sends back what it gets; a thread for each connection, which blocks.
* loop: the same for many connections: one thread, epoll.
* whole: reads a length and as many bytes, and then sends them back.
* rpyc: the server of the package that has a thread for each connection.
"""

import importlib
import select
import socket
import struct
import sys
import threading
from collections.abc import Callable
from typing import Any

BACKLOG = 512


def raw(server: socket.socket) -> None:
    def serve(sock: socket.socket) -> None:
        while data := sock.recv(65536):
            sock.sendall(data)
        sock.close()

    in_threads(server, serve)


def loop(server: socket.socket) -> None:
    socks = {server.fileno(): server}
    epoll = select.epoll()
    epoll.register(server, select.EPOLLIN)
    while True:
        for fd, _ in epoll.poll():
            if fd == server.fileno():
                sock = accept(server)
                socks[sock.fileno()] = sock
                epoll.register(sock, select.EPOLLIN)
            elif data := socks[fd].recv(65536):
                socks[fd].sendall(data)
            else:
                socks.pop(fd).close()


def whole(server: socket.socket) -> None:
    def serve(sock: socket.socket) -> None:
        while header := sock.recv(8, socket.MSG_WAITALL):
            data = memoryview(bytearray(*struct.unpack('!Q', header)))
            rest = data
            while rest:
                rest = rest[sock.recv_into(rest):]
            sock.sendall(data)
        sock.close()

    in_threads(server, serve)


def rpyc(server: socket.socket) -> None:
    rpyc = importlib.import_module('rpyc')
    servers = importlib.import_module('rpyc.utils.server')
    lock = threading.Lock()
    state = {'value': 0}

    class Service(rpyc.Service):  # type: ignore[misc,name-defined]

        def exposed_change(self, change: int) -> int:
            with lock:
                state['value'] += change
                return state['value']

        def exposed_echo(self, data: bytes) -> bytes:
            return data

    # It opens a socket of its own, and takes another one as well.
    found = servers.ThreadedServer(Service, port=0, backlog=BACKLOG)
    found.listener.close()
    found.listener = server
    found.start()


def in_threads(server: socket.socket,
               serve: Callable[[socket.socket], None]) -> None:
    while True:
        threading.Thread(
            target=serve, args=[accept(server)], daemon=True).start()


def accept(server: socket.socket) -> socket.socket:
    sock, _ = server.accept()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


SIDES: dict[str, Callable[[socket.socket], Any]] = {
    'raw': raw, 'loop': loop, 'whole': whole, 'rpyc': rpyc}


def main() -> None:
    side, peers = sys.argv[1:]
    sys.path.append(peers)
    server = socket.create_server(('127.0.0.1', 0), backlog=BACKLOG)
    print(server.getsockname()[1], flush=True)
    threading.Thread(
        target=SIDES[side], args=[server], daemon=True).start()
    sys.stdin.read()


if __name__ == '__main__':
    main()
