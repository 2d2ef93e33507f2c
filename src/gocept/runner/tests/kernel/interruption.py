"""Exceptions of signal handlers, wherever those may run."""

import re
import sys
import unittest
import warnings
from types import FrameType
from typing import Self


def allow_forgotten(case: unittest.TestCase) -> None:
    """Say nothing of a connection that an interrupted call has forgotten, as
    nobody has got it yet: its finalizer closes it."""
    case.enterContext(warnings.catch_warnings())
    warnings.simplefilter('ignore', ResourceWarning)


class Interruption:
    """Raises a KeyboardInterrupt where a signal handler may run.

    That is at the begin of a function, and when one has returned that is not
    written in Python. `done` tells whether there were more than `number` such
    places in the code of the client.
    """

    _CODE = re.compile(
        r'/gocept/runner/(kernel/(client|child)/|channel/journal|waits/forks)')

    def __init__(self, number: int) -> None:
        self._left = number
        self.done = False

    def _profile(self, frame: FrameType, event: str, argument: object,
                 ) -> None:
        if (event in ('call', 'c_return')
                and self._CODE.search(frame.f_code.co_filename)
                and frame.f_code.co_name != '__del__'):
            self._left -= 1
            if self._left < 0:
                self.done = True
                sys.setprofile(None)
                raise KeyboardInterrupt

    def __enter__(self) -> Self:
        sys.setprofile(self._profile)
        return self

    def __exit__(self, kind: object, error: BaseException | None,
                 traceback: object) -> bool:
        sys.setprofile(None)
        return isinstance(error, KeyboardInterrupt)
