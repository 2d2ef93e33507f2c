"""Executors as fixtures of pytest."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest

from gocept.runner.executor.base import SimpleExecutor
from gocept.runner.executor.groups import start_all, stop_all

__all__ = ['executor_fixture']

Scope = Literal['session', 'package', 'module', 'class', 'function']


def executor_fixture(make: Callable[..., SimpleExecutor], *,
                     scope: Scope = 'session', name: str | None = None) -> Any:
    """Return a fixture: an executor that is started, and stopped in the end.

    `make` is called in the tests' own time, not when they are imported, and
    returns the executor; its parameters are other fixtures, as those of a
    fixture function are. What the executor requires is started and stopped
    with it, unless it runs already. `scope` and `name` are those of
    `pytest.fixture`: by default one executor serves all tests, under the name
    of the variable that the fixture is assigned to. Tests that need it cannot
    run if it does not start; pytest shows the executor's message then.

    A test may stop it, and should start it again: ``with redis.stopped():``.
    """
    def fixture(**fixtures: Any) -> Iterator[SimpleExecutor]:
        executor = make(**fixtures)
        started = start_all([executor])
        try:
            yield executor
        finally:
            stop_all(started)

    # By its signature pytest knows what it needs.
    fixture.__signature__ = inspect.signature(make)  # type: ignore[attr-defined]
    return pytest.fixture(scope=scope, name=name)(fixture)
