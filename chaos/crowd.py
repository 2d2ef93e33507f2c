"""Threads that use one runner, with subscribers and log handlers that fail.

Each run is one program, `chaos.scripts.crowd`.
"""

import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from chaos.processes import alive, described
from chaos.scripts import crowd
from chaos.worker import check
from gocept.runner.tests.support import child_environment

LONGEST_RUN = 150
"""How long a program may take, in seconds."""

WORK = 0.5
"""How long its threads use the runner, in seconds."""


def run(randomly: random.Random, runs: int) -> Iterator[str]:
    """Run programs; yields how many children each of them had."""
    for _ in range(runs):
        seed = randomly.randrange(10 ** 9)
        with tempfile.TemporaryDirectory() as directory:
            word = f'CHAOS={directory}'
            program = subprocess.run(
                [sys.executable, crowd.__file__, str(seed), str(WORK)],
                cwd=directory, env=child_environment(CHAOS=directory),
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, timeout=LONGEST_RUN, text=True)
            left = [described(pid) for pid in alive(word)]
            for pid in alive(word):
                os.kill(pid, 9)
        check(program.returncode == 0, f'seed {seed}: status '
              f'{program.returncode}\n{program.stdout}')
        check(not left, f'seed {seed}: it has left behind {left}')
        yield program.stdout.strip().splitlines()[-1]
