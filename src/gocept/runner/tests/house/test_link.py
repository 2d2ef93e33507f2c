"""What `up` and its template say to each other."""

import json
import os
import threading

from gocept.runner.errors import LinkError
from gocept.runner.house.link import (
    DeclaredChild,
    DeclaredWorker,
    Failed,
    Fork,
    Forked,
    Ready,
    Stage,
    Streams,
    Template,
    Unforked,
    Up,
    pack,
    unpack,
)
from gocept.runner.poller import Poller
from gocept.runner.tests.support import DEADLINE, TestCase
from gocept.runner.waits.packets import Packets, pair

WORKER = DeclaredWorker(
    name='import', site='shop', arguments=('a', 'b'), once=False, ticks=2.0,
    schedule=None, timezone=None, jitter=0.0, missed='once', lock=True,
    tick_timeout=None, shutdown_timeout=30.0, apps=('converter',))

CHILD = DeclaredChild('app', 'converter', 'lazy', ('redis',), 'soffice', False)


def open_files():
    return len(os.listdir('/proc/self/fd'))


class LinkTests(TestCase):

    def setUp(self):
        super().setUp()
        ours, theirs = pair()
        self.raw = Packets(theirs)
        self.template = Template(Packets(ours))
        self.up = Up(self.raw)
        self.addCleanup(self.template.close)
        self.addCleanup(self.up.close)
        self.addCleanup(self.raw.close)

    def streams(self, count=3):
        return Streams(*(
            os.memfd_create('stream', os.MFD_CLOEXEC) for _ in range(count)))

    def test_messages_come_as_they_were_sent(self):
        for message in (
                Ready('toolkit', (WORKER, WORKER._replace(schedule='* * * * *',
                                                          ticks=None)),
                      (CHILD,), ('a thread',)),
                Failed(78, 'bad ZCML'), Forked(3, 4711),
                Unforked(3, 'no memory')):
            self.up.say(message)
            self.assertEqual(([message], False), self.template.collect())

    def test_the_kind_of_a_worker_that_has_whole_seconds(self):
        message = Ready('zope', (WORKER._replace(ticks=2),), (), ())
        self.up.say(message)
        [[told], _] = self.template.collect()
        self.assertIsInstance(told.workers[0].ticks, float)

    def test_a_wish_with_its_streams(self):
        streams = self.streams(4)
        files = [os.fstat(fd).st_ino for fd in streams]
        wish = Fork(1, 'import', ('--once', '--', 'ä'), '12.3.1')
        before = open_files()
        self.template.fork(wish, streams)
        self.assertEqual(before - 4, open_files())
        wishes = self.up.wishes()
        received, given = next(wishes)
        self.assertEqual(wish, received)
        self.assertEqual(files, [os.fstat(fd).st_ino for fd in given])
        self.assertFalse(any(map(os.get_inheritable, given)))
        self.template.close()
        self.assertEqual([], list(wishes))
        self.assertEqual(before - 4 - 1, open_files())

    def test_the_handle_of_a_worker(self):
        pidfd = os.pidfd_open(os.getpid())
        self.addCleanup(os.close, pidfd)
        self.up.say(Forked(1, os.getpid(), pidfd))
        [[told], _] = self.template.collect()
        self.addCleanup(os.close, told.pidfd)
        self.assertNotEqual(pidfd, told.pidfd)
        self.assertEqual((1, os.getpid()), told[:2])
        with open(f'/proc/self/fdinfo/{told.pidfd}') as info:
            self.assertIn(f'Pid:\t{os.getpid()}\n', info.read())

    def test_a_message_that_is_too_long_for_a_packet(self):
        workers = tuple(WORKER._replace(name=f'worker {number}')
                        for number in range(2000))
        before = open_files()
        self.up.say(Ready('toolkit', workers, (), ()))
        [[told], _] = self.template.collect()
        self.assertEqual(workers, told.workers)
        self.assertEqual(before, open_files())

    def test_a_template_that_takes_nothing(self):
        wish, count = Fork(1, 'x' * 30000), 0
        before = open_files()
        with Poller() as poller:
            poller.register(self.template)
            while not self.template.kept:
                self.template.fork(wish, self.streams())
                count += 1
            self.template.fork(wish._replace(number=2), self.streams())
            self.assertEqual(before + 6, open_files() - 3)  # of the poller
            wishes = self.up.wishes()
            numbers = []
            while len(numbers) < count + 1:
                poller.poll(0)
                numbers.append(next(wishes)[0].number)
            self.assertEqual(0, self.template.kept)
            self.assertEqual([*[1] * count, 2], numbers)
            wishes.close()
        self.assertEqual(before, open_files())

    def test_a_wish_when_the_template_has_ended(self):
        self.up.say(Failed(78, 'bad ZCML'))
        self.up.close()
        before = open_files()
        self.template.fork(Fork(1, 'import'), self.streams())
        self.assertEqual(before, open_files())
        self.assertEqual(([Failed(78, 'bad ZCML')], True),
                         self.template.collect())

    def test_streams_of_wishes_that_were_not_sent_are_closed(self):
        before = open_files()
        while not self.template.kept:
            self.template.fork(Fork(1, 'x' * 30000), self.streams())
        self.template.close()
        self.up.close()
        self.assertEqual(before - 2, open_files())

    def test_the_template_waits_until_it_is_read(self):
        message = Unforked(1, 'x' * 60000)
        sent = []

        def say():
            for _ in range(100):
                self.up.say(message)
                sent.append(message)
            self.up.close()
        thread = threading.Thread(target=say)
        thread.start()
        told = []
        with Poller() as poller:
            poller.register(self.template)
            while len(told) < 100:
                new = poller.poll(DEADLINE)
                self.assertTrue(new)
                told += new
        thread.join()
        self.assertEqual(100, len(told))

    def test_nothing_but_messages(self):
        right = json.loads(pack(Forked(1, 2)))
        for wrong in (
                b'nothing', b'[]', b'{}', b'{"is": 3}', b'{"is": "other"}',
                b'{"is": []}', b'\xff', b'[' * 60000,
                *(json.dumps(right | each).encode() for each in (
                    {'number': '1'}, {'number': 1.0}, {'number': True},
                    {'other': 1}, {'is': 'ready'}, {'pid': None})),
                pack(Ready('x', (), (), ())).replace(b'[]', b'[3]'),
                pack(Ready('x', (), (), ())).replace(b'[]', b'{}'),
                pack(Ready('x', (WORKER,), (), ())).replace(
                    b'"ticks"', b'"tacks"'),
                pack(Stage('running')).replace(b'running', b'walking')):
            with self.subTest(wrong[:80]), self.assertRaises(LinkError):
                unpack(wrong)

    def test_what_the_other_end_cannot_say(self):
        before = open_files()
        fd = os.memfd_create('unexpected')
        for data, count in (
                (pack(Fork(1, 'import')), 0), (pack(Failed(1, 'x')), 1),
                (pack(Forked(1, 2)), 2), (b'{"bytes": 5}', 0),
                (b'{"bytes": 5}', 1), (b'{"bytes": 1000000000}', 1),
                (b'{"bytes": null}', 1), (b'{"bytes', 3),
                (b'x' * 60000, 200)):
            with self.subTest(data[:80], count=count):
                self.raw.send(data, [fd] * count)
                with self.assertRaises(LinkError):
                    self.template.collect()
        os.close(fd)
        self.assertEqual(before, open_files())

    def test_a_wish_without_its_streams(self):
        fd = os.memfd_create('stream')
        self.addCleanup(os.close, fd)
        sender = self.template._end.packets
        for count in (0, 2, 5):
            sender.send(pack(Fork(1, 'import')), [fd] * count)
            with self.assertRaisesRegex(LinkError, 'only others say'):
                next(self.up.wishes())

    def test_it_is_a_mistake_to_forget_it(self):
        packets, other = map(Packets, pair())
        self.addCleanup(other.close)
        with self.assertWarns(ResourceWarning):
            Up(packets)
        self.assertTrue(packets.closed)
