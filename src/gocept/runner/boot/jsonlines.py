"""Log lines in JSON."""

import json
import logging
import math
import threading
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from typing import TypeVar

from gocept.runner.boot.current import current_tick, only_worker
from gocept.runner.boot.texts import described, text

LONGEST = 32768
"""Characters of a value. Many collectors of logs refuse longer lines."""

Plain = TypeVar('Plain')

_DEEPEST = 8  # containers in one another

_LONGEST_INT = 10_000  # bits; Python may refuse to print a longer one

_OF_TICK = ('tick', 'attempt', 'principal', 'transaction')

_OF_ANY_RECORD = frozenset(
    [*vars(logging.makeLogRecord({})), 'asctime', 'message', 'taskName'])


class JSONFormatter(logging.Formatter):
    """Makes one line of a record, whatever is in it: an object in JSON.

    Name it in zope.conf (``formatter gocept.runner.JSONFormatter``), or as
    the class of a formatter for `logging.config`. A format, a format of dates
    and a style have no effect. The line is in ASCII. These keys are always
    there; null means that there is none:

    time
        in UTC, such as ``2026-11-28T19:02:11.000123Z``
    level, logger, message
        as `logging` has them
    worker
        the name of the worker that runs, in this thread or alone in this
        process
    tick, attempt
        the numbers of the tick, or in a pause of the last one, and of its
        attempt; both count from 1. Lines of a thread without a loop belong to
        no tick.
    principal
        the id of the principal that the worker runs as
    transaction
        the id of what this tick has committed last, as the database knows it
    exception
        the traceback
    process
        the number of the process

    The key ``extra`` has what the caller has given as ``extra``, if anything.
    What JSON has no type for is there as a string. Of a value that is longer
    than `LONGEST` characters, the middle is left out, and the number of its
    characters stands in its place; of a longer container, the number of the
    values at its end.
    """

    def __init__(self, fmt: str | None = None, datefmt: str | None = None,
                 style: str = '%', validate: bool = False, *,
                 defaults: Mapping[str, object] | None = None) -> None:
        super().__init__(fmt, datefmt, style, False)  # type: ignore[arg-type]

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        # The thread that formats may be another one, behind a queue.
        tick = (current_tick() if record.thread == threading.get_ident()
                else None)
        line = {
            'time': _time(record.created),
            'level': _string(text(record.levelname)),
            'logger': _string(text(record.name)),
            'message': _string(_message(record)),
            'worker': _value(tick.worker if tick else only_worker()),
            **{name: _value(getattr(tick, name, None) or None)
               for name in _OF_TICK},
            'exception': self._exception(record),
            'process': _value(record.process),
        }
        extra = {_string(text(name)): _value(value)
                 for name, value in vars(record).items()
                 if name not in _OF_ANY_RECORD}
        if record.stack_info:
            extra['stack_info'] = _value(record.stack_info)
        if extra:
            line['extra'] = extra
        return json.dumps(line, allow_nan=False)

    def _exception(self, record: logging.LogRecord) -> str | None:
        if not record.exc_info:
            # That of a record which has come from another process.
            return _string(text(record.exc_text)) if record.exc_text else None
        error = record.exc_info[1]
        if error is None:  # where `logging` was to find one, there was none
            return None
        try:
            traceback = self.formatException(record.exc_info)
        except Exception as reason:
            traceback = (f'{described(error)} (without a traceback: '
                         f'{described(reason)})')
        return _string(traceback)


def _time(seconds: float) -> str:
    try:
        when = datetime.fromtimestamp(seconds, UTC)
    except (TypeError, ValueError, OverflowError, OSError):
        when = datetime.now(UTC)  # whoever made the record has none
    return when.isoformat(timespec='microseconds').replace('+00:00', 'Z')


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:
        return (f'{text(record.msg)} % {text(record.args, repr)} '
                f'({described(error)})')


def _value(value: object) -> object:
    """What stands for `value` in a line."""
    try:
        plain = _Plain().of(value)
        if isinstance(plain, (dict, list)):
            dumped = json.dumps(plain)
            return plain if len(dumped) <= LONGEST else _cut(dumped)
        return plain
    except Exception:  # of its own methods
        return _string(text(value))


class _Plain:
    """A value in types that JSON has, up to some length.

    Containers that are in many others would be there many times.
    """

    def __init__(self) -> None:
        self._room = LONGEST

    def of(self, value: object, depth: int = 0) -> object:
        """`value`, which is within so many containers."""
        if depth < _DEEPEST:
            if isinstance(value, Mapping):
                found: dict[str, object] = {}
                for number, (name, each) in enumerate(value.items()):
                    if self._room <= 0:
                        found['...'] = _left_out(len(value) - number)
                        break
                    found[self._take(_string(text(name)))] = self.of(
                        each, depth + 1)
                return found
            if isinstance(value, (list, tuple, AbstractSet)):
                items: list[object] = []
                for number, each in enumerate(value):
                    if self._room <= 0:
                        items.append(_left_out(len(value) - number))
                        break
                    items.append(self.of(each, depth + 1))
                self._room -= 1
                return items
        return self._take(_plain(value))

    def _take(self, plain: Plain) -> Plain:
        """Count what the value takes of the line."""
        self._room -= len(plain) if isinstance(plain, str) else 1
        return plain


def _left_out(number: int) -> str:
    return f'... ({number} more are left out) ...'


def _plain(value: object) -> object:
    """`value`, which is not to be a container, in types that JSON has."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, int) and value.bit_length() < _LONGEST_INT:
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, (bytes, bytearray)):
        return _cut(value.decode('utf-8', 'backslashreplace'))
    return _string(text(value))


def _string(value: str) -> str:
    """`value` without what is no text, such as a surrogate, and not long."""
    value = str.__str__(value)
    if not value.isascii():
        value = value.encode('utf-8', 'backslashreplace').decode()
    return _cut(value)


def _cut(value: str) -> str:
    left_out = len(value) - LONGEST
    if left_out <= 0:
        return value
    half = LONGEST // 2
    return (f'{value[:half]} ... ({left_out} characters are left out) ... '
            f'{value[-half:]}')
