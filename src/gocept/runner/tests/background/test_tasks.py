"""Tests of the tasks of a server, without a wire."""

import functools
import json
import logging
import os
import pathlib
import pickle
import shutil
import sys
import tempfile
import threading
import unittest
from collections.abc import Sequence
from unittest import mock

from gocept.runner.background import frames
from gocept.runner.background.client_socket import ClientSocket, respond
from gocept.runner.background.tasks import Definition, Tasks
from gocept.runner.background.values import decode, encode
from gocept.runner.errors import BackgroundError


class Client:

    address = '127.0.0.1:1'
    python = sys.version_info[:2]


class Request:
    """What a client wants, and a list of what it is told."""

    def __init__(self, kind, value=None, flags=frames.AWAIT, *,
                 pieces=None, python=None):
        self.connection = Client()
        self.connection.python = python or self.connection.python
        self.kind = kind
        self.pieces, more = (pieces, 0) if pieces is not None else (
            encode(value))
        self.flags = flags | more
        self.told = []
        self.confirmed = kind == frames.EXEC and not flags & frames.AWAIT

    def respond(self, pieces: Sequence[frames.Piece], flags: int = 0) -> bool:
        self.told.append(('response', decode(list(pieces)), flags))
        return True

    def fail(self, error, message, type='', traceback=''):  # noqa: A002
        self.told.append(('failure', error, message, type, traceback))
        return True

    def receipt(self):
        self.confirmed = True
        self.told.append(('receipt',))
        return True


def start(socket):
    return {'value': 1, 'seen': []}


def start_alone():
    return {'value': 2}


def respond_and_start(socket):
    respond(socket, 'nobody waits for it')
    return {}


def give_nothing(*args):
    return None


def fail(*args):
    raise ValueError('so it is')


def add(socket, state, args):
    state['value'] += args['add']
    respond(socket, state['value'])
    return state


def end(socket, state, args):
    respond(socket, state['value'])


class Coded:
    """Runs code where it is decoded."""

    def __init__(self, code):
        self.code = code

    def __reduce__(self):
        return exec, (self.code,)


INIT = {'init': start, 'exec': add, 'exit': end, 'path': None}


class TestCase(unittest.TestCase):

    def setUp(self):
        self.tasks = Tasks()
        logger = logging.getLogger('gocept.runner.background')
        before = logger.level
        self.addCleanup(logger.setLevel, before)
        logger.setLevel(logging.CRITICAL)

    def ask(self, kind, value, flags=frames.AWAIT, **options):
        request = Request(kind, value, flags, **options)
        self.tasks.handle(request)
        return request.told

    def init(self, **tasks):
        if tasks:  # which may be closures over what the test looks at
            self.tasks.define(Definition(**{
                'init': start, 'exec': add, 'exit': end, **tasks}))
            return
        self.assertEqual(
            [('response', {'message': 'Initialization successful.'}, 0)],
            self.ask(frames.INIT, INIT))

    def failure(self, told, error):
        self.assertEqual(1, len(told), told)
        self.assertEqual(['failure', error], [*told[0][:2]])
        return told[0]


class InitTest(TestCase):

    def test_a_second_one_changes_nothing(self):
        self.init()
        self.ask(frames.EXEC, {'add': 4})
        (_, answer, _), = self.ask(
            frames.INIT, {**INIT, 'init': start_alone})
        self.assertEqual('Already initialized.', answer['message'])
        self.assertEqual([('response', 6, 0)],
                         self.ask(frames.EXEC, {'add': 1}))

    def test_a_task_may_take_nothing(self):
        self.init(init=start_alone)
        self.assertEqual([('response', 3, 0)],
                         self.ask(frames.EXEC, {'add': 1}))

    def test_how_tasks_of_any_kind_are_called(self):
        class Task:
            def __call__(self, socket):
                return {'value': socket.address}

            def method(self):
                return {'value': 'method'}

        @functools.wraps(start_alone)
        def wrapper(*args):
            return start_alone(*args)
        for task, value in (
                (Task(), ''), (Task().method, 'method'), (wrapper, 2),
                (lambda: {'value': 'nothing'}, 'nothing'),
                (lambda *args: {'value': len(args)}, 1),
                (functools.partial(lambda value, socket: {'value': value}, 5),
                 5),
                (lambda socket=None: {'value': socket.awaits}, False),
                (functools.partial(dict, value='of dict'), 'of dict')):
            with self.subTest(value=value):
                self.tasks = Tasks()
                self.init(init=task)
                self.assertEqual({'value': value}, self.tasks._state)

    def test_one_that_fails_may_be_repeated(self):
        told = self.failure(
            self.ask(frames.INIT, {**INIT, 'init': fail}), 'task')
        self.assertEqual(('so it is', 'ValueError'), told[2:4])
        self.assertIn('in fail', told[4])
        self.assertNotIn('tasks.py", line', told[4].replace(
            'test_tasks.py', ''))
        self.failure(self.ask(frames.EXEC, {'add': 1}), 'not_initialized')
        self.failure(
            self.ask(frames.INIT, {**INIT, 'init': give_nothing}), 'not_dict')
        self.init()

    def test_modules_are_found_where_the_client_finds_them(self):
        directory = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, directory)
        name = 'gocept_runner_test_path'
        (directory / f'{name}.py').write_text(
            'def task(*args): return {"value": 8}')
        self.enterContext(mock.patch.object(sys, 'path', [*sys.path]))
        self.addCleanup(sys.modules.pop, name, None)
        tasks = (f'(Vinit\nc{name}\ntask\nVexec\nc{name}\ntask\nVexit\n'
                 f'Nd.').encode()
        self.failure(self.ask(
            frames.INIT, {'path': None, 'tasks': tasks}), 'not_decoded')
        for _ in range(2):
            self.ask(frames.INIT, {'path': [str(directory)], 'tasks': tasks})
        self.assertEqual({'value': 8}, self.tasks._state)
        self.assertEqual(1, sys.path.count(str(directory)))
        self.assertIsNotNone(self.tasks.exit(None))

    def test_what_is_no_task_is_refused(self):
        for value in None, 7, {**INIT, 'exec': 7}, {'init': start}:
            self.failure(self.ask(frames.INIT, value), 'not_decoded')
        self.init()

    def test_what_no_client_sends(self):
        self.failure(self.ask(frames.INIT, {'path': 5, 'tasks': b''}), 'task')
        self.init()

    def test_what_it_responds_is_dropped(self):
        self.assertEqual(
            [('response', {'message': 'Initialization successful.'}, 0)],
            self.ask(frames.INIT, {**INIT, 'init': respond_and_start}))


class ExecTest(TestCase):

    def test_before_the_first_task(self):
        told = self.failure(self.ask(frames.EXEC, {}), 'not_initialized')
        self.assertIn('initialize()', told[2])
        self.assertEqual([], self.ask(frames.EXEC, {}, 0))
        self.assertEqual(2, self.tasks.failures)

    def test_a_receipt_that_waits_for_the_tasks(self):
        request = Request(frames.EXEC, {'add': 1}, 0)
        request.confirmed = False
        self.tasks.handle(request)
        self.failure(request.told, 'not_initialized')
        self.init()
        request = Request(frames.EXEC, {'add': 1}, 0)
        request.confirmed = False
        self.tasks.handle(request)
        self.assertEqual([('receipt',)], request.told)

    def test_the_state_is_the_dict_that_was_returned(self):
        states = []

        def task(socket, state, args):
            states.append(state)
            return state if args else {'value': 3}
        self.init(exec=task)
        for args in 1, 0, 1, 1:
            self.ask(frames.EXEC, args, 0)
        self.assertIs(states[0], states[1])
        self.assertEqual({'value': 3}, states[2])
        self.assertIs(states[2], states[3])
        self.assertEqual(0, self.tasks.failures)

    def test_what_a_failing_task_has_changed_stays_changed(self):
        def task(socket, state, args):
            state['value'] += 1
            if args == 'look':
                respond(socket, state['value'])
                return state
            return [] if args == 'list' else fail()
        self.init(exec=task)
        told = self.failure(self.ask(frames.EXEC, 'fail'), 'task')
        self.assertIn('ValueError: so it is', told[4])
        told = self.failure(self.ask(frames.EXEC, 'list'), 'not_dict')
        self.assertIn('exec_task has returned a list', told[2])
        self.assertEqual([('response', 4, 0)], self.ask(frames.EXEC, 'look'))

    def test_nobody_waits_for_an_error(self):
        self.init(exec=fail)
        with self.assertLogs('gocept.runner.background', 'ERROR') as log:
            self.assertEqual([], self.ask(frames.EXEC, {}, 0))
        self.assertIn('so it is', log.output[0])
        status = self.tasks.status()
        self.assertEqual((2, 1), (status['requests'], status['failures']))
        self.assertEqual('so it is', status['last_error']['message'])
        self.assertIn('in fail\n', status['last_error']['traceback'])
        json.dumps(status)

    def test_no_response(self):
        self.init(exec=lambda socket, state, args: state)
        self.failure(self.ask(frames.EXEC, {}), 'no_response')
        self.assertEqual([], self.ask(frames.EXEC, {}, 0))
        self.assertEqual(1, self.tasks.failures)

    def test_two_responses(self):
        def task(socket, state, args):
            respond(socket, 1)
            respond(socket, 2)
        self.init(exec=task)
        self.assertEqual([('response', 1, 0)], self.ask(frames.EXEC, {}))
        self.assertIn('has responded before',
                      self.tasks.last_error['message'])

    def test_a_response_after_the_end(self):
        sockets = []
        self.init(exec=lambda socket, state, args: sockets.append(socket)
                  or state)
        self.ask(frames.EXEC, {})
        with self.assertRaisesRegex(BackgroundError, 'has ended'):
            sockets[0].respond(1)

    def test_a_response_that_is_an_error(self):
        self.init(exec=lambda socket, state, args: respond(
            socket, 'no', error=True) or state)
        self.assertEqual([('response', 'no', frames.ERROR)],
                         self.ask(frames.EXEC, {}))

    def test_a_response_that_is_too_long(self):
        self.tasks = Tasks(longest=1000)
        self.init(exec=lambda socket, state, args: respond(
            socket, b'x' * 2000) or state)
        told = self.failure(self.ask(frames.EXEC, {}), 'task')
        self.assertIn('max_message', told[2])

    def test_a_value_that_cannot_be_decoded(self):
        self.init()
        pieces = [b'cno_such_module\nname\n.']
        told = self.failure(
            self.ask(frames.EXEC, None, pieces=pieces), 'not_decoded')
        self.assertIn('no_such_module', told[2])
        self.assertEqual([('response', 2, 0)],
                         self.ask(frames.EXEC, {'add': 1}))

    def test_a_task_that_takes_other_arguments(self):
        for init, run, said in (
                (add, add, r'init_task takes \(client_socket\), or nothing'),
                (start, start,
                 r'exec_task takes \(client_socket, state, exec_args\)')):
            with self.subTest(said):
                self.tasks = Tasks()
                told = self.ask(
                    frames.INIT, {**INIT, 'init': init, 'exec': run})
                if init is start:
                    told = self.ask(frames.EXEC, {})
                told = self.failure(told, 'task')
                self.assertRegex(told[2], r'positional argument.*' + said)
                self.assertEqual('TypeError', told[3])

    def test_a_type_error_within_a_task(self):
        self.init(exec=lambda socket, state, args: start(1, 2, 3))
        told = self.failure(self.ask(frames.EXEC, {}), 'task')
        self.assertNotIn('exec_task takes', told[2])

    def test_a_value_whose_code_raises_anything(self):
        for code in 'raise SystemExit', 'raise KeyboardInterrupt', (
                'class Bad(Exception):\n'
                '    def __str__(self): raise SystemExit\n'
                'raise Bad'):
            with self.subTest(code):
                self.tasks = Tasks()
                pieces, _ = encode(Coded(code))
                self.failure(self.ask(frames.INIT, None, pieces=pieces[:]),
                             'not_decoded')
                self.init()
                self.failure(self.ask(frames.EXEC, None, pieces=pieces),
                             'not_decoded')

    def test_code_of_another_python(self):
        self.init()
        told = self.failure(self.ask(
            frames.EXEC, {}, frames.AWAIT | frames.BY_VALUE, python=(3, 2)),
            'version')
        self.assertIn('3.2', told[2])
        self.assertIn('{}.{}'.format(*sys.version_info), told[2])

    def test_exits_do_not_end_the_server(self):
        for error in SystemExit(3), KeyboardInterrupt(), GeneratorExit():
            with self.subTest(error=error):
                self.tasks = Tasks()

                def task(*args, error=error):
                    raise error
                self.tasks.define(Definition(start, task, end))
                told = self.failure(self.ask(frames.EXEC, {}), 'task')
                self.assertEqual(type(error).__name__, told[3])

    def test_an_exception_that_cannot_be_shown(self):
        class Bad(Exception):
            def __str__(self):
                raise RuntimeError

        def task(*args):
            raise Bad
        self.tasks.define(Definition(start, task, end))
        told = self.failure(self.ask(frames.EXEC, {}), 'task')
        self.assertIn('cannot be had', told[2])

    def test_an_exception_that_raises_others(self):
        class Exits(Exception):
            def __str__(self):
                raise SystemExit

        class Interrupts(Exception):
            def __getattribute__(self, name):
                raise KeyboardInterrupt

        class Meta(type):
            def __getattribute__(cls, name):
                raise SystemExit

        class Hides(Exception, metaclass=Meta):
            pass

        for kind in Exits, Interrupts, Hides:
            def execute(socket, state, args, kind=kind):
                raise kind

            self.tasks = Tasks()
            self.init(exec=execute)
            self.failure(self.ask(frames.EXEC, {}), 'task')

    def test_a_child_that_a_task_forks_is_no_server(self):
        def task(socket, state, args):
            state['pid'] = os.fork()
            return state
        self.tasks.define(Definition(start, task, end))
        request = Request(frames.EXEC, {}, 0)
        us = os.getpid()
        self.tasks.handle(request)
        if os.getpid() != us:
            os._exit(9)
        pid = self.tasks._state['pid']
        self.assertEqual(0, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


class ExitTest(TestCase):

    def exit(self, flags=frames.AWAIT, **options):
        request = Request(frames.EXIT, {}, flags, **options)
        confirm = self.tasks.exit(request)
        if confirm is not None:
            self.assertEqual([], request.told)
            confirm()
        return request.told

    def test_the_response_comes_with_the_confirmation(self):
        self.init()
        self.assertEqual([('response', 1, 0)], self.exit())

    def test_a_receipt(self):
        self.init()
        self.assertEqual([('receipt',)], self.exit(0))

    def test_no_response(self):
        self.init(exit=give_nothing)
        self.failure(self.exit(), 'no_response')

    def test_a_failing_task_ends_the_server(self):
        self.init(exit=fail)
        self.failure(self.exit(), 'task')
        self.assertEqual([('receipt',)], self.exit(0))

    def test_without_tasks(self):
        self.assertEqual([('receipt',)], self.exit(0))
        self.failure(self.exit(), 'no_response')

    def test_a_value_that_cannot_be_decoded_ends_nothing(self):
        self.init()
        for flags in 0, frames.AWAIT:
            self.failure(self.exit(flags, pieces=[b'no pickle']),
                         'not_decoded')

    def test_a_signal(self):
        seen = []
        self.tasks.define(Definition(
            start, add, lambda *args: seen.append(args)))
        self.tasks.exit(None)()
        socket, _, args = seen[0]
        self.assertEqual(('', False, {}), (
            socket.address, socket.awaits, args))
        respond(socket, 'nobody hears it')


class Around:
    """Runs each task twice, as after a conflict."""

    def __init__(self):
        self.fails = False
        self.broken = None

    def start(self):
        pass

    def check(self):
        if self.broken is not None:
            raise self.broken

    def run(self, attempt):
        attempt()
        result = attempt()
        if self.fails:
            raise ValueError('the commit fails')
        return result

    def close(self):
        pass


class SurroundingsTest(TestCase):

    def setUp(self):
        super().setUp()
        self.around = Around()
        self.tasks = Tasks(self.around)

    def test_each_attempt_has_a_state_of_its_own(self):
        self.init()
        self.assertEqual([('response', 5, 0)],
                         self.ask(frames.EXEC, {'add': 4}))
        self.assertEqual(5, self.tasks._state['value'])

    def test_nothing_leaves_before_the_commit(self):
        self.init()
        self.around.fails = True
        told = self.failure(self.ask(frames.EXEC, {'add': 4}), 'task')
        self.assertEqual('the commit fails', told[2])
        self.assertEqual(1, self.tasks._state['value'])

    def test_each_attempt_has_arguments_of_its_own(self):
        def take(socket, state, args):
            respond(socket, args['more'].pop())
            return state
        self.init(exec=take)
        self.assertEqual([('response', 7, 0)],
                         self.ask(frames.EXEC, {'more': [7]}))

    def test_a_state_that_cannot_be_copied(self):
        with self.assertRaisesRegex(BackgroundError, 'cannot be copied'):
            self.init(init=lambda: {'lock': threading.Lock()})
        self.assertFalse(self.tasks.initialized)

    def test_what_ends_the_server_is_raised_when_the_client_was_told(self):
        self.init(exec=fail)
        self.around.broken = OSError('gone')
        request = Request(frames.EXEC, {})
        with self.assertRaisesRegex(OSError, 'gone'):
            self.tasks.handle(request)
        self.failure(request.told, 'task')
        self.assertEqual('', self.tasks.running)


class ClientSocketTest(unittest.TestCase):

    def test_the_value_is_encoded_at_once(self):
        request = Request(frames.EXIT, {})
        socket = ClientSocket(request, 1000, keeps=True)
        value = [1]
        socket.respond(value)
        value.append(2)
        socket.send()
        socket.send()
        self.assertEqual([('response', [1], 0)], request.told)

    def test_either_the_end_of_the_task_or_a_response_comes_first(self):
        # A thread of the task responds at the moment when the task ends.
        request = Request(frames.EXEC, {})
        socket = ClientSocket(request, 1000)

        def encode_late(response):
            socket.end()
            return encode(response)
        with mock.patch('gocept.runner.background.client_socket.encode',
                        encode_late):
            with self.assertRaisesRegex(BackgroundError, 'has ended'):
                socket.respond(1)
        self.assertFalse(socket.responded or socket.sent or request.told)

        def end_late(pieces, flags=0):
            socket.end()
            self.assertTrue(socket.responded and socket.sent)
            return True
        socket = ClientSocket(request, 1000)
        request.respond = end_late
        socket.respond(1)

    def test_a_value_that_cannot_be_encoded_may_be_followed_by_another(self):
        request = Request(frames.EXEC, {})
        socket = ClientSocket(request, 1000)
        with self.assertRaises((pickle.PicklingError, TypeError,
                                BackgroundError)):
            socket.respond(threading.Lock())
        socket.respond('better')
        self.assertEqual([('response', 'better', 0)], request.told)
