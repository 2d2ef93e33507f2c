"""The start of a kernel, as a script: ``python -I -S start.py``.

It finds its options as JSON on standard input. When the kernel listens, it
writes ``started PID ADDRESS`` to standard output, or ``exists`` if somebody
listens there already, and ends with 0, while a fork of it is the keeper. If
that fails it writes one line to standard error, and ends with 1. With
``"foreground": true`` it stays, and is the keeper itself; if somebody listens
there already, it says so in one line, and ends with 71.

With ``--handover FD``, it is a keeper that changes its code, and with
``--back FD``, one whose new code cannot be loaded; see `handover`. With
``--trial FD``, it is what the daemon runs before; see `trial`.

Python compiles a script at each start, so all that can be elsewhere is.
"""

import gc
import json
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gocept.runner.kernel.keeper.handover import Content, Fields
    from gocept.runner.kernel.keeper.program import Daemon, Load

_CANNOT_START = 71  # as in `errors`, for a supervisor, which wanted the kernel


def main(load: 'Load') -> int:
    """Be a kernel whose daemon `load` imports; returns the status."""
    gc.disable()  # there is little garbage, and much to look through
    mode, fd = (*sys.argv[1:3], '', '')[:2]
    try:
        content = read(mode, fd)
        find_code((mode == '--back' and content['previous'])
                  or content['options'])
        if mode == '--trial':
            return run_trial(load, content)
        if mode in ('--handover', '--back'):
            return go_on(load, content, int(fd), mode == '--back')
        return begin(load, content)
    except Exception as error:
        text = ' '.join(str(error).split())
        kind = type(error).__name__
        prefix = '' if kind == 'KernelError' else f'{kind}: '
        print(prefix + text, file=sys.stderr, flush=True)
        return 1


def read(mode: str, fd: str) -> 'Content':
    """What there is to know, by name: ``options`` and more."""
    if not mode.startswith('--'):
        return {'options': json.load(sys.stdin)}
    with open(int(fd), closefd=False) as file:
        file.seek(0)
        content: Content = json.load(file)
        return content


def find_code(options: 'Fields') -> None:
    """Import from the path of the options, but Python itself as it is."""
    sys.path += [each for each in options['path'] if each not in sys.path]


def begin(load: 'Load', content: 'Content') -> int:
    """Listen, and become the keeper."""
    from gocept.runner.kernel.keeper import boot, control
    from gocept.runner.kernel.keeper.options import Options
    options = Options.from_json(content['options'])
    try:
        table, options = boot.take_place(options)
    except control.AlreadyThere:
        if options.foreground:
            print(f'a kernel, or another program, listens on '
                  f'{options.describe()} already', file=sys.stderr, flush=True)
            return _CANNOT_START
        print('exists', flush=True)
        return 0
    from gocept.runner.kernel.keeper import program
    daemon = load()
    if not options.foreground:
        boot.leave_client(options)
    boot.open_standard(options)
    return program.play(daemon, table, options, {})


def go_on(load: 'Load', content: 'Content', fd: int, back: bool) -> int:
    """Be the keeper that it was before."""
    try:
        from gocept.runner.kernel.keeper import handover, program
        daemon = load()
    except Exception:
        command = content.get('back')
        if back or not command or not os.path.exists(command[-1]):
            raise
        os.set_inheritable(fd, True)
        os.execv(command[0], [*command, '--back', str(fd)])
    return program.play(daemon, *handover.take(content, fd, back))


def run_trial(load: 'Load', content: 'Content') -> int:
    """Tell whether the code could take over the state."""
    from gocept.runner.kernel.keeper.options import Options
    print('ok', load().trial(
        content['table'], Options.from_json(content['options'])), flush=True)
    return 0


def load_daemon() -> 'Daemon':
    """The daemon of this release."""
    import importlib
    return importlib.import_module('gocept.runner.kernel.daemon.daemon')


if __name__ == '__main__':
    sys.exit(main(load_daemon))
