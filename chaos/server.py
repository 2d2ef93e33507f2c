"""Two workers with one object, a ZEO server, and all of them get killed."""

import pathlib
import random
import signal
import tempfile
import time
from collections.abc import Iterator

from chaos.worker import LOG, RUNS_PER_DATABASE, Scene, check, end
from gocept.runner.tests.cli.test_worker import ZEOServer, until
from gocept.runner.tests.support import Program

NAMES = ('first', 'second')

LONGEST_CONNECT = 30
"""How long a worker waits until it is connected, in seconds."""

LONGEST_STOP = 0.5
"""How long a worker is held at most, in seconds."""


def run(randomly: random.Random, runs: int) -> Iterator[str]:
    """Let something happen to one of them; yields what was done."""
    for first in range(0, runs, RUNS_PER_DATABASE):
        with tempfile.TemporaryDirectory() as name:
            company = Company(pathlib.Path(name))
            try:
                for _ in range(min(RUNS_PER_DATABASE, runs - first)):
                    yield company.suffer(randomly)
                company.end()
            finally:
                company.close()


class Company:
    """A server and two workers."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.server = ZEOServer(directory)
        # With no pauses, one of them would win again and again.
        conf = self.server.zope_conf(LOG).replace(
            'wait-timeout 1\n', f'wait-timeout {LONGEST_CONNECT}\n')
        self.scene = Scene(directory, conf, ticks=0.1)
        self.programs: dict[str, Program] = {}
        for name in NAMES:
            self.programs[name] = self.scene.start(name)
            # One after the other, as the first makes the root folder.
            self.wait_for_work(name)

    def close(self) -> None:
        """Kill all that is left."""
        for program in self.programs.values():
            program.close()
        self.server.kill()

    def suffer(self, randomly: random.Random) -> str:
        """Lose one of them, and see that all work afterwards."""
        happen = randomly.choice([
            self.lose_server, self.kill_worker, self.end_worker,
            self.stop_worker])
        try:
            done = happen(randomly.choice(NAMES), randomly)
            for name in NAMES:
                self.wait_for_work(name)
        except AssertionError as error:
            raise AssertionError(
                f'{error}, after {happen.__name__}; the log ends with:\n'
                + self.scene.log()[-5000:]) from error
        return f'{done}: {len(self.scene.acknowledged())} acknowledged'

    def wait_for_work(self, name: str) -> None:
        """Wait until the worker has committed once more."""
        before = len(self.scene.acknowledged(name))

        def works() -> bool:
            status = self.programs[name].process.poll()
            check(status is None, f'{name} ended: {status}')
            return len(self.scene.acknowledged(name)) > before
        try:
            until(works)
        except AssertionError:
            raise AssertionError(f'{name} does not work any more') from None

    def lose_server(self, name: str, randomly: random.Random) -> str:
        """Kill the server, and look at the database before it is back."""
        self.server.kill()
        self.scene.in_flight += len(NAMES)
        while randomly.random() < 0.5:
            self.server.start()
            self.server.kill()
            self.scene.in_flight += len(NAMES)
        done = f'server lost, {self.scene.check()} stored'
        self.server.start()
        return done

    def kill_worker(self, name: str, randomly: random.Random) -> str:
        """Kill a worker, and start it again."""
        program = self.programs[name]
        program.send(signal.SIGKILL)
        status = end(program)
        program.close()
        check(status == -signal.SIGKILL, f'status {status}')
        self.scene.in_flight += 1
        self.programs[name] = self.scene.start(name)
        return f'{name} killed'

    def end_worker(self, name: str, randomly: random.Random) -> str:
        """End a worker with a signal, and start it again."""
        signum = randomly.choice(
            [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
        self.expect_end(name, signum)
        self.programs[name] = self.scene.start(name)
        return f'{name} ended by {signum.name}'

    def expect_end(self, name: str, signum: signal.Signals) -> None:
        """End a worker, which has to succeed."""
        program = self.programs[name]
        program.send(signum)
        self.expect_success(name, signum)

    def expect_success(self, name: str, signum: signal.Signals) -> None:
        """Wait for the end of a worker that has got a signal."""
        program = self.programs[name]
        status = end(program)
        program.close()
        check(status == 0, f'{name}: status {status} after {signum.name}\n'
                           + program.output + self.scene.log())

    def stop_worker(self, name: str, randomly: random.Random) -> str:
        """Hold a worker, perhaps in the middle of a commit, for a while."""
        self.programs[name].send(signal.SIGSTOP)
        # It may hold the lock of the server that another commit waits for, so
        # nobody can be waited for now.
        time.sleep(randomly.uniform(0, LONGEST_STOP))
        other = NAMES[1 - NAMES.index(name)]
        ending = randomly.random() < 0.5
        if ending:
            self.programs[other].send(signal.SIGTERM)
        self.programs[name].send(signal.SIGCONT)
        if ending:
            self.expect_success(other, signal.SIGTERM)
            self.programs[other] = self.scene.start(other)
        return f'{name} stopped for a while'

    def end(self) -> None:
        """End all of them in good order, and look at the database."""
        for name in NAMES:
            self.expect_end(name, signal.SIGTERM)
        self.server.kill()
        self.scene.check()
