"""Background servers that ZCML declares: with the worker, or on their own."""

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

import transaction
import zope.component
import zope.component.hooks
from zope.interface.verify import verifyObject

from gocept.runner import runner
from gocept.runner.background import Client, Server
from gocept.runner.background.tokens import VARIABLE, find_token
from gocept.runner.errors import (
    CannotStart,
    ConnectionLost,
    ServerNotRunning,
    ServerNotStarted,
    ServerRefused,
    Terminated,
)
from gocept.runner.interfaces import (
    IClient,
    IDeclaredServer,
    IPoller,
    IServer,
    IWorkerClient,
)
from gocept.runner.tests.background import jobs
from gocept.runner.tests.background.servers import kill
from gocept.runner.tests.cli.test_declared import CommandTestCase
from gocept.runner.tests.declaring import attributes, zcml
from gocept.runner.tests.executors import is_gone
from gocept.runner.tests.kernels import HOST, free_port
from gocept.runner.tests.streams import Alarms
from gocept.runner.tests.support import DEADLINE
from gocept.runner.tests.victims import until
from gocept.runner.tests.zcml.test_directives import DirectiveTestCase
from gocept.runner.waits.deadline import READABLE, Deadline, wait_for
from gocept.runner.zcml.servers import DeclaredServer, EagerServer

HERE = __name__

JOBS = jobs.__name__


def a_server(name: str = 'convert', **more: str) -> str:
    """Declare one with the tasks of `jobs`."""
    return '<runner:server ' + attributes(**{
        'name': name, 'init': f'{JOBS}:init', 'exec': f'{JOBS}:run',
        'exit': f'{JOBS}:end', 'start_timeout': str(DEADLINE),
        **more}) + ' />\n'


def client(name: str = 'convert') -> Any:
    return zope.component.getUtility(IClient, name)


def server(name: str = 'convert') -> Any:
    return zope.component.getUtility(IServer, name)


class Mixin:
    """A state directory, and the notes of tasks."""

    dir: Any
    addCleanup: Any
    enterContext: Any
    assertTrue: Any

    def setUp(self) -> None:
        super().setUp()  # type: ignore[misc]
        self.enterContext(mock.patch.dict(
            os.environ, XDG_STATE_HOME=str(self.dir / 'state'),
            JOBS_NOTES=str(self.dir / 'jobs'),
            JOBS_FIFO=str(self.dir / 'fifo')))
        os.environ.pop(VARIABLE, None)
        os.mkfifo(self.dir / 'fifo')
        self.port = free_port()

    def noted(self, what: str) -> list[int]:
        """The processes that have noted this."""
        path = self.dir / 'jobs'
        lines = path.read_text().splitlines() if path.exists() else []
        return [int(line.split()[1]) for line in lines
                if line.split()[0] == what]

    def hold(self, pid: int) -> int:
        """Have a server end with the test."""
        fd = os.pidfd_open(pid)
        self.addCleanup(os.close, fd)
        self.addCleanup(wait_for, fd, READABLE, Deadline(DEADLINE))
        self.addCleanup(kill, fd)
        return pid

    def kill_one_that_waits(self) -> None:
        """Kill the server whose init task waits."""
        until(lambda: self.noted('waits'))
        self.kill(self.noted('waits')[-1])

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        until(lambda: is_gone(pid))


class DirectiveTests(Mixin, DirectiveTestCase):

    def test_nothing_is_started(self) -> None:
        supervisor = self.load(
            a_server() + a_server('two', start='detached'))
        self.assertEqual(['convert', 'two'], [*supervisor.children])
        self.assertEqual(['eager', 'detached'], [
            child.start for child in supervisor.children.values()])
        self.assertFalse((self.dir / 'state').exists())
        for each in 'convert', 'two':
            verifyObject(IDeclaredServer, server(each))
            verifyObject(IWorkerClient, client(each))
            self.assertIs(client(each), server(each).client)
            self.assertEqual(each, server(each).name)
        self.assertEqual(54321, server('two').port)
        self.assertNotEqual(54321, server().port)

    def test_options(self) -> None:
        token = self.write('token', 'secret\n')
        token.chmod(0o600)
        self.load(a_server(
            port=str(self.port), token_file=str(token), log_level='DEBUG',
            log_file=str(self.dir / 'log'), max_message='1000',
            queue_size='7', queue_bytes='9', transactional='true',
            redeliveries='none', retry='true', timeout='4', heartbeat='60',
            stop_timeout='3'))
        found = server()
        self.assertIsInstance(found, EagerServer)
        options = found.options()
        self.assertEqual(
            (HOST, self.port, 'secret', 'DEBUG', 1000, 7, 9),
            tuple(options[each] for each in (
                'host', 'port', 'token', 'log_level', 'max_message',
                'queue_size', 'queue_bytes')))
        self.assertEqual(
            [f'{JOBS}:init', f'{JOBS}:run', f'{JOBS}:end'],
            [*options['tasks']])
        self.assertTrue(client().transactional)
        self.assertIsNone(client().redeliveries)

    def test_names_of_tasks(self) -> None:
        self.load(a_server(init=f'{JOBS}.init'))
        self.assertEqual(f'{JOBS}:init', server().tasks[0])

    def test_no_exit_task(self) -> None:
        self.load('<runner:server ' + attributes(
            name='convert', init=f'{JOBS}:init', exec=f'{JOBS}:run') + ' />')
        self.assertIsNone(server().tasks[2])

    def test_the_tokens_of_eager_ones_differ(self) -> None:
        self.load(a_server() + a_server('two'))
        one, two = (server(each).options()['token']
                    for each in ('convert', 'two'))
        self.assertNotEqual(one, two)
        self.assertEqual(64, len(one))

    def test_mistakes(self) -> None:
        for name, text, mode in (('empty', '', 0o600), ('open', 't', 0o644)):
            self.write(name, text).chmod(mode)
        (self.dir / 'binary').write_bytes(b'\xff')
        (self.dir / 'binary').chmod(0o600)
        for body, *expected in (
                ('<runner:server name="a" />', 'Missing parameter'),
                (a_server(init='nowhere:init'), 'nowhere'),
                (a_server(exec=f'{JOBS}:not_there'), 'not_there'),
                (a_server(exit=f'{JOBS}:not_a_function'),
                 'is no function, but 3'),
                (a_server(start='lazy'), 'none of eager, detached'),
                (a_server(port='0'), '0 is less than 1'),
                (a_server(start='detached', stop_timeout='3'),
                 'has no "stop_timeout"'),
                (a_server(tls_cert='a'), 'TLS needs'),
                (a_server(token_file=str(self.dir / 'none')), 'No such file'),
                (a_server(token_file=str(self.dir / 'empty')),
                 'no token in'),
                (a_server(token_file=str(self.dir / 'open')),
                 'other users may read'),
                (a_server(token_file=str(self.dir / 'binary')),
                 'no text in UTF-8'),
                (a_server(principal='p'), 'needs zope_conf'),
                (a_server(requires='b'), "server 'convert' requires 'b'",
                 'no app, executor or server')):
            with self.subTest(body):
                self.assertWrong(body, *expected)

    def test_one_list_of_names(self) -> None:
        with self.assertRaisesRegex(Exception, 'Conflict'):
            self.load(a_server('a') + '<runner:app name="a" command="cat" />')


class SupervisorTestCase(Mixin, DirectiveTestCase):

    @contextlib.contextmanager
    def running(self, body: str) -> Iterator[Any]:
        """A worker runs; the poller that it has."""
        supervisor = self.load(body)
        with supervisor.running(DEADLINE):
            yield zope.component.getUtility(IPoller)


class EagerTests(SupervisorTestCase):

    def test_it_lives_and_ends_with_the_worker(self) -> None:
        with self.running(a_server()):
            pid, = self.noted('init')
            self.assertEqual((1, 'a'), client().execute('a', True))
            self.assertIsNone(find_token(HOST, server().port))
            with (self.assertRaises(ServerRefused),
                  Client(HOST, server().port, 'guess') as stranger):
                stranger.execute('b')
        self.assertTrue(is_gone(pid))
        self.assertEqual([pid], self.noted('end'))

    def test_twice(self) -> None:
        supervisor = self.load(a_server())
        for _ in range(2):
            with supervisor.running(DEADLINE):
                self.assertEqual((1, 'a'), client().execute('a', True))
        self.assertEqual(2, len({*self.noted('end')}))

    def test_the_description_names_no_port_that_was_found_anew(self) -> None:
        tasks = f'{JOBS}:init', f'{JOBS}:run', None
        self.assertEqual(f'{JOBS}:run at 127.0.0.1, on any free port',
                         EagerServer('two', tasks).description)
        self.assertEqual(f'{JOBS}:run at 127.0.0.1:{self.port}',
                         EagerServer('two', tasks, port=self.port).description)

    def test_an_answer_ends_the_pause(self) -> None:
        with self.running(a_server()) as poller:
            poller.register(client())
            client().submit('a', key=7)
            self.assertTrue(poller.pause(DEADLINE))
            (job, _), = poller.poll(0)
            self.assertEqual((7, (1, 'a')), (job.key, job.result()))

    def test_its_init_task_fails(self) -> None:
        supervisor = self.load(a_server(init=f'{JOBS}:init_badly'))
        with (self.assertRaises(CannotStart) as caught,
              supervisor.running(DEADLINE)):
            pass
        self.assertRegex(
            str(caught.exception),
            f"^server 'convert': the server at {HOST}:{server().port} cannot "
            r'start: ValueError: this state cannot be made \(.*jobs.py, line '
            r'\d+\)$')

    def test_its_init_task_prints(self) -> None:
        with self.running(a_server(init=f'{JOBS}:init_aloud')):
            self.assertEqual((1, 'a'), client().execute('a', True))

    def test_its_init_task_prints_and_fails(self) -> None:
        supervisor = self.load(a_server(init=f'{JOBS}:init_badly_aloud'))
        with (self.assertRaisesRegex(
                CannotStart, 'cannot start: ValueError: this state'),
              supervisor.running(DEADLINE)):
            pass

    def test_its_port_is_taken(self) -> None:
        with self.running(a_server(port=str(self.port))):
            with self.assertRaises(CannotStart) as caught:
                other = EagerServer(
                    'two', (f'{JOBS}:init', f'{JOBS}:run', None),
                    port=self.port)
                supervisor = self.load('')
                supervisor.add_server('two', other, 'eager')
                supervisor.connect('two')
                with supervisor.running(DEADLINE):
                    pass
            self.assertIn(f'listens on port {self.port}',
                          str(caught.exception))

    def test_other_children_require_it(self) -> None:
        app = ('<runner:app ' + attributes(
            name='app', command='cat', requires='convert', start='eager')
            + ' />')
        with self.running(app + a_server()):
            self.assertEqual(1, len(self.noted('init')))

    def test_it_is_killed(self) -> None:
        with self.running(a_server()) as poller:
            poller.register(client())
            self.assertEqual((1, 'a'), client().execute('a', True))
            self.kill(self.noted('init')[0])
            with self.assertLogs('gocept.runner', 'WARNING') as log:
                self.assertEqual((1, 'b'), client().execute('b', True))
            self.assertIn('its state is a new one', '\n'.join(log.output))
            client().submit(['wait', str(self.dir / 'fifo')])
            until(lambda: self.noted('waits'))
            self.kill(self.noted('init')[1])
            self.assertTrue(poller.pause(DEADLINE))
            (job, _), = poller.poll(0)
            with self.assertRaises(ConnectionLost):
                job.result()
            self.assertEqual((1, 'c'), client().execute('c', True))
        self.assertEqual(3, len(self.noted('init')))
        self.assertEqual(1, len(self.noted('end')))

    def test_a_client_ends_it(self) -> None:
        with self.running(a_server()):
            client().terminate()
            self.assertEqual((1, 'a'), client().execute('a', True))
        self.assertEqual(2, len({*self.noted('end')}))

    def test_it_is_killed_after_it_was_found_to_run(self) -> None:
        with self.running(a_server()):
            server()._start()
            self.kill(self.noted('init')[0])
            server()._start()
            self.assertEqual((1, 'a'), client().execute('a', True))
        self.assertEqual(2, len(self.noted('init')))

    def test_it_is_killed_while_it_starts(self) -> None:
        supervisor = self.load(a_server(init=f'{JOBS}:init_when_told'))
        with ThreadPoolExecutor(1) as threads:
            threads.submit(self.kill_one_that_waits)
            with (self.assertRaisesRegex(CannotStart, "^server 'convert': "),
                  supervisor.running(DEADLINE)):
                pass

    def test_a_signal_while_it_starts(self) -> None:
        supervisor = self.load(a_server(init=f'{JOBS}:init_when_told'))
        with contextlib.ExitStack() as stack:
            threads = stack.enter_context(ThreadPoolExecutor(1))
            threads.submit(lambda: (until(lambda: self.noted('waits')),
                                    os.kill(os.getpid(), signal.SIGTERM)))
            with self.assertRaises(Terminated), Alarms():
                stack.enter_context(supervisor.running(DEADLINE))
        pid, = self.noted('waits')
        self.assertTrue(is_gone(pid))

    def test_the_worker_is_killed(self) -> None:
        self.write('s.zcml', zcml(a_server()))
        program = self.program(program_text(self.dir))
        program.wait_for("(1, 'a')")
        pid, = self.noted('init')
        program.send(signal.SIGKILL)
        until(lambda: is_gone(pid))
        self.assertEqual([pid], self.noted('end'))


def program_text(directory: Any) -> str:
    """A program that stays until it is killed."""
    return f'''
import threading
import zope.component, zope.configuration.xmlconfig
from gocept.runner.interfaces import ISupervisor, IClient
zope.configuration.xmlconfig.file({str(directory)!r} + "/s.zcml")
with zope.component.getUtility(ISupervisor).running(30):
    client = zope.component.getUtility(IClient, "convert")
    print(client.execute("a", True), flush=True)
    threading.Event().wait()
'''


class DetachedTests(SupervisorTestCase):

    def detached(self, **more: str) -> str:
        return a_server(start='detached', port=str(self.port), **more)

    def test_it_goes_on(self) -> None:
        supervisor = self.load(self.detached())
        for number in 1, 2:
            with supervisor.running(DEADLINE):
                self.assertEqual((number, 'a'), client().execute('a', True))
                self.hold(self.noted('init')[0])
        self.assertEqual(1, len(self.noted('init')))
        client().terminate()
        self.assertEqual(self.noted('init'), self.noted('end'))

    def test_it_is_killed(self) -> None:
        with self.running(self.detached()) as poller:
            poller.register(client())
            self.assertEqual((1, 'a'), client().execute('a', True))
            self.kill(self.noted('init')[0])
            with self.assertLogs('gocept.runner', 'WARNING') as log:
                client().submit('b')
            self.assertIn('its state is a new one', '\n'.join(log.output))
            self.assertTrue(poller.pause(DEADLINE))
            (job, _), = poller.poll(0)
            self.assertEqual((1, 'b'), job.result())
        self.hold(self.noted('init')[1])

    def test_two_workers(self) -> None:
        self.write('s.zcml', zcml(self.detached()))
        programs = [self.program(program_text(self.dir)) for _ in range(2)]
        for each in programs:
            each.wait_for("'a')")
        pid, = self.noted('init')
        self.hold(pid)
        for each in programs:
            each.send(signal.SIGKILL)
            each.end()
        self.load(self.detached())
        self.assertEqual((3, 'b'), client().execute('b', True))
        client().close()

    def test_one_that_was_started_without_tasks(self) -> None:
        self.hold(Server(HOST, self.port).run_background(DEADLINE))
        with self.running(self.detached()):
            self.assertEqual((1, 'a'), client().execute('a', True))

    def test_its_init_task_fails(self) -> None:
        with (self.running(self.detached(init=f'{JOBS}:init_badly')),
              self.assertRaisesRegex(ServerNotStarted, 'cannot be made')):
            client().execute('a')

    def test_it_is_killed_while_it_starts(self) -> None:
        with (ThreadPoolExecutor(1) as threads,
              self.running(self.detached(init=f'{JOBS}:init_when_told'))):
            threads.submit(self.kill_one_that_waits)
            with self.assertRaisesRegex(
                    ServerNotStarted, 'ended without a word'):
                client().execute('a')

    def test_its_init_task_prints(self) -> None:
        with self.running(self.detached(init=f'{JOBS}:init_aloud')):
            client().ensure_running()
            self.hold(self.noted('init')[0])

    def test_others_require_it(self) -> None:
        app = ('<runner:app ' + attributes(
            name='app', command='cat', requires='convert', start='eager')
            + ' />')
        with self.running(app + self.detached()):
            self.hold(self.noted('init')[0])

    def test_it_requires_others(self) -> None:
        with self.running(self.detached(requires='two') + a_server('two')):
            self.assertEqual(1, len(self.noted('init')))
            client().ensure_running()
            self.hold(self.noted('init')[1])

    def test_on_another_machine(self) -> None:
        with self.running(self.detached()):
            client().address.is_local = lambda: False
            with self.assertRaises(ServerNotRunning):
                client().submit('a')

    def test_another_program_listens_there(self) -> None:
        with socket.create_server((HOST, self.port)) as sock:
            sock.listen()
            declared = DeclaredServer(
                'two', (f'{JOBS}:init', f'{JOBS}:run', None),
                port=self.port, start_timeout=0.2)
            with self.assertRaises(TimeoutError):
                declared.ensure_running()
            declared.client.close()


@runner.appmain(ticks=3600)
def convert() -> object:
    """Hand out three jobs; store the answers."""
    site = zope.component.hooks.getSite()
    poller = zope.component.getUtility(IPoller)
    poller.register(client())
    if not hasattr(site, 'answers'):
        site.answers = ()
        for number in range(3):
            client().submit(number, key=number)
        return None
    for job, _ in poller.poll(0):
        site.answers += ((job.key, job.result()),)
    ticks.append(len(site.answers))
    if len(ticks) == 1:
        raise ValueError('once')
    if len(site.answers) == 3:
        stored.append(site.answers)
        return runner.Exit
    return None


@runner.once()
def submit_only() -> None:
    """Hand out a job that writes a note."""
    client().submit('a')


ticks: list[int] = []
stored: list[Any] = []


class WorkerTests(Mixin, CommandTestCase):

    def setUp(self) -> None:
        super().setUp()
        ticks.clear()
        stored.clear()
        self.addCleanup(transaction.abort)

    def declare(self, **more: str) -> None:
        self.conf(a_server(**more)
                  + f'<runner:worker name="w" handler="{HERE}:convert" />'
                  + f'<runner:worker name="s" handler="{HERE}:submit_only" />')

    def test_a_tick_that_fails(self) -> None:
        self.declare(transactional='true')
        self.assertEqual(0, self.command('run', 'w'), self.errors)
        expected = [(number, (number + 1, number)) for number in range(3)]
        self.assertEqual([expected], [sorted(each) for each in stored])

    def test_a_dry_run(self) -> None:
        self.declare(transactional='true', start='detached',
                     port=str(self.port))
        self.assertEqual(0, self.command('run', 's'), self.errors)
        self.hold(self.noted('init')[0])
        self.assertEqual(0, self.command('run', 's', '--dry-run'),
                         self.errors)
        with Client(HOST, self.port) as other:
            self.assertEqual((2, 'b'), other.execute('b', True))

    def test_the_list(self) -> None:
        self.declare(start='detached', port=str(self.port), requires='two')
        self.conf(a_server('two', host='localhost')
                  + a_server(start='detached', port=str(self.port),
                             requires='two'))
        self.assertEqual(0, self.command('list'), self.errors)
        self.assertRegex(
            self.output, rf'server +convert +detached +two +{JOBS}:run at '
            rf'{HOST}:{self.port}\n')
        self.assertRegex(
            self.output, rf'server +two +eager +- +{JOBS}:run at '
            r'localhost, on any free port\n')

    def test_it_cannot_start(self) -> None:
        self.declare(init=f'{JOBS}:init_badly')
        self.assertEqual(71, self.command('run', 's'))
        self.assertRegex(
            self.errors, "^gocept-runner run: error: server 'convert': .*"
            r'ValueError: this state cannot be made \(.*\)\n$')

    def test_a_mistake_has_its_place(self) -> None:
        self.declare(exec=f'{JOBS}:not_there')
        self.assertEqual(78, self.command('list'))
        self.assertRegex(self.errors, r'site.zcml", line 2')
