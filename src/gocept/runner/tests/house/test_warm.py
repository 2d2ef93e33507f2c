"""The configuration of a template, in this process."""

import gc
import os
import threading
from unittest import mock

from gocept.runner import errors
from gocept.runner.boot import environments
from gocept.runner.cli.mistakes import UserError
from gocept.runner.house import warm
from gocept.runner.house.launch import Wanted
from gocept.runner.tests.declaring import DeclaringTestCase

WORKER = ('<runner:worker name="work" '
          'handler="gocept.runner.tests.house.test_warm.work" {} />')


def work(*args):
    """A worker."""


class WarmTests(DeclaringTestCase):

    def test_nothing_is_open_afterwards(self):
        conf = self.conf(WORKER.format(''))
        before = sorted(os.listdir('/proc/self/fd'))
        threads = threading.enumerate()
        it = warm.configure(Wanted(conf))
        warm.preload(it)
        self.assertEqual(before, sorted(os.listdir('/proc/self/fd')))
        self.assertEqual(threads, threading.enumerate())
        self.assertFalse((self.dir / 'Data.fs').exists())
        self.assertEqual('toolkit', environments.current().name)
        self.assertEqual(conf, it.options.configfile)

    def test_what_is_declared(self):
        warm.configure(Wanted(self.conf(WORKER.format(
            'site="shop" arguments="a b" ticks="2" lock="true"'))))
        ready = warm.ready()
        [worker] = ready.workers
        self.assertEqual(
            ('work', 'shop', ('a', 'b'), False, 2.0, None, True),
            (worker.name, worker.site, worker.arguments, worker.once,
             worker.ticks, worker.schedule, worker.lock))

    def test_nothing_is_declared(self):
        ready = warm.ready()
        self.assertEqual(((), ()), (ready.workers, ready.children))

    def test_mistakes_have_the_status_of_run(self):
        for conf, status in (
                (f'{self.dir}/missing.conf', errors.BAD_CONFIGURATION),
                (self.conf('<unknown />'), errors.BAD_CONFIGURATION)):
            with self.assertRaises(UserError) as raised:
                warm.configure(Wanted(conf))
            self.assertEqual(status, raised.exception.status)
        with self.assertRaises(UserError) as raised:
            warm.configure(Wanted(self.conf(''), log_config='logging.ini'))
        self.assertEqual(errors.BAD_USAGE, raised.exception.status)

    def test_threads_are_found(self):
        self.assertEqual([], self.new_threads())
        go = threading.Event()
        thread = threading.Thread(target=go.wait, name='of an add-on')
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(go.set)
        self.assertEqual(['of an add-on'], self.new_threads())

    def test_threads_that_python_does_not_know(self):
        go = threading.Event()
        thread = threading.Thread(target=go.wait)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(go.set)
        with mock.patch.object(threading, 'enumerate',
                               lambda: [threading.current_thread()]):
            self.assertIn(f'thread {thread.native_id}, which is none of '
                          'Python', [*warm.threads()])

    def setUp(self):
        super().setUp()
        self.threads_before = [*warm.threads()]

    def new_threads(self):
        """Those that the test has begun."""
        found = [*warm.threads()]
        for name in self.threads_before:
            found.remove(name)
        return found

    def test_the_collector_leaves_out_what_is_there(self):
        self.addCleanup(gc.unfreeze)
        before = gc.get_freeze_count()
        warm.freeze()
        self.assertGreater(gc.get_freeze_count(), before)
        self.assertTrue(gc.isenabled())
        self.assertLess(gc.get_count()[2], 10)
