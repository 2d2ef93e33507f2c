"""What the ZCML directives do: make what they declare, and register it."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import zope.component
import zope.schema
from zope.configuration.config import ConfigurationContext
from zope.configuration.exceptions import ConfigurationError

from gocept.runner import executor as executors
from gocept.runner.boot.program import check_arguments
from gocept.runner.executor import SimpleExecutor
from gocept.runner.interfaces import (
    IClient,
    IExecutor,
    IKernel,
    IServer,
    ISupervisor,
)
from gocept.runner.process import keywords as names
from gocept.runner.process.keywords import Keywords
from gocept.runner.process.launch import Launch
from gocept.runner.runner import appmain
from gocept.runner.zcml import fields
from gocept.runner.zcml.kernels import DeclaredKernel
from gocept.runner.zcml.supervisor import Supervisor

_KERNELS = -1000
"""The order of the actions that others need, in whatever file."""

_CONNECT = 1000
"""The order of the action that needs all declarations, in whatever file."""

_GROUP = {'setpgrp', 'process_group', 'start_new_session'}


def kernel(context: ConfigurationContext, name: str = '',
           path: str | None = None, port: int | None = None,
           instance: str = '') -> None:
    """See `IKernelDirective`."""
    if path is not None and port is not None:
        raise ConfigurationError('a kernel has a path or a port, not both')

    declared = DeclaredKernel(path or port, instance)
    context.action(
        discriminator=('gocept.runner', 'kernel', name), order=_KERNELS,
        callable=zope.component.getGlobalSiteManager().registerUtility,
        args=(declared, IKernel, name, context.info))


def _with_kernel(keywords: dict[str, Any]) -> dict[str, Any]:
    """The keywords, with the kernel itself in the place of its name."""
    name = keywords.get('kernel')
    if name is None:
        return keywords
    kernels = dict(zope.component.getUtilitiesFor(IKernel))
    if name not in kernels:
        raise ConfigurationError(
            f'there is no kernel {name!r}; there are: '
            + (', '.join(map(repr, sorted(kernels))) or 'none')
            + ': declare it with <runner:kernel />')
    return {**keywords, 'kernel': kernels[name]}


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
        _supervisor().add_app(
            name, start == 'eager', requires, **_with_kernel(keywords))
    _declare_child(context, name, add)


def executor(context: ConfigurationContext, name: str, command: str,
             start: str = 'lazy', requires: tuple[str, ...] = (),
             **keywords: Any) -> None:
    """See `IExecutorDirective`."""
    if 'expect' in keywords:
        keywords['expect'] = _expected(context, keywords)

    def add() -> None:
        supervisor = _supervisor()
        it = _executor(name, command, **_with_kernel(keywords))
        supervisor.add_executor(
            name, it, start == 'eager', requires, description=command)
        zope.component.getGlobalSiteManager().registerUtility(
            it, IExecutor, name, info=context.info)
    _declare_child(context, name, add)


def _expected(context: ConfigurationContext, keywords: Keywords) -> object:
    """What "expect" means to an executor of such a type or class."""
    kind = keywords.get('class_') or _KINDS[
        keywords.get('type', 'simple')].make
    bases = kind.__mro__ if isinstance(kind, type) else ()
    if executors.HTTPExecutor not in bases and (
            executors.TCPExecutor in bases
            or executors.UnixSocketExecutor in bases):
        field: zope.schema.Field = fields.Pattern()
    elif executors.HTTPExecutor in bases or 'class_' in keywords:
        field = fields.Object()
    else:
        return keywords['expect']  # such a type has none
    try:
        return field.bind(context).fromUnicode(keywords['expect'])
    except zope.schema.ValidationError as error:
        raise ConfigurationError(
            "Invalid value for 'expect'").add_details(error) from None


_OF_CLIENT = ('transactional', 'redeliveries', 'retry', 'timeout',
              'heartbeat')

_TASKS = 'init', 'exec', 'exit'

_TLS = 'tls_cert', 'tls_key', 'tls_ca'


def server(context: ConfigurationContext, name: str, start: str = 'eager',
           requires: tuple[str, ...] = (), **options: Any) -> None:
    """See `IServerDirective`."""
    if start != 'eager' and 'stop_timeout' in options:
        raise ConfigurationError(
            'a detached server has no "stop_timeout", as it goes on')

    def add() -> None:
        # Imported here, as most applications declare none.
        from gocept.runner.zcml.servers import DeclaredServer, EagerServer
        it = (EagerServer if start == 'eager' else DeclaredServer)(
            name, [options.get(each) for each in _TASKS],
            **_of_server(options))
        _supervisor().add_server(name, it, start, requires)
        site = zope.component.getGlobalSiteManager()
        site.registerUtility(it, IServer, name, info=context.info)
        site.registerUtility(it.client, IClient, name, info=context.info)
    _declare_child(context, name, add)


def _of_server(options: Keywords) -> dict[str, Any]:
    """The options of a server, with what its files say."""
    from gocept.runner.background.tls import TLS
    from gocept.runner.background.tokens import token_in
    client = {each: options[each] for each in _OF_CLIENT if each in options}
    server = {each: value for each, value in options.items()
              if each not in (*_OF_CLIENT, *_TASKS, *_TLS, 'token_file')}
    if 'max_message' in server:
        client['max_message'] = server['max_message']
    files = [options[each] for each in _TLS if each in options]
    if files and len(files) < len(_TLS):
        raise ConfigurationError(f'TLS needs {", ".join(_TLS)}')
    if files:
        server['tls'] = TLS(*files)
    if 'token_file' in options:
        server['token'] = token_in(options['token_file'])
    return {**server, 'client': client}


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
    'tcp': _Kind(executors.TCPExecutor, ('host', 'port'), (
        'send', 'expect')),
    'http': _Kind(executors.HTTPExecutor, ('url',), (
        'status', 'method', 'payload', 'headers', 'request_timeout',
        'ssl_context', 'expect')),
    'pid': _Kind(executors.PidExecutor, ('filename',)),
    'unix': _Kind(executors.UnixSocketExecutor, ('socket_name',), (
        'send', 'expect')),
    'postgresql': _Kind(
        # The attribute "user" is that of the process.
        lambda command, dbuser='postgres', **keywords: (
            executors.PostgreSQLExecutor(command, user=dbuser, **keywords)),
        ('host',), ('port', 'dbname', 'dbuser')),
    'redis': _Kind(executors.RedisExecutor, ('host',), ('port', 'password')),
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


_OF_SCHEDULE = 'schedule', 'timezone', 'jitter', 'missed'

_OPTIONS = ('ticks', 'principal', 'attempts', 'max_backoff',
            'shutdown_timeout', 'watch', 'watch_interval', *_OF_SCHEDULE,
            'tick_timeout', 'tick_timeout_action', 'lock')


def worker(context: ConfigurationContext, name: str, handler: Any,
           once: bool | None = None, site: str | None = None,
           arguments: Sequence[str] = (), **options: Any) -> None:
    """See `IWorkerDirective`."""
    if not callable(handler):
        raise ConfigurationError(
            f'the handler is not callable: {handler!r}')
    watch = options.get('watch')
    if not (watch is None or callable(watch)):
        raise ConfigurationError(f'"watch" is not callable: {watch!r}')
    base = getattr(handler, 'decorator', None)
    if isinstance(base, appmain):
        handler = handler.worker
        once = base.once if once is None else once
        options = _inherited(base, options) | options
    decorator = checked = appmain(**options)
    if isinstance(base, appmain):
        # It may be of a subclass, with attributes of its own.
        decorator = copy.copy(base)
        vars(decorator).update(vars(checked))
    decorator.once = bool(once)
    program = appmain.__call__(decorator, handler)
    program.name, program.site, program.arguments = name, site, arguments
    if arguments:
        try:
            check_arguments(handler, arguments)
        except TypeError as error:
            raise ConfigurationError(
                f'the arguments do not fit the handler: {error}') from None

    def add() -> None:
        _supervisor().workers[name] = program
    context.action(discriminator=('gocept.runner', 'worker', name),
                   callable=add)


def _inherited(base: appmain, options: Keywords) -> dict[str, Any]:
    """What a decorator says, but for times in place of which ZCML has others.
    """
    names = {*_OPTIONS}
    if 'ticks' in options:
        names -= {*_OF_SCHEDULE}
    elif 'schedule' in options or base.schedule is not None:
        names -= {'ticks'}
    return {name: getattr(base, name) for name in names}
