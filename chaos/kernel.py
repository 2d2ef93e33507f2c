"""A kernel under load that loses its processes and its clients, by SIGKILL.

Children write numbered lines, to a client that stores what it reads with the
position in one record; another client asks, starts and writes all the time.
The daemon, the keeper and the client that reads are killed, and the kernel is
upgraded. In the end each line is stored once, the children are those that were
there at the beginning, no connection was refused, values are there and
statuses are right.
"""

import dataclasses
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from chaos.processes import described, end_kernel, kill, working_in
from chaos.scripts import listener, reader, writer
from chaos.worker import check
from gocept.runner.kernel import PIPE, Kernel
from gocept.runner.process import procfs
from gocept.runner.tests.support import DEADLINE, child_environment

RUNS_PER_KERNEL = 20

LONGEST_PAUSE = 0.15
"""Seconds between two things that happen, at most."""

WRITERS = {
    'quick': (0.002, {'overflow': 'block', 'bufsize': '1m'}),
    'small': (0.005, {'overflow': 'block', 'bufsize': '64k'}),
    'slow': (0.2, {'overflow': 'block'}),
    'careless': (0.001, {'overflow': 'drop', 'bufsize': '256k'}),
}
"""The longest pause of each, and how it is kept."""

ACTS = (
    'daemon', 'daemon', 'daemon', 'keeper', 'keeper', 'reader', 'reader',
    'upgrade', 'two upgrades', 'pause')

STATUSES = (0, 3, 255, -signal.SIGKILL, -signal.SIGTERM)


def run(randomly: random.Random, runs: int) -> Iterator[str]:
    """Kill and look; yields what was done each time."""
    for first in range(0, runs, RUNS_PER_KERNEL):
        # Short, as the path of a socket must be.
        with tempfile.TemporaryDirectory(prefix='kernel') as name:
            scene = Scene(pathlib.Path(name))
            try:
                scene.begin()
                for _ in range(min(RUNS_PER_KERNEL, runs - first)):
                    yield scene.suffer(randomly)
                scene.end()
            except Exception as error:
                error.add_note(scene.told())
                raise
            finally:
                scene.close()


@dataclasses.dataclass
class Fate:
    """How a child of a kernel may end."""

    status: int
    may_be_unknown: bool = False
    """As its parent was a keeper that was killed."""


class Scene:
    """A kernel, its children and its clients."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        self.path = str(directory / 'sock')
        self.log = directory / 'log'
        self.journal = directory / 'journal'
        self.kernel = Kernel(self.path, DEADLINE, log=self.log)
        self.children: dict[str, int] = {}
        self.fates = {name: Fate(writer.STATUS) for name in WRITERS}
        self.done: list[str] = []
        self.kills = 0
        self.reader: subprocess.Popen[bytes] | None = None
        self.load = Load(self)

    # What is there

    def begin(self) -> None:
        """Start all that is to be there."""
        python = [sys.executable, '-I', '-S']
        web = self.kernel.make_socket('web', backlog=100)
        unix = self.kernel.make_socket(
            'unix', path=str(self.directory / 'unix'), backlog=100)
        self.addresses: list[tuple[socket.AddressFamily, Any]] = [
            (socket.AF_INET, ('127.0.0.1', web['port'])),
            (socket.AF_UNIX, unix['path'])]
        self.make('listener', [
            *python, listener.__file__, '$(socket.web.fileno)',
            '$(socket.unix.fileno)'])
        for name, (pause, options) in WRITERS.items():
            self.make(name, [*python, writer.__file__, str(pause)], **options)
        self.make('cat', ['cat'], stdin=PIPE, overflow='block')
        self.fates['cat'] = Fate(0)
        self.kernel.set('constant', 'value')
        self.start_reader()
        self.load.start()

    def make(self, name: str, command: Sequence[str], **options: Any) -> None:
        """Start a child that stays."""
        made: Any = self.kernel.make_process(
            name, command[0], command[1:], env=dict(os.environ),
            working_dir=str(self.directory), **options)
        self.children[name] = made['pid']

    def start_reader(self) -> None:
        """Start the client that may be killed."""
        with open(self.directory / 'reader.log', 'ab') as log:
            self.reader = subprocess.Popen(
                [sys.executable, reader.__file__, self.path, self.journal,
                 *WRITERS, 'cat'], env=child_environment(), stdout=log,
                stderr=log, stdin=subprocess.DEVNULL)

    # What happens

    def suffer(self, randomly: random.Random) -> str:
        """Let something happen, and see that all goes on."""
        acts = [randomly.choice(ACTS)
                for _ in range(randomly.randrange(1, 5))]
        self.done.append(' '.join(acts))
        before = self.journal.stat().st_size if self.journal.exists() else 0
        for act in acts:
            time.sleep(randomly.uniform(0, LONGEST_PAUSE))
            {'daemon': self.kill_daemon, 'keeper': self.kill_keeper,
             'reader': self.kill_reader, 'upgrade': self.upgrade,
             'two upgrades': self.upgrade_twice,
             'pause': self.pause}[act]()
        self.wait_for('more output', lambda: (
            self.journal.exists() and self.journal.stat().st_size > before))
        self.check_children()
        return (f'{", ".join(acts)}: {self.kills} kills, '
                f'{self.load.count} requests, '
                f'{self.journal.stat().st_size >> 10} KiB')

    def kill_daemon(self) -> None:
        """A successor of the keeper goes on."""
        self.kill(self.status()['pid'])

    def kill_keeper(self) -> None:
        """The daemon becomes the keeper, and starts a daemon."""
        status = self.status()
        for name, pid in {**self.children, **self.load.children}.items():
            now = None if pid is None else procfs.stat(pid)
            fate = self.fates.get(name)
            if fate and (now is None or now.parent != status['pid']):
                fate.may_be_unknown = True
        self.kill(status['keeper'])
        self.wait_for('another keeper', lambda: (
            self.status()['keeper'] != status['keeper']))

    def kill_reader(self) -> None:
        """Another client goes on where that one has stored the last."""
        assert self.reader is not None
        check(self.reader.poll() is None, 'the reader has ended')
        self.reader.kill()
        self.reader.wait()
        self.kills += 1
        self.start_reader()

    def upgrade(self) -> None:
        """The same code takes over."""
        before = self.status()
        self.kernel.upgrade()
        check(self.status()['pid'] != before['pid'], 'no other daemon')

    def upgrade_twice(self) -> None:
        """Two who ask at once; one may be told to ask later."""
        with Kernel(self.path, DEADLINE, autostart=False) as other:
            errors: list[Exception] = []

            def upgrade() -> None:
                try:
                    other.upgrade()
                except Exception as error:
                    errors.append(error)
            thread = threading.Thread(target=upgrade)
            thread.start()
            try:
                self.kernel.upgrade()
            except Exception as error:
                errors.append(error)
            thread.join()
        check(len(errors) < 2, f'no upgrade: {errors}')

    def pause(self) -> None:
        """Nobody is served for a while."""
        pid = self.status()['pid']
        os.kill(pid, signal.SIGSTOP)
        time.sleep(LONGEST_PAUSE)
        os.kill(pid, signal.SIGCONT)

    def kill(self, pid: int) -> None:
        """Kill a process of the kernel, which must be there."""
        check(kill(pid, DEADLINE), f'no end of {pid}')
        self.kills += 1
        status = self.status()
        check(pid not in (status['pid'], status['keeper'])
              or pid == status['keeper'], f'{status} after {pid}')

    def status(self) -> dict[str, Any]:
        """That of the kernel, when it serves again."""
        status: dict[str, Any] = self.kernel.status()
        return status

    # What must hold

    def check_children(self) -> None:
        """All are there, and whoever connects is answered."""
        self.load.check()
        listed = self.kernel.list_processes()
        for name, pid in self.children.items():
            found = listed.get(name)
            check(found is not None and found['pid'] == pid
                  and found['running'], f'{name} was {pid}, now {found}')
        check(self.kernel.get('constant') == 'value', 'a value is lost')
        for family, address in self.addresses:
            check(ask(family, address) == self.children['listener'],
                  'somebody else answers')

    def wait_for(self, what: str, fact: Callable[[], bool]) -> None:
        """Wait until it holds."""
        deadline = time.monotonic() + DEADLINE
        while not fact():
            self.load.check()
            check(time.monotonic() < deadline, f'no {what}')
            if self.reader is not None and self.reader.poll() is not None:
                raise AssertionError('the reader has ended: ' + (
                    self.directory / 'reader.log').read_text())
            time.sleep(0.005)

    def end(self) -> None:
        """End all in good order; each line is stored, once."""
        self.load.stop()
        self.kernel.close_stdin('cat')
        for name in WRITERS:
            os.kill(self.children[name], signal.SIGTERM)
        assert self.reader is not None
        check(self.reader.wait(DEADLINE) == 0, 'the reader has failed: '
              + (self.directory / 'reader.log').read_text())
        check({*self.kernel.list_processes()} == {'listener'}, 'some are left')
        Journal(reader.records(self.journal)).check(
            self.fates, self.load.written)

    def close(self) -> None:
        """End whatever is left."""
        self.load.close()
        if self.reader is not None:
            self.reader.kill()
            self.reader.wait()
        end_kernel(self.kernel, self.directory)

    def told(self) -> str:
        """All that is known."""
        return '\n'.join([
            f'what was done: {self.done}', 'the processes:',
            *map(described, working_in(self.directory)), 'the log:',
            self.log.read_text()[-20_000:] if self.log.exists() else '',
            'the log of the reader:',
            (self.directory / 'reader.log').read_text()[-5000:]])


def ask(family: socket.AddressFamily, address: Any) -> int:
    """Who answers there."""
    with socket.socket(family) as sock:
        sock.settimeout(DEADLINE)
        sock.connect(address)
        return int(sock.recv(100))


class Load(threading.Thread):
    """A client that asks all the time, in this process."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(daemon=True)
        self.scene = scene
        self.count = 0
        self.written = 0
        """How many lines the child that reads has been given."""
        self.children: dict[str, int | None] = {}
        """None for one that is being started, perhaps by a daemon that is
        killed before it can tell the number."""
        self._is_over = False
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            with Kernel(self.scene.path, DEADLINE, autostart=False) as kernel:
                while not self._is_over:
                    self.act(kernel)
        except BaseException as error:
            self._error = error

    def act(self, kernel: Kernel) -> None:
        """Ask for one of each kind."""
        self.count += 1
        number = str(self.count)
        kernel.set('number', number)
        check(kernel.get('number') == number, 'another value')
        kernel.write_process('cat', b'%d\n' % self.written)
        self.written += 1
        if not self.count % 10:
            name = f'short.{number}'
            self.start_one(kernel, name, random.choice(STATUSES))
            kernel.make_socket(name)
            kernel.remove_sockets(name)
            for family, address in self.scene.addresses:
                ask(family, address)

    def start_one(self, kernel: Kernel, name: str, status: int) -> None:
        """A child that ends by itself, and is read and acknowledged."""
        end = f'kill -{-status} $$' if status < 0 else f'exit {status}'
        self.scene.fates[name] = fate = Fate(status)
        self.children = {name: None}
        made: Any = kernel.make_process(
            name, 'sh', ('-c', f'sleep 0.0{self.count % 5}; echo {name}; {end}'),  # noqa: E501
            env={'PATH': os.environ['PATH']})
        self.children = {name: made['pid']}
        pieces: list[Any] = []
        statuses: list[Any] = []
        with kernel.watch_processes(name) as watcher:
            while watcher:
                out, err, closed = watcher.read() or ((), (), ())
                check(not err, f'{name}: {err}')
                pieces += [each.data for each in out]
                statuses += [each.data for each in closed]
        self.children = {}
        check(b''.join(pieces) == f'{name}\n'.encode(), f'{name}: {pieces}')
        check_statuses(name, statuses, fate)
        del self.scene.fates[name]

    def check(self) -> None:
        """Nothing has failed."""
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Come to an end."""
        self._is_over = True
        self.join(DEADLINE)
        check(not self.is_alive(), 'a client waits for ever')
        self.check()

    def close(self) -> None:
        self._is_over = True


def check_statuses(name: str, statuses: list[int | None], fate: Fate) -> None:
    """One, and the right one."""
    check(statuses == [fate.status] or (
        len(statuses) == 1 and fate.may_be_unknown
        and statuses[0] in UNKNOWN), f'{name}: {statuses}, not {fate}')


UNKNOWN = (None, 127)


class Journal:
    """What the clients that were killed have stored, in all."""

    def __init__(self, records: list[dict[str, Any]]) -> None:
        self.data: dict[tuple[str, str], list[str]] = {}
        self.statuses: dict[str, list[int | None]] = {}
        self.missing: dict[str, int] = {}
        for record in records:
            for stream in 'out', 'err':
                for name, data in record[stream]:
                    self.data.setdefault((name, stream), []).append(data)
            for name, status in record['closed']:
                self.statuses.setdefault(name, []).append(status)
            for name, count in record['missing'].items():
                self.missing[name] = self.missing.get(name, 0) + count

    def check(self, fates: dict[str, Fate], written: int) -> None:
        """Each line of all children, once."""
        for name, (_, options) in WRITERS.items():
            if options['overflow'] == 'block':
                for stream in 'out', 'err':
                    self.check_numbered(name, stream)
                check(not self.missing.get(name), f'{name}: {self.missing}')
            else:
                self.check_counted(name)
        check(self.lines('cat', 'out') == [*map(str, range(written))],
              f'cat: not the {written} lines')
        for name in [*WRITERS, 'cat']:
            check_statuses(name, self.statuses.get(name, []), fates[name])

    def lines(self, name: str, stream: str) -> list[str]:
        return ''.join(self.data.get((name, stream), [])).splitlines()

    def check_numbered(self, name: str, stream: str) -> None:
        *lines, end = self.lines(name, stream)
        for number, line in enumerate(lines):
            check(line.startswith(f'{number} '),
                  f'{name}, {stream}: {line[:50]!r}, not {number}')
        size = sum(map(len, lines)) + len(lines)
        check(end == f'{writer.END.decode()} {len(lines)} {size}',
              f'{name}, {stream}: {len(lines)} lines, {size} bytes, {end!r}')

    def check_counted(self, name: str) -> None:
        """What is stored and what is missing is all that was written."""
        stored = written = 0
        for stream in 'out', 'err':
            *lines, end = self.lines(name, stream)
            stored += sum(map(len, self.data[name, stream]))
            written += int(end.split()[2]) + len(end) + 1
            numbers = [int(line.split()[0]) for line in lines
                       if line.count(' ') == 1 and line[0].isdigit()]
            check(numbers == sorted({*numbers}) or bool(self.missing),
                  f'{name}, {stream}: not in order')
        missing = self.missing.get(name, 0)
        check(stored + missing == written,
              f'{name}: {stored} stored, {missing} missing, {written} written')
