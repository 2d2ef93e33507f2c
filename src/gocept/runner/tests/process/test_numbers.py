import contextlib
import os
import threading
import unittest
from unittest import mock

from gocept.runner.process import numbers, procfs
from gocept.runner.process.numbers import Instant, Numbers
from gocept.runner.tests.process.test_child import (
    PidTests,
    ProcessTestCase,
)
from gocept.runner.tests.victims import ended, until

NOW = 1000.0


class Child:
    """What is known of a child."""

    def __init__(self, pid, last, age=0.0, tasks=100):
        self.pid = pid
        self.before_start = Instant(NOW - age, last, tasks)


class NumbersTests(unittest.TestCase):

    def setUp(self):
        self.files = {'sys/kernel/pid_max': '32768'}
        patch = mock.patch.object(
            procfs, 'words', lambda name: self.files[name].split())
        patch.start()
        self.addCleanup(patch.stop)
        for name, value in (('pids', lambda: iter(range(1, 32768))),
                            ('is_process', lambda pid: True)):
            patch = mock.patch.object(procfs, name, value)
            patch.start()
            self.addCleanup(patch.stop)
        patch = mock.patch.object(numbers, 'time', mock.Mock(
            **{'monotonic.return_value': NOW}))
        patch.start()
        self.addCleanup(patch.stop)

    def pids(self, last, *children):
        self.files['loadavg'] = f'0.1 0.2 0.3 2/150 {last}'
        found = list(Numbers(children).pids())
        self.assertEqual(found, Numbers(children).among(range(1, 32768)))
        return found

    def test_from_that_of_the_child_to_the_last(self):
        self.assertEqual([1000], self.pids(1000, Child(1000, 999)))
        self.assertEqual([1000, 1001, 1002],
                         self.pids(1002, Child(1000, 990)))
        self.assertEqual([*range(1000, 2001)],
                         self.pids(2000, Child(1000, 999)))

    def test_behind_the_highest(self):
        found = self.pids(400, Child(32700, 32690))
        self.assertEqual({*range(1, 401), *range(32700, 32768)}, set(found))

    def test_a_few_behind_the_highest(self):
        self.files['loadavg'] = '0.1 0.2 0.3 2/150 3'
        self.assertEqual([32766, 32767, 0, 1, 2, 3],
                         list(Numbers([Child(32766, 32760)]).pids()))

    def test_of_several_children(self):
        self.assertEqual([*range(998, 1004)], self.pids(
            1003, Child(1000, 999), Child(998, 997), Child(1002, 999)))

    def test_of_none(self):
        self.assertEqual([], self.pids(1000))

    def assertAny(self, found):
        self.assertEqual([*range(1, 32768)], found)

    def test_any_if_the_circle_may_be_complete(self):
        self.assertAny(self.pids(1002, Child(1000, 999, 0.04)))
        self.assertAny(self.pids(1002, Child(1000, 999, tasks=15000)))
        self.assertAny(self.pids(
            1002, Child(1001, 999), Child(1000, 999, 0.04)))

    def test_any_if_the_last_one_is_older_than_the_child(self):
        self.assertAny(self.pids(999, Child(1000, 999)))
        self.assertAny(self.pids(5000, Child(1000, 5000)))

    def test_any_if_the_last_one_is_not_known(self):
        self.assertAny(self.pids(0, Child(1000, 0)))
        self.assertAny(self.pids(1000, Child(1000, 0)))
        self.assertAny(self.pids(0, Child(1000, 999)))

    def test_any_without_descriptors(self):
        with mock.patch.object(procfs, 'words', return_value=[]):
            self.assertEqual(0, numbers.now().last)
            self.assertAny(list(Numbers([Child(1000, 999)]).pids()))


class SystemTests(ProcessTestCase):

    @contextlib.contextmanager
    def assertNoLookAtAll(self):
        """However many processes others may start meanwhile."""
        with mock.patch.object(procfs, 'pids') as pids, (
                mock.patch.multiple(numbers, _FASTEST=1.0, _FEW=10 ** 7)):
            yield
        self.assertFalse(pids.called)

    def test_the_present_state(self):
        before = numbers.now()
        child = self.start()
        after = numbers.now()
        self.assertLessEqual(before.time, after.time)
        size = int(procfs.words('sys/kernel/pid_max')[0])
        self.assertIn(child.pid, [
            (before.last + 1 + number) % size
            for number in range((after.last - before.last) % size)])
        self.assertGreater(before.tasks, 1)

    def test_a_thread_has_another_number(self):
        ids = []
        done = threading.Event()

        def run():
            ids.append(threading.get_native_id())
            done.wait()
        thread = threading.Thread(target=run)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(done.set)
        until(lambda: ids)
        self.assertFalse(procfs.is_process(ids[0]))
        self.assertTrue(procfs.is_process(os.getpid()))
        self.assertFalse(procfs.is_process(2 ** 22 + 1))

    def test_a_short_child_does_not_cost_a_look_at_all_processes(self):
        for options in {}, {'adopt': True, 'setsid': True}:
            with self.assertNoLookAtAll():
                with self.start('true', **options) as child:
                    child.wait()
            self.assertTrue(child.finished)

    def test_whoever_was_left_is_found_all_the_same(self):
        child = self.start_victim('leave()')
        [leaver] = self.children_of(child)
        child.wait()
        with self.assertNoLookAtAll():
            child.close()
        self.assertTrue(ended(leaver))


class CircleTests(PidTests):
    """In a namespace where the highest number is a low one."""

    def run_program(self, body, status=0, **environment):
        return super().run_program('''
            def set_file(name, value):
                with open(f'/proc/sys/kernel/{name}', 'w') as file:
                    file.write(str(value))
            ''' + body, status, **environment)

    def test_whoever_has_a_number_behind_the_highest_is_found(self):
        output = self.run_program('''
            size = int(procfs.words('sys/kernel/pid_max')[0])
            Process('true').close()  # begins threads
            set_file('ns_last_pid', size - 2)
            child = Process(victim('leave()'), stdout='pipe')
            [[_, pid]] = lines(child, 1)
            child.wait()
            from gocept.runner.process import numbers
            numbers._FASTEST = 1.0
            child.close()
            say(child.pid == size - 1, int(pid) < child.pid,
                procfs.look(int(pid)).state)
            ''')
        self.assertIn(output, [['True True X'], ['True True Z']])

    def test_whoever_was_left_before_the_circle_was_complete_is_found(self):
        output = self.run_program('''
            try:
                set_file('pid_max', 450)
            except OSError:
                say('not here')
                sys.exit()
            # Those on the way have no numbers that are used again.
            child = Process(victim('leave()'), stdout='pipe')
            [[_, pid]] = lines(child, 1)
            child.wait()
            before = procfs.words('loadavg')[4]
            for _ in range(1000):
                new = os.fork()
                if not new:
                    os._exit(0)
                os.waitpid(new, 0)
                if int(pid) < new < int(pid) + 3:
                    break
            child.close()
            say(procfs.look(int(pid)).state)
            ''')
        if output == ['not here']:
            self.skipTest('the highest number is that of the system')
        self.assertIn(output, [['X'], ['Z']])

    # They are about other things.
    test_the_group_of_another_with_the_same_number = None
    test_a_handle_of_another_with_the_same_number = None


del PidTests
