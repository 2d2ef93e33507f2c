"""Executors beside mirakuru.

* output, tcp, http, unix, pid: from the moment in which a child becomes ready,
  at once or after a while, to the return of `start`; notified and answer,
  which the peer does not have, are the same for a child that says so itself,
  and for one that listens at once, but answers wrong until it is ready.
* stop: of a child that obeys at once, alone and among 2,000 other processes.
  Raw is ``subprocess.Popen``.
* hundred: servers on TCP ports, started and stopped one after another (raw is
  a loop that connects each millisecond); and such that are ready after 0.3 s,
  started side by side, beside the slowest of these starts.
"""

from benchmarks.measures import Comparison, Measure
from benchmarks.table import Row, Target

DELAYS = (0, 50, 300)

OTHERS = (0, 2_000)

TARGETS = {'answer': 20.0, 'http': 8.0}

KNOWN = {'output': 39.0, 'http': 93.0}
"""The ends of the range that the peer was measured in, for all kinds."""


def measures(peer: str) -> dict[str, Measure]:
    """What can be measured; `peer` is the directory that has the peer."""
    found = {
        kind: Measure('readiness', [peer, '5', kind, *map(str, DELAYS)], [
            Row(f'{kind}, ready after {delay} ms', 'ms', {},
                [Target(TARGETS.get(kind, 3.0))],
                {'peer': KNOWN[kind]} if kind in KNOWN else {})
            for delay in DELAYS])
        for kind in ('output', 'tcp', 'answer', 'http', 'unix', 'pid',
                     'notified')}
    stop = [
        Row(f'stop among {number:,} others', 'ms', {}, [Target(5.0)],
            {'peer': known})
        for number, known in zip(OTHERS, (104.0, 221.0), strict=True)]
    stop[-1] = stop[-1]._replace(targets=[
        *stop[-1].targets, Target(1.5, 'ours, alone')])
    found['stop'] = Measure('obeying', [peer, '10', *map(str, OTHERS)], stop)
    found['hundred'] = Measure('hundred', [peer, '100'], [
        Row('100 one after another', 's', {}, [Target(2.5)],
            {'raw': 1.2, 'peer': 21.0}),
        Row('100 side by side', 's', {}, [Target(2.0, 'slowest')])])
    return found


main = Comparison(
    'executors', __doc__, ('raw', 'peer', 'ours', 'slowest'),
    'mirakuru', '3.1.0', measures).main
