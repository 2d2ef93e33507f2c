import errno
import os
import signal
import subprocess
from unittest import mock

from gocept.runner.process import descendants, procfs
from gocept.runner.process.marks import MARKER, our_mark
from gocept.runner.process.pidfd import PidAndStart
from gocept.runner.tests.process.test_child import Fallback, ProcessTestCase
from gocept.runner.tests.victims import (
    adopt_no_more,
    ended,
    lines,
    until,
)


class DescendantsTests(ProcessTestCase):

    def hold_all(self, handles):
        """Their numbers."""
        numbers = []
        for handle in handles:
            self.addCleanup(handle.close)
            numbers.append(handle.pid)
        return numbers

    def test_held_if_it_is_the_right_one(self):
        child = self.start()
        handle = descendants.hold_if(child.pid, lambda pid: True)
        self.addCleanup(handle.close)
        self.assertEqual(child.pid, handle.pid)
        self.assertIsNone(descendants.hold_if(child.pid, lambda pid: False))

    def test_nobody_to_be_held(self):
        child = self.start('true')
        child.wait()
        self.assertIsNone(descendants.hold_if(child.pid, lambda pid: True))

    def test_held_without_a_descriptor(self):
        child = self.start()
        error = OSError(errno.EMFILE, 'none')
        with mock.patch.object(descendants, 'hold', side_effect=error):
            handle = descendants.hold_if(child.pid, lambda pid: True)
        self.assertIsInstance(handle, PidAndStart)
        self.assertFalse(handle.has_ended())
        handle.signal(signal.SIGKILL)
        until(handle.has_ended)

    def test_children(self):
        child = self.start_victim('''
            def further():
                fork(int)
            fork(int)
            fork(further)
            pause()
            ''')
        first, _, parent = self.children_of(child, 3)
        self.assertEqual({first.pid, parent.pid}, set(self.hold_all(
            descendants.tree(child.pid, lambda: True))))
        self.assertEqual([], list(descendants.tree(
            child.pid, lambda: False)))

    def test_children_of_nobody(self):
        child = self.start('true')
        child.wait()
        self.assertEqual([], list(descendants.tree(child.pid, lambda: True)))

    def test_a_group(self):
        child = self.start_victim('''
            fork(int)
            fork(os.setsid)
            pause()
            ''', setpgrp=True)
        member, _ = self.children_of(child, 2)
        self.assertEqual({child.pid, member.pid}, set(self.hold_all(
            descendants.group(child, descendants.clock()))))

    def test_a_group_without_the_dead_and_the_young(self):
        child = self.start_victim('''
            if not os.fork():
                os._exit(0)
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
            say('ready')
            pause()
            ''', setpgrp=True)
        lines(child, 1)
        self.assertEqual([child.pid], self.hold_all(
            descendants.group(child, descendants.clock())))
        self.assertEqual([], list(descendants.group(
            child, procfs.stat(child.pid).start - 1)))

    def test_no_such_group(self):
        child = self.start()
        with mock.patch('gocept.runner.process.procfs.pids') as pids:
            self.assertEqual([], list(descendants.group(
                child, descendants.clock())))
        self.assertFalse(pids.called)  # it takes long

    def test_a_group_that_may_not_be_signalled(self):
        child = self.start(setpgrp=True)
        with mock.patch('os.killpg', side_effect=PermissionError):
            self.assertEqual([child.pid], self.hold_all(
                descendants.group(child, descendants.clock())))

    def test_marks(self):
        outer = os.environ.get(MARKER, '').split()
        child = self.start()
        until(lambda: procfs.variable(child.pid, MARKER) is not None)
        self.assertEqual([*outer, child.mark], descendants.marks(child.pid))

    def test_who_has_a_mark(self):
        child = self.start_victim('''
            fork(overwrite)
            leave()
            say('ready')
            pause()
            ''')
        other = self.start()
        _, leaver = self.children_of(child, 2)
        lines(child, 1)
        until(lambda: descendants.marks(other.pid))
        found = list(descendants.marked({child.mark: child.mark}.get))
        self.assertEqual({child.pid, leaver.pid}, set(self.hold_all(
            handle for _, handle in found)))
        self.assertEqual({child.mark}, {mark for mark, _ in found})
        self.assertLess({child.pid, leaver.pid, other.pid}, set(self.hold_all(
            handle for _, handle in descendants.marked(
                lambda mark: mark.startswith(our_mark()) or None)
        )) | {0})

    def test_not_ourselves(self):
        found = self.run_program('''
            marks = os.environ[descendants.MARKER].split()
            say([handle.pid for _, handle in descendants.marked(
                dict.fromkeys(marks, 1).get)])
            ''', GOCEPT_RUNNER_CHILD=f'mark-of-{os.getpid()}')
        self.assertEqual(['[]'], found)

    def test_who_was_started_during_the_look(self):
        # The parent of the new one has ended before it is looked at.
        child = self.start_victim('''
            if os.fork():
                os.read(0, 1)
                os._exit(0)
            os.setsid()
            say('child', os.getpid())
            os.read(0, 1)
            if os.fork():
                os._exit(0)
            say('child', os.getpid())
            pause()
            ''', stdin='pipe')
        [parent] = self.children_of(child)
        young = []
        listed = procfs.pids

        def pids():
            found = list(listed())
            if not young:
                child.channel.write(b'..')
                young.extend(self.children_of(child))
                ended(parent)
                child.wait()
            return iter(found)
        with mock.patch('gocept.runner.process.procfs.pids', pids):
            found = self.hold_all(handle for _, handle in descendants.marked(
                {child.mark: child}.get))
        self.assertIn(young[0].pid, found)

    def test_the_look_ends_though_others_start_processes_all_the_time(self):
        numbers = iter(range(10 ** 7, 2 * 10 ** 7))
        with mock.patch('gocept.runner.process.procfs.pids',
                        lambda: iter([next(numbers)])):
            self.assertEqual([], list(descendants.marked(lambda mark: True)))

    def test_a_process_that_becomes_another_program_is_looked_at_again(self):
        child = self.start()
        until(lambda: procfs.variable(child.pid, MARKER) is not None)
        variable = procfs.variable
        answers = iter([None, None])

        def becoming(pid, name):
            if pid == child.pid:
                return next(answers, variable(pid, name))
            return variable(pid, name)
        with mock.patch('gocept.runner.process.procfs.variable', becoming):
            self.assertEqual([child.pid], self.hold_all(
                handle for _, handle in descendants.marked(
                    {child.mark: child}.get)))

    def test_the_clock(self):
        before = descendants.clock()
        child = self.start()
        self.assertLessEqual(before, procfs.stat(child.pid).start)
        self.assertLessEqual(procfs.stat(child.pid).start, descendants.clock())

    def test_nothing_to_reap(self):
        child = self.start_victim('fork(int)\npause()')
        [grandchild] = self.children_of(child)
        descendants.reap(grandchild)
        self.assertFalse(grandchild.has_ended())


    def adopting(self, body='leave()'):
        """A child that adopts, and the orphan that it leaves to us."""
        self.addCleanup(adopt_no_more)
        child = self.start_victim(f'{body}\npause()', adopt=True)
        [orphan] = self.children_of(child)
        until(lambda: procfs.stat(orphan.pid).parent == os.getpid())
        return child, orphan

    def found(self, adopted):
        found = []
        for process, handle in adopted.look():
            self.addCleanup(handle.close)
            found.append((process, handle.pid))
        return found

    def test_orphans_by_their_mark_each_once(self):
        child, orphan = self.adopting()
        other, others = self.adopting()
        adopted = descendants.Adopted([child, other])
        self.assertEqual({(child, orphan.pid), (other, others.pid)},
                         set(self.found(adopted)))
        self.assertEqual([], self.found(adopted))

    def test_orphans_without_a_mark_by_their_session(self):
        child, orphan = self.adopting('leave(overwrite)')
        self.addCleanup(ended, orphan)
        self.addCleanup(orphan.signal, signal.SIGKILL)
        other = self.start(adopt=True)
        # Nobody's, as neither leads a session, and two adopt.
        self.assertEqual([], self.found(descendants.Adopted([child, other])))
        child.leads_group = True
        with mock.patch.object(child, 'pid', procfs.stat(orphan.pid).session):
            self.assertEqual([(child, orphan.pid)], self.found(
                descendants.Adopted([child, other])))

    def test_whoever_is_older_is_looked_at_once(self):
        older = subprocess.Popen(['sleep', '100'])
        self.addCleanup(older.wait)
        self.addCleanup(older.kill)
        start = procfs.stat(older.pid).start
        until(lambda: descendants.clock() > start)
        child, orphan = self.adopting()
        adopted = descendants.Adopted([child])
        with mock.patch.object(
                procfs, 'variable', side_effect=procfs.variable) as read, (
                mock.patch.object(
                    procfs, 'stat', side_effect=procfs.stat)) as asked:
            self.assertEqual([(child, orphan.pid)], self.found(adopted))
            self.assertNotIn(older.pid, [
                call.args[0] for call in read.mock_calls])
            asked.reset_mock()
            self.assertEqual([], self.found(adopted))
            self.assertNotIn(mock.call(older.pid), asked.mock_calls)

    def test_one_that_becomes_another_program_is_looked_at_again(self):
        child, orphan = self.adopting()
        adopted = descendants.Adopted([child])
        with mock.patch.object(procfs, 'variable', return_value=None):
            self.assertEqual([], self.found(adopted))
        self.assertEqual([(child, orphan.pid)], self.found(adopted))

    def test_one_that_cannot_be_held_is_looked_at_again(self):
        child, orphan = self.adopting()
        adopted = descendants.Adopted([child])
        with mock.patch('gocept.runner.process.descendants.hold_if',
                        return_value=None):
            self.assertEqual([], self.found(adopted))
        self.assertEqual([(child, orphan.pid)], self.found(adopted))


class FallbackDescendantsTests(Fallback, DescendantsTests):
    pass
