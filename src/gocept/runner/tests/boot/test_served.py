"""Files that ``gocept-runner up`` serves, as all other programs open them."""

import contextlib
import os
import pathlib
import signal
import threading
from collections.abc import Iterator
from typing import Any
from unittest import mock

from zc.lockfile import LockError
from ZEO.Exceptions import ClientDisconnected
from ZODB import DB
from ZODB.blob import Blob

from gocept.runner.boot import claim, served, toolkit, zopeconf
from gocept.runner.boot.claim import Claim, claim_of
from gocept.runner.boot.environment import check_databases
from gocept.runner.boot.inherited import parts_of
from gocept.runner.boot.zeoclient import ServedStorage
from gocept.runner.errors import (
    ConfigurationError,
    DatabaseClosed,
    DatabaseMissing,
)
from gocept.runner.operation.place import place_of
from gocept.runner.tests.house.zeos import Server, commit, root_of
from gocept.runner.tests.support import TestCase, replaced_modules

WORKER = '''
    import sys
    from gocept.runner import once

    @once()
    def work():
        pass

    if __name__ == '__main__':
        sys.exit(work.main(config='zope.conf'))
    '''


class ServedTestCase(TestCase):

    def setUp(self) -> None:
        super().setUp()
        self.path = self.dir / 'Data.fs'

    def serve(self, *paths: pathlib.Path, **options: Any) -> Server:
        """Serve files; it is ready."""
        server = Server(*(paths or [self.path]), **options)
        self.addCleanup(server.close)
        return server.ready()

    def claim(self) -> Claim:
        """Claim the file, as if a server was about to start."""
        claim = Claim.take(str(self.path))
        assert claim is not None
        self.addCleanup(claim.close)
        return claim

    @contextlib.contextmanager
    def opened(self, config: str | None = None, *, create: bool = True,
               ) -> Iterator[DB]:
        """The databases, as a worker opens them."""
        options = zopeconf.load(config or self.zope_conf())
        with toolkit.open_databases(options, create=create) as database:
            yield database

    def conf(self, text: str) -> str:
        return str(self.write('zope.conf', f'<zodb>\n{text}\n</zodb>\n'))


class ClaimedTests(ServedTestCase):
    """The file is claimed, and served."""

    def test_the_server_is_asked(self) -> None:
        self.serve()
        with self.opened() as database:
            self.assertIsInstance(database.storage, ServedStorage)
            commit(database, number=1)
        with self.opened() as database:
            self.assertEqual(1, root_of(database)['number'])

    def test_a_file_that_nobody_has_claimed(self) -> None:
        with self.opened() as database:
            self.assertNotIsInstance(database.storage, ServedStorage)

    def test_a_claim_of_one_that_was_killed(self) -> None:
        self.claim().close()
        self.assertTrue(os.path.exists(claim_of(str(self.path))))
        with self.opened() as database:
            self.assertNotIsInstance(database.storage, ServedStorage)

    def test_it_is_called_as_the_file(self) -> None:
        self.serve()
        with self.assertLogs('gocept.runner.environment') as logs, (
                self.opened()) as database:
            self.assertEqual(str(self.path), database.storage.getName())
        self.assertEqual([
            'WARNING:gocept.runner.environment:The database '
            f'{self.path} is empty: creating its root folder'], logs.output)

    def test_its_place_is_that_of_the_file(self) -> None:
        self.serve()
        options = zopeconf.load(self.zope_conf())
        before = place_of(options)
        with toolkit.open_databases(options):
            self.assertEqual(before, place_of(options))
        self.assertEqual('Data.fs.', before.prefix)

    def test_blobs(self) -> None:
        blobs = self.dir / 'blobs'
        for section in (
                f'<filestorage>\npath {self.path}\nblob-dir {blobs}\n'
                '</filestorage>',
                f'<blobstorage>\nblob-dir {blobs}\n<filestorage>\n'
                f'path {self.path}\n</filestorage>\n</blobstorage>'):
            server = self.serve(blob_dir=str(blobs))
            with self.opened(self.conf(section)) as database:
                self.assertIsInstance(database.storage, ServedStorage)
                commit(database, blob=Blob(b'content'))
                with database.transaction() as connection:
                    path = connection.root()['blob'].committed()
            self.assertTrue(path.startswith(str(blobs)), path)
            server.close()
            with self.opened(self.conf(section)) as database, (
                    database.transaction()) as connection, (
                    connection.root()['blob'].open()) as file:
                self.assertEqual(b'content', file.read())

    def test_a_file_within_another_storage(self) -> None:
        self.serve()
        with self.opened(self.conf(f'''
                <demostorage>
                  <filestorage>
                    path {self.path}
                  </filestorage>
                </demostorage>
                ''')) as database:
            self.assertIn(ServedStorage,
                          map(type, parts_of(database.storage)))
            commit(database, number=1)
        with self.opened() as database:
            self.assertNotIn('number', root_of(database))

    def test_one_of_several_files(self) -> None:
        other = self.dir / 'Other.fs'
        self.serve(other)
        config = self.zope_conf(
            f'<zodb other>\n<filestorage>\npath {other}\n</filestorage>\n'
            '</zodb>\n')
        with self.opened(config) as database:
            commit(database, number=1)
            commit(database.databases['other'], number=2)
            self.assertIsInstance(
                database.databases['other'].storage, ServedStorage)
            self.assertNotIsInstance(database.storage, ServedStorage)

    def test_storages_of_one_transaction_are_told_apart(self) -> None:
        # By paths that are too long for sockets, which are shortened.
        paths = []
        for name in 'one', 'other':
            directory = self.dir / name / ('x' * 60) / ('y' * 60)
            directory.mkdir(parents=True)
            paths.append(directory / 'Data.fs')
        self.serve(*paths)
        with self.opened(str(self.write('zope.conf', ''.join(
                f'<zodb {number}>\n<filestorage>\npath {path}\n'
                '</filestorage>\n</zodb>\n'
                for number, path in enumerate(paths))))) as database:
            keys = {each.storage.sortKey()
                    for each in database.databases.values()}
        self.assertEqual(2, len(keys))

    def test_read_only(self) -> None:
        self.serve()
        with self.opened() as database:
            commit(database, number=1)
        with self.opened(self.conf(f'''
                <filestorage>
                  path {self.path}
                  read-only on
                </filestorage>
                ''')) as database:
            self.assertTrue(database.storage.isReadOnly())
            self.assertEqual(1, root_of(database)['number'])

    def test_a_dry_run(self) -> None:
        self.serve()
        with self.assertRaisesRegex(DatabaseMissing, 'is empty'), (
                self.opened(create=False)):
            pass

    def test_zeo_is_not_installed(self) -> None:
        self.claim()
        with replaced_modules({'ZEO': None}), self.assertRaises(
                ConfigurationError) as raised, self.opened():
            pass
        self.assertEqual(
            f'{self.path} is served by "gocept-runner up" (process '
            f'{os.getpid()}), and to ask its ZEO server the package ZEO is '
            'needed: pip install "gocept.runner[zeo]"', str(raised.exception))

    def test_it_leaves_no_descriptors(self) -> None:
        self.serve()
        with self.opened():
            pass  # what is imported once
        with self.assertPutBack(), self.opened():
            pass


class WaitingTests(ServedTestCase):
    """The file is claimed, and nobody serves it yet."""

    def test_it_waits_for_the_server(self) -> None:
        claimed = self.claim()
        waits = threading.Event()
        self.enterContext(mock.patch.object(
            served, '_tell', lambda *args: waits.set()))
        self.enterContext(mock.patch.object(served, '_INTERVAL', 0.01))
        servers: list[Server] = []

        def serve() -> None:
            waits.wait()
            server = Server(self.path, claims=[claimed])
            servers.append(server)
        thread = threading.Thread(target=serve)
        thread.start()
        self.addCleanup(lambda: servers[0].close())
        self.addCleanup(thread.join)
        with self.opened() as database:
            self.assertIsInstance(database.storage, ServedStorage)
            thread.join()

    def test_it_opens_the_file_when_the_claim_is_given_up(self) -> None:
        claimed = self.claim()
        self.enterContext(mock.patch.object(
            served, '_tell', lambda *args: claimed.give_up()))
        self.enterContext(mock.patch.object(served, '_INTERVAL', 0.01))
        with self.opened() as database:
            self.assertNotIsInstance(database.storage, ServedStorage)

    def test_the_log_tells_whom_it_waits_for(self) -> None:
        claimed = self.claim()
        self.enterContext(mock.patch.object(served, '_INTERVAL', 0.01))

        def end(path: str) -> bool:
            if len(logs.output):
                claimed.give_up()
            return False
        self.enterContext(mock.patch.object(served, '_is_listening', end))
        with self.assertLogs('gocept.runner.environment') as logs, (
                self.opened()):
            pass
        self.assertEqual(
            'INFO:gocept.runner.environment:Waiting for the ZEO server of '
            f'"gocept-runner up" (process {os.getpid()}), which has claimed '
            f'{self.path}, and does not listen yet', logs.output[0])

    def test_a_claim_that_comes_while_the_file_is_opened(self) -> None:
        server = self.serve()
        found = claim.holder
        answers = [None]
        self.enterContext(mock.patch.object(claim, 'holder', lambda path: (
            answers.pop() if answers else found(path))))
        options = zopeconf.load(self.zope_conf())
        served.share(options.databases)
        answers.append(None)
        storage = options.databases[0].config.storage.open()
        self.addCleanup(storage.close)
        self.assertIsInstance(storage, ServedStorage)
        del server

    def test_a_file_that_is_open_and_not_claimed(self) -> None:
        with self.opened(), self.assertRaises(LockError), self.opened():
            pass

    def test_a_server_that_ends_before_it_has_answered(self) -> None:
        server = self.serve()
        listening, calls = served._is_listening, []

        def kill_first(path: str) -> bool:
            if listening(path):
                calls.append(path)
                if len(calls) == 2:  # `share` has asked, and `open` has
                    server.kill()
                    server.start()
                return True
            return False
        self.enterContext(mock.patch.object(
            served, '_is_listening', kill_first))
        with self.opened() as database:
            self.assertIsInstance(database.storage, ServedStorage)

    def test_a_signal_ends_the_wait(self) -> None:
        self.claim()
        self.zope_conf('')  # which logs to standard error
        program = self.program(WORKER)
        program.wait_for('Waiting for the ZEO server')
        program.send(signal.SIGTERM)
        self.assertEqual(128 + signal.SIGTERM, program.end())


class LossTests(ServedTestCase):
    """The server ends while a worker uses it."""

    def test_a_worker_goes_on_with_the_next_server(self) -> None:
        server = self.serve()
        with self.opened() as database:
            commit(database, number=1)
            server.kill()
            server.start()
            commit(database, number=2)
            self.assertEqual(2, root_of(database)['number'])

    def test_a_worker_ends_when_nobody_serves_any_more(self) -> None:
        server = self.serve()
        with self.opened() as database, database.transaction() as connection:
            site = connection.root()['Application']
            check_databases(site)
            database.storage._server.timeout = 0
            server.kill()
            with self.assertRaises(ClientDisconnected):
                database.storage.ping()
            check_databases(site)  # the server may come again
            server.close()
            with self.assertRaises(DatabaseClosed) as raised:
                check_databases(site)
        self.assertEqual(
            f'nobody serves {self.path} any more, as "gocept-runner up" has '
            'ended, so no tick can work any more: start the program again',
            str(raised.exception))
