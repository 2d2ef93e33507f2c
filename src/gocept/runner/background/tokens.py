"""Tokens, and where clients find those that servers have made themselves."""

import os
import re
import stat
import string
from collections.abc import Mapping

from gocept.runner.errors import BackgroundError
from gocept.runner.waits.statehome import state_home

VARIABLE = 'GOCEPT_RUNNER_TOKEN'
"""The environment variable with the token."""

_CHARACTERS = string.ascii_letters + string.digits

TOKEN_FILE = '.token'
"""The ending of a file with a token that a server has made."""

_LONGEST = 65536  # bytes of a token


def token_create(length: int = 64) -> str:
    """A new token: letters and digits at random.

    Whoever sees a handshake without TLS can try short ones out. From 22
    characters on a token is as good as a key of 128 bits.
    """
    if length < 1:
        raise ValueError(f'a token of {length} characters')
    import secrets  # when it is needed: this takes milliseconds
    return ''.join(secrets.choice(_CHARACTERS) for _ in range(length))


def given_token(token: str | None, environ: Mapping[str, str]) -> str | None:
    """`token`, or else what the environment says, or None."""
    name = 'the token'
    if token is None:
        token = environ.get(VARIABLE)
        if not token:
            return None
        name = f'the token in {VARIABLE}'
    if not isinstance(token, str):
        raise TypeError(f'a token is a str, and not {type(token).__name__}')
    if not token:
        raise BackgroundError(
            f'the token is empty: make one with token_create(), or leave it '
            f'out to use {VARIABLE} or the one of a local server')
    try:
        token.encode()
    except UnicodeError:
        raise BackgroundError(
            f'{name} is no text in UTF-8: make one with token_create()'
            ) from None
    return token


def token_in(path: str) -> str:
    """The token in a file; OSError, and BackgroundError if it is no good.

    Members of its group may read the file, as secrets in containers are.
    """
    with open(path, 'rb') as file:
        found = os.fstat(file.fileno())
        if stat.S_ISREG(found.st_mode) and found.st_mode & 0o026:
            raise BackgroundError(
                f'other users may read or write {path}, so it holds no '
                f'secret: make a new token, after "chmod 600 {path}"')
        try:
            token = file.read(_LONGEST).decode().strip()
        except UnicodeError as error:
            raise BackgroundError(
                f'the token in {path} is no text in UTF-8') from error
    if not token:
        raise BackgroundError(f'there is no token in {path}')
    return token


def state_directory() -> str:
    """Where servers of this user keep what their clients need to know.

    BackgroundError if there is no such place.
    """
    try:
        return os.path.join(state_home(), 'servers')
    except ValueError:
        raise BackgroundError(
            'there is no place for tokens, as this user has no home '
            f'directory: set HOME or XDG_STATE_HOME, or give token= or '
            f'{VARIABLE}') from None


def place(host: str, port: int) -> str:
    """What the files of a server there are called, without an ending."""
    return f'{re.sub("[^A-Za-z0-9.:-]", "-", place_host(host))}_{port}'


def place_host(host: str) -> str:
    """The host that is meant: a server at localhost is where clients of
    127.0.0.1 find it, even if the system prefers ::1."""
    host = host.lower()
    return '127.0.0.1' if host == 'localhost' else host


def token_file(host: str, port: int) -> str:
    """Where a server there keeps the token that it has made.

    BackgroundError as for `state_directory`.
    """
    return os.path.join(state_directory(), place(host, port) + TOKEN_FILE)


def find_token(host: str, port: int) -> str | None:
    """The token that a server of this user at that address has made, or None.

    Only this user, or root, can have written the file; and nobody else can
    read it, or it is not used.
    """
    try:
        descriptor = open_kept(token_file(host, port))
    except OSError:  # mostly: there is none
        return None
    try:
        if not is_private(descriptor):
            return None
        token = os.read(descriptor, _LONGEST)
    finally:
        os.close(descriptor)
    return token.decode(errors='replace').strip() or None


def open_kept(path: str) -> int:
    """Open a file of the state directory, to read it.

    OSError if it is a link, as to what somebody else has. A FIFO, of which
    nobody writes the other end, does not block.
    """
    return os.open(path, os.O_RDONLY | getattr(os, 'O_NOFOLLOW', 0)
                   | getattr(os, 'O_NONBLOCK', 0))


def is_private(descriptor: int) -> bool:
    """Whether this is a plain file that only this user, or root, may use."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        return False
    if not hasattr(os, 'geteuid'):  # the home directory is private there
        return True
    return (status.st_uid in (os.geteuid(), 0)
            and not status.st_mode & 0o077)
