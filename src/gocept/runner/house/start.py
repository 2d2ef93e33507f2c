"""The start of a process of the house, as a script: ``python -P start.py``.

It finds its options as JSON on standard input; see `launch`, and `program`.

Python compiles a script at each start, so all that can be elsewhere is.
"""

import gc
import json
import sys
from importlib import import_module

_TEMPLATE = 'gocept.runner.house.template'


def main() -> int:
    """Be a template, or what the options say; returns the status."""
    gc.disable()  # what is made now stays
    options = json.load(sys.stdin)
    sys.path[:] = options['path']
    module = import_module(options.get('module', _TEMPLATE))
    status: int = module.run(options)
    return status


if __name__ == '__main__':
    sys.exit(main())
