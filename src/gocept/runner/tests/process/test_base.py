"""The end of a process is told once, before whoever ends it goes on."""

import signal
import threading
from unittest import mock

from gocept.runner.poller import Poller
from gocept.runner.process import Process, registry, terminate_all
from gocept.runner.tests.process.test_child import ProcessTestCase
from gocept.runner.tests.support import DEADLINE, Slow


class SettleTests(ProcessTestCase):

    def setUp(self):
        super().setUp()
        self.told = []

    def start_told(self, before=lambda child: None, **options):
        """A child whose end is told in `before`, and noted then."""
        def on_end(child):
            before(child)
            self.told.append(child)
        return self.start(on_end=on_end, **options)

    def test_another_thread_tells_the_end(self):
        for end in (Process.terminate, Process.close,
                    lambda child: terminate_all([child]),
                    lambda child: child.settle(DEADLINE)):
            slow = Slow(self)
            child = self.start_told(slow)
            child.send_signal(signal.SIGTERM)
            slow.wait_entered()
            end(child)
            self.assertEqual([child], self.told)
            self.told.clear()

    def test_another_thread_tells_the_end_of_one_that_is_finished(self):
        slow = Slow(self)
        child = self.start_told(slow)
        child.send_signal(signal.SIGTERM)
        slow.wait_entered()
        child.finished = True
        child.terminate()
        self.assertEqual([child], self.told)

    def test_another_thread_tells_the_end_at_our_exit(self):
        slow = Slow(self)
        child = self.start_told(slow)
        child.send_signal(signal.SIGTERM)
        slow.wait_entered()
        registry.processes.add(child)
        registry.end_all()
        self.assertEqual([child], self.told)

    def test_several(self):
        slow = Slow(self)
        children = [self.start_told(slow)] + [
            self.start_told() for _ in range(3)]
        children[0].send_signal(signal.SIGTERM)
        slow.wait_entered()
        terminate_all(children)
        self.assertCountEqual(children, self.told)

    def test_one_that_runs(self):
        child = self.start_told()
        self.assertTrue(child.settle())
        self.assertEqual([], self.told)

    def test_on_end_ends_it_once_more(self):
        results = []

        def end(child):
            results.extend([child.settle(DEADLINE), child.poll(),
                            child.wait(), child.terminate(), child.close()])
        child = self.start_told(end)
        child.terminate()
        self.assertEqual([True, *[-signal.SIGTERM] * 3, None], results)
        self.assertEqual([child], self.told)

    def test_on_end_needs_a_lock_of_the_caller(self):
        lock, entered = threading.Lock(), threading.Event()
        Slow(self, longest=0.001)  # nobody waits longer

        def take(child):
            entered.set()
            with lock:
                pass
        child = self.start_told(take)
        with lock:
            child.send_signal(signal.SIGTERM)
            self.assertTrue(entered.wait(DEADLINE))
            self.assertEqual(-signal.SIGTERM, child.terminate())
            self.assertEqual([], self.told)
        self.assertTrue(child.settle(DEADLINE))
        self.assertEqual([child], self.told)

    def test_a_signal_handler_raises_before_it_is_told(self):
        with Poller() as poller:
            child = self.start_told(poller=poller)
            child.send_signal(signal.SIGKILL)
            with mock.patch.object(
                    child._news, 'tell', side_effect=KeyboardInterrupt):
                self.assertRaises(KeyboardInterrupt, child.wait, DEADLINE)
            self.assertEqual(-signal.SIGKILL, child.returncode)
            self.assertEqual([], self.told)
            child.terminate()
            self.assertEqual([child], self.told)
