"""What a daemon takes over from the one before, while it serves already.

To look at thousands of processes takes longer than clients are to wait. So the
records are read first, and then some processes at a time between requests; one
that somebody asks for comes first. Nothing is lost meanwhile: what a process
writes stays in its pipe, and the keeper keeps its end.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from gocept.runner.logs import Log
from gocept.runner.process import procfs
from gocept.runner.process.pidfd import hold
from gocept.runner.waits.source import Item, Source
from gocept.runner.waits.threads import survived

if TYPE_CHECKING:
    from gocept.runner.kernel.daemon.process import KernelProcess
    from gocept.runner.kernel.daemon.processes import Processes

log = Log('gocept.runner.kernel')

_TURN = 10  # processes that are looked at between requests


class Recovery(Source):
    """The processes of the former daemon that are not looked at yet."""

    def __init__(self, processes: 'Processes') -> None:
        self._processes = processes
        self._left: dict[str, KernelProcess] = {}
        self.on_end: Callable[[], object] = lambda: None
        """Called when there are none any more."""

    def add(self, process: 'KernelProcess') -> None:
        """There is this one; its record was read."""
        self._left[process.life] = process

    def fileno(self) -> int:
        return -1

    @property
    def buffered(self) -> bool:
        return bool(self._left)

    def collect(self) -> tuple[Sequence[Item], bool]:
        for process in [*self._left.values()][:_TURN]:
            self.look_at(process)
        if not self._left:
            self.on_end()
        return (), not self._left

    def look_at(self, process: 'KernelProcess') -> None:
        """Have everything of this process, if that was not done yet."""
        if self._left and self._left.pop(process.life, None) is not None:
            try:
                self._go_on(process)
            except survived():  # the other processes go on
                log.exception('%r could not be taken over', process.name)

    def look_at_all(self) -> None:
        """The same for all of them."""
        for process in [*self._left.values()]:
            self.look_at(process)

    def _go_on(self, process: 'KernelProcess') -> None:
        """Read what it writes, and see what has become of it."""
        processes = self._processes
        processes.attach(process)
        if process.pid:
            processes.listen(process)
        if process.ended is not None and not process.closed:
            processes.finish(process)
        if process.sink is not None:
            process.sink.send()
        if process.running and process.pid:
            self._see_if_it_is_there(process)
        processes.discard_if_over(process)

    def _see_if_it_is_there(self, process: 'KernelProcess') -> None:
        """Find out about one that the former daemon has started.

        The keeper tells the ends of its children. A child that a keeper had
        adopted, and that has lost it by now, belongs to somebody else, and
        nobody can know its status.
        """
        processes = self._processes
        found = procfs.look(process.pid)
        if process.is_that(found) and found.parent == processes.link.keeper:
            return
        if not procfs.is_readable():
            return
        try:
            handle = hold(process.pid)
        except ProcessLookupError:
            processes.ended(process, None)
            return
        if not process.is_it(process.pid) and procfs.is_readable():
            handle.close()  # the number belongs to another one
            processes.ended(process, None)
            return

        def tell(*result: object) -> None:
            handle.close()
            processes.ended(process, None)

        processes.poller.register(handle, tell)
