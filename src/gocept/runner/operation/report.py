"""How workers are, for people and probes: on a terminal, and on a page.

``gocept-runner status`` has to start fast. So this imports no module that
takes longer than it saves.
"""

import os

from gocept.runner.operation import directory, health, state, vitals
from gocept.runner.operation.amounts import NONE, duration, size

TYPE_CHECKING = False  # not that of `typing`, whose import takes long
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gocept.runner.operation.health import Verdict
    from gocept.runner.operation.state import State


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
    def tone(self) -> str:
        """What people are to notice: '', or ill, late, or over."""
        if self.state is None or self.verdict is None:
            return 'ill'
        if self.verdict.word == 'ended' and not self.state['status']:
            return 'over'
        if not self.healthy and not self.in_doubt:
            return 'ill'
        is_late = self.verdict.word == 'late' or self.state['failures']
        return 'late' if is_late or self.in_doubt else ''

    @property
    def in_doubt(self) -> bool:
        """Whether to look once more."""
        return (self.verdict is not None and self.verdict.is_doubtful
                and not self.is_settled)


# What is there

def find(paths: 'Sequence[str]' = (), max_age: float | None = None,
         ) -> list[Worker]:
    """The workers whose states are there; `NothingFound` if there is none.

    A path is that of a state, or of a directory of states. Without paths:
    those that workers of this user have registered, and the directory that the
    environment names.
    """
    found: dict[str, Worker] = {}
    for path in paths or _places():
        if os.path.isdir(path):
            workers = [*_in_directory(path, max_age, bool(paths))]
            if not workers and paths:
                raise NothingFound(f'there is no state of a worker in {path}')
        else:
            workers = [Worker(path, max_age)]
            if workers[0].problem and workers[0].is_missing and paths:
                raise NothingFound(f'{path} {workers[0].problem}')
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


def _in_directory(path: str, max_age: float | None, is_named: bool,
                  ) -> 'Iterator[Worker]':
    try:
        names = os.listdir(path)
    except OSError as error:
        problem = f'cannot be read: {error.strerror}'
        if is_named:
            raise NothingFound(f'{path} {problem}') from error
        worker = Worker(path, max_age)  # the others are to be shown, too
        worker.problem = problem
        yield worker
        return
    for name in names:
        if name.endswith(state.ENDING):
            worker = Worker(os.path.join(path, name), max_age)
            if not (worker.problem and worker.is_missing):
                yield worker


# One sentence

def sentence(worker: Worker) -> str:
    """What the worker does, with its name; any characters may stand there."""
    name = worker.name + (f' in {worker.place}' if worker.place else '')
    if worker.state is None or worker.verdict is None:
        return f'{name} {worker.problem}'
    word, reason = worker.verdict.word, worker.verdict.reason
    if word == 'hanging' and worker.state['phase'] != 'tick':
        word = 'silent'
    elif word == 'old' and worker.state['last_success'] is None:
        word = 'never'
    timeout = worker.state['tick_timeout']
    text = _SENTENCES[word].format(
        time=duration(worker.verdict.seconds or 0.0),
        tick=worker.state['tick'], next=worker.state['tick'] + 1,
        status=worker.state['status'],
        timeout=f'{timeout:g} s' if timeout else 'not set')
    return f'{name} (pid {worker.state["pid"]}) {text}' + (
        f': {reason}' if reason else '')


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


# A row of a table

TITLES = ('WORKER', 'PID', 'STATE', 'LAST TICK', 'NEXT TICK', 'TICKS',
           'FAILED', 'CHILDREN', 'MEMORY', 'NOTE')


def row(worker: Worker) -> 'Sequence[str]':
    """The cells of a worker, one for each of the `TITLES`."""
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
            str(sum(failed)), str(len(alive)), size(found['memory']),
            _note(worker, now))


def _doing(worker: Worker) -> str:
    """The state of a worker in a few words."""
    assert worker.state is not None
    assert worker.verdict is not None
    word, seconds = worker.verdict.word, worker.verdict.seconds
    text = {'ended': f'ended {worker.state["status"]}',
            'ending': f'ending {worker.state["status"]}'}.get(word, word)
    if word in ('ticking', 'late', 'overdue', 'hanging', 'old'):
        text += f' {duration(seconds or 0)}' + '?' * worker.in_doubt
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
        return f'in {duration(verdict.seconds)}'
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
    notes += last_error(worker.state, now)
    return '; '.join(notes) or NONE


def last_error(found: 'State', now: float) -> list[str]:
    """The last error of a worker, if it had one; `now` since the epoch."""
    error = found['last_error']
    return [] if error is None else [
        f'{_ago(error["time"], now)}, tick {error["tick"]}: {error["error"]}']


def _ago(instant: float, now: float) -> str:
    return f'{duration(max(0, now - instant))} ago'


