"""One source, as a poller knows it."""

import collections
import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Any

log = logging.getLogger('gocept.runner.poller')

Callback = Callable[[Any, Any], object]


class Watch:
    """What is waited for, and who gets what it has."""

    __slots__ = ('accepts', 'callback', 'fd', 'label', 'source')

    def __init__(self, source: Any, label: Any, callback: Callback | None,
                 ) -> None:
        self.source = source
        self.label = label
        """What stands for it in a pair."""
        self.callback = callback
        self.accepts = source.accepts
        self.fd = -1

    def call(self, items: Sequence[Any],
             results: list[tuple[Any, Any]]) -> None:
        """Hand `items` to the callback.

        What is left is added to `results`: if one of the calls has removed
        the callback, or ends the program.
        """
        left = collections.deque(items)
        try:
            while left and self.callback is not None:
                try:
                    self.callback(left.popleft(), self.label)
                except Exception:  # the other sources go on
                    log.exception('The callback of %r failed', self.label)
        finally:
            results += zip(left, itertools.repeat(self.label))
