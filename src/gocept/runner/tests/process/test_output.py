import contextlib
import logging
import os
import threading
import unittest
from unittest import mock

from gocept.runner.poller import Poller
from gocept.runner.process import output
from gocept.runner.process.output import Output
from gocept.runner.tests.streams import StreamTestCase
from gocept.runner.tests.support import DEADLINE, Slow

log = logging.getLogger('gocept.runner.spawn')


class OutputTests(StreamTestCase):

    options = {}

    def setUp(self):
        super().setUp()
        self.channel, self.peer = self.open_pipes(**self.options)
        self.output = Output('it', self.channel, log)
        self.logs = self.enterContext(self.assertLogs(log, 'INFO'))
        self.addCleanup(log.info, 'at least one')

    def assertLogged(self, *lines):
        self.assertEqual([f'it: {line}' for line in lines],
                         [record.getMessage() for record in self.logs.records])

    def say(self, data):
        self.peer.send(data)
        self.output.read_rest()

    def test_lines(self):
        self.say(b'one\ntwo\n\nthree')
        self.assertLogged('one', 'two', 'three')
        self.assertEqual(b'one\ntwo\n\nthree', self.output.tail)
        self.assertEqual('ends with:\none\ntwo\n\nthree', str(self.output))

    def test_lines_that_come_in_pieces(self):
        with Poller() as poller:
            self.output.drain(poller)
            for piece in (b'on', b'e\nt', b'wo\nth', b'ree'):
                self.peer.send(piece)
                self.assertEqual([], poller.poll(0))
            self.assertLogged('one', 'two')
            self.peer.shut()
            self.assertEqual([], poller.poll(0))
            self.assertLogged('one', 'two', 'three')
            self.assertEqual({}, poller._watches)
            self.output.read_rest()
        self.assertLogged('one', 'two', 'three')

    def test_no_text(self):
        self.say(b'\xff\xc3\n')
        self.assertLogged('\\xff\\xc3')
        self.assertEqual('ends with:\n\\xff\\xc3', str(self.output))

    def test_characters_that_come_in_pieces(self):
        with Poller() as poller:
            self.output.drain(poller)
            for piece in (b'\xc3', b'\xa4\n'):
                self.peer.send(piece)
                poller.poll(0)
        self.assertLogged('ä')

    def test_a_long_line(self):
        self.say(b'x' * 5000)
        self.assertLogged('x' * 4096, 'x' * 904)

    def test_the_tail(self):
        for number in range(200):
            self.say(b'%099d\n' % number)
        expected = b''.join(b'%099d\n' % number for number in range(200))
        self.assertEqual(expected[-2 ** 14:], self.output.tail)

    def test_the_tail_of_one_piece(self):
        self.say(b'x' * 40_000 + b'y\n')
        self.assertEqual(2 ** 14, len(self.output.tail))
        self.assertTrue(self.output.tail.endswith(b'xy\n'))

    def test_nothing(self):
        self.output.read_rest()
        self.assertEqual('is empty', str(self.output))
        self.assertEqual(b'', self.output.tail)

    def test_no_channel(self):
        output = Output('it', None, log)
        with Poller() as poller:
            output.drain(poller)
        output.read_rest()
        self.assertIn('was not kept', str(output))

    def test_a_closed_channel(self):
        with Poller() as poller:
            self.output.drain(poller)
            self.channel.close()
            self.assertEqual([], poller.poll(0))
            self.assertEqual({}, poller._watches)
            self.output.drain(poller)
            poller.poll(0)
        self.output.read_rest()

    def test_two_pollers(self):
        with Poller() as first, Poller() as second:
            for poller in (first, second):
                self.output.drain(poller)
            self.peer.send(b'one\n')
            second.poll(0)
            first.poll(0)
            first.close()
            self.peer.send(b'two\n')
            second.poll(0)
        self.assertLogged('one', 'two')

    def test_two_threads_keep_the_order(self):
        self.start(lambda: [self.peer.send(b'%d\n' % number)
                            for number in range(20_000)] + [self.peer.shut()])

        def read():
            with Poller() as poller:
                self.output.drain(poller)
                while poller._watches:
                    poller.poll(0.01)  # it gives nothing
        thread = self.start(read)
        read()
        thread.join(DEADLINE)
        self.assertLogged(*range(20_000))

    def test_another_thread_logs(self):
        slow, logged = Slow(self), []

        class Handler(logging.Handler):
            def emit(self, record):
                slow()
                logged.append(record.getMessage())
        handler = Handler()
        log.addHandler(handler)
        self.addCleanup(log.removeHandler, handler)
        thread = self.start(self.say, b'0\n')
        slow.wait_entered()
        self.say(b'1\n')
        self.assertEqual(['it: 0', 'it: 1'], logged)
        thread.join(DEADLINE)

    def test_a_log_that_takes_no_more(self):
        # A handler that hangs in another thread holds no lock that we need.
        hangs, may_go = threading.Event(), threading.Event()

        class Handler(logging.Handler):
            def emit(self, record):
                hangs.set()
                may_go.wait(DEADLINE)
        handler = Handler()
        log.addHandler(handler)
        self.addCleanup(log.removeHandler, handler)
        with mock.patch.object(output, '_MOST_LINES', 3):
            thread = self.start(self.say, b'0\n')
            self.assertTrue(hangs.wait(DEADLINE))
            self.say(b''.join(b'%d\n' % number for number in range(1, 10)))
            may_go.set()
            thread.join(DEADLINE)
            self.say(b'10\n')
        self.assertLogged(
            *range(4), '6 lines are left out here, as the log takes no more',
            10)

    def test_somebody_else_writes_on(self):
        more = threading.Event()

        def write():
            with contextlib.suppress(OSError):
                while True:
                    self.peer.send((b'x' * 999 + b'\n') * 20)
                    more.set()
        thread = self.start(write)
        more.wait(DEADLINE)
        with mock.patch.object(self.output, '_log_lines'):
            self.output.read_rest()  # and comes back
        # Which ends the thread.
        os.close(self.peer.faucet)
        self.peer.faucet = -1
        self.channel.close()
        thread.join(DEADLINE)
        self.assertFalse(thread.is_alive())


class BufferedOutputTests(OutputTests):
    """What the channel would do with it does not matter."""

    options = {'buffering': 'line', 'encoding': 'ascii', 'limit': 3}


class TailTests(unittest.TestCase):

    def test_nobody_reads(self):
        self.assertEqual(-1, Output('it', None, log).fileno())
