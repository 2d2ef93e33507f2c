"""Milliseconds from what happens to the tick of a worker that sleeps for long.

usage: waking.py line|timer|client|end|wakeup EVENTS ROUNDS

The worker sleeps for `TICKS` seconds between two ticks. What wakes it is known
to the poller utility: a line of a child that ZCML declares, a timer, a client
of a server, the end of a child, or ``wakeup()`` by another thread. It takes
its clock first of all in a tick, and then asks the poller. Nobody else reads.

The raw side is ``select.poll`` on the descriptor, with a timeout for the
timer, and then ``transaction.begin()``, the clock and, when what there is was
fetched, ``transaction.commit()``. The connection is open on both sides.
"""

import json
import math
import os
import select
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from xml.sax.saxutils import quoteattr

import transaction
import zope.component.hooks
from zope.component import getUtility

from benchmarks.scripts import happening
from benchmarks.scripts.sides import PATIENCE, Mismatch
from benchmarks.turns import in_turns
from gocept.runner.interfaces import IPoller, IRunner
from gocept.runner.poller import Timer
from gocept.runner.runner import Exit, MainLoop, init

TICKS = 60

COMMAND = [sys.executable, '-I', '-S', happening.__file__]

CONF = '''\
site-definition {home}/site.zcml
<zodb>
  <filestorage>
    path {home}/Data.fs
  </filestorage>
</zodb>
<eventlog>
  <logfile>
    path {home}/event.log
  </logfile>
</eventlog>
'''

ZCML = f'''\
<configure
    xmlns="http://namespaces.zope.org/zope"
    xmlns:runner="http://namespaces.gocept.com/runner">
  <include package="gocept.runner" file="site.zcml" />
  <include package="gocept.runner" />
  <runner:app
      name="happening" start="eager" buffering="line"
      command={quoteattr(shlex.join(COMMAND))} />
  <runner:app
      name="ending"
      command={quoteattr(shlex.join([*COMMAND, 'end']))} />
</configure>
'''

Steps = Generator[None, int, None]
"""Made in the first tick; sent the clock of each other one, until it ends."""


class Kind:
    """Lets something happen `count` times, and takes when, and which tick saw
    it."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.happened: list[int] = []
        self.seen: list[int] = []
        self.due: int | None = None
        """When the bare loop is to go on though no descriptor is ready."""

    def ours(self, poller: Any) -> Steps:
        """What the worker does, in one tick after another."""
        raise NotImplementedError

    def raw(self, poll: select.poll) -> Steps:
        """What the bare loop does."""
        raise NotImplementedError

    def add(self, happened: int, seen: int) -> None:
        self.happened.append(happened)
        self.seen.append(seen)

    def is_over(self) -> bool:
        return len(self.seen) == self.count

    def latencies(self) -> list[float]:
        """Milliseconds; without what has happened in the tick that saw it."""
        found = [(seen - happened) / 1e6 for happened, seen
                 in zip(self.happened, self.seen, strict=True)
                 if happened < seen]
        if len(self.seen) != self.count or 2 * len(found) < self.count:
            raise Mismatch(f'{len(found)} events, of {self.count}')
        return found


class Line(Kind):

    def ours(self, poller: Any) -> Steps:
        channel = getUtility(IRunner).get_channel('happening')
        poller.register(channel)
        channel.write(b'%d\n' % self.count)
        while not self.is_over():
            tick = yield
            for line, _ in poller.poll(0):
                self.add(int(line), tick)

    def raw(self, poll: select.poll) -> Steps:
        with child() as (ask, output):
            poll.register(output, select.POLLIN)
            ask(self.count)
            while not self.is_over():
                tick = yield
                for line in output.read(65536).splitlines():
                    self.add(int(line), tick)
            poll.unregister(output)


class Client(Kind):
    # The child writes when it is connected, so the tick knows when that began.

    def ours(self, poller: Any) -> Steps:
        with server() as sock, child() as (ask, output):
            poller.add_server(sock)
            ask(self.count, sock.getsockname()[1])
            while not self.is_over():
                tick = yield
                for item, source in poller.poll(0):
                    if source is sock:  # and not the end of a client
                        item[1].close()
                        self.add(int(output.readline()), tick)
            poller.unregister(sock)

    def raw(self, poll: select.poll) -> Steps:
        with server() as sock, child() as (ask, output):
            sock.setblocking(False)
            poll.register(sock, select.POLLIN)
            ask(self.count, sock.getsockname()[1])
            while not self.is_over():
                tick = yield
                sock.accept()[0].close()
                self.add(int(output.readline()), tick)
            poll.unregister(sock)


class End(Kind):

    def ours(self, poller: Any) -> Steps:
        runner = getUtility(IRunner)
        while not self.is_over():
            runner.start('ending')
            channel = runner.get_channel('ending')
            poller.register(runner.get_process('ending'))
            found = None
            while not found:
                tick = yield
                found = poller.poll(0)
            self.add(int(channel.read()), tick)

    def raw(self, poll: select.poll) -> Steps:
        while not self.is_over():
            with subprocess.Popen(
                    [*COMMAND, 'end'], stdout=subprocess.PIPE) as process:
                assert process.stdout is not None
                fd = os.pidfd_open(process.pid)
                poll.register(fd, select.POLLIN)
                tick = yield
                process.wait()
                poll.unregister(fd)
                os.close(fd)
                self.add(int(process.stdout.read()), tick)


class Timed(Kind):

    def ours(self, poller: Any) -> Steps:
        while not self.is_over():
            timer = Timer(happening.gap())
            poller.register(timer)
            found = None
            while not found:
                tick = yield
                found = poller.poll(0)
            self.add(int(timer.due * 1e9), tick)

    def raw(self, poll: select.poll) -> Steps:
        while not self.is_over():
            self.due = time.monotonic_ns() + int(happening.gap() * 1e9)
            tick = yield
            self.add(self.due, tick)


class WakeUp(Kind):

    def ours(self, poller: Any) -> Steps:
        with self._calling(poller.wakeup):
            while not self.is_over():
                tick = yield
                poller.poll(0)
                self._take(tick)

    def raw(self, poll: select.poll) -> Steps:
        faucet, sink = os.pipe()
        with (open(faucet, 'rb', 0), open(sink, 'wb', 0),
              self._calling(partial(os.write, sink, b'x'))):
            poll.register(faucet, select.POLLIN)
            while not self.is_over():
                tick = yield
                os.read(faucet, 100)
                self._take(tick)
            poll.unregister(faucet)

    def _take(self, tick: int) -> None:
        self.seen += [tick] * (len(self.happened) - len(self.seen))

    @contextmanager
    def _calling(self, wakeup: Callable[[], object]) -> Iterator[None]:
        def call() -> None:
            for _ in range(self.count):
                time.sleep(happening.gap())
                self.happened.append(time.monotonic_ns())
                wakeup()
        thread = threading.Thread(target=call)
        thread.start()
        yield
        thread.join()


KINDS = {'line': Line, 'timer': Timed, 'client': Client, 'end': End,
         'wakeup': WakeUp}


@contextmanager
def child() -> Iterator[tuple[Callable[..., None], Any]]:
    """What asks it for events, and the file that it writes to."""
    with subprocess.Popen(
            COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            bufsize=0) as process:
        assert process.stdin is not None and process.stdout is not None
        stdin = process.stdin

        def ask(*numbers: int) -> None:
            stdin.write(' '.join(map(str, numbers)).encode() + b'\n')
        yield ask, process.stdout


@contextmanager
def server() -> Iterator[socket.socket]:
    with socket.create_server((happening.HOST, 0), backlog=100) as sock:
        yield sock


def ours(app: Any, kind: Kind) -> list[float]:
    steps = kind.ours(getUtility(IPoller))
    is_first = True
    failures: list[Exception] = []

    def worker() -> object:
        nonlocal is_first
        tick = time.monotonic_ns()
        try:
            if is_first:
                is_first = False
                next(steps)
            else:
                steps.send(tick)
        except StopIteration:
            return Exit
        except Exception as error:  # the loop would only log it
            failures.append(error)
            return Exit
        return None

    with closing(steps):
        MainLoop(app, TICKS, worker)()
    if failures:
        raise failures[0]
    return kind.latencies()


def raw(app: Any, kind: Kind) -> list[float]:
    poll = select.poll()
    steps = kind.raw(poll)
    with zope.component.hooks.site(app), closing(steps):
        next(steps)
        is_over = False
        while not is_over:
            wait(poll, kind.due)
            transaction.begin()
            tick = time.monotonic_ns()
            try:
                steps.send(tick)
            except StopIteration:
                is_over = True
            transaction.commit()
    return kind.latencies()


def wait(poll: select.poll, due: int | None) -> None:
    seconds = PATIENCE if due is None else (due - time.monotonic_ns()) / 1e9
    if not poll.poll(max(0, math.ceil(seconds * 1e3))) and due is None:
        raise Mismatch(f'nothing for {PATIENCE} s')


def main() -> None:
    name, *numbers = sys.argv[1:]
    make = KINDS[name]
    count, rounds = map(int, numbers)
    with TemporaryDirectory() as directory:
        home = Path(directory)
        (home / 'site.zcml').write_text(ZCML)
        (home / 'zope.conf').write_text(CONF.format(home=home))
        with init(None, home / 'zope.conf') as app:
            found = in_turns({
                'raw': lambda: raw(app, make(count)),
                'ours': lambda: ours(app, make(count))}, rounds)
    print(json.dumps([{
        side: list(chain.from_iterable(parts))
        for side, parts in found.items()}]))


if __name__ == '__main__':
    main()
