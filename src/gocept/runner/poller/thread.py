"""The daemon thread that serves what nobody else polls.

There is one in a process. It calls `Poller.poll` of the poller that
`background` returns. It is begun at first need, and anew in a forked child. It
runs the callbacks of what is registered there, and sends what channels have
kept back; it reads none that was handed out.
"""

import threading

from gocept.runner.poller.poller import Poller
from gocept.runner.waits.forks import Lock


class _BackgroundPoller(Poller):

    def after_fork(self) -> None:
        super().after_fork()
        self.close()  # as nobody polls it here


_lock = Lock()
_background: Poller | None = None


def background() -> Poller:
    """The poller of the daemon thread, which ends when somebody closes it."""
    global _background
    with _lock:
        if _background is None or _background.closed:
            _background = _BackgroundPoller()
            threading.Thread(target=_serve, args=(_background,), daemon=True,
                             name='gocept.runner.poller').start()
        return _background


def _serve(poller: Poller) -> None:
    try:
        while not poller.closed:
            poller.poll()
    finally:
        poller.close()  # so that there can be another
