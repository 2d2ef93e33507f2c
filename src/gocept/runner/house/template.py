"""The template: a process that has read the configuration, and forks workers.

Its one thread waits for wishes on the link to `up`, and does nothing else. A
worker is a fork of it, and a child of `up`; see `gocept.runner.process.fork`.
"""

import argparse
import contextlib
import io
import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from gocept.runner.boot import housed
from gocept.runner.boot.housed import Life, Warm
from gocept.runner.cli import run as command
from gocept.runner.cli import worker
from gocept.runner.cli.mistakes import UserError, guarded
from gocept.runner.errors import SUCCESS, WORKER_FAILED
from gocept.runner.events import LoopStarted, hearing
from gocept.runner.house import warm
from gocept.runner.house.launch import Wanted
from gocept.runner.house.link import (
    Failed,
    Fork,
    Forked,
    Stage,
    Streams,
    Unforked,
    Up,
    say_stage,
)
from gocept.runner.process import inheritance
from gocept.runner.process.fork import fork_orphan
from gocept.runner.signals.handlers import starting
from gocept.runner.waits.packets import Packets


def run(options: Mapping[str, Any]) -> int:
    """Be a template with the options that `launch` has made.

    Returns its status; never in a worker.
    """
    inheritance.open_standard((0,), os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    wanted = Wanted(**{name: options[name] for name in Wanted._fields})
    # Workers inherit what `starting` does about SIGUSR2.
    with starting(), Up(_packets(options['link'])) as up:
        try:
            return _serve(up, wanted)
        except ConnectionError:  # up has ended
            return SUCCESS


def _packets(fd: int) -> Packets:
    os.set_inheritable(fd, False)
    return Packets(socket.socket(fileno=fd))


def _serve(up: Up, wanted: Wanted) -> int:
    """Read the configuration, and fork workers until the link ends."""
    try:
        with up.required():
            warmth = warm.configure(wanted)
            warm.preload(warmth)
        ready = warm.ready()
    except UserError as error:
        up.say(Failed(error.status, str(error)))
        return error.status
    except Exception as error:
        traceback.print_exc()
        up.say(Failed(WORKER_FAILED, ' '.join(
            f'{type(error).__name__}: {error}'.split())))
        return WORKER_FAILED
    parser = _Parser(wanted)
    _flush()  # or each worker would write that again
    warm.freeze()
    up.say(ready)
    with contextlib.closing(up.wishes()) as wishes:
        for wish, streams in wishes:
            if ready.threads:
                up.say(Unforked(wish.number, 'there are threads: '
                                + ', '.join(ready.threads)))
                continue
            parse = parser.parse(wish)
            if _fork(up, wish):
                inherited = contextlib.ExitStack()
                inherited.enter_context(up)
                inherited.enter_context(contextlib.closing(wishes))
                _become(wish, streams, inherited, warmth, parse)
    return SUCCESS


def _flush() -> None:
    for stream in sys.stdout, sys.stderr:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()


_MOST_KNOWN = 1000  # command lines

Parsed = tuple[argparse.Namespace, Sequence[str]]
"""The options of a worker, and its arguments."""


class _Parser:
    """Knows the command lines that workers were forked with.

    What it makes of one is shared by the next worker with the same one.
    """

    def __init__(self, wanted: Wanted) -> None:
        self._parser = command.make_parser()
        self._parser.set_defaults(config=wanted.config)
        self._known: dict[Sequence[str], Parsed] = {}

    def parse(self, wish: Fork) -> Callable[[], Parsed]:
        """Return what returns the options.

        In the worker it exits with a line if they are wrong.
        """
        words = (wish.name, *wish.words)
        if words not in self._known:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            with (contextlib.suppress(SystemExit),
                  contextlib.redirect_stderr(io.StringIO()),
                  contextlib.redirect_stdout(io.StringIO())):  # of --help
                self._known[words] = worker.parse(self._parser, words)
        known = self._known.get(words)
        return lambda: known or worker.parse(self._parser, words)


def _fork(up: Up, wish: Fork) -> bool:
    """Fork; returns whether this is the worker."""
    try:
        return fork_orphan(
            lambda pid, pidfd: up.say(Forked(wish.number, pid, pidfd)))
    except ConnectionError:
        raise
    except OSError as error:
        up.say(Unforked(wish.number, str(error)))
        return False


def _become(wish: Fork, streams: Streams, inherited: contextlib.ExitStack,
            warmth: Warm, parse: Callable[[], Parsed]) -> NoReturn:
    """Be the worker, up to its end."""
    housed.move_in(
        streams.stdout, streams.stderr, wish.mark,
        ['gocept-runner', 'run', wish.name, *wish.words], wish.name)
    with Life(streams.life) as life:
        control = (_packets(os.dup(streams.control))
                   if streams.control >= 0 else None)
        inherited.close()

        def main() -> int:
            with life.watched(), telling(control):
                options, args = parse()
                return guarded(command.PROG, lambda: worker.run(
                    lambda: command.find(options, args), options, args,
                    warmth.configuration))
        housed.end_process(main)


@contextlib.contextmanager
def telling(control: Packets | None) -> Iterator[None]:
    """Say on the control socket how far the worker is."""
    if control is None:
        yield
        return

    def hear(event: object) -> None:
        if isinstance(event, LoopStarted):
            say_stage(control, Stage('running'))
    with control, hearing(hear):
        yield
