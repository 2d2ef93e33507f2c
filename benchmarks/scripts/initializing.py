"""Milliseconds until a server that was not there is initialised.

usage: initializing.py PEERS BGPY ROUNDS

Two lines of samples: the time of each; and what ours takes longer than the raw
side, which is a Python that does nothing but listen on a port.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

from benchmarks.scripts.servers import (
    HOST,
    Mismatch,
    bgpy_client,
    free_port,
    private_state,
)
from benchmarks.turns import in_turns

_BARE = '''
import socket, sys
server = socket.create_server(('127.0.0.1', int(sys.argv[1])))
print('ready', flush=True)
sock, _ = server.accept()
sock.send(sock.recv(100))
'''


def raw(port: int) -> Callable[[], object]:
    process = subprocess.Popen(
        [sys.executable, '-I', '-c', _BARE, str(port)],
        stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    with socket.create_connection((HOST, port)) as sock:
        sock.send(b'hello')
        sock.recv(100)

    def end() -> None:
        process.communicate()

    return end


def bgpy(port: int) -> Callable[[], object]:
    from bgpy.client import Client
    from bgpy.server import Server

    from benchmarks.scripts import bgpy_tasks as tasks
    Server(HOST, port, log_level='ERROR').run_background()
    client = Client(HOST, port, log_level='ERROR')
    check(client.initialize(
        tasks.init_task, tasks.exec_task, tasks.exit_task))
    return client.terminate


def ours(port: int) -> Callable[[], object]:
    from benchmarks.scripts import tasks
    from gocept.runner.background import initialize, terminate
    check(initialize(tasks.init_task, tasks.exec_task, tasks.exit_task,
                     port=port))
    return partial(terminate, port=port)


def check(answer: Any) -> None:
    if answer['message'] != 'Initialization successful.':
        raise Mismatch(repr(answer))


def timed(side: Callable[[int], Callable[[], object]]) -> float:
    port = free_port()
    before = perf_counter()
    end = side(port)
    seconds = perf_counter() - before
    end()
    return seconds * 1e3


def main() -> None:
    rounds = int(sys.argv[3])
    bgpy_client()
    os.environ['PYTHONPATH'] = os.getcwd()  # for the tasks of the peer
    with private_state():
        samples = in_turns(
            {'raw': partial(timed, raw), 'bgpy': partial(timed, bgpy),
             'ours': partial(timed, ours)}, rounds)
    more = [a - b for a, b in zip(
        samples['ours'], samples['raw'], strict=True)]
    print(json.dumps([samples, {'ours': more}]))


if __name__ == '__main__':
    main()
