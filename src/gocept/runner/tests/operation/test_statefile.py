"""Where the state of a worker is written to."""

import os
import pathlib
import shutil
import subprocess
import sys
from types import SimpleNamespace
from typing import Any
from unittest import mock

from gocept.runner.errors import UsageError
from gocept.runner.operation import directory, state, statefile
from gocept.runner.operation.asked import Asked
from gocept.runner.operation.place import Place
from gocept.runner.operation.statefile import StateFile
from gocept.runner.operation.vitals import process
from gocept.runner.tests.operation.states import StateCase, own_state
from gocept.runner.tests.support import TestCase


class StateFileTestCase(StateCase):

    def find(self, asked: Asked, worker: str = 'nightly',
             site: str | None = 'shop') -> str | None:
        """The path that is chosen, below the directory."""
        options: Any = SimpleNamespace()
        with mock.patch.object(
                statefile, 'place_of',
                lambda options: Place(str(self.dir), 'Data.fs.')):
            file = StateFile.of(worker, site, options, asked)
        return (None if file is None
                else os.path.relpath(file.path, self.dir))


class ChoiceTests(StateFileTestCase):

    def test_where_it_is(self) -> None:
        path, run_dir = str(self.dir / 'x'), str(self.dir / 'run')
        for asked, expected in (
                (Asked(is_command=True), 'Data.fs.state/nightly@shop.json'),
                (Asked(), None),
                (Asked(is_command=True, dry_run=True), None),
                (Asked(state=path, run_dir=run_dir, dry_run=True), 'x'),
                (Asked(run_dir=run_dir), 'run/nightly@shop.json'),
                (Asked(run_dir=run_dir, is_command=True, dry_run=True),
                 'run/nightly@shop.json')):
            with self.subTest(asked):
                self.assertEqual(expected, self.find(asked))

    def test_what_is_no_file(self) -> None:
        os.symlink(os.devnull, self.dir / 'link')
        for path in os.devnull, str(self.dir / 'link'), str(self.dir):
            with self.subTest(path), self.assertRaisesRegex(
                    UsageError, '^--state .*: is no plain file; '):
                self.find(Asked(state=path))

    def test_the_variable(self) -> None:
        os.environ[directory.VARIABLE] = str(self.dir / 'env')
        self.assertEqual('env/nightly@shop.json', self.find(Asked()))
        self.assertEqual('run/nightly@shop.json', self.find(
            Asked(run_dir=str(self.dir / 'run'))))

    def test_no_place(self) -> None:
        with (mock.patch.object(statefile, 'place_of',
                                side_effect=ValueError('no home')),
              self.assertLogs('gocept.runner.operation', 'WARNING') as log):
            self.assertIsNone(StateFile.of(
                'x', None, mock.Mock(), Asked(is_command=True)))
        self.assertIn('no home; or give --state or --run-dir', log.output[0])


class OpenTests(StateFileTestCase):

    def file(self, **keywords: Any) -> StateFile:
        return StateFile(str(self.dir / 'run' / 'nightly.json'), 'nightly',
                         None, **keywords)

    def put(self, name: str = 'nightly.json', **changes: Any) -> pathlib.Path:
        """Write a state there."""
        (self.dir / 'run').mkdir(exist_ok=True)
        path = self.dir / 'run' / name
        state.write(str(path), own_state(**changes))
        return path

    def other(self) -> dict[str, Any]:
        """What the state of another process says, which lives."""
        other = subprocess.Popen(
            [sys.executable, '-I', '-S', '-c', 'input()'],
            stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.addCleanup(other.communicate)
        found = process(other.pid)
        assert found is not None
        return {'pid': other.pid, 'start': found.start}

    def test_the_directory_is_made_and_registered(self) -> None:
        self.file().open()
        self.assertTrue((self.dir / 'run').is_dir())
        self.assertEqual([str(self.dir / 'run')], directory.registered())

    def test_a_file_that_was_asked_for_is_registered_itself(self) -> None:
        path = self.put()
        self.file(is_fixed=True).open()
        self.assertEqual([str(path)], directory.registered())

    def test_the_state_of_a_dead_one_is_replaced(self) -> None:
        path = self.put(start=1)
        file = self.file()
        file.open()
        self.assertEqual(str(path), file.path)

    def test_what_was_there_before(self) -> None:
        for changes, expected in (
                ({'start': 1, 'tick': 7}, 7), ({'tick': 8, 'phase': 'ended'},
                                               8), ({'worker': 'x'}, None)):
            with self.subTest(changes):
                self.put(**changes)
                file = self.file(is_fixed=True)
                file.open()
                self.assertEqual(
                    expected, file.before and file.before['tick'])

    def test_another_instance(self) -> None:
        self.put(**self.other())
        file = self.file()
        file.open()
        self.assertIsNone(file.before)
        self.assertEqual(f'nightly.{os.getpid()}.json',
                         os.path.basename(file.path))

    def test_another_instance_that_starts_at_the_same_moment(self) -> None:
        other = self.other()
        for has_written in False, True:
            with self.subTest(has_written=has_written):
                file = self.file()
                file.open()
                if has_written:
                    self.assertTrue(file.write(own_state()))
                path = self.put(**other)
                self.assertTrue(file.write(own_state()))
                self.assertEqual(other['pid'], state.read(str(path))['pid'])
                self.assertEqual(os.getpid(), state.read(str(
                    path.with_suffix(f'.{os.getpid()}.json')))['pid'])
                shutil.rmtree(self.dir / 'run')

    def test_an_earlier_run_in_the_same_process(self) -> None:
        path = self.put(phase='ended')
        file = self.file()
        file.open()
        self.assertTrue(file.write(own_state()))
        self.assertEqual(str(path), file.path)

    def test_files_of_other_instances_that_have_died(self) -> None:
        other = self.other()
        for name, changes in (
                ('nightly.1.json', {'start': 1}), ('nightly.2.json', other),
                ('nightly.3.json', {'start': 1, 'worker': 'nightly.3'}),
                ('nightly.4.json', {'namespaces': 'of a container'}),
                ('nightly.x.json', {'start': 1})):
            self.put(name, **changes)
        self.file().open()
        self.assertEqual(
            ['nightly.2.json', 'nightly.3.json', 'nightly.4.json',
             'nightly.x.json'],
            sorted(os.listdir(self.dir / 'run')))

    def test_a_file_that_was_asked_for_is_used(self) -> None:
        other = self.other()
        path = self.put(**other)
        file = self.file(is_fixed=True)
        with self.assertLogs('gocept.runner.operation', 'WARNING') as log:
            file.open()
        self.assertEqual(str(path), file.path)
        self.assertIn(f'has the state of process {other["pid"]}',
                      log.output[0])

    def test_a_directory_that_cannot_be_made(self) -> None:
        (self.dir / 'run').write_text('')
        file = self.file()
        file.open()
        with self.assertLogs('gocept.runner.operation', 'WARNING') as log:
            for _ in range(2):
                self.assertFalse(file.write(own_state()))
        self.assertEqual(1, len(log.output))


class ProgramTests(TestCase):
    """Workers of a command line."""

    SCRIPT = '''\
        import sys, gocept.runner
        @gocept.runner.once()
        def nightly():
            raise SystemExit(3)
        sys.exit(nightly())
        '''

    def run_program(self, *args: str) -> int:
        self.zope_conf()
        return self.program(self.SCRIPT, *args, environment={
            'XDG_STATE_HOME': str(self.dir / 'home')}).end()

    def test_the_state_beside_the_database(self) -> None:
        self.assertEqual(3, self.run_program())
        found = state.read(f'{self.dir}/Data.fs.state/nightly.json')
        self.assertEqual(('ended', 3, None), (
            found['phase'], found['status'], found['site']))

    def test_a_file(self) -> None:
        self.run_program('--state', 'x.state')
        self.assertEqual(3, state.read(f'{self.dir}/x.state')['status'])
        self.assertFalse((self.dir / 'Data.fs.state').exists())

    def test_what_is_no_file_is_not_replaced(self) -> None:
        os.mkfifo(self.dir / 'null')
        self.assertEqual(2, self.run_program('--state', 'null'))
        self.assertFalse((self.dir / 'null').is_file())

    def test_a_link_stays(self) -> None:
        os.symlink('x.state', self.dir / 'link')
        self.run_program('--state', 'link')
        self.assertTrue((self.dir / 'link').is_symlink())
        self.assertEqual(3, state.read(f'{self.dir}/x.state')['status'])

    def test_a_worker_with_a_long_name(self) -> None:
        self.zope_conf()
        process = self.program(
            self.SCRIPT.replace('def nightly', f'def {"x" * 300}').replace(
                'nightly()', f'{"x" * 300}()').replace('once()', 'once('
                                                       'lock=True)'),
            environment={'XDG_STATE_HOME': str(self.dir / 'home')})
        self.assertEqual(3, process.end())
        [name] = os.listdir(self.dir / 'Data.fs.state')
        self.assertEqual(3, state.read(
            f'{self.dir}/Data.fs.state/{name}')['status'])

    def test_a_dry_run_has_none(self) -> None:
        self.run_program()  # as a dry run makes no database
        shutil.rmtree(self.dir / 'Data.fs.state')
        self.run_program('--dry-run')
        self.assertFalse((self.dir / 'Data.fs.state').exists())
