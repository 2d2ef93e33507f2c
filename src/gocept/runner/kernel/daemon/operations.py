"""What clients can ask for; the names and the parameters are the protocol's.

An operation that changes something is answered under the id of its request,
and the answer is recorded together with the change. So a client that asks
again, as the daemon has died meanwhile, gets the same answer.
"""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from gocept.runner.errors import KernelError
from gocept.runner.kernel.daemon.lookups import ask
from gocept.runner.kernel.daemon.names import matching
from gocept.runner.kernel.daemon.parameters import Parameters
from gocept.runner.kernel.daemon.process import KernelProcess, closed_input
from gocept.runner.kernel.daemon.processes import Processes, Write
from gocept.runner.kernel.daemon.socketparameters import (
    SocketParameters,
    looked_up,
    numeric,
)
from gocept.runner.kernel.daemon.sockets import Sockets
from gocept.runner.kernel.daemon.starts import Starts
from gocept.runner.kernel.daemon.watching import (
    NOWHERE,
    Watch,
    Watches,
    position_of,
)
from gocept.runner.kernel.keeper.link import KeeperGone
from gocept.runner.kernel.wire.frames import Json, quote
from gocept.runner.kernel.wire.limits import Limits
from gocept.runner.kernel.wire.text import to_bytes
from gocept.runner.poller.poller import Poller
from gocept.runner.poller.timer import Timer
from gocept.runner.process.direct import identity
from gocept.runner.process.reaper import Reaper

if TYPE_CHECKING:
    from gocept.runner.kernel.daemon.state import State
    from gocept.runner.kernel.wire.conversation import Request

_WRITE_PATIENCE = 30.0  # seconds that a write waits for room

_MOST_SESSIONS = 4096  # whose last answers are kept

_PREVIEW = 100  # characters of a value that the status shows


class Operations:
    """Does what requests ask for; see `connection.Operations`."""

    def __init__(self, state: 'State', poller: Poller, limits: Limits,
                 sockets: Sockets, processes: Processes, starts: Starts,
                 watches: Watches, ends: Reaper) -> None:
        self._state = state
        self._poller = poller
        self._limits = limits
        self._sockets = sockets
        self._processes = processes
        self._starts = starts
        self._watches = watches
        self._ends = ends
        self._waiting = 0
        """Bytes of the writes that wait."""
        processes.answer_write = self._write_now
        self.is_live: Callable[[str], bool] = lambda session: False
        """Whether a client with this session is connected."""
        # Those that only read, or can be done twice, or see to it themselves.
        self.plain: dict[str, Callable[[Request], None]] = {
            'get': self._get,
            'set': self._set,
            'list-values': self._list_values,
            'list-sockets': self._list_sockets,
            'list-processes': self._list_processes,
            'watch': self._watch,
            'ping': lambda request: request.answer(None),
            'bye': self._bye,
        }
        # Those that are done once for each id.
        self._recorded: dict[str, Callable[[Request], Json]] = {
            'remove-values': self._remove_values,
            'remove-sockets': self._remove_sockets,
            'remove-processes': self._remove_processes,
            'close-stdin': self._close_stdin,
        }
        # Those that record their answer themselves, perhaps later.
        self._late: dict[str, Callable[[Request], None]] = {
            'make-socket': self._make_socket,
            'make-process': self._make_process,
            'write': self._write,
        }

    def handle(self, request: 'Request') -> None:
        """Answer a request, now or later; KernelError."""
        op = request.op
        plain = self.plain.get(op)
        if plain is not None:
            plain(request)
            return
        if request.session and self._answer_again(request):
            return
        recorded = self._recorded.get(op)
        if recorded is not None:
            with self._state.batch():
                result = recorded(request)
                self._record(request, result)
            request.answer(result)
            return
        late = self._late.get(op)
        if late is None:
            raise KernelError(f'this kernel knows no operation {op!r}: '
                              'upgrade it')
        late(request)

    def _record(self, request: 'Request', result: Json) -> None:
        """Keep the answer; with other changes, within `State.batch`."""
        session = request.session
        if session and request.id:
            self._make_room(session)
            self._state.put('answer', session, [request.id, result])

    def _make_room(self, session: str) -> None:
        """Forget the oldest answer if this session has none and all others
        are too many."""
        answers = self._state.keys('answer')
        if len(answers) < _MOST_SESSIONS or session in answers:
            return
        for other in answers:
            if not self.is_live(other):
                self._state.drop('answer', other)
                return

    def _answer_again(self, request: 'Request') -> bool:
        known: Json = self._state.get('answer', request.session)
        if known is None or known[0] != request.id or not request.id:
            return False
        if request.op == 'make-process' and request.params.get('watch'):
            process = self._processes.get(_name(request))
            if process is None or process.life != known[1]['life']:
                return False
            self._begin_watch(request, [process], known[1])
        else:
            request.answer(known[1])
        return True

    def _bye(self, request: 'Request') -> None:
        if request.session and self._state.get(
                'answer', request.session) is not None:
            self._state.drop('answer', request.session)
        request.answer(None)

    # Values

    def _get(self, request: 'Request') -> None:
        request.answer(self._state.get('value', _name(request)))

    def _set(self, request: 'Request') -> None:
        # The most frequent change, so it makes few calls.
        name, value = _name(request), request.params.get('value')
        state, session, number = self._state, request.session, request.id
        if number:
            known: Json = state.get('answer', session)
            if known is None:
                self._make_room(session)
            elif known[0] == number:
                request.answer(None)
                return
        if type(value) is str:
            self._check_value(name, value)
            change = ('value', name, value, quote(value).encode('ascii'))
            if number:
                state.put_encoded(change, (
                    'answer', session, (number, None),
                    f'[{number},null]'.encode('ascii')))
            else:
                state.put_encoded(change)
        elif value is None:
            with state.batch():
                state.drop('value', name)
                self._record(request, None)
        else:
            raise KernelError(
                f'{name} is to be set to a string, not {value!r}')
        request.answer(None)

    def _check_value(self, name: str, value: str) -> None:
        """Refuse a value that is too much."""
        state, limits, length = self._state, self._limits, len(value)
        if 4 * length > limits.value:
            limits.check('value', len(to_bytes(value)))
        if state.size('value') + length > limits.storage:
            limits.check('storage', state.size('value') + length
                         - state.size_of('value', name))
        names = state.keys('value')
        if len(names) >= limits.values and name not in names:
            limits.check('values', len(names) + 1)

    def _values(self, names: Iterable[str]) -> dict[str, str]:
        values: dict[str, Json] = dict(self._state.items('value'))
        return matching(values, names)

    def _list_values(self, request: 'Request') -> None:
        names = _names(request)
        if len(names) == 1 and not names[0].endswith('*'):
            value = self._state.get('value', names[0])
            request.answer({} if value is None else {names[0]: value})
            return
        request.answer(self._values(names))

    def _remove_values(self, request: 'Request') -> Json:
        names = _names(request)
        if not names or '*' in names:
            raise KernelError('You cannot remove all variables: name those '
                              'that you mean, for instance by a prefix and *')
        for name in self._values(names):
            self._state.drop('value', name)
        return None

    # Sockets

    def _list_sockets(self, request: 'Request') -> None:
        request.answer({name: each.info for name, each in self._sockets.select(
            _names(request)).items()})

    def _make_socket(self, request: 'Request') -> None:
        parameters = SocketParameters.of(request.params)
        if self._answer_socket(request, parameters):
            return
        address = (None if parameters.host is None
                   else numeric(parameters))
        if parameters.host is None or address is not None:
            self._open_socket(request, parameters, address)
            return
        ask(self._poller, lambda: looked_up(parameters),
            f'the host {parameters.host}',
            lambda answer: self._later(request, lambda: self._open_socket(
                request, parameters, str(answer))),
            request.fail)

    def _answer_socket(self, request: 'Request',
                       parameters: SocketParameters) -> bool:
        existing = self._sockets.find(parameters)
        if existing is None:
            return False
        self._done(request, existing.info)
        return True

    def _open_socket(self, request: 'Request', parameters: SocketParameters,
                     address: str | None) -> None:
        if self._answer_socket(request, parameters):
            return
        with contextlib.ExitStack() as failure:
            with self._state.batch():
                info = self._sockets.make(parameters, address).info
                failure.callback(self._sockets.remove, parameters.name)
                self._record(request, info)
            failure.pop_all()
        request.answer(info)

    def _done(self, request: 'Request', result: Json) -> None:
        """Record the answer, and give it."""
        self._record(request, result)
        request.answer(result)

    def _later(self, request: 'Request', call: Callable[[], None]) -> None:
        """Make a call whose error is the answer."""
        try:
            with contextlib.suppress(KeeperGone):
                call()
        except KernelError as error:
            request.fail(str(error))

    def _remove_sockets(self, request: 'Request') -> Json:
        for name in self._sockets.select(
                _names_to_remove(request, 'sockets'), required=True):
            self._sockets.remove(name)
        return None

    # Processes

    def _list_processes(self, request: 'Request') -> None:
        self._ends.look()
        names = _names(request)
        request.answer({name: each.details for name, each in
                        self._processes.select(names).items()
                        if not self._starts.is_under_way(each)})

    def _make_process(self, request: 'Request') -> None:
        self._ends.look()
        parameters = Parameters.of(request.params)
        existing = self._processes.get(parameters.name)
        if existing is None:
            self._limits.check('processes', len(self._processes) + 1)
            self._starts.start(
                parameters, (request.session, request.id),
                lambda process: self._made(request, process, True),
                request.fail)
            return
        if existing.removed and request.session:
            # An old client gets what papa gives it.
            raise KernelError(
                f'the process {existing.name!r} was removed, so its output is '
                f'thrown away, but it still runs as {existing.pid}: make it '
                'again when that has ended, or use another name')
        if not existing.is_what(parameters):
            raise _other(existing, existing.differences(parameters))
        if self._starts.is_under_way(existing):
            existing.waiting.append(lambda: self._later(
                request, lambda: self._make_process(request)))
            return
        self._compare_users(request, parameters, existing)

    def _compare_users(self, request: 'Request', parameters: Parameters,
                       existing: KernelProcess) -> None:
        wanted = (parameters.user, parameters.group)
        if [*wanted] == existing.given:
            self._made(request, existing)
            return

        for noun, number, exists in zip(
                ('uid', 'gid'), wanted, (existing.user, existing.group),
                strict=True):
            if isinstance(number, int) and number != exists:
                raise _other(existing, [noun])

        def compare(answer: Json) -> None:
            uid, gid, *_ = answer
            if uid != existing.user or gid != existing.group:
                raise _other(existing, [
                    'gid' if uid == existing.user else 'uid'])
            self._made(request, existing)

        if not any(isinstance(each, str) for each in wanted) and (
                parameters.group is not None or parameters.user is None):
            compare(wanted)
            return
        ask(self._poller, lambda: identity(*wanted),
            f'user {wanted[0]} and group {wanted[1]}',
            lambda answer: self._later(request, lambda: compare(answer)),
            request.fail)

    def _made(self, request: 'Request', process: KernelProcess,
              is_new: bool = False) -> None:
        details = process.details
        with self._state.batch():
            if is_new:
                self._processes.save(process)
            self._record(request, details)
        if request.params.get('watch'):
            self._begin_watch(request, [process], details)
        else:
            request.answer(details)

    def _remove_processes(self, request: 'Request') -> Json:
        for each in self._processes.select(
                _names_to_remove(request, 'processes'), required=True,
                ).values():
            if self._starts.is_under_way(each):
                raise KernelError(f'{each.name} is being started: try again')
            self._processes.remove(each)
        return None

    def _watch(self, request: 'Request') -> None:
        found = {name: each for name, each in self._processes.select(
            _names(request), required=True).items()
            if not self._starts.is_under_way(each)}
        if not found:
            raise KernelError('Nothing to watch: no process has such a name')
        self._begin_watch(request, found.values(), {'processes': {
            name: each.life for name, each in found.items()}})

    def _begin_watch(self, request: 'Request',
                     processes: Iterable[KernelProcess], result: Json) -> None:
        after = request.params.get('after') or {}
        if not isinstance(after, dict):
            raise KernelError('"after" has a position for each name')
        # Nothing may fail once the client was told that it watches.
        found = [(process, position_of(after[process.name])
                  if after.get(process.name) is not None else NOWHERE)
                 for process in processes]
        watch = Watch(self._watches, request.connection,
                      bool(request.params.get('follow')))
        request.begin_watch(watch, result)
        acknowledges = request.params.get('acknowledge') is not False
        for process, position in found:
            watch.add(process, position, acknowledges)
        watch.begin()

    # Standard input

    def _write(self, request: 'Request') -> None:
        self._ends.look()
        process = self._with_input(request)
        if not process.writes and self._write_now(request, process):
            if process.sink is not None:
                process.sink.send()
            return
        if request.params.get('wait') is False:
            raise KernelError(
                f'no room: {process.name} has not read what was written to it '
                'before; try again later')
        size = len(request.data)
        if process.input is not None:
            process.input.check(request.data)
        if self._waiting + size > self._limits.traffic:
            raise KernelError(
                f'no room: {process.name} has not read what was written to it '
                f'before, and writes of {self._waiting} bytes wait already: '
                'try again later, or start the kernel with --limit '
                f'traffic={2 * self._limits.traffic}')

        def done() -> None:
            self._poller.unregister(timer)
            self._waiting -= size

        timer = Timer(_WRITE_PATIENCE)
        write = Write(request, done)
        self._waiting += size
        process.writes.append(write)
        self._poller.register(timer, lambda *result: self._give_up(
            process, write))

    def _with_input(self, request: 'Request') -> KernelProcess:
        name = _name(request)
        process = self._processes.get(name)
        if process is None:
            raise KernelError(f'{name} not found: no process has this name')
        if process.input is None or process.sink is None or (
                process.sink.closing):
            raise KernelError(closed_input(process))
        return process

    def _write_now(self, request: 'Request', process: KernelProcess) -> bool:
        """Take in all of it, if there is room; answer it then."""
        kept = process.input
        if kept is None:
            request.fail(closed_input(process))
            return True
        try:
            with self._state.batch():
                if not kept.add(request.data):
                    return False
                self._record(request, None)
        except KeeperGone:  # see `conversation.fail`
            return True
        except KernelError as error:
            request.fail(str(error))
            return True
        request.answer(None)
        return True

    def _give_up(self, process: KernelProcess, write: Write) -> None:
        with contextlib.suppress(ValueError):
            process.writes.remove(write)
            write.done()
            write.request.fail(
                f'no room: {process.name} has read nothing for '
                f'{_WRITE_PATIENCE:g} s, and nothing of this was written')

    def _close_stdin(self, request: 'Request') -> Json:
        name = _name(request)
        process = self._processes.get(name)
        if process is None:
            raise KernelError(f'{name} not found: no process has this name')
        if process.stdin != 'pipe':
            raise KernelError(closed_input(process))
        self._processes.close_input(process)
        return None

    # For the status

    def status(self) -> Json:
        """What is there, for a table."""
        return {
            'sockets': {name: each.info for name, each
                        in self._sockets.select(()).items()},
            'values': {name: [len(value), value[:_PREVIEW]] for name, value
                       in self._values(()).items()},
            'processes': {name: each.details for name, each
                          in self._processes.select(()).items()},
            'buffered': self._processes.buffered,
        }

    @property
    def is_idle(self) -> bool:
        """Whether nothing is kept for anybody."""
        return not (len(self._sockets) or len(self._processes.listed)
                    or len(self._state.items('value')))


def _name(request: 'Request') -> str:
    name = request.params.get('name')
    if not isinstance(name, str) or not name:
        raise KernelError(f'{request.op} needs a name')
    return name


def _names(request: 'Request') -> list[str]:
    names = request.params.get('names') or []
    if not isinstance(names, list) or not all(
            isinstance(each, str) for each in names):
        raise KernelError('names are a list of strings')
    return names


def _names_to_remove(request: 'Request', noun: str) -> list[str]:
    names = _names(request)
    if not names and request.session:
        # For an old client no names are all names, as with papa.
        raise KernelError(f'name the {noun} to remove, or pass "*" if all of '
                          'them are meant')
    return names


def _other(existing: KernelProcess, differ: Sequence[str]) -> KernelError:
    shown = ' '.join(f'{key}={value}' for key, value in existing.info.items())
    return KernelError(
        f'the process {existing.name!r} exists with other parameters: {shown};'
        f' it differs in {", ".join(differ)}; remove it first, or use another '
        'name')
