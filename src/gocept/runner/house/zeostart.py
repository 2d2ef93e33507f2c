"""The start of the programs behind `gocept.runner.house.zeo`, as a script.

``python -P zeostart.py MODULE`` finds its options as a line of JSON on
standard input, and calls `run` of a module of this package with them; what
`run` returns is the status.

Python compiles a script at each start, so all that can be elsewhere is.
"""

import importlib
import json
import sys


def main() -> int:
    """Be the program; returns the status."""
    options = json.loads(sys.stdin.buffer.readline())
    known = set(options['modules'])
    sys.path[:] = options['modules'] + [
        each for each in sys.path if each not in known]
    program = importlib.import_module(f'gocept.runner.house.{sys.argv[1]}')
    status: int = program.run(options)
    return status


if __name__ == '__main__':
    sys.exit(main())
