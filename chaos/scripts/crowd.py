"""Threads that all use one runner; see `chaos.crowd`.

usage: crowd.py SEED SECONDS

What goes wrong is written to standard output. Which thread comes first is not
chosen, so a seed makes the same choices, but not the same run.
"""

import collections
import contextlib
import errno
import faulthandler
import json
import logging
import os
import random
import signal
import sys
import threading
import time
from typing import Any, NoReturn

import zope.event

from chaos.scripts import child
from gocept.runner.errors import RunnerError
from gocept.runner.events import (
    ChildEnded,
    ChildEvent,
    ChildReady,
    ChildStarted,
)
from gocept.runner.poller import Timer, background
from gocept.runner.spawn import Runner

LONGEST_WAIT = 60
"""For what has to happen, in seconds."""

THREADS = 6

ERRORS = (ValueError, SystemExit, KeyboardInterrupt, BaseException)

ORDERS = ([ChildStarted, ChildReady, ChildEnded], [ChildStarted, ChildEnded])
"""What may be told of a child that has ended."""


class Crowd:
    """The runner, and what is done to it."""

    def __init__(self, seed: str, seconds: float) -> None:
        self.seed = seed
        self.pid = os.getpid()
        self.end = time.monotonic() + seconds
        self.runner = Runner()
        self.told: dict[Any, list[type]] = collections.defaultdict(list)
        self.failures: list[str] = []
        self.hearing: list[object] = []
        """Events that `hear` is called with now."""
        randomly = random.Random(seed)
        for number in range(3):
            self.add(f'socket{number}', randomly, type='socket',
                     does='serve', socket=f'{number}.socket')
        for name in 'cat0', 'cat1':
            self.add(name, randomly, command='cat')
        for name in 'true', 'false':
            self.add(name, randomly, command=name)
        self.names = ['socket0', 'socket1', 'socket2', 'cat0', 'cat1',
                      'true', 'false']

    def add(self, name: str, randomly: random.Random, does: str = '',
            **keywords: Any) -> None:
        """An application that is perhaps restarted."""
        if does:
            plan = {'does': does, 'records': 'records', 'seed': 1,
                    'late': randomly.uniform(0, 0.05), 'sizes': [100],
                    'pausing': 0, 'socket': keywords['socket'],
                    'statuses': [randomly.choice([0, 4])]}
            keywords['command'] = [
                sys.executable, '-I', '-S', child.__file__, 'chaos',
                json.dumps(plan)]
        self.runner.add(
            name, restart=randomly.choice(['never', 'on-failure', 'always']),
            restart_delay=0.001, restart_limit=10 ** 6, **keywords)

    # What users do.

    def hear(self, event: object) -> None:
        """A subscriber that uses the runner, and raises."""
        if os.getpid() != self.pid or not isinstance(event, ChildEvent):
            return
        self.told[event.process].append(type(event))
        self.hearing.append(event)
        try:
            if time.monotonic() < self.end:
                with contextlib.suppress(RunnerError, OSError, KeyError):
                    self.use(random.choice(self.names), random.choice(
                        ['', '', '', 'ensure', 'channel', 'terminate',
                         'state']))
        finally:
            self.hearing.pop()
        if random.random() < 0.1:
            raise random.choice(ERRORS)

    def use(self, name: str, how: str) -> None:
        """Do one thing with the runner."""
        runner = self.runner
        if how == 'ensure':
            runner.ensure_running(name)
        elif how == 'start':
            runner.start(name)
        elif how == 'channel':
            channel = runner.get_channel(name)
            if channel is not None and name.startswith('cat'):
                channel.write(b'x' * 100)
        elif how == 'terminate':
            runner.terminate(name, timeout=random.choice([None, 0]))
        elif how == 'give up':
            runner.give_up(name)
        elif how == 'state':
            runner.state(name)
        elif how == 'kill':
            process = runner.get_process(name)
            if process is not None:
                process.send_signal(signal.SIGKILL)
        elif how == 'fork':
            self.fork()

    def fork(self) -> None:
        """A forked copy has a runner of its own."""
        pid = os.fork()
        if not pid:
            signal.alarm(LONGEST_WAIT)
            status = 1
            try:
                with Runner() as own:
                    own.add('true', 'true')
                    own.start('true')
                    process = own.get_process('true')
                    status = 1 if process is None else process.wait(
                        LONGEST_WAIT)
            except (OSError, RunnerError, RuntimeError):
                status = 0  # of the shortages
            except BaseException as error:
                status = 0 if type(error) in ERRORS else 2
            finally:
                os._exit(status)
        _, status = os.waitpid(pid, 0)
        if status:
            self.failures.append(f'a fork has {status}')

    def work(self, number: int) -> None:
        """What one thread does."""
        randomly = random.Random(f'{self.seed} {number}')
        while time.monotonic() < self.end:
            try:
                self.use(randomly.choice(self.names), randomly.choice([
                    *['ensure'] * 5, *['channel'] * 3, 'terminate', 'start',
                    'give up', 'state', *['kill'] * 2, 'fork']))
            except BaseException as error:
                if not isinstance(error, (
                        *ERRORS, RunnerError, OSError, KeyError,
                        RuntimeError)):
                    raise

    # What is left.

    def run(self) -> None:
        """Have them all work, and look what is left."""
        zope.event.subscribers.append(self.hear)
        threads = [threading.Thread(target=self.work, args=[number],
                                    daemon=True) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        with shortages():
            for thread in threads:
                thread.join(LONGEST_WAIT * 2)
                if thread.is_alive():
                    give_up('a thread hangs')
        zope.event.subscribers.remove(self.hear)
        zope.event.subscribers.append(self.note)
        # A subscriber in the background thread may be about to start a child,
        # of which a runner that is closed meanwhile does not know.
        deadline = time.monotonic() + LONGEST_WAIT
        while self.hearing:
            if time.monotonic() > deadline:
                give_up('a subscriber hangs')
            time.sleep(0.01)
        self.runner.close()
        self.check()

    def note(self, event: object) -> None:
        """A subscriber that does nothing else."""
        if isinstance(event, ChildEvent):
            self.told[event.process].append(type(event))

    def check(self) -> None:
        """The background thread goes on, and all was told in its order."""
        alive = threading.Event()
        background().register(Timer(0), lambda *args: alive.set())
        if not alive.wait(LONGEST_WAIT):
            give_up('the background thread is dead')
        deadline = time.monotonic() + LONGEST_WAIT
        while wrong := [(process, [each.__name__ for each in events])
                        for process, events in list(self.told.items())
                        if events not in ORDERS]:
            if time.monotonic() > deadline:
                give_up(f'told was: {wrong}')
            time.sleep(0.01)
        left = [alias for alias in self.runner.aliases()
                if self.runner.running(alias)]
        if left or self.failures:
            give_up(f'{left} are left; {self.failures}')
        print(len(self.told), 'children')


@contextlib.contextmanager
def shortages() -> Any:
    """Threads of ours, and pipes, cannot be made now and then."""
    start, pipe = threading.Thread.start, os.pipe

    def flaky_start(thread: threading.Thread) -> None:
        if thread.name.startswith('gocept') and random.random() < 0.05:
            raise RuntimeError("can't start new thread")
        start(thread)

    def flaky_pipe() -> tuple[int, int]:
        if random.random() < 0.02:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return pipe()

    threading.Thread.start, os.pipe = flaky_start, flaky_pipe
    try:
        yield
    finally:
        threading.Thread.start, os.pipe = start, pipe


class Broken(logging.Handler):
    """A handler that fails now and then."""

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        if random.random() < 0.02:
            raise random.choice([ValueError, OSError])('of a log handler')


def give_up(message: str) -> NoReturn:
    """Say what was wrong, and end."""
    print(message, flush=True)
    faulthandler.dump_traceback(sys.stdout)
    os._exit(1)


def main() -> None:
    """See the module."""
    _, seed, seconds = sys.argv
    random.seed(seed)
    faulthandler.enable(sys.stdout)
    log = logging.getLogger('gocept.runner')
    log.addHandler(Broken())
    log.setLevel(logging.INFO)
    log.propagate = False
    Crowd(seed, float(seconds)).run()


if __name__ == '__main__':
    main()
