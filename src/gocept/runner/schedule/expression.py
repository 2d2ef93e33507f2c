"""Cron expressions, and the moments that they name.

A moment is what a clock on the wall shows: a date and a time without a zone.
cronsim finds the moments. It is given no zone, as it would skip some of them
on days when a clock is moved by half an hour, or back to the day before; see
`schedule` for what zones do to moments.
"""

from collections.abc import Iterator
from datetime import datetime

from cronsim import CronSim, CronSimError

YEARS = 50
"""How far to look; 29 February is a given day of the week each 40 years."""

_SHORTCUTS = {
    '@yearly': '0 0 1 1 *', '@annually': '0 0 1 1 *',
    '@monthly': '0 0 1 * *', '@weekly': '0 0 * * 0',
    '@daily': '0 0 * * *', '@midnight': '0 0 * * *',
    '@hourly': '0 * * * *',
}

_FIELDS = {
    'minute': '0 to 59',
    'hour': '0 to 23',
    'day of the month': '1 to 31, L for the last one, or LW for the last one '
                        'from Monday to Friday',
    'month': '1 to 12, or jan to dec',
    'day of the week': '0 to 7, or sun to sat (fri-sun is 5-7), 5L for the '
                       'last Friday, or 5#2 for the second one',
}


class Expression:
    """Five fields, or a shortcut such as ``@daily``.

    ValueError, in one line, if cron would not understand `text`.
    """

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise ValueError(
                f'schedule: needs a cron expression, not {text!r}')
        fields = _SHORTCUTS.get(text.strip().lower(), text).split()
        if len(fields) != len(_FIELDS):
            raise ValueError(_needed(text, len(fields)))
        _check(text, fields)
        self.text = ' '.join(text.split())
        self.fields = ' '.join(fields)
        self.is_fixed = not any(
            field.startswith('*') for field in fields[:2])
        """Whether the minute and the hour are given, as for 02:30."""

    def __str__(self) -> str:
        return self.text

    def following(self, moment: datetime) -> Iterator[datetime]:
        """The moments after `moment`, in `YEARS` years."""
        for found in CronSim(self.fields, moment):
            if found.year > moment.year + YEARS:
                return
            yield found

    def preceding(self, moment: datetime) -> Iterator[datetime]:
        """The moments before `moment`, in `YEARS` years, the latest first."""
        for found in CronSim(self.fields, moment, reverse=True):
            if found.year < moment.year - YEARS:
                return
            yield found


def _needed(text: str, number: int) -> str:
    if text.lstrip().startswith('@'):
        return (f'schedule {text!r}: there is no such shortcut; there are '
                + ', '.join(_SHORTCUTS))
    hint = ('; there is none for seconds or years' if number > len(_FIELDS)
            else '')
    return (f'schedule {text!r}: needs five fields, {", ".join(_FIELDS)}, and '
            f'has {number}{hint}')


def _check(text: str, fields: list[str]) -> None:
    for number, (name, allowed) in enumerate(_FIELDS.items()):
        alone = ['*'] * len(fields)
        alone[number] = fields[number]
        if not _is_understood(alone):
            raise ValueError(f'schedule {text!r}: bad {name} '
                             f'{fields[number]!r}, needs {allowed}')
    if not _is_understood(fields):
        raise ValueError(never(text))


def _is_understood(fields: list[str]) -> bool:
    try:
        CronSim(' '.join(fields), datetime(2000, 1, 1))
    except (CronSimError, ValueError):  # a number with thousands of digits
        return False
    return True


def never(text: str) -> str:
    """The message about a schedule without any run."""
    return f'schedule {text!r}: names no time in the next {YEARS} years'
