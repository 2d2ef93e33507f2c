"""Fakes and layers for the users' own tests."""

import codecs
import sys
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import zope.interface

from gocept.runner.channel.base import MIB, Channel
from gocept.runner.channel.lines import Data
from gocept.runner.errors import EndpointClosedException
from gocept.runner.executor import SimpleExecutor, start_all, stop_all
from gocept.runner.interfaces import IExecutorLayer, ITestChannel

__all__ = ['ExecutorLayer', 'TestChannel']

E = TypeVar('E', bound=SimpleExecutor)


@zope.interface.implementer(ITestChannel)
class TestChannel(Channel):
    """See `ITestChannel`."""

    __test__ = False  # test runners would take it for a test

    def __init__(self, *, buffering: str | None = None,
                 encoding: str | None = None, limit: int = MIB) -> None:
        super().__init__(buffering=buffering, encoding=encoding, limit=limit)
        self._received: list[bytes] = []
        self._written: list[bytes] = []
        self._ended = self._eof_written = False
        # Those of the other side, as both may have to remember a state.
        name = self.encoding or 'ascii'
        self._peer_encoder = codecs.getincrementalencoder(name)()
        self._peer_decoder = codecs.getincrementaldecoder(name)()

    def put(self, *data: Data) -> None:
        """See `ITestChannel`."""
        if self._ended or self.closed:
            raise EndpointClosedException(f'{self!r} cannot receive any more')
        if self.encoding is not None:
            data = tuple(self._peer_encoder.encode(each)
                         if isinstance(each, str) else each for each in data)
        self._received.append(b''.join(data))

    def put_eof(self) -> None:
        """See `ITestChannel`."""
        self._ended = True

    def get(self) -> Data:
        """See `ITestChannel`."""
        data = b''.join(self._written)
        self._written.clear()
        return data if self.encoding is None else self._peer_decoder.decode(
            data)

    def _read(self) -> bytes:
        data = b''.join(self._received)
        self._received.clear()
        if not data and (self._ended or self.closed):
            raise EndpointClosedException(f'{self!r}: the other side closed')
        return data

    def write(self, *data: Data) -> None:
        if self.closed or self._eof_written:
            raise EndpointClosedException(
                f'{self!r} cannot be written to any more')
        self._written.append(self._encoded(data))

    def write_eof(self) -> None:
        self._eof_written = True

    def close(self) -> None:
        self.closed = True

    def __repr__(self) -> str:
        return f'<TestChannel{": closed" if self.closed else ""}>'


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
