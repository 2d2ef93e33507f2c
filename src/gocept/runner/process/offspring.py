"""A process whose parent we are, and whose status we take.

It was started here, or was forked for us and lost its parent then. This module
alone reaps children.
"""

from gocept.runner.process import registry
from gocept.runner.process.base import LOST_STATUS, BaseProcess
from gocept.runner.process.roster import roster
from gocept.runner.waits.standard import restore_blocking


class Offspring(BaseProcess):
    """See `IProcess`."""

    def _take_status(self) -> int | None:
        try:
            return self.handle.reap()
        except ChildProcessError:
            self.lost = self.handle.has_ended()
            return LOST_STATUS if self.lost else None

    def _note_end(self) -> None:
        roster.discard(self.pid)

    def _tell_end(self) -> None:
        restore_blocking()
        super()._tell_end()

    def _set_end_at_exit(self, wanted: bool) -> None:
        (registry.processes.add if wanted
         else registry.processes.discard)(self)

    def after_fork(self) -> None:
        """In a fork of this process, of which the child is none."""
        registry.processes.discard(self)
        roster.discard(self.pid)

