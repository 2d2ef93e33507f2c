"""Measurements against the peers and against the raw limit.

``bin/bench NAME [options]`` runs one of them; without a name it lists them.
"""

import importlib
import sys

BENCHMARKS = {
    'worker': 'a worker: ticks, signals, start and memory, beside '
              'gocept.runner 3.0',
    'children': 'processes, channels and the poller, beside '
                'yet-another-io-channels-library and system calls',
    'executors': 'executors: readiness, stop and many at once, beside '
                 'mirakuru',
    'kernel': 'the process kernel, beside papa',
    'background': 'background servers, beside bgpy, execnet and rpyc',
    'events': 'a worker that events wake, and what they cost a tick, beside '
              'gocept.runner 3.0',
    'house': 'twenty workers under one roof, beside twenty programs',
    'watch': 'a worker that a commit of another process wakes',
    'zope': 'a worker in Zope 5, Zope 6 and Plone, beside zconsole and a loop '
            'by hand',
}

BAD_USAGE = 2


def main() -> int:
    """Run the benchmark that the command line names; returns the status."""
    name, *arguments = sys.argv[1:] or ['']
    if name not in BENCHMARKS:
        print('usage: bench NAME [options]\n\nbenchmarks:', file=sys.stderr)
        for known, subject in BENCHMARKS.items():
            print(f'  {known:10} {subject}', file=sys.stderr)
        return BAD_USAGE
    module = importlib.import_module(f'{__name__}.{name}')
    status: int = module.main(arguments)
    return status
