"""Which kind of application a zope.conf belongs to: the Zope Toolkit, or Zope.

The two are told apart by the words of the file, without an import of either.
`current` is what the rest of the house asks about sites, principals and
product configuration.
"""

import contextlib
import os.path
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple, Protocol

from gocept.runner.errors import ConfigurationError, UsageError

if TYPE_CHECKING:
    from zope.component.interfaces import ISite
    from zope.interface.interfaces import IComponents

ConfigFile = str | os.PathLike[str]

GROUP = 'gocept.runner.environments'
"""The entry points that name further kinds; see `IEnvironment`."""


class Settings(NamedTuple):
    """What was said about an application, beside its zope.conf."""

    application: str | None = None
    """The name of its kind; None: the zope.conf tells it."""

    server_url: str | None = None
    """Where its users see it: what URLs in a worker begin with."""

    log_config: str | None = None
    """The path of a file for `logging.config.fileConfig`."""

    log_format: str | None = None
    """'json', or else lines are as zope.conf, or that file, says."""


NOTHING_SAID = Settings()


class Options(Protocol):
    """What every kind of application finds in a zope.conf."""

    configfile: str
    """The path of the file, as it was given."""

    site_definition: str
    """The path of the ZCML file that configures the components."""

    built_in: bool
    """Whether this is a file of ours, as zope.conf names none."""


class CurrentSite(Protocol):
    """See `ICurrentSite`."""

    app: 'ISite'
    components: 'IComponents'
    path: str | None

    def begin(self) -> None: ...

    def begin_item(self) -> None: ...

    def end(self) -> None: ...


class Environment(Protocol):
    """See `IEnvironment`."""

    name: str

    def load(self, configfile: ConfigFile) -> Options: ...

    def configured(self, options: Options, *, verbose: int = 0,
                   logs: bool = True) -> AbstractContextManager[None]: ...

    def opened(self, options: Options, *, create: bool = True,
               opening: Callable[[], AbstractContextManager[object]] = ...,
               ) -> AbstractContextManager['ISite']: ...

    def find_site(self, root: 'ISite', path: str | None) -> 'ISite': ...

    def find_principal(self, principal: object) -> object: ...

    def entered(self, app: 'ISite', principal: Callable[[], object],
                name: str, replaced: Callable[['ISite'], object],
                ) -> AbstractContextManager[CurrentSite]: ...

    def product_configuration(self, section: str,
                              ) -> Mapping[str, str] | None: ...


class Factory(Protocol):
    """What makes an environment; see `IEnvironment`."""

    @property
    def words(self) -> Set[str]:
        """Names of keys and section types, in lower case."""

    def __call__(self, settings: Settings) -> Environment: ...


class BuiltIn(NamedTuple):
    """A factory that is imported when it is called."""

    module: str
    factory: str
    text: str

    @property
    def words(self) -> Set[str]:
        """See `IEnvironment`."""
        return frozenset(self.text.split())

    def __call__(self, settings: Settings) -> Environment:
        """See `IEnvironment`."""
        factory: Factory = getattr(import_module(self.module), self.factory)
        return factory(settings)


TOOLKIT = 'toolkit'

BUILT_IN: Mapping[str, Factory] = {
    TOOLKIT: BuiltIn('gocept.runner.boot.toolkit', 'Toolkit', '''
        accesslog devmode eventlog ftp-server http-server
        interrupt-check-interval logger path port-base product-config server
        site-definition ssl-server sslserver thread-count threads zodb
        zserver-threads
        '''),
    'zope': BuiltIn('gocept.runner.boot.zope.environment', 'ZopeEnvironment',
                    '''
        automatically-quote-dtml-request-data clienthome datetime-format
        debug-exceptions debug-mode default-zpublisher-encoding dos_protection
        enable-ms-public-header enable-xmlrpc environment http-realm
        instancehome locale max-conflict-retries pid-filename product-config
        python-check-interval security-policy-implementation
        skip-authentication-checking skip-ownership-checking trusted-proxy
        verbose-security webdav-source-port zmi-bookmarkable-urls zodb zodb_db
        '''),
}
"""The kinds of this package, with all words at the top of their files."""


def choose(configfile: ConfigFile, settings: Settings = NOTHING_SAID,
           ) -> Environment:
    """Return what boots the application of this zope.conf.

    UsageError if the settings do not fit the kind of application.
    ConfigurationError if the file has words of two kinds, or if what the kind
    needs is not installed.
    """
    name = settings.application or _recognised(configfile)
    factory = BUILT_IN.get(name) or further().get(name)
    if factory is None:
        raise UsageError(
            f'there is no kind of application {name!r}; there are: '
            f'{", ".join(sorted([*BUILT_IN, *further()]))}')
    try:
        return factory(settings)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f'{configfile} is that of an application of the kind {name}, '
            f'which needs a package that is not installed: {error}'
        ) from error


def further() -> Mapping[str, Factory]:
    """The kinds that other packages have registered."""
    # It takes longer than all else here, so it is not done for most files.
    from importlib.metadata import entry_points
    return {each.name: each.load() for each in entry_points(group=GROUP)}


def _recognised(configfile: ConfigFile) -> str:
    """The name of the kind whose words the file has."""
    found = list(words_of(configfile))
    words = {name: kind.words for name, kind in BUILT_IN.items()}
    if not set(found) <= set().union(*words.values()):
        words |= {name: kind.words for name, kind in further().items()}
    telling: dict[str, str] = {}
    for word in found:
        names = [name for name, known in words.items() if word in known]
        if len(names) == 1:
            telling.setdefault(names[0], word)
    if len(telling) > 1:
        raise ConfigurationError(
            f'{configfile} has words of several kinds of applications: '
            + ', '.join(f'{word!r} ({name})' for name, word
                        in telling.items())
            + '; say with --application NAME, or with application= in '
            'Python, which it is')
    return next(iter(telling), TOOLKIT)


def words_of(configfile: ConfigFile) -> Iterator[str]:
    """The keys and section types at the top of a zope.conf, in lower case.

    Those of included files are among them. Where a file cannot be read, the
    words end; whoever loads the file tells the reason.
    """
    with contextlib.suppress(OSError, ValueError, RecursionError):
        yield from _words(os.path.abspath(configfile), {}, ())


def _words(path: str, names: dict[str, str], outer: Sequence[str],
           ) -> Iterator[str]:
    if path in outer:
        return
    depth = 0  # of sections
    with open(path, encoding='utf-8') as file:
        for line in map(str.strip, file):
            word, rest = [*line.split(None, 1), '', ''][:2]
            if line.startswith('</'):
                depth -= 1
            elif line.startswith('<'):
                if not depth:
                    yield word.strip('</>').lower()
                depth += not line.endswith('/>')
            elif word == '%define':
                name, *value = rest.split(None, 1)
                names[name.lower()] = _substituted(
                    ''.join(value), names, path)
            elif depth or line[:1] in ('', '#'):
                continue
            elif word == '%include':
                yield from _words(
                    os.path.join(os.path.dirname(path), _substituted(
                        rest, names, path).removeprefix('file://')),
                    names, (*outer, path))
            elif not line.startswith('%'):
                yield word.lower()


def _substituted(text: str, names: Mapping[str, str], path: str) -> str:
    if '$' not in text:
        return text
    from ZConfig import ConfigurationError
    from ZConfig.substitution import substitute
    try:
        substituted: str = substitute(
            text, {'here': os.path.dirname(path), **names})
    except ConfigurationError as error:
        raise ValueError(error) from error
    return substituted


class _Process:
    """What has set up this process."""

    environment: Environment | None = None


def current() -> Environment:
    """What has set up this process; that of the Toolkit where nothing has."""
    return _Process.environment or BUILT_IN[TOOLKIT](NOTHING_SAID)


@contextlib.contextmanager
def setting_up(environment: Environment) -> Iterator[None]:
    """Make it the current one; after an error, put the one before back.

    ConfigurationError if another kind has set up this process.
    """
    before = _Process.environment
    if before is not None and before.name != environment.name:
        raise ConfigurationError(
            f'this process was set up for an application of the kind '
            f'{before.name}, so it cannot be for one of the kind '
            f'{environment.name}: run the other worker in a process of its '
            'own')
    _Process.environment = environment
    try:
        yield
    except BaseException:
        _Process.environment = before
        raise


@contextlib.contextmanager
def nothing_set_up() -> Iterator[None]:
    """Have the block find a process that nothing has set up."""
    before, _Process.environment = _Process.environment, None
    try:
        yield
    finally:
        _Process.environment = before
