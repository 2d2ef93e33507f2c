"""The condition that a child writes a file, mostly one with its process id."""

import contextlib
import copy
import os
import re
import shlex
import shutil
import stat
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Self
from weakref import WeakValueDictionary

from gocept.runner.executor.conditions.base import Check, Condition, Setting
from gocept.runner.executor.conditions.inotify import Directory
from gocept.runner.poller import Poller
from gocept.runner.process import descendants, procfs
from gocept.runner.process.base import BaseProcess
from gocept.runner.process.roster import roster
from gocept.runner.waits.deadline import Deadline

_BRIEFLY = 0.1
"""Seconds between the creation of a file and its content, as a rule."""

_SHELLS = {'sh', 'ash', 'bash', 'busybox', 'dash', 'ksh', 'zsh'}
"""What starts other programs, so that one cannot say which."""

_SHOWN = 200  # characters of a command line in a message

_writers: WeakValueDictionary[str, BaseProcess] = WeakValueDictionary()
"""The last child that was started to write a file, by the path of the file."""


class pid_file(Condition):
    """That a file is written after the start."""

    _setting: Setting | None = None

    _before: '_Written | None' = None
    """The file before the start; of a condition that is for one child."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path or '')
        if not self.path:
            raise ValueError('the path of a pid file is needed')

    def for_child(self, setting: Setting) -> Self:
        it = copy.copy(self)
        it._setting = setting
        return it

    def for_found(self) -> None:
        return None

    def check(self) -> Check:
        check = _PidFileCheck(self.path)
        self._before = check.before
        return check

    def holds_already(self, poller: Poller, deadline: Deadline) -> str:
        pid = _named(self.path)
        if not pid or not self._may_have_written(pid):
            return ''
        command = shlex.join(procfs.command_line(pid)) or procfs.name(pid)
        # A program that is in the command line may have many lines.
        shown = ' '.join(command.split())
        if len(shown) > _SHOWN:
            shown = f'{shown[:_SHOWN]}...'
        return (f'process {pid} runs, which {self.path} names: '
                f'{shown or "its command line cannot be read"}; if this is '
                f'another program, remove {self.path}')

    def _may_have_written(self, pid: int) -> bool:
        """Whether a process may be what the command starts.

        A number may be used again by any process. There is no clock that could
        tell: that of files is another one than that of processes.
        """
        if pid in _ancestors(os.getpid()):
            return False
        writer = _writers.get(os.path.realpath(self.path))
        if writer is not None and writer.is_ours:
            if writer.poll() is None and pid == writer.pid:
                return True
            if writer.has_left and descendants.is_stranger(pid):
                return True
        if pid in roster:
            return False
        if self._setting is None:
            return True
        now = procfs.look(pid)
        # In another session, it may be a daemon that we have adopted.
        if now.parent == os.getpid() and now.session == os.getsid(0):
            return _runs(pid, self._setting)
        return _may_run(pid, self._setting)

    def servers(self) -> Iterator[int]:
        # What was there before the start names no daemon of the child.
        if _look(self.path)[0] not in (None, self._before) and (
                pid := _named(self.path)):
            yield pid


def _named(path: str) -> int:
    """The process that a file names; 0 if there is none."""
    try:
        if not os.path.isfile(path):  # to open a named pipe would block
            return 0
        with open(path, 'rb') as file:
            # That of PostgreSQL has more lines.
            pid = int(file.readline(32))
    except (OSError, ValueError):
        return 0
    return pid if pid > 0 and _is_there(pid) else 0


def _is_there(pid: int) -> bool:
    now = procfs.stat(pid)
    if now is not None:
        return now.state not in 'ZX'
    try:  # as /proc may hide the processes of other users
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return procfs.is_readable()  # else it may be a zombie, too


def _ancestors(pid: int) -> Iterator[int]:
    """A process, its parent, and so on."""
    while pid:
        yield pid
        pid = procfs.look(pid).parent


def _runs(pid: int, setting: Setting) -> bool:
    """Whether the command line of a process is that of the setting."""
    expected = (['/bin/sh', '-c', *setting.command] if setting.shell
                else setting.command)
    arguments = procfs.command_line(pid)
    if not arguments:  # in an exec() it has none yet
        return True
    seen = arguments[-len(expected):]  # behind an interpreter
    return (seen[1:] == expected[1:] and _words(seen[:1])
            == _words(expected[:1]))


def _may_run(pid: int, setting: Setting) -> bool:
    """Whether the setting may start the program of a process.

    Some commands start another program, which then shares a word with them as
    a rule: ``pg_ctl -D data`` starts ``postgres -D data``.
    """
    words = _words([*setting.command, *_interpreter(setting)])
    seen = _words([*procfs.command_line(pid), procfs.program(pid),
                   procfs.name(pid)])
    return (setting.shell or not seen or bool(words & _SHELLS)
            or bool(words & seen))


def _interpreter(setting: Setting) -> list[str]:
    """What runs the program: for a script, its interpreter; and the file that
    a link to the program leads to."""
    program = os.path.join(setting.cwd or '', setting.command[0])
    if os.sep not in setting.command[0]:
        program = shutil.which(
            setting.command[0], path=setting.env.get('PATH')) or ''
    with contextlib.suppress(OSError):
        if os.path.isfile(program):
            with open(program, 'rb') as file:
                line = os.fsdecode(file.readline(256))
            if line.startswith('#!'):
                return [line[2:], *map(os.path.realpath, line[2:].split()[:1])]
    return [os.path.realpath(program)]


def _words(arguments: Iterable[str]) -> set[str]:
    """The names in a command line, without directories, options, numbers."""
    words = {os.path.basename(word.rstrip(os.sep)) for each in arguments
             for word in re.split(r'[\s:=]+', each) if word[:1] != '-'}
    return {word for word in words if word and not word.isdigit()}


class _Written(NamedTuple):
    """What differs when a file has been written anew."""

    inode: int
    size: int
    modified: int  # compared with that of the same file only


def _look(path: str) -> tuple[_Written | None, str]:
    """A file, and what a message says of it."""
    try:
        now = os.stat(path)
    except FileNotFoundError:
        return None, 'there is none'
    except OSError as error:
        return None, str(error.strerror)
    if stat.S_ISREG(now.st_mode):
        return (_Written(now.st_ino, now.st_size, now.st_mtime_ns),
                'it is stale')
    return None, 'it is no regular file'


class _PidFileCheck(Check):

    def __init__(self, path: str) -> None:
        self._path = os.path.abspath(path)
        self.before, self.seen = _look(self._path)
        self._directory: Directory | None = None
        self._briefly: Deadline | None = None
        self.awaited = f'the file {path}'

    def _watch(self) -> None:
        _writers[os.path.realpath(self._path)] = self.process
        # A directory that cannot be watched is looked at now and then.
        with contextlib.suppress(OSError):
            self._directory = Directory(os.path.dirname(self._path))
            self.poller.register(self._directory)

    def holds(self) -> bool:
        now, self.seen = _look(self._path)
        if now is None or now == self.before:
            return False
        if now.size:
            self.close()  # events of other files would wake the poller
            return True
        # Some programs make an empty file; others write to it at once.
        self.seen = 'it is empty'
        if self._briefly is None:
            self._briefly = Deadline(_BRIEFLY)
        return self._briefly.passed

    def close(self) -> None:
        if self._directory is not None:
            self._directory.close()
