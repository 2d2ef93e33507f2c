"""The process kernel beside papa, from one client, and the raw limit.

* asking: the round trip of get, set and list of one name, by TCP and by a Unix
  socket. First papa's client talks to both daemons, then each has its own
  client. Raw is a socket echo between two such processes.
* crowded: the same of ours, with 500 idle connections and 1,000 processes,
  beside a daemon that is alone with its client.
* launching: to start 100 processes, and one with a resource limit. Raw is
  ``subprocess.Popen``.
* keeping: 500 idle processes: threads, and memory for each of them, that of
  files in memory included; once more when each has written a line, which was
  read.
* flooding: a child that writes 200 MB as fast as it can to a watcher that
  acknowledges; and the time from a line of a child to the watcher. Raw is a
  pipe. Most of it is lost with papa, which has no ``overflow='block'``.
* arising: from nothing to the first answer, for a client that starts the
  daemon itself, and for the command. Raw is a Python that does nothing. papa
  forks the client.
"""

from benchmarks.measures import Comparison, Measure
from benchmarks.table import Row, Target

QUESTIONS = ('get', 'set', 'list')

SIDES = ('raw', 'papa', 'ours', 'alone')

KNOWN_TRIPS = {'TCP': {'raw': 17.0, 'papa': 86.0},
               'Unix': {'raw': 11.0, 'papa': 57.0}}

MEBIBYTES = 200


def measures(peer: str) -> dict[str, Measure]:
    """What can be measured; `peer` is the directory that has the peer."""
    return {
        'asking': Measure('asking', [peer, '500', '5'], [
            Row(f'{question}, {kind}, {client}', 'µs', {},
                [Target(0.6, 'papa')], known)
            for kind, known in KNOWN_TRIPS.items()
            for question in QUESTIONS
            for client in ("papa's client", 'own client')]),
        'crowded': Measure(
            'crowded', [peer, '500', '5', '500', '1000'], [
                Row(f'{question}, {kind}, crowded', 'µs', {},
                    [Target(1.5, 'alone')])
                for kind in KNOWN_TRIPS for question in QUESTIONS]),
        'launching': Measure('launching', [peer, '100', '3'], [
            Row("start 100 processes, papa's client", 'ms', {},
                [Target(2.0, 'raw')]),
            Row('start 100 processes, own client', 'ms', {},
                [Target(2.0, 'raw')]),
            Row('start one with a limit', 'ms', {}, [Target(10.0)])]),
        'keeping': Measure('keeping', [peer, '500'], [
            Row('threads, 500 idle processes', '', {}, [Target(2.0)],
                {'papa': 502.0}),
            Row('memory, each of 500 idle ones', 'KiB', {}, [Target(15.0)],
                {'papa': 43.0}),
            Row('memory, each has written a line', 'KiB', {})]),
        'flooding': Measure(
            'flooding', [peer, str(MEBIBYTES), '20', '2'], [
                *(Row(f'{MEBIBYTES} MiB to a watcher, {kind}', 's', {},
                      [Target(MEBIBYTES * 1.048576 / 200)])
                  for kind in KNOWN_TRIPS),
                Row('of this, lost', 'B', {}, [Target(0.0)]),
                Row('of as much, neither arrived nor missing', 'B', {},
                    [Target(0.0)]),
                Row("from a child's line to the watcher", 'ms', {},
                    [Target(1.0)], {'papa': 100.0})]),
        'arising': Measure('arising', [peer, '4'], [
            Row('start by a client, first answer', 'ms', {}, [Target(100.0)],
                {'papa': 42.0}),
            Row('start by command, first answer', 'ms', {},
                [Target(150.0)])]),
    }


main = Comparison(
    'kernel', __doc__, SIDES, 'papa', '1.0.6', measures).main
