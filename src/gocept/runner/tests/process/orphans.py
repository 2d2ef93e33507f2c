"""A program that forks orphans for a test, as often as the test asks for it.

Each line of its standard input is Python, which an orphan executes. For each,
the program says ``forked PID DESCRIPTORS`` or ``failed ERRNO``; DESCRIPTORS is
how many it has open.
"""

import sys
import textwrap

from gocept.runner.process import Process
from gocept.runner.process.orphan import Expected, Orphan
from gocept.runner.tests.support import child_environment
from gocept.runner.tests.victims import lines

PROGRAM = '''
    import os, signal, sys
    from gocept.runner.process.fork import fork_orphan
    from gocept.runner.process import procfs
    from gocept.runner.tests.victims import say
    signal.alarm(100)

    def tell(pid, pidfd):
        assert procfs.look(pid).group == pid, procfs.look(pid)
        assert procfs.look(pid).parent != os.getpid(), procfs.look(pid)
        said.append(pid)

    for line in sys.stdin:
        said = []
        try:
            if fork_orphan(tell):
                signal.alarm(100)
                exec(line)
                os._exit(0)
        except OSError as error:
            say('failed', error.errno)
        else:
            say('forked', *said, len(os.listdir('/proc/self/fd')))
'''


class Forking:
    """For a test case of processes."""

    def start_forking(self, before='', program=PROGRAM, **options):
        return self.start(
            [sys.executable, '-c',
             textwrap.dedent(before) + textwrap.dedent(program)],
            adopt=True, setsid=True, stdin='pipe', stdout='pipe',
            env=child_environment(), **options)

    def ask(self, child: Process, code: str) -> list[str]:
        """Have the program fork; returns what it says."""
        child.channel.write(code.encode() + b'\n')
        [words] = lines(child, 1)
        return words

    def fork(self, child: Process, code: str = 'signal.pause()',
             **options) -> Orphan:
        """Have the program fork an orphan."""
        with Expected() as expected:
            word, pid, _ = self.ask(child, code)
            self.assertEqual('forked', word)
            orphan = Orphan(expected, 'worker', int(pid), **options)
        self.addCleanup(orphan.close)
        return orphan
