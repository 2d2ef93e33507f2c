"""The project's own errors, and the statuses that its programs end with.

The statuses beyond 2 are those of ``sysexits.h``, which service managers show
by name.
"""

from __future__ import annotations

TYPE_CHECKING = False  # not that of `typing`, whose import takes long
if TYPE_CHECKING:
    from typing import Any, Self

SUCCESS = 0  # also of a loop that a signal or its worker ended
WORKER_FAILED = 1  # or items of it, in a program that runs one tick
BAD_USAGE = 2  # the command line cannot be understood
NO_DATA = 65  # a state file that is damaged, or of a newer version: EX_DATAERR
UNKNOWN_SITE = 66  # no such object in the root folder, or no site: EX_NOINPUT
NO_STATE = 66  # of a worker, where somebody looks for one: EX_NOINPUT
UNKNOWN_PRINCIPAL = 67  # no authentication knows the principal: EX_NOUSER
DATABASE_UNAVAILABLE = 69  # locked, not reached, or closed: EX_UNAVAILABLE
KERNEL_NOT_RUNNING = 69  # nobody listens there: EX_UNAVAILABLE
SERVER_NOT_RUNNING = 69  # likewise
CANNOT_START = 71  # an eager child, a kernel, or a server: EX_OSERR
CANNOT_LOCK = 73  # the file of the lock cannot be written: EX_CANTCREAT
PARTLY_COMMITTED = 74  # or it is not known, in such a program: EX_IOERR
CONNECTION_LOST = 74  # to a server, which may have run the request: EX_IOERR
ALREADY_RUNNING = 75  # another process holds the worker's lock: EX_TEMPFAIL
SERVER_BUSY = 75  # its queue is full: EX_TEMPFAIL
KERNEL_REFUSED = 77  # it is another user's: EX_NOPERM
SERVER_REFUSED = 77  # it knows another token: EX_NOPERM
BAD_CONFIGURATION = 78  # zope.conf or the ZCML it names is wrong: EX_CONFIG
TIMED_OUT = 124  # an answer has not come in time, as for timeout(1)
INTERRUPTED = 130  # by a KeyboardInterrupt, as in a shell: 128 + SIGINT
SIGNALLED = 128  # and the number of a signal that left one tick undone


class RunnerError(Exception):
    """The root of the project's own errors."""

    status = WORKER_FAILED
    """What a program ends with that this error ends."""


class ConfigurationError(RunnerError):
    """Raised when what zope.conf names cannot be run together.

    Another site definition was loaded in this process before, or the database
    belongs to another application. What ZConfig and zope.configuration find
    wrong in their files is reported by exceptions of their own.
    """

    status = BAD_CONFIGURATION


class UsageError(RunnerError):
    """Raised when an option does not fit the kind of application."""

    status = BAD_USAGE


class NoSuchSite(RunnerError, KeyError):
    """Raised when the root folder has no object of that name."""

    status = UNKNOWN_SITE

    __str__ = Exception.__str__  # KeyError would show quotes


class NoSuchSetting(ConfigurationError, KeyError):
    """Raised when zope.conf lacks what `from_config` is to read."""

    __str__ = Exception.__str__  # KeyError would show quotes


class DatabaseMissing(RunnerError):
    """Raised when a dry run would have to create a database."""

    status = DATABASE_UNAVAILABLE


class DatabaseLocked(RunnerError):
    """Raised when another process has the file of a database open."""

    status = DATABASE_UNAVAILABLE


class DatabaseClosed(RunnerError):
    """Raised when a database has closed itself, so that no tick can work."""

    status = DATABASE_UNAVAILABLE


class WorkerLocked(RunnerError):
    """Raised when another instance of a worker with a lock runs.

    `pid` is its process, or 0 if this is not known. `path` is that of the
    lock.
    """

    status = ALREADY_RUNNING

    def __init__(self, message: str, path: str = '', pid: int = 0) -> None:
        super().__init__(message)
        self.path = path
        self.pid = pid


class CannotLock(RunnerError):
    """Raised when the lock of a worker cannot be taken, and nobody holds it.

    The file system has no locks, for instance, or cannot be written.
    """

    status = CANNOT_LOCK


class PartlyCommitted(RunnerError):
    """Raised when a task of a background server fails in the second phase of
    its commit, so that nobody knows what was committed."""

    status = PARTLY_COMMITTED


class NotCommitted(RunnerError):
    """Raised when `commit` of a main loop returns, but has not committed."""


class AlreadyRun(RunnerError):
    """Raised when the run of a schedule that a tick begins was done meanwhile.

    Another process has committed it. This is no failure: nothing is missing.
    """


def status_of(error: SystemExit) -> int:
    """The status of a process that ends with this SystemExit."""
    if isinstance(error.code, int):
        return error.code & 0xff
    return SUCCESS if error.code is None else WORKER_FAILED


class Terminated(SystemExit):
    """Raised by a signal that ends a program which has no loop that could.

    The status is the one that a shell shows: 128 and the number of the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(SIGNALLED + signum)
        self.signum = signum


class CannotStart(RunnerError):
    """Raised when what ZCML declares as eager cannot be started.

    The message names it, and has that of the error, which is the cause.
    """

    status = CANNOT_START


class NotASiteError(RunnerError):
    """Raised when the object that was named as the site has no site manager.
    """

    status = UNKNOWN_SITE


class EndpointClosedException(RunnerError):
    """Raised when the other side of a channel is gone, or the channel closed.

    `seen` has what `read_until` had read before; it can still be read.
    """

    def __init__(self, message: str = '', seen: Any = b'') -> None:
        super().__init__(message)
        self.seen = seen


class WriteBufferFull(RunnerError):
    """Raised by a write that begins above the high-water mark.

    Nothing of it was kept; write again when `kept` of the channel is less.
    """


class StillKept(RunnerError):
    """Raised when an answer is waited for, but what it would answer is kept
    until the transaction is committed."""


class DeadlineExceeded(RunnerError, TimeoutError):
    """Raised when what was waited for did not happen in time.

    `seen` has the tail of what was seen meanwhile.
    """

    def __init__(self, message: str, seen: Any = b'') -> None:
        super().__init__(message)
        self.seen = seen


class PollerInUse(RunnerError):
    """Raised when a thread polls or pauses while another one does.

    Each thread that waits needs a poller of its own.
    """


class WatcherInUse(RunnerError):
    """Raised when a watcher is used while another call of it has not returned.

    That call is of another thread, or was interrupted by a signal handler.
    """


class ProcessExistsException(RunnerError):
    """Raised when an application is started under an alias that runs."""


class KernelError(RunnerError, RuntimeError):
    """Raised when a process kernel refuses what it is asked for, or cannot be
    asked. Users know it as `gocept.runner.kernel.Error`."""


class KernelNotRunning(KernelError, ConnectionError):
    """Raised when nobody listens where a kernel is expected."""

    status = KERNEL_NOT_RUNNING


class KernelSilent(KernelNotRunning):
    """Raised when what listens there is no kernel, or does not answer."""


class KernelRefused(KernelError, PermissionError):
    """Raised when a kernel belongs to another user, or does not serve us."""

    status = KERNEL_REFUSED


class BackgroundError(RunnerError):
    """Raised when a background server, or what it is asked for, fails."""


class ServerNotRunning(BackgroundError, ConnectionError):
    """Raised when nobody listens where a background server is expected."""

    status = SERVER_NOT_RUNNING


class NobodyListens(ServerNotRunning):
    """Raised when the machine answers that nobody listens on the port."""


class BackgroundTimeout(BackgroundError, DeadlineExceeded):
    """Raised when a background server has not answered in time, or is not
    ready."""

    status = TIMED_OUT


class ServerRefused(BackgroundError, PermissionError):
    """Raised when a background server, or what listens in its place, does not
    know the token, or when the token does not allow the request."""

    status = SERVER_REFUSED


class ServerNotStarted(BackgroundError):
    """Raised when a background server cannot be started."""

    status = CANNOT_START


class ServerOccupied(ServerNotStarted):
    """Raised when somebody listens already where a background server is to.

    `pid` is the process if it is a background server of this user, else 0.
    """

    def __init__(self, message: str = '', pid: int = 0) -> None:
        super().__init__(message)
        self.pid = pid


class ServerInsecure(ServerNotStarted):
    """Raised when a background server would let others in."""

    status = BAD_CONFIGURATION


class ServerBusy(BackgroundError):
    """Raised when a background server has too many requests, or clients.

    The request was not run: it may be sent again later.
    """

    status = SERVER_BUSY


class ConnectionLost(BackgroundError, ConnectionError):
    """Raised when the connection to a background server breaks, or when the
    server is silent, so that nobody knows whether the request was run."""

    status = CONNECTION_LOST


class ProtocolError(BackgroundError):
    """Raised when the other side of a connection says what nobody may say, or
    when somebody in between has changed it."""


class RemoteTaskError(BackgroundError):
    """Raised when a task has failed in a background server.

    `type` is the name of the error there and `traceback` its traceback.
    `response` is what the task has responded with ``error=True``.
    """

    def __init__(self, message: str = '', *, type: str = '',  # noqa: A002
                 traceback: str = '', response: object = None) -> None:
        super().__init__(message)
        self.type = type
        self.traceback = traceback
        self.response = response

    @property
    def summary(self) -> str:
        """The message without the traceback."""
        message = super().__str__()
        return f'{self.type}: {message}' if self.type else message

    def __str__(self) -> str:
        if not self.traceback:
            return self.summary
        return (f'{self.summary}\n\nThe traceback of the server:\n'
                f'{self.traceback}')


class NoResponse(BackgroundError):
    """Raised when a response is awaited and the task ends without one."""


class NotInitialized(BackgroundError):
    """Raised when a background server has no tasks yet: initialize it."""


class NotDecoded(BackgroundError):
    """Raised when a value cannot be made of the bytes that have come.

    The message names the module that is missing, if one is.
    """


class VersionMismatch(BackgroundError):
    """Raised when code is sent by value to another minor version of Python."""


class LinkError(RunnerError):
    """Raised when something else than a message of this release comes between
    `up` and its template, or a worker."""


class ShortageError(RunnerError, OSError):
    """Raised when no child can be started, as this process or the machine has
    no descriptors, no processes or no memory left.

    `errno` says which. The child itself is not at fault: try again later.
    """


class StartError(RunnerError):
    """Raised when an application that is to listen on a socket does not.

    `returncode` is its status, if it ended; `output` the tail of what it said.
    """

    def __init__(self, message: str, returncode: int | None = None,
                 output: bytes = b'') -> None:
        super().__init__(message)
        self.returncode = returncode
        self.output = output


class ExecutorError(RunnerError):
    """Raised when an executor's child does not become ready, or ends badly.

    The executor sets `situation`, the end of the message: which condition was
    awaited, for how long, what was seen last, and the end of the output. A
    copy in another process has the text of the executor in its place.
    """

    situation = ''

    subject = '{}'
    """How the message begins. Some begin as those of mirakuru, as tests of
    users match them."""

    def __init__(self, executor: Any, reason: str = 'has failed') -> None:
        super().__init__(executor)
        self.executor = executor
        self.reason = reason

    def __str__(self) -> str:
        return (f'{self.subject.format(self.executor)} {self.reason}'
                f'{self.situation}')

    def __copy__(self) -> Self:
        return self._copied(vars(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return self._copied, (
            {**vars(self), 'executor': str(self.executor)},)

    @classmethod
    def _copied(cls, attributes: dict[str, Any]) -> Self:
        error = cls.__new__(cls)
        error.args = (attributes['executor'],)
        vars(error).update(attributes)
        return error


class TimeoutExpired(ExecutorError, TimeoutError):
    """Raised when an executor's child is not ready in time."""

    subject = 'Executor {}'

    def __init__(self, executor: Any, timeout: float | None) -> None:
        super().__init__(executor, 'timed out' + (
            '' if timeout is None else f' after {timeout} seconds'))
        self.timeout = timeout


class AlreadyRunning(ExecutorError):
    """Raised when what an executor would wait for is there before its start.
    """

    subject = 'Executor {}'

    def __init__(self, executor: Any) -> None:
        super().__init__(
            executor, 'seems to be already running: end what runs there, or '
            'have this one use another place')


class ProcessExitedWithError(ExecutorError):
    """Raised when an executor's child ends before it is ready."""

    subject = 'The process invoked by the {} executor'

    def __init__(self, executor: Any, exit_code: int,
                 status_text: str = '') -> None:
        status = status_text or str(exit_code)
        super().__init__(executor, 'has exited with ' + (
            f'a non-zero code: {status}'
            if exit_code and status == str(exit_code) else status))
        self.exit_code = exit_code


class ProcessFinishedWithError(ProcessExitedWithError):
    """Raised when an executor's child, told to stop, ends with a status that
    was not expected."""
