"""The first start of Zope in a process, without garbage collections.

Zope makes more than a hundred thousand objects that stay to the end of the
process, three times as many with Plone. The collector would look at all of
them several times during the start, and again while the worker runs. So it
waits, and leaves out later what was made until then.
"""

import contextlib
import gc
from collections.abc import Iterator

_NEVER = 2 ** 31 - 1
"""So many objects that are new do not exist when a collection would begin."""


class _Process:
    """What was done in this process."""

    has_started = False


@contextlib.contextmanager
def no_collections(*, is_last: bool = False) -> Iterator[None]:
    """Keep the collector from a step of the start; `is_last` ends the start.

    What is there at the end of a step is not collected any more. So this does
    nothing in later starts, as tests have them; else each of them would keep
    the garbage of those before.
    """
    if _Process.has_started or not gc.isenabled():
        yield
        return
    # Not by gc.disable(), as the start could undo that of an add-on.
    first, *others = gc.get_threshold()
    gc.set_threshold(_NEVER, *others)
    try:
        yield
    finally:
        _Process.has_started = is_last
        gc.freeze()
        now, *others = gc.get_threshold()
        if now == _NEVER:  # and not what an add-on has set
            gc.set_threshold(first, *others)
