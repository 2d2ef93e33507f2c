"""Milliseconds until a kernel that was not there answers.

usage: arising.py PEER ROUNDS

Two lines of samples: of a client that starts the daemon itself, and of the
command of each. The raw side is a Python that has nothing to do: with no site
for a client, which is there already, and with what a command imports at least.
"""

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.environments import clean_environ
from benchmarks.scripts.kernels import (
    PATIENCE,
    Mismatch,
    gone,
    home,
    peer,
)
from benchmarks.turns import in_turns
from gocept.runner.kernel import Kernel


def timed(start: Callable[[str], object],
          end: Callable[[str], object]) -> float:
    """`start` returns when there was an answer at that path."""
    with home() as directory:
        path = str(directory / 'sock')
        before = perf_counter()
        start(path)
        seconds = perf_counter() - before
        end(path)
    return seconds * 1e3


def kill(path: str) -> None:
    """End the peer's daemon, which has no command for that."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        pid, _, _ = struct.unpack('3i', sock.getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    os.kill(pid, signal.SIGKILL)


def stop(path: str) -> None:
    """End ours."""
    with Kernel(path) as kernel:
        status = kernel.status()
        kernel.stop(force=True)
    gone([status['pid'], status['keeper']])


def python(options: list[str], path: str) -> None:
    subprocess.run([sys.executable, *options, '-c', 'pass'],
                   env=clean_environ(), check=True)


def client(connect: Callable[[str], Any], path: str) -> None:
    with connect(path) as kernel:
        if kernel.get('nothing') is not None:
            raise Mismatch('something')


def command(words: list[str], path: str) -> None:
    """Start it, and ask it by the text protocol."""
    subprocess.run([*words, path], env=clean_environ(), check=True,
                   stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + PATIENCE
    with socket.socket(socket.AF_UNIX) as sock:
        while True:
            with contextlib.suppress(OSError):
                sock.connect(path)
                break
            if time.monotonic() > deadline:
                raise Mismatch('it does not listen')
            time.sleep(0.001)
        sock.send(b'get nothing\n')
        answer = b''
        while answer.count(b'> ') < 2:
            answer += sock.recv(1000)


def main() -> None:
    rounds = int(sys.argv[2])
    papa = peer()

    def fork(path: str) -> Any:
        papa.Papa.spawned = False
        return papa.Papa(path)

    theirs = [sys.executable, '-c',
              f'import sys; sys.path.append({sys.argv[1]!r}); '
              'from papa.server import main; main()', '--daemonize', '-u']
    ours = [os.fspath(Path(sys.executable).parent / 'gocept-runner'),
            'kernel', 'start', '--path']
    rows = [in_turns({
        'raw': partial(timed, partial(python, options), str),
        'papa': partial(timed, start, kill),
        'ours': partial(timed, own, stop)}, rounds)
        for options, start, own in [
            (['-I', '-S'], partial(client, fork), partial(client, Kernel)),
            ([], partial(command, theirs), partial(command, ours))]]
    print(json.dumps(rows))


if __name__ == '__main__':
    main()
