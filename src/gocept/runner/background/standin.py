"""The thread that serves the wire while the main thread works on a task.

It waits without waking while there is no task. The first task of a busy time
arms it. From then on it looks now and then whether the main thread has looked
at the wire meanwhile. If a task has lasted since, it takes the turn, until the
main thread comes back. So a short task costs no change of threads, which would
halve the number of requests a second.
"""

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

from gocept.runner.logs import Log
from gocept.runner.waits.forks import Lock

log = Log('gocept.runner.background')

_LONG = 0.05
"""After how many seconds a task is long."""


class StandIn:
    """Serves by calls of `look` which wait until something happens.

    `interrupt` ends the call of `look` in progress, or the next one.
    """

    def __init__(self, look: Callable[[], object],
                 interrupt: Callable[[], object], turn: Lock) -> None:
        self.turn = turn
        """Whoever looks at the wire holds it."""
        self.looks = 0
        """How often the main thread has looked."""
        self._look = look
        self._interrupt = interrupt
        self._working = False
        self._armed = False
        self._serves = False
        self._calls: SimpleQueue[bool] = SimpleQueue()
        self._thread: threading.Thread | None = None

    # In the main thread

    def task_begins(self) -> None:
        """The main thread does not look at the wire until `task_over`."""
        self._working = True
        if not self._armed:
            self._arm()

    def _arm(self) -> None:
        if self._thread is None:
            thread = threading.Thread(
                target=self._run, daemon=True, name='gocept.runner.standin')
            try:
                thread.start()
            except RuntimeError as error:  # too many threads; tried again
                log.warning('No thread serves the clients during this task: '
                            '%s', error)
                return
            self._thread = thread
        self._armed = True
        self._calls.put(True)

    def task_over(self) -> None:
        """Give the turn back soon."""
        self._working = False
        if self._serves:
            self._interrupt()

    def close(self) -> None:
        """End the thread, and wait for its end."""
        self.task_over()
        if self._thread is not None:
            self._calls.put(False)
            self._thread.join()
            self._thread = None

    # In the thread

    def _run(self) -> None:
        while self._calls.get() and self._watch():
            pass

    def _watch(self) -> bool:
        """Stand in until the main thread is idle; False: end the thread."""
        while True:
            seen = self.looks
            try:
                if not self._calls.get(timeout=_LONG):
                    return False
            except Empty:
                pass
            if self.looks != seen:
                continue
            if self._working:
                self._serve()
                continue
            self._armed = False
            if not self._working:
                return True
            self._armed = True  # a task has begun meanwhile

    def _serve(self) -> None:
        with self.turn:
            self._serves = True
            try:
                while self._working:
                    self._look()
            except BaseException:  # the main thread comes back, and sees it
                log.exception('The clients were not served during a task')
            finally:
                self._serves = False
