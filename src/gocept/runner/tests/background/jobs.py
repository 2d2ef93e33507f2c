"""Tasks for tests of the clients of workers."""

import os
import pathlib
import signal
from typing import Any

from gocept.runner.background import respond


def init() -> dict[str, Any]:
    """Note in a file that a state begins."""
    note('init')
    return {'calls': 0}


def run(socket: Any, state: Any, args: Any) -> Any:
    """Respond with the number of the call and the arguments."""
    state['calls'] += 1
    match args:
        case 'fail':
            raise ValueError('told to fail')
        case 'die':
            os.kill(os.getpid(), signal.SIGKILL)
        case ['wait' | 'die' as what, path]:
            note('waits')
            with open(path, 'rb') as fifo:
                fifo.read()
            if what == 'die':
                os.kill(os.getpid(), signal.SIGKILL)
    respond(socket, (state['calls'], args))
    return state


def end(socket: Any, state: Any, args: Any) -> None:
    """Note it in a file."""
    note('end')


def init_aloud() -> dict[str, Any]:
    """Print something, and no end of the line."""
    print('loading ...', end='', flush=True)
    return init()


def init_badly_aloud() -> None:
    """The same, and fail."""
    print('loading ...', end='', flush=True)
    init_badly()


def init_badly() -> None:
    """An init task that fails."""
    raise ValueError('this state\ncannot be made')


def init_when_told() -> dict[str, Any]:
    """Wait for somebody who opens a FIFO."""
    note('waits')
    with open(os.environ['JOBS_FIFO'], 'rb') as fifo:
        fifo.read()
    return init()


def note(what: str) -> None:
    """Append a line to the file that the environment names, if it does."""
    path = os.environ.get('JOBS_NOTES')
    if path:
        with pathlib.Path(path).open('a') as file:
            file.write(f'{what} {os.getpid()}\n')


not_a_function = 3
