"""One child of an executor: its output, its events, and its end."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from gocept.runner.events import ChildEnded, ChildReady, ChildStarted, Queue
from gocept.runner.executor.capture import Capture, Reader
from gocept.runner.executor.conditions.base import Check
from gocept.runner.logs import Log
from gocept.runner.poller import Poller, background
from gocept.runner.process import Process
from gocept.runner.waits.deadline import Deadline
from gocept.runner.waits.forks import Lock

if TYPE_CHECKING:
    from gocept.runner.executor.base import SimpleExecutor

log = Log('gocept.runner.executor')


class Run:
    """One child of an executor, and all that belongs to it."""

    def __init__(self, executor: 'SimpleExecutor') -> None:
        self.began = time.monotonic()
        self.starter = threading.current_thread()
        self.is_settled = False
        """Whether the start is over: the child is ready, or was given up."""
        self.is_ending = False
        """Whether somebody wants the child to end."""
        self.news = Queue()  # without a lock; put with this one held:
        self._telling = Lock()
        self._has_ended = False
        self.check: Check | None = None
        self.captures: dict[str, Capture] = {}  # of the pipes of the child
        self.readers: dict[str, Reader] = {}
        self._waiting = contextlib.ExitStack()  # the wait for readiness
        popen = executor._popen
        self._is_stderr_lost = popen['stderr'] is None
        with contextlib.ExitStack() as undo:
            undo.enter_context(self._waiting)
            self.poller: Poller | None = self._waiting.enter_context(Poller())
            condition = executor.condition and executor.condition.for_child(
                executor._setting)
            if condition is not None:
                self.check = self._waiting.enter_context(condition.check())
            undo.callback(self.news.tell)
            undo.callback(self.settle, False)
            self.process = Process(
                **executor._options(self.check), on_start=self._tell_start,
                on_end=self._tell_end,
                servers=None if condition is None else condition.servers)
            if executor._stop_timeout is None:
                self.process.stop_timeout = executor._timeout
                self.process.exit_timeout = min(
                    executor._timeout, self.process.exit_timeout)
            undo.callback(self.process.close)
            undo.callback(self.process.terminate, signal.SIGKILL, 0)
            for name, channel in (('stdout', self.process.channel),
                                  ('stderr', self.process.stderr)):
                if channel is not None and channel.is_readable:
                    capture = self.captures[name] = undo.enter_context(Capture(
                        channel, executor._output_size, executor._log_file,
                        popen.get('encoding')))
                    self.readers[name] = Reader(
                        capture, popen.get('errors'))
            self.poller.register(self.process)
            for capture in self.captures.values():
                # A subscriber may keep the background thread from reading.
                self.poller.register(capture)
            if self.check is not None:
                self.check.begin(
                    self.process, list(self.captures.values()), self.poller,
                    executor._deadline or Deadline(executor._timeout))
            for capture in self.captures.values():
                background().register(capture)
            undo.pop_all()

    def _tell_start(self, process: Process) -> None:
        self.process = process
        with self._telling:
            self.news.put(ChildStarted.tell, process)
            self.news.put(log.info, 'Started %s', repr(process))
        self.news.tell()

    def settle(self, ready: bool) -> None:
        """Put what there is to tell at the end of the start; once.

        Only now the end of a child is told that has become a daemon before it
        was ready.
        """
        with self._telling:
            if not self.is_settled:
                self.is_settled = True
                if ready:
                    self.news.put(ChildReady.tell, self.process)
                    self.news.put(log.info, 'Ready after %.2f s: %r',
                                  time.monotonic() - self.began, self.process)
                if self._has_ended:
                    self._put_end()

    def _tell_end(self, process: Process) -> None:
        with self._telling:
            self._has_ended = True
            if self.is_settled:
                self._put_end()
        self.news.tell()

    def _put_end(self) -> None:
        self.news.put(ChildEnded.tell, self.process)
        self.news.put(self._log_end)

    def _log_end(self) -> None:
        process = self.process
        if (self.is_ending or process.lost or not process.returncode
                or not threading.main_thread().is_alive()):  # at our exit
            log.info('%r', process)
        else:
            log.warning('%s', '; '.join([repr(process), *self.tails()]))

    @property
    def status(self) -> str:
        """What a message says of the end of the child; '' before the end."""
        status = self.process.returncode
        return ('' if status is None
                else f'its status is {self.process.status_text}')

    def looks(self) -> Iterator[str]:
        """What a message says of the wait until the child is ready."""
        check = self.check
        if check is not None:
            yield (f'waited {time.monotonic() - self.began:.2f} s for '
                   f'{check.awaited}')
            if seen := check.seen:
                yield f'seen last: {seen}'

    def tails(self) -> Iterator[str]:
        """What a message says of the end of the output."""
        hint = (' (its standard error was not read: stderr=PIPE shows it here)'
                if self._is_stderr_lost and self.process.returncode else '')
        for name, capture in self.captures.items():
            capture.read_rest()
            tail = capture.tail
            yield (f'its {name} ends with:\n{tail}' if tail
                   else f'its {name} is empty{hint}')

    def end_waiting(self) -> None:
        """Close what only the wait for readiness needs."""
        self.check = self.poller = None
        self._waiting.close()

    def close(self) -> None:
        """Close everything; the process goes on, if it runs."""
        self.end_waiting()
        for capture in self.captures.values():
            capture.close()
        self.process.close_channels()
        self.process.forget_servers()

    def abandon(self, signum: int) -> None:
        """End the child of an executor that was forgotten.

        The background thread does this. After the kill signal, it has next to
        nothing to wait for.
        """
        self.is_ending = True
        try:
            if self.process.is_ours:
                self.process.terminate(signum, 0)
        finally:
            self.close()
