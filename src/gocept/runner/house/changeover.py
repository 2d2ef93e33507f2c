"""After a reload, workers change over to the new code one by one.

Each is told to end, does so after its tick, and is forked from the new
template. The next one's turn is when the new process has booted, or has
failed. A long tick holds up the others for `PATIENCE` seconds only; the worker
changes over when the tick has ended, as no tick is cut short.
"""

import time
from collections.abc import Callable, Iterable

from gocept.runner.house.tenant import Tenant
from gocept.runner.waits.instants import Instant

PATIENCE = 10.0
"""Seconds."""


class Changeover:
    """The way of all workers to one generation."""

    def __init__(self, tenants: Iterable[Tenant], generation: int,
                 now: Callable[[], float] = time.monotonic) -> None:
        self.generation = generation
        self._now = now
        self._left = [
            tenant for tenant in tenants
            if tenant.life.has_process and tenant.life.generation < generation
            and not (tenant.life.once)]
        self.count = len(self._left)
        """How many are to change over."""
        self._turn: Tenant | None = None
        self._latest: Instant | None = None

    @property
    def next_step(self) -> Instant | None:
        """When `step` is to be called, whatever happens; None: never."""
        return self._latest if self._left else None

    @property
    def over(self) -> bool:
        """Whether all have had their turn, and the last one has changed."""
        return not self._left and self._turn is None

    def step(self) -> None:
        """Go on, if the one whose turn it is has changed over."""
        while True:
            if self._turn is not None:
                if self._changes(self._turn) and (
                        self._latest is None or not self._left
                        or self._now() < self._latest.at):
                    return
                self._turn = None
            if not self._left:
                return
            tenant = self._left.pop(0)
            if self._is_old(tenant):
                self._turn = tenant
                self._latest = Instant('monotonic', self._now() + PATIENCE)
                tenant.life.replacing = True
                tenant.tell_to_end()

    def _is_old(self, tenant: Tenant) -> bool:
        life = tenant.life
        return (life.has_process and life.generation < self.generation
                and not life.ending)

    def _changes(self, tenant: Tenant) -> bool:
        """Whether it is on its way: it ends, or its new process boots."""
        return self._is_old(tenant) or tenant.life.phase in (
            'waiting', 'starting')
