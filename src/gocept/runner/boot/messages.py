"""What the mistake of a user becomes: one line that says where it is."""

import contextlib
import os.path
import re
import traceback
from collections.abc import Callable, Iterator

import ZConfig
import zope.configuration
import zope.schema
from zc.lockfile import LockError
from ZODB.POSException import POSKeyError
from zope.app.appsetup.appsetup import getConfigSource
from zope.authentication.interfaces import (
    IAuthentication,
    PrincipalLookupError,
)
from zope.configuration.exceptions import ConfigurationError
from zope.configuration.xmlconfig import ZopeSAXParseException
from zope.interface.interfaces import ComponentLookupError

from gocept.runner import errors
from gocept.runner.boot.program import Guard
from gocept.runner.boot.zopeconf import BUILT_IN, path_of
from gocept.runner.logs import Log

log = Log('gocept.runner.command')


def guard(make: Callable[[str, int], Exception]) -> Guard:
    """Raise ``make(message, status)`` for the project's own errors, and for
    those that the guard is called with."""
    @contextlib.contextmanager
    def expecting(status: int, *kinds: type[Exception]) -> Iterator[None]:
        expected: tuple[type[Exception], ...] = (errors.RunnerError, *kinds)
        try:
            yield
        except expected as error:
            if isinstance(error, POSKeyError) and KeyError in kinds:
                raise  # of a broken database
            if (isinstance(error, ComponentLookupError)
                    and error.args[:1] != (IAuthentication,)):
                raise  # a bug in a site, say
            log.debug('This ends the program', exc_info=True)
            if isinstance(error, errors.RunnerError):
                status = error.status
            raise make(message(error), status) from error
    return expecting


def message(error: Exception) -> str:
    """One line for an error that ends a program."""
    text = _line(error)
    match error:
        case errors.RunnerError():
            return text
        case LockError():
            return (f'{text}: another process{_owner(text)} has the database '
                    'open; a ZEO server lets several share it')
        case PrincipalLookupError():
            return f'no authentication knows the principal {text}' + (
                ': zope.conf names no site-definition, so there is only '
                'zope.mgr' if getConfigSource() == BUILT_IN else '')
        case ComponentLookupError():
            return ('the principal cannot be looked up, as the ZCML registers '
                    'no authentication (IAuthentication)')
        case ZConfig.ConfigurationError() if getattr(error, 'lineno', None):
            # Zope has a traceback in it.
            what = _line(error.message.partition('\nTraceback (')[0])
            if "expression: '[" in what:
                what += (' (is this a file of a web server? Name the '
                         'zope.conf that it names)')
            return f'{path_of(error.url)}, line {error.lineno}: {what}'
        case ConfigurationError():
            return _of_zcml(error)
        case ZConfig.ConfigurationError() | OSError():
            return f'{text}{_notes(error)}'
    if type(error).__name__ == 'FileStorageFormatError':
        return f'{os.path.abspath(text)} is no database of a <filestorage>'
    return f'{type(error).__name__}: {text}{_notes(error)}'


def _notes(error: BaseException) -> str:
    return ''.join(f' ({_line(each)})'
                   for each in getattr(error, '__notes__', ()))


def _owner(text: str) -> str:
    """The number of the process that holds a lock, if its file tells it."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        path = text.split(" '")[1].removesuffix("'")
        with open(path, encoding='ascii') as file:
            return f' ({int(file.read())})'
    return ''


def _line(value: object) -> str:
    return ' '.join(str(value).split())


_DIRECTIVES = 'app', 'executor', 'kernel', 'server', 'worker'


def _of_zcml(error: ConfigurationError) -> str:
    cause = error.__cause__ or error.__context__
    if isinstance(error, ZopeSAXParseException) and cause is not None:
        hint = (': does <configure> have an xmlns:... for each prefix?'
                if 'unbound prefix' in str(cause) else '')
        return f'{_line(cause)}{hint}'
    # The places in ZCML files follow in lines of their own.
    places = _line(str(error).partition('\n')[2])
    match error.args:
        case ('Unknown directive', namespace, name):
            package = '...'
            if namespace == 'http://namespaces.gocept.com/runner':
                package = 'gocept.runner'
                if name not in _DIRECTIVES:
                    return (f'unknown directive {name!r} of {namespace} '
                            f'{places}: there are {", ".join(_DIRECTIVES)}')
            return (f'unknown directive {name!r} of {namespace} {places}: is '
                    f'<include package="{package}" /> missing before it?')
        case ('Unrecognized parameters:', *names):
            return f'unknown attributes {", ".join(map(repr, names))} {places}'
    text = re.sub(r'[\w.]+\.(ValidationError|Wrong): ', '', _line(error))
    if code := _code_behind(error):
        return f'{text} ({code})'
    if _MISSING.search(text):
        return (f'{text} (is it installed, or does $PYTHONPATH name its '
                'directory?)')
    if found := _PACKAGE.search(text):
        return f'{text} (is the package {".".join(found.groups())} installed?)'
    return text


# Of a name with dots, the first part has been found.
_MISSING = re.compile(r"Couldn't import .* No module named '[^.']+'")
_PACKAGE = re.compile(
    r"Invalid value for 'package' .* Module (\S+) has no global (\S+)$")


_LIBRARIES = tuple(f'{directory}{os.sep}' for directory in (
    *zope.configuration.__path__, *zope.schema.__path__,
    os.path.dirname(os.path.dirname(__file__))))


_STANDARD = os.path.dirname(os.__file__) + os.sep


def _is_standard(filename: str) -> bool:
    """Whether it belongs to Python itself, which has done as it was told."""
    return (filename.startswith(_STANDARD)
            and not filename.startswith(f'{_STANDARD}site-packages{os.sep}'))


def _code_behind(error: BaseException | None) -> str:
    """Module, file and line of what has failed in code that ZCML names."""
    code = ''
    while error is not None:
        found = ''
        for frame, line in traceback.walk_tb(error.__traceback__):
            filename = frame.f_code.co_filename
            if filename.startswith(_LIBRARIES):
                found = ''  # these have called the code, if any follows
            elif not (filename.startswith('<') or _is_standard(filename)):
                name = frame.f_globals.get('__name__')
                found = f'in the module {name}: {filename}, line {line}'
        code = found or code
        error = error.__cause__ or error.__context__
    return code
