"""The program of the kernel: from its start to its end, in both roles."""

import contextlib
import fcntl
import gc
import os
import select
import signal
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from gocept.runner.kernel.keeper.handover import Counts
from gocept.runner.kernel.keeper.keeper import keep, nothing
from gocept.runner.kernel.keeper.link import Link, Outcome
from gocept.runner.kernel.keeper.options import Options
from gocept.runner.logs import CRITICAL, ERROR, INFO, WARNING, Log
from gocept.runner.waits.deadline import Deadline, wait_for
from gocept.runner.waits.identity import Identity
from gocept.runner.waits.standard import fill_standard

log = Log('gocept.runner.kernel')

_SOFTWARE = 70  # the status of a daemon that has a bug; see sysexits.h

_LEVELS = {INFO: 'INFO', WARNING: 'WARNING', ERROR: 'ERROR',
           CRITICAL: 'CRITICAL'}


class Daemon(Protocol):
    """The module of the daemon."""

    def run(self, table: dict[str, int], link: Link, options: Options,
            ) -> Outcome:
        """Serve.

        `table` has the descriptors that the keeper holds; it is ``link.table``
        and stays true. They remain open when this returns.
        """

    def trial(self, table: dict[str, int], options: Options) -> str:
        """See whether this code could go on with the state in `table`.

        Returns the version of this code; raises what is wrong.
        """


Load = Callable[[], Daemon]


def play(daemon: Daemon, table: dict[str, int], options: Options,
         counts: Counts) -> int:
    """Be the keeper, and in forks of it the daemon, and so on.

    Returns the status of the process, whichever it is.
    """
    fill_standard()
    Log.writer = Lines()
    gc.enable()
    while True:
        # What there is by now stays, so no fork copies it to look at it.
        gc.freeze()
        link = keep(table, options, counts).run()
        if link is None:
            return 0
        _listen_to_signals(link)
        try:
            outcome = daemon.run(link.table, link, options)
        except Exception:
            log.exception('The daemon fails')
            return _SOFTWARE
        if outcome != 'become keeper' and (
                not link.is_upgrading or link.leave()):
            return 0
        log.warning('The keeper, process %d, has died: process %d takes its '
                    'place', link.keeper, os.getpid())
        counts = {
            'deaths': link.deaths, 'keeper_deaths': link.keeper_deaths + 1,
            'failed_upgrades': link.failed_upgrades + link.is_upgrading}
        link.close()
        table = _take_over(link.table)
        del link


def _take_over(table: Mapping[str, int]) -> dict[str, int]:
    """Copies of the descriptors, which no object of the old daemon can close.

    Such an object may close those of the table when it is collected.
    """
    copies: dict[str, int] = {}
    known = {}
    for key, fd in table.items():
        # Where none is left, the daemon has to have closed its objects well.
        with contextlib.suppress(OSError):
            known[fd] = Identity.of(fd)
            copies[key] = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    gc.unfreeze()
    gc.collect()
    for key, fd in table.items():
        if key in copies:
            known[fd].close(fd)
    return {**table, **copies}


def _listen_to_signals(link: Link) -> None:
    """The keeper decides what a signal means."""
    signal.signal(signal.SIGTERM, lambda *ignored: link.ask_to_stop())
    for signum in (signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, nothing)


class Lines:
    """Writes to standard error what it takes at once, and counts the rest."""

    def __init__(self) -> None:
        self._lost = 0

    def write(self, level: int, name: str, text: str,
              error: BaseException | None) -> None:
        """See `logs.Writer`."""
        if level < INFO:
            return
        lost = f'({self._lost} lines before are lost) ' if self._lost else ''
        stamp = time.strftime('%Y-%m-%d %H:%M:%S')
        line = (f'{lost}{stamp} [{os.getpid()}] {_LEVELS[level]} {name} '
                f'{text}')
        if error is not None:
            import traceback  # takes long, and errors are rare
            line += '\n' + ''.join(traceback.format_exception(error)).rstrip()
        data = line.encode(errors='replace')
        try:
            # A pipe that can be written takes so much without waiting.
            if not wait_for(2, select.POLLOUT, Deadline(0)):
                raise BlockingIOError
            os.write(2, data[:select.PIPE_BUF - 1] + b'\n')
            self._lost = 0
        except OSError:
            self._lost += 1
