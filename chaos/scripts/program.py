"""A program that starts children, troubles them and looks at what it has.

usage: program.py PLAN READY

`PLAN` is a file with the plan in JSON; `READY` is a descriptor that is closed
when the program is about to start its first child. What it finds wrong is
written to the file ``report`` in the directory of the plan, when all else is
over; SIGUSR1 shows where all threads are on standard error.

The main thread carries out one part of the plan and other threads the others.
"""

import atexit
import collections
import contextlib
import faulthandler
import gc
import json
import logging
import os
import pathlib
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import gocept.runner.poller.descriptors
from chaos.plans import LONGEST_DELAY, expected_statuses
from chaos.processes import alive, described, descriptors, marks
from chaos.scripts import child
from chaos.scripts.meddle import Meddling
from chaos.scripts.started import Started
from chaos.scripts.talk import Talk, difference
from gocept.runner import errors, poller
from gocept.runner.process import pidfd, procfs
from gocept.runner.waits import deadline

LONGEST_RUN = 180
"""How long it may take, in seconds."""

LONGEST_GOODBYE = 60
"""For how long something may be open that other threads use, in seconds."""


class Flag:
    """An event that survives an exception of a signal handler.

    Such an exception in a method of `threading.Event` may leave its lock held
    for ever.
    """

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    def set(self) -> None:
        os.write(self._write, b'.')

    def is_set(self) -> bool:
        return self.wait(0)

    def wait(self, seconds: float | None = None) -> bool:
        return bool(select.select([self._read], [], [], seconds)[0])


def main() -> None:
    """Carry out the plan."""
    # Its other way, with a timeout, waits for ever in a fork that exits.
    faulthandler.register(signal.SIGUSR1)
    plan = json.loads(pathlib.Path(sys.argv[1]).read_text())
    if plan['fallback']:
        pidfd.has_pidfds = lambda: False
        deadline.Readiness = deadline.PollReadiness
        gocept.runner.poller.descriptors.Readiness = deadline.PollReadiness
    if plan['ending'] == 'handled SIGTERM':
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(plan['status']))
    program = Program(plan)
    try:
        os.close(int(sys.argv[2]))  # from now on a signal may come
        program.act()
        program.settle()
        calm()
    except (KeyboardInterrupt, SystemExit):
        calm()
        program.interrupted = True
        raise
    except BaseException:
        calm()
        program.fail(traceback.format_exc())
    finally:
        program.finish()
    if plan['ending'] == 'exit':
        sys.exit(plan['status'])
    if plan['ending'] == 'raise':
        raise RuntimeError('as planned')


def comes(fact: Callable[[], bool]) -> bool:
    """Whether it becomes true in time."""
    deadline = time.monotonic() + LONGEST_GOODBYE
    while not fact():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def calm() -> None:
    """From now on nothing interrupts, as one signal is sent anyway.

    Not ignored, as children would inherit that; not blocked, as another
    thread would get it.
    """
    for signum in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(signum) != signal.SIG_DFL:
            signal.signal(signum, lambda *_: None)


class Program(Meddling):
    """A runner, and threads that use it."""

    def __init__(self, plan: dict) -> None:
        self.plan = plan
        self.failures: list[str] = []
        self.started = Started(self.fail)
        self.descriptors: list[str] = []
        self.interrupted = False
        self.stopping = Flag()
        self.touched: set[str] = set()  # aliases
        self.sent = collections.defaultdict(set)  # signals, by alias
        self.rude: set[str] = set()  # aliases that were not given their time
        log = logging.getLogger('gocept.runner')
        log.addHandler(self.started)
        log.setLevel(logging.DEBUG)
        log.propagate = False
        atexit.register(self.report)  # is called after all others
        # Not before it is known what holds a process.
        from gocept.runner.spawn import Runner
        self.own_poller = poller.Poller() if plan['own_poller'] else None
        if self.own_poller is None or self.adopts():
            poller.background()
        self.runner = Runner(poller=self.own_poller)
        for name, app in plan['apps'].items():
            app['command'][-1] = json.dumps(app['command'][-1])
            self.runner.add(name, **app)
        self.threads: list[tuple[threading.Thread, threading.Event]] = []
        if self.own_poller is not None:
            self.polling = threading.Thread(
                target=self.poll, name='polling', daemon=True)
            self.polling.start()

    def fail(self, message: str) -> None:
        """Have the run fail, with all that it finds."""
        self.failures.append(message)

    def poll(self) -> None:
        """What the thread of the background would do."""
        while not self.own_poller.closed:
            with contextlib.suppress(RuntimeError):
                self.own_poller.poll(1)

    def app(self, name: str) -> dict:
        """What is configured, and the plan of the child."""
        app = self.plan['apps'][name]
        return {**app, 'plan': json.loads(app['command'][-1])}

    # All at once.

    def act(self) -> None:
        """Have all threads do their parts, this one too."""
        actors = [(actor, Flag()) for actor in self.plan['actors']]
        self.descriptors = descriptors()
        try:
            for actor, done in actors[1:]:
                thread = threading.Thread(
                    target=self.play, args=(actor, done))
                thread.start()
                self.threads.append((thread, done))
            self.play(*actors[0])
            for _, done in self.threads:
                # Not join(): what interrupts that makes Python believe that
                # the thread has ended.
                done.wait()
        finally:
            self.stopping.set()

    def play(self, actor: dict, done: Flag) -> None:
        """One part."""
        try:
            getattr(self, actor['acts'])(actor)
        except Exception:
            self.fail(f'{json.dumps(actor)}:\n{traceback.format_exc()}')
        finally:
            done.set()

    def pause(self, seconds: float) -> None:
        """Let time pass, unless it is over."""
        self.stopping.wait(seconds)

    # Who talks to an echo.

    def talk(self, actor: dict) -> None:
        """Send, receive and compare."""
        alias = actor['app']
        try:
            self.runner.start(alias)
        except errors.RunnerError:
            self.must_be_touched(alias, 'it was not started')
            return
        process = self.runner.get_process(alias)
        try:
            channel = self.runner.get_channel(alias)
        except (errors.StartError, errors.DeadlineExceeded):
            channel = None
        if channel is None:
            self.must_be_touched(alias, 'there is no channel')
            return
        Talk(self, actor, process, channel).run()

    def must_be_touched(self, alias: str, message: str) -> None:
        """Fail if nothing can have happened to it."""
        if alias not in self.touched and not self.stopping.is_set():
            self.fail(f'{alias}: {message}')

    # Who reads what a child says.

    def listen(self, actor: dict) -> None:
        """Read all that comes, perhaps late, and compare."""
        alias = actor['app']
        plan = self.app(alias)['plan']
        try:
            self.runner.start(alias)
        except errors.ProcessExistsException:
            self.must_be_touched(alias, 'it was not started')
            return
        process = self.runner.get_process(alias)
        if actor['late']:
            process.wait(LONGEST_RUN)
        heard = {}
        with poller.Poller() as polling:
            for fd, stream, size in ((1, 'stdout', plan['out']),
                                     (2, 'stderr', plan['err'])):
                channel = self.runner.get_channel(alias, stream)
                if channel is None and size:
                    self.must_be_touched(alias, f'no {stream} to read')
                if channel is not None:
                    polling.register(channel)
                    heard[channel] = [fd, size, b'']
            left = len(heard)
            while left and not self.stopping.is_set():
                for data, channel in polling.poll(0.1):
                    left -= not data
                    heard[channel][-1] += data
        for fd, size, data in heard.values():
            whole = child.pattern(fd, size)
            if not whole.startswith(data):
                self.fail(f'{alias} said on {fd} what it did not say: '
                          + difference(whole, data))
            elif len(data) < size:
                self.must_be_touched(
                    alias, f'heard {len(data)} of {size} on {fd}')

    # Who is surprised by the end.

    def leave(self, actor: dict) -> None:
        """Have a child that is there when the program is killed."""
        self.runner.start(actor['app'])
        self.pause(LONGEST_DELAY)

    # Who looks at restarts.

    def restart(self, actor: dict) -> None:
        """Wait until there are no more of them."""
        alias = actor['app']
        app = self.app(alias)
        expected = expected_statuses(app, app['plan'])
        try:
            self.runner.start(alias)
        except errors.ProcessExistsException:
            self.must_be_touched(alias, 'it was not started')
            return
        while alias not in self.touched and not self.stopping.is_set():
            statuses = [process.returncode
                        for process in list(self.started.processes)
                        if process.name == alias]
            if statuses == expected:
                break
            self.pause(0.005)
        self.pause(3 * app['restart_delay'] * 2 ** len(expected))
        statuses = [process.returncode
                    for process in list(self.started.processes)
                    if process.name == alias]
        if statuses != expected:
            self.must_be_touched(
                alias, f'ended with {statuses}, expected {expected}')

    # Who meddles.

    def settle(self) -> None:
        """Look at what there is, before it is ended."""
        self.check_statuses()
        runner = self.runner
        for alias in runner.aliases():
            process = runner.get_process(alias)
            channel = process.channel
            if (process.poll() is None and channel is not None
                    and channel.closed):
                self.fail(f'{process} runs, but {channel} is closed')
        if self.plan['forks']:
            self.fork()

    def fork(self) -> None:
        """A forked copy that ends as programs do ends nothing of ours."""
        alive = [process for process in self.started.processes
                 if self.lasts(process) and process.poll() is None]
        # Python ignores what a handler raises in a callback of the fork.
        before = signal.pthread_sigmask(
            signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        pid = os.fork()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if not pid:
            atexit.unregister(self.report)
            self.plan['closes'] = False
            for process in alive:
                if process.poll() is not None:
                    os._exit(3)
            sys.exit(0)
        _, status = os.waitpid(pid, 0)
        if status:
            self.fail(f'the fork ended with {status}')
        for process in alive:
            if process.poll() is not None:
                self.fail(f'the fork has ended {process}')

    def lasts(self, process: Any) -> bool:
        """Whether it would not end by itself."""
        app = self.app(process.name)
        return (process.name not in self.touched
                and app['plan']['does'] in ('wait', 'hush')
                and app['plan']['life'] is None
                and not app['plan'].get('must_die'))

    def finish(self) -> None:
        """Wait for the threads, and close what is to be closed."""
        self.stopping.set()
        for thread, _ in self.threads:
            thread.join()
        for alias in self.plan['apps']:
            self.sent[alias].add(signal.SIGTERM)
        if self.plan['closes']:
            self.runner.close()
            self.check_closed()
        if self.own_poller is not None and self.plan['closes']:
            self.own_poller.close()
            self.polling.join()

    def check_closed(self) -> None:
        """Nothing may be left of what was started."""
        runner = self.runner
        for alias in runner.aliases():
            process = runner.get_process(alias)
            if runner.running(alias) or runner.status(alias) is None:
                self.fail(f'{process} runs after close()')
            for pid in alive(self.plan['word']):
                if process.mark.encode() in marks(pid):
                    self.fail(f'{process} is closed, but there is '
                              + described(pid))
            for channel in process.channels():
                if not channel.closed:
                    self.fail(f'{channel} is open after close()')
        # What an earlier process of an alias has left in its group is held
        # until the exit.
        if self.interrupted or any(
                process.has_left for process in self.started.processes):
            return
        gc.collect()
        # The thread of the background looks into /proc now and then, and
        # threads that were told to end may not have ended yet.
        if not comes(lambda: len(descriptors()) == len(self.descriptors)):
            self.fail(f'open after close(): {descriptors()}; before: '
                      f'{self.descriptors}')
        if not comes(lambda: not self.unknown_threads()):
            self.fail(f'threads after close(): {self.unknown_threads()}')
        ours = {process.pid for process in self.started.processes}
        for pid in procfs.children(os.getpid()):
            # The others are adopted.
            if pid in ours or not self.adopts():
                self.fail(f'after close() there is {described(pid)}')

    def unknown_threads(self) -> list[str]:
        """The names of the threads that there may not be after close()."""
        names = collections.Counter(
            thread.name for thread in threading.enumerate())
        names -= collections.Counter(self.lasting_threads())
        return sorted(names.elements())

    def lasting_threads(self) -> list[str]:
        """The names of the threads that there may be after close()."""
        names = [threading.main_thread().name]
        if self.own_poller is not None:
            names.append(self.polling.name)
        if self.own_poller is None or self.adopts():  # looks for orphans
            names.append('gocept.runner.poller')
        if any(app.get('die_with_parent') or app.get('rlimits')
               for app in self.plan['apps'].values()):
            # Starts such children for all threads but the main one.
            names.append('gocept.runner.forker')
        return names

    def adopts(self) -> bool:
        """Whether it may be the parent of descendants."""
        return any(app.get('adopt') for app in self.plan['apps'].values())

    # When even the exit is over.

    def report(self) -> None:
        """Write down what was wrong."""
        try:
            self.check_statuses()
            for process in self.started.processes:
                if process.returncode is None:
                    self.fail(f'{process} at the end')
            if not self.interrupted:
                for pid in procfs.children(os.getpid()):
                    self.fail(f'at the end there is {described(pid)}')
            if self.own_poller is not None:
                self.own_poller.close()
        except BaseException:
            self.fail(traceback.format_exc())
        path = pathlib.Path(self.plan['directory'], 'report')
        path.write_text(json.dumps({
            'failures': self.failures, 'interrupted': self.interrupted,
            'log': self.started.lines,
            'started': len(self.started.processes)}))

    def check_statuses(self) -> None:
        """Each must be what the child wanted or what it was sent."""
        records = collections.defaultdict(set)
        with contextlib.suppress(FileNotFoundError):
            for line in pathlib.Path(
                    self.plan['records']).read_text().splitlines():
                what, pid, number = line.split()
                if what == 'end':
                    records[int(pid)].add(int(number))
        for process in list(self.started.processes):
            status = process.returncode
            if status is None or status in records[process.pid]:
                continue
            possible = {-signum for signum in self.sent[process.name]}
            app = self.app(process.name)
            if (app.get('die_with_parent') or app['stop_timeout'] < 1
                    or process.name in self.rude):
                possible.add(-signal.SIGKILL)
            if status not in possible:
                self.fail(f'{process}: it wanted {records[process.pid]}, '
                          f'it was sent {possible}')


if __name__ == '__main__':
    main()
