"""A worker that is forked from a process where the configuration is there.

It is what a program of its own would be, but for the beginning and the end:
`move_in` is about what the fork has inherited and must not have, and
`end_process` cleans up nothing of the process that it was forked from. `Life`
notices that the program above has ended.
"""

import atexit
import contextlib
import fcntl
import io
import os
import select
import signal
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from types import FrameType
from typing import NamedTuple, NoReturn

from gocept.runner import errors
from gocept.runner.boot import environments, program
from gocept.runner.boot.environments import ConfigFile, Options, Settings
from gocept.runner.boot.program import Guard
from gocept.runner.logs import Log
from gocept.runner.process.marks import MARKER
from gocept.runner.signals.handlers import handling
from gocept.runner.signals.shutdown import end_program, reopen_logs
from gocept.runner.waits import libc
from gocept.runner.waits.closing import Closing
from gocept.runner.waits.deadline import Deadline, wait_for

log = Log('gocept.runner.house')

_PR_SET_NAME = 15

_LONGEST_NAME = 15  # bytes


class Warm(NamedTuple):
    """What was configured before the fork."""

    options: Options
    settings: Settings
    verbose: int

    def configuration(self, configfile: ConfigFile, guard: Guard,
                      settings: Settings, *, verbose: int,
                      ) -> AbstractContextManager[Options]:
        """Take the place of `program.configuration`, which reads the file.

        The loggers are set up once more if these settings are about them.
        """
        said = settings._replace(**{
            name: value for name, value in self.settings._asdict().items()
            if getattr(settings, name) is None})
        return program.configuration(
            self.options.configfile, guard,
            said._replace(application=environments.current().name),
            verbose=verbose or self.verbose, loaded=self.options,
            logs=verbose > self.verbose or said != self.settings)


def move_in(stdout: int, stderr: int, mark: str, argv: Sequence[str],
            title: str) -> None:
    """Make a process of its own of a fork.

    The standard streams are /dev/null and copies of these descriptors. `mark`
    takes the place of that of the process it was forked from, so descendants
    of the one are none of the other.
    """
    sys.argv[:] = argv
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    for fd, number in (null, 0), (stdout, 1), (stderr, 2):
        os.dup2(fd, number)
    os.close(null)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Whatever the standard output was before: somebody reads these lines.
        sys.stdout.reconfigure(line_buffering=True)
    if mark:
        *above, _ = os.environ.get(MARKER, '').split() or ['']
        os.environ[MARKER] = ' '.join([*above, mark])
    with contextlib.suppress(OSError, NotImplementedError):
        libc.call('prctl', _PR_SET_NAME, title.encode()[:_LONGEST_NAME])
    # Else a line might go to a file that was moved away since.
    reopen_logs()
    # Python does this itself with its own generator.
    numbers = sys.modules.get('numpy.random')
    if numbers is not None:
        numbers.seed()


class Life(Closing):
    """The end of a pipe whose other end only the program above has.

    When that program has ended, the worker ends as on a SIGTERM. The system
    tells it by SIGIO, so no thread has to wait.
    """

    def __init__(self, pipe: int) -> None:
        self._pipe = fcntl.fcntl(pipe, fcntl.F_DUPFD_CLOEXEC, 3)

    @property
    def is_over(self) -> bool:
        """Whether the program above has ended."""
        return wait_for(self._pipe, select.POLLIN, Deadline(0))

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """End the worker in this block."""
        with handling({signal.SIGIO: self._look}):
            fcntl.fcntl(self._pipe, fcntl.F_SETOWN, os.getpid())
            flags = fcntl.fcntl(self._pipe, fcntl.F_GETFL)
            fcntl.fcntl(self._pipe, fcntl.F_SETFL, flags | os.O_ASYNC)
            self._look(signal.SIGIO, None)  # it may have ended before
            try:
                yield
            finally:
                fcntl.fcntl(self._pipe, fcntl.F_SETFL, flags)
        if self.is_over:
            log.warning('The process that has started this worker has ended, '
                        'so the worker ends')

    def _look(self, signum: int, frame: FrameType | None) -> None:
        if self.is_over:
            end_program(signal.SIGTERM)

    def close(self) -> None:
        """See `Closing`."""
        if self._pipe >= 0:
            pipe, self._pipe = self._pipe, -1
            os.close(pipe)


def end_process(main: Callable[[], int]) -> NoReturn:
    """End this process with the status that `main` returns.

    As at the end of a program, threads are waited for and exit handlers are
    called. But what the process it was forked from had is left: its temporary
    files are those of other workers, too.
    """
    for each in list(getattr(weakref.finalize, '_registry', ())):
        each.atexit = False
    status = _status_of(main)
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    finally:
        for stream in sys.stdout, sys.stderr:
            # Whoever has read it may have gone, or has closed it.
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(status)


def _status_of(main: Callable[[], int]) -> int:
    try:
        return main()
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error, file=sys.stderr)
        return errors.status_of(error)
    except BaseException:
        traceback.print_exc()
        return errors.WORKER_FAILED
