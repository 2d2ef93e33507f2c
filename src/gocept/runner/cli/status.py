"""``gocept-runner status``: how workers are, seen from outside.

A probe runs this every few seconds. So it takes at most twice the time of a
Python that does nothing: it imports no module that takes longer than it saves.
"""

import io
import os
import sys
import time

from gocept.runner import errors
from gocept.runner.cli import cells, table
from gocept.runner.cli.cells import NONE
from gocept.runner.operation import directory, health, state, vitals

TYPE_CHECKING = False  # not that of `typing`, whose import takes long
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from gocept.runner.operation.health import Verdict
    from gocept.runner.operation.state import State

PROG = 'gocept-runner status'

INTERVAL = 1.0
"""Seconds between two tables of --watch."""

_LOOK_AGAIN = 0.1  # seconds between two looks of one who is in doubt


class Options:
    """What the command line says."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.check = self.watch = self.json = self.forget = False
        self.max_age: float | None = None
        self.color = 'auto'


class NothingFound(Exception):
    """Raised when no state is found; the message says where."""


class Worker:
    """A file, and what is known from it."""

    def __init__(self, path: str, max_age: float | None = None) -> None:
        self.path = path
        self._max_age = max_age
        self.place = ''
        """The directory, if there are others of the same name."""
        self.is_settled = False
        """Whether there was time enough for a change to be seen."""
        self.look()

    def look(self) -> None:
        """Read the file, and judge."""
        self.state: State | None = None
        self.verdict: Verdict | None = None
        self.problem = ''
        try:
            self.state = state.read(self.path)
        except state.Unreadable as error:
            self.problem = str(error)
            self.is_missing = isinstance(error, state.Missing)
        else:
            self.now = vitals.facts_about(self.state['pid'])
            self.verdict = health.judge(self.state, self.now, self._max_age)

    @property
    def name(self) -> str:
        """The worker, and its site."""
        if self.state is None:
            return self.path
        site = self.state['site']
        return self.state['worker'] + (f'@{site}' if site else '')

    @property
    def healthy(self) -> bool:
        """Whether all is well."""
        return self.verdict is not None and self.verdict.healthy

    @property
    def in_doubt(self) -> bool:
        """Whether to look once more."""
        return (self.verdict is not None and self.verdict.is_doubtful
                and not self.is_settled)


def status(argv: 'Sequence[str]') -> int:
    """Show how workers are; returns the status."""
    options = Options()
    if not _quick(argv, options):
        from gocept.runner.cli.status_parser import options_of
        options = Options()
        vars(options).update(options_of([*argv]))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors='backslashreplace')  # of a C locale
    try:
        if options.watch:
            return _watch(options)
        workers = _workers(options)
        _settle(workers)
        return (_check(workers) if options.check
                else _json(workers) if options.json
                else _forget(workers) if options.forget
                else _show(workers, options))
    except NothingFound as error:
        if options.check:
            print(f'not healthy: {error}')
            return errors.WORKER_FAILED
        print(f'{PROG}: error: {error}', file=sys.stderr)
        return errors.NO_STATE
    except KeyboardInterrupt:
        return errors.INTERRUPTED


def _quick(argv: 'Sequence[str]', options: Options) -> bool:
    """Set the options, if they are simple; False: ask the parser.

    To import that takes as long as Python needs to start.
    """
    words = iter(argv)
    modes = 0
    for word in words:
        if word in ('--check', '--watch', '--json', '--forget'):
            setattr(options, word[2:], True)
            modes += 1
        elif word == '--max-age':
            try:
                options.max_age = float(next(words, ''))
            except ValueError:
                return False
            if not options.max_age >= 0:
                return False
        elif word.startswith('-') or not word:
            return False
        else:
            options.paths.append(word)
    return modes <= 1


# What is there

def _workers(options: Options) -> list[Worker]:
    """All that are to be shown; `NothingFound` if there is none."""
    found: dict[str, Worker] = {}
    for path in options.paths or _places():
        if os.path.isdir(path):
            workers = [*_in_directory(path, options)]
            if not workers and options.paths:
                raise NothingFound(
                    f'there is no state of a worker in {table.shown(path)}')
        else:
            workers = [Worker(path, options.max_age)]
            if workers[0].problem and workers[0].is_missing and options.paths:
                raise NothingFound(
                    f'{table.shown(path)} {workers[0].problem}')
        found.update((_real(each.path), each) for each in workers)
    if not found:
        raise NothingFound(
            'no worker of this user has registered a state; name the DIR or '
            'FILE of --run-dir or --state')
    workers = sorted(found.values(), key=lambda each: (
        each.name, each.state['pid'] if each.state else 0))
    names = [each.name for each in workers]
    for worker in workers:
        if names.count(worker.name) > 1:
            worker.place = os.path.dirname(worker.path)
    return workers


def _real(path: str) -> str:
    """The path behind links, if this user may know it."""
    try:
        return os.path.realpath(path)
    except OSError:  # a link in /proc
        return path


def _places() -> list[str]:
    places = directory.registered()
    asked = os.environ.get(directory.VARIABLE)
    return [*places, asked] if asked and os.path.exists(asked) else places


def _in_directory(path: str, options: Options) -> 'Iterator[Worker]':
    try:
        names = os.listdir(path)
    except OSError as error:
        if not options.paths:  # the others are to be shown, too
            worker = Worker(path, options.max_age)
            worker.problem = f'cannot be read: {error.strerror}'
            yield worker
            return
        raise NothingFound(
            f'{table.shown(path)} cannot be read: {error.strerror}'
            ) from error
    for name in names:
        if name.endswith(state.ENDING):
            worker = Worker(os.path.join(path, name), options.max_age)
            if not (worker.problem and worker.is_missing):
                yield worker


def _settle(workers: 'Sequence[Worker]') -> None:
    """Look again at those that may have changed, and not told it yet."""
    left = round(health.SETTLED / _LOOK_AGAIN)
    while left and (doubtful := [each for each in workers if each.in_doubt]):
        _pause(_LOOK_AGAIN)
        left -= 1
        for worker in doubtful:
            worker.look()
    for worker in workers:
        worker.is_settled = True


def _pause(seconds: float) -> None:
    # Ctrl-C in the wait of an event may leave a lock in disorder, which is a
    # RuntimeError.
    time.sleep(seconds)  # noqa: TID251


# --check, --json, --forget

def _check(workers: 'Sequence[Worker]') -> int:
    ill = [each for each in workers if not each.healthy]
    if ill:
        count = '' if len(workers) == 1 else f'{len(ill)} of {len(workers)}: '
        print(f'not healthy: {count}{"; ".join(map(_sentence, ill))}')
        return errors.WORKER_FAILED
    print('healthy: ' + (
        _sentence(workers[0]) if len(workers) == 1
        else f'{len(workers)} workers'))
    return errors.SUCCESS


def _sentence(worker: Worker) -> str:
    """What the worker does, with its name."""
    name = table.shown(
        worker.name + (f' in {worker.place}' if worker.place else ''))
    if worker.state is None or worker.verdict is None:
        return f'{name} {worker.problem}'
    word, reason = worker.verdict.word, worker.verdict.reason
    if word == 'hanging' and worker.state['phase'] != 'tick':
        word = 'silent'
    elif word == 'old' and worker.state['last_success'] is None:
        word = 'never'
    timeout = worker.state['tick_timeout']
    text = _SENTENCES[word].format(
        time=cells.duration(worker.verdict.seconds or 0.0),
        tick=worker.state['tick'], next=worker.state['tick'] + 1,
        status=worker.state['status'],
        timeout=f'{timeout:g} s' if timeout else 'not set')
    return f'{name} (pid {worker.state["pid"]}) {text}' + (
        f': {table.shown(reason)}' if reason else '')


_SENTENCES = {
    'starting': 'has been starting for {time}',
    'waiting': 'waits {time} for its next tick',
    'ticking': 'has been in tick {tick} for {time}',
    'late': 'is late: it has been in tick {tick} for {time}',
    'overdue': 'has not begun its next tick, which is overdue by {time}',
    'hanging': 'hangs: it has been in tick {tick} for {time}, and its '
               'tick_timeout is {timeout}',
    'silent': 'hangs: it has written nothing for {time}, and may be in tick '
              '{next}; its tick_timeout is {timeout}',
    'old': 'had its last success {time} ago',
    'never': 'has had no success since its start, {time} ago',
    'stopped': 'is stopped',
    'dead': 'is dead, and wrote its state {time} ago',
    'ended': 'has ended with status {status}, {time} ago',
    'ending': 'is about to end with status {status}, for {time}',
    'unknown': 'cannot be judged from here'}


def _json(workers: 'Iterable[Worker]') -> int:
    import json
    print(json.dumps([_entry(each) for each in workers], indent=2))
    return _status_of(workers)


def _entry(worker: Worker) -> dict[str, object]:
    entry: dict[str, object] = {
        'path': worker.path, 'healthy': worker.healthy,
        'problem': worker.problem or None}
    if worker.verdict is not None:
        entry |= {'verdict': worker.verdict.word,
                  'seconds': worker.verdict.seconds,
                  'reason': worker.verdict.reason or None,
                  'state': worker.state}
    return entry


def _status_of(workers: 'Iterable[Worker]') -> int:
    """The status of who was to show these."""
    if any(each.problem.startswith('cannot be read') for each in workers):
        return errors.NO_STATE
    return (errors.NO_DATA if any(each.problem for each in workers)
            else errors.SUCCESS)


def _forget(workers: 'Iterable[Worker]') -> int:
    status = errors.SUCCESS
    for worker in workers:
        if worker.verdict is not None and worker.verdict.word in (
                'dead', 'ended'):
            try:
                os.unlink(worker.path)
            except FileNotFoundError:  # somebody else has removed it
                continue
            except OSError as error:
                print(f'{PROG}: error: {table.shown(worker.path)} cannot be '
                      f'removed: {error.strerror}', file=sys.stderr)
                status = errors.NO_STATE
                continue
            print(f'{_sentence(worker)}; removed {table.shown(worker.path)}')
    directory.forget_missing()
    return status


# The table

_TITLES = ('WORKER', 'PID', 'STATE', 'LAST TICK', 'NEXT TICK', 'TICKS',
           'FAILED', 'CHILDREN', 'MEMORY', 'NOTE')


def _show(workers: 'Sequence[Worker]', options: Options) -> int:
    columns = _size()[0]
    for line in _lines(workers, options, columns):
        print(line)
    return _status_of(workers)


def _lines(workers: 'Sequence[Worker]', options: Options,
           columns: int | None, *, cut: bool = False) -> 'Iterator[str]':
    """The table; with `cut` no line is longer than the terminal is wide."""
    colours = cells.wants_colour(options.color, columns is not None)
    lines = table.lines([_TITLES, *map(_row, workers)], columns,
                        (1, 5, 6, 7, 8))
    for worker, line in zip([None, *workers], lines, strict=True):
        if cut and columns is not None:
            line = table.cut(line, columns)
        colour = _colour(worker) if worker is not None and colours else 0
        yield cells.coloured(colour, line) if colour else line


def _colour(worker: Worker) -> int:
    """The colour of a line; 0 for none."""
    if worker.state is None or worker.verdict is None:
        return cells.RED
    if worker.verdict.word == 'ended' and not worker.state['status']:
        return cells.DIM
    if not worker.healthy and not worker.in_doubt:
        return cells.RED
    is_late = worker.verdict.word == 'late' or worker.state['failures']
    return cells.YELLOW if is_late or worker.in_doubt else 0


def _row(worker: Worker) -> 'Sequence[str]':
    found, verdict = worker.state, worker.verdict
    if found is None or verdict is None:
        return (worker.name, NONE, 'unknown', *[NONE] * 6, worker.problem)
    now = worker.now.now['realtime']
    counts = found['counts']
    failed = [counts.get(key, 0) for key in ('aborts', 'uncertain')]
    # Those of a worker that is gone ended with it.
    alive = [] if verdict.word in ('dead', 'ended') else [
        each for each in found['children']
        if not each['state'].startswith('ended')]
    return (worker.name, str(found['pid']), _doing(worker), _last(found, now),
            _next(found, verdict, now), str(counts.get('ticks', NONE)),
            str(sum(failed)), str(len(alive)), cells.size(found['memory']),
            _note(worker, now))


def _doing(worker: Worker) -> str:
    """The state of a worker in a few words."""
    assert worker.state is not None
    assert worker.verdict is not None
    word, seconds = worker.verdict.word, worker.verdict.seconds
    text = {'ended': f'ended {worker.state["status"]}',
            'ending': f'ending {worker.state["status"]}'}.get(word, word)
    if word in ('ticking', 'late', 'overdue', 'hanging', 'old'):
        text += f' {cells.duration(seconds or 0)}' + '?' * worker.in_doubt
    failures = worker.state['failures']
    return text + (f', {failures} failed' if failures and worker.healthy
                   else '')


def _last(found: 'State', now: float) -> str:
    last = found['last_tick']
    if last is None:
        return NONE
    return (f'{_ago(last["ended"], now)}, {last["duration"]:.2f} s'
            + ('' if last['outcome'] == 'committed'
               else f', {last["outcome"]}'))


def _next(found: 'State', verdict: 'Verdict', now: float) -> str:
    if verdict.word == 'waiting' and verdict.seconds is not None:
        return f'in {cells.duration(verdict.seconds)}'
    return 'now' if verdict.word in ('ticking', 'late') else NONE


def _note(worker: Worker, now: float) -> str:
    """Where and why it is so, and the last error."""
    assert worker.state is not None
    assert worker.verdict is not None
    notes = [f'in {worker.place}'] if worker.place else []
    if worker.verdict.word in ('dead', 'unknown', 'ended', 'ending'):
        written = worker.state['written']['realtime']
        notes.append(f'seen {_ago(written, now)}')
    if worker.verdict.reason:
        notes.append(worker.verdict.reason)
    error = worker.state['last_error']
    if error is not None:
        notes.append(f'{_ago(error["time"], now)}, tick {error["tick"]}: '
                     f'{error["error"]}')
    return '; '.join(notes) or NONE


def _ago(instant: float, now: float) -> str:
    return f'{cells.duration(max(0, now - instant))} ago'


def _size() -> tuple[int | None, int]:
    """The columns and lines of the terminal; None if there is none."""
    try:
        size = os.get_terminal_size(sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):
        return None, 0
    # A terminal may not know, as one of a serial line.
    return size.columns or 80, size.lines or 24


# --watch

def _watch(options: Options) -> int:
    """Show the table until somebody interrupts."""
    is_terminal = _size()[0] is not None
    try:
        if is_terminal:
            sys.stdout.write('\x1b[?25l\x1b[2J')  # no cursor, no text
        while True:
            sys.stdout.write(_page(options, *_size()))
            sys.stdout.flush()
            _pause(INTERVAL)
    except KeyboardInterrupt:
        return errors.INTERRUPTED
    finally:
        if is_terminal:
            sys.stdout.write('\x1b[?25h')
            sys.stdout.flush()


def _page(options: Options, columns: int | None, height: int) -> str:
    """What is written each time: the page in place of the one before."""
    try:
        lines = [*_lines(_workers(options), options, columns, cut=True)]
    except NothingFound as error:
        lines = [f'not yet: {error}']
    if columns is None:
        return '\n'.join([*lines, '', ''])
    if len(lines) > height - 1:
        more = f'and {len(lines) - height + 2} more'
        lines[max(0, height - 2):] = [more] if height > 1 else []
    return '\x1b[H' + ''.join(f'{line}\x1b[K\n' for line in lines) + '\x1b[J'
