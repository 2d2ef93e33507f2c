"""What the ZCML directives do: they register what the classes do."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import zope.component
from zope.configuration.exceptions import ConfigurationError

from gocept.runner import executor as executors
from gocept.runner.interfaces import IExecutor, ISupervisor
from gocept.runner.process.launch import Launch
from gocept.runner.runner import appmain

# After all that is declared, wherever that is.
_CONNECT = 1000


def app(context: Any, name: str, start: str = 'lazy',
        requires: tuple[str, ...] = (), **keywords: Any) -> None:
    """See `IAppDirective`."""
    def add() -> None:
        _supervisor().add_app(name, start == 'eager', requires, **keywords)
    _declare_child(context, name, add)


def executor(context: Any, name: str, start: str = 'lazy',
             requires: tuple[str, ...] = (), **keywords: Any) -> None:
    """See `IExecutorDirective`."""
    def add() -> None:
        supervisor = _supervisor()
        it = _executor(name, keywords['command'], keywords.get('type'), **{
            key: value for key, value in keywords.items()
            if key not in ('command', 'type')})
        supervisor.add_executor(name, it, start == 'eager', requires,
                                description=keywords['command'])
        zope.component.getGlobalSiteManager().registerUtility(
            it, IExecutor, name, info=context.info)
    _declare_child(context, name, add)


def _declare_child(context: Any, name: str,
                   add: Callable[[], object]) -> None:
    added: list[object] = []  # nothing if another declaration overrides it

    def connect() -> None:
        if added:
            _supervisor().connect(name)
    context.action(discriminator=('gocept.runner', 'child', name),
                   callable=lambda: added.append(add()))
    context.action(discriminator=None, order=_CONNECT, callable=connect)


def _supervisor() -> Any:
    supervisor = zope.component.queryUtility(ISupervisor)
    if supervisor is None:
        raise ConfigurationError(
            'nobody could start it: <include package="gocept.runner" /> '
            'belongs before it')
    return supervisor


class _Kind(NamedTuple):
    """A type of executors: how it is made, and attributes of its own."""

    make: Callable[..., Any]
    needs: tuple[str, ...] = ()
    has: tuple[str, ...] = ()


_KINDS = {
    'simple': _Kind(executors.SimpleExecutor),
    'output': _Kind(executors.OutputExecutor, ('banner',), ('failure',)),
    'tcp': _Kind(executors.TCPExecutor, ('host', 'port')),
    'http': _Kind(executors.HTTPExecutor, ('url',), (
        'status', 'method', 'payload', 'headers', 'request_timeout',
        'ssl_context', 'expect')),
    'pid': _Kind(executors.PidExecutor, ('filename',)),
    'unix': _Kind(executors.UnixSocketExecutor, ('socket_name',)),
    'notified': _Kind(lambda command, **keywords: executors.ConditionExecutor(
        command, executors.notified(), **keywords)),
    'probe': _Kind(
        lambda command, probe, **keywords: executors.ConditionExecutor(
            command, executors.exits_zero(probe), **keywords), ('probe',)),
    'condition': _Kind(executors.ConditionExecutor, ('condition',)),
}

_OWN = {name for kind in _KINDS.values() for name in (*kind.needs, *kind.has)}

_IDENTITY = ('user', 'group', 'extra_groups')

_POPEN = (*_IDENTITY, 'umask')
"""What an executor hands to Popen."""


def _executor(name: str, command: str, kind_name: str | None,
              class_: Any = None,
              popen_kwargs: Mapping[str, Any] | None = None,
              **keywords: Any) -> Any:
    popen: dict[str, Any] = {
        each: keywords.pop(each) for each in _POPEN if each in keywords}
    popen |= popen_kwargs or {}
    # That there is no such user is to be known now.
    Launch(command, **{
        each: popen[each] for each in _IDENTITY if each in popen})
    keywords |= {'name': name, 'popen_kwargs': popen}
    if class_ is not None:
        if kind_name is not None:
            raise ConfigurationError('"class" and "type" exclude each other')
        it = class_(command, **keywords)
        if not IExecutor.providedBy(it):
            raise ConfigurationError(f'{it!r} is no executor')
        return it
    kind = _KINDS[kind_name or 'simple']
    what = f'an executor of type "{kind_name or "simple"}"'
    for each in kind.needs:
        if each not in keywords:
            raise ConfigurationError(f'{what} needs "{each}"')
    for each in sorted(_OWN & keywords.keys()):
        if each not in (*kind.needs, *kind.has):
            raise ConfigurationError(f'{what} has no "{each}"')
    return kind.make(command, **keywords)


class Worker(NamedTuple):
    """A worker that ZCML declares."""

    name: str
    decorator: appmain
    worker: Callable[..., object]


_OPTIONS = ('ticks', 'principal', 'attempts', 'max_backoff',
            'shutdown_timeout')


def worker(context: Any, name: str, handler: Any, once: bool | None = None,
           **options: Any) -> None:
    """See `IWorkerDirective`."""
    if not callable(handler):
        raise ConfigurationError(
            f'the handler is no function, but {handler!r}')
    base = getattr(handler, 'decorator', None)
    if isinstance(base, appmain):
        handler = handler.worker
        options = {each: getattr(base, each) for each in _OPTIONS} | options
        once = base.once if once is None else once
    decorator = appmain(**options)
    decorator.once = bool(once)

    def add() -> None:
        _supervisor().workers[name] = Worker(name, decorator, handler)
    context.action(discriminator=('gocept.runner', 'worker', name),
                   callable=add)
