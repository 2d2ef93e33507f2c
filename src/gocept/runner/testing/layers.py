"""Layers of zope.testrunner."""

import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

import zope.interface

from gocept.runner.executor import SimpleExecutor, start_all, stop_all
from gocept.runner.interfaces import IExecutorLayer, IKernelLayer
from gocept.runner.testing.servers import private_kernel

if TYPE_CHECKING:
    from gocept.runner.kernel import Kernel

E = TypeVar('E', bound=SimpleExecutor)


@zope.interface.implementer(IExecutorLayer)
class ExecutorLayer(Generic[E]):
    """See `IExecutorLayer`."""

    def __init__(self, name: str, make: Callable[[], E], *,
                 bases: Sequence[object] = (),
                 module: str | None = None) -> None:
        self.__name__ = name
        self.__module__ = module or sys._getframe(1).f_globals['__name__']
        self.__bases__ = tuple(bases)
        self._make = make
        self._executor: E | None = None
        self._started: list[SimpleExecutor] = []

    @property
    def executor(self) -> E:
        """See `IExecutorLayer`."""
        if self._executor is None:
            raise RuntimeError(f'the layer {self.__name__} is not set up')
        return self._executor

    def setUp(self) -> None:
        """See `IExecutorLayer`."""
        executor = self._make()
        self._started = start_all([executor])
        self._executor = executor

    def testSetUp(self) -> None:
        """See `IExecutorLayer`."""
        for each in self._started:
            if not each.is_up():
                each.start()

    def tearDown(self) -> None:
        """See `IExecutorLayer`."""
        started, self._started = self._started, []
        self._executor = None
        stop_all(started)

    def __repr__(self) -> str:
        return f'<ExecutorLayer {self.__module__}.{self.__name__}>'


@zope.interface.implementer(IKernelLayer)
class KernelLayer:
    """See `IKernelLayer`."""

    def __init__(self, name: str, *, bases: Sequence[object] = (),
                 module: str | None = None) -> None:
        self.__name__ = name
        self.__module__ = module or sys._getframe(1).f_globals['__name__']
        self.__bases__ = tuple(bases)
        self._stack = contextlib.ExitStack()
        self._kernel: Kernel | None = None

    @property
    def kernel(self) -> 'Kernel':
        """See `IKernelLayer`."""
        if self._kernel is None:
            raise RuntimeError(f'the layer {self.__name__} is not set up')
        return self._kernel

    def setUp(self) -> None:
        """See `IKernelLayer`."""
        self._kernel = self._stack.enter_context(private_kernel())

    def tearDown(self) -> None:
        """See `IKernelLayer`."""
        self._kernel = None
        self._stack.close()

    def __repr__(self) -> str:
        return f'<KernelLayer {self.__module__}.{self.__name__}>'
