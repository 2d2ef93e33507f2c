"""What is opened never gets the number of a standard stream."""

import io
import os
import subprocess
import sys
import tempfile
import textwrap
import unittest
from unittest import mock

from gocept.runner.testing import private_kernel
from gocept.runner.tests import support
from gocept.runner.waits.standard import is_terminal

CLOSE = 'exec 0<&- 1>&- 2>&-; exec "$@"'

REPORT = '''
    import os, sys

    def report(fds):
        with open(sys.argv[1], 'a') as file:
            for fd in fds:
                file.write(os.readlink(f'/proc/self/fd/{fd}') + '\\n'
                           if isinstance(fd, int) and fd <= 2
                           else f'{fd}\\n')
    '''


class StandardTests(unittest.TestCase):

    def run_closed(self, body: str) -> list[str]:
        """What a program reports that was started without 0 to 2."""
        with tempfile.NamedTemporaryFile() as report:
            subprocess.run(
                ['/bin/sh', '-c', CLOSE, 'sh', sys.executable, '-c',
                 textwrap.dedent(REPORT) + textwrap.dedent(body),
                 report.name],
                check=True, env=support.child_environment(),
                timeout=support.DEADLINE)
            return report.read().decode().splitlines()

    def test_a_connection_to_a_kernel(self) -> None:
        with private_kernel() as kernel:
            self.assertEqual(['/dev/null', 'True'], self.run_closed(f'''
                from gocept.runner.kernel import Kernel
                with Kernel({kernel.port_or_path!r}) as kernel:
                    report([0, str(kernel.fileno() > 2)])
                '''))

    def test_all_are_filled(self) -> None:
        self.assertEqual(['/dev/null'] * 3 + ['True', 'same'], self.run_closed(
            '''
            from gocept.runner.waits.standard import fill_standard
            fill_standard()
            before = [os.fstat(fd) for fd in range(3)]
            fill_standard()
            report([0, 1, 2, str(all(map(os.get_inheritable, range(3))))])
            if before == [os.fstat(fd) for fd in range(3)]:
                report(['same'])
            '''))

    def test_what_is_open_stays(self) -> None:
        before = [os.fstat(fd) for fd in range(3)]
        support_before = support.open_descriptors()
        from gocept.runner.waits.standard import fill_standard
        fill_standard()
        self.assertEqual(before, [os.fstat(fd) for fd in range(3)])
        self.assertEqual(support_before.keys(),
                         support.open_descriptors().keys())

    def test_a_poller(self) -> None:
        self.assertEqual(['/dev/null'] * 3, self.run_closed('''
            from gocept.runner.poller import Poller
            poller = Poller()
            report([0, 1, 2])
            '''))

    def test_the_streams_of_a_child(self) -> None:
        self.assertEqual(['/dev/null'] * 3 + ['hello'], self.run_closed('''
            from gocept.runner.process import Process
            child = Process('cat', stdin='pipe', stdout='pipe')
            report([0, 1, 2])
            child.channel.write(b'hello')
            child.channel.read_until(b'hello', 60)
            report(['hello'])
            child.terminate()
            '''))

    def test_a_child_that_inherits_them(self) -> None:
        self.assertEqual(['/dev/null'] * 3, self.run_closed('''
            from gocept.runner.process import Process
            Process(['sh', '-c', 'a=$(readlink /proc/$$/fd/[012]); '
                     'echo "$a" >> $0', sys.argv[1]]).wait(60)
            '''))

    def test_the_descriptor_of_a_notification(self) -> None:
        fd, *others = self.run_closed('''
            from gocept.runner.executor import notified
            check = notified().check()
            report([check.variables['NOTIFY_FD'], 0, 1, 2])
            ''')
        self.assertEqual(['/dev/null'] * 3, others)
        self.assertGreater(int(fd), 2)

    def test_a_child_that_sets_standard_error_to_nonblocking(self) -> None:
        self.assertEqual(
            ['True', 'True', 'gocept.runner.process'], self.run_closed("""
                import logging, logging.handlers, queue
                from gocept.runner.process import Process
                os.dup2(os.pipe()[1], 2)
                queue = queue.SimpleQueue()
                logging.getLogger().addHandler(
                    logging.handlers.QueueHandler(queue))
                words = [sys.executable, '-c',
                         'import os; os.set_blocking(2, False)']
                for _ in range(2):
                    Process(words).wait()
                    report([str(os.get_blocking(2))])
                while not queue.empty():
                    record = queue.get()
                    if 'O_NONBLOCK' in record.msg:
                        report([record.name])
                """))

    def test_one_that_does_not_block_from_the_start(self) -> None:
        self.assertEqual(['False'], self.run_closed("""
            from gocept.runner.process import Process
            os.dup2(os.pipe()[1], 2)
            os.set_blocking(2, False)
            Process('true').wait()
            report([str(os.get_blocking(2))])
            """))


class TerminalTests(unittest.TestCase):

    def test_what_is_none(self) -> None:
        closed = io.StringIO()
        closed.close()
        for stream in None, io.StringIO(), closed, mock.Mock(spec=['write']):
            self.assertFalse(is_terminal(stream))

    def test_a_terminal(self) -> None:
        ours, theirs = os.openpty()
        self.addCleanup(os.close, ours)
        with open(theirs, 'w') as stream:
            self.assertTrue(is_terminal(stream))
