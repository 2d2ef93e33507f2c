import contextlib
import ctypes
import faulthandler
import functools
import gc
import logging
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from unittest import mock

import transaction
import ZODB
import zope.event
from ZODB.POSException import ConflictError

from gocept.runner import Exit, transaction_per_item
from gocept.runner.boot.current import current_tick
from gocept.runner.errors import ShortageError
from gocept.runner.events import TickCommitted, TickTimedOut
from gocept.runner.operation import stacks, watchdog
from gocept.runner.operation.alarm import Alarm
from gocept.runner.poller import background
from gocept.runner.poller.thread import hand_over, settle
from gocept.runner.process.pidfd import hold
from gocept.runner.runner import MainLoop
from gocept.runner.tests.support import (
    DEADLINE,
    TestCase,
    child_environment,
    end_background,
)
from gocept.runner.tests.test_mainloop import LoopCase
from gocept.runner.tests.victims import ended, until
from gocept.runner.waits.sigaction import action

LOGGER = 'gocept.runner.operation'

SHORT = 0.05  # seconds; what is to last is not in a hurry

ITEM = 1.0  # seconds; that are enough for an item that does nothing

C = ctypes.PyDLL(None)  # whose calls keep the interpreter


class Lines(logging.Handler):
    """Keeps what is logged, and tells whoever waits for it."""

    def __init__(self):
        super().__init__()
        self.records = []
        self.has_error = threading.Event()

    def emit(self, record):
        self.records.append(record)
        if record.levelno >= logging.ERROR:
            self.has_error.set()

    @property
    def errors(self):
        return [record.getMessage() for record in self.records
                if record.levelno >= logging.ERROR]

    @property
    def warnings(self):
        return [record.getMessage() for record in self.records
                if record.levelno == logging.WARNING]

    def wait(self):
        """Hang until the tick was logged."""
        if not self.has_error.wait(DEADLINE):
            raise AssertionError('nothing was logged')


def hang_in_c():
    """Hang in C code, with the interpreter, until a signal comes."""
    C.usleep(DEADLINE * 1000_000)


class WatchdogCase(LoopCase):

    def setUp(self):
        super().setUp()
        self.addCleanup(end_background)
        background()
        settle(DEADLINE)
        self.lines = Lines()
        logger = logging.getLogger(LOGGER)
        logger.addHandler(self.lines)
        self.addCleanup(logger.removeHandler, self.lines)
        before = logger.propagate
        logger.propagate = False
        self.addCleanup(setattr, logger, 'propagate', before)
        begin_tick = watchdog.Watchdog.begin_tick
        self.hanging, self.watchdogs = {}, {}

        def begin(it, now):
            # A machine that is busy may take longer for a tick that does
            # nothing, too.
            ticks = self.hanging.get(it._loop.worker)
            if ticks is not None:
                it._seconds = (it._loop.tick_timeout if it._loop.tick in ticks
                               else DEADLINE)
                self.watchdogs[threading.get_ident()] = it
            begin_tick(it, now)
        self.enterContext(mock.patch.object(
            watchdog.Watchdog, 'begin_tick', begin))

    def loop(self, *results, seconds=SHORT, **kwargs):
        hanging = []
        if seconds == SHORT:
            results = [self.in_short(each) if callable(each) else each
                       for each in results]
        elif seconds == ITEM:
            hanging = [number for number, result in enumerate(results, 1)
                       if callable(result)]
        loop = super().loop(*results, **kwargs)
        if seconds in (SHORT, ITEM):
            self.hanging[loop.worker] = hanging
        loop.name = 'convert'
        loop.tick_timeout = seconds
        return loop

    def in_short(self, work):
        """`work`, whose time begins when it is called, and not before.

        It might be over then: the way from the begin of a tick to its worker
        may take longer on a busy machine.
        """
        def run():
            it = self.watchdogs[threading.get_ident()]
            it._seconds = SHORT
            it._begin_time(time.monotonic())
            it._wake.put(None)  # since it looks at the end of another time
            return work()
        return run

    def heard(self, *kinds):
        """The events of these kinds that come from now on."""
        found = []

        def hear(event):
            if isinstance(event, kinds):
                found.append(event)
        zope.event.subscribers.append(hear)
        self.addCleanup(zope.event.subscribers.remove, hear)
        return found


class LogTests(WatchdogCase):

    def test_one_that_is_in_time_is_not_noticed(self):
        loop = self.loop(None, None, seconds=DEADLINE)
        heard = self.heard(TickTimedOut)
        with self.assertPutBack():
            loop()
        self.assertEqual([], self.lines.records)
        self.assertEqual(0, loop.timed_out)
        self.assertEqual([], heard)

    def test_without_a_time_nothing_is_done(self):
        with mock.patch.object(watchdog, 'Watchdog', None):
            self.loop(None, seconds=None)()

    def check(self, hang, *expected):
        loop = self.loop(hang, None)
        with self.assertPutBack():
            loop()
        self.assertEqual(1, loop.timed_out)
        [error] = self.lines.errors
        first = error.partition('\n\n')[0]
        self.assertIn("Tick 1 of worker 'convert'", first)
        self.assertIn('0.05 s that tick_timeout allows', first)
        self.assertIn('Thread MainThread, in the tick (most recent', error)
        for each in expected:
            self.assertIn(each, error)
        return error

    def test_the_stacks_are_logged_while_it_waits_in_python(self):
        error = self.check(self.lines.wait, 'All threads, now:', 'in wait')
        self.assertIn('up to now', error)
        [over] = self.lines.warnings
        self.assertIn("Tick 1 of worker 'convert', which was too long, is "
                      'over after ', over)

    def test_also_while_it_calculates(self):
        def calculate():
            until_logged = time.monotonic() + DEADLINE
            while not self.lines.errors and time.monotonic() < until_logged:
                pass
        self.check(calculate, 'All threads, now:', 'in calculate')

    def test_also_while_it_waits_for_a_lock(self):
        lock = threading.Lock()
        lock.acquire()
        release = threading.Thread(
            target=lambda: (self.lines.wait(), lock.release()))
        release.start()
        self.addCleanup(release.join)
        self.check(lambda: lock.acquire(), 'All threads, now:', '<lambda>')

    def test_what_c_code_has_done_is_logged_when_python_runs_again(self):
        self.check(hang_in_c, 'All threads, after 0.55 s:', 'in hang_in_c')

    def test_also_a_calculation_in_c(self):
        def add():
            nonlocal count
            count = min(2 * count, 200_000_000)
            sum(range(count))
            return Exit if is_logged() else 0

        def is_logged():
            return any('All threads, after 0.55 s' in each and 'in add' in each
                       for each in self.lines.errors)
        count = 1_000_000
        self.loop(*[add] * 100)()
        self.assertTrue(is_logged())

    def test_all_threads_are_logged(self):
        thread = threading.Thread(
            target=self.lines.wait, name='of the application')
        thread.start()
        self.addCleanup(thread.join)
        self.check(self.lines.wait,
                   'Thread of the application (most recent',
                   'Thread gocept.runner.poller (most recent')

    def test_each_tick_is_logged_once(self):
        def hang():
            self.lines.has_error.clear()
            self.lines.wait()
        loop = self.loop(hang, None, hang)
        loop()
        self.assertEqual(2, loop.timed_out)
        self.assertEqual(
            ["Tick 1 of worker 'convert'", "Tick 3 of worker 'convert'"],
            [each.partition(' takes')[0] for each in self.lines.errors])

    def test_one_that_is_over_in_time_while_somebody_looks(self):
        def late():
            it.end_tick()
            return begin + 2 * DEADLINE

        loop = self.loop(seconds=DEADLINE)
        with (mock.patch.object(watchdog, '_look'),
              watchdog.Watchdog(loop) as it):
            begin = time.monotonic()
            it.begin_tick(begin)
            with (mock.patch.object(it, '_check'),
                  mock.patch.object(watchdog, 'monotonic', late)):
                self.assertEqual(0, it.look())
        self.assertEqual(0, loop.timed_out)
        self.assertEqual([], self.lines.records)

    def test_a_subscriber_is_told_when_it_is_over(self):
        heard = self.heard(TickCommitted, TickTimedOut)
        loop = self.loop(self.lines.wait)
        loop()
        self.assertEqual([TickCommitted, TickTimedOut, TickCommitted],
                         [type(event) for event in heard])
        self.assertIs(loop, heard[1].loop)
        self.assertGreaterEqual(heard[1].seconds, SHORT)

    def test_the_state_shows_how_long_it_may_take(self):
        def work():
            self.assertGreater(loop.deadline, time.monotonic())
            self.assertLess(loop.deadline, time.monotonic() + DEADLINE)
        loop = self.loop(work, seconds=DEADLINE)
        loop()
        self.assertEqual(2, self.calls)
        self.assertFalse(loop.failed)
        self.assertIsNone(loop.deadline)

    def test_the_commit_is_a_part_of_it(self):
        def work():
            transaction.get().addBeforeCommitHook(self.lines.wait)
        loop = self.loop(work)
        loop()
        self.assertEqual(1, loop.timed_out)

    def test_so_are_all_attempts_and_the_pauses_between(self):
        deadlines = []

        def work():
            deadlines.append(loop.deadline)
            if len(deadlines) < 3:
                raise ConflictError
        loop = self.loop(*[work] * 3, seconds=DEADLINE)
        with self.assertLogs('gocept.runner.transaction'):
            loop()
        self.assertEqual(3, len(deadlines))
        self.assertEqual(1, len(set(deadlines)))

    def test_a_pause_is_not(self):
        loop = self.loop(4 * SHORT)
        loop()
        self.assertEqual(0, loop.timed_out)

    def test_one_that_fails_is_logged_as_well(self):
        def work():
            self.lines.wait()
            raise ValueError
        loop = self.loop(work)
        with self.assertLogs('gocept.runner.runner', 'ERROR'):
            loop()
        self.assertEqual(1, loop.timed_out)

    def test_any_time_may_be_allowed(self):
        self.loop(None, seconds=float('inf'))()
        self.assertEqual([], self.lines.records)

    def test_log_lines_know_the_tick(self):
        found = []
        self.lines.addFilter(lambda record: found.append(current_tick()) or 1)
        self.loop(self.lines.wait)()
        self.assertEqual([('convert', 1)] * 2,
                         [(each.worker, each.tick) for each in found])

    def test_a_log_that_blocks_holds_up_no_other_thread(self):
        go = threading.Event()
        self.addCleanup(go.set)
        self.lines.addFilter(lambda record: go.wait(DEADLINE))

        def hang():
            until(lambda: loop.timed_out)
            self.assertTrue(settle(DEADLINE))
            go.set()
            self.lines.wait()
        loop = self.loop(hang)
        loop()
        self.assertFalse(loop.failed)
        self.assertEqual(1, len(self.lines.errors))


class SystemTests(WatchdogCase):

    def test_the_signals_of_users_are_theirs(self):
        came = []
        before = {signum: signal.signal(signum, lambda *args: came.append(
            args[0])) for signum in (signal.SIGALRM, signal.SIGUSR1)}

        def hang():
            signal.setitimer(signal.ITIMER_REAL, 0.001)
            signal.raise_signal(signal.SIGUSR1)
            self.lines.wait()
        try:
            with self.assertPutBack():
                self.loop(hang)()
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
        self.assertEqual({signal.SIGALRM, signal.SIGUSR1}, set(came))

    def test_faulthandler_stays_as_it_was(self):
        with stacks.Sheet() as sheet:
            was_enabled = faulthandler.is_enabled()
            faulthandler.register(signal.SIGUSR1, sheet.fd)
            self.addCleanup(faulthandler.unregister, signal.SIGUSR1)
            self.loop(self.lines.wait)()
            self.assertEqual(was_enabled, faulthandler.is_enabled())
            signal.raise_signal(signal.SIGUSR1)
            self.assertIn('test_watchdog.py', sheet.read())

    def test_all_is_given_back(self):
        free = stacks._free_signal()
        with mock.patch.object(
                Alarm, 'close', autospec=True, side_effect=Alarm.close
                ) as close:
            self.loop(None)()
        self.assertEqual(1, close.call_count)
        self.assertEqual(free, stacks._free_signal())
        self.assertIsNone(action(free).handler)

    def test_without_a_timer_of_the_kernel_python_notices(self):
        with mock.patch.object(watchdog, 'Alarm', side_effect=OSError('none')):
            loop = self.loop(self.lines.wait)
            loop()
        self.assertEqual(1, loop.timed_out)
        self.assertIn('While C code holds the interpreter, nobody notices that'
                      " a tick of worker 'convert' takes longer than 0.05 s: "
                      'none', self.lines.warnings[0])

    def test_it_needs_a_thread(self):
        with (mock.patch.object(threading.Thread, 'start',
                                side_effect=RuntimeError('too many')),
              self.assertRaisesRegex(ShortageError, 'too many')):
            self.loop(None)()
        self.assertEqual(0, self.calls)

    def test_a_callback_that_blocks_the_background_thread_is_no_matter(self):
        go = threading.Event()
        self.addCleanup(go.set)
        hand_over(lambda: go.wait(DEADLINE))
        self.loop(self.lines.wait)()
        self.assertIn('All threads, now', self.lines.errors[0])

    def test_a_tick_that_is_over_before_anybody_looks(self):
        with (mock.patch.object(watchdog.Watchdog, 'look', lambda it: None),
              mock.patch.object(watchdog, 'Alarm', side_effect=OSError)):
            loop = self.loop(lambda: until(
                lambda: time.monotonic() > loop.deadline))
            loop()
        self.assertEqual(1, loop.timed_out)
        [error] = self.lines.errors
        self.assertIn("Tick 1 of worker 'convert' has taken ", error)
        self.assertIn('What it did was not seen', error)

    def test_a_child_that_is_forked_is_not_watched(self):
        def hang():
            read, write = os.pipe()
            pid = os.fork()
            if not pid:
                status = 1
                with contextlib.suppress(BaseException):
                    os.close(write)
                    os.read(read, 1)  # until the parent was logged
                    if loop.deadline is None and not self.lines.records:
                        loop.begin_item_of_test()
                        status = 0
                os._exit(status)
            os.close(read)
            self.lines.wait()
            os.close(write)
            self.statuses.append(os.waitpid(pid, 0)[1])
        self.statuses = []
        loop = self.loop(hang)
        loop.begin_item_of_test = lambda: loop._items.begin_item()
        loop()
        self.assertEqual([0], self.statuses)
        self.assertEqual(1, loop.timed_out)

    def test_a_child_can_have_a_loop_of_its_own(self):
        def hang():
            pid = os.fork()
            if not pid:
                self.lines.records.clear()
                db = ZODB.DB(None)
                status = 1
                with contextlib.suppress(BaseException):
                    own = self.loop(self.lines.wait)
                    own.app = self.app
                    own()
                    status = own.timed_out + 10
                db.close()
                os._exit(status)
            self.statuses.append(
                os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        self.statuses = []
        loop = self.loop(hang, seconds=DEADLINE)
        loop()
        self.assertEqual([11], self.statuses)

    def test_threads_have_a_time_each(self):
        loops = {}

        def run(name, hang):
            loops[name] = loop = self.loop(hang)
            loop.name = name
            with contextlib.closing(self.db.open()) as connection:
                loop.app = connection.root()['Application']
                loop()

        def hang(name):
            until(lambda: any(f'worker {name!r}' in each
                              for each in self.lines.errors))
        threads = [
            threading.Thread(target=run, name=f'of {name}', args=(
                name, functools.partial(hang, name)))
            for name in ('first', 'second')]
        for thread in threads:
            thread.start()
        run('third', hang_in_c)
        for thread in threads:
            thread.join()
        self.assertEqual(3, len(self.lines.errors))
        for name, loop in loops.items():
            self.assertEqual(1, loop.timed_out)
            [error] = [each for each in self.lines.errors
                       if f"Tick 1 of worker '{name}'" in each]
            where = 'MainThread' if name == 'third' else f'of {name}'
            # C code of faulthandler writes nothing while it writes for another
            # thread, whose alarm may come at the same instant.
            self.assertRegex(error, rf'Thread {where}, in the tick \(most '
                             'recent|What it did was not seen$')
        # But the first of these alarms is not in the way of any other one.
        self.assertTrue(any(', in the tick (most recent' in each
                            for each in self.lines.errors))


class ItemTests(WatchdogCase):

    def test_the_time_is_that_of_an_item(self):
        deadlines = []

        @transaction_per_item
        def items():
            for _ in range(3):
                yield lambda: deadlines.append(loop.deadline)
        loop = self.loop(items, seconds=DEADLINE)
        loop()
        self.assertEqual(3, len(set(deadlines)))
        self.assertEqual(sorted(deadlines), deadlines)

    def test_also_in_a_batch(self):
        deadlines = []

        @transaction_per_item(batch=2)
        def items():
            for _ in range(4):
                yield lambda: deadlines.append(loop.deadline)
        loop = self.loop(items, seconds=DEADLINE)
        loop()
        self.assertEqual(4, len(set(deadlines)))

    def test_each_item_is_logged_and_counted(self):
        def hang():
            self.lines.has_error.clear()
            self.lines.wait()

        @transaction_per_item
        def items():
            yield hang
            yield int
            yield hang
        loop = self.loop(items, seconds=ITEM)
        heard = self.heard(TickTimedOut)
        loop()
        self.assertEqual(2, loop.timed_out)
        self.assertEqual(2, len(heard))
        self.assertEqual(2, len(self.lines.errors))
        for error in self.lines.errors:
            self.assertIn("An item in tick 1 of worker 'convert'", error)

    def test_an_item_that_is_over_before_it_is_logged(self):
        def hang():
            until(lambda: time.monotonic() > loop.deadline)

        @transaction_per_item
        def items():
            yield int
            yield hang
            yield int
        with (mock.patch.object(watchdog.Watchdog, 'look', lambda it: None),
              mock.patch.object(watchdog, 'Alarm', side_effect=OSError)):
            loop = self.loop(items, seconds=ITEM)
            loop()
        [error] = self.lines.errors
        self.assertIn("An item in tick 1 of worker 'convert' has", error)

    def test_it_is_not_that_of_a_run_in_another_thread(self):
        found = []

        @transaction_per_item
        def items():
            yield lambda: found.append(loop.deadline)

        def work():
            before = loop.deadline
            thread = threading.Thread(target=items)
            thread.start()
            thread.join()
            self.assertEqual([before], found)
        loop = self.loop(work, seconds=DEADLINE)
        loop()
        self.assertFalse(loop.failed)


class Own(MainLoop):
    """As programs have it that subclass version 3.0."""

    def __call__(self):
        while self._is_running:
            self.begin()
            try:
                if self.worker() is Exit:
                    self.stop()
            except Exception:
                self.abort()
            else:
                self.commit()


class OwnLoopTests(WatchdogCase):

    def make(self, *results, **kwargs):
        loop = self.loop(*results, **kwargs)
        own = Own(self.app, 0, loop.worker)
        own.name, own.tick_timeout = loop.name, loop.tick_timeout
        return own

    def test_its_ticks_are_watched(self):
        loop = self.make(None, self.lines.wait)
        with self.assertPutBack():
            loop()
        self.assertEqual(1, loop.timed_out)
        self.assertIn("Tick 2 of worker 'convert'", self.lines.errors[0])
        self.assertIsNone(loop.deadline)

    def test_so_are_those_that_fail(self):
        def work():
            self.lines.wait()
            raise ValueError
        loop = self.make(work)
        loop()
        self.assertEqual(1, loop.timed_out)

    def test_one_watchdog_is_enough(self):
        with mock.patch.object(watchdog, 'Watchdog',
                               side_effect=watchdog.Watchdog) as make:
            self.make(None, None, seconds=DEADLINE)()
        self.assertEqual(1, make.call_count)

    def test_one_that_is_forgotten_gives_all_back(self):
        with self.assertPutBack():
            free = stacks._free_signal()
            loop = Own(self.app, 0, int)
            loop.tick_timeout = DEADLINE
            loop.begin()
            loop.commit()
            looking = loop._watchdog._looking
            del loop
            gc.collect()
            looking.join(DEADLINE)
            self.assertEqual(free, stacks._free_signal())


    def test_one_that_is_forgotten_while_its_thread_begins_to_wait(self):
        got, forgotten = [], threading.Event()

        class Wake(watchdog.SimpleQueue):
            """Finds the garbage as soon as there is some."""

            def get(self, *, timeout):
                got.append(timeout)
                forgotten.wait(DEADLINE)
                gc.collect()
                return super().get(timeout=timeout)
        with (mock.patch.object(watchdog, 'SimpleQueue', Wake),
              self.assertPutBack()):
            loop = Own(self.app, 0, int)
            loop.tick_timeout = DEADLINE
            loop.begin()
            loop.commit()
            until(lambda: got)
            looking = loop._watchdog._looking
            del loop
            forgotten.set()
            looking.join(DEADLINE)
            self.assertFalse(looking.is_alive())


class AbortTests(TestCase):

    PREAMBLE = """
        import ctypes, os, resource, signal, sys, threading
        import transaction, ZODB, zope.site.folder, zope.site.site
        from gocept.runner import Exit, transaction_per_item
        from gocept.runner.process import Process
        from gocept.runner.runner import MainLoop
        from gocept.runner.tests.victims import lines, say, victim

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

        def hang_in_c():
            library = ctypes.PyDLL(None)
            while True:  # a signal may end a call
                library.usleep(100_000_000)

        def hang():
            threading.Event().wait()

        # Enough for the way to the worker on a busy machine.
        def run(worker, seconds=0.5):
            db = ZODB.DB(None)
            connection = db.open()
            app = zope.site.folder.rootFolder()
            app.setSiteManager(zope.site.site.LocalSiteManager(app))
            connection.root()['Application'] = app
            transaction.commit()
            loop = MainLoop(app, 0, worker)
            loop.name = 'convert'
            loop.tick_timeout = seconds
            loop.tick_timeout_action = 'abort'
            loop()

        """

    def start(self, body):
        program = self.program(
            textwrap.dedent(self.PREAMBLE) + textwrap.dedent(body))
        timer = threading.Timer(DEADLINE, program.process.kill)
        timer.start()
        self.addCleanup(timer.join)
        self.addCleanup(timer.cancel)
        return program

    def run_program(self, body, status=-signal.SIGABRT):
        """What a program has written that ends so."""
        program = self.start(body)
        self.assertEqual(status, program.end(), program.output)
        return program.output

    def test_a_tick_that_hangs_in_python(self):
        output = self.run_program('run(hang)')
        self.assertIn('(most recent call first)', output)
        self.assertIn('in hang', output)

    def test_one_that_hangs_in_c(self):
        output = self.run_program('run(hang_in_c)')
        self.assertIn('in hang_in_c', output)

    def test_one_in_another_thread(self):
        output = self.run_program("""
            thread = threading.Thread(target=run, args=(hang_in_c,))
            thread.start()
            thread.join()
            """)
        self.assertIn('in hang_in_c', output)

    def test_an_item(self):
        output = self.run_program("""
            @transaction_per_item
            def items():
                yield int
                yield hang
            run(items)
            """)
        self.assertIn('in hang', output)

    def test_the_log_says_why(self):
        # A busy machine may need longer than the time until the alarm.
        output = self.run_program("""
            from gocept.runner.operation import watchdog
            watchdog._GRACE = 1000
            run(hang)
            """)
        self.assertIn("Tick 1 of worker 'convert' takes longer", output)
        self.assertIn('The process ends by SIGABRT', output)

    def test_whatever_the_log_does(self):
        output = self.run_program("""
            import logging
            class Handler(logging.Handler):
                def emit(self, record):
                    hang()
            logging.getLogger().addHandler(Handler())
            run(hang)
            """)
        self.assertIn('in hang', output)

    def test_whoever_reads_the_stacks(self):
        program = self.start("""
            os.set_blocking(2, False)
            try:
                while True:
                    os.write(2, b'.' * 4096)
            except BlockingIOError:
                os.set_blocking(2, True)
            run(hang_in_c)
            """)
        program.process.wait(DEADLINE)  # nobody reads its output up to here
        self.assertEqual(-signal.SIGABRT, program.end())

    def test_whatever_the_program_does_at_sigabrt(self):
        self.run_program("""
            signal.signal(signal.SIGABRT, lambda *args: None)
            run(hang_in_c)
            """)

    def test_faulthandler_may_be_enabled(self):
        output = self.run_program("""
            import faulthandler
            faulthandler.enable()
            run(hang_in_c)
            """)
        self.assertIn('Fatal Python error: Aborted', output)

    def test_children_end_as_well(self):
        for hang in 'hang', 'hang_in_c':
            with self.subTest(hang):
                program = self.start(f"""
                    @transaction_per_item
                    def items():
                        yield start
                        yield {hang}

                    def start():
                        child = Process(victim('''
                            leave()
                            say('child', os.getpid())
                            pause()
                            '''), stdout='pipe')
                        for words in lines(child, 2):
                            say(*words)

                    # Enough for a start on a busy machine.
                    run(items, 3)
                    """)
                for _ in range(2):
                    program.wait_for('child')
                handles = [hold(int(line.split()[1]))
                           for line in program.output.splitlines()
                           if line.startswith('child')]
                self.assertEqual(2, len(handles))
                for handle in handles:
                    self.addCleanup(handle.close)
                    self.assertTrue(ended(handle))
                self.assertEqual(-signal.SIGABRT, program.end())

    def test_the_first_process_of_a_container_ends(self):
        command = ['unshare', '--pid', '--fork', '--kill-child',
                   '--mount-proc']
        if shutil.which('unshare') is None or subprocess.run(
                [*command, 'true'], stderr=subprocess.DEVNULL).returncode:
            self.skipTest('needs a namespace of its own')
        for hang in 'hang', 'hang_in_c':
            with self.subTest(hang):
                script = self.write('program.py', textwrap.dedent(
                    self.PREAMBLE) + f'run({hang})')
                result = subprocess.run(
                    [*command, sys.executable, script], cwd=self.dir,
                    env=child_environment(), stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT, text=True, timeout=DEADLINE)
                self.assertIn(f'in {hang}', result.stdout)
                self.assertNotIn(result.returncode, (0, 1))

    def test_a_fork_is_spared(self):
        output = self.run_program("""
            def work():
                read, write = os.pipe()
                if not os.fork():
                    os.close(write)
                    os.read(read, 1)  # up to the end of the parent
                    say('the child goes on')
                    os._exit(0)
                hang()
            run(work)
            """)
        self.assertIn('the child goes on', output)

    def test_a_program_that_takes_its_place_is_spared(self):
        output = self.run_program("""
            def work():
                os.execvp('sh', ['sh', '-c', 'sleep 2; echo spared'])
            run(work)
            """, status=0)
        self.assertIn('spared', output)

    def test_one_that_is_in_time_is_spared(self):
        output = self.run_program("""
            ticks = iter([0.01] * 5)
            run(lambda: next(ticks, Exit), 30)
            print('done')
            """, status=0)
        self.assertIn('done', output)
