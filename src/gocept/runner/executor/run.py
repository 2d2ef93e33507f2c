"""One child of an executor: its output, its events, and its end."""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from gocept.runner.events import ChildEnded, ChildReady, ChildStarted, Queue
from gocept.runner.executor.capture import Capture
from gocept.runner.executor.conditions.base import Check
from gocept.runner.executor.facade import Popen
from gocept.runner.executor.reader import Reader
from gocept.runner.logs import Log
from gocept.runner.poller import Poller, background
from gocept.runner.process.base import BaseProcess
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
        self._turn = Lock()  # of the thread that looks
        popen = executor._popen_kwargs
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
            self.child = executor.open(
                self.check, on_start=self._tell_start, on_end=self._tell_end,
                servers=None if condition is None else condition.servers)
            if self.child.was_ready:
                again = None if condition is None else condition.for_found()
                self.check = None if again is None else (
                    self._waiting.enter_context(again.check()))
            if executor._stop_timeout is None:
                patience = (math.inf if executor._timeout is None
                            else executor._timeout)
                self.child.stop_timeout = patience
                self.child.exit_timeout = min(
                    patience, self.child.exit_timeout)
            undo.push(self._give_up)
            is_text = any(map(popen.get, (
                'universal_newlines', 'text', 'encoding', 'errors')))
            for name, channel in (('stdout', self.child.channel),
                                  ('stderr', self.child.stderr)):
                if channel is not None and channel.is_readable:
                    capture = self.captures[name] = undo.enter_context(Capture(
                        channel, executor._output_size, executor._log_file,
                        popen.get('encoding')))
                    self.readers[name] = Reader(
                        capture, popen.get('errors'), is_text=is_text)
            self.poller.register(self.child)
            for capture in self.captures.values():
                # A subscriber may keep the background thread from reading.
                self.poller.register(capture)
            if self.check is not None:
                self.check.begin(
                    self.child, list(self.captures.values()), self.poller,
                    executor._deadline or Deadline(executor._timeout))
            for capture in self.captures.values():
                background().register(capture)
            self.popen = Popen(
                self.child, executor.command if popen['shell']
                else self.child.args, self.readers,
                (popen.get('encoding') or 'utf-8') if is_text else None,
                popen.get('errors'))
            undo.pop_all()

    def _give_up(self, kind: type[BaseException] | None, *error: object,
                 ) -> None:
        """Something here has failed; who lives in a kernel may go on."""
        process = self.child
        with contextlib.closing(process):
            if not process.in_kernel or not (
                    process.was_found or kind is None
                    or not issubclass(kind, Exception)):
                process.terminate(signal.SIGKILL, 0)

    def _tell_start(self, process: BaseProcess) -> None:
        self.child = process
        with self._telling:
            self.news.put(ChildStarted.tell, process)
            self.news.put(log.info, '%s %s', (
                'Found' if process.was_found else 'Started'), repr(process))
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
                    self.child.note_ready()
                    self.news.put(ChildReady.tell, self.child)
                    self.news.put(log.info, 'Ready after %.2f s: %r',
                                  time.monotonic() - self.began, self.child)
                if self._has_ended:
                    self._put_end()

    def _tell_end(self, process: BaseProcess) -> None:
        with self._telling:
            self._has_ended = True
            if self.is_settled:
                self._put_end()
        self.news.tell()

    def _put_end(self) -> None:
        self.news.put(ChildEnded.tell, self.child)
        self.news.put(self._log_end)

    def _log_end(self) -> None:
        process = self.child
        if (self.is_ending or process.lost or not process.returncode
                or not threading.main_thread().is_alive()):  # at our exit
            log.info('%r', process)
        else:
            log.warning('%s', '; '.join([repr(process), *self.tails()]))

    @property
    def status(self) -> str:
        """What a message says of the end of the child; '' before the end."""
        status = self.child.returncode
        return ('' if status is None
                else f'its status is {self.child.status_text}')

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
                if self._is_stderr_lost and self.child.returncode else '')
        for name, capture in self.captures.items():
            capture.read_rest()
            tail = capture.tail
            yield (f'its {name} ends with:\n{tail}' if tail
                   else f'its {name} is empty{hint}')

    def look(self) -> bool:
        """Whether the check holds; False while another thread looks."""
        with self._turn_to_look() as is_ours:
            check = self.check
            held = is_ours and check is not None and check.holds()
        if self.check is None:
            self.end_waiting()
        return held

    def end_waiting(self) -> None:
        """Close what only the wait for readiness needs.

        A thread that just looks does it when it has looked.
        """
        self.check = self.poller = None
        with self._turn_to_look() as is_ours:
            if is_ours:
                self._waiting.close()

    @contextlib.contextmanager
    def _turn_to_look(self) -> Iterator[bool]:
        """Whether nobody else looks; nobody waits for that."""
        is_ours = not self._turn.held and self._turn.acquire(blocking=False)
        try:
            yield is_ours
        finally:
            if is_ours:
                self._turn.release()

    def close(self) -> None:
        """Close everything; the process goes on, if it runs."""
        self.end_waiting()
        if self.child.in_kernel and self.child.returncode is not None:
            for capture in self.captures.values():
                capture.read_rest()
            self.child.abandon_channels()
        for capture in self.captures.values():
            capture.close()
        self.child.let_go()
        self.child.forget_servers()

    def abandon(self, signum: int) -> None:
        """End the child of an executor that was forgotten.

        The background thread does this. After the kill signal, it has next to
        nothing to wait for.
        """
        self.is_ending = True
        try:
            if self.child.is_ours and not self.child.in_kernel:
                self.child.terminate(signum, 0)
        finally:
            self.close()
