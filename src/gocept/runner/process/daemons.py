"""The start of a daemon: a program that outlives us, up to its first word.

The program finds its options as JSON on standard input. It leaves us by a fork
whose parent ends. When it is ready, or cannot start, it writes a line, and
closes standard output and standard error.
"""

import contextlib
import json
import os
import select
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence

from gocept.runner.errors import ShortageError
from gocept.runner.process.direct import Command, spawn
from gocept.runner.process.newborn import Newborn
from gocept.runner.process.pidfd import hold
from gocept.runner.process.shortages import SHORTAGES
from gocept.runner.waits.deadline import Deadline, wait_for
from gocept.runner.waits.standard import fill_standard

_LONGEST = 2000  # bytes of what a daemon says that are kept


def start(command: Sequence[str], environment: Mapping[str, str],
          options: Mapping[str, object], deadline: Deadline,
          meanwhile: Callable[[], None]) -> str:
    """Start a daemon, and return the last line that it says.

    `meanwhile` is called while it starts. '' if it says nothing up to the
    deadline; then it is killed. OSError if it cannot be started, which is a
    ShortageError if the machine is at fault.
    """
    newborn = Newborn('', leads_group=True)
    try:
        _spawn(command, environment, options, newborn)
        meanwhile()
        output = _wait(newborn, deadline)
    except BaseException as error:
        newborn.abandon()
        if isinstance(error, OSError) and error.errno in SHORTAGES:
            raise ShortageError(error.errno, error.strerror) from error
        raise
    return output.decode(errors='replace').strip().rpartition('\n')[2]


def _spawn(command: Sequence[str], environment: Mapping[str, str],
           options: Mapping[str, object], newborn: Newborn) -> None:
    """Start it. What it inherits it closes itself; see `inheritance`."""
    fill_standard()
    newborn.stdout, output = newborn.pipe()
    with options_file(options) as file:
        program = Command(
            [*map(os.fsencode, command)],
            {os.fsencode(name): os.fsencode(value)
             for name, value in environment.items()})
        program.streams = file, output, output
        # Where a signal handler raises an exception, the child is known.
        mask = signal.pthread_sigmask(
            signal.SIG_BLOCK, signal.valid_signals())
        try:
            newborn.pid = spawn(program)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    os.close(newborn.take(output))


def _wait(newborn: Newborn, deadline: Deadline) -> bytes:
    """What the first process says until its end, which is to come soon."""
    output = b''
    with contextlib.closing(hold(newborn.pid)) as handle:
        while wait_for(newborn.stdout, select.POLLIN, deadline):
            data = os.read(newborn.stdout, select.PIPE_BUF)
            if not data:
                break
            output = (output + data)[-_LONGEST:]
        # A fork of it that is silent is in its group, whose number is free
        # when it is reaped.
        if output and (handle.fileno() < 0 or wait_for(
                handle.fileno(), select.POLLIN, deadline)):
            newborn.reap(newborn.pid)
            os.close(newborn.take(newborn.stdout))
        else:
            newborn.abandon()
    return output


@contextlib.contextmanager
def options_file(options: Mapping[str, object]) -> Iterator[int]:
    """The options as a file that is open, and has no name."""
    fd = os.memfd_create('options', os.MFD_CLOEXEC)
    try:
        os.write(fd, json.dumps(options).encode())
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)
