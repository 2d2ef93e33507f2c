import os
import threading
import unittest

from gocept.runner import source
from gocept.runner.source import ForkedLock, Source


class Recorder:

    def __init__(self):
        self.told = []

    def source_ready(self, source):
        self.told.append(('ready', source))

    def source_sending(self, source):
        self.told.append(('sending', source))

    def source_closing(self, source, fd):
        self.told.append(('closing', source, fd))


class SourceTests(unittest.TestCase):

    def test_tells_each_watcher_once(self):
        mine, other, watcher = Source(), Source(), Recorder()
        self.assertTrue(mine.attach(watcher))
        self.assertFalse(mine.attach(watcher))
        mine._tell_ready()
        mine._tell_closing(7)
        other._tell_ready()
        self.assertEqual([('ready', mine), ('closing', mine, 7)],
                         watcher.told)

    def test_tells_no_more_who_is_detached(self):
        mine, one, two = Source(), Recorder(), Recorder()
        for watcher in (one, two):
            mine.attach(watcher)
        mine.detach(one)
        mine.detach(one)
        mine._tell_ready()
        self.assertEqual([], one.told)
        self.assertEqual([('ready', mine)], two.told)

    def test_what_every_source_has_to_say(self):
        mine = Source()
        self.assertEqual([mine], list(mine.layers()))
        self.assertFalse(mine.buffered)
        with self.assertRaisesRegex(NotImplementedError, 'no descriptor'):
            mine.fileno()
        with self.assertRaises(NotImplementedError):
            mine.collect()


class TellForksTests(unittest.TestCase):

    def test_told_in_the_child_only_and_only_while_it_is_there(self):
        class Told:
            def __init__(self):
                self.pids = []

            def after_fork(self):
                self.pids.append(os.getpid())

        told, forgotten = Told(), Told()
        source.tell_forks(told)
        source.tell_forks(forgotten)
        del forgotten
        pid = os.fork()
        if not pid:
            os._exit(0 if told.pids == [os.getpid()] else 1)
        self.assertEqual((pid, 0), os.waitpid(pid, 0))
        self.assertEqual([], told.pids)


class ForkedLockTests(unittest.TestCase):

    def test_one_at_a_time_but_the_same_again(self):
        lock, order = ForkedLock(), []

        def take():
            with lock():
                order.append('other')
        with lock(), lock():
            thread = threading.Thread(target=take)
            thread.start()
            order.append('mine')
        thread.join()
        self.assertEqual(['mine', 'other'], order)

    def test_a_forked_child_has_it_anew(self):
        lock = ForkedLock()
        held, release = threading.Event(), threading.Event()

        def hold():
            with lock():
                held.set()
                release.wait()
        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        self.assertFalse(lock().acquire(False))
        pid = os.fork()
        if not pid:
            os._exit(0 if lock().acquire(False) else 1)
        self.assertEqual((pid, 0), os.waitpid(pid, 0))
        self.assertFalse(lock().acquire(False))
        release.set()
        thread.join()
        self.assertTrue(lock().acquire(False))

    def test_a_child_that_is_forked_while_it_holds_it(self):
        lock = ForkedLock()
        with lock():
            pid = os.fork()
        if not pid:
            os._exit(0 if lock().acquire(False) else 1)
        self.assertEqual((pid, 0), os.waitpid(pid, 0))
