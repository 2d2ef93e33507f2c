"""A child that becomes ready after a while.

usage: ready.py KIND WHERE DELAY REPORT

`KIND` says how it is seen to be ready, `WHERE` is the port or the path for
that, `DELAY` the seconds before. When it is ready it writes its monotonic
clock, which is that of all processes, to the file `REPORT`.
"""

import os
import signal
import socket
import sys
import time

HOST = '127.0.0.1'

ANSWER = b'HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n'


def listen(family: int, address: object) -> socket.socket:
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(address)  # type: ignore[arg-type]
    sock.listen(100)
    return sock


def serve(sock: socket.socket) -> None:
    while True:
        client, _ = sock.accept()
        with client:
            if client.recv(1000):
                client.sendall(ANSWER)


def serve_from(begin: float, sock: socket.socket) -> None:
    """Until that time, the answer is a wrong one."""
    while True:
        client, _ = sock.accept()
        with client:
            if client.recv(1000):
                client.sendall(b'PONG\r\n' if time.monotonic() >= begin
                               else b'LOADING\r\n')


def main() -> None:
    kind, where, delay, report = sys.argv[1:]
    sock = None
    if kind == 'answer':
        sock = listen(socket.AF_INET, (HOST, int(where)))
        begin = time.monotonic() + float(delay)
        with open(report, 'w') as file:
            file.write(f'{begin!r}\n')
        serve_from(begin, sock)
    time.sleep(float(delay))
    if kind in ('tcp', 'http'):
        sock = listen(socket.AF_INET, (HOST, int(where)))
    elif kind == 'unix':
        sock = listen(socket.AF_UNIX, where)
    ready = time.monotonic()
    if kind == 'output':
        os.write(1, b'ready\n')
    elif kind == 'pid':
        with open(where, 'w') as file:
            file.write(str(os.getpid()))
    elif kind == 'notified':
        os.write(int(os.environ['NOTIFY_FD']), b'\n')
    with open(report, 'w') as file:
        file.write(f'{ready!r}\n')
    if kind == 'http' and sock is not None:
        serve(sock)
    signal.pause()


if __name__ == '__main__':
    main()
