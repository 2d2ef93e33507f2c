"""A template without ZCML: what it declares, and how workers behave, is JSON.

``python -m gocept.runner.tests.house.faketemplate FD FILE``. The file has a
list ``workers`` of fields of `DeclaredWorker`, each with a ``does``; and, if
wanted, ``failed`` or ``threads``, and a ``version`` that workers print.

What a worker does:

loop      waits for SIGTERM or the end of `up`, and ends with 0
fail      ends with 3 at once
ok        ends with 0 at once
slow      waits, and ends only when a file ``go`` is there after SIGTERM
stubborn  ignores SIGTERM, and ends with `up`
"""

import contextlib
import json
import os
import select
import signal
import socket
import sys
from typing import Any, NoReturn

from gocept.runner.house.link import (
    DeclaredWorker,
    Failed,
    Forked,
    Ready,
    Stage,
    Streams,
    Unforked,
    Up,
    say_stage,
)
from gocept.runner.waits.packets import Packets

OPTIONAL: dict[str, Any] = {
    'site': None, 'arguments': (), 'once': False, 'ticks': 1.0,
    'schedule': None, 'timezone': None, 'jitter': 0.0, 'missed': 'skip',
    'lock': False, 'tick_timeout': None, 'shutdown_timeout': 30.0, 'apps': ()}


def main(fd: int, path: str) -> None:
    """Serve the link."""
    up = Up(Packets(socket.socket(fileno=fd)))
    os.set_inheritable(fd, False)
    with open(path, encoding='utf-8') as file:
        said = json.load(file)
    if 'failed' in said:
        up.say(Failed(*said['failed']))
        return
    does = {each['name']: each.pop('does') for each in said['workers']}
    up.say(Ready('fake', tuple(
        DeclaredWorker(**{**OPTIONAL, **each}) for each in said['workers']),
        (), tuple(said.get('threads', ()))))
    for wish, streams in up.wishes():
        what = does[wish.name]
        if what == 'unforked':
            up.say(Unforked(wish.number, 'no memory'))
        elif what == 'mute':  # dies before it says so
            fork(wish.name, 'loop', streams, path, said)
            os._exit(9)
        else:
            pid = fork(wish.name, what, streams, path, said)
            pidfd = os.pidfd_open(pid)
            up.say(Forked(wish.number, pid, pidfd))
            os.close(pidfd)


def fork(name: str, what: str, streams: Streams, path: str,
         said: dict[str, Any]) -> int:
    """Fork a worker that is a child of `up`; returns its pid."""
    read, write = os.pipe()
    first = os.fork()
    if not first:
        pid = os.fork()
        if pid:
            os.write(write, str(pid).encode())
            os._exit(0)
        os.setpgid(0, 0)
        with contextlib.suppress(OSError):
            work(name, what, streams, path, said)
        os._exit(1)
    os.waitpid(first, 0)
    pid = int(os.read(read, 100))
    os.close(read)
    os.close(write)
    return pid


def alone(name: str, path: str, streams: Streams) -> NoReturn:
    """Be a worker that is a program of its own."""
    with open(path, encoding='utf-8') as file:
        said = json.load(file)
    [what] = [each['does'] for each in said['workers']
              if each['name'] == name]
    work(name, what, streams._replace(stdout=1, stderr=2), path, said)


def say(line: str) -> None:
    """Write a line, unless nobody reads it."""
    with contextlib.suppress(OSError):
        os.write(1, f'{line}\n'.encode())


def work(name: str, what: str, streams: Streams, path: str,
         said: dict[str, Any]) -> NoReturn:
    """The worker."""
    os.dup2(streams.stdout, 1)
    os.dup2(streams.stderr, 2)
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.signal(signal.SIGTERM, lambda *ignored: None)
    signal.signal(signal.SIGUSR2, lambda *ignored: say(
        f'{name} reopens'))
    signal.set_wakeup_fd(tell)
    if what == 'stubborn':
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if what == 'fail':
        say(f'{name} fails')
        os._exit(3)
    if what == 'ok':
        say(f'{name} is done')
        os._exit(0)
    control = Packets(socket.socket(fileno=streams.control))
    say_stage(control, Stage('running'))
    say(f'{name} runs version {said.get("version", 1)} as {os.getpid()}')
    while True:
        ready, _, _ = select.select([told, streams.life], [], [])
        if streams.life in ready:
            say(f'{name} is an orphan')
            break
        if signal.SIGTERM in os.read(told, 100):
            break
    if what == 'slow':
        with open(os.path.join(os.path.dirname(path), 'go')):  # a FIFO
            pass
    say(f'{name} ends')
    os._exit(0)


if __name__ == '__main__':
    if len(sys.argv) > 3:
        alone(sys.argv[1], sys.argv[2], Streams(*map(int, sys.argv[3:])))
    main(int(sys.argv[1]), sys.argv[2])
