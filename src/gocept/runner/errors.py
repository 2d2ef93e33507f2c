"""The project's own errors, and the statuses that its programs end with.

The statuses beyond 2 are those of ``sysexits.h``, which service managers show
by name.
"""

from typing import Any, Self

SUCCESS = 0  # also of a loop that a signal or its worker ended
WORKER_FAILED = 1  # or items of it, in a program that runs one tick
BAD_USAGE = 2  # the command line cannot be understood
UNKNOWN_SITE = 66  # no such object in the root folder, or no site: EX_NOINPUT
UNKNOWN_PRINCIPAL = 67  # no authentication knows the principal: EX_NOUSER
DATABASE_UNAVAILABLE = 69  # locked, not reached, or closed: EX_UNAVAILABLE
CANNOT_START = 71  # an app or executor that is eager: EX_OSERR
PARTLY_COMMITTED = 74  # or it is not known, in such a program: EX_IOERR
BAD_CONFIGURATION = 78  # zope.conf or the ZCML it names is wrong: EX_CONFIG
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


class DatabaseClosed(RunnerError):
    """Raised when a database has closed itself, so that no tick can work."""

    status = DATABASE_UNAVAILABLE


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


class ProcessExistsException(RunnerError):
    """Raised when an application is started under an alias that runs."""


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

    def __init__(self, executor: Any, reason: str = 'has failed') -> None:
        super().__init__(executor)
        self.executor = executor
        self.reason = reason

    def __str__(self) -> str:
        return f'{self.executor} {self.reason}{self.situation}'

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

    def __init__(self, executor: Any, timeout: float) -> None:
        super().__init__(executor, f'was not ready after {timeout} s')
        self.timeout = timeout


class AlreadyRunning(ExecutorError):
    """Raised when what an executor would wait for is there before its start.
    """

    def __init__(self, executor: Any) -> None:
        super().__init__(
            executor, 'seems to be running already: end what runs there, or '
            'have this one use another place')


class ProcessExitedWithError(ExecutorError):
    """Raised when an executor's child ends before it is ready."""

    def __init__(self, executor: Any, exit_code: int,
                 status_text: str = '') -> None:
        super().__init__(executor, f'ended with {status_text or exit_code}')
        self.exit_code = exit_code


class ProcessFinishedWithError(ProcessExitedWithError):
    """Raised when an executor's child, told to stop, ends with a status that
    was not expected."""
