"""A worker with a transactional child, whose ticks are disturbed all the time.

The child says numbered lines, and is told of each number that was stored.
"""

import contextlib
import logging
import random
import signal
from unittest import mock

import persistent.list
import transaction
import zope.component
from ZODB.POSException import ConflictError

from gocept.runner import Exit
from gocept.runner.errors import EndpointClosedException
from gocept.runner.interfaces import IPoller
from gocept.runner.poller import Poller
from gocept.runner.runner import MainLoop
from gocept.runner.spawn import Runner
from gocept.runner.tests.spawn.test_runner import python
from gocept.runner.tests.support import DEADLINE, end_background
from gocept.runner.tests.test_mainloop import LoopCase

# Says all numbers after the one that it is told, and notes what it hears.
FEED = '''
    say('ready')
    last = int(sys.stdin.readline())
    for number in range(last + 1, int(sys.argv[1]) + 1):
        say(number)
    with open('heard', 'a') as heard:
        for line in sys.stdin:
            heard.write(line)
            heard.flush()
    '''


class Failed(Exception):
    """Raised by the worker, for no reason."""


class RedeliveryCase(LoopCase):

    count = 300  # lines
    disturbances = 0  # of ticks that have fetched something

    def setUp(self):
        super().setUp()
        self.app.numbers = persistent.list.PersistentList()
        self.app.other = persistent.list.PersistentList()
        transaction.commit()
        self.random = random.Random(42)
        self.disturbed = self.skipped = 0
        self.poller = Poller()
        self.addCleanup(self.poller.close)
        self.addCleanup(end_background)
        self.runner = Runner()
        self.addCleanup(self.runner.close)
        for name in ('gocept.runner', 'txn', 'ZODB'):
            logger = logging.getLogger(name)
            self.addCleanup(setattr, logger, 'propagate', logger.propagate)
            self.addCleanup(logger.setLevel, logger.level)
            logger.propagate = False
            logger.setLevel(logging.CRITICAL)

    def start(self, body=FEED, **options):
        self.runner.add(
            'feed', [*python(body), str(self.count)], cwd=str(self.dir),
            buffering='line', encoding='utf-8', transactional=True,
            **options)
        self.runner.start('feed')

    def run_loop(self, worker):
        zope.component.provideUtility(self.poller, IPoller)
        with mock.patch('gocept.runner.boot.attempts.LONGEST_PAUSE', 0):
            MainLoop(self.app, 0, worker, max_backoff=0)()

    def store(self):
        """One tick."""
        channel = self.runner.get_channel('feed')
        if channel is not None:
            self.poller.register(channel)
        numbers = self.app.numbers
        pairs = self.poller.poll(0)
        for line, source in pairs:
            # The child that has said this may have been killed.
            with contextlib.suppress(EndpointClosedException):
                if line == 'ready\n':
                    source.write(f'{len(numbers)}\n')
                elif line:
                    self.take(int(line), source)
        if pairs:
            self.disturb()
        is_over = self.is_done() and not transaction.isDoomed()
        return Exit if is_over else DEADLINE

    def take(self, number, source):
        self.app.numbers.append(number)
        source.write(f'{number}\n')

    def is_done(self):
        return len(self.app.numbers) >= self.count

    def disturb(self):
        # The last number is not stored before all disturbances have come.
        if self.disturbed >= self.disturbances or not (
                self.is_done() or self.random.random() < 0.95):
            return
        self.disturbed += 1
        self.random.choice([self.conflict, self.conflict_itself, self.doom,
                            self.raise_error, self.roll_back])()

    def conflict(self):
        """Another connection changes what this one changes."""
        with self.db.transaction() as connection:
            connection.root()['Application'].other.append(1)
            connection.root()['Application'].other.pop()
        self.app.other.append(0)

    def conflict_itself(self):
        raise ConflictError

    def raise_error(self):
        raise Failed

    def doom(self):
        transaction.doom()

    def roll_back(self):
        savepoint = transaction.savepoint()
        self.poller.poll(0)
        savepoint.rollback()
        raise Failed

    def stored(self):
        with self.db.transaction() as connection:
            return [*connection.root()['Application'].numbers]


class RedeliveryTests(RedeliveryCase):

    level = 2  # takes some seconds

    disturbances = 10_000

    def test_no_line_is_lost_and_none_comes_twice(self):
        self.start(redeliveries=None)
        self.run_loop(self.store)
        numbers = [*range(1, self.count + 1)]
        self.assertEqual(self.disturbances, self.disturbed)
        self.assertEqual(numbers, self.stored())
        # What was committed was sent, and nothing else.
        self.runner.get_channel('feed').write_eof()
        transaction.commit()
        self.runner.get_process('feed').wait(DEADLINE)
        self.assertEqual(
            ''.join(f'{number}\n' for number in numbers),
            (self.dir / 'heard').read_text())

    def test_conflicts_skip_nothing(self):
        self.disturbances = 3000
        self.raise_error = self.doom = self.roll_back = self.conflict
        self.start()
        self.run_loop(self.store)
        self.assertEqual([*range(1, self.count + 1)], self.stored())
        self.assertEqual(0, self.runner.get_channel('feed').skipped)

    def test_only_a_line_that_always_fails_is_skipped(self):
        self.disturbances = 0

        def take(number, source):
            if number % 100 == 50:
                raise Failed
            self.app.numbers.append(number)
        self.take = take
        self.is_done = lambda: self.app.numbers[-1:] == [self.count]
        self.start()
        self.run_loop(self.store)
        self.assertEqual(
            [number for number in range(1, self.count + 1)
             if number % 100 != 50], self.stored())
        self.assertEqual(3, self.runner.get_channel('feed').skipped)


# Like it, but says a number when the one before was stored.
SLOW_FEED = """
    say('ready')
    last = int(sys.stdin.readline())
    for number in range(last + 1, int(sys.argv[1]) + 1):
        say(number)
        sys.stdin.readline()
    """


class DeathTests(RedeliveryCase):
    """A child that was killed is followed by one that begins anew."""

    disturbances = 500
    kills = 30

    def take(self, number, source):
        # The lines that a child has left may be those of its successor, too.
        if number == len(self.app.numbers) + 1:
            super().take(number, source)

    def disturb(self):
        if self.kills and self.random.random() < 0.2:
            self.kills -= 1
            self.runner.get_process('feed').send_signal(signal.SIGKILL)
        super().disturb()

    def test_all_numbers_are_stored(self):
        self.start(SLOW_FEED, redeliveries=None, restart='always',
                   restart_delay=0, restart_limit=10 ** 6)
        self.runner._instances['feed']._on_restart = self.poller.wakeup
        self.run_loop(self.store)
        self.assertEqual(0, self.kills)
        self.assertEqual([*range(1, self.count + 1)], self.stored())
