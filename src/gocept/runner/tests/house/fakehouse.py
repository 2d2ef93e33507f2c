"""A house with the template of `faketemplate`, as a program of its own.

It is a program, since it becomes the parent of all orphans, and handles
signals.
"""

import json
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

from gocept.runner.cli.mistakes import UserError
from gocept.runner.house import record
from gocept.runner.house.house import House
from gocept.runner.house.link import Streams
from gocept.runner.house.marks import Marks
from gocept.runner.house.part import Part
from gocept.runner.house.writer import Writer
from gocept.runner.poller import Poller
from gocept.runner.process import Process
from gocept.runner.tests import leftovers
from gocept.runner.tests.support import Program, TestCase
from gocept.runner.tests.victims import until

DECLARED = 'declared.json'


def fake_house(directory: str, *parts: Part, **options: Any) -> House:
    """A house whose templates read `DECLARED` in this directory."""
    path = f'{directory}/{DECLARED}'

    def launch(theirs: socket.socket, output: int, poller: Poller,
               ) -> Process:
        fd = theirs.fileno()
        return Process(
            [sys.executable, '-m', 'gocept.runner.tests.house.faketemplate',
             str(fd), path], pass_fds=(fd,), detached=True, poller=poller,
            stdin='null', stdout=output, stderr=output)

    def launch_program(name: str, words: Sequence[str], streams: Streams,
                       poller: Poller, on_end: Callable[[Process], object],
                       ) -> Process:
        return Process(
            [sys.executable, '-m', 'gocept.runner.tests.house.faketemplate',
             name, path, *map(str, streams)], pass_fds=streams.numbers,
            setsid=True, poller=poller, stdin='null', stdout=streams.stdout,
            stderr=streams.stderr, on_end=on_end)
    return House(path, directory, launch, launch_program, Writer(1),
                 Marks(colours=False), parts=parts, **options)


def run(directory: str, *parts: Part, **options: Any) -> int:
    """Run such a house, as the command does."""
    try:
        return fake_house(directory, *parts, **options).run()
    except UserError as error:
        print(f'error: {error}', flush=True)
        return error.status


class HouseTestCase(TestCase):
    """Has such a house in `self.dir`."""

    def setUp(self) -> None:
        super().setUp()
        self.addCleanup(leftovers.check_processes, self.dir)

    def declare(self, *workers: dict[str, Any], **more: Any) -> None:
        """Write what templates read that are started from now on."""
        path = self.dir / DECLARED
        (self.dir / 'new').write_text(
            json.dumps({'workers': workers, **more}))
        (self.dir / 'new').rename(path)

    def house(self, options: str = '') -> Program:
        """Start it."""
        return self.program(f'''
            import sys
            from gocept.runner.house.former import Former
            from gocept.runner.tests.house.fakehouse import run
            sys.exit(run({str(self.dir)!r}, {options}))
            ''')

    def state(self) -> record.HouseState:
        """What the house has written."""
        found = record.read(str(self.dir))
        assert found is not None
        return found

    def all_run(self, house: Program, count: int) -> None:
        """Wait until so many workers run, in whichever order they start."""
        for _ in range(count):
            house.wait_for(' runs version 1')

    def started(self, house: Program, name: str) -> int:
        """Wait until a worker runs, and the house knows; returns its pid."""
        house.wait_for(f'{name} runs')
        pid = int(house.output.split()[-1])
        # The template tells the pid while the worker runs already.
        until(lambda: self.worker_state(name)['pid'] == pid)
        return pid

    def worker_state(self, name: str) -> record.WorkerState:
        """What it has written about a worker."""
        [found] = [each for each in self.state()['workers']
                   if each['name'] == name]
        return found


def worker(name: str, does: str = 'loop', **more: Any) -> dict[str, Any]:
    """A declaration."""
    return {'name': name, 'does': does, **more}


