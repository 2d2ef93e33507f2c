"""What a client asks for when it makes a socket or a process.

What may take long is looked up here: the daemon has one thread.
"""

import contextlib
import os
import re
import socket
import sys
from collections.abc import Iterable, Mapping

from gocept.runner.errors import KernelError
from gocept.runner.kernel.client.defaults import DEVNULL, PIPE, STDOUT
from gocept.runner.kernel.wire.frames import Json

Text = str | bytes | os.PathLike[str] | os.PathLike[bytes]
"""What a program can get: text, or bytes of any kind."""

Command = Text | int | Iterable[Text | int]
"""One argument, or several."""

Limit = int | list[int] | tuple[int, int]
"""Both limits, or the soft and the hard one."""

_SIZE = re.compile(r'(\d+)([kmg]?)', re.IGNORECASE | re.ASCII)

_UNITS = {'': 1, 'k': 1 << 10, 'm': 1 << 20, 'g': 1 << 30}

_IS_UTF_8 = sys.getfilesystemencoding() == 'utf-8'

_FAMILIES = {int(number): name[3:].lower()
             for name, number in vars(socket).items()
             if name.startswith('AF_') and number}

_TYPES = {int(number): name[5:].lower()
          for name, number in vars(socket).items()
          if name.startswith('SOCK_')
          and name not in ('SOCK_CLOEXEC', 'SOCK_NONBLOCK')}


def text_of(value: Text | float) -> str:
    """The text on the wire, where each byte that is no UTF-8 is a surrogate.

    TypeError for what is neither text nor a number.
    """
    if isinstance(value, int | float):
        return str(value)
    path = os.fspath(value)
    if isinstance(path, bytes):
        return path.decode('utf-8', 'surrogateescape')
    if _IS_UTF_8:
        return path
    return os.fsencode(path).decode('utf-8', 'surrogateescape')


def checked_name(name: str, noun: str) -> str:
    """Return the name; KernelError if there is none."""
    if not isinstance(name, str):
        raise TypeError(f'the name of a {noun} is text, not {name!r}')
    if not name:
        raise KernelError(f'a {noun} needs a name')
    return name


def socket_parameters(
        name: str, host: str | None, port: int | None,
        family: int | str | None, socket_type: int | str | None,
        backlog: int | None, path: str | os.PathLike[str] | None,
        umask: int | None, interface: str | None, reuseport: bool | None,
        ) -> dict[str, Json]:
    """Of the request ``make-socket``."""
    params: dict[str, Json] = {'name': checked_name(name, 'socket')}
    if family is not None:
        params['family'] = _constant(family, _FAMILIES, 'family', 'AF_INET6')
    if socket_type is not None:
        params['type'] = _constant(
            socket_type, _TYPES, 'socket_type', 'SOCK_STREAM')
    if backlog is not None:
        params['backlog'] = _number(backlog, 'backlog')
    if path:
        path = text_of(path)
        if not path.startswith('/') or path[-1] in '/\\' or '\0' in path:
            raise KernelError('the path of a socket has to be the absolute '
                              f'path of a file, not {path!r}')
        params['path'] = path
        if umask is not None:
            params['umask'] = _number(umask, 'umask')
        return params
    if host is not None:
        params['host'] = host
    if port is not None:
        params['port'] = _number(port, 'port')
    if interface is not None:
        params['interface'] = interface
    if reuseport:
        params['reuseport'] = True
    return params


def _constant(value: int | str, names: Mapping[int, str], keyword: str,
              example: str) -> str:
    """The name of a constant of `socket`, given by its number or name."""
    if isinstance(value, str):
        name = value.lower().removeprefix('af_').removeprefix('sock_')
        if name in names.values():
            return name
    elif value in names:
        return names[value]
    raise KernelError(f'{keyword} has to be a constant such as '
                      f'socket.{example}, not {value!r}')


def _number(value: int | str, keyword: str) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise KernelError(f'{keyword} has to be a number, not {value!r}'
                          ) from None


def process_parameters(
        name: str, executable: Text | None, args: Command | None,
        env: Mapping[str, Text | float] | None,
        working_dir: Text | None, uid: int | str | None,
        gid: int | str | None,
        rlimits: Mapping[str, Limit] | None,
        stdout: int | None, stderr: int | None, bufsize: int | str | None,
        stdin: int | None, overflow: str) -> dict[str, Json]:
    """Of the request ``make-process``."""
    for keyword, mapping in (('env', env), ('rlimits', rlimits)):
        if mapping is not None and not isinstance(mapping, Mapping):
            raise TypeError(f'{keyword} is a dictionary, not {mapping!r}')
    params: dict[str, Json] = {
        'name': checked_name(name, 'process'),
        'args': _command(executable, args),
        'env': dict(_variable(*each) for each in (env or {}).items()),
        'rlimits': dict(_limit(*each) for each in (rlimits or {}).items()),
    }
    if bufsize is not None:
        params['bufsize'] = _size(bufsize)
    if working_dir is not None:
        params['working_dir'] = _text_of_system(working_dir, 'working_dir')
    params |= _streams(stdin, stdout, stderr, params.get('bufsize'))
    if overflow not in ('drop', 'block'):
        raise KernelError("overflow has to be 'drop' or 'block', not "
                          f'{overflow!r}')
    if overflow != 'drop':
        params['overflow'] = overflow
    if uid is not None:
        params['uid'] = _user(uid, gid)
    if gid is not None:
        params['gid'] = _group(gid)
    _touch(params)
    return params


def _command(executable: Text | None, args: Command | None) -> list[str]:
    if args is None:
        words: list[Text | int] = []
    elif isinstance(args, str | bytes | os.PathLike | int):
        words = [args]
    else:
        words = [*args]
    if executable:
        words.insert(0, executable)
    if not words:
        raise KernelError('a process needs an executable, or args that begin '
                          'with one')
    return [_text_of_system(word, 'args') for word in words]


def _text_of_system(value: Text | float, what: str) -> str:
    """Text that a system call takes."""
    text = text_of(value)
    if '\0' in text:
        raise KernelError(f'{what} cannot have a NUL character: {text!r}')
    try:
        text.encode('utf-8', 'surrogateescape')
    except UnicodeEncodeError:
        raise KernelError(f'{what} has a surrogate that stands for no byte: '
                          f'{text!r}') from None
    return text


def _variable(key: Text, value: Text | float) -> tuple[str, str]:
    key = _text_of_system(key, 'env')
    if not key or '=' in key:
        raise KernelError(f'{key!r} cannot be the name of a variable in env')
    return key, _text_of_system(value, f'env[{key!r}]')


def _limit(name: str, value: Limit) -> tuple[str, Json]:
    name = name.lower().removeprefix('rlimit_')
    what = f'rlimits[{name!r}]'
    if isinstance(value, list | tuple):
        if len(value) != 2:
            raise KernelError(f'{what} has to be a number, or a soft and a '
                              f'hard limit, not {value!r}')
        return name, [_number(each, what) for each in value]
    return name, _number(value, what)


def _size(bufsize: int | str) -> int:
    match = _SIZE.fullmatch(str(bufsize))
    if match is None:
        raise KernelError(
            'bufsize has to be a number of bytes, or a number and k, m or g, '
            f'not {bufsize!r}')
    return int(match[1]) * _UNITS[match[2].lower()]


def _streams(stdin: int | None, stdout: int | None, stderr: int | None,
             bufsize: int | None) -> dict[str, str]:
    streams = {}
    if stdin not in (None, DEVNULL):
        if stdin != PIPE:
            raise KernelError(f'stdin has to be PIPE or None, not {stdin!r}')
        streams['stdin'] = 'pipe'
    if bufsize == 0:  # nothing is recorded, whatever the rest says
        return streams | {'stdout': 'null', 'stderr': 'null'}
    if stdout is not None:
        if stdout not in (DEVNULL, PIPE):
            raise KernelError(
                f'stdout has to be DEVNULL or PIPE, not {stdout!r}')
        streams['stdout'] = 'null' if stdout == DEVNULL else 'pipe'
    if stderr is not None:
        if stderr not in (DEVNULL, PIPE, STDOUT):
            raise KernelError('stderr has to be DEVNULL, PIPE or STDOUT, not '
                              f'{stderr!r}')
        streams['stderr'] = {
            DEVNULL: 'null', STDOUT: 'stdout'}.get(stderr, 'pipe')
    return streams


def _user(uid: int | str, gid: int | str | None) -> int:
    """The number of a user whose groups are known."""
    if uid == os.geteuid():
        return int(uid)
    import pwd
    try:
        number = int(uid)
    except ValueError:
        try:
            return pwd.getpwnam(str(uid)).pw_uid
        except (KeyError, ValueError):
            raise KernelError(f'there is no user {uid!r}') from None
    if gid is None:
        try:
            pwd.getpwuid(number)
        except (KeyError, OverflowError):
            raise KernelError(
                f'there is no user {uid!r}, so pass gid, too') from None
    return number


def _group(gid: int | str) -> int:
    try:
        return int(gid)
    except ValueError:
        import grp
        try:
            return grp.getgrnam(str(gid)).gr_gid
        except (KeyError, ValueError):
            raise KernelError(f'there is no group {gid!r}') from None


def _touch(params: Mapping[str, Json]) -> None:
    """Look at the directory and the program.

    If the mount of one hangs, we hang here, and the daemon is not asked.
    Whether they exist does not matter: the process may exist already.
    """
    directory = params.get('working_dir')
    program = params['args'][0]
    paths = [] if directory is None else [directory]
    if '/' in program:
        paths.append(os.path.join(directory or '/', program))
    for path in paths:
        with contextlib.suppress(OSError):
            os.stat(os.fsencode(path) if _IS_UTF_8 else path.encode(
                'utf-8', 'surrogateescape'))
