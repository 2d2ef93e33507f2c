"""Background servers beside bgpy, execnet and rpyc, and the raw limit.

* trips: a request and its answer, on a connection that is kept; and the
  processor's time of both sides. Raw is a socket echo that blocks.
* connections: the same with a connection for each request.
* few, many: 20 and 200 clients at once, each with a thread of one process;
  the slowest client on average, and the longest wait of all, beside the median
  wait. Raw is a socket echo with epoll.
* large: 100 MB to the server and back, with a token, and with TLS; and what
  the authentication of as much data costs. Raw is a socket.
* initializing: from nothing to a server that is initialised. Raw is a Python
  that listens.

execnet is measured as it is fastest: all clients share one gateway by pipes,
whose other end answers in callbacks. rpyc is asked by plain arguments. bgpy
needs an old click, so it has an environment of its own.
"""

import sys
from pathlib import Path

from benchmarks import environments
from benchmarks.measures import Measure, run
from benchmarks.options import make_parser
from benchmarks.table import Row, Target, render

SIDES = ('raw', 'bgpy', 'execnet', 'rpyc', 'ours')

BGPY = 'bgpy==0.3.1'

MEGABYTES = 100


def measures(peers: str, bgpy: str) -> dict[str, Measure]:
    """What can be measured, with the directories that have the peers."""
    return {
        'trips': Measure('trips', [peers, bgpy, '1000', '5'], [
            Row('a request', 'µs', {}, [
                Target(1 / 0.6, 'raw'), Target(1.0, 'execnet'),
                Target(1.0, 'rpyc')]),
            Row("of this, the client's processor", 'µs', {}),
            Row("of this, the server's processor", 'µs', {})]),
        'connections': Measure('connections', [peers, bgpy, '50', '2'], [
            Row('connect, and a request', 'ms', {},
                [Target(1 / 200, 'bgpy')], {'bgpy': 830.0})]),
        **{name: Measure(
            'clients', [peers, bgpy, str(number), str(4000 // number), '3'], [
                Row(f'{number} clients, a request each', 'µs', {},
                    [Target(1.0, 'execnet')], {'execnet': known}),
                Row('slowest client, of the median wait', '', {},
                    [Target(10.0)]),
                Row('longest wait, of the median wait', '', {}),
                Row('requests that failed', '', {}, [Target(0.0)])])
           for name, number, known in (
               ('few', 20, 63.7), ('many', 200, 79.4))},
        'large': Measure('large', [peers, bgpy, str(MEGABYTES), '2'], [
            Row(f'{MEGABYTES} MB there and back', 's', {},
                [Target(2.0, 'raw')]),
            Row('the same with TLS', 's', {}),
            Row('authentication of as much', 's', {})]),
        'initializing': Measure('initializing', [peers, bgpy, '3'], [
            Row('from nothing to initialised', 'ms', {}, [],
                {'bgpy': 1800.0}),
            Row('more than a bare server', 'ms', {}, [Target(150.0)])]),
    }


WITH_BGPY = {'connections', 'initializing'}


def main(arguments: list[str]) -> int:
    """Print the table; returns 1 if a target is missed."""
    options = make_parser(
        'background', __doc__, list(measures('', '')),
        'in each of them, the sides take several turns').parse_args(arguments)
    names = ['execnet', 'rpyc']
    try:
        ours = environments.ours()
        found = [environments.released('peers', *names)]
        if WITH_BGPY.intersection(options.only):
            names.append('bgpy')
            found.append(environments.released(
                'bgpy', BGPY, 'click<8.1', unpinned=['click']))
    except environments.EnvironmentFailed as error:
        print(error, file=sys.stderr)
        return 1
    print(environments.heading(ours, *found, names=names), flush=True)
    known = measures(*(_packages(found, number) for number in (0, 1)))
    rows = run({name: known[name] for name in options.only}, ours,
               options.runs)
    print(render(SIDES, rows))
    return 0 if all(row.is_met() for row in rows) else 1


def _packages(found: list[Path], number: int) -> str:
    if number >= len(found):
        return ''
    return str(environments.packages(found[number]))
