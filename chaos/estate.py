"""Where `up` runs in `chaos.up`: files, processes, and what workers store."""

import contextlib
import fcntl
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence

import ZODB.scripts.fstest

from chaos.processes import alive, described, working_in
from chaos.scripts import tenants
from chaos.worker import check
from gocept.runner.boot.claim import claim_of
from gocept.runner.house.record import HouseState
from gocept.runner.tests.cli.test_worker import stored
from gocept.runner.tests.support import child_environment

NAMES = tuple(f'w{number}' for number in range(10))
"""The workers of `up`."""

VISITOR = 'visitor'
"""A worker that is run alone, beside `up`."""

ZOPE_CONF = '''\
site-definition $here/site.zcml
path $here
<zodb>
  <filestorage>
    path $here/disk/Data.fs
  </filestorage>
</zodb>
<eventlog>
  <logfile>
    path STDERR
    format %(asctime)s %(levelname)s %(name)s %(message)s
  </logfile>
</eventlog>
'''

SITE_ZCML = '''\
<configure xmlns="http://namespaces.zope.org/zope"
           xmlns:runner="http://namespaces.gocept.com/runner">
  <include package="gocept.runner" file="site.zcml" />
  <include package="gocept.runner" />
{}
</configure>
'''

WORKER = '''\
  <runner:worker name="{name}" handler="shop:work" arguments="{name}" {more} />
'''

SHOP = '''\
from chaos.scripts import tenants

def work(name):
    tenants.tick(name, {version})
'''

COMMAND = [sys.executable, '-c',
           'import sys; from gocept.runner.cli import main; sys.exit(main())']


class Diary:
    """The ticks of one worker, as it has noted them."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.process = ''
        """The id of the process that has worked last."""
        self.version = 0
        """That of the code of its last tick."""
        self.instant = 0.0
        """When its last tick has begun."""
        self.gap = 0.0
        """The longest time between two ticks, in seconds; see `forget_gap`."""
        self._offset = 0
        self._before: set[str] = set()

    def forget_gap(self) -> None:
        """Measure anew."""
        self.gap = 0.0

    def read(self) -> None:
        """Read what is new; AssertionError if two processes take turns."""
        if not self.path.exists():
            return
        with open(self.path, 'rb') as file:
            file.seek(self._offset)
            lines = file.read().splitlines(keepends=True)
        for line in lines:
            if not line.endswith(b'\n'):
                return
            self._offset += len(line)
            process, version, instant = line.decode().split()
            check(process not in self._before,
                  f'{self.path.name}: {process} works although {self.process} '
                  'has taken its place')
            if process != self.process:
                self._before.add(self.process)
                self.process = process
            if self.instant:
                self.gap = max(self.gap, float(instant) - self.instant)
            self.version, self.instant = int(version), float(instant)


class Estate:
    """A directory with a FileStorage, on a small disk if that may be."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        self.disk = directory / 'disk'
        self.storage = self.disk / 'Data.fs'
        self.word = f'chaos={directory}'
        self.version = 1
        self.diaries = {name: Diary(directory / f'{name}.ticks')
                        for name in NAMES}
        self.disk.mkdir()
        (directory / 'zope.conf').write_text(ZOPE_CONF)
        (directory / 'site.zcml').write_text(SITE_ZCML.format(''.join([
            *(WORKER.format(name=name, more='ticks="0.1"') for name in NAMES),
            WORKER.format(name=VISITOR, more='once="true"')])))
        self.write_code()

    def write_code(self, *, broken: bool = False) -> None:
        """Write the code of the workers; all at once, as others read it."""
        new = self.directory / 'shop.new'
        new.write_text('def work(' if broken
                       else SHOP.format(version=self.version))
        new.replace(self.directory / 'shop.py')

    def start(self, command: Sequence[str], name: str,
              ) -> 'subprocess.Popen[bytes]':
        """Start a program that adds what it says to a file of that name."""
        with open(self.directory / f'{name}.log', 'ab') as output:
            return subprocess.Popen(
                command, cwd=self.directory, stdin=subprocess.PIPE,
                stdout=output, stderr=output, process_group=0,
                env=child_environment(
                    CHAOS=self.word, TENANTS=str(self.directory),
                    XDG_STATE_HOME=str(self.disk / 'home'),
                    # What is written twice in a second would not be seen.
                    PYTHONDONTWRITEBYTECODE='1'))

    def runner(self, *words: str) -> 'subprocess.Popen[bytes]':
        """Start ``gocept-runner``; its log has the name of the subcommand."""
        command, *rest = words
        return self.start(
            [*COMMAND, command, '--config', 'zope.conf', *rest], command)

    def opener(self) -> 'subprocess.Popen[bytes]':
        """Start a program that opens the file, until it reads a line."""
        (self.directory / 'opened').unlink(missing_ok=True)
        return self.start(
            [sys.executable, tenants.__file__, *NAMES, VISITOR], 'opener')

    @property
    def is_opened(self) -> bool:
        """Whether it has done so."""
        return (self.directory / 'opened').exists()

    def log(self, name: str) -> str:
        """What programs of that name have said."""
        path = self.directory / f'{name}.log'
        return path.read_text(errors='replace') if path.exists() else ''

    def committed(self, name: str) -> int:
        """How much a worker has written of what it has committed."""
        path = self.directory / f'{name}.acknowledged'
        return path.stat().st_size if path.exists() else 0

    # Processes.

    def state(self) -> HouseState | None:
        """What `up` tells of itself, if it has told something."""
        for path in self.disk.glob('home/gocept.runner/houses/*/house.json'):
            with contextlib.suppress(OSError, ValueError):
                found: HouseState = json.loads(path.read_text())
                return found
        return None

    def pid_of(self, who: str) -> int | None:
        """The number of the template, the server or a worker, if known."""
        if who == 'server':
            with contextlib.suppress(OSError, IndexError, ValueError):
                lines = pathlib.Path(
                    claim_of(str(self.storage))).read_text().splitlines()
                return int(lines[1].split()[0])
            return None
        state = self.state()
        if state is None:
            return None
        if who == 'template':
            return state['template'] and state['template']['pid']
        return next((each['pid'] for each in state['workers']
                     if each['name'] == who), None)

    def left(self) -> list[int]:
        """All processes, but the dead."""
        return sorted({*alive(self.word), *working_in(self.directory)}
                      - {os.getpid()})

    def handle(self, pid: int | None) -> int | None:
        """A descriptor of a process of ours, if there is this one."""
        if pid is None:
            return None
        with contextlib.suppress(ProcessLookupError):
            fd = os.pidfd_open(pid)
            if pid in self.left():  # else its number is that of another
                return fd
            os.close(fd)
        return None

    def kill_all(self) -> None:
        """Kill whoever is left."""
        while pids := self.left():
            for pid in pids:
                fd = self.handle(pid)
                if fd is not None:
                    with contextlib.suppress(ProcessLookupError):
                        signal.pidfd_send_signal(fd, signal.SIGKILL)
                    os.close(fd)

    # The disk.

    @contextlib.contextmanager
    def small_disk(self) -> Iterator[bool]:
        """Have a disk that can be filled; yields whether there is one."""
        mount = ['mount', '-t', 'tmpfs', '-o', 'size=48m', 'tmpfs',
                 str(self.disk)]
        has_disk = not os.getuid() and not subprocess.run(
            mount, capture_output=True).returncode
        try:
            yield has_disk
        finally:
            if has_disk:
                subprocess.run(['umount', str(self.disk)], check=True)

    def fill(self) -> None:
        """Leave no room."""
        with (contextlib.suppress(OSError),
              open(self.disk / 'filler', 'wb', 0) as filler):
            while True:
                filler.write(bytes(4096))

    def make_room(self) -> None:
        """Undo it."""
        (self.disk / 'filler').unlink(missing_ok=True)

    # What is left.

    def check_alone(self) -> None:
        """No worker has had two processes at once."""
        failures = self.directory / 'failures'
        if failures.exists():
            raise AssertionError(failures.read_text())
        for diary in self.diaries.values():
            diary.read()

    def check_left(self) -> None:
        """No process, and no socket, claim or lock."""
        left = self.left()
        check(not left, 'left are:\n' + '\n'.join(map(described, left)))
        names = [each.name for each in self.disk.iterdir()
                 if each.suffix in ('.claim', '.socket', '.new')]
        check(not names, f'left beside the file: {names}')
        for path in self.directory.rglob('*'):
            if path.is_file():
                with open(path, 'rb') as file:
                    try:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        raise AssertionError(f'{path} is locked') from None

    def check_stored(self, in_flight: int) -> int:
        """Nothing is lost that was committed; returns how much is stored.

        `in_flight` is how many commits may be stored of which nobody knows.
        """
        ZODB.scripts.fstest.check(str(self.storage))
        with stored(self.storage) as site:
            counts = {name: count() for name, count in site.counts.items()}
            total: int = site.total()
        check(total == sum(counts.values()), f'{total} of all, {counts}')
        unknown = 0
        for name, count in counts.items():
            path = self.directory / f'{name}.acknowledged'
            numbers = [*map(int, path.read_text().split())
                       ] if path.exists() else []
            check(numbers == sorted({*numbers}),
                  f'{name}: a number is there twice, or goes back')
            check(not numbers or numbers[-1] <= count,
                  f'{name}: {count} are stored, {numbers[-1:]} was')
            unknown += count - len(numbers)
        check(unknown <= in_flight, f'{unknown} are stored of which nobody '
              f'knows, and {in_flight} could be')
        return total
