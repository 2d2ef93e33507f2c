"""What an undo log tells of a transaction."""

import contextlib
import threading
from collections.abc import Callable, Iterator

import transaction


class Metadata:
    """The principal and the name of a worker, for each of its transactions."""

    def __init__(self, principal: str | None = None, name: str = '') -> None:
        # What Zope puts before the id is the path of the user folder.
        self.user = '' if principal is None else f'/ {principal}'
        self.name = name

    def begin(self) -> None:
        """Begin a transaction that carries the metadata."""
        txn = transaction.begin()
        if self.user:
            txn.user = self.user
        txn.description = self.name


Begin = Callable[[], object]
"""Begins a transaction; see `begin_item` of `ICurrentSite`."""

_running = threading.local()


@contextlib.contextmanager
def carrying(begin: Begin) -> Iterator[None]:
    """Let `begin_item` call this in this thread."""
    outer = carry(begin)
    try:
        yield
    finally:
        carry(outer)


def carry(begin: Begin) -> Begin:
    """Like `carrying`, until the next call; returns what was called before."""
    outer, _running.begin = _current(), begin
    return outer


def begin_item() -> None:
    """Begin a transaction for an item, as the loop in this thread does."""
    _current()()


def _current() -> Begin:
    found: Begin | None = getattr(_running, 'begin', None)
    return found or Metadata().begin
