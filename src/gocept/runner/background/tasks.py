"""The tasks of a server, and the state that one hands to the next.

All tasks run in the main thread, one at a time.
"""

import os.path
import sys
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

import gocept.runner.background.frames as frames
from gocept.runner.background.client_socket import ClientSocket
from gocept.runner.background.queue import Request
from gocept.runner.background.surroundings import Surroundings
from gocept.runner.background.values import decode, encode
from gocept.runner.errors import BackgroundError, NotDecoded
from gocept.runner.logs import ERROR, INFO, Log
from gocept.runner.waits.forks import OneProcess

log = Log('gocept.runner.background')

State = dict[object, object]

Task = Callable[..., object]

T = TypeVar('T')

_NAMES = {frames.INIT: 'init_task', frames.EXEC: 'exec_task',
          frames.EXIT: 'exit_task'}

_TAKES = {'init_task': '(client_socket), or nothing',
          'exec_task': '(client_socket, state, exec_args)',
          'exit_task': '(client_socket, state, exit_args)'}

_LONGEST_TRACEBACK = 65536  # characters

_KEPT = 8192
"""Characters of a message or a traceback in a status, which is one frame."""

_OURS = __file__, os.path.join(
    os.path.dirname(os.path.dirname(__file__)), 'boot', '')
"""What the files begin with whose frames stand before those of a task."""

_VARARGS = 4  # as inspect.CO_VARARGS, whose module takes long to import


class Definition(NamedTuple):
    """The three tasks of a server."""

    init: Task
    exec: Task
    exit: Task | None = None

    @classmethod
    def of(cls, tasks: object) -> Self:
        """From what the client has sent; `Unfit` if that is not right.

        Its modules may be found by its `path` only, so that comes first.
        """
        if isinstance(tasks, dict) and isinstance(tasks.get('tasks'), bytes):
            path = tasks.get('path') or ()
            sys.path += [each for each in path if isinstance(each, str)
                         and each not in sys.path]
            tasks = _decoded([tasks['tasks']])
        found: dict[str, Task] = {}
        for name in cls._fields:
            task = tasks.get(name) if isinstance(tasks, dict) else None
            if task is None and name == 'exit':
                continue
            if not callable(task):
                raise Unfit('not_decoded', f'{name}_task has to be a function '
                            f'or another callable, and not {_shown(task)}')
            found[name] = task
        return cls(**found)


class Failure(NamedTuple):
    """Why there is no response, as a client is told it."""

    error: str
    message: str
    type: str = ''
    traceback: str = ''


class Unfit(Exception):
    """Raised where the request is wrong, and not its task."""

    def __init__(self, error: str, message: str) -> None:
        super().__init__(message)
        self.failure = Failure(error, message)


class Tasks:
    """Runs the tasks.

    `around` is what they run in, if they need more than Python. A response
    has at most `longest` bytes.
    """

    def __init__(self, around: Surroundings | None = None,
                 longest: int = frames.LONGEST) -> None:
        self._around = around
        self._longest = longest
        self._definition: Definition | None = None
        self._since = 0.0
        """When there were tasks, by the clock on the wall."""
        self._state: State = {}
        self._process = OneProcess()
        self._socket: ClientSocket | None = None
        """Of the task that runs."""
        self.requests = 0
        """How many requests there were, those that failed included."""
        self.failures = 0
        self.last_error: dict[str, object] | None = None
        self.last_activity: float | None = None
        """When the last request began or ended, by the clock on the wall."""
        self.running = ''
        """The name of the task that runs now."""

    @property
    def initialized(self) -> bool:
        """Whether there was an init task that did not fail."""
        return self._definition is not None

    def status(self) -> dict[str, object]:
        """What is told to who asks for the status. For any thread."""
        return {'initialized': self.initialized, 'requests': self.requests,
                'failures': self.failures, 'running': self.running,
                'last_activity': self.last_activity,
                'last_error': self.last_error}

    def handle(self, request: Request) -> None:
        """Do what a client wants, and answer. `exit` is for EXIT."""
        self._begin(request.kind)
        try:
            if request.kind == frames.INIT:
                self._initialize(request)
            else:
                self._execute(request)
        except Unfit as error:
            self._fail(request, error.failure)
        except BaseException as error:  # of what has come; the server goes on
            self._fail(request, _failure(error))
        finally:
            self._end()
        if self._around is not None:
            self._around.check()

    def define(self, definition: Definition) -> None:
        """Run an init task that no client has sent.

        Raises its exception, or BackgroundError if it returns no dict.
        """
        self._begin(frames.INIT)
        self._since = time.time()
        try:
            _, state = self._run(None, _for_client(definition.init))
            self._definition, self._state = definition, state
        finally:
            self._end()

    def exit(self, request: Request | None) -> Callable[[], None] | None:
        """Run the exit task.

        Call what is returned when the port is free: it tells the client. None
        if the request is wrong, so that the server goes on. Without a request
        nobody is told.
        """
        self._begin(frames.EXIT)
        try:
            return self._exit(request)
        except Unfit as error:
            self._fail(request, error.failure)
            return None
        finally:
            self._end()

    # Each kind

    def _initialize(self, request: Request) -> None:
        answer: dict[str, object]
        if self._definition is not None:
            from gocept.runner.background.initialization import description
            answer = {'message': 'Already initialized.',
                      **description(self._definition, self._since)}
        else:
            since = time.time()
            definition = Definition.of(_value(request))
            try:
                _, state = self._run(request, _for_client(definition.init))
            except BaseException as error:  # the server goes on
                self._fail(request, _failure(error))
                return
            self._definition, self._state = definition, state
            self._since = since
            answer = {'message': 'Initialization successful.'}
            log.info('The server is initialized by %s',
                     request.connection.address)
        request.respond(*encode(answer))

    def _execute(self, request: Request) -> None:
        definition = self._definition
        if definition is None:
            raise Unfit('not_initialized', 'the server has no tasks yet: '
                        'call initialize() first')
        if not (request.flags & frames.AWAIT or request.confirmed):
            request.receipt()
        args = _value(request)
        try:
            socket, self._state = self._run(
                request, definition.exec, self._state, args)
        except BaseException as error:  # the server goes on
            self._fail(request, _failure(error))
            return
        socket.send()
        if socket.awaits and not socket.responded:
            self._fail(request, Failure(
                'no_response', 'exec_task has ended without a response, for '
                'which the client waits: have the task call respond(), or '
                'call execute() without await_response'))

    def _exit(self, request: Request | None) -> Callable[[], None]:
        args: object = {} if request is None else _value(request)
        if request is not None:
            log.info('The server is told to end by %s',
                     request.connection.address)
        task = self._definition and self._definition.exit
        failure: Failure | None = None
        socket = ClientSocket(request, self._longest, True)
        if task is not None:
            try:
                socket, _ = self._run(
                    request, task, self._state, args, is_exit=True)
            except BaseException as error:  # the server ends all the same
                failure = _failure(error)
                self._note(request, failure)
        if failure is None and socket.awaits and not socket.responded:
            failure = Failure(
                'no_response', 'the server has ended, '
                + ('but exit_task has given no response: have it call '
                   'respond(), or call terminate() without await_response'
                   if task else 'and had no exit_task to give a response: '
                   'call terminate() without await_response'))

        def confirm() -> None:
            if request is None:
                return
            if not socket.awaits:
                request.receipt()
            elif failure is not None:
                request.fail(*failure)
            else:
                socket.send()
        return confirm

    # What they share

    def _begin(self, kind: int) -> None:
        self.requests += 1
        self.running = _NAMES[kind]
        self._socket = None
        self.last_activity = time.time()

    def _end(self) -> None:
        self.running = ''
        self.last_activity = time.time()

    def _run(self, request: Request | None, task: Task, *arguments: object,
             is_exit: bool = False) -> tuple[ClientSocket, State]:
        """Call a task, as often as what it runs in wants.

        It gets the client, and `arguments`.

        Returns what belongs to the last call. Raises what the task raises.
        """
        try:
            state = (
                self._attempt(request, task, arguments, is_exit)
                if self._around is None else self._around.run(partial(
                    self._attempt, request, task, arguments, is_exit)))
        finally:
            if self._socket is not None:
                self._socket.end()
        assert self._socket is not None
        return self._socket, state

    def _attempt(self, request: Request | None, task: Task,
                 arguments: tuple[object, ...], is_exit: bool) -> State:
        if self._socket is not None:  # of the attempt before
            self._socket.end()
        around = self._around is not None
        socket = self._socket = ClientSocket(
            request, self._longest, is_exit or around)
        process = self._process
        try:  # `with` would take longer
            if around:  # another attempt may follow, and begins with the same
                arguments = _copied(arguments)
            result = task(socket, *arguments)
        except BaseException as error:
            process.check(error)
            if isinstance(error, TypeError) and _is_call(error):
                raise TypeError(
                    f'{error}: {self.running} takes {_TAKES[self.running]}'
                    ) from None
            raise
        process.check()
        if is_exit:
            return {}
        if not isinstance(result, dict):
            raise NoDict(
                f'{self.running} has returned {_shown(result)}, and has '
                'to return a dict: the state, which the next task gets')
        if around and self.running == _NAMES[frames.INIT]:
            _copied(result)  # or no task would ever succeed
        return result

    def _fail(self, request: Request | None, failure: Failure) -> None:
        """Note why there is no response, and tell a client that waits."""
        self._note(request, failure)
        if request is not None and self._waits(request):
            request.fail(*failure)

    def _waits(self, request: Request) -> bool:
        """Whether the client is still to be told something."""
        if request.kind != frames.EXEC:
            return True
        if not request.flags & frames.AWAIT:
            return not request.confirmed
        return not (self._socket is not None and self._socket.sent)

    def _note(self, request: Request | None, failure: Failure) -> None:
        self.failures += 1
        self.last_error = {
            'time': time.time(), 'task': self.running,
            'error': failure.error, 'message': failure.message[:_KEPT],
            'type': failure.type, 'traceback': failure.traceback[-_KEPT:]}
        told = request is not None and self._waits(request)
        text = failure.traceback.rstrip() or failure.message
        log.log(INFO if told else ERROR, '%s of %s failed: %s', self.running,
                request.connection.address if request else 'no client', text)


def _copied(value: T) -> T:
    from copy import deepcopy
    try:
        return deepcopy(value)
    except Exception as error:
        raise BackgroundError(
            'with zope_conf, each call of a task gets a copy of the state and '
            'of its arguments, and these cannot be copied: '
            f'{type(error).__name__}: {error}') from error


def _is_call(error: TypeError) -> bool:
    """Whether the call itself has failed, so that no line of a task ran."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last is not None and last.tb_frame.f_code.co_filename == __file__


class NoDict(BackgroundError, TypeError):
    """Raised when a task returns no dict."""


def _value(request: Request) -> object:
    """The arguments of a request; `Unfit` if they cannot be had."""
    python = request.connection.python
    if request.flags & frames.BY_VALUE and python != sys.version_info[:2]:
        raise Unfit(
            'version', 'code that is sent by value needs one minor version of '
            f'Python on both sides: the client has {python[0]}.{python[1]}, '
            f'the server {sys.version_info[0]}.{sys.version_info[1]}; put the '
            'tasks in a module that both can import')
    return _decoded(request.pieces)


def _decoded(pieces: list[frames.Piece]) -> object:
    try:
        return decode(pieces)
    except NotDecoded as error:
        raise Unfit('not_decoded', str(error)) from error
    except BaseException as error:  # the code in a value may raise anything
        raise Unfit('not_decoded', 'the value cannot be decoded: '
                    f'{_failure(error).message}') from error


def _for_client(task: Task) -> Task:
    """An init task, which may take the client or nothing, with the client.
    """
    return task if _takes_argument(task) else lambda socket: task()


def _takes_argument(task: Task) -> bool:
    code = getattr(task, '__code__', None)
    if code is not None and not hasattr(task, '__wrapped__') and not hasattr(
            task, '__self__'):
        return bool(code.co_argcount or code.co_flags & _VARARGS)
    import inspect
    try:
        parameters = inspect.signature(task).parameters.values()
    except (TypeError, ValueError):  # of C code, such as dict
        return False
    return any(each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD,
                             each.VAR_POSITIONAL) for each in parameters)


def _failure(error: BaseException) -> Failure:
    """What a client is told of the exception of a task.

    Its class may have methods that raise something themselves.
    """
    try:
        return _description(error)
    except BaseException as other:
        return Failure('task', f'an exception that cannot be described: a '
                       f'{type(other).__name__} is raised instead')


def _description(error: BaseException) -> Failure:
    kind = type(error)
    name = (kind.__qualname__ if kind.__module__ == 'builtins'
            else f'{kind.__module__}.{kind.__qualname__}')
    try:
        message = str(error)
    except BaseException as other:
        message = f'(its text cannot be had: {type(other).__name__})'
    if issubclass(kind, NoDict):
        return Failure('not_dict', message, 'TypeError')
    import traceback  # takes long, and errors are rare
    try:
        text = ''.join(traceback.format_exception(
            kind, error, _of_users(error)))
    except BaseException:  # of the exception's own methods
        text = f'{name}: {message}\n'
    if len(text) > _LONGEST_TRACEBACK:
        half = _LONGEST_TRACEBACK // 2
        text = f'{text[:half]}\n  [...]\n{text[-half:]}'
    if issubclass(kind, (SystemExit, KeyboardInterrupt)):
        message = (f'the task raised {kind.__name__}({message}), which does '
                   'not end a server: call terminate() for that')
    return Failure('task', message[:_LONGEST_TRACEBACK], name, text)


def _of_users(error: BaseException) -> TracebackType | None:
    """The traceback without frames of ours at its beginning."""
    traceback = error.__traceback__
    while (traceback is not None and traceback.tb_next is not None
           and traceback.tb_frame.f_code.co_filename.startswith(_OURS)):
        traceback = traceback.tb_next
    return traceback


def _shown(value: object) -> str:
    return 'nothing' if value is None else f'a {type(value).__name__}'
