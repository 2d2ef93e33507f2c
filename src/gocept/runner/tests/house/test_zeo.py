"""The ZEO server as a part of a house, which the test is."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import textwrap
import unittest
from collections.abc import Callable
from typing import Any
from unittest import mock

from ZODB import DB
from ZODB.FileStorage import FileStorage

from gocept.runner.boot.claim import Claim, claim_of, holder, socket_of
from gocept.runner.errors import RunnerError
from gocept.runner.house import zeo
from gocept.runner.house.zeo import ZEO
from gocept.runner.poller import Poller
from gocept.runner.tests.house.zeos import Server, commit, connected, root_of
from gocept.runner.tests.support import DEADLINE
from gocept.runner.waits.deadline import Deadline


class Rounds(Poller):
    """Its wait ends when it has called somebody."""

    def register(self, source: Any, callback: Any = None) -> None:
        def call(*args: object) -> None:
            callback(*args)
            self.wakeup()
        super().register(source, callback and call)


class House:
    """See `Premises`."""

    def __init__(self, config: pathlib.Path) -> None:
        self.poller = Rounds()
        self.config = str(config)
        self.directory = str(config.parent)
        self.told: list[str] = []
        self.failure: RunnerError | None = None

    def state(self) -> Any:
        raise NotImplementedError

    def tell(self, name: str, text: str) -> None:
        self.told.append(f'{name} {text}')

    def fail(self, error: RunnerError) -> None:
        self.failure = self.failure or error

    def wakeup(self) -> None:
        self.poller.wakeup()

    def run(self, over: Callable[[], object]) -> None:
        """Wait for events until it is over."""
        deadline = Deadline(DEADLINE)
        while not over():
            assert not deadline.passed, self.told
            self.poller.poll(deadline.left())


class PartTestCase(unittest.TestCase):

    def setUp(self) -> None:
        self.directory = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.directory)
        self.path = self.directory / 'Data.fs'
        self.logs = self.enterContext(
            self.assertLogs('gocept.runner.house', 'INFO'))
        zeo.log.info('The test begins')

    def begin(self, text: str | None = None, **options: Any) -> ZEO:
        """Start the part of a house with this zope.conf."""
        config = self.directory / 'zope.conf'
        config.write_text(textwrap.dedent(text or f'''
            <zodb>
              <filestorage>
                path {self.path}
              </filestorage>
            </zodb>
            '''))
        self.house = House(config)
        self.addCleanup(self.house.poller.close)
        part = ZEO(**options)
        self.addCleanup(self.end, part)
        part.start(self.house)
        return part

    def end(self, part: ZEO) -> None:
        if not part.ended:
            part.stop(Deadline(DEADLINE))
            self.house.run(lambda: part.ended)

    def serve(self, text: str | None = None, **options: Any) -> ZEO:
        """Begin, and wait until it is ready."""
        part = self.begin(text, **options)
        self.house.run(lambda: part.ready or self.house.failure)
        self.assertIsNone(self.house.failure)
        return part

    def fail_to_serve(self, text: str | None = None, **options: Any,
                      ) -> tuple[str, int]:
        """Begin, and wait for the failure: the text and the status."""
        part = self.begin(text, **options)
        self.house.run(lambda: self.house.failure)
        self.assertFalse(part.ready)
        self.end(part)
        error = self.house.failure
        assert error is not None
        return str(error), error.status


class ServingTests(PartTestCase):

    def test_from_the_start_to_the_end(self) -> None:
        part = self.serve()
        self.assertEqual('zeo', part.name)
        self.assertIn(
            f'Serving {self.path} on {socket_of(str(self.path))}',
            self.logs.output[-1])
        self.assertIn(f'Created a new, empty database: {self.path}',
                      self.house.told[0])
        self.assertEqual(os.getpid(), holder(str(self.path)).pid)
        with contextlib.closing(connected(self.path)) as database:
            commit(database, number=1)
        self.end(part)
        self.assertFalse(part.ready)
        for path in claim_of, socket_of:
            self.assertFalse(os.path.exists(path(str(self.path))))
        with contextlib.closing(DB(str(self.path))) as database:
            self.assertEqual({'number': 1}, root_of(database))

    def test_all_files_of_a_zope_conf(self) -> None:
        self.serve(f'''
            <zodb>
              <blobstorage>
                blob-dir {self.directory}/blobs
                <filestorage>
                  path {self.path}
                </filestorage>
              </blobstorage>
            </zodb>
            <zodb other>
              <demostorage>
                <filestorage>
                  path {self.directory}/Other.fs
                </filestorage>
              </demostorage>
            </zodb>
            <zodb memory>
              <mappingstorage>
              </mappingstorage>
            </zodb>
            <zodb read>
              <filestorage>
                path {self.directory}/Read.fs
                read-only on
              </filestorage>
            </zodb>
            ''')
        self.assertEqual(
            {'Data.fs.socket', 'Other.fs.socket'},
            {name for name in os.listdir(self.directory)
             if name.endswith('.socket')})
        self.assertTrue((self.directory / 'blobs').is_dir())

    def test_nothing_is_to_be_served(self) -> None:
        part = self.serve('''
            <zodb>
              <zeoclient>
                server localhost:8100
              </zeoclient>
            </zodb>
            ''')
        self.assertEqual(['zope.conf'], os.listdir(self.directory))
        self.end(part)

    def test_a_server_that_was_killed_is_started_again(self) -> None:
        part = self.serve()
        database = connected(self.path)
        self.addCleanup(database.close)
        commit(database, number=1)
        part.kill()
        self.house.run(lambda: not part.ready)
        # Nobody else opens the file meanwhile.
        self.assertIsNotNone(holder(str(self.path)))
        self.house.run(lambda: part.ready)
        self.assertIn('The ZEO server has ended with signal SIGKILL, and is '
                      'started again in 0.1 s', '\n'.join(self.logs.output))
        commit(database, number=2)
        self.assertEqual({'number': 2}, root_of(database))

    def test_a_server_that_is_killed_again_and_again(self) -> None:
        part = self.serve()
        for _ in range(2):
            part.kill()
            self.house.run(lambda: not part.ready)
            self.house.run(lambda: part.ready)
        self.assertIn('is started again in 0.2 s',
                      '\n'.join(self.logs.output))

    def test_the_end_while_it_is_to_be_started_again(self) -> None:
        part = self.serve()
        part.kill()
        self.house.run(lambda: not part.ready)
        part.stop(Deadline(DEADLINE))
        self.assertTrue(part.ended)
        self.assertIsNone(holder(str(self.path)))
        self.assertFalse(os.path.exists(socket_of(str(self.path))))

    def test_the_end_before_it_was_ready(self) -> None:
        part = self.begin()
        self.end(part)
        self.assertFalse(part.ready)

    def test_a_server_that_does_not_end(self) -> None:
        part = self.serve()
        assert part._program is not None
        part._program.send(signal.SIGSTOP)
        part.stop(Deadline(DEADLINE))
        part.kill()
        self.house.run(lambda: part.ended)
        self.assertIsNone(holder(str(self.path)))


class OwnerTests(PartTestCase):
    """Others have the file."""

    def test_a_process_that_closes_the_file(self) -> None:
        storage = FileStorage(str(self.path))
        self.addCleanup(storage.close)
        part = self.begin(wait=DEADLINE)
        self.house.run(lambda: self.house.told)
        self.assertIn(f'process {os.getpid()} has the database {self.path} '
                      'open: waiting up to ', self.house.told[0])
        storage.close()
        self.house.run(lambda: part.ready)

    def test_a_process_that_keeps_the_file(self) -> None:
        storage = FileStorage(str(self.path))
        self.addCleanup(storage.close)
        text, status = self.fail_to_serve(wait=0)
        self.assertEqual(69, status)
        self.assertIn(f'process {os.getpid()} has the database {self.path} '
                      'open, and has not closed it within 0 s', text)
        self.assertIsNone(holder(str(self.path)))

    def other(self) -> Claim:
        """The claim of another `up`."""
        claim = Claim.take(str(self.path))
        assert claim is not None
        self.addCleanup(claim.close)
        return claim

    def test_another_up_that_ends(self) -> None:
        claim = self.other()
        part = self.begin(wait=DEADLINE)
        self.house.run(lambda: len(self.logs.output) > 1)
        self.assertIn(f'process {os.getpid()} serves the database {self.path},'
                      ' for another "gocept-runner up": waiting up to 60 s',
                      self.logs.output[-1])
        claim.give_up()
        self.house.run(lambda: part.ready)

    def test_the_server_of_an_up_that_was_killed(self) -> None:
        # It was stopped before, so it does not end by itself.
        server = Server(self.path)
        self.addCleanup(server.close)
        server.ready()
        pid = server.process.pid
        with subprocess.Popen(['true']) as up:
            pass
        claim = pathlib.Path(claim_of(str(self.path)))
        claim.write_text(claim.read_text().replace(
            f'{os.getpid()} ', f'{up.pid} ', 1))
        os.kill(pid, signal.SIGSTOP)
        server.abandon()
        part = self.begin(wait=DEADLINE)
        self.house.run(lambda: part.ready)
        self.assertIn(f'process {pid} serves the database {self.path}, for '
                      'another "gocept-runner up" that has died: waiting',
                      '\n'.join(self.logs.output))
        self.assertEqual(0, server.wait())

    def test_another_up_that_goes_on(self) -> None:
        self.other()
        self.assertEqual((
            f'process {os.getpid()} serves the database {self.path} already, '
            'for another "gocept-runner up", and has not ended within 0 s',
            69), self.fail_to_serve(wait=0))

    def test_the_end_while_it_waits(self) -> None:
        self.other()
        part = self.begin(wait=DEADLINE)
        self.house.run(lambda: len(self.logs.output) > 1)
        part.stop(Deadline(DEADLINE))
        self.assertTrue(part.ended)


class FailureTests(PartTestCase):

    def test_a_zope_conf_that_cannot_be_read(self) -> None:
        text, status = self.fail_to_serve('<zodb>\n</zodb>\n')
        self.assertEqual(78, status)
        self.assertEqual(
            f'{self.directory}/zope.conf: a <zodb> section needs a storage, '
            'such as <filestorage>', text)

    def test_a_file_in_two_sections(self) -> None:
        section = f'<filestorage>\npath {self.path}\n</filestorage>\n'
        text, status = self.fail_to_serve(
            f'<zodb>\n{section}</zodb>\n<zodb other>\n{section}</zodb>\n')
        self.assertEqual(78, status)
        self.assertEqual(f'{self.directory}/zope.conf names the file '
                         f'{self.path} in two sections', text)

    def test_zeo_is_not_installed(self) -> None:
        words = {'files': [{'path': str(self.path), 'options': {}}],
                 'has_zeo': False}
        script = self.directory / 'start.py'
        script.write_text(f'print({json.dumps(words)!r})')
        self.enterContext(mock.patch.object(zeo, '_START', str(script)))
        self.assertEqual((
            f'{self.directory}/zope.conf has a <filestorage>, which one '
            'process at a time can open: pip install "gocept.runner[zeo]", so '
            'that "up" shares it by a ZEO server', 78), self.fail_to_serve())

    def test_a_database_that_is_none(self) -> None:
        self.path.write_text('something else')
        self.assertEqual(
            (f'{self.path} is no database of a <filestorage>', 69),
            self.fail_to_serve())

    def test_a_program_that_breaks_at_the_start(self) -> None:
        self.enterContext(mock.patch.object(zeo, '_START', os.devnull))
        self.assertEqual((
            f'the program that reads {self.directory}/zope.conf has ended '
            'with status 0', 71), self.fail_to_serve())

    def test_a_server_that_is_killed_at_its_start(self) -> None:
        storage = FileStorage(str(self.path))
        self.addCleanup(storage.close)
        part = self.begin(wait=DEADLINE)
        self.house.run(lambda: self.house.told)  # it waits for the file
        part.kill()
        self.house.run(lambda: self.house.failure)
        self.assertEqual('the ZEO server has ended with signal SIGKILL before '
                         'it served a database', str(self.house.failure))
        self.assertTrue(part.ended)

    def test_a_directory_that_cannot_be_written(self) -> None:
        (self.directory / 'Data.fs.claim').mkdir()
        text, status = self.fail_to_serve()
        self.assertEqual(71, status)
        self.assertEqual(
            f'{self.path}.claim, which tells others that "up" serves the '
            'database, cannot be written: Is a directory', text)
