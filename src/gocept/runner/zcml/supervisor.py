"""What ZCML declares, and its life: started before a worker, ended after it.

The utilities that ``configure.zcml`` registers are made here.
"""

import contextlib
import logging
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import zope.component
import zope.interface

from gocept.runner.channel import Channel
from gocept.runner.errors import CannotStart, Terminated
from gocept.runner.executor.base import SimpleExecutor
from gocept.runner.executor.groups import in_order, start_all, stop_all
from gocept.runner.interfaces import IPoller, IRunner, ISupervisor
from gocept.runner.poller import Poller
from gocept.runner.process import Process
from gocept.runner.signals import Shutdown
from gocept.runner.signals.shutdown import requesting, restore_defaults
from gocept.runner.spawn import Runner
from gocept.runner.waits.closing import Closing
from gocept.runner.waits.deadline import Deadline
from gocept.runner.waits.forks import tell_forks

log = logging.getLogger('gocept.runner.supervisor')


@zope.interface.implementer(IPoller)
class WorkerPoller(Closing):
    """A poller that is made at its first use, and anew after `close`.

    So nothing is open where ZCML is read but no worker runs.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # as a signal handler may wake it
        self._poller: Poller | None = None
        tell_forks(self)

    def after_fork(self) -> None:
        """In a forked child: another thread may have had the lock."""
        self._lock = threading.RLock()

    def __getattr__(self, name: str) -> Any:
        if name.startswith('_'):
            raise AttributeError(name)
        with self._lock:
            if self._poller is None:
                self._poller = Poller()
            return getattr(self._poller, name)

    def close(self) -> None:
        """Close it, and what is registered."""
        with self._lock:
            poller, self._poller = self._poller, None
        if poller is not None:
            with poller:
                poller.close_all()


@zope.interface.implementer(IRunner)
class WorkerRunner(Runner):
    """Starts an application that is declared when it is first used."""

    def __init__(self) -> None:
        super().__init__()
        self._requiring = threading.RLock()
        self._declared: dict[str, DeclaredApp] = {}
        self._started: set[str] = set()  # aliases, which may have ended since

    def after_fork(self) -> None:
        """In a forked child: another thread may have had the locks."""
        super().after_fork()
        self._requiring = threading.RLock()

    def declare(self, app: 'DeclaredApp') -> None:
        """Know what it requires."""
        self._declared[app.name] = app

    def start(self, app_name: str, alias: str | None = None, *args: Any,
              **kwargs: Any) -> None:
        """See `IRunner`."""
        self._ensure_required(app_name)
        super().start(app_name, alias, *args, **kwargs)
        self._started.add(alias or app_name)

    def ensure_running(self, app_name: str, alias: str | None = None,
                       *args: Any, **kwargs: Any) -> None:
        """See `IRunner`."""
        self._ensure_required(app_name)
        super().ensure_running(app_name, alias, *args, **kwargs)
        self._started.add(alias or app_name)

    def _ensure_required(self, app_name: str) -> None:
        app = self._declared.get(app_name)
        if app is None:
            return
        with self._requiring:  # what others are starting is not ready yet
            for each in app.requires:
                each.ensure_running()

    def get_channel(self, alias: str, stream: str | None = None,
                    ) -> Channel | None:
        """See `IRunner`."""
        if alias in self._declared and alias not in self._started:
            self.ensure_running(alias)
        return super().get_channel(alias, stream)

    def _restarted(self) -> None:
        # The worker may have been told that there is no channel.
        poller = zope.component.queryUtility(IPoller)
        if poller is not None:
            poller.wakeup()

    def close(self) -> None:
        """See `IRunner`; what is started after it is started anew."""
        super().close()
        self.forget()

    def forget(self) -> None:
        """Close the channels of all, when it was tried to end them."""
        with self._lock:
            instances, self._instances = self._instances, {}
            self._started.clear()
        for instance in instances.values():
            instance.close_channels(instance.give_up())


class Child:
    """An alias of a runner, as something to be started and stopped."""

    def __init__(self, runner: Any, name: str) -> None:
        self.name = name
        self.requires: tuple[Any, ...] = ()
        self._runner = runner

    @property
    def process(self) -> Process | None:
        """See `IRunner.get_process`."""
        if self.name not in self._runner.aliases():
            return None
        process: Process | None = self._runner.get_process(self.name)
        return process

    def is_up(self) -> bool:
        """See `IRunner.running`."""
        running: bool = self._runner.running(self.name)
        return running

    def stop(self) -> None:
        """See `IRunner.terminate`."""
        self._runner.terminate(self.name)

    def kill(self) -> None:
        """End it at once, and what waits for it."""
        if self.process is not None:
            self._runner.terminate(self.name, timeout=0)


class DeclaredApp(Child):
    """One that can be started, as it is declared."""

    def start(self) -> None:
        """See `IRunner.ensure_running`."""
        self._runner.ensure_running(self.name)

    ensure_running = start


class Declared:
    """A child that ZCML declares.

    `it` is the application or executor, `requires` the names of others.
    """

    def __init__(self, kind: str, name: str, it: Any, eager: bool,
                 requires: Sequence[str], description: str) -> None:
        self.kind = kind
        self.name = name
        self.it = it
        self.eager = eager
        self.required_names = tuple(requires)
        self.description = description
        self.requires: tuple[Declared, ...] = ()

    @property
    def process(self) -> Process | None:
        """That of the child."""
        process: Process | None = self.it.process
        return process

    def is_up(self) -> bool:
        """Whether it runs."""
        up: bool = self.it.is_up()
        return up

    def start(self) -> None:
        """Start it; CannotStart says which one has failed."""
        try:
            self.it.start()
        except Exception as error:
            raise CannotStart(f'{self}: {error}') from error

    def stop(self) -> None:
        """End it."""
        self.it.stop()

    def kill(self) -> None:
        """End it at once."""
        self.it.kill()

    @property
    def depth(self) -> int:
        """How many others have to be started before it, one after another."""
        return max((1 + each.depth for each in self.requires), default=0)

    def __str__(self) -> str:
        return f'{self.kind} {self.name!r}'


@zope.interface.implementer(ISupervisor)
class Supervisor:
    """See `ISupervisor`."""

    def __init__(self) -> None:
        self.children: dict[str, Declared] = {}
        self.workers: dict[str, Any] = {}
        self._lock = threading.RLock()  # held by who starts or stops all
        self._users = 0
        tell_forks(self)

    def after_fork(self) -> None:
        """In a forked child: another thread may have had the lock."""
        self._lock = threading.RLock()

    def add_app(self, name: str, eager: bool = False,
                requires: Sequence[str] = (), **keywords: Any) -> None:
        """See `ISupervisor`."""
        runner = zope.component.getUtility(IRunner)
        runner.add(name, **keywords)
        app = DeclaredApp(runner, name)
        runner.declare(app)
        self.children[name] = Declared(
            'app', name, app, eager, requires, str(keywords['command']))

    def add_executor(self, name: str, executor: SimpleExecutor,
                     eager: bool = False, requires: Sequence[str] = (),
                     description: str = '') -> None:
        """See `ISupervisor`."""
        self.children[name] = Declared(
            'executor', name, executor, eager, requires,
            description or executor.command)

    def connect(self, name: str) -> None:
        """See `ISupervisor`."""
        child = self.children[name]
        for each in child.required_names:
            if each not in self.children:
                raise ValueError(
                    f'{child} requires {each!r}, which is neither an app nor '
                    'an executor; there are '
                    + ', '.join(sorted(self.children)))
        child.requires = tuple(
            self.children[each] for each in child.required_names)
        child.it.requires = tuple(each.it for each in child.requires)
        in_order([child])

    @contextlib.contextmanager
    def running(self, shutdown_timeout: float) -> Iterator[None]:
        """See `ISupervisor`."""
        with Shutdown() as shutdown, requesting(shutdown):
            with self._lock:
                self._users += 1
            try:
                with self._lock:
                    self._start(shutdown)
                yield
            finally:
                known = shutdown.signum
                if known is not None:
                    # Others have put back the handlers that awaited it.
                    restore_defaults()
                with self._lock:
                    self._users -= 1
                    if not self._users:
                        self.stop(shutdown_timeout)
            if known is None and shutdown.signum is not None:
                raise Terminated(shutdown.signum)

    def _start(self, shutdown: Shutdown) -> None:
        eager = [each for each in self.children.values() if each.eager]
        try:
            # Those that are up by then are stopped by `stop`, which knows the
            # order, and that none is to be restarted meanwhile.
            start_all(eager, shutdown=shutdown, stop=lambda started: None)
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
                # So that nobody takes the time of those it is to outlive.
                share = deadline.left() / len(levels)
                try:
                    stop_all(levels.pop(), share)
                except ExceptionGroup as group:
                    for each in group.exceptions:
                        log.warning('%s', each)
                except Exception as error:
                    log.warning('%s', error)
        finally:
            poller = zope.component.queryUtility(IPoller)
            with contextlib.ExitStack() as close:
                if isinstance(poller, WorkerPoller):
                    close.callback(poller.close)
                if isinstance(runner, WorkerRunner):
                    close.callback(runner.forget)
                elif isinstance(runner, Runner):
                    close.callback(runner.close)

    def _levels(self, runner: Any) -> list[list[Any]]:
        """What runs; each list is to be ended before the ones before it."""
        running = [each for each in self.children.values()
                   if each.process is not None and each.process.is_ours]
        by_depth: dict[int, list[Any]] = {}
        for each in running:
            by_depth.setdefault(each.depth, []).append(each.it)
        levels = [by_depth[depth] for depth in sorted(by_depth)]
        # Other aliases: nothing that is declared depends on them.
        apps = {each.name for each in running if each.kind == 'app'}
        others = [Child(runner, alias) for alias in (
            () if runner is None else runner.aliases())
            if alias not in apps and runner.get_process(alias).is_ours]
        if others:
            levels = levels or [[]]
            levels[-1] += others
        return levels
