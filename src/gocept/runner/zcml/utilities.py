"""The poller and the runner that ``configure.zcml`` registers."""

import contextlib
import functools
import os
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import zope.component
import zope.interface

from gocept.runner.channel import Channel
from gocept.runner.executor.base import SimpleExecutor
from gocept.runner.interfaces import IPoller, IRunner
from gocept.runner.poller import Poller
from gocept.runner.process.base import BaseProcess
from gocept.runner.spawn import Runner
from gocept.runner.spawn.instance import Instance
from gocept.runner.waits.closing import Closing

Parameters = ParamSpec('Parameters')
Result = TypeVar('Result')


def _forwarded(method: Callable[Concatenate[Poller, Parameters], Result],
               ) -> Callable[Concatenate['WorkerPoller', Parameters], Result]:
    @functools.wraps(method)
    def forward(self: 'WorkerPoller', /, *args: Parameters.args,
                **options: Parameters.kwargs) -> Result:
        return method(self._opened.get('poller') or self._poller,
                      *args, **options)
    return forward


@zope.interface.implementer(IPoller)
class WorkerPoller(Closing):
    """A poller that is opened at its first use, and anew after `close`.

    So nothing is open where ZCML is read but no worker runs. There is no lock,
    as signal handlers may call `wakeup`.
    """

    closed = False

    def __init__(self) -> None:
        self._opened: dict[str, Poller] = {}

    @property
    def _poller(self) -> Poller:
        poller = self._opened.get('poller')
        if poller is None:
            new = Poller()
            poller = self._opened.setdefault('poller', new)
            if poller is not new:  # another thread was faster
                new.close()
        return poller

    @property
    def wakeup_fd(self) -> int:
        """See `IPoller`."""
        return self._poller.wakeup_fd

    register = _forwarded(Poller.register)
    unregister = _forwarded(Poller.unregister)
    send_for = _forwarded(Poller.send_for)
    add_server = _forwarded(Poller.add_server)
    poll = _forwarded(Poller.poll)
    pause = _forwarded(Poller.pause)
    wakeup = _forwarded(Poller.wakeup)
    interrupt = _forwarded(Poller.interrupt)
    close_all = _forwarded(Poller.close_all)

    def close(self) -> None:
        """Close the poller, and what is registered with it."""
        poller = self._opened.pop('poller', None)
        if poller is not None:
            with poller:
                poller.close_all()


class Alias:
    """An alias of a runner, as something that is started and stopped.

    See `gocept.runner.executor.groups.Startable`.
    """

    def __init__(self, runner: Runner, name: str) -> None:
        self.name = name
        self.requires: tuple[AliasOrExecutor, ...] = ()
        self._runner = runner

    @property
    def child(self) -> BaseProcess | None:
        """The process; None before its first start."""
        if self.name not in self._runner.aliases():
            return None
        return self._runner.get_process(self.name)

    def is_up(self) -> bool:
        """See `IRunner.running`."""
        return self._runner.running(self.name)

    def start(self) -> None:
        """See `IRunner.ensure_running`."""
        self._runner.ensure_running(self.name)

    ensure_running = start

    def stop(self) -> None:
        """See `IRunner.terminate`."""
        self._runner.terminate(self.name)

    def kill(self) -> None:
        """End the child at once, and the wait for its start with it."""
        child = self.child
        if child is not None and child.in_kernel:
            self._runner.give_up(self.name)
        elif child is not None:
            self._runner.terminate(self.name, timeout=0)


AliasOrExecutor = Alias | SimpleExecutor
"""What ZCML can declare."""


@zope.interface.implementer(IRunner)
class WorkerRunner(Runner):
    """Starts an application that is declared when it is first used."""

    def __init__(self) -> None:
        super().__init__()
        self._declared: dict[str, Alias] = {}
        with contextlib.suppress(FileNotFoundError):
            # A worker may change it.
            self._home = os.getcwd()

    def declare(self, name: str, **keywords: Any) -> Alias:
        """Add an application; `Alias.requires` is started before it."""
        self.add(name, **keywords)
        self._complete(name, keywords)
        return self._declared.setdefault(name, Alias(self, name))

    def _prepare(self, app_name: str) -> None:
        app = self._declared.get(app_name)
        for each in () if app is None else app.requires:
            each.ensure_running()

    def _used(self, alias: str) -> Instance | None:
        instance = self._instances.get(alias)
        if alias in self._declared:
            if instance is None or instance.ready is None:
                self.ensure_running(alias)
        else:
            self._check_name(alias)
        return super()._used(alias)

    def _check_name(self, alias: str) -> None:
        if alias not in self._configs and alias not in self._instances:
            names = sorted({*self._configs, *self.aliases()})
            raise KeyError(
                f'nothing is declared or was started as {alias!r}; there are: '
                f'{", ".join(names) or "none"}')

    def _known(self, alias: str) -> Instance:
        self._check_name(alias)
        return super()._known(alias)

    def get_channel(self, alias: str, stream: str | None = None,
                    ) -> Channel | None:
        """See `IRunner`. ValueError if there will never be such a channel."""
        channel = super().get_channel(alias, stream)
        if channel is None and stream == 'stderr' and alias in self._declared:
            process = self.get_process(alias)
            if process is not None and process.stderr is None:
                raise ValueError(
                    f'app {alias!r} has no channel of its standard error; '
                    'declare it with stderr="pipe"')
        return channel

    def running(self, alias: str) -> bool:
        """See `IRunner`. KeyError for an unknown alias."""
        self._check_name(alias)
        return super().running(alias)

    def state(self, alias: str) -> str:
        """See `IRunner`. What was not started yet is 'ended'."""
        if alias in self._declared:
            return self._instance(alias).state
        return super().state(alias)

    def _restarted(self) -> None:
        # The worker may have been told that there is no channel.
        poller = zope.component.queryUtility(IPoller)
        if poller is not None:
            poller.wakeup()

    _given_up = _restarted

    def close(self) -> None:
        """See `IRunner`. An application may be started again afterwards."""
        super().close()
        self.forget()

    def forget(self) -> None:
        """Close the channels of all, but do not wait for any end."""
        instances, self._instances = self._instances, {}
        for instance in instances.values():
            instance.close_channels(instance.give_up())
