"""The fixtures of `gocept.runner.testing`; pytest loads this by itself.

So nothing else is imported here before a test needs a fixture.
"""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from gocept.runner.testing.children import FakeChildren
    from gocept.runner.testing.config import RunnerConfig
    from gocept.runner.waits.closing import Closing

P = ParamSpec('P')

R = TypeVar('R', bound='Closing')


def _closing(stack: contextlib.ExitStack, make: 'Callable[P, R]',
             ) -> 'Callable[P, R]':
    """Like `make`, but what is made is closed with `stack`."""
    def make_closed(*args: P.args, **options: P.kwargs) -> R:
        made = make(*args, **options)
        stack.callback(made.close)
        return made
    return make_closed


@pytest.fixture
def runner_config() -> 'Iterator[Callable[..., RunnerConfig]]':
    """Called like `gocept.runner.testing.runner_config`: a zope.conf with a
    database, until the test ends."""
    from gocept.runner import testing
    with contextlib.ExitStack() as stack:
        yield _closing(stack, testing.runner_config)


@pytest.fixture
def fake_children() -> 'Iterator[Callable[..., FakeChildren]]':
    """Called like `gocept.runner.testing.fake_children`: until the test ends,
    children are fake ones."""
    from gocept.runner import testing
    with contextlib.ExitStack() as stack:
        yield _closing(stack, testing.fake_children)
