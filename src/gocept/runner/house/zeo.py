"""The ZEO server of a house, for each ``<filestorage>`` in its zope.conf.

One process at a time can open a FileStorage, and a house has many. So this
claims the files, starts a server for them, and restarts it if it dies. Workers
and all other programs find the claim, and ask the server; see
`gocept.runner.boot.served`.

Three kinds of process take part: `up`, where `ZEO` runs; a short one that
reads the zope.conf (`storages`); and the server (`zeoserver`).
"""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gocept.runner.boot.claim import Claim, holder, socket_of
from gocept.runner.errors import (
    BAD_CONFIGURATION,
    CANNOT_START,
    DATABASE_UNAVAILABLE,
    RunnerError,
)
from gocept.runner.house.workerprocess import said
from gocept.runner.logs import Log
from gocept.runner.poller import Timer
from gocept.runner.process import Process
from gocept.runner.waits.deadline import Deadline
from gocept.runner.waits.modules import interpreter_flags, module_path

if TYPE_CHECKING:
    from gocept.runner.house.part import Premises

log = Log('gocept.runner.house')

WAIT = 30.0
"""Seconds in which another process has to close a file."""

TIMEOUT = 60.0
"""Seconds in which a client has to finish a commit that the server has
accepted, while all others wait."""

GRACE = 90.0
"""Seconds that the workers have to end when `up` has died."""

_AGAIN = 0.5
"""Seconds between two attempts to claim a file."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
"""Seconds until a server is started again."""

_STABLE = 60.0
"""Seconds; a server that has served so long has not failed."""

_START = os.path.join(os.path.dirname(os.path.abspath(__file__)),
                      'zeostart.py')


class ZEO:
    """See `Part`."""

    name = 'zeo'

    def __init__(self, application: str | None = None, *, wait: float = WAIT,
                 timeout: float = TIMEOUT, create: bool = True) -> None:
        """`application` is the kind of application; see `Settings`.

        Without `create`, a file that is missing is not created.
        """
        self.ready = self.ended = False
        self._application = application
        self._wait = wait
        self._timeout = timeout
        self._may_create = create
        self._files: Sequence[Mapping[str, Any]] = ()
        self._are_files_known = False
        self._claims: list[Claim] = []
        self._program: _Program | None = None
        self._timer: Timer | None = None
        self._is_first = True
        self._is_stopping = False
        self._has_told = False
        self._failures = 0
        self._since = 0.0

    def start(self, house: 'Premises') -> None:
        """See `Part`."""
        self._house = house
        self._deadline = Deadline(self._wait)
        self._run('storages', {
            'config': house.config, 'application': self._application},
            self._note_files, self._note_reading)

    def _run(self, module: str, options: Mapping[str, Any],
             hear: Callable[[Any], object],
             over: Callable[[str], object]) -> None:
        try:
            self._program = _Program(
                module, options, self._house, hear, over,
                [claim.fileno() for claim in self._claims])
        except OSError as error:
            self._fail(f'the program {module} cannot be started: {error}',
                       CANNOT_START)
            self._leave()

    # Which files there are.

    def _note_files(self, words: Mapping[str, Any]) -> None:
        if 'error' in words:
            self._fail(words['error'], words['status'])
            return
        self._files = words['files']
        self._are_files_known = True
        if words['files'] and not words['has_zeo']:
            self._fail(
                f'{self._house.config} has a <filestorage>, which one process '
                'at a time can open: pip install "gocept.runner[zeo]", so '
                'that "up" shares it by a ZEO server', BAD_CONFIGURATION)

    def _note_reading(self, end: str) -> None:
        self._program = None
        if not (self._are_files_known or self._is_stopping):
            self._fail(f'the program that reads {self._house.config} has '
                       f'ended with {end}', CANNOT_START)
        if self._is_stopping:
            self._leave()
        elif self._files:
            self._claim()
        else:
            self.ready = True

    def _claim(self, *expired: object) -> None:
        """Claim the files; if others have done so, try it again later."""
        self._timer = None
        try:
            for section in self._files[len(self._claims):]:
                claim = Claim.take(section['path'])
                if claim is None:
                    self._wait_for(section['path'])
                    return
                self._claims.append(claim)
        except OSError as error:
            self._fail(f'{error.filename}, which tells others that "up" '
                       f'serves the database, cannot be written: '
                       f'{error.strerror}', CANNOT_START)
            self._leave()
        else:
            self._serve()

    def _wait_for(self, path: str) -> None:
        who = holder(path)
        if who is not None and self._deadline.passed:
            self._fail(f'{who} serves the database {path} already, for '
                       'another "gocept-runner up", and has not ended within '
                       f'{self._deadline}', DATABASE_UNAVAILABLE)
            self._leave()
            return
        if who is not None and not self._has_told:
            self._has_told = True
            log.info('%s serves the database %s, for another "gocept-runner '
                     'up"%s: waiting up to %s for its end', who, path,
                     ' that has died' * who.is_server, self._deadline)
            if who.is_server:
                # If it was stopped, it has not seen yet that it is to end.
                with contextlib.suppress(OSError):
                    os.kill(who.pid, signal.SIGCONT)
        self._later(_AGAIN, self._claim)

    # The server.

    def _serve(self, *expired: object) -> None:
        self._timer = None
        self._run('zeoserver', {
            'files': self._files, 'is_first': self._is_first,
            'create': self._may_create,
            'claims': [claim.fileno() for claim in self._claims],
            'wait': self._deadline.left() if self._is_first else self._wait,
            'timeout': self._timeout, 'grace': GRACE},
            self._hear, self._note_end)

    def _hear(self, words: Mapping[str, Any]) -> None:
        if words['what'] == 'ready':
            self.ready = True
            self._since = time.monotonic()
            for section in self._files:
                path = section['path']
                log.info('Serving %s on %s', path, socket_of(path))
            self._is_first = False
        elif self._is_first:
            self._fail(words['text'], words['status'])
        else:
            log.error('The ZEO server cannot start: %s', words['text'])

    def _note_end(self, end: str) -> None:
        self._program = None
        if self._is_first and not self._is_stopping:
            self._fail(f'the ZEO server has ended with {end} before it served '
                       'a database', CANNOT_START)
        if self._is_stopping:
            self._leave()
            return
        if self.ready and time.monotonic() - self._since >= _STABLE:
            self._failures = 0
        self.ready = False
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** self._failures)
        self._failures += 1
        log.error('The ZEO server has ended with %s, and is started again in '
                  '%.3g s', end, pause)
        self._later(pause, self._serve)

    def _later(self, seconds: float, call: Callable[..., object]) -> None:
        self._timer = Timer(seconds)
        self._house.poller.register(self._timer, call)

    def _fail(self, text: str, status: int) -> None:
        self._is_stopping = True
        error = RunnerError(text)
        error.status = status
        self._house.fail(error)

    # The end.

    def stop(self, deadline: Deadline) -> None:
        """See `Part`."""
        self._is_stopping = True
        self.ready = False
        if self._timer is not None:
            self._house.poller.unregister(self._timer)
        if self._program is None:
            self._leave()
        else:
            self._program.send(signal.SIGTERM)
            self._program.send(signal.SIGCONT)

    def kill(self) -> None:
        """See `Part`."""
        if self._program is not None:
            self._program.send(signal.SIGKILL)

    def _leave(self) -> None:
        for claim in self._claims:
            claim.give_up()
        self.ended = True


class _Program:
    """A program that says what there is, in lines of JSON."""

    def __init__(self, module: str, options: Mapping[str, Any],
                 house: 'Premises', hear: Callable[[Any], object],
                 over: Callable[[str], object], fds: Sequence[int]) -> None:
        """Start it; OSError. `hear` is called with what it says, and `over`
        with how it has ended when all of that was heard."""
        self._house = house
        self._hear = hear
        self._over = over
        self._process = process = Process(
            [sys.executable, '-P', *interpreter_flags(), _START, module],
            name=module, stdin='pipe', stdout='pipe', stderr='pipe',
            setpgrp=True, pass_fds=fds, buffering='line',
            poller=house.poller)
        channel, errors = process.channel, process.stderr
        assert channel is not None and errors is not None
        self._open: set[object] = {process, channel, errors}
        house.poller.register(process, self._end)
        house.poller.register(channel, self._read)
        house.poller.register(errors, self._tell)
        # It stays open: its end is that of this process.
        channel.write(json.dumps(
            {'modules': module_path(), **options}).encode() + b'\n')

    def send(self, signum: int) -> None:
        """Send it a signal."""
        self._process.send_signal(signum)

    def _read(self, line: bytes, channel: object) -> None:
        if line:
            self._hear(json.loads(line))
        else:
            self._end(line, channel)

    def _tell(self, line: bytes, channel: object) -> None:
        if line:
            self._house.tell(ZEO.name, line.decode(errors='replace'))
        else:
            self._end(line, channel)

    def _end(self, item: object, source: object) -> None:
        self._open.discard(source)
        if not self._open:
            self._process.close()
            self._over(said(self._process.returncode or 0))


