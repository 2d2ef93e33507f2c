"""A client's connection to an old kernel, which speaks papa's text only.

What the text cannot carry is refused. The old kernel would start, store or
show something else instead.
"""

import re
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import NoReturn

from gocept.runner.errors import KernelError
from gocept.runner.kernel.client.transport import (
    Batch,
    Params,
    Socket,
    Transport,
)
from gocept.runner.kernel.wire.frames import Json, OutRecord
from gocept.runner.kernel.wire.text import split

_PROMPT = b'\n> '

_MORE = b'] '

_LONGEST_LINE = 1 << 20
"""Bytes of a line among output."""

_LONGEST_PIECE = 1 << 30
"""Bytes of output that are announced at once."""

_SOCKET_OPTIONS = ('family', 'type', 'backlog', 'path', 'umask', 'host',
                   'port', 'interface', 'reuseport', 'fileno')

_PROCESS_OPTIONS = ('pid', 'running', 'started', 'uid', 'gid', 'shell',
                    'args')

_TYPES: Mapping[str, Callable[[str], Json]] = {
    'backlog': int, 'port': int, 'fileno': int, 'pid': int, 'started': float,
    'running': 'True'.__eq__, 'shell': 'True'.__eq__}

_COMMANDS = {'list-sockets': 'l s', 'remove-sockets': 'r s',
             'list-values': 'l v', 'remove-values': 'r v',
             'list-processes': 'l p', 'remove-processes': 'r p',
             'watch': 'w p', 'get': 'get', 'set': 'set', 'make-socket': 'm s',
             'make-process': 'm p', 'exit-if-idle': 'exit-if-idle'}


class TextTransport(Socket):
    """See `Transport`. One thread uses it at a time."""

    exact = False

    def __init__(self, sock: socket.socket, place: object) -> None:
        super().__init__(sock, place)
        self._data = b''
        self.owes_answer = False

    def __repr__(self) -> str:
        return f'<connection to the old kernel at {self._place}>'

    def become(self, transport: Transport) -> None:
        raise AssertionError('a watch of an old kernel cannot go on')

    # Requests

    def ask(self, number: int, op: str, params: Params,
            data: bytes = b'') -> Json:
        line = self.line(op, params)
        try:
            self._require_whole()
            self._is_torn = True
            self._send(line)
            said = self._until_prompt()
        except BaseException:
            self.close()
            raise
        self._is_torn = False
        if said.startswith('Error:'):
            raise KernelError(said[7:])
        return self._result(op, said)

    def end_session(self) -> None:
        """It has none."""

    def watch(self, number: int, op: str, params: Params) -> Json:
        line = self.line(op, params)
        try:
            self._require_whole()
            self._is_torn = True
            self._send(line)
            said = self._first_line()
            if said.startswith('Error:'):
                self._until_prompt()
        except BaseException:
            self.close()
            raise
        self._is_torn = False
        if said.startswith('Error:'):
            raise KernelError(said[7:])
        if op == 'watch':
            # "Watching 2"
            return {'processes': {}, 'count': int(said.split()[-1])}
        return _details(said, _PROCESS_OPTIONS)[1]

    def _result(self, op: str, said: str) -> Json:
        if op == 'get':
            return said or None
        if op == 'list-values':
            return dict(_halves(line) for line in _lines(said))
        if op == 'list-sockets':
            return dict(_details(line, _SOCKET_OPTIONS)
                        for line in _lines(said))
        if op == 'list-processes':
            return dict(_details(line, _PROCESS_OPTIONS)
                        for line in _lines(said))
        if op == 'make-socket':
            return _details(said, _SOCKET_OPTIONS)[1]
        if op == 'make-process':
            return _details(said, _PROCESS_OPTIONS)[1]
        if op == 'exit-if-idle':
            return said.startswith('Exiting')
        return None

    # Text

    def line(self, op: str, params: Params) -> bytes:
        """The line of a request; KernelError if it would not arrive so."""
        if op not in _COMMANDS:
            self._refuse(f'the request {op!r}')
        head = _COMMANDS[op].split()
        words = self._words(op, params)
        for word in words:
            if '\n' in word or not _survives(word):
                self._refuse(repr(word))
        text = ' '.join([*head, *map(_escaped, words)])
        try:
            return text.encode()
        except UnicodeEncodeError:
            self._refuse('text with bytes that are no UTF-8')

    def _words(self, op: str, params: Params) -> list[str]:
        if 'names' in params:
            if params.get('follow') or params.get('after'):
                self._refuse('a watch that follows, or that goes on')
            return [self._name(name, ':' if op == 'watch' else '')
                    for name in params['names']]
        if op == 'exit-if-idle':
            return []
        name = self._name(params['name'], ':' if op == 'make-process' else '')
        if op == 'set':
            value = params['value']
            if value is None:
                return [name]
            if value.startswith('Error:'):
                self._refuse(f'the value {value!r}')
            return [name, value]
        if op == 'make-socket':
            return [name, *self._options(
                (key, value) for key, value in params.items()
                if key in _SOCKET_OPTIONS)]
        if op == 'make-process':
            return [name, *self._process(params)]
        return [name]

    def _name(self, name: str, forbidden: str) -> str:
        if (not name or name == '>' or any(map(str.isspace, name))
                or (forbidden and forbidden in name)):
            self._refuse(f'the name {name!r}')
        return name

    def _process(self, params: Params) -> list[str]:
        if params.get('stdin') == 'pipe' or params.get('overflow') == 'block':
            self._refuse("stdin=PIPE and overflow='block'")
        options: list[tuple[str, Json]] = [
            (key, params[key])
            for key in ('working_dir', 'uid', 'gid', 'bufsize')
            if params.get(key) is not None]
        options += [(key, 0 if params[key] == 'null' else params[key])
                    for key in ('stdout', 'stderr')
                    if params.get(key, 'pipe') != 'pipe']
        if params.get('watch'):
            options.append(('watch', 1))
        for key, value in params.get('env', {}).items():
            options.append((f'env.{key}', value))
        for key, value in params.get('rlimits', {}).items():
            if not isinstance(value, int):
                self._refuse('a limit with two numbers')
            options.append((f'rlimit.{key}', value))
        command: list[str] = params['args']
        if command and '=' in command[0]:
            self._refuse(f'the program {command[0]!r}')
        return [*self._options(options), *command]

    def _options(self, options: Iterable[tuple[str, Json]]) -> list[str]:
        return [self._option(key, str(value)) for key, value in options
                if value is not None and value is not False]

    def _option(self, key: str, value: str) -> str:
        """``key=value``, in quotes if the value needs them."""
        for written in value, f'"{value}"':
            word = f'{key}={written}'
            if written and _unquoted(written) == value and _survives(word):
                break
        else:
            self._refuse(f'{key}={value!r}')
        return word

    def _refuse(self, what: str) -> NoReturn:
        raise KernelError(
            f'{what} cannot be sent to the kernel at {self._place}: it is an '
            'old one, which knows only the text protocol; end it and start '
            'a new one by "gocept-runner kernel start"')

    # Output

    def _batch(self) -> Batch:
        records: list[OutRecord] = []
        while not self._has(_MORE):
            line = self._line()
            kind, _, rest = line.partition(':')
            parts = rest.rsplit(':', 2)
            if len(parts) < 3:
                self._until_prompt()
                return Batch(records, {}, True)
            name = parts[0]
            try:
                when, number = float(parts[1]), int(parts[2])
            except ValueError:
                raise self._no_output() from None
            if kind == 'closed':
                records.append(
                    OutRecord(name, '', kind, when, b'', number, -1))
            else:
                if not 0 <= number <= _LONGEST_PIECE:
                    raise self._no_output()
                records.append(OutRecord(
                    name, '', kind, when, self._bytes(number), None, -1))
        self._data = self._data[len(_MORE):]
        self.owes_answer = True
        return Batch(records, {}, False)

    def _no_output(self) -> KernelError:
        return KernelError(
            f'the kernel at {self._place} has sent what is no output')

    def _has(self, text: bytes) -> bool:
        while len(self._data) < len(text):
            self._receive()
        return self._data.startswith(text)

    def acknowledge(self, positions: Params) -> None:
        if self.owes_answer:
            self._require_whole()
            self._is_torn = True
            self.owes_answer = False
            self._send(b'')
            self._is_torn = False

    def unwatch(self, number: int, positions: Params) -> bool:
        if not self.owes_answer:
            return False
        self._require_whole()
        self._is_torn = True
        self.owes_answer = False
        self._send(b'q')
        self._until_prompt()
        self._is_torn = False
        return True

    # Bytes

    def _send(self, line: bytes) -> None:
        try:
            self._sock.sendall(line + b'\n')
        except OSError as error:
            raise self._lost() from error

    def _until_prompt(self) -> str:
        """The rest of an answer, which may be the prompt alone."""
        while self._data != _PROMPT[1:] and not self._data.endswith(_PROMPT):
            self._receive()
        said = self._data[:-len(_PROMPT)].decode('utf-8', 'surrogateescape')
        self._data = b''
        return said

    def _first_line(self) -> str:
        """Take no output behind it, as who selects would not see that."""
        begin = b''
        while b'\n' not in begin:
            try:
                seen = self._sock.recv(1 << 16, socket.MSG_PEEK)
                seen = seen[:seen.find(b'\n') + 1 or None]
                begin += self._sock.recv(len(seen))
            except OSError as error:
                raise self._lost() from error
            if not seen or len(begin) > _LONGEST_LINE:
                raise self._lost()
        return begin[:-1].decode('utf-8', 'surrogateescape')

    def _line(self) -> str:
        while b'\n' not in self._data:
            if len(self._data) > _LONGEST_LINE:
                raise self._no_output()
            self._receive()
        line, _, self._data = self._data.partition(b'\n')
        return line.decode('utf-8', 'surrogateescape')

    def _bytes(self, number: int) -> bytes:
        """So many bytes, and the newline behind them."""
        pieces = [self._data]
        left = number + 1 - len(self._data)
        while left > 0:
            pieces.append(self._received())
            left -= len(pieces[-1])
        data = b''.join(pieces)
        self._data = data[number + 1:]
        return data[:number]

    def _receive(self) -> None:
        self._data += self._received()

    def _received(self) -> bytes:
        try:
            received = self._sock.recv(1 << 16)
        except OSError as error:
            raise self._lost() from error
        if not received:
            raise self._lost()
        return received


def _escaped(word: str) -> str:
    return word.replace(' ', '\\ ')


def _survives(word: str) -> bool:
    """Whether an old kernel reads the word that was written."""
    return split(f'{_escaped(word)} .') == [word, '.']


def _unquoted(value: str) -> str:
    """What an old kernel makes of the value of an option."""
    if value[0] == '"' and value[-1] == '"':
        return value[1:-1]
    return value


def _lines(said: str) -> list[str]:
    return said.split('\n') if said else []


def _halves(line: str) -> tuple[str, str]:
    name, _, value = line.partition(' ')
    return name, value


def _details(line: str, keys: tuple[str, ...]) -> tuple[str, dict[str, Json]]:
    """The name, and what follows in the form ``key=value``.

    A value may have spaces; that of ``args`` is the rest of the line.
    """
    name, rest = _halves(line)
    rest, _, args = rest.partition(' args=') if 'args' in keys else (
        rest, '', '')
    words = re.split(rf' (?=(?:{"|".join(keys)})=)', rest)
    found: dict[str, Json] = {}
    for word in words:
        key, _, value = word.partition('=')
        found[key] = _TYPES.get(key, str)(value)
    if args:
        found['args'] = args
    return name, found
