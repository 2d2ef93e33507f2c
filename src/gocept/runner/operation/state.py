"""The state of a worker in a file: its form, how it is written and read.

The file is JSON. `State` names its fields. A new file replaces the old one by
a rename, so that a reader finds one or the other. If the disk is full, the
text is written over the old one, whose blocks are there already; so a reader
that finds half a text reads again.

A command that only reads has to start fast. So this imports neither `json` nor
`typing`, as each takes half of the time that Python needs to start.
"""

import errno
import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NotRequired, TypedDict

    class Moment(TypedDict):
        """One moment, by two clocks, in seconds."""

        realtime: float
        monotonic: float

    class NextTick(TypedDict):
        """When the next tick is due."""

        clock: str
        """realtime, as for a schedule, or monotonic."""
        at: float
        realtime: float
        """The same by the clock on the wall, as it went at that time."""

    class LastTick(TypedDict):
        """The tick that has ended last."""

        number: int
        ended: float
        """By the clock on the wall, as all that is not a `Moment`."""
        duration: float
        outcome: str
        """committed, aborted, or uncertain; or elsewhere, if another process
        has done this run of a schedule."""

    class LastError(TypedDict):
        """The error that has failed a tick last."""

        tick: int
        time: float
        error: str
        traceback: NotRequired[str]

    class Minute(TypedDict):
        """The ticks that have ended in one minute."""

        at: int
        """The number of the minute, since the epoch."""
        ticks: int
        failed: int
        longest: float
        """How long the longest one took, in seconds."""

    class Total(TypedDict):
        """What was counted in this and in earlier programs of the worker."""

        counts: dict[str, int]
        durations: list[int]
        """How many ticks took how long; see `metrics.Durations.counts`."""
        seconds: float
        """How long all ticks took together."""

    class Child(TypedDict):
        """A child of the worker."""

        name: str
        pid: int
        state: str

    class State(TypedDict):
        """What a worker tells of itself."""

        format: int
        version: str
        worker: str
        site: str | None
        host: str
        pid: int
        start: int | None
        """When the process was started, as in /proc/PID/stat."""
        boot: str
        """The id of the boot of the system."""
        namespaces: str
        """Those in which the pid and the clocks are valid."""
        started: Moment
        written: Moment
        phase: str
        """starting, tick, between, pause, or ended."""
        since: Moment
        """When the phase has begun."""
        tick: int
        """The number of the tick in progress, or of the last."""
        deadline: float | None
        """When the tick, or its item, has to end; monotonic."""
        tick_timeout: float | None
        schedule: str | None
        next_tick: NextTick | None
        last_tick: LastTick | None
        last_success: Moment | None
        failures: int
        """How many ticks have failed since the last success."""
        last_error: LastError | None
        counts: dict[str, int]
        memory: int | None
        """Bytes."""
        children: list[Child]
        status: int | None
        """The one that the program has ended with, or is about to."""
        hour: NotRequired[list[Minute]]
        """The last hour, with that of earlier programs. What may be missing
        was not written by the first versions."""
        total: NotRequired[Total]

FORMAT = 1
"""The version of the form. It grows when a reader has to know."""

ENDING = '.json'
"""How the names of such files end."""

LARGEST = 10 ** 15
"""Of all numbers. It is as good as infinite, for which JSON has no number."""

_BLOCK = 4096  # bytes; the length of a file is a multiple of it

_LONGEST = 1024 * 1024  # bytes that are read of a file

_FULL = errno.ENOSPC, errno.EDQUOT

_PATIENCE = 20  # times that half a text is read again


class Unreadable(Exception):
    """Raised when there is no state in a file; the message says why."""


class Missing(Unreadable):
    """Raised when there is no file."""


def write(path: str, state: 'State') -> None:
    """Replace the file; OSError if that fails."""
    import json
    text = json.dumps(state, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % _BLOCK - 1) + b'\n'
    temporary = f'{path}.{os.getpid()}'
    try:
        _create(temporary, text)
        os.replace(temporary, path)
    except OSError as error:
        if os.path.lexists(temporary):
            os.unlink(temporary)
        if error.errno not in _FULL or not _overwrite(path, text):
            raise


def _create(path: str, text: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
                 | os.O_NOFOLLOW, 0o666)
    try:
        _write_all(fd, text)
    finally:
        os.close(fd)


def _overwrite(path: str, text: bytes) -> bool:
    """Write over an old state that is as long; False if there is none."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        size = os.fstat(fd).st_size
        if size < len(text):
            return False
        _write_all(fd, text[:-1] + b' ' * (size - len(text)) + b'\n')
    finally:
        os.close(fd)
    return True


def _write_all(fd: int, text: bytes) -> None:
    while text:
        text = text[os.write(fd, text):]


def read(path: str) -> 'State':
    """The state in a file; `Unreadable` if there is none."""
    for again in reversed(range(_PATIENCE)):
        try:
            found = _decoded(_content(path))
            break
        except (ValueError, RecursionError) as error:
            if not again:
                raise Unreadable('is damaged: it is no JSON') from error
            os.sched_yield()  # it may be written at this moment
    version = found.get('format') if isinstance(found, dict) else None
    if not isinstance(version, int):
        raise Unreadable('is no state of a worker')
    if version > FORMAT:
        raise Unreadable(
            f'was written by a newer version of gocept.runner: its format is '
            f'{version}, and this version knows {FORMAT}')
    if not (isinstance(found, dict) and _is_state(found)
            and _are([*found['counts'].values()], _COUNT)
            and _are(found['children'], _CHILD)
            and _are(found.get('hour', []), _MINUTE)
            and _is_error(found['last_error'])
            and ('total' not in found or _is_total(found['total']))):
        raise Unreadable('is damaged: fields are missing, or wrong')
    return found  # type: ignore[return-value]


def _content(path: str) -> bytes:
    try:
        # A FIFO or a device does not block.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise Missing('is not there') from error
    except OSError as error:
        raise Unreadable(f'cannot be read: {error.strerror}') from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Unreadable('is no plain file')
        content = os.read(fd, _LONGEST)
        if len(content) == _LONGEST:
            raise Unreadable('is too long for a state of a worker')
        return content
    except OSError as error:
        raise Unreadable(f'cannot be read: {error.strerror}') from error
    finally:
        os.close(fd)


class _Plain:
    """How the scanner in C is to decode."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float, parse_int, parse_constant = float, int, float
    memo: 'dict[str, str]' = {}


def _decoded(content: bytes) -> object:
    """The value of a text in JSON; ValueError if it is none."""
    text = content.decode().strip()
    try:
        # The scanner of `json`, without what that imports.
        from _json import make_scanner
        value, end = make_scanner(_Plain)(text, 0)  # type: ignore[arg-type]
    except (ImportError, TypeError, StopIteration, ValueError):
        end = -1
    if end == len(text):
        return value
    import json  # to say what is wrong, or without the one in C
    return json.loads(text)


_NUMBER = float, int
_MAYBE_NUMBER = float, int, type(None)
_COUNT = (int,)
_CHILD = {'name': (str,), 'pid': (int,), 'state': (str,)}
_MINUTE = {'at': (int,), 'ticks': (int,), 'failed': (int,), 'longest': _NUMBER}
_TOTAL = {'counts': (dict,), 'durations': (list,), 'seconds': _NUMBER}
_MOMENT = {'realtime': _NUMBER, 'monotonic': _NUMBER}

_FORM: 'dict[str, object]' = {
    'version': (str,), 'worker': (str,), 'site': (str, type(None)),
    'host': (str,), 'pid': (int,), 'start': (int, type(None)),
    'boot': (str,), 'namespaces': (str,), 'started': _MOMENT,
    'written': _MOMENT, 'phase': (str,), 'since': _MOMENT, 'tick': (int,),
    'deadline': _MAYBE_NUMBER, 'tick_timeout': _MAYBE_NUMBER,
    'schedule': (str, type(None)),
    'next_tick': [{'clock': (str,), 'at': _NUMBER, 'realtime': _NUMBER}],
    'last_tick': [{'number': (int,), 'ended': _NUMBER, 'duration': _NUMBER,
                   'outcome': (str,)}],
    'last_success': [_MOMENT], 'failures': (int,),
    'last_error': [{'tick': (int,), 'time': _NUMBER, 'error': (str,)}],
    'counts': (dict,), 'memory': (int, type(None)), 'children': (list,),
    'status': (int, type(None))}
"""The kinds of the fields. In a list: or None."""


def _is_state(value: object, form: object = _FORM) -> bool:
    if isinstance(form, list):
        return value is None or _is_state(value, form[0])
    if isinstance(form, dict):
        return isinstance(value, dict) and all(
            name in value and _is_state(value[name], kind)
            for name, kind in form.items())
    if isinstance(value, float | int) and not abs(value) <= LARGEST:
        return False  # or not a number
    return isinstance(value, form)  # type: ignore[arg-type]


def _are(values: object, form: object) -> bool:
    return isinstance(values, list) and all(
        _is_state(each, form) for each in values)


def _is_error(error: 'LastError | None') -> bool:
    return error is None or isinstance(error.get('traceback', ''), str)


def _is_total(total: 'Total') -> bool:
    return (_is_state(total, _TOTAL) and _are(total['durations'], _COUNT)
            and _are([*total['counts'].values()], _COUNT))
