"""A kernel until it listens: what it does not inherit, and its place.

This imports little, as of many kernels that are started at once all but one
end here.
"""

import contextlib
import os
import resource
import signal

from gocept.runner.errors import KernelError
from gocept.runner.kernel.keeper import control, systemd
from gocept.runner.kernel.keeper.options import Options
from gocept.runner.process import inheritance

_KEPT = {'PATH', 'HOME', 'LANG', 'LC_ALL', 'LC_CTYPE', 'TZ', 'NOTIFY_SOCKET'}
"""The environment, which tells nothing of the client."""

_LEAST_FILES = 64  # descriptors


def take_place(options: Options) -> tuple[dict[str, int], Options]:
    """Listen; what the keeper is to hold, and the options as they are now.

    AlreadyThere, KernelError: see `control.listen`. KernelError for the log.
    """
    _forget_inherited()
    passed = systemd.take_sockets(os.environ)
    if not options.foreground:
        inheritance.close_inherited(passed.values())
    try:
        inheritance.check_log(options.log)
    except OSError as error:
        raise KernelError(str(error)) from error
    for name in os.environ.keys() - _KEPT:
        del os.environ[name]
    table = control.take_passed(passed, options) or control.listen(options)
    options = control.with_address(table, _raise_limits(options))
    return table | passed, options


def _forget_inherited() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for signum in signal.valid_signals():
        if (signal.getsignal(signum) is signal.SIG_IGN
                and signum not in (signal.SIGPIPE, signal.SIGXFSZ)):
            signal.signal(signum, signal.SIG_DFL)
    os.umask(0o027)
    os.chdir('/')


def _raise_limits(options: Options) -> Options:
    """Raise the soft limits that could hinder us; remember what they were."""
    return options._replace(
        open_files=_raise_limit(resource.RLIMIT_NOFILE),
        file_size=_raise_limit(resource.RLIMIT_FSIZE))


def _raise_limit(limit: int) -> tuple[int, int]:
    soft, hard = resource.getrlimit(limit)
    if limit == resource.RLIMIT_NOFILE and 0 <= hard < _LEAST_FILES:
        raise KernelError(
            f'the limit of open files is {hard}, and a kernel needs at least '
            f'{_LEAST_FILES}: raise it (ulimit -Hn)')
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(limit, (hard, hard))
    return soft, hard


def leave_client(options: Options) -> None:
    """Go on in a fork, without a terminal.

    The first process tells the client that it can connect, and ends.
    """
    with contextlib.suppress(PermissionError):  # it leads one already
        os.setsid()
    pid = os.fork()
    if pid:
        print(f'started {pid} {options.address}', flush=True)
        os._exit(0)  # at once, as the client waits


def open_standard(options: Options) -> None:
    """Let nothing of the client be standard input, output or error."""
    inheritance.open_standard(
        (0,), os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    if options.log or not options.foreground:
        inheritance.open_standard(
            (1, 2), options.log or os.devnull, inheritance.LOG_FLAGS)
