"""Processes as Linux shows them in /proc.

A process that has ended, or cannot be looked at as no descriptor is left, has
no properties: the answer is None, 0 or nothing.
"""

import contextlib
import errno
import functools
import os
from collections.abc import Iterator
from typing import NamedTuple

_LONGEST = 4096  # bytes of such a file, or of the part that matters

misses = 0
"""How often something could not be read as no descriptor was left. If it grows
during a search, the search may have missed a process."""


class Stat(NamedTuple):
    """A part of /proc/PID/stat; see proc(5)."""

    state: str
    parent: int
    group: int
    session: int
    start: int
    """In clock ticks after the system was booted."""
    image: int
    """The address of the stack: it changes when the process becomes another
    program, and not when it forks; 0 if it cannot be read."""


def path(name: int | str) -> str:
    """Where the system shows a process, or says something else.

    Nothing is there if `is_foreign`.
    """
    return f'{"/dev/null" if is_foreign() else "/proc"}/{name}'


def is_foreign() -> bool:
    """Whether /proc is that of another PID namespace.

    Its numbers of processes belong to others here.
    """
    return _is_foreign(os.getpid())


@functools.lru_cache(1)  # so that a fork, which may be in another, has its own
def _is_foreign(pid: int) -> bool:
    try:
        return os.readlink('/proc/self') != str(pid)
    except OSError:  # there is no /proc, so nothing can be mistaken
        return False


def is_readable() -> bool:
    """Whether a process can be looked at, as a descriptor is left."""
    return _read(path('loadavg')) is not None


def stat(pid: int) -> Stat | None:
    """The present properties of a process; None if there is no such one."""
    fields = _fields(pid)
    if fields is None:
        return None
    return Stat(fields[0].decode(), *(
        int(fields[column]) for column in (1, 2, 3, 19, 25)))


class Usage(NamedTuple):
    """What a process has used up, without its descendants."""

    cpu: float
    """Seconds of processors, in the program and in the system."""
    memory: int
    """Bytes of the machine's memory, shared ones as well."""


def usage(pid: int) -> Usage | None:
    """What the process uses; None if there is no such one."""
    fields = _fields(pid)
    if fields is None:
        return None
    return Usage(
        (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK'),
        int(fields[21]) * os.sysconf('SC_PAGE_SIZE'))


def look(pid: int) -> Stat:
    """Like `stat`; one that is dead and has no relatives in place of None."""
    return stat(pid) or Stat('X', 0, 0, 0, 0, 0)


def words(name: str) -> list[str]:
    """The words of a small file in /proc that is not about a process."""
    return (_read(path(name)) or b'').decode().split()


def is_process(pid: int) -> bool:
    """Whether there is a process with this number, which no thread has."""
    return b'\nTgid:\t%d\n' % pid in (_read(f'{path(pid)}/status') or b'')


def _fields(pid: int) -> list[bytes] | None:
    fields = _fields_of(path(pid))
    live = _live_thread(pid) if fields and fields[0] == b'Z' else ''
    if fields and live:
        thread = _fields_of(live)
        if thread:
            thread[19] = fields[19]  # the start is that of the process
            return thread
    return fields


def _fields_of(path: str) -> list[bytes] | None:
    content = _read(f'{path}/stat')
    if content is None:
        return None
    # The name of the program, before it, may contain anything.
    return content.rpartition(b')')[2].split()


def _live_thread(pid: int) -> str:
    """A thread of a process whose main thread has ended; '' if none runs."""
    main = _fields_of(path(pid))
    if main and main[0] == b'Z':
        with contextlib.suppress(OSError):
            for thread in os.listdir(f'{path(pid)}/task'):
                where = f'{path(pid)}/task/{thread}'
                fields = _fields_of(where)
                if fields and fields[0] not in b'ZX':
                    return where
    return ''


def _count_miss(error: OSError) -> None:
    global misses
    if error.errno in (errno.EMFILE, errno.ENFILE):
        misses += 1


def _read(path: str) -> bytes | None:
    try:
        # Not as a file object, as thousands may be looked at.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        _count_miss(error)
        return None
    try:
        return os.read(fd, _LONGEST)
    except OSError:
        return None
    finally:
        os.close(fd)


def command_line(pid: int) -> list[str]:
    """The arguments of a process, which it may have changed; [] for none."""
    with contextlib.suppress(OSError), open(
            f'{path(pid)}/cmdline', errors='replace') as file:
        # Who writes a title there leaves NULs behind.
        text = file.read().rstrip('\0')
        return text.split('\0') if text else []
    return []


def program(pid: int) -> str:
    """The path of the program of a process; '' if it cannot be read."""
    with contextlib.suppress(OSError):
        return os.readlink(f'{path(pid)}/exe').removesuffix(' (deleted)')
    return ''


def name(pid: int) -> str:
    """The name that the system shows, of 15 bytes; '' if there is none."""
    with contextlib.suppress(OSError), open(
            f'{path(pid)}/comm', errors='replace') as file:
        return file.read().rstrip('\n')
    return ''


def children(pid: int) -> list[int]:
    """The pids of the children of a process, zombies as well."""
    if not _lists_children():
        return [each for each in pids() if look(each).parent == pid]
    found: list[int] = []
    try:
        threads = os.listdir(f'{path(pid)}/task')
    except OSError as error:
        _count_miss(error)
        return found
    for thread in threads:
        content = _read_whole(f'{path(pid)}/task/{thread}/children')
        found += map(int, (content or b'').split())
    return found


@functools.cache
def _lists_children() -> bool:
    """Whether this system shows the children of a thread.

    A few kernels are built without that, and some sandboxes.
    """
    return os.path.exists('/proc/thread-self/children')


def pids() -> Iterator[int]:
    """The pids of all processes."""
    try:
        names = os.listdir(path('.'))
    except OSError as error:
        _count_miss(error)
        return
    yield from (int(name) for name in names if name.isdigit())


def variable(pid: int, name: str) -> str | None:
    """An environment variable that the process was started with.

    '' if there is none, it cannot be read or the process has overwritten it.
    None for the moment in which the process becomes another program.
    """
    content = _environment(pid)
    if not content and (live := _live_thread(pid)):
        content = _read_whole(f'{live}/environ')
    if content == b'':
        fields = _fields(pid)
        if fields and int(fields[20]):
            start, end = map(int, fields[47:49])
            content = _environment(pid)  # it may have got one since
            if content == b'' and (not end or start < end):
                return None  # it has memory, but no environment yet
    _, found, rest = (b'\0' + (content or b'')).partition(
        b'\0%s=' % name.encode())
    return rest.partition(b'\0')[0].decode(errors='replace') if found else ''


def table(name: str) -> bytes:
    """The content of a file in /proc/net; empty if it cannot be read."""
    return _read_whole(f'/proc/net/{name}') or b''


def sockets(pid: int) -> set[str]:
    """The inodes of the sockets that a process has open, as `table` has them.
    """
    found = set()
    with contextlib.suppress(OSError):
        for name in os.listdir(f'{path(pid)}/fd'):
            with contextlib.suppress(OSError):
                target = os.readlink(f'{path(pid)}/fd/{name}')
                if target.startswith('socket:['):
                    found.add(target[8:-1])
    return found


def _environment(pid: int) -> bytes | None:
    return _read_whole(f'{path(pid)}/environ')


def _read_whole(path: str) -> bytes | None:
    try:
        with open(path, 'rb') as file:
            return file.read()
    except OSError as error:
        _count_miss(error)
        return None
