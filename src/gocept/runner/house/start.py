"""The start of a template, as a script: ``python -P start.py``.

It finds its options as JSON on standard input; see `launch`.

Python compiles a script at each start, so all that can be elsewhere is.
"""

import gc
import json
import sys


def main() -> int:
    """Be a template; returns the status."""
    gc.disable()  # what is made now stays
    options = json.load(sys.stdin)
    sys.path[:] = options['path']
    from gocept.runner.house.template import run
    return run(options)


if __name__ == '__main__':
    sys.exit(main())
