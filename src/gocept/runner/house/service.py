"""What the service manager is told of a house; see sd_notify(3).

The workers have no ``NOTIFY_SOCKET``: the service is `up`.
"""

import contextlib
import os
import time
from collections.abc import Iterator

from gocept.runner.logs import Log
from gocept.runner.signals.systemd import ServiceManager, taken_variables

log = Log('gocept.runner.house')


class Service:
    """The service that this process is, if it is one.

    What cannot be told is left out: nothing of the house depends on it.
    """

    def __init__(self) -> None:
        self._manager: ServiceManager | None = None
        self._told = ''

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """In the block, tell the manager, and have no child do that."""
        with taken_variables(os.environ) as wishes:
            try:
                self._manager = (ServiceManager(wishes.address)
                                 if wishes.address else None)
            except ValueError as error:
                log.warning('%s', error)
            try:
                yield
            finally:
                if self._manager is not None:
                    self._manager.close()
                    self._manager = None

    def tell(self, phase: str, status: str) -> None:
        """Tell the phase of the house, if it or the status has changed."""
        text = f'{_PHASES[phase]}STATUS={status}\n'
        if self._manager is None or text == self._told:
            return
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        try:
            self._manager.send(text + (
                f'MONOTONIC_USEC={now}\n' if phase == 'reloading' else ''))
        except OSError:  # it is told when something changes again
            return
        self._told = text


_PHASES = {'starting': '', 'running': 'READY=1\n',
           'reloading': 'RELOADING=1\n', 'ending': 'STOPPING=1\n'}
"""The assignments of each phase of `HouseState`."""
