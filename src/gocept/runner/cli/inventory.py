"""What a kernel holds, as tables for people and as JSON for programs."""

import json
import pwd
import signal
import time
from collections.abc import Iterator, Mapping, Sequence

from gocept.runner.cli import table
from gocept.runner.operation.amounts import NONE, duration, size
from gocept.runner.process import procfs

Entry = Mapping[str, object]
"""Properties of the kernel, or of a thing in it, by name."""


def as_json(status: Entry) -> str:
    """The status of a kernel, with what the system knows of its processes."""
    processes = {name: {**entry, **_usage(entry)}
                 for name, entry in _entries(status, 'processes')}
    return json.dumps({**status, 'processes': processes}, indent=2)


def as_text(status: Entry, address: str, columns: int | None = None,
            ) -> Iterator[str]:
    """The lines of the tables; `columns` is the width of the terminal."""
    yield from _kernel(status, address)
    for titles, rows, right in (
            (SOCKETS, _sockets(status), ()),
            (VALUES, _values(status), (1,)),
            (PROCESSES, _processes(status), (1, 3, 4, 5, 6, 7))):
        yield ''
        found = [*rows]
        if found:
            yield from table.lines([titles, *found], columns, right)
        else:
            yield f'{titles[0]}S: none'.replace('SSS', 'SSES')


SOCKETS = 'SOCKET', 'FD', 'TYPE', 'ADDRESS'
VALUES = 'VALUE', 'LENGTH', 'BEGINNING'
PROCESSES = ('PROCESS', 'PID', 'STATE', 'AGE', 'CPU', 'MEMORY', 'BUFFERED',
             'DROPPED', 'COMMAND')


def _kernel(status: Entry, address: str) -> Iterator[str]:
    now = time.time()
    deaths = status.get('deaths', NONE)
    history = [f'up {_age(now, status.get("kernel_started"))}']
    history.append('the daemon has never died' if deaths == 0 else
                   f'the daemon has died {_times(deaths)}')
    if status.get('keeper_deaths'):
        history.append(f'the keeper {_times(status["keeper_deaths"])}')
    if status.get('upgrades'):
        history.append(f'upgraded {_times(status["upgrades"])}')
    yield from table.lines([
        ('kernel', f'{address}: {", ".join(history)}'),
        ('daemon', f'pid {_text(status, "pid")}, up '
                   f'{_age(now, status.get("started"))}'),
        ('keeper', f'pid {_text(status, "keeper")}'),
        ('code', f'version {_text(status, "version")}, Python '
                 f'{_text(status, "python")}, {_text(status, "path")}'),
        ('users', ', '.join(_users(status))),
        ('clients', _text(status, 'clients')),
        ('output', f'{size(status.get("buffered"))} buffered')])


def _users(status: Entry) -> Iterator[str]:
    yield 'its own and root'
    others = status.get('allow_users')
    for uid in others if isinstance(others, Sequence) else ():
        try:
            yield pwd.getpwuid(int(uid)).pw_name
        except KeyError:
            yield str(uid)


def _times(count: object) -> str:
    return 'once' if count == 1 else f'{count} times'


def _sockets(status: Entry) -> Iterator[Sequence[str]]:
    for name, entry in _entries(status, 'sockets'):
        where = _text(entry, 'path')
        if where == NONE:
            host = _text(entry, 'host')
            where = f'[{host}]' if ':' in host else host
            where += f':{_text(entry, "port")}'
        yield (name, _text(entry, 'fileno'),
               f'{_text(entry, "family")} {_text(entry, "type")}', where)


def _values(status: Entry) -> Iterator[Sequence[str]]:
    values = status.get('values')
    if isinstance(values, Mapping):
        for name, (length, beginning) in sorted(values.items()):
            yield name, str(length), beginning + '…' * (
                len(beginning) < length)


def _processes(status: Entry) -> Iterator[Sequence[str]]:
    now = time.time()
    for name, entry in _entries(status, 'processes'):
        usage = _usage(entry)
        running = entry.get('running')
        yield (name, _text(entry, 'pid'),
               'running' if running else _end(now, entry),
               _age(now, entry.get('started')) if running else NONE,
               _cpu(usage.get('cpu')), size(usage.get('memory')),
               size(entry.get('buffered')), size(entry.get('dropped')),
               _command(entry))


def _end(now: float, entry: Entry) -> str:
    """How and when a process has ended."""
    ended = entry.get('ended')
    return state(entry.get('status')) + (
        f', {_age(now, ended)} ago' if ended else '')


def _command(entry: Entry) -> str:
    command = entry.get('command')
    if isinstance(command, Sequence) and not isinstance(command, str):
        return ' '.join(_quoted(str(word)) for word in command)
    return _text(entry, 'args')


def _quoted(word: str) -> str:
    return word if word and not {*word} & {*' "\''} else repr(word)


def _usage(entry: Entry) -> dict[str, float | None]:
    """What the system says now about a process that runs."""
    pid = entry.get('pid')
    found = (procfs.usage(pid) if isinstance(pid, int)
             and entry.get('running') else None)
    return ({'cpu': None, 'memory': None} if found is None
            else {'cpu': found.cpu, 'memory': found.memory})


def _entries(status: Entry, kind: str) -> Iterator[tuple[str, Entry]]:
    entries = status.get(kind)
    if isinstance(entries, Mapping):
        yield from sorted(entries.items())


def _text(entry: Entry, key: str) -> str:
    value = entry.get(key)
    return NONE if value is None else str(value)


def state(status: object) -> str:
    """A status of a process that has ended, in a few words."""
    if not isinstance(status, int):
        return 'ended (status unknown)'
    if status < 0:
        try:
            return signal.Signals(-status).name
        except ValueError:
            return f'signal {-status}'
    return f'ended {status}'


def _cpu(seconds: object) -> str:
    if not isinstance(seconds, float):
        return NONE
    return f'{seconds:.2f} s' if seconds < 60 else duration(seconds)


def _age(now: float, since: object) -> str:
    if not isinstance(since, (int, float)):
        return NONE
    return duration(max(0, now - since))
