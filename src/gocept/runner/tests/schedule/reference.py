"""What cron means, once more: neither cronsim's way nor that of zoneinfo.

An expression is chosen as terms, whose values are written down beside the
text, so nothing parses it. All minutes of the days that match are put to the
clock of the C library, whose changes were looked for before.
"""

import contextlib
import datetime
import functools
import importlib.resources
import os
import random
import time
import zoneinfo
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from gocept.runner.schedule import Schedule

MINUTE, HOUR, DAY = 60, 3600, 86400

MANY = 500
"""Runs in ten years: not all of more are compared."""

WINDOWS = {10: DAY * 3 // 2, 150: 2 * HOUR, 24 * 60: HOUR + 5 * MINUTE}
"""How long before and after a change, for so many runs at a day."""

DECADES = {
    # The last Sunday of March and of October.
    'Europe/Berlin': 2016,
    'America/New_York': 2024,
    # By half an hour.
    'Australia/Lord_Howe': 2018,
    # In 2011 without 30 December.
    'Pacific/Apia': 2007,
    # By two hours, and back; at other times of the year for Ramadan.
    'Antarctica/Troll': 2016,
    'Africa/Casablanca': 2014,
    # At midnight.
    'America/Havana': 2016,
    'America/Santiago': 2013,
    'America/Sao_Paulo': 2009,
    'Africa/Cairo': 2015,
    'Asia/Beirut': 2016,
    'Asia/Kathmandu': 2016,
    'UTC': 2016,
}
"""Zones, and the first of the ten years that are looked at."""

NAMES = {
    'month': ['jan', 'feb', 'mar', 'apr', 'may', 'jun', 'jul', 'aug', 'sep',
              'oct', 'nov', 'dec'],
    'weekday': ['sun', 'mon', 'tue', 'wed', 'thu', 'fri', 'sat'],
}

FIELDS = {'minute': (0, 59), 'hour': (0, 23), 'day': (1, 31),
          'month': (1, 12), 'weekday': (0, 7)}

LAST, LAST_WEEKDAY = 'L', 'LW'


class Change(NamedTuple):
    """From `begin` until `end`, the clock is `offset` seconds ahead of UTC."""

    begin: int
    end: int
    offset: int


class Field(NamedTuple):
    """A part of an expression, and what matches it."""

    text: str
    values: frozenset[object]

    @property
    def is_wild(self) -> bool:
        """Whether it starts with a star."""
        return self.text.startswith('*')


def chosen(kind: str, randomly: random.Random) -> Field:
    """Any field of that kind."""
    if randomly.random() < 0.3:
        return Field('*', frozenset(range(FIELDS[kind][0],
                                          FIELDS[kind][1] + 1)))
    terms = [_term(kind, randomly)
             for _ in range(randomly.choice([1, 1, 1, 2, 3]))]
    return Field(','.join(text for text, _ in terms),
                 frozenset().union(*(values for _, values in terms)))


def _term(kind: str, randomly: random.Random,
          ) -> tuple[str, frozenset[object]]:
    low, high = FIELDS[kind]
    one = randomly.randint(low, high)
    other = randomly.randint(low, high)
    first, last = min(one, other), max(one, other)
    step = randomly.choice([1, 2, 3, 5, 7, 10, 15, 30])
    shape = randomly.choice(
        ['one', 'one', 'range', 'steps', 'from', 'all', 'special'])
    values: Sequence[object]
    if shape == 'range':
        text, values = f'{first}-{last}', range(first, last + 1)
        if last != 7:  # 'sun' is 0
            text = (f'{_shown(kind, first, randomly)}-'
                    f'{_shown(kind, last, randomly)}')
    elif shape == 'steps' and first < last:
        text = f'{first}-{last}/{step}'
        values = range(first, last + 1, step)
    elif shape == 'from':
        text, values = f'{one}/{step}', range(one, high + 1, step)
    elif shape == 'all':
        text, values = f'*/{step}', range(low, high + 1, step)
    elif shape == 'special' and kind == 'day':
        text = randomly.choice([LAST, LAST_WEEKDAY])
        values = [text]
    elif shape == 'special' and kind == 'weekday':
        number = randomly.choice([1, 2, 3, 4, 5, LAST])
        sign = '' if number == LAST else '#'
        text, values = f'{one}{sign}{number}', [(one % 7, number)]
    else:
        text, values = _shown(kind, one, randomly), [one]
    return text, frozenset(values)


def _shown(kind: str, value: int, randomly: random.Random) -> str:
    """A number or a name, in any case."""
    if kind not in NAMES or randomly.random() < 0.5:
        return str(value)
    name = NAMES[kind][(value - FIELDS[kind][0]) % len(NAMES[kind])]
    return randomly.choice([name, name.upper(), name.title()])


class Reference:
    """An expression in a zone, and all its runs."""

    def __init__(self, randomly: random.Random) -> None:
        self.zone = randomly.choice([*DECADES])
        self.is_of_system = randomly.random() < 0.25
        """Whether the schedule asks the C library for the zone as well."""
        self.minute, self.hour, self.day, self.month, self.weekday = (
            chosen(kind, randomly) for kind in FIELDS)
        self.is_fixed = not (self.minute.is_wild or self.hour.is_wild)
        self.times = sorted(
            HOUR * hour + MINUTE * minute
            for hour in self.hour.values for minute in self.minute.values
            if isinstance(hour, int) and isinstance(minute, int))

    def __str__(self) -> str:
        return ' '.join(field.text for field in (
            self.minute, self.hour, self.day, self.month, self.weekday))

    def matches(self, day: datetime.date) -> bool:
        """Whether there are runs on that day, if the clock shows it."""
        if day.month not in self.month.values:
            return False
        next_week = day + datetime.timedelta(7)
        weekday = day.isoweekday() % 7
        by_weekday = not self.weekday.values.isdisjoint(
            [weekday, weekday or 7, (weekday, (day.day - 1) // 7 + 1),
             (weekday, LAST if next_week.month != day.month else None)])
        by_day = not self.day.values.isdisjoint(
            [day.day, *_specials(day)])
        if self.day.is_wild or self.weekday.is_wild:
            return by_day and by_weekday
        return by_day or by_weekday

    def runs(self, begin: int, end: int) -> list[int]:
        """The runs from `begin` on and before `end`, both instants."""
        changes = clock(self.zone)
        found: set[int] = set()
        # A skipped day has its runs when the clock goes on.
        for number in range(begin // DAY - 2, end // DAY + 2):
            day = datetime.date.fromordinal(_EPOCH + number)
            if not self.matches(day):
                continue
            near = _near(self.zone, number)
            for time_of_day in self.times:
                shown = number * DAY + time_of_day
                instants = [
                    shown - change.offset for change in near
                    if change.begin <= shown - change.offset < change.end]
                if not self.is_fixed:
                    found.update(instants)
                elif instants:
                    found.add(min(instants))
                else:
                    found.add(next(
                        change.begin for change in changes
                        if change.begin + change.offset > shown))
        return sorted(run for run in found if begin <= run < end)


_EPOCH = datetime.date(1970, 1, 1).toordinal()


def _specials(day: datetime.date) -> Iterator[str]:
    """Whether it is the last day of its month, or the last working one."""
    rest = [day + datetime.timedelta(number) for number in range(1, 4)]
    left = [each for each in rest if each.month == day.month]
    if not left:
        yield LAST
    if day.isoweekday() < 6 and (
            not left or (len(left) < 3 and left[0].isoweekday() == 6)):
        yield LAST_WEEKDAY


@functools.cache
def _near(zone: str, number: int) -> list[Change]:
    """What the clock may be ahead of UTC on that day, in its own time."""
    return [change for change in clock(zone)
            if change.begin - DAY < (number + 1) * DAY
            and change.end + DAY > number * DAY]


@functools.cache
def clock(zone: str) -> list[Change]:
    """How far the clock is ahead of UTC, as the C library tells it."""
    begin = (min(DECADES.values()) - 1971) * 365 * DAY
    end = int(time.time()) + 52 * 366 * DAY
    with clock_set_to(zone):
        marks = [(begin, _offset(begin))]
        for instant in range(begin, end, 4 * DAY):
            if _offset(instant) != marks[-1][1]:
                low, high = instant - 4 * DAY, instant
                while high - low > 1:
                    middle = (low + high) // 2
                    if _offset(middle) == marks[-1][1]:
                        low = middle
                    else:
                        high = middle
                marks.append((high, _offset(high)))
    ends = [mark for mark, _ in marks[1:]] + [end]
    return [Change(mark, until, offset)
            for (mark, offset), until in zip(marks, ends, strict=True)]


def _offset(instant: int) -> int:
    return time.localtime(instant).tm_gmtoff


@contextlib.contextmanager
def clock_set_to(zone: str) -> Iterator[None]:
    """Have the C library of this process show the time of a zone."""
    before = os.environ.get('TZ')
    os.environ['TZ'] = f':{_file(zone)}'
    try:
        time.tzset()
        yield
    finally:
        os.environ.pop('TZ')
        if before is not None:
            os.environ['TZ'] = before
        time.tzset()


def _file(zone: str) -> Path:
    """The same file that zoneinfo reads."""
    places = [Path(each) for each in zoneinfo.TZPATH]
    places.append(Path(str(importlib.resources.files('tzdata'))) / 'zoneinfo')
    return next(place / zone for place in places if (place / zone).exists())


def decade(zone: str) -> tuple[int, int]:
    """The first instant of the ten years, and the one after the last."""
    year = DECADES[zone]
    begin, end = (
        int(datetime.datetime(each, 1, 1, tzinfo=datetime.UTC).timestamp())
        for each in (year, year + 10))
    return begin, end


def windows(reference: Reference, randomly: random.Random,
            ) -> list[tuple[int, int]]:
    """The ten years, if there are few runs.

    Else the time around each change of the clock in these years, and as much
    at some other instants.
    """
    begin, end = decade(reference.zone)
    days = sum(reference.matches(datetime.date.fromordinal(_EPOCH + number))
               for number in range(begin // DAY, begin // DAY + 365))
    if 10 * days * len(reference.times) <= MANY:
        return [(begin, end)]
    half = next(seconds for number, seconds in WINDOWS.items()
                if len(reference.times) <= number)
    centers = [change.begin for change in clock(reference.zone)
               if begin < change.begin < end]
    centers += [randomly.randrange(begin, end) for _ in range(2)]
    return [(center - half, center + half) for center in centers]


def compare(reference: Reference, randomly: random.Random) -> int:
    """Let a schedule find all runs, forwards and backwards.

    Returns the number of runs; AssertionError if they are not the same.
    """
    if reference.is_of_system:
        with clock_set_to(reference.zone):
            return _compare(reference, None, randomly)
    return _compare(reference, reference.zone, randomly)


def _compare(reference: Reference, zone: str | None, randomly: random.Random,
             ) -> int:
    try:
        schedule = Schedule(str(reference), zone)
    except ValueError as error:
        now = int(time.time())
        if 'names no time' not in str(error) or reference.runs(
                now + DAY, now + 50 * 365 * DAY):
            raise AssertionError(f'{reference}: {error}') from error
        return 0
    number = 0
    for begin, end in windows(reference, randomly):
        expected = reference.runs(begin, end)
        number += len(expected)
        _check(reference, expected, [*_forwards(schedule, begin, end)])
        _check(reference, expected, [*_backwards(schedule, begin, end)][::-1])
    return number


def _forwards(schedule: Schedule, begin: int, end: int) -> Iterator[float]:
    instant = schedule.after(begin - 1)
    while instant < end:
        yield instant
        instant = schedule.after(instant)


def _backwards(schedule: Schedule, begin: int, end: int) -> Iterator[float]:
    instant = schedule.before(end - 1)
    while instant is not None and instant >= begin:
        yield instant
        instant = schedule.before(instant - 1)


def _check(reference: Reference, expected: Sequence[float],
           found: Sequence[float]) -> None:
    wrong = {*expected} ^ {*found}
    if wrong or len(found) != len(expected):
        examples = [
            f'{datetime.datetime.fromtimestamp(each, datetime.UTC)} '
            f'{"missing" if each in expected else "too much"}'
            for each in sorted(wrong)[:5]]
        raise AssertionError(
            f'{str(reference)!r} in {reference.zone}: {", ".join(examples)}')
