"""Named applications, started under aliases.

A runner may be used by several threads. What happens without being asked for,
such as a restart, happens in the thread that polls its poller: yours, if you
have passed one, or else that of `gocept.runner.poller.background`.
"""

import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import zope.interface

from gocept.runner.channel import Channel
from gocept.runner.errors import ProcessExistsException, StartError
from gocept.runner.interfaces import IRunner
from gocept.runner.poller import Poller
from gocept.runner.process import Process, terminate_all
from gocept.runner.spawn.application import Application
from gocept.runner.spawn.instance import Instance
from gocept.runner.waits.closing import Closing
from gocept.runner.waits.forks import tell_forks

__all__ = ['ProcessExistsException', 'Runner', 'StartError']


@zope.interface.implementer(IRunner)
class Runner(Closing):
    """See `IRunner`."""

    def __init__(self, extra_paths: Sequence[str | os.PathLike[str]] = (),
                 *, poller: Poller | None = None) -> None:
        if isinstance(extra_paths, str | bytes):
            raise TypeError(
                f'extra_paths is a list of directories, not {extra_paths!r}')
        self._extra_paths = tuple(
            os.fspath(path) for path in extra_paths)
        self._poller = poller
        self._lock = threading.RLock()  # as a signal handler may close it
        tell_forks(self)
        self._configs: dict[str, dict[str, Any]] = {}
        self._instances: dict[str, Instance] = {}

    def after_fork(self) -> None:
        """In a forked child: another thread may have had the lock."""
        self._lock = threading.RLock()

    def add(self, name: str, command: str | Sequence[str],
            **kwargs: Any) -> None:
        """See `IRunner`."""
        self.update_config({name: {'command': command, **kwargs}})

    def update_config(self, config: Mapping[str, Mapping[str, Any]]) -> None:
        """See `IRunner`."""
        for name, keywords in config.items():
            _checked(name, keywords)
        self._configs |= {name: dict(keywords)
                          for name, keywords in config.items()}

    def start(self, app_name: str, alias: str | None = None,
              with_args: Sequence[str] | None = None, **kwargs: Any) -> None:
        """See `IRunner`."""
        application = self._application(app_name, with_args, kwargs)
        self._instance(alias or app_name).start(application)

    def ensure_running(self, app_name: str, alias: str | None = None,
                       with_args: Sequence[str] | None = None,
                       **kwargs: Any) -> None:
        """See `IRunner`."""
        application = self._application(app_name, with_args, kwargs)
        self._instance(alias or app_name).ensure_running(application)

    def _application(self, name: str, with_args: Sequence[str] | None,
                     kwargs: Mapping[str, Any]) -> Application:
        if name not in self._configs:
            raise KeyError(f'there is no application {name!r}, but '
                           f'{", ".join(sorted(self._configs)) or "none"}')
        application = _checked(name, {**self._configs[name], **kwargs})
        if with_args is not None:
            application = application.with_arguments(with_args)
        return application

    def _instance(self, alias: str) -> Instance:
        with self._lock:
            if alias not in self._instances:
                self._instances[alias] = Instance(
                    alias, self._poller, self._extra_paths, self._restarted)
            return self._instances[alias]

    def _restarted(self) -> None:
        """One of them was started anew; for who wants to know."""

    def _known(self, alias: str) -> Instance:
        aliases = self.aliases()
        if alias not in aliases:
            raise KeyError(f'nothing was started as {alias!r}, but '
                           f'{", ".join(aliases) or "nothing at all"}')
        return self._instances[alias]

    def get_channel(self, alias: str, stream: str | None = None,
                    ) -> Channel | None:
        """See `IRunner`."""
        if stream not in (None, 'stdout', 'stderr'):
            raise ValueError(
                f"stream must be None, 'stdout' or 'stderr', not {stream!r}")
        instance = self._instances.get(alias)
        return None if instance is None else instance.get_channel(stream)

    def get_process(self, alias: str) -> Process | None:
        """See `IRunner`."""
        return self._known(alias).process

    def running(self, alias: str) -> bool:
        """See `IRunner`."""
        instance = self._instances.get(alias)
        return instance is not None and instance.running

    def status(self, alias: str) -> int | None:
        """See `IRunner`."""
        return self._known(alias).status

    def aliases(self) -> list[str]:
        """See `IRunner`."""
        with self._lock:
            return sorted(
                alias for alias, instance in self._instances.items()
                if instance.process is not None)

    def give_up(self, alias: str) -> None:
        """See `IRunner`."""
        self._known(alias).give_up()

    def terminate(self, alias: str, signum: int | None = None,
                  timeout: float | None = None) -> None:
        """See `IRunner`."""
        instance = self._known(alias)
        process = instance.give_up()
        try:
            if process is not None:
                process.terminate(signum, timeout)
        finally:
            instance.close_channels(process)

    def close(self) -> None:
        """See `IRunner`."""
        with self._lock:
            instances = list(self._instances.values())
        processes = [instance.give_up() for instance in instances]
        try:
            terminate_all(process for process in processes
                          if process is not None and process.is_ours)
        finally:
            for instance, process in zip(instances, processes, strict=True):
                instance.close_channels(process)


def _checked(name: str, config: Mapping[str, Any]) -> Application:
    try:
        return Application.from_config(config)
    except TypeError as error:
        raise TypeError(f'application {name!r}: {error}') from error
    except ValueError as error:
        raise ValueError(f'application {name!r}: {error}') from error
    except LookupError as error:
        raise LookupError(f'application {name!r}: {error}') from error
