"""Forks that are children of a subreaper."""

import errno
import os
import pathlib

from gocept.runner.process import procfs
from gocept.runner.tests.process.orphans import PROGRAM, Forking
from gocept.runner.tests.process.test_child import ProcessTestCase
from gocept.runner.tests.victims import adopt_no_more, lines, until


class ForkTests(Forking, ProcessTestCase):

    def setUp(self):
        super().setUp()
        self.addCleanup(adopt_no_more)

    def written(self, name):
        """What an orphan has written to a file, which it has renamed."""
        path = pathlib.Path(self.dir, name)
        until(path.exists)
        return path.read_text()

    def write_code(self, name, what):
        path = f'{self.dir}/{name}'
        return (f'it = {what}; '
                f'open({path + ".new"!r}, "w").write(str(it)); '
                f'os.rename({path + ".new"!r}, {path!r})')

    def test_the_orphan_is_a_child_of_ours_and_leads_a_group(self):
        child = self.start_forking()
        orphan = self.fork(child, self.write_code(
            'facts', '(os.getpid(), os.getppid(), os.getpgid(0))'))
        self.assertEqual(str((orphan.pid, os.getpid(), orphan.pid)),
                         self.written('facts'))
        self.assertEqual(0, orphan.wait(60))
        self.assertFalse(orphan.lost)
        self.assertNotEqual(orphan.pid, child.pid)

    def test_the_orphan_has_no_descriptor_of_the_fork(self):
        child = self.start_forking()
        self.fork(child, self.write_code(
            'files', 'len(os.listdir("/proc/self/fd"))'))
        _, _, count = self.ask(child, 'pass')
        self.assertEqual(count, self.written('files'))

    def test_the_orphan_handles_signals_as_before(self):
        child = self.start_forking()
        orphan = self.fork(child, self.write_code(
            'mask', 'signal.pthread_sigmask(signal.SIG_BLOCK, ())'))
        self.assertEqual('set()', self.written('mask'))
        orphan.wait(60)
        self.assertEqual(-15, self.fork(child).terminate())

    def test_what_is_told_of_forks_is_told_once_in_the_orphan(self):
        child = self.start_forking('''
            from gocept.runner.waits import forks
            class Told:
                count = 0
                def after_fork(self):
                    self.count += 1
            told = Told()
            forks.tell_forks(told)
            ''')
        self.fork(child, self.write_code(
            'told', '(told.count, forks._becomes_program)')).wait(60)
        self.assertEqual('(1, False)', self.written('told'))
        self.assertEqual('forked', self.ask(child, 'pass')[0])

    def test_random_numbers_differ(self):
        child = self.start_forking('import random; random.random()\n')
        for name in 'ab':
            self.fork(child, self.write_code(name, 'random.random()'))
        self.assertNotEqual(self.written('a'), self.written('b'))

    def test_no_process_is_left_for_it(self):
        # As the system refuses a fork, whoever asks for it.
        child = self.start_forking('''
            import errno, os
            really = os.fork
            failing = []
            def fork():
                if not failing or os.getpid() == failing[0]:
                    return really()
                raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            os.fork = fork
            ''', PROGRAM.replace(
            'said = []', 'said = []; failing[:] = [os.getpid()]'))
        for _ in range(3):
            self.assertEqual(['failed', str(errno.EAGAIN)],
                             self.ask(child, 'pass'))
        self.assertEqual([], procfs.children(child.pid))

    def test_no_descriptor_is_left_for_it(self):
        child = self.start_forking('''
            import resource
            from gocept.runner.process.fork import fork_orphan
            limits = iter(range(3, 100))
            def limited(tell):
                set_limit(next(limits))
                try:
                    return fork_orphan(
                        lambda *born: (set_limit(1000), tell(*born)))
                finally:
                    set_limit(1000)
            def set_limit(soft):
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, 1000))
            ''', PROGRAM.replace('if fork_orphan', 'if limited'))
        answers = [self.ask(child, 'pass') for _ in range(12)]
        failed = [each for each in answers if each[0] == 'failed']
        self.assertEqual([['failed', str(errno.EMFILE)]] * len(failed), failed)
        self.assertGreater(len(failed), 1)
        self.assertEqual('forked', answers[-1][0])
        self.assertEqual([], procfs.children(child.pid))

    def test_the_orphan_runs_nothing_if_nobody_knows_it(self):
        child = self.start_forking('', PROGRAM.replace(
            'said.append(pid)', 'say("known", pid); raise OSError(99, "no")'))
        child.channel.write(self.write_code('ran', '1').encode() + b'\n')
        [[_, pid], failed] = lines(child, 2)
        self.assertEqual(['failed', '99'], failed)
        until(lambda: procfs.look(int(pid)).state in 'ZX'
              or not procfs.look(int(pid)).start)
        self.assertFalse(pathlib.Path(self.dir, 'ran').exists())

    def test_the_process_between_is_killed(self):
        child = self.start_forking('''
            import os, signal
            from gocept.runner.process import fork
            def killed(link, pid):
                os.kill(os.getpid(), signal.SIGKILL)
            fork._tell = killed
            ''')
        for _ in range(3):
            self.assertEqual(['failed', str(errno.EAGAIN)], self.ask(
                child, self.write_code('ran', '1')))
        child.terminate()  # the orphans are its descendants, and end with it
        self.assertFalse(pathlib.Path(self.dir, 'ran').exists())


class ManyForksTests(Forking, ProcessTestCase):

    level = 2  # takes some seconds

    def setUp(self):
        super().setUp()
        self.addCleanup(adopt_no_more)

    def test_many_forks_leave_nothing(self):
        child = self.start_forking()
        counts = set()
        for _ in range(1000):
            _, pid, count = self.ask(child, 'pass')
            counts.add(count)
        self.assertEqual(1, len(counts))
        self.assertEqual([], procfs.children(child.pid))
        # They are reaped as they end, or with the program.
        child.terminate()
        self.assertEqual(0, procfs.look(int(pid)).start)
