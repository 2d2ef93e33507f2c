"""How far a run of many items is: a bar on a terminal, else lines in the log.
"""

import contextlib
import datetime
import functools
import logging
import shutil
import sys
import time
import types
from collections.abc import Callable, Iterator

from gocept.runner.boot.counts import Counts
from gocept.runner.logs import Log
from gocept.runner.waits.standard import is_terminal

log = Log('gocept.runner.transaction')

INTERVAL = 60.0
"""Seconds between two lines in the log."""

Progress = Callable[[int], object]
"""Called with the number of items that were run since the last call."""


@contextlib.contextmanager
def progress(name: str, counts: Counts, total: int | None,
             ) -> Iterator[Progress]:
    """Show how far the items of `name` are, as long as the block runs.

    `total` is how many items there will be, or None if nobody knows.
    """
    if is_terminal(sys.stderr):
        with _bar(name, total) as update:
            yield update
    else:
        yield Lines(name, counts, total)


class Lines:
    """Logs a line every minute, when an item has ended."""

    def __init__(self, name: str, counts: Counts, total: int | None,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._counts = counts
        self._total = total
        self._clock = clock
        self._begun = clock()
        self._due = self._begun + INTERVAL
        self._items = 0

    def __call__(self, count: int) -> None:
        self._items += count
        now = self._clock()
        if now >= self._due:
            self._due = now + INTERVAL
            log.info('%s: %s (%s)', self._name, ', '.join(
                self._parts(now - self._begun)), str(self._counts))

    def _parts(self, seconds: float) -> Iterator[str]:
        items, total = self._items, self._total
        rate = items / max(seconds, 0.001)
        yield f'{items}{"" if total is None else f" of {total}"} items'
        yield f'{rate:{".3g" if rate < 100 else ".0f"}} a second'
        if total is not None and 0 < items <= total:
            with contextlib.suppress(OverflowError):  # a total that is absurd
                left = datetime.timedelta(
                    seconds=round((total - items) / rate))
                yield f'about {left} left'


@contextlib.contextmanager
def _bar(name: str, total: int | None) -> Iterator[Progress]:
    import tqdm

    class Bar(tqdm.tqdm):  # type: ignore[misc]
        monitor_interval = 0  # it would start a thread
        n: int
        total: int | None

        def display(self, *args: object, **kwargs: object) -> bool:
            """Show nothing as long as there may be nothing to do."""
            return bool(self.n or self.total) and bool(
                super().display(*args, **kwargs))

        def update(self, count: int = 1) -> object:
            """Add items; there may be more of them than was expected."""
            if self.total is not None:
                self.total = max(self.total, self.n + count)
            return super().update(count)

        def close(self) -> None:
            """Leave the bar on the terminal if an item was run."""
            self.leave = self.n > 0
            super().close()

    with contextlib.ExitStack() as undo:
        for handler in logging.getLogger().handlers:
            if (isinstance(handler, logging.StreamHandler)
                    and handler.stream in (sys.stdout, sys.stderr)):
                stream = handler.stream
                undo.callback(handler.setStream, stream)
                handler.setStream(types.SimpleNamespace(  # above the bar
                    write=functools.partial(Bar.write, file=stream, end=''),
                    flush=stream.flush))
        # tqdm shows nothing on a terminal that does not know its size.
        columns, lines = shutil.get_terminal_size()
        yield undo.enter_context(
            Bar(desc=name, total=total, unit=' items', file=sys.stderr,
                ncols=columns, nrows=lines)).update
