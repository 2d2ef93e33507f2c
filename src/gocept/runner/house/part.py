"""What lives as long as the house: started before the workers, ended after.

Examples are the server of a FileStorage and the page with the workers.

How the house drives its parts, in its main thread, where its poller is:

1. It calls `Part.start` of each part in the order of the list, one after
   another: that of the second one when the first is `ready`. The template
   boots meanwhile. Workers are started when all parts are ready.
2. After each round of the poller, the house looks at `ready` and `ended`. So a
   part need not tell that they have changed, if they change in a callback of
   the poller; other threads call `Premises.wakeup`.
3. At the end, when all workers have ended, it calls `Part.stop` of each part
   in reverse order: that of the one before when the last one has `ended`. When
   the deadline has passed, it calls `Part.kill`.

A method of a part never waits. What takes time is a source of the poller. A
`RunnerError` that `start` raises, or that `Premises.fail` gets, ends the house
in order, and its status is that of the house.
"""

from typing import Protocol

from gocept.runner.errors import RunnerError
from gocept.runner.house.record import HouseState
from gocept.runner.poller import Poller
from gocept.runner.waits.deadline import Deadline


class Premises(Protocol):
    """What a part may use of the house."""

    poller: Poller
    """The one wait of the house. Callbacks of it run in the main thread."""

    config: str
    """The absolute path of zope.conf."""

    directory: str
    """A directory for files and sockets of this house, which only this user
    can enter. It is there, and stays."""

    def state(self) -> HouseState:
        """How the house and its workers are now."""

    def tell(self, name: str, text: str) -> None:
        """Write lines to the output of the house, marked with `name`."""

    def fail(self, error: RunnerError) -> None:
        """End the house in order; its exit status is that of the error."""

    def wakeup(self) -> None:
        """Have the house look at its parts now; from any thread."""


class Part(Protocol):
    """One thing that lives as long as the house."""

    name: str
    """What its lines are marked with, such as ``zeo`` or ``http``."""

    def start(self, house: Premises) -> None:
        """Begin. A `RunnerError` ends the house."""

    @property
    def ready(self) -> bool:
        """Whether the next part, or the workers, can be started."""

    def stop(self, deadline: Deadline) -> None:
        """Begin to end. Also called if `start` was, but was never ready."""

    @property
    def ended(self) -> bool:
        """Whether nothing of it is left."""

    def kill(self) -> None:
        """End now: the deadline of the end has passed, or a second signal has
        come."""
