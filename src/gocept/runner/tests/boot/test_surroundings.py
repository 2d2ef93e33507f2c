"""The tasks of a background server in transactions of a real database."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import transaction
import ZODB
import ZODB.FileStorage
import ZODB.interfaces
import zope.component
import zope.component.hooks
import zope.security.management
from transaction.interfaces import DoomedTransaction
from ZODB.POSException import ConflictError
from zope.interface.verify import verifyObject
from zope.site.folder import Folder
from zope.site.site import LocalSiteManager

from gocept.runner import errors
from gocept.runner.background import ClientSocket, frames
from gocept.runner.background.surroundings import surroundings
from gocept.runner.background.tasks import Definition, Tasks
from gocept.runner.boot.surroundings import ATTEMPTS, Surroundings
from gocept.runner.interfaces import IExecutor, ITaskSurroundings
from gocept.runner.tests.background import servers
from gocept.runner.tests.background.test_tasks import Request
from gocept.runner.tests.boot.test_attempts import DataManager
from gocept.runner.tests.declaring import DeclaringTestCase
from gocept.runner.tests.support import (
    DEADLINE,
    TestCase,
    child_environment,
    process_state,
    reset_process,
)

LOGGER = 'gocept.runner.background'
TRANSACTIONS = 'gocept.runner.transaction'


def application() -> Any:
    """The root folder, in the connection of the task that runs."""
    site: Any = zope.component.hooks.getSite()
    return site._p_jar.root()['Application']


@contextmanager
def other() -> Iterator[Any]:
    """The root folder in another connection, which commits."""
    database = zope.component.getUtility(ZODB.interfaces.IDatabase)
    with database.transaction() as connection:
        yield connection.root()['Application']


class Case(TestCase):

    def setUp(self) -> None:
        super().setUp()
        patch = mock.patch('gocept.runner.boot.attempts.LONGEST_PAUSE', 0.001)
        patch.start()
        self.addCleanup(patch.stop)

    def start(self, principal: str | None = None, name: str | None = None,
              ) -> Surroundings:
        around = Surroundings(self.zope_conf(), principal, name)
        around.start()
        self.addCleanup(around.close)
        return around

    def committed(self, name: str) -> object:
        with other() as root:
            return getattr(root, name, None)


class RunTests(Case):

    def test_it_is_what_a_server_finds(self) -> None:
        around = surroundings(self.zope_conf(), None)
        self.assertIsInstance(around, Surroundings)
        verifyObject(ITaskSurroundings, around)

    def test_a_task_is_committed(self) -> None:
        around = self.start()

        def task() -> int:
            application().done = 1
            return 7
        self.assertEqual(7, around.run(task))
        self.assertEqual(1, self.committed('done'))

    def test_everything_is_put_back(self) -> None:
        before = process_state()
        around = Surroundings(self.zope_conf(), 'zope.mgr')
        around.start()
        around.run(lambda: None)
        with self.assertRaises(ZeroDivisionError):
            around.run(lambda: 1 // 0)
        around.close()
        self.assertEqual(before, process_state())

    def test_a_conflict_is_tried_again(self) -> None:
        around = self.start()
        calls = []

        def task() -> int:
            calls.append(getattr(application(), 'count', 0))
            application().count = calls[-1] + 1
            if len(calls) == 1:
                with other() as root:
                    root.count = 10
            return calls[-1]
        with self.assertLogs(TRANSACTIONS, 'WARNING') as logs:
            self.assertEqual(10, around.run(task))
        self.assertEqual([0, 10], calls)
        self.assertEqual(11, self.committed('count'))
        self.assertRegex(
            logs.records[0].getMessage(),
            '^Conflict error in attempt 1 of 3 of a task, trying again')

    def test_conflicts_have_an_end(self) -> None:
        around = self.start()
        calls = []

        def task() -> None:
            calls.append(application())
            application().count = -1
            with other() as root:
                root.count = len(calls)
        with (self.assertLogs(TRANSACTIONS, 'WARNING'),
              self.assertRaises(ConflictError)):
            around.run(task)
        self.assertEqual(ATTEMPTS, len(calls))
        self.assertEqual(ATTEMPTS, self.committed('count'))
        around.check()  # the database is in order
        around.run(lambda: setattr(application(), 'count', 0))
        self.assertEqual(0, self.committed('count'))

    def test_what_fails_stores_nothing(self) -> None:
        around = self.start()
        for error in ZeroDivisionError, SystemExit, KeyboardInterrupt:
            def task() -> None:
                application().done = 1
                raise error
            with self.assertRaises(error):
                around.run(task)
            self.assertIsNone(self.committed('done'))
            self.assertIsNone(
                zope.security.management.queryInteraction())

    def test_a_task_may_abort(self) -> None:
        around = self.start()

        def task() -> int:
            application().one = 1
            transaction.abort()
            application().two = 2
            return 3
        self.assertEqual(3, around.run(task))
        self.assertEqual([None, 2], [*map(self.committed, ('one', 'two'))])

    def test_a_doomed_transaction_is_a_failure(self) -> None:
        around = self.start()

        def task() -> None:
            application().one = 1
            transaction.doom()
        with (self.assertLogs(TRANSACTIONS, 'WARNING'),
              self.assertRaises(DoomedTransaction)):
            around.run(task)
        self.assertIsNone(self.committed('one'))

    def test_a_second_phase_that_fails(self) -> None:
        around = self.start()

        def task() -> None:
            application().one = 1
            DataManager(tpc_finish=OSError('gone'))
        with (self.assertLogs(LOGGER, 'ERROR'),
              self.assertRaisesRegex(
                  errors.PartlyCommitted,
                  'so it is not known what the task has stored, and it is not '
                  'tried again: OSError: gone$')):
            around.run(task)

    def test_a_database_that_has_closed_itself_ends_the_server(self) -> None:
        around = self.start()
        around.check()

        def task() -> None:
            application()._p_jar.db().storage.close()
            raise ValueError
        with self.assertRaises(ValueError):
            around.run(task)
        with (self.assertLogs('gocept.runner.environment', 'CRITICAL'),
              self.assertRaisesRegex(errors.DatabaseClosed, 'start .* again')):
            around.check()

    def test_a_connection_that_a_task_closes_ends_the_server(self) -> None:
        around = self.start()
        around.run(lambda: application()._p_jar.close())
        with (self.assertLogs('gocept.runner.environment', 'CRITICAL'),
              self.assertRaisesRegex(errors.DatabaseClosed, 'start .* again')):
            around.check()


class SiteTests(Case):

    def setUp(self) -> None:
        super().setUp()
        around = Surroundings(self.zope_conf())
        around.start()
        around.run(self.add)
        around.close()

    @staticmethod
    def add(root: Any = None) -> None:
        root = application() if root is None else root
        if 'shop' in root:
            del root['shop']
        root['shop'] = shop = Folder()
        shop.setSiteManager(LocalSiteManager(shop))

    def test_a_site(self) -> None:
        around = self.start(name='shop')
        site: Any = around.run(zope.component.hooks.getSite)
        self.assertEqual('shop', site.__name__)

    def test_each_task_has_it(self) -> None:
        around = self.start(name='shop')
        around.run(lambda: zope.component.hooks.setSite(None))
        self.assertIsNotNone(around.run(zope.component.hooks.getSite))

    def test_it_is_not_set_before_and_after_a_task(self) -> None:
        around = self.start()
        self.assertIsNone(zope.component.hooks.getSite())
        self.assertIsNotNone(around.run(zope.component.hooks.getSite))
        self.assertIsNone(zope.component.hooks.getSite())

    def test_one_that_is_replaced(self) -> None:
        around = self.start(name='shop')
        before: Any = around.run(zope.component.hooks.getSite)
        with other() as root:
            self.add(root)
        with self.assertLogs(LOGGER, 'WARNING') as logs:
            after: Any = around.run(zope.component.hooks.getSite)
        self.assertIn('The site was replaced', logs.output[0])
        self.assertNotEqual(before._p_oid, after._p_oid)

    def test_one_that_is_gone(self) -> None:
        around = self.start(name='shop')
        with other() as root:
            del root['shop']
        with self.assertRaisesRegex(LookupError, "the site 'shop' is gone"):
            around.run(lambda: None)
        around.check()


class PrincipalTests(Case):

    def who(self) -> str:
        interaction = zope.security.management.getInteraction()
        return str(interaction.participations[0].principal.id)

    def test_an_interaction_for_each_attempt(self) -> None:
        around = self.start('zope.mgr')
        seen = []

        def task() -> None:
            seen.append(zope.security.management.getInteraction())
            if len(seen) == 1:
                raise ConflictError
        with self.assertLogs(TRANSACTIONS, 'WARNING'):
            around.run(task)
        self.assertEqual(2, len({*map(id, seen)}))
        self.assertEqual('zope.mgr', around.run(self.who))
        self.assertIsNone(zope.security.management.queryInteraction())

    def test_none(self) -> None:
        around = self.start()
        self.assertIsNone(
            around.run(zope.security.management.queryInteraction))


class MistakeTests(Case):
    """One line says what is wrong, with the status of a worker."""

    def assertMistake(self, status: int, expected: str,
                      around: Surroundings) -> None:
        before = process_state()
        with self.assertRaisesRegex(
                errors.ServerNotStarted, expected) as caught:
            around.start()
        self.assertEqual(status, caught.exception.status)
        self.assertNotIn('\n', str(caught.exception))
        self.assertEqual(before, process_state())

    def test_principal(self) -> None:
        self.assertMistake(
            errors.UNKNOWN_PRINCIPAL,
            '^no authentication knows the principal nobody: zope.conf names '
            'no site-definition, so there is only zope.mgr$',
            Surroundings(self.zope_conf(), 'nobody'))

    def test_site(self) -> None:
        self.assertMistake(
            errors.UNKNOWN_SITE, "^the root folder has no object 'shop'$",
            Surroundings(self.zope_conf(), None, 'shop'))

    def test_zope_conf(self) -> None:
        self.assertMistake(
            errors.BAD_CONFIGURATION, '^no such file: /nowhere/zope.conf',
            Surroundings('/nowhere/zope.conf'))
        self.assertMistake(
            errors.BAD_CONFIGURATION, 'zope.conf, line 6: unknown',
            Surroundings(self.zope_conf('<unknown>\n</unknown>')))

    def test_database(self) -> None:
        self.start()
        self.assertMistake(
            errors.DATABASE_UNAVAILABLE,
            rf'another process \({os.getpid()}\) has the database open',
            Surroundings(self.zope_conf()))


class TasksTests(Case):
    """The rules of state and responses, with conflicts."""

    def tasks(self, execute: Callable[..., object]) -> Tasks:
        tasks = Tasks(self.start())
        tasks.define(Definition(lambda: {'calls': []}, execute,
                                lambda socket, state, args: None))
        return tasks

    def test_a_response_leaves_once_after_the_commit(self) -> None:
        seen = []

        def execute(socket: ClientSocket, state: dict[str, list[object]],
                    args: dict[str, int]) -> object:
            seen.append((list(state['calls']), dict(args)))
            args['more'] = 1
            state['calls'].append(len(seen))
            application().count = len(seen)
            socket.respond(len(seen))
            if len(seen) == 1:
                with other() as root:
                    root.count = 10
            return state
        tasks = self.tasks(execute)
        request = Request(frames.EXEC, {'a': 1}, frames.AWAIT)
        with self.assertLogs(TRANSACTIONS, 'WARNING'):
            tasks.handle(request)
        self.assertEqual([('response', 2, 0)], request.told)
        self.assertEqual([([], {'a': 1})] * 2, seen)
        tasks.handle(Request(frames.EXEC, {}, frames.AWAIT))
        self.assertEqual([2], seen[-1][0])

    def test_none_leaves_when_all_attempts_fail(self) -> None:
        def execute(socket: ClientSocket, state: dict[str, list[object]],
                    args: object) -> object:
            state['calls'].append(1)
            socket.respond(1)
            raise ConflictError
        tasks = self.tasks(execute)
        request = Request(frames.EXEC, {}, frames.AWAIT)
        with self.assertLogs(TRANSACTIONS, 'WARNING'):
            tasks.handle(request)
        (kind, error, _, name, traceback), = request.told
        self.assertEqual(
            ('failure', 'task', 'ZODB.POSException.ConflictError'),
            (kind, error, name))
        self.assertIn('in execute\n', traceback)
        self.assertNotIn('attempts.py', traceback)


class ChildrenTests(DeclaringTestCase):

    def test_only_those_that_a_task_starts(self) -> None:
        around = Surroundings(self.conf('''
            <runner:executor name="eager" command="false" start="eager" />
            <runner:executor name="lazy" command="sleep 1000" type="simple" />
            '''))
        around.start()
        self.addCleanup(around.close)

        def task() -> None:
            zope.component.getUtility(IExecutor, 'lazy').ensure_running()
        around.run(task)
        lazy = zope.component.getUtility(IExecutor, 'lazy')
        self.assertTrue(lazy.running())
        around.close()
        self.assertFalse(lazy.running())


KILLED = '''
import os, signal, sys
import transaction, zope.component.hooks
from gocept.runner.boot.surroundings import Surroundings
from gocept.runner.tests.boot.test_attempts import DataManager
from gocept.runner.tests.boot.test_surroundings import application

class Killer(DataManager):

    def sortKey(self):
        return '~~~'  # after the database

def kill(*args):
    os.kill(os.getpid(), signal.SIGKILL)

def task():
    application().done = 1
    setattr(Killer(), sys.argv[2], kill)

around = Surroundings(sys.argv[1])
around.start()
around.run(task)
'''


class KilledTests(Case):

    def test_within_the_commit(self) -> None:
        conf = self.zope_conf()
        for phase, expected in (('tpc_vote', None), ('tpc_finish', 1)):
            ended = subprocess.run(
                [sys.executable, '-c', KILLED, conf, phase],
                env=child_environment(), stderr=subprocess.PIPE,
                timeout=DEADLINE)
            self.assertEqual(-signal.SIGKILL, ended.returncode, ended.stderr)
            around = self.start()
            self.assertEqual(expected, self.committed('done'))
            around.close()


JOB = '''
import os, signal
import transaction
from gocept.runner.background import respond
from gocept.runner.tests.boot.test_attempts import DataManager
from gocept.runner.tests.boot.test_surroundings import application, other

def init_task():
    application().count = 0
    return {'calls': 0}

def exec_task(client_socket, state, args):
    state['calls'] += 1
    application().count += args.get('add', 0)
    respond(client_socket, (application().count, state['calls']))
    command = args.pop('command', None)
    if command == 'conflict':  # with an object that nobody knows yet
        with open(args['once'], 'a') as file:
            is_first = not file.tell()
            file.write('.')
        if is_first:
            with other() as root:
                root.count = 100
    elif command == 'fail':
        raise ValueError('so it is')
    elif command == 'doom':
        transaction.doom()
    elif command == 'abort':
        transaction.abort()
    elif command == 'end':
        os.kill(os.getpid(), signal.SIGTERM)
    elif command == 'close':
        application()._p_jar.db().storage.close()
    elif command == 'fork':  # the child comes back, which is a mistake
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
        else:
            application().count = -1
    elif command == 'die':
        DataManager.sortKey = lambda self: '~~~'  # after the database
        setattr(DataManager(), args['phase'],
                lambda *args: os.kill(os.getpid(), signal.SIGKILL))
    return state

def exit_task(client_socket, state, args):
    application().ended = state['calls']
'''


class ServerTests(servers.TestCase):
    """A server with a database, and clients of it."""

    def setUp(self) -> None:
        super().setUp()
        self.addCleanup(reset_process)
        reset_process()
        self.conf = self.dir / 'zope.conf'
        self.conf.write_text(
            f'<zodb>\n<filestorage>\npath {self.dir}/Data.fs\n'
            '</filestorage>\n</zodb>\n')
        self.job = self.dir / 'job.py'
        self.job.write_text(JOB)

    def begin(self) -> int:
        pid: int = self.start(zope_conf=str(self.conf),
                              init_file=str(self.job))
        return pid

    def ask(self, **args: object) -> object:
        with self.client() as client:
            return client.execute(args, await_response=True)

    def committed(self, name: str) -> object:
        """What is in the database, of which no server has the lock."""
        storage = ZODB.FileStorage.FileStorage(
            f'{self.dir}/Data.fs', read_only=True)
        with contextlib.closing(ZODB.DB(storage)) as database:
            with database.transaction() as connection:
                return getattr(connection.root()['Application'], name, None)

    def end(self) -> None:
        with self.client() as client:
            client.terminate()

    def test_responses_and_state(self) -> None:
        self.begin()
        self.assertEqual((1, 1), self.ask(add=1))
        once = str(self.dir / 'once')
        self.assertEqual(
            (105, 2), self.ask(add=5, command='conflict', once=once))
        self.assertEqual('..', (self.dir / 'once').read_text())
        for command, kind in (('fail', 'ValueError'), (
                'doom', 'transaction.interfaces.DoomedTransaction')):
            with self.assertRaises(errors.RemoteTaskError) as caught:
                self.ask(add=7, command=command)
            self.assertEqual(kind, caught.exception.type)
        self.assertEqual((112, 3), self.ask(add=7, command='abort'))
        self.assertEqual((105, 4), self.ask())
        self.end()
        # The database is free when the server has said that it has ended.
        self.assertEqual(4, self.committed('ended'))
        self.assertEqual(105, self.committed('count'))
        self.begin()
        self.assertEqual((0, 1), self.ask())

    def test_a_signal_during_a_task(self) -> None:
        pid = self.begin()
        self.assertEqual((1, 1), self.ask(add=1, command='end'))
        self.wait_until_ended(pid)
        self.assertEqual((1, 1), (
            self.committed('count'), self.committed('ended')))

    def test_a_child_of_a_task_that_comes_back(self) -> None:
        self.begin()
        self.assertEqual((1, 1), self.ask(add=1, command='fork'))
        self.assertEqual((3, 2), self.ask(add=2))
        self.end()
        self.assertEqual(3, self.committed('count'))

    def test_tasks_of_a_client(self) -> None:
        self.start(zope_conf=str(self.conf), site=None, principal='zope.mgr')
        with self.client() as client:
            client.initialize(
                lambda: {'seen': []},
                lambda socket, state, args: socket.respond(
                    [each.principal.id for each in zope.security.management
                     .getInteraction().participations]) or state)
            self.assertEqual(
                ['zope.mgr'], client.execute({}, await_response=True))

    def test_a_server_that_is_killed_within_the_commit(self) -> None:
        for phase, expected in ('tpc_vote', 0), ('tpc_finish', 1):
            pid = self.begin()
            with self.assertRaises(errors.ConnectionLost):
                self.ask(add=1, command='die', phase=phase)
            self.wait_until_ended(pid)
            self.assertEqual(expected, self.committed('count'))

    def test_a_database_that_has_closed_itself(self) -> None:
        pid = self.begin()
        with self.assertRaises(errors.RemoteTaskError):
            self.ask(add=1, command='close')
        self.wait_until_ended(pid)
        self.assertIn('so no tick can work any more', self.log())

    def test_one_that_cannot_be_started(self) -> None:
        for status, expected, options in (
                (errors.UNKNOWN_PRINCIPAL, 'knows the principal nobody',
                 {'principal': 'nobody'}),
                (errors.UNKNOWN_SITE, "no object 'shop'", {'site': 'shop'})):
            with self.assertRaisesRegex(
                    errors.ServerNotStarted, expected) as caught:
                self.start(zope_conf=str(self.conf), **options)
            self.assertEqual(status, caught.exception.status)
