"""What is told to a client that comes with tasks, where the server has some.

The server says what its tasks are, and since when. The client compares them
with its own, and logs a warning if they are other ones.
"""

import os
import time
from collections.abc import Iterator, Sequence

from gocept.runner.logs import Log

log = Log('gocept.runner.background')

_NAMES = 'init_task', 'exec_task', 'exit_task'


def description(tasks: Sequence[object], since: float) -> dict[str, object]:
    """Of the tasks of this server, which it has `since` then, by the clock on
    the wall."""
    return {'since': since, 'tasks': [*map(_name, tasks)],
            'changed': [*dict.fromkeys(_changed(tasks, since))]}


def warn(said: dict[str, object], tasks: Sequence[object], place: object,
         ) -> None:
    """Log a warning if the server at `place`, which has `said` that, has other
    tasks than the client."""
    since, theirs, changed = said['since'], said['tasks'], said['changed']
    assert isinstance(since, float) and isinstance(theirs, list)
    reasons = [
        f'its {name} is {their}, and not {_name(task)}'
        for name, their, task in zip(_NAMES, theirs, tasks, strict=True)
        if their != _name(task)]
    if changed:
        assert isinstance(changed, list)
        reasons.append(f'{", ".join(changed)} was changed later')
    if reasons:
        when = time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(since))
        log.warning(
            'The server at %s goes on with the tasks that it has had since '
            '%s: %s. To have it use the new ones, call terminate() before '
            'initialize()', place, when, '; '.join(reasons))


def _name(task: object) -> str | None:
    if task is None:
        return None
    it = task if hasattr(task, '__qualname__') else type(task)
    return f'{it.__module__}:{it.__qualname__}'


def _changed(tasks: Sequence[object], since: float) -> Iterator[str]:
    """The files of the tasks that have changed."""
    for task in tasks:
        path = getattr(getattr(task, '__code__', None), 'co_filename', '')
        try:
            if path and os.stat(path).st_mtime > since:
                yield path
        except (OSError, ValueError):  # it is elsewhere, or no file
            continue
