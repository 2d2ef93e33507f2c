"""The end of a house: in reverse order, within a time.

The workers are told to end, the one that was started last at first, and
complete their ticks side by side. Then the parts end, one after another, the
first one last. What is left when its time is over is killed.
"""

import math
from collections.abc import Sequence

from gocept.runner.house.part import Part
from gocept.runner.house.templates import Templates
from gocept.runner.house.tenant import Tenant
from gocept.runner.logs import Log
from gocept.runner.waits.deadline import Deadline

log = Log('gocept.runner.house')

PARTS = 5.0
"""Seconds of the time that are kept for the parts; a fifth of it at most."""

_UNKILLABLE = 5.0
"""Seconds until a process that was killed is left alone: it may be in a system
call that does not return."""


class End:
    """What is left to be ended, and how long that may take."""

    def __init__(self, tenants: Sequence[Tenant], templates: Templates,
                 parts: Sequence[Part], seconds: float) -> None:
        self._tenants = tenants
        self._templates = templates
        self._parts = [*parts]
        self._seconds = seconds
        self._deadline = Deadline(seconds)
        self._for_workers = Deadline(
            max(seconds - PARTS, seconds * 0.8))
        self._killed: Deadline | None = None
        """When those that were killed are left alone."""
        self._killed_part: Deadline | None = None
        self._hurried = False
        self._stopped: Part | None = None
        for tenant in tenants:
            tenant.life.end()
        for tenant in reversed(tenants):
            if tenant.life.has_process:
                tenant.tell_to_end()
        templates.close()

    def left(self) -> float:
        """Seconds until `step` has to be called, whatever happens."""
        deadlines = [self._killed] if self._killed else [
            self._for_workers, self._deadline]
        return min((each.left() for each in deadlines if not each.passed),
                   default=math.inf)

    def hurry(self) -> None:
        """Kill all that is left."""
        if not self._hurried:
            self._hurried = True
            self._killed = Deadline(_UNKILLABLE)
        self._kill_workers()
        for part in self._parts:
            part.kill()

    def _running(self) -> list[Tenant]:
        return [each for each in self._tenants if each.life.has_process]

    def _kill_workers(self) -> None:
        for tenant in self._running():
            if tenant.tenancy is not None:
                tenant.tenancy.kill()
        self._templates.kill()

    def step(self) -> bool:
        """Go on; returns whether nothing is left."""
        if self._killed is not None and self._killed.passed:
            left = [f'{each.name} ({each.life.pid})'
                    for each in self._running()]
            left += [each.name for each in self._parts if not each.ended]
            if left:
                log.error('These were killed, and have not ended: %s',
                          ', '.join(left))
            return True
        running = self._running()
        if running or not self._templates.ended:
            if self._for_workers.passed and self._killed is None:
                if running:
                    log.warning(
                        'Killing workers that have not ended in %.3g s: %s',
                        self._for_workers.seconds,
                        ', '.join(each.name for each in running))
                self._killed = Deadline(_UNKILLABLE)
                self._kill_workers()
            return False
        if not self._hurried:
            self._killed = self._killed_part
        return self._end_parts()

    def _end_parts(self) -> bool:
        while self._parts:
            part = self._parts[-1]
            if self._stopped is not part:
                self._stopped, self._killed_part = part, None
                if not self._hurried:
                    part.stop(self._deadline)
            if not part.ended:
                if self._deadline.passed and not (
                        self._hurried or self._killed_part):
                    log.warning('Killing %s, which has not ended in %.3g s',
                                part.name, self._seconds)
                    self._killed = self._killed_part = Deadline(_UNKILLABLE)
                    part.kill()
                return False
            self._parts.pop()
        return True
