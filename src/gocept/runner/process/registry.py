"""The processes that have not ended, and their end, also at our exit."""

import atexit
import contextlib
import importlib
import math
import os
import signal
import sys
from collections.abc import Iterable, Iterator

from gocept.runner.errors import DeadlineExceeded
from gocept.runner.events import PATIENCE
from gocept.runner.logs import Log
from gocept.runner.poller.thread import settle
from gocept.runner.process import procfs
from gocept.runner.process.adoption import adoption
from gocept.runner.process.descendants import Child
from gocept.runner.process.ending import STRAYS_TIMEOUT, Ending, end
from gocept.runner.process.guard import guard
from gocept.runner.waits.deadline import Deadline

log = Log('gocept.runner.process')

processes: set[Child] = set()
"""Each `Process` that runs, or has left descendants behind."""

_hooks: set[int] = set()  # the pids of processes, forks too, with a hook
_called: set[int] = set()  # those whose hook was called

_CALLBACKS_TIMEOUT = 1.0  # seconds for what the background thread is at


def hook() -> None:
    """End all children at the exit of this process.

    To be called before a child is started: a signal handler may raise an
    exception as soon as the child is there. RuntimeError if nobody would end
    the child, as this process exits already.
    """
    pid = os.getpid()
    if pid in _called:
        raise RuntimeError(
            'this process exits and has ended its children: no other child '
            'can be started any more, unless it is detached')
    if pid not in _hooks:
        _hooks.add(pid)
        atexit.register(_at_exit, pid)
        if procfs.is_foreign():
            log.warning('/proc belongs to another PID namespace: descendants '
                        'that leave their child cannot be found. Mount the '
                        '/proc of this one (unshare --mount-proc)')
        process = sys.modules.get('multiprocessing.process')
        if process is not None and process.parent_process() is not None:
            # A worker, which leaves by os._exit().
            util = importlib.import_module('multiprocessing.util')
            util.Finalize(None, _at_exit, (pid,), exitpriority=0)
    guard.begin()


@contextlib.contextmanager
def guarding() -> Iterator[None]:
    """In the block, children end with this process, however it ends.

    That is, if it is killed, say: they get SIGTERM, and SIGKILL after
    `STRAYS_TIMEOUT`, and so do their descendants, daemons as well. To know
    them takes their marks: what has no mark, as it is detached or has another
    environment, goes on, and what was not started as an `IProcess`.
    """
    with guard.wanted():
        if processes:
            guard.begin()
        yield


def _at_exit(pid: int) -> None:
    if pid == os.getpid():  # a fork does not end the children of its parent
        _called.add(pid)
        end_all()
        if not settle(_CALLBACKS_TIMEOUT):
            log.warning('A callback of a child or a channel takes long, and '
                        'is cut short by the exit of this process')


def terminate_all(children: Iterable[Child], signum: int | None = None,
                  timeout: float | None = None,
                  at_most: float = math.inf) -> None:
    """End several processes as `IProcess.terminate` does, side by side.

    Each has at most `at_most` seconds, even if its own time is longer. One
    that is finished already is not looked at again. DeadlineExceeded if some
    cannot be ended; their `finished` is False afterwards.
    """
    children = list(children)
    endings = {}
    for child in children:
        child.require_ours()
        if not child.finished:
            endings[child] = Ending(
                child, child.stop_signal if signum is None else signum,
                min(child.stop_timeout if timeout is None else timeout,
                    at_most))
    all_seen = False
    try:
        all_seen = end(endings.values())
    finally:
        for child, ending in endings.items():
            child.killed = child.killed or ending.killing
            child.finished = all_seen and not ending.failed
            if child.finished and child.adopts:
                adoption.end(child)
    if not all_seen:
        log.warning('Descendants of %s may be left: they could not be looked '
                    'for. Call terminate() again', [*endings])
    failed = [ending for ending in endings.values() if ending.failed]
    processes.difference_update(
        child for child in endings if child.finished)
    _settle(children)
    if failed:
        raise DeadlineExceeded('still there: ' + '; '.join(map(str, failed)))


def _settle(children: Iterable[Child]) -> None:
    """Wait for the threads that tell the ends of children."""
    deadline = Deadline(PATIENCE)
    for child in children:
        child.settle(deadline.left())


def end_all() -> None:
    """End all children that are left, and descendants of earlier ones.

    Ctrl-C kills them at once.
    """
    children = list(processes)
    try:
        end([Ending(None, signal.SIGTERM, STRAYS_TIMEOUT), *(
            Ending(child, child.stop_signal, child.exit_timeout)
            for child in children)])
    except BaseException as error:  # of a signal handler
        _kill_all(children)
        if not isinstance(error, KeyboardInterrupt):
            raise
    adoption.reap_all()
    _settle(children)
    for child in children:
        child.close_channels()


def _kill_all(children: Iterable[Child]) -> None:
    log.warning('The end of the children was interrupted: they are killed')
    while True:
        with contextlib.suppress(KeyboardInterrupt):  # once more, say
            end([Ending(None, signal.SIGKILL, 0), *(
                Ending(child, signal.SIGKILL, 0) for child in children)])
            return
