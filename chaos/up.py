"""Ten workers under `up`, a ZEO server, and all of them get killed.

In each round something happens to `up`, its template, its ZEO server or its
workers, to the disk or the code. Then all workers have to work again. At the
end of some rounds the house ends, and nothing may be left of it but what its
workers have committed. See `chaos.scripts.tenants` for these.
"""

import contextlib
import os
import pathlib
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator

from chaos.estate import NAMES, VISITOR, Estate
from chaos.worker import check
from gocept.runner import errors
from gocept.runner.house.workerprocess import RULES

ROUNDS = 20
"""Rounds in one directory."""

LONGEST_WAIT = 180.0
"""How long anything may take, in seconds. It is longer than the grace of a ZEO
server whose `up` has died."""

MARGIN = 60.0
"""How long, beyond its back-off, a worker may be missing, in seconds: until a
new `up` has booted on a busy machine, for instance."""

LONGEST_PAUSE = 1.0
"""Between two acts of a round, and of a stop, in seconds."""

MOST_FAILURES = 4
"""After so many failures in a row, of which the next one has a pause of some
seconds, a worker is left in peace until these do not count any more."""

ACTS = (
    *['kill up'] * 2, *['kill template'] * 2, *['kill server'] * 2,
    *['kill worker'] * 4, 'stop up', 'stop template', 'stop server',
    'stop worker', 'good code', 'good code', 'broken code', 'hang up',
    'visit', 'visit', 'open file', 'fill disk')

LOSSES = {'kill up', 'kill server', 'stop server', 'fill disk'}
"""Acts through which a program beside `up` may lose the database."""


def run(randomly: random.Random, runs: int) -> Iterator[str]:
    """Let something happen; yields what was done in each round."""
    for first in range(0, runs, ROUNDS):
        rounds = min(ROUNDS, runs - first)
        with tempfile.TemporaryDirectory() as name:
            estate = Estate(pathlib.Path(name).resolve())
            with estate.small_disk() as has_disk:
                life = Life(estate, randomly, has_disk)
                try:
                    yield from life.live(rounds)
                except Exception as error:
                    error.add_note(life.told())
                    raise
                finally:
                    estate.make_room()
                    estate.kill_all()
                    life.close()


class Life:
    """What happens in one directory."""

    def __init__(self, estate: Estate, randomly: random.Random,
                 has_disk: bool) -> None:
        self.estate = estate
        self.randomly = randomly
        self.has_disk = has_disk
        self.in_flight = 0
        """How many commits there may be of which nobody knows."""
        self.done: list[str] = []
        self.lock = randomly.choice([[], ['--lock']])
        """Without it only `up` sees to it that no worker runs twice."""
        self._up: subprocess.Popen[bytes] | None = None
        self._others: list[tuple[str, subprocess.Popen[bytes]]] = []
        self._stopped: list[int] = []
        self._acts: list[str] = []
        """Those of this round."""
        self._is_broken = False
        self._deaths = dict.fromkeys(NAMES, 0)

    @property
    def up(self) -> 'subprocess.Popen[bytes]':
        """The process `up`."""
        assert self._up is not None
        return self._up

    def close(self) -> None:
        """Reap our children, which are dead."""
        for fd in self._stopped:
            os.close(fd)
        for process in [self._up, *(each for _, each in self._others)]:
            if process is not None:
                _close_input(process)
                process.wait()

    def live(self, rounds: int) -> Iterator[str]:
        """Begin, go through some rounds, and end."""
        self.begin()
        for number in range(rounds):
            done = self.suffer()
            if number == rounds - 1:
                done += f'; {self.end()}'
            yield done

    # The begin and the end.

    def begin(self) -> None:
        """Start `up` while another process has the file open."""
        opener = self.estate.opener()
        self._others.append(('open file', opener))
        self.wait_for('the opener', lambda: self.estate.is_opened)
        self.start_up()
        self.wait_for('that up waits', lambda: (
            f'process {opener.pid} has the database' in self.estate.log('up')))
        check(not self.estate.diaries[NAMES[0]].path.exists(),
              'a worker works although the file is open elsewhere')
        self.collect()
        self.wait_for_work(self.estate.version)

    def start_up(self) -> None:
        """Start `up`, with new failures."""
        if self._is_broken:
            self.mend()
        self._deaths = dict.fromkeys(NAMES, 0)
        self._up = self.estate.runner(
            'up', *self.lock, '--wait', str(LONGEST_WAIT), *NAMES)

    def end(self) -> str:
        """End `up` in order or not, and see what is left."""
        how = self.randomly.choice([
            signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
        self.up.send_signal(how)
        try:
            status = self.up.wait(LONGEST_WAIT)
        except subprocess.TimeoutExpired:
            raise AssertionError(f'up does not end by {how.name}') from None
        check(status == (-how if how == signal.SIGKILL else 0),
              f'up has ended with {status} by {how.name}')
        if how == signal.SIGKILL:
            self.wait_for('the end of all others',
                          lambda: not self.estate.left())
        self.estate.check_left()
        self.estate.check_alone()
        self._acts = []
        self._others.append(('open file', self.estate.opener()))
        self.wait_for('who opens the file thereafter',
                      lambda: self.estate.is_opened)
        self.collect()
        self.estate.check_left()
        count = self.estate.check_stored(self.in_flight)
        return f'ended by {how.name}: nothing is left, {count} stored'

    # A round.

    def suffer(self) -> str:
        """Have some things happen, and wait until all work again."""
        for diary in self.estate.diaries.values():
            diary.read()
            diary.forget_gap()
        self._acts = []
        for _ in range(self.randomly.choice([1, 1, 1, 2, 2, 3, 4])):
            act = self.randomly.choice(ACTS)
            if not self._excludes(act):
                time.sleep(self.randomly.choice([
                    0, self.randomly.uniform(0, LONGEST_PAUSE)]))
                self._acts.append(act)
                self.done.append(act)
                self._do(act)
        if self._stopped or 'fill disk' in self._acts:
            time.sleep(self.randomly.uniform(0, LONGEST_PAUSE))
        self.estate.make_room()
        self._go_on()
        if 'kill up' in self._acts and self.up.poll() is not None:
            self.start_up()
        self.collect()
        if 'kill up' in self._acts and {'good code', 'hang up'} & {
                *self._acts}:
            # A new `up` may have read the code before it was new, and was
            # asked too early to reload it.
            self.wait_for_work(1)
            self._others.append(('good code', self.estate.runner('reload')))
            self.collect()
        self.wait_for_work(self.estate.version)
        self.estate.check_alone()
        gap = max(each.gap for each in self.estate.diaries.values())
        return (f'{" + ".join(self._acts)}: all work, the longest pause was '
                f'{gap:.2f} s')

    def _excludes(self, act: str) -> bool:
        """Whether something cannot happen in this round any more."""
        if act in self._acts and act.split()[0] not in ('kill', 'stop'):
            return True
        codes = {'good code', 'broken code', 'hang up'}
        if act in codes:
            # One reload would take the place of the other.
            return bool(codes & {*self._acts})
        return act == 'fill disk' and not self.has_disk

    def _do(self, act: str) -> None:
        verb, _, who = act.partition(' ')
        if verb == 'kill' or verb == 'stop':
            self._harm(verb, who)
        elif act == 'good code':
            self.estate.version += 1
            self.estate.write_code()
            self._others.append((act, self.estate.runner('reload')))
        elif act == 'hang up':
            if self.up.poll() is None:
                self.estate.version += 1
                self.estate.write_code()
                self.up.send_signal(signal.SIGHUP)
        elif act == 'broken code':
            self._is_broken = True
            self.estate.write_code(broken=True)
            self._others.append((act, self.estate.runner('reload')))
        elif act == 'visit':
            self._others.append((act, self.estate.runner('run', VISITOR)))
        elif act == 'open file':
            self._others.append((act, self.estate.opener()))
        else:
            self.in_flight += len(NAMES) + 1
            self.estate.fill()

    def _harm(self, verb: str, who: str) -> None:
        name = who
        if who == 'worker':
            name = self.randomly.choice(NAMES)
            if verb == 'kill' and self._deaths[name] >= MOST_FAILURES:
                return
        if who == 'up':
            pid = None if self.up.poll() is not None else self.up.pid
        else:
            pid = self.estate.pid_of(name)
        fd = self.estate.handle(pid)
        if fd is None:  # it is dead already
            return
        if verb == 'stop':
            self._stopped.append(fd)
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, signal.SIGSTOP)
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        os.close(fd)
        self.in_flight += len(NAMES) + 1 if who == 'server' else 1
        if who == 'worker':
            self._deaths[name] += 1
        elif who == 'up':
            self.up.wait()
            if self.randomly.random() < 0.5:
                self.start_up()

    def _go_on(self) -> None:
        while self._stopped:
            fd = self._stopped.pop()
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, signal.SIGCONT)
            os.close(fd)

    def mend(self) -> None:
        """Write good code."""
        self.estate.write_code()
        self._is_broken = False

    def collect(self) -> None:
        """Wait for the end of all that was started beside `up`."""
        while self._others:
            act, process = self._others[0]
            _close_input(process)
            try:
                status = process.wait(LONGEST_WAIT)
            except subprocess.TimeoutExpired:
                raise AssertionError(f'{act} does not end') from None
            del self._others[0]
            allowed = self._statuses(act)
            check(status in allowed, f'{act}: status {status}, not in '
                                     f'{allowed}')
            if act == 'good code' and status == 0:
                self._deaths = dict.fromkeys(NAMES, 0)
        if self._is_broken:
            self.mend()

    def _statuses(self, act: str) -> set[int]:
        """Those that a program beside `up` may have."""
        acts = {*self._acts}
        if act in ('visit', 'open file'):
            statuses = {errors.SUCCESS}
            if acts & LOSSES:
                statuses |= {errors.DATABASE_UNAVAILABLE, errors.WORKER_FAILED}
            if act == 'visit' and 'broken code' in acts:
                statuses.add(errors.BAD_CONFIGURATION)
            return statuses
        if 'kill up' in acts:
            return {errors.SUCCESS, errors.WORKER_FAILED,
                    errors.KERNEL_NOT_RUNNING}
        return {errors.SUCCESS if act == 'good code'
                else errors.WORKER_FAILED}

    # What all have to do thereafter.

    def wait_for(self, what: str, fact: Callable[[], bool]) -> None:
        """Wait until something is a fact."""
        deadline = time.monotonic() + LONGEST_WAIT
        while not fact():
            for name, process in self._others:
                check(process.poll() in (None, 0),
                      f'{name} has ended with {process.returncode}')
            check(time.monotonic() < deadline,
                  f'no sign of {what} within {LONGEST_WAIT} s')
            time.sleep(0.02)

    def wait_for_work(self, version: int) -> None:
        """Wait until each worker has begun another tick, with at least this
        version of the code, and has committed something.

        AssertionError if one is missing for longer than its back-off.
        """
        begin = time.monotonic()
        failures = dict.fromkeys(NAMES, 0)
        committed = {name: self.estate.committed(name) for name in NAMES}
        missing = [*NAMES]
        while missing:
            status = self.up.poll()
            check(status is None, f'up has ended with {status}')
            state = self.estate.state()
            for worker in state['workers'] if state else ():
                name = worker['name']
                failures[name] = max(failures[name], worker['failures'])
                check(worker['phase'] not in ('given up', 'done', 'ended')
                      or state is None or state['pid'] != self.up.pid,
                      f'{name} is {worker["phase"]}')
            now = time.monotonic()
            for name in [*missing]:
                diary = self.estate.diaries[name]
                diary.read()
                if (diary.instant > begin and diary.version >= version
                        and self.estate.committed(name) > committed[name]):
                    missing.remove(name)
                    continue
                pause = back_off(failures[name])
                check(now < begin + pause + MARGIN,
                      f'{name} is missing for longer than {pause} s, its '
                      f'back-off, and {MARGIN} s')
            time.sleep(0.02)

    def told(self) -> str:
        """All that is known."""
        return '\n'.join([
            f'what was done: {self.done}', f'in this round: {self._acts}',
            f'with {self.lock}', f'the state: {self.estate.state()}',
            *(f'{name}:\n{self.estate.log(name)[-15_000:]}'
              for name in ('opener', 'run', 'reload', 'up'))])


def back_off(failures: int) -> float:
    """Seconds that a worker is not restarted after so many in a row."""
    return 0.0 if not failures else min(
        RULES.longest_pause, RULES.first_pause * 2.0 ** (failures - 1))


def _close_input(process: 'subprocess.Popen[bytes]') -> None:
    if process.stdin is not None:
        process.stdin.close()
