"""Workers as their house sees them, and as they see themselves."""

import os
import time
from typing import Any
from unittest import mock

from gocept.runner.house import census
from gocept.runner.house.census import Census, Resident
from gocept.runner.operation import directory, health, report, state, vitals
from gocept.runner.operation.numbers import Numbers
from gocept.runner.tests.house.houses import house_state, worker_state
from gocept.runner.tests.operation.states import StateCase, own_state


class CensusCase(StateCase):

    def setUp(self) -> None:
        super().setUp()
        self.census = Census()

    def put(self, place: str = 'run/nightly.json', **changes: Any) -> str:
        """Write a state of this process, changed somehow, and register it."""
        path = self.dir / place
        path.parent.mkdir(exist_ok=True)
        state.write(str(path), own_state(**changes))
        directory.register(str(path.parent))
        return str(path)

    def take(self, *workers: Any) -> list[Resident]:
        return self.census.take(house_state(*workers))

    def paths(self, *workers: Any) -> list[str | None]:
        """Where the states of these were found, below the directory."""
        return [each.found and os.path.relpath(each.found.path, self.dir)
                for each in self.take(*workers)]


class FindTests(CensusCase):

    def test_a_worker_is_known_by_its_process(self) -> None:
        self.put()
        self.put('other/nightly.json', pid=1)
        self.put('run/mail@shop.json', worker='mail', site='shop')
        self.assertEqual(
            ['run/nightly.json', 'run/mail@shop.json', None, None],
            self.paths(worker_state(), worker_state('mail', site='/shop/'),
                       worker_state('mail'), worker_state('nothing')))

    def test_nothing_is_registered(self) -> None:
        self.assertEqual([None], self.paths(worker_state()))

    def test_a_program_before(self) -> None:
        # Another installation has a worker of the same name.
        self.put('other/nightly.json', start=1)
        self.put('run/nightly.json', start=1)
        self.put('run/mail.json', worker='mail')
        waits = worker_state(phase='waiting', pid=None)
        self.assertEqual([None], self.paths(waits))
        self.assertEqual(
            ['run/nightly.json', 'run/mail.json'],
            self.paths(waits, worker_state('mail')))

    def test_the_program_that_was_there_last(self) -> None:
        self.put('run/nightly.json', start=1)
        self.assertEqual(['run/nightly.json'], self.paths(worker_state()))
        self.put('run/nightly.7.json', written=vitals.now())
        self.assertEqual(['run/nightly.json'], self.paths(
            worker_state(phase='pausing', pid=None)))
        os.unlink(self.dir / 'run/nightly.json')
        self.assertEqual([None], self.paths(
            worker_state(phase='pausing', pid=None)))


class ResidentTests(CensusCase):

    def one(self, written: dict[str, Any] | None = None, **changes: Any,
            ) -> Resident:
        if written is not None:
            self.put(**written)
            if changes.get('pid', 0) is None:
                self.take(worker_state())  # the census knows its file
        [resident] = self.take(worker_state(**changes))
        return resident

    def cells(self, resident: Resident) -> dict[str, str]:
        return dict(zip(report.TITLES, resident.row, strict=True))

    def test_one_that_runs(self) -> None:
        resident = self.one({'site': 'shop'}, site='shop')
        self.assertEqual((True, '', 'nightly@shop'), (
            resident.healthy, resident.tone, resident.name))
        self.assertEqual(resident.row, [*report.row(resident.found)])
        self.assertIn('waits', resident.sentence)

    def test_one_that_is_ill(self) -> None:
        resident = self.one({'boot': 'x'})
        self.assertEqual((False, 'ill'), (resident.healthy, resident.tone))
        self.assertIn('is dead', resident.sentence)

    def test_one_that_has_written_nothing_yet(self) -> None:
        for written in None, {'pid': 1, 'last_error': None}:
            with self.subTest(written):
                resident = self.one(written)
                self.assertEqual((True, '', 'nightly is running'), (
                    resident.healthy, resident.tone, resident.sentence))
                cells = self.cells(resident)
                self.assertEqual(('running', str(os.getpid()), '-'), (
                    cells['STATE'], cells['PID'], cells['CHILDREN']))

    def test_one_that_failed(self) -> None:
        error = {'tick': 3, 'time': time.time() - 61, 'error': 'ValueError: x'}
        resident = self.one({'last_error': error}, phase='pausing', pid=None,
                            failures=2, status=-9, due=time.time() + 30.9)
        cells = self.cells(resident)
        self.assertEqual(
            {'WORKER': 'nightly', 'PID': '-', 'STATE': 'pausing, 2 failed',
             'NEXT TICK': 'in 30 s', 'TICKS': '3', 'NOTE':
             'last time signal 9; 1 min 01 s ago, tick 3: ValueError: x'},
            {title: cells[title] for title in (
                'WORKER', 'PID', 'STATE', 'NEXT TICK', 'TICKS', 'NOTE')})
        self.assertEqual((False, 'ill', (
            'nightly waits to be started again after signal 9')), (
                resident.healthy, resident.tone, resident.sentence))

    def test_one_that_ended_well_and_starts_again(self) -> None:
        resident = self.one(phase='pausing', pid=None, status=0)
        self.assertEqual((True, '', '-'), (
            resident.healthy, resident.tone, self.cells(resident)['NOTE']))

    def test_one_that_is_given_up(self) -> None:
        resident = self.one(phase='given up', pid=None, failures=10, status=1)
        self.assertEqual((False, 'ill', (
            'nightly is given up: it has failed 10 times, after status 1')), (
                resident.healthy, resident.tone, resident.sentence))
        self.assertIn('failed once, after an unknown end', self.one(
            phase='given up', pid=None, failures=1).sentence)

    def test_those_that_have_nothing_to_do(self) -> None:
        for tone, changes in (
                ('', {'phase': 'waiting'}), ('', {'phase': 'starting'}),
                ('late', {'phase': 'waiting', 'failures': 1, 'status': 1}),
                ('over', {'phase': 'done', 'status': 0}),
                ('late', {'phase': 'done', 'status': 3}),
                ('over', {'phase': 'ended', 'status': 0})):
            with self.subTest(changes):
                resident = self.one(pid=None, **changes)
                self.assertEqual((True, tone), (
                    resident.healthy, resident.tone))
        self.assertEqual('ended 0', self.cells(resident)['STATE'])

    def test_doubts(self) -> None:
        # What was overdue may have begun, and is written a moment later.
        now = vitals.now()
        overdue = {'written': now, 'next_tick': {
            'clock': 'monotonic', 'at': now['monotonic'] - 11,
            'realtime': 0.0}}
        resident = self.one(overdue)
        self.assertEqual((True, 'late'), (resident.healthy, resident.tone))
        with mock.patch.object(
                census.time, 'monotonic',
                lambda: now['monotonic'] + health.SETTLED + 60):
            # The probe comes again.
            resident = self.one()
            self.assertEqual((False, 'ill'), (
                resident.healthy, resident.tone))

    def test_doubts_about_a_new_state(self) -> None:
        now = vitals.now()
        for instant in 0.0, 60.0:
            with mock.patch.object(census.time, 'monotonic',
                                   lambda: now['monotonic'] + instant):
                resident = self.one({
                    'written': vitals.now(), 'next_tick': {
                        'clock': 'monotonic', 'at': now['monotonic'] - 11,
                        'realtime': 0.0}})
            self.assertTrue(resident.healthy)

    def test_numbers(self) -> None:
        self.assertIsNone(self.one().numbers)
        children = [{'name': 'web', 'pid': 2, 'state': 'ready'}]
        tick = {'phase': 'tick', 'children': children}
        numbers = self.one(tick).numbers
        assert isinstance(numbers, Numbers)
        self.assertEqual((1, 3, True), (
            numbers.children, numbers.ticks['committed'],
            numbers.tick_started is not None))
        numbers = self.one(tick, phase='pausing', pid=None).numbers
        assert isinstance(numbers, Numbers)
        self.assertEqual((0, 3, None, None), (
            numbers.children, numbers.ticks['committed'],
            numbers.tick_started, numbers.next_tick))
