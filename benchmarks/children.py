"""Processes, channels and the poller beside another library and system calls.

The peer is yet-another-io-channels-library, which has channels and a poller
too. Raw is what the system calls cost in a bare loop:

* echo: 256 MiB through ``cat`` in writes of 64 KiB, and the round trip of one
  byte. Raw is an epoll loop with descriptors that do not block. The peer's
  writes do block, so it never has more on the way than the pipes hold. For a
  round trip it matters most which processor the child wakes up on; with one
  for both there is the least that hides what a side adds.
* lines: a million short ones from a pipe, by poll() and by read(), in bursts
  as large as a pipe and in small ones; then from a file in memory, all of
  which is ready at once. There the peer's time grows with the square of the
  size, so that it gets small files only. Raw is a read and
  ``splitlines()``.
* idle: a poll() with one busy channel among many that are idle. Raw is epoll
  and a read.
* spawn: start and reap 500 processes, one after the other, without and with
  the end of a ``with`` statement, which has ours look for descendants that
  are left; the latter among other processes as well. Raw is
  ``subprocess.Popen``.
"""

from benchmarks.measures import Comparison, Measure
from benchmarks.table import Row, Target

PEER = 'yet-another-io-channels-library'

PEER_VERSION = '0.2.4.post1'

IDLE = (10, 1_000, 10_000)

OTHERS = (0, 500, 2_000)


def measures(peer: str) -> dict[str, Measure]:
    """What can be measured; `peer` is the directory that has the peer."""
    third = Target(1 / 3, 'peer')
    few = f'peer, {IDLE[0]}'
    idle = [
        Row(f'poll() among {number:,} idle', 'µs', {}, [Target(1.0, few)],
            {'peer': known})
        for number, known in zip(IDLE, (7.0, 109.0, 500.0), strict=True)]
    idle[-1] = idle[-1]._replace(targets=[
        *idle[-1].targets, Target(1.5, f'ours, {IDLE[0]}')])
    return {
        'echo': Measure('echo', [peer, '256', '500', '10'], [
            Row('256 MiB through cat', 'ms', {}, [Target(1 / 0.9, 'raw')]),
            Row('one byte through cat', 'µs', {}, [Target(1.3, 'raw')]),
            Row('one byte through cat, one processor', 'µs', {})]),
        'lines': Measure('lines', [peer, '1000000', '10'], [
            Row('line by poll(), bursts of 4 KiB', 'µs', {}, [third],
                {'peer': 0.9}),
            Row('line by poll(), bursts of 64 KiB', 'µs', {}, [third]),
            Row('line by read(), bursts of 64 KiB', 'µs', {}),
            Row('10 MB of lines by poll(), files of 100 kB', 's', {}),
            Row('10 MB of lines by poll(), one file', 's', {},
                [Target(1.0, 'ours, small')], {'peer': 92.0})]),
        'idle': Measure('idle', [peer, '3', *map(str, IDLE)], idle),
        'spawn': Measure('spawning', ['500', '10', *map(str, OTHERS)], [
            Row('start and reap true', 'µs', {}, [Target(1.2, 'raw')]),
            *(Row(f'start, reap and close true among {number:,} others', 'µs',
                  {}, [Target(1.6, 'raw')]) for number in OTHERS)]),
    }


main = Comparison(
    'children', __doc__, ('raw', 'peer', 'ours'), PEER, PEER_VERSION, measures,
).main
