"""What ZCML declares: started before a worker, ended after it."""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import zope.component
import zope.interface

from gocept.runner.boot.program import Program
from gocept.runner.errors import CannotStart, Terminated
from gocept.runner.executor.base import SimpleExecutor
from gocept.runner.executor.groups import start_all, stop_all
from gocept.runner.executor.requirements import in_levels
from gocept.runner.interfaces import (
    IClient,
    IKernel,
    IPoller,
    IRunner,
    ISupervisor,
    IWorkerClient,
)
from gocept.runner.logs import Log
from gocept.runner.process.base import Kernel
from gocept.runner.signals import Shutdown
from gocept.runner.signals.handlers import restore_defaults
from gocept.runner.signals.shutdown import requesting
from gocept.runner.spawn import Runner
from gocept.runner.waits.deadline import Deadline
from gocept.runner.waits.forks import Lock
from gocept.runner.zcml.kernels import DeclaredKernel
from gocept.runner.zcml.utilities import (
    Alias,
    AliasOrExecutor,
    WorkerPoller,
    WorkerRunner,
)

if TYPE_CHECKING:
    from gocept.runner.zcml.servers import DeclaredServer, Detached

log = Log('gocept.runner.supervisor')

Child: TypeAlias = 'AliasOrExecutor | Detached'
"""What is started."""


def _start(eager: bool) -> str:
    return 'eager' if eager else 'lazy'


class Declaration(NamedTuple):
    """An app, an executor or a server in ZCML."""

    kind: str
    name: str
    it: Child
    """It knows what it requires."""
    start: str
    """'eager', 'lazy' or 'detached'."""
    description: str
    kernel: Kernel | None = None
    """The one that it lives in."""

    @property
    def eager(self) -> bool:
        """Whether it is started before the first tick."""
        return self.start == 'eager'

    @property
    def requires(self) -> tuple[str, ...]:
        """The names of the children that are started before."""
        return tuple(each.name for each in self.it.requires)

    def __str__(self) -> str:
        return f'{self.kind} {self.name!r}'


@zope.interface.implementer(ISupervisor)
class Supervisor:
    """See `ISupervisor`."""

    def __init__(self) -> None:
        self.children: dict[str, Declaration] = {}
        self.workers: dict[str, Program] = {}
        self._required: dict[str, Sequence[str]] = {}  # until `connect`
        # Nobody waits for a child with its lock.
        self._changing = threading.Condition(Lock())
        self._users = 0
        self._stopper: threading.Thread | None = None

    @property
    def kernels(self) -> dict[str, DeclaredKernel]:
        """See `ISupervisor`."""
        return {name: kernel for name, kernel
                in zope.component.getUtilitiesFor(IKernel)
                if isinstance(kernel, DeclaredKernel)}

    def add_app(self, name: str, eager: bool = False,
                requires: Sequence[str] = (), **keywords: Any) -> None:
        """See `ISupervisor`."""
        runner: WorkerRunner = zope.component.getUtility(IRunner)
        self._add(Declaration(
            'app', name, runner.declare(name, **keywords), _start(eager),
            str(keywords['command']), keywords.get('kernel')), requires)

    def add_executor(self, name: str, executor: SimpleExecutor,
                     eager: bool = False, requires: Sequence[str] = (),
                     description: str = '') -> None:
        """See `ISupervisor`."""
        self._add(Declaration(
            'executor', name, executor, _start(eager),
            description or executor.command,
            executor.kernel), requires)

    def add_server(self, name: str, server: 'DeclaredServer', start: str,
                   requires: Sequence[str] = ()) -> None:
        """See `ISupervisor`."""
        self._add(Declaration(
            'server', name, server.child, start, server.description),
            requires)

    def _add(self, child: Declaration, requires: Sequence[str]) -> None:
        self.children[child.name] = child
        self._required[child.name] = requires

    def connect(self, name: str) -> None:
        """See `ISupervisor`."""
        child, requires = self.children[name], self._required.pop(name)
        for each in requires:
            if each not in self.children:
                raise ValueError(
                    f'{child} requires {each!r}, which is no app, executor or '
                    'server; there are: '
                    + ', '.join(sorted(self.children)))
        child.it.requires = tuple(self.children[each].it for each in requires)
        in_levels([child.it], self._name)

    def _name(self, it: Child) -> str:
        return next((str(child) for child in self.children.values()
                     if child.it is it), str(it))

    @contextlib.contextmanager
    def running(self, shutdown_timeout: float) -> Iterator[None]:
        """See `ISupervisor`."""
        with Shutdown() as shutdown, requesting(shutdown):
            with self._changing:
                # In a forked child the thread that stops is not alive.
                self._changing.wait_for(lambda: not (
                    self._stopper is not None and self._stopper.is_alive()))
                self._users += 1
            try:
                self._start(shutdown)
                yield
            finally:
                known = shutdown.signum
                if known is not None:
                    # The loop inside has put back our handlers, but the next
                    # signal is to end the process.
                    restore_defaults()
                self._leave(shutdown_timeout)
            if known is None and shutdown.signum is not None:
                raise Terminated(shutdown.signum)

    def _leave(self, timeout: float) -> None:
        with self._changing:
            self._users -= 1
            if self._users:
                return
            self._stopper = threading.current_thread()
        try:
            self.stop(timeout)
        finally:
            with self._changing:
                self._stopper = None
                self._changing.notify_all()

    def _start(self, shutdown: Shutdown) -> None:
        def start(it: Child) -> None:
            try:
                it.ensure_running()
            except Exception as error:
                name = self._name(it)
                reason = getattr(error, 'strerror', None) or ''
                raise CannotStart(reason if reason.startswith(name)
                                  else f'{name}: {error}') from error
        try:
            # Those that are up by then are left to our `stop`, which knows
            # the order, and prevents restarts.
            eager = [
                child.it for child in self.children.values() if child.eager]
            start_all(eager, shutdown=shutdown, start=start,
                      stop=lambda started: None)
            for each in eager:  # another thread may be starting it
                start(each)
        except ExceptionGroup as group:
            raise CannotStart('; '.join(map(str, group.exceptions))
                              ) from group

    def stop(self, timeout: float) -> None:
        """See `ISupervisor`."""
        deadline = Deadline(timeout)
        runner = zope.component.queryUtility(IRunner)
        for alias in () if runner is None else runner.aliases():
            runner.give_up(alias)
        levels = self._levels(runner)
        try:
            while levels:
                # So that none takes the time of those that end after it.
                share = deadline.left() / len(levels)
                try:
                    stop_all(levels.pop(), share)
                except* Exception as group:
                    for each in group.exceptions:
                        log.warning('%s', each)
        finally:
            poller = zope.component.queryUtility(IPoller)
            with contextlib.ExitStack() as close:
                for kernel in self.kernels.values():
                    close.callback(kernel.close)
                if isinstance(poller, WorkerPoller):
                    close.callback(poller.close)
                if isinstance(runner, WorkerRunner):
                    close.callback(runner.forget)
                elif isinstance(runner, Runner):
                    close.callback(runner.close)
                for child in self.children.values():
                    if isinstance(child.it, SimpleExecutor):
                        close.callback(child.it.leave)
                for _, client in zope.component.getUtilitiesFor(IClient):
                    if IWorkerClient.providedBy(client):
                        close.callback(client.close)

    def _levels(self, runner: Runner | None) -> list[list[Child]]:
        """What runs; each list is ended before the ones that precede it."""
        levels = in_levels(
            child.it for child in self.children.values()) or [[]]
        if runner is not None:
            # No child that is declared depends on another alias.
            apps = {child.name for child in self.children.values()
                    if child.kind == 'app'}
            levels[-1] += [Alias(runner, alias) for alias in runner.aliases()
                           if alias not in apps]
        running = ([it for it in level
                    if it.child is not None and it.child.is_ours
                    and not it.child.in_kernel] for level in levels)
        return [level for level in running if level]
