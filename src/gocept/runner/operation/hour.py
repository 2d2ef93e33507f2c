"""How long the ticks of the last hour took, minute by minute.

A worker may have one tick in a day, or thousands in a second. So there is one
entry for each minute in which ticks have ended, with the longest of these: a
line of them shows people when ticks became slow.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from gocept.runner.operation.state import Minute

MINUTES = 60
"""How many there are."""


class Hour:
    """The ticks of one program. Only one thread adds to it.

    Others may read it meanwhile: an entry is never changed, only replaced.
    """

    def __init__(self) -> None:
        self._minutes: dict[int, Minute] = {}

    def add(self, ended: float, duration: float, failed: bool) -> None:
        """Note a tick that has ended at this time, since the epoch."""
        at = int(ended // 60)
        minute: Minute = {'at': at, 'ticks': 1, 'failed': int(failed),
                          'longest': duration}
        before = self._minutes.get(at)
        if before is not None:
            self._minutes[at] = _both(before, minute)
        else:  # a new dictionary, as another thread may go through the old one
            self._minutes = {each['at']: each for each in (
                *recent(self._minutes.values(), ended), minute)}

    def after(self, earlier: 'Iterable[Minute]', now: float,
              ) -> 'list[Minute]':
        """The last hour, with that of programs before this one."""
        own = self._minutes
        minutes = {each['at']: each for each in earlier}
        for at, minute in own.items():
            before = minutes.get(at)
            minutes[at] = minute if before is None else _both(before, minute)
        return recent(sorted(minutes.values(), key=_at), now)


def recent(minutes: 'Iterable[Minute]', now: float) -> 'list[Minute]':
    """Those of the hour before `now`, a time since the epoch.

    What lies in the future was noted before the clock was set.
    """
    last = int(now // 60)
    return [each for each in minutes if last - MINUTES < each['at'] <= last]


def _at(minute: 'Minute') -> int:
    return minute['at']


def _both(one: 'Minute', other: 'Minute') -> 'Minute':
    return {'at': one['at'], 'ticks': one['ticks'] + other['ticks'],
            'failed': one['failed'] + other['failed'],
            'longest': max(one['longest'], other['longest'])}
