"""Loops whose clock is set, and whose machine is suspended.

The clock of this machine is that of others, too. So a loop has a clock of its
own, which goes on only when the loop waits for it.
"""

import contextlib
import os
import random
from collections.abc import Callable
from unittest import mock

from gocept.runner.events import TickCommitted
from gocept.runner.schedule import Schedule
from gocept.runner.tests.schedule.test_schedule import instant
from gocept.runner.tests.schedule.test_timetable import ScheduleCase
from gocept.runner.tests.test_events import subscribing

MINUTE, HOUR, DAY = 60, 3600, 86400

Step = Callable[[float, float], float]
"""What the clock shows next, from what it shows and what is waited for."""


def comes(now: float, at: float) -> float:
    """The time that the loop waits for comes."""
    return max(now, at)


def suspended(seconds: float) -> Step:
    """It comes while the machine is suspended, which then goes on."""
    return lambda now, at: max(now, at) + seconds


def put(seconds: float) -> Step:
    """Somebody puts the clock forward, or back, before the time comes."""
    return lambda now, at: now + seconds


class Clock:
    """What stands in for the clock of the system, and for its timerfd."""

    def __init__(self, now: str, *steps: Step) -> None:
        self.now = instant(now)
        self.steps = list(steps)
        self.end: Callable[[], object] = list
        self.waited: list[float] = []

    def time(self) -> float:
        """See ``time.time``."""
        return self.now

    def timerfd(self, at: float) -> int:
        """A descriptor that can be read after the next step, which is now."""
        self.waited.append(at)
        if self.steps:
            self.now = self.steps.pop(0)(self.now, at)
        else:
            self.end()
        faucet, sink = os.pipe()
        os.close(sink)
        return faucet


class ClockCase(ScheduleCase):

    expression, zone, missed = '30 2 * * *', 'Europe/Berlin', 'skip'

    def runs(self, now: str, *steps: Step,
             takes: float = 0) -> list[tuple[str, str]]:
        """Let the clock make these steps.

        Returns the runs that are done by then, and what the clock has shown
        when each of them began.
        """
        self.clock = clock = Clock(now, *steps)
        self.enterContext(mock.patch('time.time', clock.time))
        self.enterContext(self.waiting(clock))
        schedule = Schedule(self.expression, self.zone)
        begun: list[float] = []
        done: list[tuple[str, str]] = []

        def work() -> None:
            begun.append(clock.now)
            clock.now += takes

        def hear(event: object) -> None:
            if isinstance(event, TickCommitted):
                done.append((f'{schedule.clock(self.stored()):%d %H:%M}',
                             f'{schedule.clock(begun[-1]):%d %H:%M:%S}'))
        subscribing(self, hear)
        loop = self.scheduled(schedule, *[work] * 100, missed=self.missed)
        clock.end = loop.stop
        self.messages = self.quietly(loop)
        return done

    def waiting(self, clock: Clock) -> contextlib.AbstractContextManager:
        """Have timers wait for the clock."""
        return mock.patch('gocept.runner.poller.walltimer._timerfd',
                          clock.timerfd)


class ClockTests(ClockCase):

    def test_the_time_comes(self) -> None:
        self.assertEqual(
            [('10 02:30', '10 02:30:00'), ('11 02:30', '11 02:30:00')],
            self.runs('2026-06-10T01:00+02:00', comes, comes))

    def test_it_is_put_forward_behind_a_run(self) -> None:
        self.assertEqual(
            [('10 02:30', '10 05:00:00'), ('11 02:30', '11 02:30:00')],
            self.runs('2026-06-10T01:00+02:00', put(4 * HOUR), comes))

    def test_it_is_put_forward_less(self) -> None:
        self.assertEqual(
            [('10 02:30', '10 02:30:00')],
            self.runs('2026-06-10T01:00+02:00', put(HOUR), put(10), comes))

    def test_it_is_set_back_before_a_run(self) -> None:
        self.assertEqual(
            [('10 02:30', '10 02:30:00')],
            self.runs('2026-06-10T01:00+02:00', put(-HOUR), put(-10), comes))

    def test_it_is_set_back_behind_a_time_before(self) -> None:
        self.expression = '30 * * * *'
        self.assertEqual(
            [('09 22:30', '09 22:30:00'), ('09 23:30', '09 23:30:00')],
            self.runs('2026-06-10T01:00+02:00', put(-3 * HOUR), comes, comes))

    def test_it_is_set_back_behind_a_run_that_was_done(self) -> None:
        self.assertEqual(
            [('10 02:30', '10 02:30:00'), ('11 02:30', '11 02:30:00')],
            self.runs('2026-06-10T01:00+02:00', comes, put(-HOUR), comes))

    def test_it_is_set_back_by_days(self) -> None:
        self.assertEqual(
            [('10 02:30', '10 02:30:00'), ('11 02:30', '11 02:30:00')],
            self.runs('2026-06-10T01:00+02:00', comes, put(-7 * DAY), comes))
        [message] = self.messages
        self.assertIn('the clock was set back. The next run is due at '
                      '2026-06-11 02:30:00+02:00', message)

    def test_the_machine_is_suspended(self) -> None:
        self.assertEqual(
            [('10 02:30', '10 08:00:00'), ('11 02:30', '11 02:30:00')],
            self.runs('2026-06-10T01:00+02:00', suspended(5.5 * HOUR), comes))

    def test_the_machine_is_suspended_for_days(self) -> None:
        for self.missed in 'skip', 'once':
            self.assertEqual(
                [('13 02:30', '13 08:00:00'), ('14 02:30', '14 02:30:00')],
                self.runs('2026-06-10T01:00+02:00',
                          suspended(3 * DAY + 5.5 * HOUR), comes)[-2:])
            self.store(0)

    def test_the_machine_is_suspended_in_a_tick(self) -> None:
        self.assertEqual(
            [('10 02:30', '10 02:30:00'), ('12 02:30', '12 02:30:00')],
            self.runs('2026-06-10T01:00+02:00', comes, comes,
                      takes=30 * HOUR))

    def test_a_run_was_missed_in_a_tick(self) -> None:
        self.missed = 'once'
        self.assertEqual(
            [('10 02:30', '10 02:30:00'), ('11 02:30', '11 08:30:00'),
             ('12 02:30', '12 14:30:00')],
            self.runs('2026-06-10T01:00+02:00', comes,
                      takes=30 * HOUR)[:3])

    def test_zones_set_no_clock(self) -> None:
        self.assertEqual(
            [('28 02:30', '28 02:30:00'), ('29 03:00', '29 03:00:00'),
             ('30 02:30', '30 02:30:00')],
            self.runs('2026-03-28T01:00+01:00', comes, comes, comes))
        self.assertEqual(self.clock.waited, sorted({*self.clock.waited}))

    def test_any_steps(self) -> None:
        randomly = random.Random(18)
        self.expression = '*/20 1-4 * * *'
        schedule = Schedule(self.expression, self.zone)
        for _ in range(10):
            self.store(0)
            steps = [comes if randomly.random() < 0.5
                     else put(randomly.uniform(-DAY, DAY))
                     if randomly.random() < 0.7
                     else suspended(randomly.uniform(0, DAY))
                     for _ in range(20)]
            begin = '2026-10-23T12:00+02:00'
            done = self.runs_of_any(schedule, begin, steps)
            with self.subTest(done):
                names = [run for run, _ in done]
                self.assertEqual(names, sorted({*names}))  # none is done twice
                for run, start in done:
                    self.assertEqual(run, schedule.before(run))
                    self.assertLessEqual(run, start)
                # What was waited for, and came, was done.
                self.assertLessEqual({*self.came}, {*names})

    def runs_of_any(self, schedule: Schedule, begin: str, steps: list[Step],
                    ) -> list[tuple[float, float]]:
        """As `runs`, in seconds."""
        self.came: list[float] = []

        def noting(step: Step) -> Step:
            def take(now: float, at: float) -> float:
                if step is comes:
                    self.came.append(at)
                return step(now, at)
            return take
        clock = Clock(begin, *map(noting, steps))
        done: list[tuple[float, float]] = []
        begun: list[float] = []

        def hear(event: object) -> None:
            if isinstance(event, TickCommitted):
                done.append((self.stored(), begun[-1]))
        loop = self.scheduled(
            schedule, *[lambda: begun.append(clock.now)] * 100)
        clock.end = loop.stop
        with contextlib.ExitStack() as undo:
            undo.enter_context(mock.patch('time.time', clock.time))
            undo.enter_context(self.waiting(clock))
            subscribing(self, hear)
            self.quietly(loop)
        return done


class LookingTests(ClockTests):
    """The same where the system has no timerfd: the loop looks each second."""

    def waiting(self, clock: Clock) -> contextlib.AbstractContextManager:
        def refuse(at: float) -> int:
            os.close(clock.timerfd(at))
            raise NotImplementedError
        stack = contextlib.ExitStack()
        stack.enter_context(mock.patch(
            'gocept.runner.poller.walltimer._timerfd', refuse))
        stack.enter_context(mock.patch(
            'gocept.runner.poller.walltimer.LOOK', 0.0))
        return stack
