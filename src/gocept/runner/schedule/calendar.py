"""A cron expression as systemd writes it, for a timer.

See systemd.time(7), Calendar Events. systemd combines days of the month with
days of the week by "and" alone, so one expression may need several lines.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import datetime
from typing import NamedTuple

from cronsim import CronSim

from gocept.runner.schedule.expression import Expression

_WEEKDAYS = 'Mon', 'Tue', 'Wed', 'Thu', 'Fri', 'Sat', 'Sun'

_ALL_DAYS = frozenset(range(1, 32))

_ALL_WEEKDAYS = frozenset(range(1, 8))


class _Days(NamedTuple):
    """Some days of a month; all of the three conditions hold."""

    weekdays: frozenset[int] = _ALL_WEEKDAYS
    days: frozenset[int] = _ALL_DAYS
    last: str = ''
    """What systemd writes for days that are counted from the end."""

    def and_(self, other: '_Days') -> '_Days':
        days, last = self.days & other.days, self.last or other.last
        if last and (days != _ALL_DAYS or (self.last and other.last)):
            raise ValueError
        return _Days(self.weekdays & other.weekdays, days, last)


def on_calendar(expression: str, timezone: str | None = None) -> list[str]:
    """The values of ``OnCalendar=`` that name the same times.

    ValueError, in one line, if systemd has no words for them, or if this is
    no cron expression. Where clocks are changed, systemd has rules of its own.
    """
    sim = CronSim(Expression(expression).fields, datetime(2000, 1, 1))
    monthdays = list(_days_of_month(sim.days))
    weekdays = list(_days_of_week(sim.weekdays))
    try:
        found = ([left.and_(right) for left in monthdays for right in weekdays]
                 if sim.day_and else [*monthdays, *weekdays])
    except ValueError as error:
        raise ValueError(
            f'schedule {expression!r}: a timer of systemd cannot count days '
            'from the end of a month and from its beginning together',
        ) from error
    months = _numbers(sim.months, range(1, 13))
    clock = f'{_numbers(sim.hours, range(24))}:' + _numbers(
        sim.minutes, range(60)) + ':00'
    return [' '.join(filter(None, (
        _names(days.weekdays), f'*-{months}{_days(days)}', clock, timezone)))
        for days in found if days.weekdays and days.days]


def _days_of_month(days: Collection[int]) -> Iterator[_Days]:
    numbers = frozenset(days) & _ALL_DAYS
    if numbers:
        yield _Days(days=numbers)
    if CronSim.LAST in days:
        yield _Days(last='01')
    if CronSim.LAST_WEEKDAY in days:
        yield _Days(frozenset(range(1, 6)), last='01')
        yield _Days(frozenset([5]), last='02,03')  # before the weekend


def _days_of_week(days: Iterable[int | tuple[int, int]]) -> Iterator[_Days]:
    plain = frozenset(day or 7 for day in days if isinstance(day, int))
    if plain:
        yield _Days(plain)
    for day in days:
        if isinstance(day, tuple):
            weekdays = frozenset([day[0] or 7])
            if day[1] == CronSim.LAST:
                yield _Days(weekdays, last='07/1')
            else:
                first = 7 * day[1] - 6
                yield _Days(weekdays, frozenset(range(first, first + 7))
                            & _ALL_DAYS)


def _days(days: _Days) -> str:
    return f'~{days.last}' if days.last else (
        f'-{_numbers(days.days, range(1, 32))}')


def _numbers(numbers: Collection[int], full: range) -> str:
    """As systemd writes them: ``*``, or ``01..05,07``."""
    return '*' if len(numbers) == len(full) else ','.join(
        _ranges(numbers, '{:02}'.format))


def _names(weekdays: Collection[int]) -> str:
    return '' if len(weekdays) == len(_WEEKDAYS) else ','.join(
        _ranges(weekdays, lambda day: _WEEKDAYS[day - 1]))


def _ranges(numbers: Collection[int], text: Callable[[int], str],
            ) -> Iterator[str]:
    for first in sorted(numbers):
        if first - 1 in numbers:
            continue
        last = first
        while last + 1 in numbers:
            last += 1
        yield (text(first) if first == last
               else f'{text(first)}..{text(last)}')
