"""The tick of this thread, for log lines and others who were not told.

What a loop is about is read from the loop when somebody asks: a tick itself
does nothing for it.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import NamedTuple

import transaction
from persistent import Persistent
from ZODB.utils import tid_repr

from gocept.runner.boot.texts import name_of
from gocept.runner.events import Loop
from gocept.runner.logs import Log

log = Log('gocept.runner.transaction')

_running = threading.local()

_loops: list[Loop] = []
"""Those that run in this process."""


class Tick(NamedTuple):
    """A tick: the one in progress, or in a pause the last one."""

    worker: str
    tick: int
    """Its number, from 1 on; 0 before the first one."""

    attempt: int
    """The number of the attempt, from 1 on; 0 before the first one."""

    principal: str | None
    """The id, if it was asked for already."""

    transaction: str | None = None
    """The id of what the tick has committed last, where it is known."""


def current_tick() -> Tick | None:
    """The tick of the loop that runs in this thread, or None."""
    loop: Loop | None = getattr(_running, 'loop', None)
    if loop is None:
        return None
    tick, committed = getattr(_running, 'committed', (0, None))
    return Tick(_name_of(loop), loop.tick, loop.attempt, loop.known_principal,
                committed if tick == loop.tick else None)


def only_worker() -> str | None:
    """The name of the worker, if this process runs one, in whatever thread."""
    loops = list(_loops)
    return _name_of(loops[0]) if len(loops) == 1 else None


def _name_of(loop: Loop) -> str:
    return loop.name or name_of(loop.worker)


@contextlib.contextmanager
def running(loop: Loop) -> Iterator[None]:
    """Let `current_tick` tell of `loop` in the block."""
    outer = run_in_thread(loop)
    _loops.append(loop)
    try:
        yield
    finally:
        _loops.remove(loop)
        run_in_thread(outer)


def run_in_thread(loop: Loop | None) -> Loop | None:
    """Like `running`, until the next call; returns the loop before."""
    outer: Loop | None = getattr(_running, 'loop', None)
    _running.loop, _running.committed = loop, (0, None)
    return outer


class Change(NamedTuple):
    """An object that a transaction has changed."""

    object: Persistent
    serial: bytes
    """The id of the transaction that has stored it before."""


def change_in(txn: transaction.Transaction) -> Change | None:
    """One of the changes that a commit will store, if this thread has a loop.

    It costs next to nothing, where the database would have to be asked for
    the id of a transaction.
    """
    if txn._resources and getattr(_running, 'loop', None) is not None:
        for resource in txn._resources:
            for changed in getattr(resource, '_registered_objects', ()):
                return Change(changed, changed._p_serial)
            # With savepoints, the objects may be in no list any more.
            savepoint = getattr(resource, '_savepoint_storage', None)
            for oid in getattr(savepoint, 'index', ()):
                found = resource._cache.get(oid)
                if found is not None:
                    return Change(found, found._p_serial)
    return None


def note_commit(change: Change) -> None:
    """Let `current_tick` tell the id of the commit that has stored it."""
    found = change.object
    if found._p_changed is not None and found._p_serial != change.serial:
        committed = tid_repr(found._p_serial)
        _running.committed = _running.loop.tick, committed
        log.debug('Committed transaction %s', committed)
