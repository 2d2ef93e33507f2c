"""Time zones: what the clocks on the wall show at an instant.

An instant is a number of seconds since the epoch, as `time.time()` gives it. A
moment is what a clock shows: a `datetime` without a zone, whose `fold` is 1
when the clock shows it for the second time.
"""

import difflib
import time
import zoneinfo
from datetime import datetime, timedelta


class Zone:
    """A zone by its name; None for that of the system.

    The database of the system is asked first, then that of the distribution
    tzdata. ValueError, in one line, if neither has the zone.
    """

    def __init__(self, name: str | None) -> None:
        if not isinstance(name, str | None):
            raise ValueError(
                f'timezone: needs the name of a zone, not {name!r}')
        self.name = name
        # Without a tzinfo, `datetime` asks the C library.
        self._tzinfo = None if name is None else _named(name)
        try:
            self.clock(time.time())
        except ValueError as error:  # POSIX allows it, and Python does not
            raise ValueError(
                'timezone: the clock of this system ($TZ) is a day or more '
                'from UTC: name a zone') from error

    def clock(self, instant: float) -> datetime:
        """What the clock shows, together with the zone."""
        if self._tzinfo is None:
            return datetime.fromtimestamp(instant).astimezone()
        return datetime.fromtimestamp(instant, self._tzinfo)

    def moment(self, instant: float) -> datetime:
        """What the clock shows, in whole seconds."""
        return datetime.fromtimestamp(instant, self._tzinfo).replace(
            tzinfo=None, microsecond=0)

    def instants(self, moment: datetime) -> list[float]:
        """When the clock shows `moment`.

        There are none when the clock is put forward, and two when it is put
        back.
        """
        candidates = self._candidates(moment)
        return [instant for instant in sorted(set(candidates))
                if self.moment(instant) == moment]

    def repeated(self, moment: datetime) -> timedelta:
        """How much time the clock shows twice, if it does so at `moment`."""
        first, second = self._candidates(moment)
        return timedelta(seconds=max(0.0, second - first))

    def _candidates(self, moment: datetime) -> tuple[float, float]:
        there = moment.replace(tzinfo=self._tzinfo)
        return (there.replace(fold=0).timestamp(),
                there.replace(fold=1).timestamp())


def _named(name: str) -> zoneinfo.ZoneInfo:
    try:
        return zoneinfo.ZoneInfo(name)
    except (LookupError, ValueError, OSError) as error:
        # Its message would have several lines for some names.
        names = {each.lower(): each
                 for each in zoneinfo.available_timezones()}
        close = difflib.get_close_matches(name.lower(), names, 1)
        hint = (f'did you mean {names[close[0]]!r}?' if close
                else "an example is 'Europe/Berlin'")
        raise ValueError(
            f'there is no time zone {name!r} ({hint})') from error
