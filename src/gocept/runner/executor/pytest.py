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
    """Return a fixture: an executor, which it starts, and stops in the end.

    `make` returns the executor. It is called when a test first needs the
    fixture; its parameters are other fixtures, as those of any fixture
    function. What the executor requires is started and stopped with it, unless
    it is up already. `scope` and `name` are those of `pytest.fixture`. By
    default one executor serves all tests, and the fixture has the name of the
    variable that you assign it to. If the executor does not start, pytest
    shows its message, and the tests that need it fail.

    A test that stops the executor should start it again:
    ``with redis.stopped():``.
    """
    def fixture(**fixtures: Any) -> Iterator[SimpleExecutor]:
        executor = make(**fixtures)
        started = start_all([executor])
        try:
            yield executor
        finally:
            stop_all(started)

    # The signature tells pytest which fixtures are needed.
    fixture.__signature__ = inspect.signature(make)  # type: ignore[attr-defined]
    return pytest.fixture(scope=scope, name=name)(fixture)
