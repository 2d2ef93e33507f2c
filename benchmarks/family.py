"""A process and its descendants: memory and processor time of all together."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

PROC = Path('/proc')


class Use(NamedTuple):
    """What some processes need together."""

    memory: float
    """MiB, of which each process has its share of what it shares (PSS)."""

    processor: float
    """Seconds since the start of each."""

    count: int
    """How many processes that are."""


def use(roots: Iterable[int]) -> Use:
    """What these processes and their descendants need now."""
    pids = family(roots)
    return Use(sum(map(memory, pids)), sum(map(processor, pids)), len(pids))


def family(roots: Iterable[int]) -> list[int]:
    """These processes and their descendants."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            try:
                parent = int(_fields(int(entry.name))[1])
            except OSError:  # it has ended meanwhile
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found = list(roots)
    for pid in found:
        found += children.get(pid, [])
    return found


def memory(pid: int) -> float:
    """The proportional set size of a process, in MiB."""
    for line in (PROC / str(pid) / 'smaps_rollup').read_text().splitlines():
        name, _, value = line.partition(':')
        if name == 'Pss':
            return int(value.split()[0]) / 1024
    raise LookupError(f'no Pss of {pid}')


def processor(pid: int) -> float:
    """Seconds of the processor that a process has needed so far."""
    user, system = _fields(pid)[11:13]
    return (int(user) + int(system)) / os.sysconf('SC_CLK_TCK')


def _fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on: they follow the name.
    """
    text = (PROC / str(pid) / 'stat').read_text(errors='replace')
    return text[text.rindex(')') + 1:].split()
