"""The poller that a loop pauses with."""

import contextlib
import os
import threading
from collections.abc import Iterator

from zope.component import getGlobalSiteManager

from gocept.runner.interfaces import IPoller
from gocept.runner.poller import Poller

_users: dict[tuple[int, int], int] = {}
"""The threads whose loops pause with an `IPoller` utility, by its id."""


@contextlib.contextmanager
def poller_of_pauses() -> Iterator[Poller]:
    """The utility, or else a poller for this alone.

    So it is if the utility is that of a loop in another thread already. Its
    descriptors are opened before a tick can take all that are left.
    """
    # Never the poller of a site, whose database may be away.
    utility = getGlobalSiteManager().queryUtility(IPoller)
    me = threading.get_ident()
    use = os.getpid(), id(utility)  # a fork has no other threads
    with contextlib.ExitStack() as stack:
        poller = utility
        if _users.get(use) != me:
            if utility is not None and _users.setdefault(use, me) == me:
                stack.callback(_users.pop, use)
            else:
                poller = stack.enter_context(Poller())
        _ = poller.wakeup_fd
        yield poller
