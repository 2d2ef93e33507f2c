"""A bounded number of ticks."""

import re
import signal

import transaction
import ZODB
import zope.event
import zope.interface.verify
from zope.component.hooks import getSite, site
from zope.interface.interfaces import ComponentLookupError
from zope.site.folder import rootFolder
from zope.site.site import LocalSiteManager

import gocept.runner
from gocept.runner import errors
from gocept.runner.interfaces import ITicks
from gocept.runner.runner import MainLoop
from gocept.runner.testing import run_ticks
from gocept.runner.tests.support import TestCase


class RunTicksTests(TestCase):

    def setUp(self):
        super().setUp()
        database = ZODB.DB(None)
        self.addCleanup(database.close)
        connection = database.open()
        self.addCleanup(connection.close)
        self.addCleanup(transaction.abort)
        self.site = connection.root()['site'] = rootFolder()
        self.site.setSiteManager(LocalSiteManager(self.site))
        self.site.count = 0
        transaction.commit()
        self.called = 0

    def work(self):
        self.called += 1
        getSite().count += 1

    def test_keeps_its_contract(self):
        ticks = run_ticks(self.work, self.site, ticks=1)
        zope.interface.verify.verifyObject(ITicks, ticks)
        self.assertEqual(errors.SUCCESS, ticks.status)
        self.assertEqual(0, ticks.counts.done)
        self.assertFalse(ticks.loop.failed)

    def test_runs_so_many_ticks(self):
        with self.assertPutBack():
            ticks = run_ticks(self.work, self.site, ticks=3)
        self.assertEqual((3, []), (ticks.committed, ticks.errors))
        transaction.abort()
        self.assertEqual(3, self.site.count)
        self.assertEqual([], [
            each for each in zope.event.subscribers
            if getattr(each, '__self__', None) is ticks])

    def test_shows_what_has_happened(self):
        self.assertEqual('<Ticks: 2 committed>', repr(
            run_ticks(self.work, self.site, ticks=2)))

        def fail():
            raise ValueError('bad')
        with self.assertLogs('gocept.runner.runner'):
            ticks = run_ticks(fail, self.site, ticks=1)
        self.assertEqual("<Ticks: 0 committed, errors: [ValueError('bad')]>",
                         repr(ticks))

    def test_runs_a_program_with_arguments_and_all_that_it_says(self):
        @gocept.runner.appmain(ticks=3600, principal='nobody')
        def program(number):
            """Not reached."""
        with self.assertRaises(ComponentLookupError):
            run_ticks(program, self.site, 3, ticks=1)
        for args in ((), (1, 2)):
            with self.assertRaises(TypeError):
                run_ticks(program, self.site, *args, ticks=1)

        @gocept.runner.appmain(ticks=3600)
        def add(number):
            getSite().count += number
            return 3600 if number else 0
        for number in 3, 0:
            self.assertEqual(
                2, run_ticks(add, self.site, number, ticks=2).committed)
        transaction.abort()
        self.assertEqual(6, self.site.count)

    def test_a_program_that_runs_once(self):
        @gocept.runner.once()
        def program():
            raise ValueError('bad')
        ticks = run_ticks(program, self.site)
        self.assertEqual(errors.WORKER_FAILED, ticks.status)
        self.assertEqual("[ValueError('bad')]", repr(ticks.errors))
        self.assertEqual(0, ticks.committed)

    def test_the_worker_may_end_before(self):
        def work():
            self.work()
            return gocept.runner.Exit
        self.assertEqual(
            1, run_ticks(work, self.site, ticks=3).committed)
        self.assertEqual(1, run_ticks(work, self.site).committed)

        def leave():
            raise SystemExit(7)
        ticks = run_ticks(leave, self.site, ticks=3)
        self.assertEqual((7, 0), (ticks.status, ticks.committed))

    def test_signals(self):
        for signum in signal.SIGTERM, signal.SIGHUP:
            ticks = run_ticks(
                lambda: signal.raise_signal(signum), self.site, ticks=3)
            self.assertEqual(
                (errors.SUCCESS, 1), (ticks.status, ticks.committed))
        with self.assertRaises(KeyboardInterrupt), self.assertPutBack():
            run_ticks(lambda: signal.raise_signal(signal.SIGINT), self.site,
                      until=lambda: False)

    def test_until_a_condition_is_true(self):
        def is_done():
            self.assertIs(getSite(), self.site)
            return self.site.count >= 2
        ticks = run_ticks(self.work, self.site, until=is_done)
        self.assertEqual(2, ticks.committed)

    def test_errors_and_conflicts(self):
        def work():
            self.work()
            if self.called == 1:
                raise ValueError('one')
            if self.called == 3:
                raise transaction.interfaces.TransientError('again')
        ticks = run_ticks(work, self.site, ticks=3)
        self.assertEqual(4, self.called)
        self.assertEqual((2, "[ValueError('one')]"),
                         (ticks.committed, repr(ticks.errors)))
        self.assertEqual(errors.SUCCESS, ticks.status)

    def test_what_is_no_pause_is_an_error_of_the_tick(self):
        for result in True, 'later', -1:
            ticks = run_ticks(lambda: result, self.site, ticks=1)
            self.assertEqual([ValueError], [*map(type, ticks.errors)])
            self.assertEqual(errors.WORKER_FAILED, ticks.status)

    def test_no_pauses_after_errors(self):
        def work():
            raise ValueError('always')
        with self.assertLogs('gocept.runner.runner', 'DEBUG') as logged:
            ticks = run_ticks(work, self.site, ticks=20)
        self.assertEqual(20, len(ticks.errors))
        self.assertEqual(errors.WORKER_FAILED, ticks.status)
        # After the fourth error, a real loop pauses for a second.
        pauses = re.findall(r'Trying again in (\S+) s,', str(logged.output))
        self.assertEqual(['0.01'] * 19, pauses)  # from the second error on

    def test_a_condition_that_stays_false(self):
        def work():
            raise ValueError('bad')
        for keywords in {'ticks': 2}, {'timeout': 0}:
            with (self.subTest(keywords), self.assertRaisesRegex(
                    AssertionError, r'^[12] ticks in .* s, and the condition '
                    r"is still false; the last error was ValueError\('bad'\)$",
                    )):
                run_ticks(work, self.site, until=lambda: False, **keywords)
        with self.assertRaisesRegex(
                AssertionError, 'the worker has ended, and the condition is '
                'false$'):
            run_ticks(lambda: gocept.runner.Exit, self.site,
                      until=lambda: False)

    def test_a_worker_without_an_end(self):
        with self.assertRaisesRegex(
                AssertionError, 'the worker has not ended: pass ticks= or '
                'until='):
            run_ticks(self.work, self.site, timeout=0)
        with self.assertRaisesRegex(
                AssertionError, '^1 ticks in .* s, and these are too few'):
            run_ticks(self.work, self.site, ticks=10 ** 6, timeout=0)

    def test_an_error_in_the_condition(self):
        with self.assertRaises(ZeroDivisionError):
            run_ticks(self.work, self.site, until=lambda: 1 / 0)
        self.assertEqual(1, self.called)

    def test_numbers_of_ticks(self):
        for number in 0, -1, 1.5, '1':
            with self.assertRaisesRegex(ValueError, 'ticks is a number >= 1'):
                run_ticks(self.work, self.site, ticks=number)

    def program(self, base=MainLoop):
        """A program with a loop as users of earlier versions have it."""
        class Loop(base):

            def __call__(self):
                with site(self.app):
                    while self.running:
                        self.begin()
                        try:
                            result = self.worker()
                        except Exception:
                            self.abort()
                        else:
                            self.commit()
                            if result is gocept.runner.Exit:
                                break

        class program(gocept.runner.appmain):
            main_loop = Loop

        return program(ticks=3600)(self.work)

    def test_a_loop_with_a_call_of_its_own(self):
        program = self.program()
        with self.assertRaisesRegex(AssertionError, 'has not ended'):
            run_ticks(program, self.site, timeout=0)
        ticks = run_ticks(program, self.site, ticks=3)
        self.assertEqual((3, []), (ticks.committed, ticks.errors))
        ticks = run_ticks(
            program, self.site, until=lambda: getSite().count >= 6)
        self.assertEqual(errors.SUCCESS, ticks.status)

    def test_errors_in_such_a_loop(self):
        def work():
            self.called += 1
            if self.called == 2:
                raise ValueError('two')
        self.work = work
        ticks = run_ticks(self.program(), self.site, ticks=3)
        self.assertEqual((2, "[ValueError('two')]", 0),
                         (ticks.committed, repr(ticks.errors), ticks.status))

    def test_a_commit_that_hides_conflicts(self):
        class Loop(MainLoop):

            def commit(self):
                try:
                    super().commit()
                except transaction.interfaces.TransientError:
                    self.abort()

        def work():
            self.called += 1
            if self.called == 1:
                transaction.get().addBeforeCommitHook(fail)

        def fail():
            raise transaction.interfaces.TransientError('again')
        self.work = work
        ticks = run_ticks(self.program(Loop), self.site, ticks=2)
        self.assertEqual((1, "[TransientError('again')]"),
                         (ticks.committed, repr(ticks.errors)))

    def test_a_call_that_adds_something(self):
        class Loop(MainLoop):

            def __call__(self):
                super().__call__()

        class program(gocept.runner.appmain):
            main_loop = Loop

        ticks = run_ticks(program()(self.work), self.site, ticks=2)
        self.assertEqual((2, []), (ticks.committed, ticks.errors))
