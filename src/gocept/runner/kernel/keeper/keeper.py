"""The keeper: it holds what a daemon needs, and brings the daemon back.

The keeper is the parent of the daemon, and adopts the children of a daemon
that has died. It holds duplicates of descriptors, waits, and forks successors
from the code that it has loaded, since the release may be gone from disk. It
does nothing else, so that nothing can go wrong in it.
"""

import collections
import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import time
from collections.abc import Iterator

from gocept.runner.errors import KernelError
from gocept.runner.kernel.keeper import control, handover, systemd
from gocept.runner.kernel.keeper.link import End, Link, Message
from gocept.runner.kernel.keeper.options import Options
from gocept.runner.logs import Log
from gocept.runner.process import procfs
from gocept.runner.waits.deadline import NEVER, Deadline, wait_for_any
from gocept.runner.waits.packets import pair

log = Log('gocept.runner.kernel')

_PR_SET_CHILD_SUBREAPER = 36

_SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP,
            control.SIGNAL)

_FIRST_PAUSE, _LAST_PAUSE = 0.1, 5.0
"""Seconds before a successor of daemons that fail to start: doubled each time.
"""

_PATIENCE = 30.0
"""Seconds for the first daemon of new code until it serves."""

_LEAVE = 5.0
"""Seconds for the end of a daemon that only waits for it."""

_OFTEN, _SPAN = 10, 5.0
"""So many deaths in so many seconds are followed by the first pause, also of
daemons that had started: a request may kill each of them."""


class Keeper:
    """What survives the daemon; `run` forks it."""

    def __init__(self, table: dict[str, int], options: Options, *,
                 deaths: int = 0, keeper_deaths: int = 0,
                 previous: Options | None = None, is_stopping: bool = False,
                 leaving: tuple[int, int] | None = None,
                 failed_upgrades: int = 0) -> None:
        self.table = table
        self.options = options
        self.previous = previous
        """Where to go back to if the first daemon after an upgrade fails."""
        self.deaths = deaths
        self.keeper_deaths = keeper_deaths
        self.failed_upgrades = failed_upgrades
        """How often old code went on after a trial of new code was good."""
        self._daemon = 0
        self._started = 0.0
        self._is_ready = False
        self._end: End | None = None
        self._is_open = False  # the link
        self._failures = 0  # of daemons that were never ready, in a row
        self._times: collections.deque[float] = collections.deque(
            maxlen=_OFTEN)
        self._due = Deadline(0)
        self._limit = NEVER  # for the daemon, to be ready or to leave
        self._statuses: dict[int, int] = {}
        self._untold: dict[int, int] = {}
        self._is_stopping = is_stopping
        self._is_told = True  # the daemon knows that it is to stop
        self._is_over = False
        self._upgrade: Options | None = None
        self._wakeup = (-1, -1)
        self._is_leaving = leaving is not None
        if leaving is not None:
            self._daemon, fd = leaving
            self._end, self._is_open = End(socket.socket(fileno=fd)), True

    def run(self) -> Link | None:
        """Keep daemons; returns None when it is over, and in each daemon that
        it forks the daemon's end of their link."""
        adopt_orphans()
        with self._signals():
            set_name(control.KEEPER)  # whoever finds it may send a signal
            if self._is_leaving:
                self._let_go()
            self._reap_others()  # of the time before an exec
            while not self._is_over:
                if not self._daemon and self._due.passed:
                    link = self._fork()
                    if link is not None:
                        return link
                self._wait()
        return None

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Have signals end the wait."""
        self._wakeup = os.pipe()
        for fd in self._wakeup:
            os.set_blocking(fd, False)
        keeper = os.getpid()
        for signum in _SIGNALS:
            signal.signal(signum, nothing)
        signal.set_wakeup_fd(self._wakeup[1], warn_on_full_buffer=False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        try:
            yield
        finally:
            if os.getpid() == keeper:
                self._forget_signals()

    def _forget_signals(self) -> None:
        signal.set_wakeup_fd(-1)
        for signum in _SIGNALS:
            signal.signal(signum, signal.SIG_DFL)
        for fd in self._wakeup:
            os.close(fd)

    def _fork(self) -> Link | None:
        """Start a daemon; returns its link in the daemon."""
        try:
            ours, theirs = pair()
        except OSError as error:
            self._cannot_fork(error)
            return None
        keeper = os.getpid()
        # A signal is either the keeper's or the daemon's.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            try:
                pid = os.fork()
            except OSError as error:
                ours.close()
                theirs.close()
                self._cannot_fork(error)
                return None
            if not pid:
                return self._become_daemon(ours, theirs, keeper)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        theirs.close()
        self._daemon = pid
        self._started = time.monotonic()
        self._is_ready = False
        self._end, self._is_open = End(ours), True
        self._limit = NEVER if self.previous is None else Deadline(_PATIENCE)
        self._untold = self._statuses.copy()
        self._is_told = not self._is_stopping
        self._tell()
        return None

    def _become_daemon(self, ours: socket.socket, theirs: socket.socket,
                       keeper: int) -> Link:
        ours.close()
        self._forget_signals()
        set_name(control.DAEMON)
        return Link(theirs, self.table, keeper, self.deaths,
                    self.keeper_deaths, self.failed_upgrades)

    def _cannot_fork(self, error: OSError) -> None:
        self._failures += 1
        pause = self._pause()
        self._due = Deadline(pause)
        log.error('No daemon can be started: %s; trying again in %.1f s',
                  error, pause)

    def _wait(self) -> None:
        masks = {self._wakeup[0]: select.POLLIN}
        if self._end is not None and self._is_open:
            masks[self._end.sock.fileno()] = select.POLLIN | (
                select.POLLOUT if self._untold or not self._is_told else 0)
        wait_for_any(masks, self._limit if self._daemon else self._due)
        self._take_signals()
        self._receive()
        self._enforce_limit()
        self._reap_daemon()
        self._reap_others()
        self._tell()

    def _enforce_limit(self) -> None:
        """Kill a daemon that hangs before it serves, or before its end."""
        if self._daemon and self._limit.passed:
            log.error('The daemon, process %d, hangs: it has not %s in %g s',
                      self._daemon, 'ended' if self._is_leaving else 'begun '
                      'to serve', self._limit.seconds)
            self._limit = NEVER
            os.kill(self._daemon, signal.SIGKILL)

    def _take_signals(self) -> None:
        try:
            signums = os.read(self._wakeup[0], 1000)
        except BlockingIOError:
            return
        for signum in signums:
            if signum in (signal.SIGTERM, signal.SIGINT) or (
                    signum == signal.SIGHUP and self.options.foreground):
                self._stop(signal.Signals(signum).name)
            elif signum == control.SIGNAL and not self._is_stopping:
                self._listen_again()

    def _listen_again(self) -> None:
        """Replace a socket that was removed, and the daemon that has it."""
        try:
            if not control.listen_again(self.table, self.options):
                return
        except OSError as error:
            log.error('The kernel cannot listen again on %s: %s',
                      self.options.address, error)
            return
        log.warning('Somebody has removed %s: a new daemon listens there '
                    'again', self.options.address)
        if self._daemon and not self._is_leaving:
            os.kill(self._daemon, signal.SIGKILL)

    def _stop(self, reason: str) -> None:
        """Have the daemon stop; if it does not, end at the second request."""
        if self._is_stopping or (self._failures and not self._daemon):
            self._finish()
            return
        log.info('%s: the kernel stops, and its processes run on', reason)
        systemd.notify('STOPPING=1')
        self._is_stopping = True
        self._is_told = False

    def _finish(self) -> None:
        self._is_over = True
        systemd.notify('STOPPING=1')
        control.remove(self.table, self.options)

    def _receive(self) -> None:
        """Take what the daemon has sent, also before its death."""
        while self._end is not None and self._is_open and not self._is_over:
            try:
                message = self._end.receive()
            except BlockingIOError:
                return
            except KernelError as error:
                log.error('The keeper has lost a message: %s', error)
                continue
            if message is None:
                self._is_open = False
                return
            try:
                self._obey(message)
            except Exception:  # it has to go on, whatever a daemon says
                log.exception('The keeper cannot do what the daemon asks for: '
                              '%s', message.operation)

    def _obey(self, message: Message) -> None:
        match message.operation:
            case 'hold':
                self._hold(message.argument, message.descriptors)
            case 'release':
                for key in message.argument:
                    fd = self.table.pop(key, -1)
                    if fd >= 0:
                        os.close(fd)
            case 'known':
                self._forget(message.argument)
            case 'ready':
                self._note_ready()
            case 'stop':
                self._finish()
            case 'ask to stop':
                self._stop('SIGTERM to the daemon')
            case 'upgrade':
                self._note_upgrade(message.descriptors)
            case 'leave':
                if self._upgrade is not None:
                    self._change_code()
                # There is no other code, or it cannot be run.
                self._let_go()

    def _hold(self, keys: list[str], descriptors: list[int]) -> None:
        if len(keys) != len(descriptors):
            log.error(
                'The keeper has no descriptors left: %s will be missing in '
                'the next daemon; raise the limit of open files',
                ', '.join(keys[len(descriptors):]))
        for key, fd in zip(keys, descriptors, strict=False):
            old = self.table.get(key, -1)
            self.table[key] = fd
            if old >= 0:
                os.close(old)

    def _note_ready(self) -> None:
        self._is_ready = True
        self._failures = 0
        self._limit = NEVER
        self.previous = None
        systemd.notify(f'READY=1\nMAINPID={os.getpid()}')

    def _note_upgrade(self, descriptors: list[int]) -> None:
        with open(descriptors[0], 'rb') as file:
            file.seek(0)
            changes: dict[str, object] = json.load(file)
        self._upgrade = Options.from_json(self.options.to_json() | changes)

    def _reap_daemon(self) -> None:
        if not self._daemon:
            return
        found = os.waitid(
            os.P_PID, self._daemon, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is None:
            return
        self._receive()  # what it has sent just before
        os.waitid(os.P_PID, self._daemon, os.WEXITED)
        pid, self._daemon = self._daemon, 0
        if self._end is not None:
            self._end.close()
            self._end = None
        self._limit = NEVER
        if self._is_over:
            return
        if self._is_leaving:
            self._is_leaving = False
            return
        if self._upgrade is not None:
            self._change_code()
            return
        self._note_death(pid, status_of(found))

    def _note_death(self, pid: int, status: int) -> None:
        now = time.monotonic()
        self.deaths += 1
        if not self._is_ready:
            self._failures += 1
        pause = self._pause()
        self._times.append(now)
        self._due = Deadline(pause)
        log.warning(
            'The daemon, process %d, %s %s after %.3f s; a successor '
            'starts %s',
            pid, 'ended with status' if status >= 0 else 'was killed by',
            describe(status), now - self._started,
            f'in {pause:.1f} s' if pause else 'now')
        if not self._is_ready and self.previous is not None:
            self._go_back()

    def _pause(self) -> float:
        """Seconds before the next start."""
        if self._failures > 1:
            return float(min(_FIRST_PAUSE * 2 ** (self._failures - 2),
                             _LAST_PAUSE))
        if (len(self._times) == _OFTEN
                and time.monotonic() - self._times[0] < _SPAN):
            return _FIRST_PAUSE
        return 0.0

    def _change_code(self) -> None:
        """Become the keeper of another release."""
        new, self._upgrade = self._upgrade, None
        assert new is not None
        log.info('Upgrade: going on with the code of %s', new.script)
        self._exec(new, self.options)

    def _let_go(self) -> None:
        """Let the daemon end which has stayed while the code was changed."""
        assert self._end is not None
        self._is_leaving = True
        self._limit = Deadline(_LEAVE)
        with contextlib.suppress(OSError):  # it has died
            self._end.send('go')

    def _go_back(self) -> None:
        old, self.previous = self.previous, None
        assert old is not None
        if os.path.exists(old.script):
            self.failed_upgrades += 1
            log.error('The new code does not start: going back to %s',
                      old.script)
            self._exec(old, None)
        else:
            log.error('The new code does not start, and the old one is gone')

    def _exec(self, options: Options, previous: Options | None) -> None:
        """Only returns if it fails; then this code goes on."""
        # Where the new code has no handlers yet, a signal would end it.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            handover.become(options, self.table, {
                'deaths': self.deaths, 'keeper_deaths': self.keeper_deaths,
                'is_stopping': self._is_stopping,
                'failed_upgrades': self.failed_upgrades,
            }, previous, self._leaving())
        except OSError as error:
            log.error('The other code cannot be run: %s; this code goes on',
                      error)
            self.failed_upgrades += 1
            self._due = Deadline(0)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _leaving(self) -> tuple[int, int] | None:
        """The daemon that waits for the other code, and the link to it."""
        if not self._daemon or self._end is None:
            return None
        return self._daemon, self._end.sock.fileno()

    def _reap_others(self) -> None:
        """Note how the children of former daemons have ended.

        They remain zombies until the daemon knows. So their numbers belong to
        nobody else.
        """
        while True:
            try:
                found = os.waitid(
                    os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None or found.si_pid == self._daemon:
                return  # the daemon comes next
            if found.si_pid in self._statuses:
                break  # the system shows this one always first
            self._note(found)
        for pid in procfs.children(os.getpid()):
            if pid not in self._statuses and pid != self._daemon:
                with contextlib.suppress(ChildProcessError):
                    found = os.waitid(
                        os.P_PID, pid,
                        os.WEXITED | os.WNOHANG | os.WNOWAIT)
                    if found is not None:
                        self._note(found)

    def _note(self, found: os.waitid_result) -> None:
        pid = found.si_pid
        # A child of a daemon leads a session. An orphan that does not is the
        # child of some child.
        if os.getsid(pid) != pid:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
        else:
            self._statuses[pid] = self._untold[pid] = status_of(found)

    def _forget(self, pid: int) -> None:
        if self._statuses.pop(pid, None) is not None:
            self._untold.pop(pid, None)
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)

    def _tell(self) -> None:
        """Tell the daemon what it does not know, as far as it takes it."""
        if self._end is None or not self._is_open:
            return
        try:
            while self._untold:
                pid = next(iter(self._untold))
                self._end.send('status', [pid, self._untold[pid]])
                del self._untold[pid]
            if not self._is_told:
                self._end.send('stop')
                self._is_told = True
        except BlockingIOError:
            pass
        except ConnectionError:
            # It has died; what it had sent before is still to be read.
            self._untold.clear()
            self._is_told = True


def nothing(signum: int, frame: object) -> None:
    """A handler: unlike an ignored signal, children do not inherit it."""


def status_of(found: os.waitid_result) -> int:
    """The status as Popen has it."""
    return (found.si_status if found.si_code == os.CLD_EXITED
            else -found.si_status)


def describe(status: int) -> str:
    """The number, or the name of the signal."""
    if status < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-status).name
    return str(abs(status))


def set_name(name: str) -> None:
    """What ``ps -o comm`` and ``top`` show."""
    with contextlib.suppress(OSError), open('/proc/self/comm', 'w') as file:
        file.write(name)


def adopt_orphans() -> None:
    """Become the parent of all descendants that lose theirs."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def keep(table: dict[str, int], options: Options,
         counts: handover.Counts) -> Keeper:
    """A keeper with the counts of the one before it."""
    previous = counts.get('previous')
    return Keeper(
        table, options, deaths=counts.get('deaths', 0),
        keeper_deaths=counts.get('keeper_deaths', 0),
        previous=Options.from_json(previous) if previous else None,
        is_stopping=counts.get('is_stopping', False),
        leaving=counts.get('leaving'),
        failed_upgrades=counts.get('failed_upgrades', 0))
