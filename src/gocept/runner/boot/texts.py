"""Values, errors and functions as words of a log line."""

import functools
from collections.abc import Callable

from gocept.runner.errors import RemoteTaskError


def text(value: object, convert: Callable[[object], str] = str) -> str:
    """`value` for a log line, even if its own conversion fails."""
    try:
        return convert(value)
    except Exception as error:
        return f'<{type(value).__name__}, unprintable: {type(error).__name__}>'


def described(error: BaseException) -> str:
    """The type of an error and its message, for a log line.

    The traceback of a server is left out: a log has it with that of the error.
    """
    message = (error.summary if isinstance(error, RemoteTaskError)
               else text(error))
    return type(error).__name__ + (f': {message}' if message else '')


def name_of(function: Callable[..., object]) -> str:
    """The name of a function, for a log line."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, '__name__', None) or type(function).__name__
