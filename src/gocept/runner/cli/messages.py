"""What the mistake of a user becomes: one line that says where it is."""

import contextlib
import os.path
import re
import traceback

import ZConfig
import zope.configuration
import zope.schema
from zc.lockfile import LockError
from zope.authentication.interfaces import PrincipalLookupError
from zope.configuration.exceptions import ConfigurationError
from zope.configuration.xmlconfig import ZopeSAXParseException
from zope.interface.interfaces import ComponentLookupError

from gocept.runner import errors
from gocept.runner.boot.zopeconf import path_of


def message(error: Exception) -> str:
    """One line for an error that ends a program."""
    text = _line(error)
    match error:
        case LockError():
            return (f'{text}: another process{_owner(text)} has the database '
                    'open; a ZEO server lets several share it')
        case PrincipalLookupError():
            return f'no authentication knows the principal {text}'
        case ComponentLookupError():
            return ('the principal cannot be looked up, as the ZCML registers '
                    'no authentication (IAuthentication)')
        case errors.RunnerError():
            return text
        case ZConfig.ConfigurationError() if getattr(error, 'lineno', None):
            return (f'{path_of(error.url)}, line {error.lineno}: '
                    f'{error.message}')
        case ConfigurationError():
            return _of_zcml(error)
        case ZConfig.ConfigurationError() | OSError():
            return text
    if type(error).__name__ == 'FileStorageFormatError':
        return f'{os.path.abspath(text)} is no database of a <filestorage>'
    return f'{type(error).__name__}: {text}'


def _owner(text: str) -> str:
    """The number of the process that holds a lock, if its file tells it."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        path = text.split(" '")[1].removesuffix("'")
        with open(path, encoding='ascii') as file:
            return f' ({int(file.read())})'
    return ''


def _line(value: object) -> str:
    return ' '.join(str(value).split())


_DIRECTIVES = 'app', 'executor', 'worker'


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
    if "Couldn't import" in text:
        return f'{text} (does a "path" in zope.conf name its directory?)'
    return text


_LIBRARIES = tuple(f'{directory}{os.sep}' for directory in (
    *zope.configuration.__path__, *zope.schema.__path__,
    os.path.dirname(os.path.dirname(__file__))))


def _code_behind(error: BaseException | None) -> str:
    """Module, file and line of what has failed in code that ZCML names."""
    code = ''
    while error is not None:
        found = ''
        for frame, line in traceback.walk_tb(error.__traceback__):
            filename = frame.f_code.co_filename
            if filename.startswith(_LIBRARIES):
                found = ''  # these have called the code, if any follows
            elif not filename.startswith('<'):
                name = frame.f_globals.get('__name__')
                found = f'in the module {name}: {filename}, line {line}'
        code = found or code
        error = error.__cause__ or error.__context__
    return code
