"""Long random fault tests; each module is a part with a function `run`.

A part with a name `NEEDS` is left out if that program is not installed. One
with a name `ENVIRONMENT` runs with the Python of that environment (see
`environments`), which takes a while to make, so it has to be asked for. One
with a name `RUNS` does no more than so many different things.
"""

import argparse
import importlib
import logging
import random
import subprocess
import sys
import time
import traceback
from pathlib import Path

import environments
from gocept.runner.tests import services
from gocept.runner.tests.support import ignore_nothing

PARTS = (
    'worker', 'trouble', 'crowd', 'server', 'children', 'house', 'kernel',
    'lines', 'frames', 'jobs', 'schedule', 'status')

# The house of workers that `up` tests is not finished: whoever changes it asks
# for this part, and CI does not run it yet.
SPECIAL_PARTS = ('plone', 'up')
"""Those that have to be asked for."""


def main() -> int:
    """Run the parts that the command line names; 1 if one of them fails."""
    parser = argparse.ArgumentParser(
        description='Kill programs at random, and look at what is left.')
    parser.add_argument(
        'parts', metavar='NAME', nargs='*', default=list(PARTS),
        help=f'what to run (default: all of {", ".join(PARTS)}; '
             f'not of {", ".join(SPECIAL_PARTS)})')
    parser.add_argument(
        '--seed', type=int, default=random.randrange(10 ** 9),
        help='makes the same choices again (default: a random one)')
    parser.add_argument(
        '--runs', type=int, default=200,
        help='how often each part does something (default: %(default)s)')
    options = parser.parse_args()
    for name in options.parts:
        if name not in PARTS + SPECIAL_PARTS:
            parser.error(f'no part {name!r}; there are '
                         f'{", ".join(PARTS + SPECIAL_PARTS)}')
    # ZODB tells what it recovers, and of records from the future.
    logging.disable(logging.CRITICAL)
    ignore_nothing()
    print(f'seed {options.seed}', flush=True)
    return max([_run(name, options.seed, options.runs)
                for name in options.parts])


def _run(name: str, seed: int, runs: int) -> int:
    part = importlib.import_module(f'{__name__}.{name}')
    if hasattr(part, 'ENVIRONMENT'):
        python = environments.interpreter(part.ENVIRONMENT)
        if python.parent.parent != Path(sys.prefix):
            return subprocess.run([
                python, '-c', 'import chaos, sys; sys.exit(chaos.main())',
                name, '--seed', str(seed), '--runs', str(runs)],
                env=environments.clean_environ() | {
                    'PYTHONPATH': str(environments.CHECKOUT)}).returncode
    runs = min(runs, getattr(part, 'RUNS', runs))
    needed = getattr(part, 'NEEDS', None)
    if needed is not None and services.path_of(needed) is None:
        print(f'{name}: left out. Not installed: {services.described(needed)}',
              flush=True)
        return int(services.none_may_be_left_out())
    started = time.monotonic()
    done = 0
    failed = False
    try:
        for step in part.run(random.Random(f'{seed} {name}'), runs):
            done += 1
            print(f'{name} {done}/{runs}: {step}', flush=True)
    except Exception:  # perhaps after the last run
        traceback.print_exc()
        failed = True
    failed = failed or done < runs
    print(f'{name}: {"FAILED after " if failed else ""}{done} runs in '
          f'{time.monotonic() - started:.0f} s, seed {seed}', flush=True)
    return int(failed)
