"""The protocol that a person types and that clients of papa 1.0 speak.

A line is a command. A word may be as short as its first letter, and a space
within a word has a backslash before it. The answer ends with a prompt. In what
is shown of names, arguments and values, a line break is a space: the protocol
has no way to carry it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from gocept.runner.errors import KernelError
from gocept.runner.kernel.wire.frames import Json, OutRecord
from gocept.runner.kernel.wire.limits import parse_size

PROMPT = '> '

GREETING = b'Papa is home. Type "help" for commands.\n> '
"""Clients wait for its prompt."""

MORE = b'] '
"""Ends a batch of output: the client acknowledges it by a line."""

FIRST_BATCH = 1024
"""How many bytes the first batch of a watch has at least.

papa's client reads the answer to "watch" by pieces of 1024 bytes. If the whole
first batch came in the same piece, the client would keep the batch, and wait
until there is more to read. But the kernel would wait for the acknowledgement.
"""

UNKNOWN_STATUS = 127
"""Is shown where nobody knows with which status a process has ended."""

_SOCKET_KEYS = ('family', 'type', 'backlog', 'path', 'umask', 'host', 'port',
                'interface', 'reuseport', 'fileno')

_PROCESS_KEYS = ('pid', 'running', 'started', 'uid', 'gid', 'shell', 'args')

_HIDDEN_IF_FALSE = ('uid', 'gid', 'reuseport', 'shell')

_NUMBERS = ('backlog', 'umask', 'port')

_OVERVIEW = """\
Commands:
    list sockets            show sockets
    make socket             make a socket, which processes can use
    remove sockets          close sockets
    list processes          show processes
    make process            start a process
    watch processes         receive the output of processes
    remove processes        throw the output of processes away
    list values             show values
    set                     set a value, or clear it
    get                     show one value
    remove values           clear values
    exit-if-idle            end the kernel if it keeps nothing
    quit                    close this connection
    help                    "help make process" explains "make process"

The first letters of a word are enough: "l p" lists processes, "h m s" helps
to make a socket. Only exit-if-idle has to be written out. A name may end with
* for all names that begin so. A backslash before a space makes the space a
part of the word.

This kernel serves the user that it runs as, root, and the users that it was
started for by --allow-user, who may run anything as the user of the kernel.
"""

_LIST = """\
List sockets, processes or values: all of them, or those that are named. A
name may end with * for all names that begin so. Processes can be named by
their pid as well, sockets by their file number.

    list sockets
    list processes web.* 3698
    l v web.*
"""

_LIST_SOCKETS = """\
List sockets, by name or file number.

    list sockets
    list sockets web.* 10
"""

_LIST_PROCESSES = """\
List processes, by name or pid. One that has ended stays in the list until its
end was acknowledged by a watcher, or until it is removed.

    list processes
    list processes web.* 3698
"""

_LIST_VALUES = """\
List values by name.

    list values
    list values web.*
"""

_MAKE = """\
Make a socket or a process: see "help make socket" and "help make process".
"""

_MAKE_SOCKET = """\
Make a socket: its name, then options.

    family=     unix, inet or inet6. The default is unix where there is a
                path, and inet elsewhere.
    type=       stream, dgram, seqpacket, raw or rdm. The default is stream.
    backlog=    how many clients may wait to be accepted. The default is 5.

Of a Unix socket:
    path=       its absolute path
    umask=      the umask, a decimal number, with which its file is made

Of other sockets:
    host=       the default is 127.0.0.1, and 0.0.0.0 with an interface
    port=       without it, the system chooses one
    interface=  the name of the only interface it is bound to
    reuseport=1 each process gets a socket of its own on the same port

A process finds the socket by $(socket.NAME.fileno) or $(socket.NAME.port) in
its arguments.

    make socket web port=8080
    make socket web.admin path=/run/web/admin.sock
"""

_MAKE_PROCESS = """\
Start a process: its name, then options, then the program and its arguments.

    uid=            the user, by name or number
    gid=            the group, by name or number
    working_dir=    an absolute path
    env.NAME=       a variable of its environment, which is empty otherwise
    rlimit.NAME=    a limit, such as rlimit.nofile=1024
    bufsize=        bytes of output to keep, with k, m or g. The default is 1m.
    stdout=0        throw the output away
    stderr=0        throw the error output away
    stderr=stdout   have one stream for both
    watch=1         start with a watch: see "help watch processes"

    make process web uid=web bufsize=4m /srv/web/bin/serve --fd 27
    m p clock env.TZ=UTC /bin/date
"""

_REMOVE = """\
Remove sockets, processes or values. A name may end with * for all names that
begin so. Processes can be named by their pid as well, sockets by their file
number.

    remove sockets web.*
    r p 3698
    rem val web.count
"""

_REMOVE_SOCKETS = """\
Close sockets, by name or file number. Processes that have one keep it.

    remove sockets web.* 10
"""

_REMOVE_PROCESSES = """\
Remove processes from the list, by name or pid. Their output is thrown away.
They run on, and are in the list until they end.

    remove processes web.* 3698
"""

_REMOVE_VALUES = """\
Clear values by name. "*" alone is refused.

    remove values web.*
"""

_WATCH = """\
Watch processes, by name or pid: their output is sent until all of them have
ended.

    watch processes web.* 3698
    w p web.1

What is sent ends with "] ". A line acknowledges it: the kernel forgets it, and
sends more. "q" acknowledges it and ends the watch.
"""

_SET = """\
Set a value, or clear it where no value follows the name.

    set web.count 5
    set web.count
"""

_GET = """\
Show one value.

    get web.count
"""

_EXIT = """\
End the kernel when this and all other clients are gone, if it has no sockets,
processes and values then.
"""


class TextError(KernelError):
    """Raised when a line is no command."""


class Command(NamedTuple):
    """A line that was understood."""

    op: str
    """``quit``, ``help``, or an operation."""
    params: dict[str, Json]


class _Topic(NamedTuple):
    """A command as it is found by its words."""

    help: str
    parse: Callable[[list[str]], Command] | None = None
    words: 'Mapping[str, _Topic]' = {}


def split(line: str) -> list[str]:
    """The words of a line. A backslash at the end of one keeps a space."""
    words = []
    begun = ''
    for piece in line.split(' '):
        if not piece:
            continue
        if piece[-1] == '\\':
            begun += piece[:-1] + ' '
        else:
            words.append((begun + piece).strip())
            begun = ''
    if begun:
        words.append(begun)
    return words


def parse(words: Sequence[str]) -> Command:
    """Understand a line that is not empty; `TextError` for no command."""
    topic, rest = _find([*words])
    if topic.parse is None:
        raise TextError(f'the next word is to be one of: '
                        f'{", ".join(sorted(topic.words))}')
    return topic.parse(rest)


def _find(words: list[str]) -> tuple[_Topic, list[str]]:
    topic = _ROOT
    while words and topic.words:
        word = words.pop(0).lower()
        name = word if word in topic.words else next(
            (name for name in sorted(topic.words) if name.startswith(word)),
            '')
        if not name:
            raise TextError(
                f'there is no command {word!r}: "help" shows all of them'
                if topic is _ROOT else
                f'{word!r} is not one of: {", ".join(sorted(topic.words))}')
        if name != word and name == _EXIT_IF_IDLE:
            raise TextError(f'"{name}" has to be written out')
        topic = topic.words[name]
    return topic, words


def _help(words: list[str]) -> Command:
    if not words:
        return Command('help', {'text': _OVERVIEW})
    try:
        topic, _ = _find(words)
    except TextError as error:
        return Command('help', {'text': f'{error}\n'})
    return Command('help', {'text': topic.help})


def _names(op: str) -> Callable[[list[str]], Command]:
    return lambda words: Command(op, {'names': words})


def _plain(op: str) -> Callable[[list[str]], Command]:
    return lambda words: Command(op, {})


def _name(words: list[str], noun: str) -> str:
    if not words:
        raise TextError(f'a {noun} needs a name')
    return words.pop(0)


def _set(words: list[str]) -> Command:
    if words == ['*']:
        raise TextError('a value needs a name')
    name = _name(words, 'value')
    return Command(
        'set', {'name': name, 'value': ' '.join(words) if words else None})


def _get(words: list[str]) -> Command:
    return Command('get', {'name': _name(words, 'value')})


def _options(words: list[str]) -> dict[str, str]:
    """Take ``key=value`` from the beginning of `words`."""
    options = {}
    while words and '=' in words[0]:
        key, _, value = words.pop(0).partition('=')
        if len(value) > 1 and value[0] == value[-1] == '"':
            value = value[1:-1]
        options[key] = value
    return options


def _make_socket(words: list[str]) -> Command:
    params: dict[str, Json] = {'name': _name(words, 'socket')}
    for key, value in _options(words).items():
        if key not in _SOCKET_KEYS[:-1]:
            raise TextError(f'a socket has no option {key!r}, but: '
                            f'{", ".join(_SOCKET_KEYS[:-1])}')
        params[key] = _number(key, value) if key in _NUMBERS else value
    return Command('make-socket', params)


def _make_process(words: list[str]) -> Command:
    params: dict[str, Json] = {
        'name': _name(words, 'process'), 'env': {}, 'rlimits': {}}
    for key, value in _options(words).items():
        if key.startswith('env.'):
            params['env'][key[4:]] = value
        elif key.startswith('rlimit.'):
            params['rlimits'][key[7:].lower()] = _number(key, value)
        elif key in ('bufsize', 'output'):
            params['bufsize'] = parse_size(value, key)
        elif key in ('stdout', 'stderr'):
            params[key] = (
                'stdout' if (key, value) == ('stderr', 'stdout')
                else 'pipe' if _number(key, value) else 'null')
        elif key in ('watch', 'shell'):
            params[key] = value not in ('', '0', 'False')
        elif key in ('uid', 'gid'):
            params[key] = int(value) if _is_number(value) else value
        elif key == 'working_dir':
            params[key] = value
        else:
            raise TextError(f'a process has no option {key!r}: "help make '
                            f'process" shows them')
    if params.pop('shell', False) and words:
        words[:0] = ['/bin/sh', '-c']
    if params.get('bufsize') == 0:
        params['stdout'] = params['stderr'] = 'null'
    return Command('make-process', {**params, 'args': words})


def _is_number(text: str) -> bool:
    digits = text.removeprefix('-')
    return digits.isascii() and digits.isdigit() and len(digits) < 20


def _number(key: str, value: str) -> int:
    if not _is_number(value):
        raise TextError(f'{key} is a number, not {value!r}')
    return int(value)


_EXIT_IF_IDLE = 'exit-if-idle'

_ROOT = _Topic(_OVERVIEW, None, {
    'exit-if-idle': _Topic(_EXIT, _plain('exit-if-idle')),
    'get': _Topic(_GET, _get),
    'help': _Topic(_OVERVIEW, _help),
    'list': _Topic(_LIST, None, {
        'processes': _Topic(_LIST_PROCESSES, _names('list-processes')),
        'sockets': _Topic(_LIST_SOCKETS, _names('list-sockets')),
        'values': _Topic(_LIST_VALUES, _names('list-values')),
    }),
    'make': _Topic(_MAKE, None, {
        'process': _Topic(_MAKE_PROCESS, _make_process),
        'socket': _Topic(_MAKE_SOCKET, _make_socket),
    }),
    'quit': _Topic('Close this connection.\n', _plain('quit')),
    'remove': _Topic(_REMOVE, None, {
        'processes': _Topic(_REMOVE_PROCESSES, _names('remove-processes')),
        'sockets': _Topic(_REMOVE_SOCKETS, _names('remove-sockets')),
        'values': _Topic(_REMOVE_VALUES, _names('remove-values')),
    }),
    'set': _Topic(_SET, _set),
    'watch': _Topic(_WATCH, None, {
        'processes': _Topic(_WATCH, _names('watch')),
    }),
})


def in_line(text: str) -> str:
    """`text` as the protocol can carry it, in one line."""
    return text.replace('\r\n', ' ').replace('\n', ' ').replace('\r', ' ')


def _item(name: str, keys: tuple[str, ...], values: Json) -> str:
    shown = (f'{key}={values[key]}' for key in keys
             if values.get(key) is not None
             and (values[key] or key not in _HIDDEN_IF_FALSE))
    return in_line(' '.join((name, *shown)))


def _list(keys: tuple[str, ...], result: Json) -> str:
    return '\n'.join(sorted(
        _item(name, keys, values) for name, values in result.items()))


def result_text(command: Command, result: Json) -> str:
    """What is shown of the result of an operation, without the prompt.

    `KernelError` if the protocol cannot carry it.
    """
    op, params = command
    if result is None:
        return ''
    if op == 'get':
        if '\n' in result:
            raise KernelError(
                f'the value {params["name"]!r} has line breaks, which this '
                f'protocol cannot carry: get it with gocept.runner.kernel')
        return str(result)
    if op == 'list-values':
        return '\n'.join(sorted(
            in_line(f'{name} {value}') for name, value in result.items()))
    if op == 'list-sockets':
        return _list(_SOCKET_KEYS, result)
    if op == 'list-processes':
        return _list(_PROCESS_KEYS, result)
    if op == 'make-socket':
        return _item(params['name'], _SOCKET_KEYS, result)
    if op == 'make-process':
        return _item(params['name'], _PROCESS_KEYS, result)
    if op == 'watch':
        return f'Watching {len(result["processes"])}'
    return ''


def output_pieces(records: Sequence[OutRecord],
                  at_least: int = 0) -> list[bytes | memoryview]:
    """A batch of output, as a watch sends it.

    If it is shorter than `at_least` bytes, its first line gets carriage
    returns at the end: no terminal shows them, and `int` ignores them.
    """
    pieces: list[bytes | memoryview] = []
    for record in records:
        name, kind, when = (
            in_line(record.name), record.kind, record.timestamp)
        if kind == 'closed':
            status = (UNKNOWN_STATUS if record.status is None
                      else record.status)
            pieces.append(to_bytes(f'closed:{name}:{when}:{status}\n'))
        else:
            pieces += (to_bytes(f'{kind}:{name}:{when}:{len(record.data)}\n'),
                       record.data, b'\n')
    pieces.append(MORE)
    missing = at_least - sum(map(len, pieces))
    if missing > 0:
        pieces[0] = bytes(pieces[0][:-1]) + b'\r' * missing + b'\n'
    return pieces


def to_bytes(text: str) -> bytes:
    """The bytes of what was `from_bytes`."""
    try:
        return text.encode('utf-8', 'surrogateescape')
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        return text.encode('utf-8', 'backslashreplace')


def from_bytes(line: bytes) -> str:
    """The text of a line; bytes that are no UTF-8 are surrogates."""
    return line.decode('utf-8', 'surrogateescape')
