"""A temporary zope.conf with a database, and runs with it."""

import contextlib
import logging
import os
import pathlib
import re
import shutil
import sys
import tempfile
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping

import transaction
import zope.component
import zope.interface
from zope.app.appsetup import appsetup, product
from zope.component.hooks import setSite
from zope.component.interfaces import ISite
from zope.configuration.exceptions import ConfigurationError

from gocept.runner.boot import (
    environment,
    environments,
    loggers,
    registrations,
)
from gocept.runner.boot import program as boot
from gocept.runner.boot.attempts import abort
from gocept.runner.boot.messages import message
from gocept.runner.boot.program import Program
from gocept.runner.boot.texts import name_of
from gocept.runner.interfaces import IRunnerConfig, ISupervisor
from gocept.runner.operation.asked import Asked
from gocept.runner.testing.ticks import TIMEOUT, Ticks
from gocept.runner.waits.closing import Closing
from gocept.runner.waits.forks import Lock, OneProcess, tell_forks

_GRACE = 1.0  # seconds, as what outlives a block is to be ended soon

FILE_STORAGE = '''\
<filestorage>
  path $here/Data.fs
</filestorage>'''

_turn = Lock()
"""Held by the thread that has a database open: what ZCML sets up is the same
for all threads."""

_NAME = re.compile(r'[^\s()<>#%$]+')

Setting = str | int | float | os.PathLike[str]

_ZCML = '''\
<configure
    xmlns="http://namespaces.zope.org/zope"
    xmlns:runner="http://namespaces.gocept.com/runner">

  <include package="gocept.runner" file="site.zcml" />
  <include package="gocept.runner" />

  {}

</configure>
'''


@zope.interface.implementer(IRunnerConfig)
class RunnerConfig(Closing):
    """See `IRunnerConfig`."""

    def __init__(self, site: str | None) -> None:
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix='runner-'))
        self.path = str(self.directory / 'zope.conf')
        self._name = site
        self._is_open = False
        self._forgotten = weakref.finalize(self, _forget, self.directory)
        self._process = OneProcess()
        tell_forks(self)

    def close(self) -> None:
        """See `IRunnerConfig`."""
        self._process.check(sys.exception())
        if self._forgotten.detach() is not None:
            _remove(self.directory)

    def after_fork(self) -> None:
        """In a forked child: the directory is that of the parent."""
        self._forgotten.detach()

    def __repr__(self) -> str:
        return f'<RunnerConfig {self.path}>'

    def run(self, program: Program | str, *args: object) -> int:
        """See `IRunnerConfig`."""
        return self.run_ticks(program, *args).status

    def run_ticks(self, program: Program | str, *args: object,
                  ticks: int | None = None,
                  until: Callable[[], object] | None = None,
                  timeout: float = TIMEOUT) -> Ticks:
        """See `IRunnerConfig`."""
        result = Ticks(ticks, until, timeout)

        def find() -> Program:
            found = _declared(program) if isinstance(program, str) else program
            if not hasattr(found, 'decorator'):
                raise TypeError(f'{name_of(found)} is no program: it lacks '
                                '@appmain() or @once()')
            boot.check_arguments(found.worker, args or found.arguments)
            return found

        with self._opening():
            boot.run(find, args, self._name or '/',
                     boot.configuration(self.path),
                     within=result.bounding,
                     asked=Asked(lock=False))  # nobody else has the database
        return result

    @contextlib.contextmanager
    def site(self, principal: str | None = None) -> Iterator[ISite]:
        """See `IRunnerConfig`."""
        with self._opened(self._name, principal) as site:
            yield site

    @contextlib.contextmanager
    def root(self) -> Iterator[ISite]:
        """See `IRunnerConfig`."""
        with self._opened() as root:
            yield root

    @contextlib.contextmanager
    def _opened(self, name: str | None = None,
                principal: str | None = None) -> Iterator[ISite]:
        with self._opening(), contextlib.ExitStack() as stack:
            with boot.configuration(self.path) as options:
                _, site = stack.enter_context(boot.opened(options, name))
            stack.callback(environment.stop_children, _GRACE)
            current = stack.enter_context(environments.current().entered(
                site, lambda: principal, '', lambda found: None))
            stack.callback(abort)  # before the end of the attempt
            current.begin()
            yield current.app
            transaction.commit()

    @contextlib.contextmanager
    def _opening(self) -> Iterator[None]:
        if self._is_open:
            raise RuntimeError(
                f'the database of {self.path} is open already: leave the '
                'block of site() or root() before')
        self._is_open = True
        try:
            with _as_new_process():
                yield
        finally:
            self._is_open = False


def _forget(directory: pathlib.Path) -> None:
    try:
        warnings.warn(f'unclosed runner_config() in {directory}',
                      ResourceWarning, stacklevel=2)
    finally:
        _remove(directory)


def _remove(directory: pathlib.Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(directory)


def _declared(name: str) -> Program:
    """The worker that ZCML declares."""
    supervisor = zope.component.queryUtility(ISupervisor)
    workers = {} if supervisor is None else supervisor.workers
    if name not in workers:
        raise LookupError(f'no worker {name!r} is declared; there are: '
                          f'{", ".join(sorted(workers)) or "none"}')
    found: Program = workers[name]
    return found


@contextlib.contextmanager
def _as_new_process() -> Iterator[None]:
    """Let ZCML be read, and put back what it and zope.conf have set up."""
    if not _turn.acquire(blocking=False):
        raise RuntimeError(
            'another thread has the database of a runner_config() open, and '
            'its components are those of all threads: one thread at a time')
    with contextlib.ExitStack() as undo:
        undo.callback(_turn.release)
        undo.enter_context(environments.nothing_set_up())
        undo.callback(sys.path.__setitem__, slice(None), list(sys.path))
        undo.callback(product.restoreConfiguration,
                      product.saveConfiguration())
        undo.callback(vars(appsetup).update, {
            name: vars(appsetup)[name] for name in (
                '_configured', '__config_source', '__config_context')})
        appsetup.reset()
        registrations.restore_with(undo)
        registrations.forget_unique()
        undo.enter_context(_own_loggers())
        yield


@contextlib.contextmanager
def _own_loggers() -> Iterator[None]:
    """Have a zope.conf install none but its own handlers, and remove these.

    A program without an <eventlog> would log to standard error for ever.
    """
    root = logging.getLogger()
    before = {logger: (list(logger.handlers), logger.level, logger.propagate)
              for logger in loggers.known()}
    fallback = logging.lastResort
    if not root.handlers and fallback is not None:
        root.addHandler(fallback)
    try:
        yield
    finally:
        if fallback is not None:
            root.removeHandler(fallback)
        for logger in loggers.known():
            known, level, propagate = before.get(
                logger, ([], logging.NOTSET, True))
            for handler in list(logger.handlers):
                if handler not in known and handler in loggers.installed:
                    logger.removeHandler(handler)
                    handler.close()
                    logger.setLevel(level)
                    logger.propagate = propagate


def runner_config(site: str | None = None, *,
                  factory: Callable[[], ISite] | None = None,
                  setup: Callable[[ISite], object] | None = None,
                  zcml: str | os.PathLike[str] = '',
                  product_config: Mapping[
                      str, Mapping[str, Setting]] | None = None,
                  storage: str = FILE_STORAGE,
                  more: str = '') -> RunnerConfig:
    """See `IRunnerConfig`."""
    __tracebackhide__ = True  # for pytest
    if factory is not None and site is None:
        raise ValueError('factory makes the object that site names, but '
                         'there is no name')
    try:
        with contextlib.ExitStack() as undo:
            config = undo.enter_context(RunnerConfig(site))
            (config.directory / 'zope.conf').write_text('\n'.join([
                f'site-definition {_site_definition(config.directory, zcml)}',
                *_product_config(product_config or {}),
                '<zodb>', storage, '</zodb>', more, '']), encoding='utf-8')
            # Even if nothing is made, so that a mistake is an error here.
            with _without_news(), config.root() as made:
                if site is not None:
                    if site not in made:
                        made[site] = (factory or _folder)()
                    made = _with_site_manager(made[site])
                    setSite(made)
                if setup is not None:
                    setup(made)
            undo.pop_all()
    except ConfigurationError as error:
        # With zope.configuration's, a traceback would be very long.
        raise ConfigurationError(message(error)) from None
    return config


@contextlib.contextmanager
def _without_news() -> Iterator[None]:
    """Log no warning of a database that is created."""
    log = logging.getLogger('gocept.runner.environment')
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _site_definition(directory: pathlib.Path,
                     zcml: str | os.PathLike[str]) -> str:
    if isinstance(zcml, os.PathLike) or (zcml and '<' not in zcml):
        path = os.path.abspath(zcml)
        if not os.path.isfile(path):
            raise FileNotFoundError(f'there is no ZCML file {path}')
        return path.replace('$', '$$')
    text = zcml.strip()
    is_whole = text.startswith(('<?xml', '<configure'))
    (directory / 'site.zcml').write_text(
        text if is_whole else _ZCML.format(text), encoding='utf-8')
    return '$here/site.zcml'


def _product_config(sections: Mapping[str, Mapping[str, Setting]],
                    ) -> Iterator[str]:
    for section, settings in sections.items():
        where = f'product_config: {section}'
        if not isinstance(settings, Mapping):
            raise TypeError(f'{where}: a dictionary of settings is needed, '
                            f'not {settings!r}')
        for name in section, *settings:
            if not _NAME.fullmatch(name):
                raise ValueError(f'{where}: zope.conf cannot have the name '
                                 f'{name!r}')
        yield f'<product-config {section}>'
        for key, setting in settings.items():
            value = (os.fspath(setting) if isinstance(setting, os.PathLike)
                     else str(setting))
            if '\n' in value or value != value.strip():
                raise ValueError(
                    f'{where}: {key}: zope.conf cannot have a value of '
                    f'several lines, or with spaces around it: {value!r}')
            yield f'  {key} {value.replace("$", "$$")}'
        yield '</product-config>'


def _folder() -> ISite:
    from zope.site.folder import Folder
    return Folder()  # type: ignore[no-any-return]


def _with_site_manager(site: ISite) -> ISite:
    from zope.site.site import LocalSiteManager
    if not ISite.providedBy(site):
        site.setSiteManager(LocalSiteManager(site))
    return site
