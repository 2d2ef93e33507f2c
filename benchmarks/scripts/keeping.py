"""Threads of a kernel, and KiB of memory for each process that it has.

usage: keeping.py PEER COUNT

Three lines: threads; memory for each idle process; and for each that has
written a line, which was read. Memory is what the processes of a daemon have
as their part, and what its files in memory take.
"""

import json
import os
import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from benchmarks.scripts.kernels import IDLE, Daemon, Kernels

LOUD = ['sh', '-c', f'echo hello; exec {" ".join(IDLE)}']


def threads(daemon: Daemon) -> int:
    return sum(len(os.listdir(f'/proc/{pid}/task')) for pid in daemon.pids())


def memory(daemon: Daemon) -> float:
    """KiB; a page of a file in memory counts once, mapped or not."""
    files: dict[int, int] = {}
    kib = 0
    for pid in daemon.pids():
        for line in Path(f'/proc/{pid}/smaps_rollup').read_text().splitlines():
            name, *values = line.split()
            if name in ('Pss_Anon:', 'Pss_File:'):
                kib += int(values[0])
        for fd in os.listdir(f'/proc/{pid}/fd'):
            path = f'/proc/{pid}/fd/{fd}'
            with suppress(FileNotFoundError):  # closed since it was listed
                if os.readlink(path).startswith('/memfd:'):
                    status = os.stat(path)
                    files[status.st_ino] = status.st_blocks // 2
    return kib + sum(files.values())


def measure(daemon: Daemon, command: list[str], count: int) -> float:
    """Memory for each, when there were some already."""
    with closing(daemon.connect()) as client:
        # What comes with the first ones is nobody's own. The peer waits for
        # descriptors below 1024 only.
        start(client, 'first', command, 4)
        before = memory(daemon)
        start(client, 'other', command, count)
        return (memory(daemon) - before) / count


def start(client: Any, name: str, command: list[str], count: int) -> None:
    """Start them, and read a line of each that writes one."""
    for number in range(count):
        client.make_process(f'{name}.{number}', command[0], command[1:],
                            env={'PATH': os.environ['PATH']})
    waiting = {f'{name}.{number}' for number in range(count)}
    if command is LOUD:
        with closing(client.watch_processes(f'{name}.*')) as watcher:
            while waiting:
                out, _, _ = watcher.read()
                waiting -= {each for each, _, _ in out}
            watcher.acknowledge()


def main() -> None:
    count = int(sys.argv[2])
    rows: list[dict[str, list[float]]] = [{}, {}, {}]
    with Kernels() as kernels:
        for side, make in ('papa', kernels.theirs), ('ours', kernels.ours):
            for row, command in (1, IDLE), (2, LOUD):
                daemon = make('Unix')
                rows[row][side] = [measure(daemon, command, count)]
                rows[0][side] = [threads(daemon)]
                daemon.end_children()
    print(json.dumps(rows))


if __name__ == '__main__':
    main()
