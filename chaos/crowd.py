"""Threads that use one runner, with subscribers and log handlers that fail.

Each run is one program, `chaos.scripts.crowd`.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from chaos.processes import alive, described, side_by_side
from chaos.scripts import crowd
from chaos.worker import check
from gocept.runner.tests.support import child_environment

LONGEST_RUN = 600
"""How long a program may take, in seconds."""

WORK = 0.5
"""How long its threads use the runner, in seconds."""


def run(randomly: random.Random, runs: int) -> Iterator[str]:
    """Run programs; yields how many children each of them had."""
    return side_by_side(
        run_one, [randomly.randrange(10 ** 9) for _ in range(runs)])


def run_one(seed: int) -> str:
    """Run one program; returns what it has said at the end."""
    with tempfile.TemporaryDirectory() as directory:
        program = subprocess.run(
            [sys.executable, crowd.__file__, str(seed), str(WORK)],
            cwd=directory, env=child_environment(CHAOS=directory),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, timeout=LONGEST_RUN, text=True)
        left = {pid: described(pid) for pid in alive(f'CHAOS={directory}')}
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    check(program.returncode == 0,
          f'seed {seed}: status {program.returncode}\n{program.stdout}')
    check(not left, f'seed {seed}: it has left behind {left}')
    return program.stdout.strip().splitlines()[-1]
