"""The start of a server, as a script: ``python -I start.py``.

It finds its options as JSON on standard input; see `launch`. When clients can
connect, it writes one line of JSON to standard output: ``{"pid": ...}``. If
the server cannot be started, the line has ``error``, the name of the
exception, and ``message``, and the status is that of the exception.

Python compiles a script at each start, so all that can be elsewhere is.
"""

import gc
import json
import sys


def main() -> int:
    """Be a server; returns the status."""
    gc.disable()  # there is little garbage, and much to look through
    options = json.load(sys.stdin)
    known = set(options['path'])
    sys.path[:] = options['path'] + [
        each for each in sys.path if each not in known]
    if options['detached']:
        from gocept.runner.process.inheritance import leave_starter
        leave_starter()
    from gocept.runner.background.program import run
    return run(options)


if __name__ == '__main__':
    sys.exit(main())
