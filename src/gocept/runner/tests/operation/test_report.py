"""How workers are, for a terminal and for a page."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any
from unittest import mock

from gocept.runner.operation import directory, report, state, vitals
from gocept.runner.tests.operation.states import StateCase, facts, own_state
from gocept.runner.tests.operation.states import state as state_of


class ReportTestCase(StateCase):

    def put(self, path: str = 'run/nightly.json', **changes: Any) -> str:
        """Write a state of this process, changed somehow."""
        place = self.dir / path
        place.parent.mkdir(exist_ok=True)
        state.write(str(place), own_state(**changes))
        return str(place)


class WorkerTests(ReportTestCase):

    @contextlib.contextmanager
    def worker(self, process: vitals.Process | None = vitals.Process('S', 7),
               **changes: Any) -> Iterator[report.Worker]:
        """A worker at the moment that `facts` tell of."""
        with (mock.patch.object(state, 'read',
                                lambda path: state_of(**changes)),
              mock.patch.object(vitals, 'facts_about',
                                lambda pid: facts(process))):
            yield report.Worker('/run/nightly.json')

    def test_a_row(self) -> None:
        with self.worker() as worker:
            self.assertEqual(
                dict(zip(report.TITLES, report.row(worker), strict=True)), {
                    'WORKER': 'nightly', 'PID': '100', 'STATE': 'waiting',
                    'LAST TICK': '40 s ago, 0.50 s',
                    'NEXT TICK': 'in 1 min 00 s', 'TICKS': '3', 'FAILED': '0',
                    'CHILDREN': '0', 'MEMORY': '1.0 MiB', 'NOTE': '-'})

    def test_a_sentence_has_what_it_was_told(self) -> None:
        # Whoever shows it knows which characters are harmful there.
        with self.worker(worker='\x1b<b>') as worker:
            self.assertEqual(
                '\x1b<b> (pid 100) waits 1 min 00 s for its next tick',
                report.sentence(worker))

    def test_tones(self) -> None:
        tick = {'phase': 'tick', 'next_tick': None}
        for tone, process, changes in (
                ('', 'S', {}), ('late', 'S', {'failures': 1}),
                ('late', 'S', tick), ('ill', 'T', {}), ('ill', 'Z', {}),
                ('over', 'Z', {'phase': 'ended', 'status': 0}),
                ('ill', 'Z', {'phase': 'ended', 'status': 1})):
            with self.subTest(tone=tone, changes=changes), self.worker(
                    vitals.Process(process, 7), **changes) as worker:
                self.assertEqual(tone, worker.tone)

    def test_the_tone_of_doubt(self) -> None:
        changes = state_of()
        with self.worker(written=changes['started'], next_tick={
                'clock': 'monotonic', 'realtime': 0.0,
                'at': facts().now['monotonic'] - 11}) as worker:
            self.assertEqual('late', worker.tone)
            worker.is_settled = True
            self.assertEqual('ill', worker.tone)

    def test_what_cannot_be_read(self) -> None:
        worker = report.Worker(str(self.dir / 'missing'))
        self.assertEqual(('ill', False, f'{self.dir}/missing is not there'), (
            worker.tone, worker.healthy, report.sentence(worker)))
        self.assertEqual(len(report.TITLES), len(report.row(worker)))


class FindTests(ReportTestCase):

    def test_what_is_registered(self) -> None:
        for path in 'run/b.json', 'run/a.json', 'other/a.json':
            name = os.path.basename(path).removesuffix('.json')
            self.put(path, worker=name)
        (self.dir / 'run' / 'no state').write_text('x')
        directory.register(str(self.dir / 'run'))
        directory.register(str(self.dir / 'other' / 'a.json'))
        self.assertEqual(
            [('a', 'other'), ('a', 'run'), ('b', '')], sorted(
                (each.name, os.path.basename(each.place))
                for each in report.find()))

    def test_paths(self) -> None:
        path = self.put()
        for paths in [path], [os.path.dirname(path)], [path, path]:
            self.assertEqual([path], [
                each.path for each in report.find(paths)])

    def test_nothing_there(self) -> None:
        (self.dir / 'run').mkdir()
        for paths, message in (
                ([], 'no worker of this user has registered'),
                ([str(self.dir / 'run')], 'there is no state of a worker in'),
                ([str(self.dir / 'gone')], 'gone is not there')):
            with self.subTest(paths), self.assertRaisesRegex(
                    report.NothingFound, message):
                report.find(paths)

    def test_a_directory_that_cannot_be_read(self) -> None:
        directory.register(str(self.dir / 'home'))
        self.enterContext(mock.patch('os.listdir', side_effect=PermissionError(
            13, 'Permission denied')))
        [worker] = report.find()
        self.assertEqual('cannot be read: Permission denied', worker.problem)
        with self.assertRaisesRegex(report.NothingFound, 'cannot be read'):
            report.find([str(self.dir / 'home')])
