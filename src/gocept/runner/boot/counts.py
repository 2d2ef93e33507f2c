"""How many items a loop has run, and what became of them."""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator


@dataclasses.dataclass
class Counts:
    """See `IMainLoop.counts`."""

    done: int = 0
    failed: int = 0
    skipped: int = 0
    uncertain: int = 0

    def __str__(self) -> str:
        return (f'{self.done} done, {self.failed} failed, '
                f'{self.skipped} skipped'
                + f', {self.uncertain} uncertain' * bool(self.uncertain))


class Items:
    """The items of a loop, and what is missing in the tick in progress."""

    def __init__(self, once: bool = False) -> None:
        self.once = once
        """Whether somebody asks if the tick was completed whole."""
        self.counts = Counts()
        self.incomplete = False
        """Whether an item has failed or was skipped, and this matters."""
        self.cut_short = False
        """Whether a request to end, or an exit, has kept items from being run.
        """
        self.ended_by: BaseException | None = None
        """The SystemExit or KeyboardInterrupt of an item; it is logged."""
        self.uncertain: BaseException | None = None
        """The error of the last item whose outcome is uncertain."""
        self.before: Counts | None = None
        """The counts before the tick, if it has run items."""
        self.begin_item: Callable[[], object] = lambda: None
        """Called before each item, if a tick may not take any time."""

    def begin_tick(self) -> None:
        """Forget what the tick before has left undone."""
        self.before = self.uncertain = None
        self.incomplete = self.cut_short = False

    def repeat_tick(self) -> None:
        """Take back what was not done: it will be tried again."""
        self.incomplete = self.cut_short = False
        if self.before is not None:
            self.counts.failed = self.before.failed
            self.counts.skipped = self.before.skipped

    def count(self, kind: str, number: int = 1) -> None:
        """Count items under the name of an attribute of `Counts`."""
        if self.before is None:
            self.before = dataclasses.replace(self.counts)
        setattr(self.counts, kind, getattr(self.counts, kind) + number)


_running = threading.local()


@contextlib.contextmanager
def counting(items: Items) -> Iterator[None]:
    """Count the items of this thread there."""
    outer = count_in(items)
    try:
        yield
    finally:
        count_in(outer)


def count_in(items: Items | None) -> Items | None:
    """Like `counting`, until the next call; returns where it was before."""
    outer: Items | None = getattr(_running, 'items', None)
    _running.items = items
    return outer


def current_items() -> Items:
    """The items of the loop that runs in this thread, or of nobody."""
    found: Items | None = getattr(_running, 'items', None)
    return Items() if found is None else found
