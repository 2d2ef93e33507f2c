"""The ZEO server of a house: a program, whose parent is the test."""

import contextlib
import logging
import os
import pathlib
import signal
import stat
import subprocess
import sys
import tempfile
import time
import types
import unittest
from collections.abc import Callable
from typing import Any

import transaction
from persistent import Persistent
from ZEO.Exceptions import ClientDisconnected, ServerException
from ZODB import DB
from ZODB.blob import Blob
from ZODB.FileStorage import FileStorage
from ZODB.POSException import ConflictError
from ZODB.utils import maxtid, z64

from gocept.runner.boot.claim import Claim, holder, socket_of
from gocept.runner.boot.zeoclient import ServedStorage
from gocept.runner.house.zeoserver import Handler
from gocept.runner.tests.house import zeos
from gocept.runner.tests.house.zeos import (
    Server,
    catch_up,
    client,
    commit,
    connected,
    plain,
    root_of,
    voted,
)
from gocept.runner.tests.support import DEADLINE


class ServerTestCase(unittest.TestCase):

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)
        self.path = self.directory / 'Data.fs'

    def serve(self, *paths: pathlib.Path, **options: Any) -> Server:
        """Start a server, which may have to wait for the files."""
        server = Server(*(paths or [self.path]), **options)
        self.addCleanup(server.close)
        return server

    def connect(self, path: pathlib.Path | None = None,
                by: Callable[..., DB] = connected, **options: Any) -> DB:
        """A database that the server serves."""
        database = by(path or self.path, **options)
        self.addCleanup(self._close, database)
        return database

    def _close(self, database: DB) -> None:
        with contextlib.suppress(AttributeError):  # the test has closed it
            database.close()

    def storage(self) -> ServedStorage:
        """A client below a database."""
        storage = ServedStorage(str(self.path), None, False)
        self.addCleanup(storage.close)
        return storage

    def run_client(self, script: str) -> subprocess.Popen[str]:
        """A process with a client; see `client`."""
        process = client(self.path, script)
        self.addCleanup(self._end, process)
        return process

    def _end(self, process: subprocess.Popen[str]) -> None:
        process.kill()
        process.communicate()



class ServingTests(ServerTestCase):
    """What clients find."""

    def test_clients_share_a_file(self) -> None:
        self.serve().ready()
        one, other = self.connect(), self.connect(by=plain)
        commit(one, number=1)
        commit(other, other=2)
        self.assertEqual({'number': 1, 'other': 2}, root_of(self.connect()))

    def test_a_new_file_is_told(self) -> None:
        self.serve().ready().wait_for(
            f'Created a new, empty database: {self.path}\n')

    def test_the_root_of_a_new_file_is_there(self) -> None:
        # Clients that make it at the same time would meet conflicts.
        self.serve().ready()
        storage = self.storage()
        self.assertEqual(1, len(storage))
        self.assertIsNotNone(storage.loadBefore(z64, maxtid))

    def test_several_files_have_one_server(self) -> None:
        other = self.directory / 'Other.fs'
        server = self.serve(self.path, other).ready()
        commit(self.connect(), name='first')
        commit(self.connect(other), name='second')
        server.stop()
        for path, name in (self.path, 'first'), (other, 'second'):
            with contextlib.closing(DB(str(path))) as database:
                self.assertEqual({'name': name}, root_of(database))

    def test_who_may_open_the_file_may_connect(self) -> None:
        for mode in 0o600, 0o660:
            with contextlib.closing(DB(str(self.path))):
                self.path.chmod(mode)
            server = self.serve().ready()
            found = os.stat(socket_of(str(self.path))).st_mode
            self.assertEqual(mode, stat.S_IMODE(found))
            server.close()

    def test_a_path_that_is_too_long_for_a_socket(self) -> None:
        directory = self.directory / ('x' * 60) / ('y' * 60)
        directory.mkdir(parents=True)
        path = directory / 'Data.fs'
        server = self.serve(path).ready()
        database = self.connect(path)
        commit(database, number=1)
        server.kill()
        server.start()
        server.ready()
        commit(database, number=2)  # by a new connection
        self.assertEqual({'number': 2}, root_of(database))

    def test_blobs_are_those_of_the_server(self) -> None:
        blobs = str(self.directory / 'blobs')
        self.serve(blob_dir=blobs).ready()
        one, other = (self.connect(blob_dir=blobs) for _ in range(2))
        commit(one, blob=Blob(b'content'))
        catch_up(other)
        with other.transaction() as connection:
            path = connection.root()['blob'].committed()
            self.assertTrue(path.startswith(blobs), path)
            self.assertEqual(b'content', pathlib.Path(path).read_bytes())

    def test_the_options_of_the_file_are_kept(self) -> None:
        self.serve(quota=2000, pack_keep_old=False).ready()
        database = self.connect()
        commit(database, number=1)
        commit(database, text='x' * 3000)
        with self.assertRaisesRegex(ServerException, 'Quota'):
            commit(database, number=2)
        database.pack()
        self.assertEqual(1, root_of(database)['number'])
        self.assertFalse(os.path.exists(f'{self.path}.old'))

    def test_only_the_first_start_creates_a_file_anew(self) -> None:
        with contextlib.closing(DB(str(self.path))) as database:
            commit(database, old=1)
        for is_first, expected in (False, {'old': 1}), (True, {}):
            server = self.serve(create=True, is_first=is_first).ready()
            self.assertEqual(expected, root_of(self.connect()))
            server.close()


class Counter(Persistent):
    """Adds up what others have counted meanwhile."""

    number = 0

    def _p_resolveConflict(self, old: dict[str, int], saved: dict[str, int],
                           new: dict[str, int]) -> dict[str, int]:
        return {'number': saved['number'] + new['number']
                - old.get('number', 0)}


class CommitTests(ServerTestCase):
    """Commits that would be in the way of all others."""

    def test_a_client_that_is_stopped_in_a_commit_is_cut_off(self) -> None:
        server = self.serve(timeout=0.5).ready()
        process = self.run_client('''
            txn = voted(storage)
            print('voted', flush=True)
            input()
            try:
                storage.tpc_finish(txn)
            except Exception as error:
                print(type(error).__name__)
            ''')
        assert process.stdout is not None
        self.assertEqual('voted\n', process.stdout.readline())
        process.send_signal(signal.SIGSTOP)
        database = self.connect()
        before = database.storage.lastTransaction()
        commit(database, number=1)
        server.wait_for('Transaction timeout after 0.5 seconds')
        process.send_signal(signal.SIGCONT)
        output, _ = process.communicate('\n', DEADLINE)
        self.assertEqual('ClientDisconnected\n', output)
        # What it has not finished is not there.
        server.stop()
        with contextlib.closing(FileStorage(str(self.path))) as storage:
            committed = [txn.tid for txn in storage.iterator()]
        self.assertEqual(1, len([tid for tid in committed if tid > before]))

    def test_a_client_that_is_killed_in_a_commit(self) -> None:
        self.serve().ready()
        process = self.run_client('''
            voted(storage)
            print('voted', flush=True)
            input()
            ''')
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
        commit(self.connect(), number=1)

    def test_a_client_that_sends_nonsense_in_a_commit(self) -> None:
        self.serve().ready()
        storage = self.storage()
        voted(storage)
        # The server cannot answer it, so it closes the connection.
        storage._async('storea', 'nonsense')
        commit(self.connect(), number=1)

    def test_clients_resolve_conflicts(self) -> None:
        # With a class that the server does not know.
        module = types.ModuleType('known_to_clients')
        kind = type('Mine', (Counter,), {'__module__': module.__name__})
        module.Mine = kind  # type: ignore[attr-defined]
        sys.modules[module.__name__] = module
        self.addCleanup(sys.modules.pop, module.__name__)
        self.serve().ready()
        one, other = self.connect(), self.connect()
        commit(one, counter=kind())
        catch_up(other)
        with one.transaction() as connection:
            connection.root()['counter'].number += 1
            with other.transaction() as second:
                second.root()['counter'].number += 2
        catch_up(other)
        with other.transaction() as connection:
            self.assertEqual(3, connection.root()['counter'].number)

    def test_a_conflict_that_comes_again_and_again(self) -> None:
        self.serve().ready()
        one, other = self.connect(by=plain), self.connect()
        commit(one, counter=Counter())
        resolve, votes = one.storage.tryToResolveConflict, 0

        def meet_another(*args: object, **keywords: object) -> object:
            nonlocal votes
            votes += 1
            data = resolve(*args, **keywords)
            catch_up(other)
            with other.transaction() as connection:
                connection.root()['counter'].number += 1
            return data
        one.storage.tryToResolveConflict = meet_another
        manager = transaction.TransactionManager()
        self.addCleanup(manager.abort)
        counter = one.open(manager).root()['counter']
        counter.number += 1
        catch_up(other)
        with other.transaction() as connection:
            connection.root()['counter'].number += 1
        with self.assertRaises(ConflictError):
            manager.commit()
        manager.abort()
        catch_up(one)
        # What others have committed is there, and all can go on.
        self.assertEqual(votes + 1, counter.number)
        one.storage.tryToResolveConflict = resolve
        counter.number += 1
        manager.commit()
        catch_up(other)
        with other.transaction() as connection:
            self.assertEqual(votes + 2, connection.root()['counter'].number)


class StartTests(ServerTestCase):

    def test_it_waits_for_the_owner_of_the_file(self) -> None:
        storage = FileStorage(str(self.path))
        self.addCleanup(storage.close)
        server = self.serve(wait=DEADLINE)
        server.wait_for(
            f'process {os.getpid()} has the database {self.path} open: '
            'waiting up to 60 s until it has closed it')
        storage.close()
        server.ready()

    def test_an_owner_that_keeps_the_file(self) -> None:
        storage = FileStorage(str(self.path))
        self.addCleanup(storage.close)
        server = self.serve()
        self.assertEqual(
            {'what': 'failed', 'status': 69, 'text': (
                f'process {os.getpid()} has the database {self.path} open, '
                'and has not closed it within 0 s; it has to be the ZEO '
                'server of "gocept-runner up" that opens it, for all others: '
                'end that process, or wait longer with --wait SECONDS')},
            server.word())
        self.assertEqual(69, server.wait())

    def test_it_does_not_wait_without_up(self) -> None:
        storage = FileStorage(str(self.path))
        self.addCleanup(storage.close)
        server = self.serve(wait=DEADLINE)
        server.wait_for('waiting up to 60 s')
        server.abandon()
        self.assertEqual(0, server.wait())

    def test_a_dry_run_creates_nothing(self) -> None:
        server = self.serve(may_create=False)
        self.assertEqual(
            {'what': 'failed', 'status': 69, 'text': (
                f'there is no database {self.path}, and a dry run creates '
                'none: correct the path, or run the program without --dry-run '
                'first')}, server.word())
        self.assertEqual(69, server.wait())
        self.assertFalse(self.path.exists())

    def test_a_file_that_is_no_database(self) -> None:
        self.path.write_text('something else')
        server = self.serve()
        self.assertEqual(
            {'what': 'failed', 'status': 69, 'text':
             f'{self.path} is no database of a <filestorage>'}, server.word())
        self.assertEqual(69, server.wait())

    def test_the_socket_of_a_server_that_was_killed(self) -> None:
        server = self.serve().ready()
        for _ in range(2):
            server.kill()
            self.assertTrue(os.path.exists(socket_of(str(self.path))))
            server.start()
            server.ready()
            commit(self.connect(), number=1)

    def test_a_packing_that_was_killed_between_two_files(self) -> None:
        with contextlib.closing(DB(str(self.path))) as database:
            commit(database, number=1)
        self.path.rename(f'{self.path}.pack')
        pathlib.Path(f'{self.path}.old').write_bytes(b'')
        server = self.serve().ready()
        self.assertEqual({'number': 1}, root_of(self.connect()))
        server.wait_for(f'Finished the packing of {self.path}')


class EndTests(ServerTestCase):

    def test_it_leaves_the_database_and_the_claim_of_up(self) -> None:
        server = self.serve().ready()
        commit(self.connect(), number=1)
        self.assertEqual(0, server.stop())
        self.assertFalse(os.path.exists(socket_of(str(self.path))))
        self.assertIsNotNone(holder(str(self.path)))
        server.close()
        self.assertIsNone(holder(str(self.path)))
        with contextlib.closing(DB(str(self.path))) as database:
            self.assertEqual({'number': 1}, root_of(database))

    def test_a_commit_in_progress_is_finished(self) -> None:
        server = self.serve().ready()
        storage = self.storage()
        txn = voted(storage)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for('when clients have finished what they commit')
        tid = storage.tpc_finish(txn)
        self.assertEqual(0, server.wait())
        with contextlib.closing(FileStorage(str(self.path))) as file:
            self.assertEqual(tid, file.lastTransaction())

    def test_signals_for_workers_are_none_for_it(self) -> None:
        server = self.serve().ready()
        for signum in signal.SIGINT, signal.SIGHUP, signal.SIGUSR2:
            server.process.send_signal(signum)
        commit(self.connect(), number=1)

    def test_a_packing_is_given_up(self) -> None:
        server = self.serve(packer=f'{zeos.__name__}.packer').ready()
        database = self.connect()
        commit(database, number=1)
        with zeos.news_in(self.directory) as changed:
            database.storage._call('pack', time.time(), False)
            while not (self.directory / 'packing').exists():
                changed()
        server.process.send_signal(signal.SIGTERM)
        self.assertEqual(0, server.wait())
        self.assertIn(f'The packing of {self.path} was not finished',
                      server.errors)
        with contextlib.closing(DB(str(self.path))) as database:
            self.assertEqual({'number': 1}, root_of(database))


class OrphanTests(ServerTestCase):
    """When `up` has died."""

    def test_it_serves_the_workers_until_they_have_ended(self) -> None:
        server = self.serve().ready()
        database = self.connect()
        server.abandon()
        server.wait_for('"gocept-runner up" has died')
        # Nobody else opens the file meanwhile, or comes to the server.
        self.assertIsNotNone(holder(str(self.path)))
        self.assertIsNone(Claim.take(str(self.path)))
        self.assertFalse(os.path.exists(socket_of(str(self.path))))
        commit(database, number=1)
        database.close()
        self.assertEqual(0, server.wait())
        self.assertIsNone(holder(str(self.path)))
        with contextlib.closing(DB(str(self.path))) as again:
            self.assertEqual({'number': 1}, root_of(again))

    def test_it_does_not_wait_for_others(self) -> None:
        server = self.serve().ready()
        # One that is no descendant of this process any more.
        process = self.run_client('''
            import os, select
            storage.close()
            parent = os.getpid()
            if os.fork():
                os._exit(0)
            with contextlib.suppress(ProcessLookupError):
                select.select([os.pidfd_open(parent)], [], [])
            storage = ServedStorage(sys.argv[1], None, False)
            print('connected', flush=True)
            sys.stdin.read()
            ''')
        assert process.stdout is not None
        self.assertEqual('connected\n', process.stdout.readline())
        server.abandon()
        self.assertEqual(0, server.wait())

    def test_the_time_of_the_workers_is_bounded(self) -> None:
        server = self.serve(grace=0).ready()
        storage = self.storage()
        server.abandon()
        self.assertEqual(0, server.wait())
        with self.assertRaises(ClientDisconnected):
            storage._server.timeout = 0
            storage.loadBefore(b'\0' * 8, b'\xff' * 8)


class HandlerTests(unittest.TestCase):

    def setUp(self) -> None:
        self.faucet, self.sink = os.pipe()
        self.addCleanup(os.close, self.faucet)
        self.logger = logging.Logger('test')
        self.logger.addHandler(Handler(self.sink))

    def test_a_reader_that_does_not_read(self) -> None:
        self.addCleanup(os.close, self.sink)
        size = 0
        for number in range(100):
            self.logger.info('x' * 1023)
            size = number
        self.assertEqual(99, size)
        self.assertEqual(64, os.read(self.faucet, 2 ** 20).count(b'x\n'))
        self.logger.info('and on')
        self.assertEqual(b'(36 lines are lost)\nand on\n',
                         os.read(self.faucet, 100))

    def test_nobody_reads(self) -> None:
        faucet, sink = os.pipe()
        os.close(faucet)
        self.addCleanup(os.close, sink)
        self.addCleanup(os.close, self.sink)
        logger = logging.Logger('test')
        logger.addHandler(Handler(sink))
        logger.info('goes nowhere')

    def test_a_line_is_whole_or_none(self) -> None:
        self.addCleanup(os.close, self.sink)
        self.logger.info('x' * 10_000)
        self.assertEqual(b'x' * 4095 + b'\n', os.read(self.faucet, 2 ** 20))
