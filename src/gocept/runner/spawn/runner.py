"""Named applications, started under aliases.

Several threads may use a runner. What nobody asks for, such as a restart, is
done by the thread that polls the runner's poller: your own, if you have passed
one, or the background thread.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import zope.interface

from gocept.runner.channel import Channel
from gocept.runner.errors import ProcessExistsException
from gocept.runner.events import PATIENCE
from gocept.runner.interfaces import IRunner
from gocept.runner.poller import Poller
from gocept.runner.process import terminate_all
from gocept.runner.process.base import BaseProcess, Kernel, checked_kernel
from gocept.runner.process.keywords import Keywords
from gocept.runner.spawn.application import Application
from gocept.runner.spawn.instance import Instance
from gocept.runner.waits.closing import Closing
from gocept.runner.waits.deadline import Deadline


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """Say in errors which application they are about."""
    try:
        yield
    except (TypeError, ValueError, LookupError) as error:
        kind = next(kind for kind in (TypeError, ValueError, LookupError)
                    if isinstance(error, kind))
        raise kind(f'application {name!r}: {error}') from error


@zope.interface.implementer(IRunner)
class Runner(Closing):
    """See `IRunner`."""

    _home: str | None = None
    """Where relative paths start; None for our directory at each start."""

    def __init__(self,
                 extra_paths: Sequence[str | os.PathLike[str]] | None = None,
                 *, poller: Poller | None = None,
                 kernel: Kernel | None = None, instance: str = '') -> None:
        if isinstance(extra_paths, str | bytes):
            raise TypeError(
                f'extra_paths is a list of directories, not {extra_paths!r}')
        self._extra_paths = tuple(os.fspath(path)
                                  for path in extra_paths or ())
        self._poller = poller
        self._kernel = checked_kernel(kernel)
        self._instance_name = instance
        self._configs: dict[str, Keywords] = {}
        self._instances: dict[str, Instance] = {}

    def add(self, name: str, command: str | Sequence[str],
            **kwargs: Any) -> None:
        """See `IRunner`."""
        self.update_config({name: {'command': command, **kwargs}})

    def update_config(self, config: Mapping[str, Keywords]) -> None:
        """See `IRunner`."""
        for name, keywords in config.items():
            self._checked(name, keywords)
        self._configs |= {name: dict(keywords)
                          for name, keywords in config.items()}

    def start(self, app_name: str, alias: str | None = None,
              with_args: Sequence[str] | None = None, **kwargs: Any) -> None:
        """See `IRunner`."""
        application = self._application(app_name, with_args, kwargs)
        instance = self._instance(alias or app_name)
        if not instance.ensure_running(application):
            raise ProcessExistsException(
                f'{instance.alias!r} runs already: {instance.process!r}')

    def ensure_running(self, app_name: str, alias: str | None = None,
                       with_args: Sequence[str] | None = None,
                       **kwargs: Any) -> None:
        """See `IRunner`."""
        application = self._application(app_name, with_args, kwargs)
        self._instance(alias or app_name).ensure_running(application)

    def _application(self, name: str, with_args: Sequence[str] | None,
                     kwargs: Keywords) -> Application:
        if name not in self._configs:
            raise KeyError(f'there is no application {name!r}; there are: '
                           f'{", ".join(sorted(self._configs)) or "none"}')
        application = self._complete(name, {**self._configs[name], **kwargs})
        if with_args is not None:
            application = application.with_arguments(with_args)
        self._prepare(name)
        return application

    def _checked(self, name: str, config: Keywords) -> Application:
        if self._kernel is not None and isinstance(config, Mapping):
            config = {'kernel': self._kernel, **config}
        with _naming(name):
            return self.application_of(config)

    def _complete(self, name: str, config: Keywords) -> Application:
        """Like `_checked`, but it can be started."""
        application = self._checked(name, config)
        with _naming(name):
            application.check_socket()
        return application

    def application_of(self, config: Keywords) -> Application:
        """What such keywords mean; `gocept.runner.testing` has its own."""
        return Application.from_config(config)

    def _prepare(self, app_name: str) -> None:
        """Called before an application is started; for subclasses."""

    def _instance(self, alias: str) -> Instance:
        # Without a lock: of two that two threads make, the first one stays.
        return self._instances.get(alias) or self._instances.setdefault(
            alias, Instance(
                alias, self._poller, self._extra_paths, self._restarted,
                self._given_up, self._home, self._key(alias)))

    def _key(self, alias: str) -> str:
        """What a kernel calls it."""
        return (f'{self._instance_name}.{alias}' if self._instance_name
                else alias)

    def _restarted(self) -> None:
        """Called when a process was restarted; for subclasses."""

    def _given_up(self) -> None:
        """Called when there will be no restart, so no channel either."""
        if self._poller is not None:
            self._poller.wakeup()

    def _find(self, alias: str) -> None:
        """Take in what lives in the kernel, but was not started here."""
        application = self._checked(alias, self._configs[alias])
        kernel = application.kernel
        if kernel is not None and kernel.has_process(self._key(alias)):
            self._instance(alias).ensure_running(
                self._complete(alias, self._configs[alias]))

    def _abandon_ended(self, alias: str) -> bool:
        """Let a kernel forget what has ended there, if nothing runs.

        Whether there was something. What was started here is another thing.
        """
        if alias not in self._configs or alias in self.aliases():
            return False
        application = self._checked(alias, self._configs[alias])
        key = self._key(alias)
        if application.kernel is None or application.kernel.has_process(key):
            return False
        ended = application.ended(alias, key, self._extra_paths)
        for process in ended:
            process.abandon_channels()
            process.let_go()
        return bool(ended)

    def _known(self, alias: str) -> Instance:
        aliases = self.aliases()
        if alias in self._configs and alias not in aliases:
            self._find(alias)
            aliases = self.aliases()
        if alias not in aliases:
            raise KeyError(f'nothing was started as {alias!r}; started were: '
                           f'{", ".join(aliases) or "none"}')
        return self._instances[alias]

    def get_channel(self, alias: str, stream: str | None = None,
                    ) -> Channel | None:
        """See `IRunner`."""
        if stream not in (None, 'stdout', 'stderr'):
            raise ValueError(
                f"stream must be None, 'stdout' or 'stderr', not {stream!r}")
        instance = self._used(alias)
        return None if instance is None else instance.get_channel(stream)

    def _used(self, alias: str) -> Instance | None:
        """Who is asked for a channel; for subclasses."""
        return self._instances.get(alias)

    def get_process(self, alias: str) -> BaseProcess | None:
        """See `IRunner`."""
        return self._known(alias).process

    def running(self, alias: str) -> bool:
        """See `IRunner`."""
        instance = self._instances.get(alias)
        return instance is not None and instance.running

    def status(self, alias: str) -> int | None:
        """See `IRunner`."""
        return self._known(alias).status

    def state(self, alias: str) -> str:
        """See `IRunner`."""
        return self._known(alias).state

    def aliases(self) -> list[str]:
        """See `IRunner`."""
        return sorted(
            alias for alias, instance in list(self._instances.items())
            if instance.process is not None)

    def give_up(self, alias: str) -> None:
        """See `IRunner`."""
        self._known(alias).give_up()

    def terminate(self, alias: str, signum: int | None = None,
                  timeout: float | None = None) -> None:
        """See `IRunner`."""
        if self._abandon_ended(alias):
            return
        instance = self._known(alias)
        process = instance.give_up()
        try:
            if process is not None:
                process.terminate(signum, timeout)
                instance.settle()
        finally:
            instance.abandon_channels(process)

    def close(self) -> None:
        """See `IRunner`."""
        instances = list(self._instances.values())
        processes = [instance.give_up() for instance in instances]
        try:
            terminate_all(process for process in processes
                          if process is not None and process.is_ours
                          and not process.in_kernel)
            deadline = Deadline(PATIENCE)
            for instance, process in zip(instances, processes, strict=True):
                if process is not None and process.is_ours:
                    instance.settle(deadline.left())
        finally:
            for instance, process in zip(instances, processes, strict=True):
                instance.close_channels(process)
