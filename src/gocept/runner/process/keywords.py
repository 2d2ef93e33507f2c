"""What the keywords of a child are called on all sides.

`IProcess`, `IRunner.add` and the ZCML directive ``app`` have the names of the
first column; `IExecutor` and the directive ``executor`` those of the last one.
"""

import enum
import subprocess
from collections.abc import Mapping
from typing import Any, NamedTuple

Keywords = Mapping[str, Any]
"""Keywords by name. Only who takes one knows the type of its value."""


class Part(enum.Enum):
    """Of a process: what a keyword is for."""

    START = enum.auto()
    CHANNEL = enum.auto()
    WATCH = enum.auto()  # which is the business of an application itself
    END = enum.auto()


_POPEN = 'popen_kwargs'  # a key of that dictionary, under the same name


class Keyword(NamedTuple):
    """A row."""

    process: str
    part: Part
    executor: str | None = None


TABLE = (
    Keyword('command', Part.START, 'command'),
    Keyword('shell', Part.START, 'shell'),
    Keyword('cwd', Part.START, 'cwd'),
    Keyword('env', Part.START, _POPEN),
    Keyword('extra_env', Part.START, 'envvars'),
    Keyword('user', Part.START, _POPEN),
    Keyword('group', Part.START, _POPEN),
    Keyword('extra_groups', Part.START, _POPEN),
    Keyword('umask', Part.START, _POPEN),
    Keyword('rlimits', Part.START),
    Keyword('setpgrp', Part.START),
    Keyword('process_group', Part.START, _POPEN),
    Keyword('setsid', Part.START),
    Keyword('start_new_session', Part.START, _POPEN),
    Keyword('stdin', Part.START, 'stdin'),
    Keyword('stdout', Part.START, 'stdout'),
    Keyword('stderr', Part.START, 'stderr'),
    Keyword('pass_fds', Part.START, _POPEN),
    Keyword('die_with_parent', Part.START, 'die_with_parent'),
    Keyword('detached', Part.START),
    Keyword('popen_kwargs', Part.START, 'popen_kwargs'),
    Keyword('buffering', Part.CHANNEL),
    Keyword('encoding', Part.CHANNEL),
    Keyword('limit', Part.CHANNEL),
    Keyword('high_water', Part.CHANNEL),
    Keyword('poller', Part.WATCH),
    Keyword('on_start', Part.WATCH),
    Keyword('on_end', Part.WATCH),
    Keyword('servers', Part.WATCH),
    Keyword('name', Part.WATCH, 'name'),
    Keyword('stop_signal', Part.END, 'stop_signal'),
    Keyword('stop_timeout', Part.END, 'stop_timeout'),
    Keyword('kill_signal', Part.END, 'kill_signal'),
    Keyword('adopt', Part.END),
)


def _of(part: Part) -> frozenset[str]:
    return frozenset(row.process for row in TABLE if row.part is part)


CHANNEL, WATCH, END = map(_of, (Part.CHANNEL, Part.WATCH, Part.END))

POPEN = frozenset(row.process for row in TABLE
                  if row.executor == _POPEN != row.process)
"""Keywords of Popen that a process has to know, so that an executor takes them
out of its `popen_kwargs`."""

STREAMS: dict[str, int | None] = {
    'pipe': subprocess.PIPE, 'null': subprocess.DEVNULL, 'inherit': None,
    'merge': subprocess.STDOUT}
"""Streams of a process, and what Popen and executors call them."""
