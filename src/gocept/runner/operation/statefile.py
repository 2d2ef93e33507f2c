"""The file that the state of a worker is written to."""

import contextlib
import os
import re
from typing import TYPE_CHECKING, Self

from gocept.runner.boot.environments import Options
from gocept.runner.errors import UsageError
from gocept.runner.logs import Log
from gocept.runner.operation import state as form
from gocept.runner.operation import vitals
from gocept.runner.operation.asked import Asked
from gocept.runner.operation.directory import VARIABLE, register
from gocept.runner.operation.health import judge
from gocept.runner.operation.place import file_of, place_of

if TYPE_CHECKING:
    from gocept.runner.operation.state import State

log = Log('gocept.runner.operation')


class StateFile:
    """The file of one worker. Only the thread that writes uses it.

    If the file belongs to a process that lives, such as another instance of
    this worker, the file of this one has the number of its process as well,
    unless somebody has asked for this very file. Instances that start together
    notice this when they write.
    """

    has_failed = False
    before: 'State | None' = None
    """What the program of this worker before this one has left there."""

    _written: tuple[int, int] | None = None
    """What tells the file that was written last from that of another one."""

    def __init__(self, path: str, worker: str, site: str | None, *,
                 is_fixed: bool = False) -> None:
        self.path = path
        self._worker, self._site = worker, site
        self._is_fixed = is_fixed

    @classmethod
    def of(cls, worker: str, site: str | None, options: Options,
           asked: Asked) -> Self | None:
        """The file of a worker; None if no state is to be written.

        UsageError if somebody asks for what is no file.
        """
        if asked.state is not None:
            return cls(_plain(asked.state), worker, site, is_fixed=True)
        directory = asked.run_dir or os.environ.get(VARIABLE)
        if not directory:
            if asked.dry_run or not asked.is_command:
                return None
            try:
                place = place_of(options)
            except ValueError as error:
                log.warning('No state of the worker %r is written: %s; or '
                            'give --state or --run-dir', worker, error)
                return None
            directory = os.path.join(place.directory, f'{place.prefix}state')
        return cls(os.path.join(os.path.abspath(directory),
                                file_of(worker, site) + form.ENDING),
                   worker, site)

    def open(self) -> None:
        """Choose the path, and tell `gocept-runner status` where it is."""
        directory = os.path.dirname(self.path)
        with contextlib.suppress(OSError):  # the first write tells it
            os.makedirs(directory, 0o777 if self._is_fixed else 0o755,
                        exist_ok=True)
        with contextlib.suppress(OSError, ValueError):
            register(self.path if self._is_fixed else directory)
        holder = _holder(self.path)
        if holder and self._is_fixed:
            log.warning('The file %s has the state of process %d, which '
                        'lives: give each worker a file of its own',
                        self.path, holder)
        elif holder:
            self._give_way()
        else:
            self._look_back()
            if not self._is_fixed:
                with contextlib.suppress(OSError):
                    self._forget_dead()

    def _give_way(self) -> None:
        """Leave the file to another process."""
        self.path = (f'{self.path.removesuffix(form.ENDING)}.'
                     f'{os.getpid()}{form.ENDING}')
        self._written = None

    def _look_back(self) -> None:
        with contextlib.suppress(form.Unreadable):
            found = form.read(self.path)
            if (found['worker'], found['site']) == (self._worker, self._site):
                self.before = found

    def _forget_dead(self) -> None:
        """Remove the files of other instances that have died."""
        directory, name = os.path.split(self.path)
        pattern = re.compile(
            re.escape(name.removesuffix(form.ENDING)) + r'\.\d+\.json')
        for other in filter(pattern.fullmatch, os.listdir(directory)):
            path = os.path.join(directory, other)
            with contextlib.suppress(form.Unreadable):
                found = form.read(path)
                if (found['worker'], found['site']) == (
                        self._worker, self._site) and (
                            _word(found) in ('dead', 'ended')):
                    os.unlink(path)

    def write(self, state: 'State') -> bool:
        """Write it; an error is logged once. Returns whether it is written."""
        if not self._is_fixed and _mark(self.path) != self._written and (
                _holder(self.path) not in (0, os.getpid())):
            self._give_way()
        try:
            form.write(self.path, state)
            self._written = _mark(self.path)
        except OSError as error:
            if not self.has_failed:
                self.has_failed = True
                log.warning(
                    'The state of the worker %r cannot be written to %s: %s; '
                    'the worker goes on, and "gocept-runner status" shows '
                    'what was written before', self._worker, self.path,
                    error.strerror or error)
            return False
        if self.has_failed:
            self.has_failed = False
            log.info('The state of the worker %r is written again',
                     self._worker)
        return True


def _plain(path: str) -> str:
    """The path of a file that may be replaced, behind symbolic links."""
    with contextlib.suppress(OSError):  # in /proc
        path = os.path.realpath(path)
    if os.path.exists(path) and not os.path.isfile(path):
        # To replace a device, such as /dev/null, harms the whole system.
        raise UsageError(f'--state {path}: is no plain file; name a file that '
                         'is there for this alone')
    return path


def _mark(path: str) -> tuple[int, int] | None:
    """What is another one when somebody has written the file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _holder(path: str) -> int:
    """The process whose state this is, if it lives; else 0."""
    try:
        found = form.read(path)
    except form.Unreadable:
        return 0
    word = _word(found)
    if word == 'ending' and found['pid'] == os.getpid():
        return 0  # of an earlier run in this process
    return 0 if word in ('dead', 'ended', 'unknown') else found['pid']


def _word(found: 'State') -> str:
    """What to think of this worker, in a word; see `Verdict`."""
    return judge(found, vitals.facts_about(found['pid'])).word
