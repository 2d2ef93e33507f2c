"""The garbage collector while a program starts."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Pause the collector, if it runs.

    Imports and configuration make many objects and hardly any garbage, so to
    look for it again and again took a twentieth of the start.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
