"""Clients whose answers a poller hands out."""

import contextlib
import os
import signal
from typing import Any
from unittest import mock

import transaction
from zope.interface.verify import verifyObject

from gocept.runner.background.worker_client import WorkerClient
from gocept.runner.boot.dryrun import dry_run
from gocept.runner.errors import (
    ConnectionLost,
    ProtocolError,
    RemoteTaskError,
    ServerNotRunning,
    ServerNotStarted,
    StillKept,
)
from gocept.runner.interfaces import IJob, IWorkerClient
from gocept.runner.poller import Poller
from gocept.runner.tests.background import jobs, servers
from gocept.runner.tests.kernels import HOST
from gocept.runner.tests.support import DEADLINE
from gocept.runner.tests.victims import until

TASKS = tuple(f'{jobs.__name__}:{name}' for name in ('init', 'run', 'end'))


class TestCase(servers.TestCase):
    """A server with the tasks of `jobs`, a client, and a poller."""

    options: dict[str, Any] = {}

    def setUp(self) -> None:
        super().setUp()
        self.addCleanup(transaction.abort)
        self.poller = self.enterContext(Poller())
        self.notes = self.dir / 'notes'
        os.environ['JOBS_NOTES'] = str(self.notes)
        self.fifo = str(self.dir / 'fifo')
        os.mkfifo(self.fifo)
        self.starts: list[int] = []

    def start_it(self) -> None:
        """What a client calls where nobody listens."""
        self.starts.append(self.start(tasks=TASKS))

    def client(self, **options: Any) -> WorkerClient:  # type: ignore[override]
        client = self.enterContext(WorkerClient(HOST, self.port, **{
            'timeout': DEADLINE, 'start': self.start_it, **self.options,
            **options}))
        self.poller.register(client)
        return client

    def fetch(self, count: int = 1) -> list[Any]:
        """Wait for so many jobs, and return what they have."""
        found: list[Any] = []
        while len(found) < count:
            self.assertTrue(self.poller.pause(DEADLINE), 'nothing comes')
            found += self.poll()
        self.assertEqual([], self.poll())
        return found

    def poll(self) -> list[Any]:
        """The results, or errors, of the jobs that are there."""
        return [result(job) for job, _ in self.poller.poll(0)]

    def kill(self) -> None:
        """Kill the last server that was started."""
        os.kill(self.starts[-1], signal.SIGKILL)
        self.wait_until_ended(self.starts[-1])


def result(job: Any) -> Any:
    try:
        return job.result()
    except Exception as error:
        return type(error)


class PollerTests(TestCase):

    def test_contracts(self) -> None:
        client = self.client()
        verifyObject(IWorkerClient, client)
        verifyObject(IJob, client.submit('a'))
        self.fetch()

    def test_a_job(self) -> None:
        client = self.client()
        job = client.submit('a', key='b')
        self.assertTrue(self.poller.pause(DEADLINE))
        (found, source), = self.poller.poll(0)
        self.assertIs(job, found)
        self.assertIs(client, source)
        self.assertEqual('b', job.key)
        self.assertTrue(job.done)
        self.assertEqual((1, 'a'), job.result())
        self.assertEqual([], self.poller.poll(0))
        self.assertFalse(self.poller.pause(0))

    def test_many_jobs_in_order(self) -> None:
        client = self.client()
        for number in range(50):
            client.submit(number)
        self.assertEqual([(number + 1, number) for number in range(50)],
                         self.fetch(50))

    def test_a_callback(self) -> None:
        client = self.client()
        found: list[Any] = []

        def take(job: IJob, source: object) -> None:
            found.append(job.result())
            self.poller.wakeup()  # it calls back, and waits on

        self.poller.register(client, take)
        client.submit('a')
        while not found:
            self.poller.poll(DEADLINE)
        self.assertEqual([(1, 'a')], found)

    def test_an_answer_that_came_while_another_one_was_waited_for(
            self) -> None:
        client = self.client()
        client.submit('a')
        self.assertEqual((2, 'b'), client.execute('b', True))
        self.assertEqual([(1, 'a')], self.fetch())

    def test_a_result_that_somebody_has_waited_for(self) -> None:
        client = self.client()
        self.assertEqual((1, 'a'), client.submit('a').result())
        self.assertEqual([], self.poll())

    def test_one_after_the_other(self) -> None:
        client = self.client()
        self.assertIsNone(client.fetch())
        for number in range(3):
            client.submit(number)
        client.execute('b', True)  # so that all are there
        self.assertEqual(0, client.fetch().result()[1])
        self.assertTrue(self.poller.pause(DEADLINE))
        self.assertEqual(1, client.fetch().result()[1])
        self.assertTrue(self.poller.pause(DEADLINE))
        self.assertEqual([(3, 2)], self.poll())
        self.assertIsNone(client.fetch())
        self.assertFalse(self.poller.pause(0))

    def test_a_receipt(self) -> None:
        self.client().submit('a', False)
        self.assertEqual([{'message': "Received 'EXEC'"}], self.fetch())

    def test_registered_later(self) -> None:
        client = self.client()
        self.poller.unregister(client)
        client.submit('a')
        self.assertEqual((2, 'b'), client.execute('b', True))
        client.submit('c')
        self.poller.register(client)
        self.assertEqual([(1, 'a'), (3, 'c')], self.fetch(2))

    def test_a_task_that_fails(self) -> None:
        client = self.client()
        client.submit('fail')
        client.submit('a')
        self.assertEqual([RemoteTaskError, (2, 'a')], self.fetch(2))

    def test_a_signal_while_it_waits(self) -> None:
        client = self.client()
        client.submit(['wait', self.fifo])
        until(lambda: 'waits' in self.noted())
        with contextlib.ExitStack() as undo:
            undo.callback(signal.signal, signal.SIGUSR1, signal.signal(
                signal.SIGUSR1, lambda *args: self.poller.wakeup()))
            os.kill(os.getpid(), signal.SIGUSR1)
            self.assertTrue(self.poller.pause(DEADLINE))
        self.assertEqual([], self.poll())
        open(self.fifo, 'wb').close()
        self.assertEqual([(1, ['wait', self.fifo])], self.fetch())

    def noted(self) -> list[str]:
        """The first words of what tasks have noted."""
        return [line.split()[0] for line in (
            self.notes.read_text() if self.notes.exists() else ''
            ).splitlines()]

    def test_a_forked_child_has_no_answers(self) -> None:
        client = self.client()
        client.submit('a')
        pid = os.fork()
        if not pid:
            try:
                status = len(self.poller.poll(0)) + len(client._jobs)
                status += client.execute('b', True)[1] != 'b'
            except BaseException:
                status = 9
            os._exit(status)
        self.assertEqual(0, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        self.assertEqual([(1, 'a')], self.fetch())


class ServerTests(TestCase):

    def test_it_is_started_once(self) -> None:
        client = self.client()
        self.assertEqual([], self.starts)
        client.submit('a')
        client.execute('b')
        self.assertEqual(1, len(self.starts))

    def test_nobody_can_start_it(self) -> None:
        client = self.client(start=None)
        for call in client.submit, client.execute, client.terminate:
            with self.assertRaises(ServerNotRunning):
                call({})

    def test_the_start_fails(self) -> None:
        def start() -> None:
            raise ServerNotStarted('no')
        client = self.client(start=start)
        for call in client.submit, client.execute:
            with self.assertRaisesRegex(ServerNotStarted, 'no'):
                call({})
        self.assertEqual([], self.poll())

    def test_on_another_machine(self) -> None:
        client = self.client()
        client.address.is_local = lambda: False
        with self.assertRaises(ServerNotRunning):
            client.submit('a')
        self.assertEqual([], self.starts)

    def test_none_is_started_to_end_it(self) -> None:
        with self.assertRaises(ServerNotRunning):
            self.client().terminate()
        self.assertEqual([], self.starts)

    def test_it_dies_during_a_request(self) -> None:
        client = self.client()
        client.submit('a')
        client.submit(['die', self.fifo])
        client.submit('b')
        open(self.fifo, 'wb').close()
        self.assertEqual([(1, 'a'), ConnectionLost, ConnectionLost],
                         self.fetch(3))
        with self.assertLogs('gocept.runner.background', 'WARNING') as log:
            client.submit('c')
        self.assertIn('its state is a new one', log.output[0])
        self.assertEqual([(1, 'c')], self.fetch())

    def test_it_dies_between_requests(self) -> None:
        client = self.client()
        for call in (lambda: client.execute('a', True),
                     lambda: client.submit('a').result()):
            self.assertEqual((1, 'a'), call())
            self.kill()
            self.assertEqual((1, 'a'), call())
            self.kill()

    def test_an_idle_server_that_dies_is_no_news(self) -> None:
        client = self.client()
        client.submit('a')
        self.fetch()
        self.kill()
        while self.poller.pause(0):  # at most once
            self.assertEqual([], self.poll())
        self.assertEqual(1, len(self.starts))

    def test_a_request_that_may_run_twice(self) -> None:
        client = self.client(retry=True)
        client.submit(['wait', self.fifo])
        client.submit('a')
        until(lambda: self.notes.read_text().count('waits') == 1)
        self.kill()
        with self.assertLogs('gocept.runner.background', 'WARNING'):
            self.assertTrue(self.poller.pause(DEADLINE))
            self.assertEqual([], self.poll())
        until(lambda: self.notes.read_text().count('waits') == 2)
        open(self.fifo, 'wb').close()
        self.assertEqual([(1, ['wait', self.fifo]), (2, 'a')], self.fetch(2))

    def test_a_request_that_may_run_twice_but_there_is_no_server(
            self) -> None:
        client = self.client(retry=True)
        client.submit(['wait', self.fifo])
        until(lambda: 'waits' in self.notes.read_text())

        def start() -> None:
            raise ServerNotStarted('no')
        client._start = start
        self.kill()
        self.assertEqual([ServerNotStarted], self.fetch())

    def test_a_server_without_tasks(self) -> None:
        client = self.client(
            start=None, tasks=lambda: (jobs.init, jobs.run, None))
        for _ in range(2):
            pid = self.start()
            client.submit('a')
            self.assertEqual([(1, 'a')], self.fetch())
            client.submit('b')
            self.assertEqual([(2, 'b')], self.fetch())
            os.kill(pid, signal.SIGKILL)
            self.wait_until_ended(pid)

    def test_a_server_that_others_have_initialized(self) -> None:
        self.start(tasks=TASKS)
        self.assertEqual((1, 'a'), self.client(
            tasks=lambda: self.fail('not needed')).execute('a', True))

    def test_an_init_task_that_fails(self) -> None:
        self.start()
        client = self.client(tasks=lambda: (jobs.init_badly, jobs.run, None))
        for call in client.submit, client.execute:
            with self.assertRaisesRegex(RemoteTaskError, 'cannot be made'):
                call('a')


class DamageTests(TestCase):

    def test_what_a_server_may_not_say(self) -> None:
        client = self.client()
        client.submit(['wait', self.fifo])
        until(lambda: 'waits' in self.notes.read_text())

        def feed(data: bytes) -> None:
            raise ProtocolError('a wrong tag')
        link = client._session._link
        with mock.patch.object(link, '_feed', feed):
            open(self.fifo, 'wb').close()
            with self.assertLogs('gocept.runner.background', 'WARNING') as log:
                self.assertEqual([ConnectionLost], self.fetch())
        self.assertIn('a wrong tag', log.output[0])
        self.assertEqual((2, 'a'), client.execute('a', True))


class CloseTests(TestCase):

    def test_it_can_be_used_again(self) -> None:
        client = self.client()
        client.submit('a')
        self.fetch()
        client.close()
        client.close()
        self.poller.register(client)
        client.submit('b')
        self.assertEqual([(2, 'b')], self.fetch())

    def test_answers_that_nobody_has_fetched(self) -> None:
        client = self.client()
        job = client.submit('a')
        with self.assertLogs('gocept.runner.background', 'WARNING') as log:
            client.close()
        self.assertIn('closed with 1 jobs', log.output[0])
        with self.assertRaises(ConnectionLost):
            job.result()
        self.assertEqual([], self.poll())

    def test_nothing_is_open_before_it_is_used(self) -> None:
        client = WorkerClient(HOST, self.port)
        self.assertIsNone(client._readable)
        self.assertEqual(-1, client._session.connected_fd)
        client.close()


class TransactionTests(TestCase):

    options = {'transactional': True}

    def test_a_commit_sends(self) -> None:
        client = self.client()
        job = client.submit('a')
        client.submit('b')
        self.assertFalse(job.done)
        self.assertEqual([], self.poll())
        transaction.commit()
        self.assertEqual([(1, 'a'), (2, 'b')], self.fetch(2))

    def test_an_abort_forgets(self) -> None:
        client = self.client()
        client.submit('a')
        transaction.abort()
        client.submit('b')
        transaction.commit()
        self.assertEqual([(1, 'b')], self.fetch())

    def test_a_savepoint(self) -> None:
        client = self.client()
        client.submit('a')
        savepoint = transaction.savepoint()
        client.submit('b')
        savepoint.rollback()
        client.submit('c')
        transaction.commit()
        self.assertEqual([(1, 'a'), (2, 'c')], self.fetch(2))

    def test_an_aborted_transaction_has_fetched(self) -> None:
        client = self.client()
        for number in range(3):
            client.submit(number)
        transaction.commit()
        expected = [(1, 0), (2, 1), (3, 2)]
        self.assertEqual(expected, self.fetch(3))
        transaction.abort()
        self.assertEqual(expected, self.fetch(3))
        transaction.commit()
        self.assertEqual([], self.poll())

    def test_a_value_that_an_aborted_transaction_has_changed(self) -> None:
        client = self.client()
        client.submit([1, 2])
        transaction.commit()
        for _ in range(3):
            (found,) = self.fetch()
            self.assertEqual((1, [1, 2]), found)
            found[1].clear()
            transaction.abort()

    def test_one_in_each_transaction(self) -> None:
        client = self.client()
        for number in range(3):
            client.submit(number)
        transaction.commit()
        found = []
        aborted = False
        while len(found) < 3:
            self.assertTrue(self.poller.pause(DEADLINE))
            while (job := client.fetch()) is not None:
                if job.result() == (2, 1) and not aborted:
                    aborted = True
                    transaction.abort()
                else:
                    found.append(job.result())
                    transaction.commit()
        self.assertEqual([(1, 0), (2, 1), (3, 2)], found)
        self.assertEqual([], self.poll())

    def test_what_came_later_comes_later(self) -> None:
        client = self.client()
        client.submit('a')
        transaction.commit()
        self.fetch()
        client.submit('b')
        transaction.abort()
        client.submit('c')
        self.assertEqual([(1, 'a')], self.poll())
        transaction.commit()
        self.assertEqual([(2, 'c')], self.fetch())
        transaction.abort()

    def test_a_job_that_makes_transactions_fail(self) -> None:
        client = self.client(redeliveries=1)
        for each in 'abc':
            client.submit(each)
        transaction.commit()
        done = []
        with self.assertLogs('gocept.runner.background', 'ERROR') as log:
            while len(done) < 2:
                self.assertTrue(self.poller.pause(DEADLINE))
                try:
                    letters = [job.result()[1]
                               for job, _ in self.poller.poll(0)]
                    if 'b' in letters:
                        raise ValueError('b')
                except ValueError:
                    transaction.abort()
                else:
                    transaction.commit()
                    done += letters
        self.assertEqual(['a', 'c'], done)
        self.assertEqual(1, client.skipped)
        self.assertIn('is skipped (1 skipped by now)', log.output[0])

    def test_what_would_wait_for_ever(self) -> None:
        client = self.client()
        job = client.submit('a')
        for call in (lambda: client.execute('b'), client.terminate,
                     job.result, self.poller.poll):
            with self.assertRaises(StillKept):
                call()
        transaction.commit()
        self.assertEqual([(1, 'a')], self.fetch())

    def test_no_server_can_be_started(self) -> None:
        client = self.client()
        job = client.submit('a')
        self.kill()

        def start() -> None:
            raise ServerNotStarted('no')
        client._start = start
        with self.assertRaises(ServerNotStarted):
            transaction.commit()
        transaction.abort()
        self.assertFalse(job.done)
        self.assertEqual([], self.poll())

    def test_it_dies_before_the_commit(self) -> None:
        client = self.client()
        client.submit('a')
        self.kill()
        with self.assertLogs('gocept.runner.background', 'WARNING'):
            transaction.commit()
        self.assertEqual([(1, 'a')], self.fetch())

    def test_it_dies_during_the_commit(self) -> None:
        client = self.client()
        client.submit('a')
        client.submit('b')

        def start() -> None:
            raise ServerNotStarted('no')

        class Killer:
            transaction_manager = transaction.manager

            def sortKey(self) -> str:
                return '~'

            def nothing(self, txn: Any) -> None:
                pass

            abort = tpc_begin = commit = tpc_vote = tpc_abort = nothing

            def tpc_finish(finishing, txn: Any) -> None:
                client._start = start
                self.kill()
        transaction.get().join(Killer())
        with self.assertLogs('gocept.runner.background', 'ERROR') as log:
            transaction.commit()
        self.assertIn('was not sent: no', log.output[-1])
        # The end of the server may be noticed after the first one.
        first, second = self.fetch(2)
        self.assertIn(first, (ConnectionLost, ServerNotStarted))
        self.assertIs(ServerNotStarted, second)

    def test_it_dies_when_the_request_has_arrived(self) -> None:
        client = self.client()
        client.submit('die')
        transaction.commit()
        self.assertEqual([ConnectionLost], self.fetch())
        transaction.abort()
        self.assertEqual([ConnectionLost], self.fetch())
        with self.assertLogs('gocept.runner.background', 'WARNING'):
            client.submit('a')
        transaction.commit()
        self.assertEqual([(1, 'a')], self.fetch())

    def test_a_dry_run(self) -> None:
        client = self.client()
        client.submit('a')
        transaction.commit()
        with dry_run():
            client.submit('b')
            self.assertEqual([(1, 'a')], self.fetch())
            transaction.commit()
        self.assertEqual([], self.poll())
        client.submit('c')
        transaction.commit()
        self.assertEqual([(2, 'c')], self.fetch())

    def test_explicit_mode_outside_of_a_transaction(self) -> None:
        client = self.client()
        transaction.manager.explicit = True
        self.addCleanup(setattr, transaction.manager, 'explicit', False)
        client.submit('a')
        self.assertEqual([(1, 'a')], self.fetch())
        self.assertEqual((2, 'b'), client.execute('b', True))
        transaction.begin()

    def test_a_poller_that_could_not_hand_them_out(self) -> None:
        client = self.client()
        client.submit('a')
        client.submit('b')
        transaction.commit()
        jobs_ = [job for job, _ in self.poller_pairs(2)]
        client.unfetch(jobs_)
        self.assertEqual([(1, 'a'), (2, 'b')], self.fetch(2))

    def poller_pairs(self, count: int) -> list[Any]:
        found: list[Any] = []
        while len(found) < count:
            self.assertTrue(self.poller.pause(DEADLINE))
            found += self.poller.poll(0)
        return found
