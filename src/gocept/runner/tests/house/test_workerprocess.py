import signal
import unittest

from gocept.runner.house.workerprocess import RULES, Clock, WorkerProcess, said


class FakeClock(Clock):

    def __init__(self):
        self.passed = 0.0

    def monotonic(self):
        return 1000 + self.passed

    def realtime(self):
        return 1_000_000 + self.passed


class Hourly:
    """Due at each full hour of `FakeClock`, five seconds late."""

    def after(self, instant):
        return 3600 * (instant // 3600 + 1)

    def delay(self):
        return 5.0


class LifeTests(unittest.TestCase):

    options = {}

    def setUp(self):
        self.clock = FakeClock()
        self.life = WorkerProcess('w', clock=self.clock, **self.options)

    def run_for(self, seconds, status):
        """Start it, and have it end; returns what is said of it."""
        self.assertTrue(self.life.is_due())
        self.life.begin(1)
        self.life.note_start(4711)
        self.life.note_running()
        self.assertEqual('running', self.life.phase)
        self.clock.passed += seconds
        return self.life.note_end(status)

    def pause(self):
        """The seconds until it is started."""
        return self.life.next_start.at - self.clock.monotonic()


class LoopTests(LifeTests):

    def test_it_is_due_at_once(self):
        self.assertEqual('waiting', self.life.phase)
        self.assertTrue(self.life.is_due())
        self.life.begin(3)
        self.assertEqual('starting', self.life.phase)
        self.assertFalse(self.life.is_due())
        self.assertEqual((1, 3), (self.life.starts, self.life.generation))

    def test_pauses_double_up_to_the_longest(self):
        pauses = []
        for _ in range(RULES.limit - 1):
            said = self.run_for(1, 1)
            self.assertEqual('pausing', self.life.phase)
            self.assertFalse(self.life.is_due())
            pauses.append(self.pause())
            self.clock.passed += pauses[-1]
        self.assertEqual([0.25, 0.5, 1, 2, 4, 8, 16, 32, 60], pauses)
        self.assertEqual('has ended with status 1; it is restarted in 60 s',
                         said)
        self.assertEqual(
            'has ended with status 1; that was failure 10 in a row, so it is '
            'given up', self.run_for(1, 1))
        self.assertEqual('given up', self.life.phase)
        self.assertTrue(self.life.is_over)
        self.assertIsNone(self.life.next_start)

    def test_one_that_was_stable_counts_anew(self):
        for _ in range(3):
            self.run_for(1, 1)
            self.clock.passed += 60
        self.run_for(RULES.stable, -9)
        self.assertEqual((1, 0.25), (self.life.failures, self.pause()))

    def test_what_a_restart_does_not_change(self):
        for status in 2, 66, 67, 78:
            with self.subTest(status=status):
                self.setUp()
                self.assertEqual(
                    f'has ended with status {status}: a restart would not '
                    'help, so it is given up', self.run_for(1, status))
                self.assertEqual('given up', self.life.phase)

    def test_what_others_have_to_end_is_waited_for(self):
        for status in 69, 75:
            with self.subTest(status=status):
                self.setUp()
                for _ in range(3 * RULES.limit):
                    self.run_for(1, status)
                    self.assertEqual('pausing', self.life.phase)
                    self.clock.passed += 60

    def test_a_success_is_its_own_end(self):
        self.assertEqual('has ended by itself, and is not restarted',
                         self.run_for(1, 0))
        self.assertEqual(('done', 0), (self.life.phase, self.life.status))

    def test_told_to_end(self):
        self.life.begin(1)
        self.life.note_start(4711)
        self.life.end()
        self.life.note_told()
        self.assertEqual('ending', self.life.phase)
        self.assertEqual('', self.life.note_end(0))
        self.assertEqual('ended', self.life.phase)
        self.assertFalse(self.life.is_due())

    def test_told_to_end_before_its_first_tick(self):
        self.life.begin(1)
        self.life.end()
        self.life.note_told()
        self.assertEqual('', self.life.note_end(128 + signal.SIGTERM))

    def test_an_end_that_fails_is_said(self):
        self.life.begin(1)
        self.life.end()
        self.life.note_told()
        self.assertEqual('has ended with signal SIGKILL',
                         self.life.note_end(-9))

    def test_the_end_without_a_process(self):
        self.life.end()
        self.assertEqual('ended', self.life.phase)
        self.assertFalse(self.life.is_due())

    def test_the_end_in_a_pause(self):
        self.run_for(1, 1)
        self.life.end()
        self.clock.passed += 1000
        self.assertEqual('ended', self.life.phase)
        self.assertFalse(self.life.is_due())

    def test_a_successor_is_due_at_once_whatever_its_status(self):
        for status, expected in (0, ''), (1, 'has ended with status 1'):
            with self.subTest(status=status):
                self.setUp()
                self.life.begin(1)
                self.life.note_start(4711)
                self.life.replacing = True
                self.life.note_told()
                self.assertEqual(expected, self.life.note_end(status))
                self.assertTrue(self.life.is_due())
                self.assertEqual(0, self.life.failures)

    def test_one_that_ends_before_it_is_told_has_failed(self):
        self.life.begin(1)
        self.life.note_start(4711)
        self.life.replacing = True
        self.life.note_end(1)
        self.assertEqual(('pausing', False),
                         (self.life.phase, self.life.replacing))

    def test_no_process_came_of_it(self):
        self.life.begin(1)
        self.life.note_failed_start()
        self.assertTrue(self.life.is_due())
        self.assertEqual(0, self.life.starts)

    def test_no_process_came_of_it_at_the_end(self):
        self.life.begin(1)
        self.life.end()
        self.life.note_failed_start()
        self.assertEqual('ended', self.life.phase)

    def test_new_code_ends_a_pause(self):
        self.run_for(1, 1)
        self.life.renew()
        self.assertTrue(self.life.is_due())
        self.assertEqual(0, self.life.failures)

    def test_new_code_for_one_that_was_given_up(self):
        self.run_for(1, 78)
        self.life.renew()
        self.assertTrue(self.life.is_due())

    def test_new_code_for_one_that_was_told_to_end(self):
        self.run_for(1, 78)
        self.life.end()
        self.life.renew()
        self.assertFalse(self.life.is_due())

    def test_its_state(self):
        self.assertEqual(1_000_000, self.life.state()['due'])
        self.run_for(1, 1)
        self.clock.passed += 10
        self.assertEqual(
            {'name': 'w', 'site': None, 'phase': 'pausing', 'pid': None,
             'start': None, 'life': None,
             'since': {'realtime': 1_000_001, 'monotonic': 1001},
             'due': 1_000_001.25, 'starts': 1, 'failures': 1, 'status': 1,
             'generation': 1}, self.life.state())


class OnceTests(LifeTests):

    options = {'once': True}

    def test_a_success(self):
        self.assertEqual('', self.run_for(1, 0))
        self.assertEqual('done', self.life.phase)

    def test_a_failure_is_not_repeated(self):
        self.assertEqual(
            'has ended with status 1; it runs once, and is not restarted',
            self.run_for(1, 1))
        self.assertEqual(('done', 1), (self.life.phase, self.life.status))

    def test_new_code_does_not_repeat_it(self):
        self.run_for(1, 0)
        self.life.renew()
        self.assertFalse(self.life.is_due())


class ScheduleTests(LifeTests):

    options = {'once': True, 'times': Hourly()}

    def setUp(self):
        super().setUp()
        self.first = 1_000_800 + 5 - 1_000_000

    def test_it_waits_until_it_is_due(self):
        self.assertEqual(('realtime', 1_000_805), self.life.next_start)
        self.clock.passed = self.first - 1
        self.assertFalse(self.life.is_due())
        self.clock.passed = self.first
        self.assertTrue(self.life.is_due())

    def test_after_a_run_it_waits_for_the_next_one(self):
        self.clock.passed = self.first
        self.assertEqual('', self.run_for(10, 0))
        self.assertEqual(('waiting', 1_004_405), (
            self.life.phase, self.life.next_start.at))

    def test_a_run_that_fails_is_tried_again(self):
        self.clock.passed = self.first
        self.assertEqual(
            'has ended with status 1; it is restarted in 0.25 s',
            self.run_for(10, 1))

    def test_not_if_the_next_one_comes_first(self):
        self.clock.passed = self.first
        self.assertEqual(
            'has ended with status 1; it is started again when it is due',
            self.run_for(3594.9, 1))
        self.assertEqual(1_004_405, self.life.next_start.at)

    def test_not_if_it_may_be_committed(self):
        self.clock.passed = self.first
        self.run_for(10, 74)
        self.assertEqual(1_004_405, self.life.next_start.at)

    def test_it_is_not_given_up(self):
        self.clock.passed = self.first
        for _ in range(RULES.limit):
            self.run_for(1, 1)
            self.clock.passed += 60
        self.assertEqual(('waiting', 1_004_405, 0), (
            self.life.phase, self.life.next_start.at, self.life.failures))

    def test_the_clock_is_set_back(self):
        self.clock.passed = -7200
        self.life.note_clock()
        self.assertEqual(1_000_805 - 7200, self.life.next_start.at)

    def test_the_clock_is_set_back_a_little(self):
        before = self.life.next_start
        self.clock.passed = -60
        self.life.note_clock()
        self.assertIs(before, self.life.next_start)


class SaidTests(unittest.TestCase):

    def test_it(self):
        self.assertEqual(
            ['status 3', 'signal SIGKILL', 'signal 99'],
            [said(3), said(-9), said(-99)])
