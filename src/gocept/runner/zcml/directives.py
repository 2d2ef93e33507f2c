"""What the ZCML directives do: make what they declare, and register it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import zope.component
from zope.configuration.config import ConfigurationContext
from zope.configuration.exceptions import ConfigurationError

from gocept.runner import executor as executors
from gocept.runner.executor import SimpleExecutor
from gocept.runner.interfaces import IExecutor, ISupervisor
from gocept.runner.process import keywords as names
from gocept.runner.process.keywords import Keywords
from gocept.runner.process.launch import Launch
from gocept.runner.runner import appmain
from gocept.runner.zcml.supervisor import Supervisor

_CONNECT = 1000
"""The order of the action that needs all declarations, in whatever file."""

_GROUP = {'setpgrp', 'process_group', 'start_new_session'}


def app(context: ConfigurationContext, name: str, start: str = 'lazy',
        requires: tuple[str, ...] = (), **keywords: Any) -> None:
    """See `IAppDirective`."""
    # Ctrl-C is for the program, which ends the child when it needs it no more.
    # Without a terminal, a child that asks there gets an error; in a mere
    # group, the system would stop that child without a word.
    popen: Keywords = keywords.get('popen_kwargs') or {}
    if not _GROUP & {*keywords, *popen}:
        keywords.setdefault('setsid', True)

    def add() -> None:
        _supervisor().add_app(name, start == 'eager', requires, **keywords)
    _declare_child(context, name, add)


def executor(context: ConfigurationContext, name: str, command: str,
             start: str = 'lazy', requires: tuple[str, ...] = (),
             **keywords: Any) -> None:
    """See `IExecutorDirective`."""
    def add() -> None:
        supervisor = _supervisor()
        it = _executor(name, command, **keywords)
        supervisor.add_executor(
            name, it, start == 'eager', requires, description=command)
        zope.component.getGlobalSiteManager().registerUtility(
            it, IExecutor, name, info=context.info)
    _declare_child(context, name, add)


def _declare_child(context: ConfigurationContext, name: str,
                   add: Callable[[], object]) -> None:
    added: list[object] = []  # empty if another declaration overrides it

    def connect() -> None:
        if added:
            _supervisor().connect(name)
    context.action(discriminator=('gocept.runner', 'child', name),
                   callable=lambda: added.append(add()))
    context.action(discriminator=None, order=_CONNECT, callable=connect)


def _supervisor() -> Supervisor:
    supervisor: Supervisor | None = zope.component.queryUtility(ISupervisor)
    if supervisor is None:
        raise ConfigurationError(
            'the utility that starts children is not registered: put '
            '<include package="gocept.runner" /> before this directive')
    return supervisor


class _Kind(NamedTuple):
    """A type of executors: what makes one, and attributes of its own."""

    make: Callable[..., SimpleExecutor]
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


def _executor(name: str, command: str,
              class_: Callable[..., SimpleExecutor] | None = None,
              popen_kwargs: Keywords | None = None,
              **keywords: Any) -> SimpleExecutor:
    popen = {key: keywords.pop(key) for key in names.POPEN & keywords.keys()}
    # So that a user who does not exist is an error now.
    Launch(command, **popen)
    keywords |= {'name': name, 'popen_kwargs': {
        **popen, **(popen_kwargs or {})}}
    if class_ is not None:
        if 'type' in keywords:
            raise ConfigurationError('"class" and "type" exclude each other')
        it = class_(command, **keywords)
        if not IExecutor.providedBy(it):
            raise ConfigurationError(f'{it!r} is no executor')
        return it
    type_ = keywords.pop('type', 'simple')
    kind, what = _KINDS[type_], f'an executor of type "{type_}"'
    for each in kind.needs:
        if each not in keywords:
            raise ConfigurationError(f'{what} needs "{each}"')
    for each in sorted(_OWN & keywords.keys()):
        if each not in (*kind.needs, *kind.has):
            raise ConfigurationError(f'{what} has no "{each}"')
    return kind.make(command, **keywords)


_OPTIONS = ('ticks', 'principal', 'attempts', 'max_backoff',
            'shutdown_timeout')


def worker(context: ConfigurationContext, name: str, handler: Any,
           once: bool | None = None, **options: Any) -> None:
    """See `IWorkerDirective`."""
    if not callable(handler):
        raise ConfigurationError(
            f'the handler is not callable: {handler!r}')
    base = getattr(handler, 'decorator', None)
    if isinstance(base, appmain):
        handler = handler.worker
        options = {each: getattr(base, each) for each in _OPTIONS} | options
        once = base.once if once is None else once
    decorator = appmain(**options)
    decorator.once = bool(once)
    program = decorator(handler)
    program.name = name

    def add() -> None:
        _supervisor().workers[name] = program
    context.action(discriminator=('gocept.runner', 'worker', name),
                   callable=add)
