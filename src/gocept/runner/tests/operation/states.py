"""States of workers, for the tests of who reads them."""

import os
import pathlib
import shutil
import tempfile
import unittest
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from unittest import mock

from gocept.runner.operation import directory, vitals
from gocept.runner.operation import state as form
from gocept.runner.operation.vitals import Facts, Process

if TYPE_CHECKING:
    from gocept.runner.operation.state import State

NOW = {'realtime': 1_000_000.0, 'monotonic': 5_000.0}
"""The moment of `facts`."""


def moment(ago: float = 0.0) -> dict[str, float]:
    """The moment that was so many seconds ago."""
    return {clock: instant - ago for clock, instant in NOW.items()}


def state(**changes: Any) -> 'State':
    """The state of a worker that waits for 60 seconds."""
    return {
        'format': form.FORMAT, 'version': '4.0', 'worker': 'nightly',
        'site': None, 'host': 'here', 'pid': 100, 'start': 7, 'boot': 'first',
        'namespaces': 'pid:[1]', 'started': moment(1000),
        'written': moment(40), 'phase': 'pause', 'since': moment(40),
        'tick': 3, 'deadline': None, 'tick_timeout': None, 'schedule': None,
        'next_tick': due(60), 'last_tick': {
            'number': 3, 'ended': NOW['realtime'] - 40, 'duration': 0.5,
            'outcome': 'committed'},
        'last_success': moment(40), 'failures': 0, 'last_error': None,
        'counts': {'ticks': 3, 'commits': 3, 'aborts': 0, 'uncertain': 0},
        'memory': 1 << 20, 'children': [], 'status': None, **changes}


def due(left: float, clock: str = 'monotonic') -> Any:
    """A next tick in so many seconds."""
    return {'clock': clock, 'at': NOW[clock] + left,
            'realtime': NOW['realtime'] + left}


def facts(process: Process | None = Process('S', 7),
          now: Mapping[str, float] = NOW, **changes: Any) -> Facts:
    """What the system says of that worker."""
    return Facts(process, **{
        'boot': 'first', 'host': 'here', 'namespaces': 'pid:[1]',
        'now': now, **changes})


def own_state(**changes: Any) -> 'State':
    """The state of a worker that is this process, and waits."""
    now, process = vitals.now(), vitals.process(os.getpid())
    assert process is not None
    return state(**{
        'host': vitals.host(), 'pid': os.getpid(), 'start': process.start,
        'boot': vitals.boot(), 'namespaces': vitals.namespaces(),
        'started': now, 'written': now, 'since': now, 'last_success': now,
        'next_tick': {'clock': 'monotonic', 'at': now['monotonic'] + 3600,
                      'realtime': now['realtime'] + 3600}, **changes})


class StateCase(unittest.TestCase):
    """A directory for states, and a user who has registered none."""

    def setUp(self) -> None:
        self.dir = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.dir)
        self.enterContext(mock.patch.dict(
            os.environ, {'XDG_STATE_HOME': str(self.dir / 'home')}))
        os.environ.pop(directory.VARIABLE, None)
