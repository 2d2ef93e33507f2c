"""A worker that is a program of its own, where nobody can fork it.

That is so if ZCML has started threads, which a fork would not have. Such a
program reads the configuration itself. What else it has of the house, a fork
has, too: its output, and the two ends that are described in `link.Streams`.
"""

import gc
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gocept.runner.boot.housed import Life
from gocept.runner.cli import run as command
from gocept.runner.house.launch import Wanted
from gocept.runner.house.launch import command as start_command
from gocept.runner.house.link import Streams
from gocept.runner.house.template import telling
from gocept.runner.poller import Poller
from gocept.runner.process import Process, inheritance
from gocept.runner.process.daemons import options_file
from gocept.runner.signals.handlers import starting
from gocept.runner.waits.modules import module_path
from gocept.runner.waits.packets import Packets


def start(wanted: Wanted, name: str, words: Sequence[str], streams: Streams,
          poller: Poller, on_end: Callable[[Process], object]) -> Process:
    """Start ``gocept-runner run NAME``; the caller closes the streams."""
    options = {
        'module': __name__, 'path': module_path(), 'life': streams.life,
        'control': streams.control,
        'argv': [name, *_options(wanted), *words]}
    with options_file(options) as stdin:
        return Process(
            [*start_command(), name], name=name, setsid=True,
            stdin=stdin, stdout=streams.stdout, stderr=streams.stderr,
            pass_fds=[streams.life, streams.control], poller=poller,
            on_end=on_end)


def _options(wanted: Wanted) -> list[str]:
    """What the command line of such a program says."""
    said = [f'--{field.replace("_", "-")}={value}'
            for field, value in wanted._asdict().items()
            if field != 'verbose' and value is not None]
    return said + ['-v'] * wanted.verbose


def run(options: Mapping[str, Any]) -> int:
    """Be such a program, with the options that `start` has made."""
    gc.enable()
    inheritance.open_standard((0,), os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    for fd in options['life'], options['control']:
        os.set_inheritable(fd, False)
    control = Packets(socket.socket(fileno=options['control']))
    with Life(options['life']) as life:
        os.close(options['life'])
        with starting(), life.watched(), telling(control):
            return command.run(options['argv'])
