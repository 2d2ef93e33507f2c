"""The trial of other code, before a daemon makes way for it."""

import contextlib
import os
import signal
from collections.abc import Callable, Mapping

from gocept.runner.errors import KernelError
from gocept.runner.kernel.keeper import handover
from gocept.runner.kernel.keeper.options import Options
from gocept.runner.poller.poller import Poller
from gocept.runner.poller.timer import Timer
from gocept.runner.process.direct import Command, Reports, spawn
from gocept.runner.process.pidfd import Handle, hold

PATIENCE = 30.0
"""Seconds that a trial may take."""


class Trial:
    """A process that loads other code, and reads our state with it.

    A daemon makes one, and goes on serving. When the trial is over, the poller
    calls ``on_end('')`` if the code can go on, else with one line that says
    why it cannot. KernelError if it cannot be begun.
    """

    def __init__(self, poller: Poller, config: Mapping[str, object],
                 options: Options, table: Mapping[str, int],
                 on_end: Callable[[str], object]) -> None:
        self._poller = poller
        self._on_end = on_end
        self._output = b''
        self.options = Options.from_json(options.to_json() | dict(config))
        if not self.options.script:
            raise KernelError(
                'the upgrade needs a sys.path with gocept.runner of at least '
                'this release: ' + (':'.join(self.options.path) or 'it has '
                                    'none'))
        self._start(table)
        self._timer = Timer(PATIENCE)
        poller.register(self._timer, lambda *ignored: self._kill())
        poller.register(self._reports)

    def _start(self, table: Mapping[str, int]) -> None:
        with contextlib.ExitStack() as ours:
            content = handover.write(self.options, table, {})
            ours.callback(os.close, content)
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            ours.callback(os.close, null)
            read, write = os.pipe()
            ours.callback(os.close, write)
            os.set_blocking(read, False)
            self._reports = Reports(read, self._heard)
            command = Command([*map(os.fsencode, self.options.command(
                '--trial', str(content)))], {}, cwd=b'/')
            command.streams = null, write, write
            command.inherited = (content, *table.values())
            try:
                self._handle: Handle = hold(spawn(command))
            except OSError as error:
                self._reports.close()
                raise KernelError(
                    f'{self.options.python} cannot be run: {error}') from error

    def _heard(self, said: bytes) -> None:
        self._output = self._output or said
        self._poller.register(self._handle, self._reap)

    def _kill(self) -> None:
        self._output = b'it takes more than %d s' % PATIENCE
        self._handle.signal(signal.SIGKILL)

    def _reap(self, *ignored: object) -> None:
        try:
            status = self._handle.reap()
        except ChildProcessError:  # the daemon has reaped it
            status = None
        self.close()
        text = self._output.decode(errors='replace').strip()
        if not status and text.startswith('ok'):
            self._on_end('')
        else:
            last = text.rpartition('\n')[2] or f'it ended with {status}'
            self._on_end(f'the code of {self.options.script} cannot take '
                         f'over, so this one goes on: {last}')

    def close(self) -> None:
        """Forget it; a process that runs is killed and reaped."""
        self._poller.unregister(self._timer)
        self._reports.close()
        self._handle.signal(signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            self._handle.reap()
        self._handle.close()
