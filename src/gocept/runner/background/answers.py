"""What the answer of a server means for the caller."""

import json
import sys

from gocept.runner.background.frames import (
    BY_VALUE,
    ERROR,
    FAILURE,
    RECEIPT,
    REPORT,
    Message,
    Piece,
)
from gocept.runner.background.values import decode
from gocept.runner.errors import (
    BackgroundError,
    NoResponse,
    NotDecoded,
    NotInitialized,
    ProtocolError,
    RemoteTaskError,
    ServerBusy,
    ServerNotRunning,
    ServerRefused,
    VersionMismatch,
)


class Ending(ServerNotRunning):
    """Raised when the server says that it is about to end."""


_ERRORS: dict[str, type[BackgroundError]] = {
    'no_response': NoResponse,
    'not_initialized': NotInitialized,
    'busy': ServerBusy,
    'not_decoded': NotDecoded,
    'version': VersionMismatch,
    'ending': Ending,
    'not_allowed': ServerRefused,
}
"""What is raised for each error of a server; else a BackgroundError."""

_LONGEST = 1000  # characters of a value in a message

_OF_TASKS = ('task', 'not_dict')


def value_of(message: Message, receipt: object, python: tuple[int, int],
             place: object) -> object:
    """What a call returns for this answer; or the error is raised.

    `receipt` is returned for a mere receipt; `python` is the server's version.
    """
    if message.kind == RECEIPT:
        return receipt
    if message.kind == REPORT:
        return _json(message.pieces, place)
    if message.kind == FAILURE:
        raise _error(message, place)
    if message.flags & BY_VALUE:
        require_python(python, place)
    value = decode(message.pieces)
    if message.flags & ERROR:
        raise RemoteTaskError(
            f'the task in the server at {place} has responded with an error: '
            f'{_shown(value)}', response=value)
    return value


def _shown(value: object) -> str:
    """The value as text, as far as that is short, or can be had at all."""
    try:
        text = repr(value)
    except Exception:
        return f'a {type(value).__name__} that has no text'
    return text if len(text) <= _LONGEST else f'{text[:_LONGEST]}...'


def require_python(python: tuple[int, int], place: object) -> None:
    """VersionMismatch if the server's minor version is another one."""
    ours = sys.version_info[:2]
    if python != ours:
        raise VersionMismatch(
            'code by value needs the same minor version of Python: the server '
            f'at {place} has {python[0]}.{python[1]}, and this is '
            f'{ours[0]}.{ours[1]}; put the code into a module that both can '
            'import')


def _error(message: Message, place: object) -> BackgroundError:
    said = _json(message.pieces, place)
    kind, text, name, traceback = (
        str(said.get(key, ''))
        for key in ('error', 'message', 'type', 'traceback'))
    if kind in _OF_TASKS:
        return RemoteTaskError(text, type=name, traceback=traceback)
    return _ERRORS.get(kind, BackgroundError)(
        f'the server at {place}: {text}' if text else
        f'the server at {place} has refused the request: {kind}')


def _json(pieces: list[Piece], place: object) -> dict[str, object]:
    try:
        found = json.loads(b''.join(pieces))
    except ValueError as error:
        raise ProtocolError(f'the server at {place} has sent what is no '
                            f'report: {error}') from error
    if not isinstance(found, dict):
        raise ProtocolError(f'the server at {place} has sent a report of '
                            f'another form')
    return found
