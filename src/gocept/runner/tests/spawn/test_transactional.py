"""Applications whose channels are transactional."""

import transaction

from gocept.runner.channel import PipeChannel, TransactionalChannel
from gocept.runner.poller import Poller
from gocept.runner.tests.spawn.test_runner import SpawnTestCase, settle
from gocept.runner.tests.streams import wait_readable
from gocept.runner.tests.support import DEADLINE

# Tells its number, which is the line that it is asked for, and ends.
ONCE = ['sh', '-c', 'echo $$; read word; exit 1']

FOREVER = {'restart': 'always', 'restart_delay': 0, 'restart_limit': 10 ** 6}


class TransactionalTests(SpawnTestCase):

    def setUp(self):
        super().setUp()
        self.addCleanup(transaction.abort)
        self.poller = Poller()
        self.addCleanup(self.poller.close)

    def start(self, command='cat', **options):
        self.runner.add('it', command, buffering='line', encoding='utf-8',
                        transactional=True, **options)
        self.runner.start('it')
        return self.runner.get_channel('it')

    def poll(self):
        return [line for line, _ in self.poller.poll(DEADLINE)]

    def wait_started(self, count):
        self.log.wait_for("Started <Process 'it'", count)
        settle()

    def test_the_channel_is_a_transactional_one(self):
        channel = self.start(redeliveries=7, stderr='pipe')
        self.assertIs(channel, self.runner.get_channel('it'))
        for each in channel, self.runner.get_channel('it', 'stderr'):
            self.assertIsInstance(each, TransactionalChannel)
            self.assertEqual(7, each.redeliveries)
        self.assertIsInstance(
            self.runner.get_process('it').channel, PipeChannel)

    def test_others_are_not(self):
        self.runner.add('it', 'cat')
        self.runner.start('it')
        self.assertIs(self.runner.get_process('it').channel,
                      self.runner.get_channel('it'))

    def test_a_question_and_an_answer(self):
        channel = self.start()
        self.poller.register(channel)
        channel.write('a\n')
        transaction.abort()
        channel.write('b\n')
        transaction.commit()
        for _ in range(3):
            self.assertEqual(['b\n'], self.poll())
            transaction.abort()

    def test_a_socket(self):
        self.add_server(buffering='line', encoding='utf-8',
                        transactional=True)
        self.runner.start('server')
        channel = self.runner.get_channel('server')
        self.poller.register(channel)
        pid = self.runner.get_process('server').pid
        self.assertEqual([f'{pid}\n'], self.poll())
        channel.write('a\n')
        transaction.commit()
        self.assertEqual(['a\n'], self.poll())
        transaction.abort()
        self.assertEqual(['a\n'], self.poll())
        self.assertIs(channel, self.runner.get_channel('server'))

    def test_what_was_given_back_comes_before_the_new_child(self):
        old = self.start(ONCE, **FOREVER)
        self.poller.register(old)
        first = self.poll()
        self.runner.get_process('it').send_signal(9)
        self.wait_started(2)
        new = self.runner.get_channel('it')
        self.assertIsNot(old, new)
        self.poller.register(new)
        wait_readable(new)
        transaction.abort()
        lines = self.poll()
        while len(lines) < 3:
            lines += self.poll()
        self.assertEqual(first, lines[:1])
        self.assertCountEqual(
            ['', f'{self.runner.get_process("it").pid}\n'], lines[1:])

    def test_without_a_poller_the_channel_before_comes_first(self):
        old = self.start(ONCE, **FOREVER)
        wait_readable(old)
        line = old.read()
        self.runner.get_process('it').send_signal(9)
        self.wait_started(2)
        transaction.abort()
        for _ in range(2):
            self.assertIs(old, self.runner.get_channel('it'))
            self.assertEqual(line, old.read())
            transaction.abort()
        self.assertEqual(line, old.read())
        transaction.commit()
        self.assertIsNot(old, self.runner.get_channel('it'))

    def test_a_channel_is_open_until_its_end_was_fetched(self):
        channels, pids = [], []
        channel = self.start(ONCE, **FOREVER)
        for count in range(2, 6):
            channels.append(channel)
            self.poller.register(channel)
            wait_readable(channel)
            pids.append(f'{self.runner.get_process("it").pid}\n')
            self.runner.get_process('it').send_signal(9)
            self.wait_started(count)
            channel = self.runner.get_channel('it')
        lines = []
        while len(lines) < 8:
            lines += self.poller.poll(DEADLINE)
        self.assertEqual(
            [[pid, ''] for pid in pids],
            [[line for line, source in lines if source is each]
             for each in channels])
        transaction.commit()
        self.runner.get_process('it').send_signal(9)
        self.wait_started(6)
        self.assertTrue(all(each.closed for each in channels))

    def test_what_was_given_back_of_a_child_that_has_ended(self):
        channel = self.start(['echo', 'last'])
        self.poller.register(channel)
        lines = self.poll()
        while '' not in lines:
            lines += self.poll()
        self.runner.get_process('it').wait(DEADLINE)
        self.assertIsNone(self.runner.get_channel('it'))
        transaction.abort()
        self.assertIs(channel, self.runner.get_channel('it'))
        self.assertEqual(['last\n', ''], self.poll())
        transaction.commit()
        self.assertIsNone(self.runner.get_channel('it'))

    def test_what_nobody_has_fetched_at_the_end_is_counted(self):
        channel = self.start(['echo', 'last'])
        wait_readable(channel)
        channel.read()
        transaction.abort()
        self.runner.close()
        self.assertTrue(self.log.having('with 1 items that were given back'))

    def test_redeliveries_are_checked(self):
        for wrong in (-1, 'many'):
            with self.assertRaisesRegex(ValueError, 'redeliveries must be'):
                self.runner.add(
                    'it', 'cat', transactional=True, redeliveries=wrong)
        with self.assertRaisesRegex(ValueError, 'only if transactional'):
            self.runner.add('it', 'cat', redeliveries=3)
