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
from gocept.runner.operation import directory, health, report

TYPE_CHECKING = False  # not that of `typing`, whose import takes long
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from gocept.runner.operation.report import Worker

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
        workers = _found(options)
        _settle(workers)
        return (_check(workers) if options.check
                else _json(workers) if options.json
                else _forget(workers) if options.forget
                else _show(workers, options))
    except report.NothingFound as error:
        text = table.shown(str(error))
        if options.check:
            print(f'not healthy: {text}')
            return errors.WORKER_FAILED
        print(f'{PROG}: error: {text}', file=sys.stderr)
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

def _found(options: Options) -> 'list[Worker]':
    return report.find(options.paths, options.max_age)


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


def _sentence(worker: 'Worker') -> str:
    return table.shown(report.sentence(worker))


def _json(workers: 'Iterable[Worker]') -> int:
    import json
    print(json.dumps([_entry(each) for each in workers], indent=2))
    return _status_of(workers)


def _entry(worker: 'Worker') -> dict[str, object]:
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

_COLOURS = {'': 0, 'ill': cells.RED, 'late': cells.YELLOW, 'over': cells.DIM}
"""By the `tone` of a worker."""


def _show(workers: 'Sequence[Worker]', options: Options) -> int:
    columns = _size()[0]
    for line in _lines(workers, options, columns):
        print(line)
    return _status_of(workers)


def _lines(workers: 'Sequence[Worker]', options: Options,
           columns: int | None, *, cut: bool = False) -> 'Iterator[str]':
    """The table; with `cut` no line is longer than the terminal is wide."""
    colours = cells.wants_colour(options.color, columns is not None)
    lines = table.lines([report.TITLES, *map(report.row, workers)], columns,
                        (1, 5, 6, 7, 8))
    for worker, line in zip([None, *workers], lines, strict=True):
        if cut and columns is not None:
            line = table.cut(line, columns)
        colour = _COLOURS[worker.tone] if worker is not None and colours else 0
        yield cells.coloured(colour, line) if colour else line


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
        lines = [*_lines(_found(options), options, columns, cut=True)]
    except report.NothingFound as error:
        lines = [f'not yet: {table.shown(str(error))}']
    if columns is None:
        return '\n'.join([*lines, '', ''])
    if len(lines) > height - 1:
        more = f'and {len(lines) - height + 2} more'
        lines[max(0, height - 2):] = [more] if height > 1 else []
    return '\x1b[H' + ''.join(f'{line}\x1b[K\n' for line in lines) + '\x1b[J'
