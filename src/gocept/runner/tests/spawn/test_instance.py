"""Restarts, and the channels before and after them."""

import contextlib
import errno
import logging
import os
import select
import signal
import threading
from unittest import mock

import transaction
import zope.event

from gocept.runner import events
from gocept.runner.errors import (
    DeadlineExceeded,
    EndpointClosedException,
    StartError,
)
from gocept.runner.poller import Poller, background
from gocept.runner.process import Process, unixsocket
from gocept.runner.spawn import Runner, application, instance
from gocept.runner.tests.spawn.test_runner import ECHO, SpawnTestCase, settle
from gocept.runner.tests.streams import read_to_end, wait_readable
from gocept.runner.tests.support import DEADLINE, open_descriptors
from gocept.runner.tests.victims import losing_statuses, until
from gocept.runner.waits.deadline import Deadline, is_broken, wait_for

FOREVER = {'restart': 'always', 'restart_delay': 0, 'restart_limit': 10 ** 6}


class RestartTestCase(SpawnTestCase):

    def started(self, name):
        """How often it was started."""
        return len(self.log.having(f"Started <Process '{name}'"))

    def wait_started(self, name, count):
        self.log.wait_for(f"Started <Process '{name}'", count)
        settle()

    def ends(self):
        """The records of ends.

        A child may have ended already when its start is logged.
        """
        return [record for record in list(self.log.records)
                if 'ended with' in record.getMessage()
                and not record.getMessage().startswith('Started')]

    def timer(self, name):
        return self.runner._instances[name]._timer


class PolicyTests(RestartTestCase):

    def run_it(self, command, **options):
        self.runner.add('it', command, restart_delay=0, restart_limit=2,
                        **options)
        self.runner.start('it')

    def assertRestarted(self):
        self.log.wait_for('given up after 2')
        settle()
        self.assertEqual(3, self.started('it'))

    def assertNotRestarted(self):
        until(self.ends)
        settle()
        self.assertEqual([], self.log.having('restarting'))
        self.assertEqual(1, self.started('it'))

    def test_never(self):
        self.run_it('false')
        self.assertNotRestarted()

    def test_on_failure(self):
        self.run_it('false', restart='on-failure')
        self.assertRestarted()

    def test_on_failure_without_one(self):
        self.run_it('true', restart='on-failure')
        self.assertNotRestarted()

    def test_a_signal_is_a_failure(self):
        self.run_it('kill -TERM $$', shell=True, restart='on-failure')
        self.assertRestarted()

    def test_a_status_that_others_have_taken_is_none(self):
        with losing_statuses():
            self.run_it('false', restart='on-failure')
            self.assertNotRestarted()
        self.assertIn('ended with an unknown status',
                      self.ends()[0].getMessage())

    def test_a_true_255_is_a_failure(self):
        self.run_it('exit 255', shell=True, restart='on-failure')
        self.assertRestarted()

    def test_always(self):
        self.run_it('true', restart='always')
        self.assertRestarted()

    def test_exponential_delay_and_limit(self):
        self.runner.add('false', 'false', restart='always',
                        restart_delay=0.001, restart_limit=4)
        self.runner.start('false')
        self.log.wait_for('given up')
        settle()
        self.assertEqual(
            ['0.001 s', '0.002 s', '0.004 s', '0.008 s'],
            [message.partition('restarting in ')[2]
             for message in self.log.having('restarting in')])
        self.assertRegex(self.log.having('given up')[0],
                         "^<Process 'false' .*: ended with 1>; given up after "
                         '4 restarts in a row$')
        self.assertIsNone(self.timer('false'))
        self.assertEqual(1, self.runner.status('false'))

    def test_who_has_run_for_long_is_not_in_a_row(self):
        self.runner.add('false', 'false', **FOREVER | {'restart_limit': 1})
        with mock.patch.object(instance, '_STABLE', 0):
            self.runner.start('false')
            self.log.wait_for('restarting', 5)
        self.log.wait_for('given up after 1 restarts')

    def test_a_start_begins_a_new_row(self):
        self.runner.add('false', 'false', restart='always',
                        restart_delay=0, restart_limit=1)
        for count in 1, 2:
            self.runner.ensure_running('false')
            self.log.wait_for('given up', count)
        self.assertEqual(4, self.started('false'))

    def test_no_restart_after_terminate(self):
        self.runner.add('cat', 'cat', **FOREVER)
        self.runner.start('cat')
        self.runner.terminate('cat')
        settle()
        self.assertEqual([], self.log.having('restarting'))
        self.assertEqual(1, self.started('cat'))

    def test_restart_when_others_have_ended_it(self):
        self.runner.add('cat', 'cat', **FOREVER)
        self.runner.start('cat')
        self.process('cat').terminate()
        self.wait_started('cat', 2)
        self.assertTrue(self.runner.running('cat'))


class PendingTests(RestartTestCase):
    """A restart that would come in an hour."""

    def setUp(self):
        super().setUp()
        patch = mock.patch(
            'gocept.runner.spawn.application._LONGEST_DELAY', 3600)
        patch.start()
        self.addCleanup(patch.stop)
        self.runner.add('cat', 'cat', restart='always', restart_delay=3600)
        self.runner.start('cat')
        self.runner.get_channel('cat').write_eof()
        self.log.wait_for('restarting in 3600')
        settle()

    def test_the_state(self):
        self.assertFalse(self.runner.running('cat'))
        self.assertEqual(0, self.runner.status('cat'))
        self.assertIsNone(self.runner.get_channel('cat'))
        self.assertIn(id(self.timer('cat')), background()._watches)

    def test_terminate(self):
        timer = self.timer('cat')
        self.runner.terminate('cat')
        self.assertNotIn(id(timer), background()._watches)
        self.assertIsNone(self.timer('cat'))
        self.assertEqual(0, self.runner.status('cat'))

    def test_ensure_running(self):
        timer = self.timer('cat')
        self.runner.ensure_running('cat')
        self.assertNotIn(id(timer), background()._watches)
        self.assertTrue(self.runner.running('cat'))
        self.assertEqual(2, self.started('cat'))

    def test_a_start_that_fails(self):
        timer = self.timer('cat')
        with self.assertRaises(FileNotFoundError):
            self.runner.start('cat', command='/nonexistent/program')
        self.assertIs(timer, self.timer('cat'))

    def test_the_timer_is_late(self):
        # It was taken out by the background thread, and then we came.
        timer = self.timer('cat')
        instance = self.runner._instances['cat']
        application = instance._application
        self.runner.terminate('cat')
        instance._restart(application, 1, timer)
        self.assertEqual(1, self.started('cat'))


class FailingTests(RestartTestCase):

    def setUp(self):
        super().setUp()
        self.program = self.dir / 'program'
        self.program.write_text('#!/bin/sh\necho last words\nread x\n')
        self.program.chmod(0o700)
        self.runner.add('it', [str(self.program)], **FOREVER)
        self.runner.start('it')

    def end(self):
        self.runner.get_channel('it').write(b'\n')

    def test_the_program_is_gone_for_a_while(self):
        hidden = self.program.rename(self.dir / 'hidden')
        self.end()
        message = self.log.wait_for('FileNotFoundError', 2)
        self.assertRegex(message, "'it' cannot be restarted: .*program.*; "
                                  'restarting in')
        hidden.rename(self.program)
        self.wait_started('it', 2)
        self.assertEqual('last words', self.read_line('it'))

    def test_the_program_is_gone_for_good(self):
        self.runner.terminate('it')
        self.runner.start('it', restart_limit=3)
        channel = self.runner.get_channel('it')
        wait_readable(channel)
        self.program.unlink()
        self.end()
        self.log.wait_for('given up after 3 restarts')
        settle()
        # What has been said before all that is still there.
        self.assertIs(channel, self.runner.get_channel('it'))
        self.assertEqual([b'last words\n'], read_to_end(channel))
        self.assertIsNone(self.runner.get_channel('it'))

    def test_no_error_stops_the_background_thread(self):
        thread, = (thread for thread in threading.enumerate()
                   if thread.name == 'gocept.runner.poller')
        errors = [RuntimeError('one'), LookupError('two'), MemoryError(),
                  ValueError('four')]
        start = application.Process

        def failing(*args, **kwargs):
            if errors:
                raise errors.pop(0)
            return start(*args, **kwargs)
        with mock.patch.object(application, 'Process', failing):
            self.end()
            self.wait_started('it', 2)
        self.assertEqual(4, len(self.log.having('cannot be restarted')))
        self.assertTrue(thread.is_alive())

    def test_what_was_started_but_cannot_be_watched(self):
        with mock.patch.object(instance.Output, 'drain',
                               side_effect=OSError('no space')):
            self.end()
            self.log.wait_for('OSError: no space', 2)
        self.wait_started('it', 2)
        # No process is left but the one we know; see also the end of the test.
        self.assertTrue(self.runner.running('it'))


class ChannelsTests(RestartTestCase):

    def test_after_a_restart(self):
        self.runner.add('sh', 'echo words $$; read x', shell=True, **FOREVER)
        self.runner.start('sh')
        pids, channels = [], []
        for count in 1, 2:
            pids.append(self.process('sh').pid)
            channels.append(self.runner.get_channel('sh'))
            channels[-1].write(b'\n')
            self.wait_started('sh', count + 1)
        self.assertEqual(3, len({*channels, self.runner.get_channel('sh')}))
        # The first one is closed, the second one not yet.
        self.assertTrue(channels[0].closed)
        self.assertEqual([f'words {pids[1]}\n'.encode()],
                         read_to_end(channels[1]))
        self.assertEqual(f'words {self.process("sh").pid}',
                         self.read_line('sh'))
        self.runner.close()
        self.assertTrue(channels[1].closed)

    def test_sockets(self):
        self.add_server(restart='on-failure', restart_delay=0)
        self.runner.start('server')
        channel = self.runner.get_channel('server')
        before = self.process('server')
        channel.write(b'last words\n')
        channel.read_until(b'last', DEADLINE)
        before.send_signal(signal.SIGKILL)
        self.wait_started('server', 2)
        self.assertEqual([b' words\n'], read_to_end(channel))
        # Now it waits until the other one listens.
        after = self.runner.get_channel('server')
        self.assertIsNot(channel, after)
        self.assertEqual(str(self.process('server').pid),
                         self.read_line('server'))
        self.assertIs(after, self.runner.get_channel('server'))

    def test_many_threads_wait_for_one_connection(self):
        self.add_server(body=f'''
            if os.path.exists('second'):
                say('here')
                wait()
            {ECHO}
            ''', restart='always', restart_delay=0)
        self.runner.start('server')
        (self.dir / 'second').touch()
        self.process('server').send_signal(signal.SIGKILL)
        self.log.wait_for('server: here')
        calls = [self.thread(self.runner.get_channel, 'server')
                 for _ in range(5)]
        self.let_go()
        channel, = {call.result() for call in calls}
        channel.read_until(b'\n', DEADLINE)

    def test_one_that_ends_before_it_listens_again(self):
        self.add_server(body=f'''
            if os.path.exists('second'):
                say('here')
                wait()
                sys.exit(3)
            {ECHO}
            ''', restart='always', restart_delay=0)
        self.runner.start('server')
        (self.dir / 'second').touch()
        self.process('server').send_signal(signal.SIGKILL)
        self.log.wait_for('server: here')
        connects = threading.Event()
        original = unixsocket.connect_when_listening

        def connect(*args):
            connects.set()
            return original(*args)
        with mock.patch.object(unixsocket, 'connect_when_listening', connect):
            get = self.thread(self.runner.get_channel, 'server')
            self.assertTrue(connects.wait(DEADLINE))
        self.let_go()
        with self.assertRaises(StartError) as caught:
            get.result()
        self.assertEqual(3, caught.exception.returncode)
        # It goes on meanwhile.
        self.log.wait_for('server: here', 2)
        (self.dir / 'second').unlink()
        self.let_go()
        self.wait_started('server', 4)
        self.read_line('server')

    def test_one_that_does_not_listen_again_in_time(self):
        self.add_server(body=f'''
            if os.path.exists('second'):
                pause()
            {ECHO}
            ''', restart='always', restart_delay=0)
        self.runner.start('server')
        (self.dir / 'second').touch()
        self.process('server').send_signal(signal.SIGKILL)
        self.wait_started('server', 2)
        self.runner._instances['server']._application.__dict__[
            'start_timeout'] = 0.05
        with self.assertRaises(DeadlineExceeded):
            self.runner.get_channel('server')
        self.assertTrue(self.runner.running('server'))

    def test_restarted_during_the_connection(self):
        self.add_server(restart='always', restart_delay=0)
        self.runner.start('server')
        self.process('server').send_signal(signal.SIGKILL)
        self.wait_started('server', 2)
        original = unixsocket.connect_when_listening

        def connect(*args):
            sock = original(*args)
            self.process('server').send_signal(signal.SIGKILL)
            self.wait_started('server', 3)
            return sock
        with mock.patch.object(unixsocket, 'connect_when_listening', connect):
            with self.assertRaisesRegex(StartError, 'ended by others'):
                self.runner.get_channel('server')
        self.assertEqual(str(self.process('server').pid),
                         self.read_line('server'))

    def wait_broken(self, channel):
        while not is_broken(channel.get_fd()):
            wait_for(channel.get_fd(), 0, Deadline(DEADLINE))

    def test_a_connection_that_the_server_has_closed(self):
        self.add_server(body='''
            server = bind()
            server.listen()
            while True:
                client = server.accept()[0]
                client.send(b'answer\\n')
                client.close()
            ''')
        self.runner.start('server')
        channels = []
        for _ in range(3):
            channels.append(channel := self.runner.get_channel('server'))
            self.wait_broken(channel)
            # What it has said is read first.
            self.assertEqual('answer', self.read_line('server'))
        self.assertEqual(3, len({*channels}))
        # As after a restart, one is closed with the next but one.
        self.assertEqual([True, False, False],
                         [each.closed for each in channels])
        with self.assertRaises(EndpointClosedException):
            channels[1].read()

    def test_what_was_fetched_from_a_closed_connection_is_given_back(self):
        self.add_server(body='''
            server = bind()
            server.listen()
            while True:
                client = server.accept()[0]
                client.send(b'answer\\n')
                client.close()
            ''', transactional=True)
        self.runner.start('server')
        self.addCleanup(transaction.abort)
        channel = self.runner.get_channel('server')
        while not channel.read():
            wait_for(channel.get_fd(), select.POLLIN, Deadline(DEADLINE))
        self.wait_broken(channel)
        after = self.runner.get_channel('server')
        self.assertIsNot(channel, after)
        transaction.abort()
        self.assertIs(channel, self.runner.get_channel('server'))
        self.assertEqual(b'answer\n', channel.read())
        transaction.commit()
        self.assertIs(after, self.runner.get_channel('server'))

    def test_a_server_that_closes_the_connection_and_ends(self):
        self.add_server(body='''
            server = bind()
            server.listen()
            client = server.accept()[0]
            os.unlink('socket')
            client.close()
            say('closed')
            wait()
            ''')
        self.runner.start('server')
        self.log.wait_for('server: closed')
        connects = threading.Event()
        original = unixsocket.connect_when_listening

        def connect(*args):
            connects.set()
            return original(*args)
        with mock.patch.object(unixsocket, 'connect_when_listening', connect):
            get = self.thread(self.runner.get_channel, 'server')
            self.assertTrue(connects.wait(DEADLINE))
        self.let_go()
        self.assertIsNone(get.result())

    def test_a_socket_that_others_have_removed(self):
        for policy, expected in (('on-failure', 'running'),
                                 ('never', 'given-up')):
            with self.subTest(policy):
                # The end is one in order, but the child has failed.
                self.add_server(policy, body='''
                    signal.signal(signal.SIGTERM, lambda *args: sys.exit())
                    echo(bind())
                    ''', restart=policy, restart_delay=0)
                self.runner.start(policy)
                before = self.process(policy)
                self.read_line(policy)
                self.runner.get_channel(policy).close()
                (self.dir / 'socket').unlink()
                vars(self.runner._instances[policy]._application)[
                    'start_timeout'] = 0
                with self.assertRaises(DeadlineExceeded):
                    self.runner.get_channel(policy)
                self.assertEqual(0, before.returncode)
                self.log.wait_for('has listened there before, so it is ended')
                if policy == 'never':
                    self.log.wait_for('it is not restarted')
                else:
                    self.wait_started(policy, 2)
                self.assertEqual(expected, self.runner.state(policy))
                self.runner.terminate(policy)
                self.log.messages.clear()

    def test_a_place_that_is_taken_meanwhile(self):
        self.add_server(body='''
            server = bind()
            server.listen()
            wait()
            os.unlink('socket')
            os.mkdir('socket')
            ''', **FOREVER)
        self.runner.start('server')
        self.let_go()
        self.log.wait_for('StartError: ', 2)
        os.rmdir(self.dir / 'socket')
        self.wait_started('server', 2)
        self.assertTrue(self.runner.running('server'))

    def test_the_last_words_are_logged(self):
        self.add_server(body='''
            def told(*args):
                os.write(1, (b'x' * 599 + b'\\n') * 100 + b'last words')
                os._exit(0)
            signal.signal(signal.SIGTERM, told)
            ''' + ECHO)
        for end in (self.runner.close,
                    lambda: (self.process('server').terminate(),
                             self.runner.start('server'))):
            self.runner.ensure_running('server')
            self.log.messages.clear()
            end()
            self.assertEqual(100, len(self.log.having('server: x')))
            self.assertEqual(1, len(self.log.having('server: last words')))

    def test_captured_output_is_not_handed_out(self):
        self.add_server(stderr='pipe', encoding='utf-8')
        self.runner.start('server')
        self.assertIsNone(self.runner.get_channel('server', 'stdout'))
        self.assertFalse(self.runner.get_channel('server', 'stderr').closed)

    def test_standard_input_beside_captured_output(self):
        self.add_server(body='''
            server = bind()
            server.listen()
            say('got', os.read(0, 100))
            pause()
            ''', stdin='pipe')
        self.runner.start('server')
        self.runner.get_channel('server', 'stdout').write(b'hello')
        self.log.wait_for("server: got b'hello'")

    def test_descriptors_of_many_restarts(self):
        self.add_server(body='''
            server = bind()
            server.listen()
            say('hello')
            os.close(server.accept()[0].detach())
            ''', stderr='pipe', **FOREVER)
        before = len(open_descriptors())
        self.runner.start('server')
        for count in range(2, 7):
            self.wait_started('server', count)
            with contextlib.suppress(StartError):
                self.runner.get_channel('server')
        self.assertLess(len(open_descriptors()) - before, 15)


class SubscriberTests(RestartTestCase):
    """Code of users runs without locks."""

    def subscribe(self, function, kind=events.ChildStarted):
        def call(event):
            if isinstance(event, kind):
                function(event)
        zope.event.subscribers.append(call)
        self.addCleanup(zope.event.subscribers.remove, call)

    def add_servers(self, *names, **options):
        for name in names:
            self.add_server(name, f'echo(bind({name!r}))', socket=name,
                            **options)

    def test_two_that_start_each_other(self):
        self.add_servers('a', 'b')
        both = threading.Barrier(2, timeout=DEADLINE)

        def start_the_other(event):
            both.wait()
            other = {'a': 'b', 'b': 'a'}[event.name]
            self.runner.ensure_running(other)
            answers.append(self.runner.get_channel(other))
        answers = []
        self.subscribe(start_the_other)
        starts = [self.thread(self.runner.start, name) for name in 'ab']
        for start in starts:
            start.result()
        self.assertCountEqual(map(self.runner.get_channel, 'ab'), answers)

    def test_a_channel_in_one_thread_and_an_event_in_another(self):
        # While the subscriber does not return, others connect.
        self.add_servers('a')
        told, may_go = threading.Event(), threading.Event()
        self.addCleanup(may_go.set)
        self.subscribe(lambda event: (told.set(), may_go.wait(DEADLINE)))
        kinds = []
        self.subscribe(lambda event: kinds.append(type(event)),
                       events.ChildEvent)
        start = self.thread(self.runner.start, 'a')
        self.assertTrue(told.wait(DEADLINE))
        channel = self.thread(self.runner.get_channel, 'a').result()
        self.thread(self.runner.ensure_running, 'a').result()
        self.assertTrue(start.is_alive())
        may_go.set()
        start.result()
        self.assertIs(channel, self.runner.get_channel('a'))
        self.assertEqual([events.ChildStarted, events.ChildReady], kinds)

    def test_it_ends_while_a_subscriber_is_told_of_its_start(self):
        self.add_servers('a')
        told, may_go = threading.Event(), threading.Event()
        self.addCleanup(may_go.set)
        self.subscribe(lambda event: (told.set(), may_go.wait(DEADLINE)))
        kinds = []
        self.subscribe(lambda event: kinds.append(type(event)),
                       events.ChildEvent)
        start = self.thread(self.runner.start, 'a')
        self.assertTrue(told.wait(DEADLINE))
        self.process('a').send_signal(signal.SIGKILL)
        self.wait('a')
        may_go.set()
        self.assertRaises(StartError, start.result)
        self.assertEqual([events.ChildStarted, events.ChildEnded], kinds)

    def test_ctrl_c_while_a_subscriber_is_told_of_a_start(self):
        # Nobody would connect to the process, or start it again.
        self.add_servers('a', **FOREVER)

        def interrupt(event):
            raise KeyboardInterrupt
        self.subscribe(interrupt)
        self.assertRaises(KeyboardInterrupt, self.runner.start, 'a')
        self.assertFalse(self.runner.running('a'))
        settle()
        self.assertEqual([], self.log.having('restarting'))

    def test_sys_exit_in_the_background_thread(self):
        kinds = []

        def leave(event):
            kinds.append(type(event))
            raise SystemExit
        self.subscribe(leave, events.ChildEvent)
        self.subscribe(lambda event: kinds.append('other'), events.ChildEnded)
        self.runner.add('cat', 'cat', **FOREVER)
        with contextlib.suppress(SystemExit):  # it is our own thread
            self.runner.start('cat')
        thread, = (thread for thread in threading.enumerate()
                   if thread.name == 'gocept.runner.poller')
        for count in 2, 3:
            with self.assertLogs('gocept.runner.events', 'ERROR'):
                self.process('cat').send_signal(signal.SIGKILL)
                self.wait_started('cat', count)
        self.assertEqual(
            [events.ChildStarted, events.ChildReady,
             *[events.ChildEnded, 'other', events.ChildStarted,
               events.ChildReady] * 2], kinds)
        self.assertTrue(thread.is_alive())

    def test_an_order_for_each_child_of_many_threads(self):
        kinds = {}
        self.subscribe(
            lambda event: kinds.setdefault(event.process.pid, []).append(
                type(event)), events.ChildEvent)
        self.runner.add('true', 'true', **FOREVER)
        self.runner.add('cat', 'cat')

        def work(alias):
            for _ in range(10):
                self.runner.ensure_running('cat', alias)
                self.runner.running('true')
                self.runner.terminate(alias)
        self.runner.start('true')
        for call in [self.thread(work, f'cat {number % 2}')
                     for number in range(4)]:
            call.result()
        self.runner.close()
        settle()
        self.assertEqual(
            {(events.ChildStarted, events.ChildReady, events.ChildEnded)},
            set(map(tuple, kinds.values())))


class WaitingTests(RestartTestCase):
    """The background thread waits for nobody."""

    def test_what_the_process_before_has_left(self):
        self.runner.add('cat', 'cat', **FOREVER)
        self.runner.start('cat')
        ending, may_go = threading.Event(), threading.Event()
        self.addCleanup(may_go.set)
        terminate = Process.terminate

        def slow(*args):
            ending.set()
            may_go.wait(DEADLINE)
            return terminate(*args)
        with mock.patch.object(Process, 'terminate', slow):
            self.process('cat').send_signal(signal.SIGKILL)
            self.assertTrue(ending.wait(DEADLINE))
            settle()  # it answers
            self.assertEqual('restarting', self.runner.state('cat'))
            may_go.set()
            self.wait_started('cat', 2)
        self.assertEqual('running', self.runner.state('cat'))

    def test_given_up_while_it_is_ended(self):
        self.runner.add('cat', 'cat', **FOREVER)
        self.runner.start('cat')
        ending, may_go = threading.Event(), threading.Event()
        terminate = Process.terminate

        def slow(*args):
            ending.set()
            may_go.wait(DEADLINE)
            return terminate(*args)
        with mock.patch.object(Process, 'terminate', slow):
            self.process('cat').send_signal(signal.SIGKILL)
            self.assertTrue(ending.wait(DEADLINE))
            self.runner.give_up('cat')
            may_go.set()
            settle()
        self.assertEqual('ended', self.runner.state('cat'))
        self.assertEqual(1, self.started('cat'))

    def test_no_thread_is_left_for_a_while(self):
        self.runner.add('cat', 'cat', restart='always', restart_delay=0,
                        restart_limit=1)
        self.runner.start('cat')
        errors = [RuntimeError("can't start new thread")] * 3
        start = threading.Thread.start

        def failing(thread):
            if errors:
                raise errors.pop()
            start(thread)
        with mock.patch.object(threading.Thread, 'start', failing):
            self.process('cat').send_signal(signal.SIGKILL)
            self.wait_started('cat', 2)
        # It did not count.
        for delay in 0.1, 0.2, 0.4:
            self.assertEqual(1, len(self.log.having(f'restarting in {delay}')))
        self.assertEqual([], self.log.having('given up'))


    def test_a_shortage_of_ours_is_no_failure_of_the_child(self):
        self.runner.add('cat', 'cat', restart='always', restart_delay=0,
                        restart_limit=1)
        self.runner.start('cat')
        errors = [OSError(number, 'too many') for number in (
            errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM)]
        errors += [MemoryError()]
        start = application.Process

        def failing(*args, **kwargs):
            if errors:
                raise errors.pop(0)
            return start(*args, **kwargs)
        with (mock.patch.object(instance, '_SHORTAGE', 0.001),
              mock.patch.object(application, 'Process', failing)):
            self.process('cat').send_signal(signal.SIGKILL)
            self.wait_started('cat', 2)
        self.assertEqual(5, len(self.log.having('ShortageError'))
                         + len(self.log.having('MemoryError')))
        self.assertEqual([], self.log.having('given up'))


class MessageTests(RestartTestCase):

    def assertSays(self, expected, error=FileNotFoundError, **options):
        with self.assertRaises(error) as caught:
            self.runner.start('shout', **options)
        for text in repr(caught.exception), str(caught.exception):
            self.assertIn(f"app 'shout': {expected}", text)

    def test_what_was_not_found_and_for_whom(self):
        self.runner.add('shout', 'pyton3 shout.py')
        self.assertSays("cannot run 'pyton3': No such file or directory")
        self.assertSays("cannot run 'pyton3': No such file", umask=0o22)
        self.assertSays("cannot run '/etc/passwd': Permission denied",
                        PermissionError, command='/etc/passwd')
        for options in {}, {'umask': 0o22}:
            self.assertSays("cannot start in the directory '/nonexistent'",
                            command='cat', cwd='/nonexistent', **options)
        self.assertSays("'/nonexistent/file'", stdin='/nonexistent/file')


class StateTests(RestartTestCase):

    def test_before_the_end_is_told(self):
        for restart, status, expected in (
                ('never', 0, 'ended'), ('never', 1, 'given-up'),
                ('on-failure', 1, 'restarting'), ('always', 0, 'restarting')):
            with (self.subTest(restart, status=status),
                  mock.patch.object(instance.Instance, '_tell_end'),
                  Runner() as runner):
                runner.add('it', ['sh', '-c', f'exit {status}'],
                           restart=restart)
                runner.start('it')
                runner.get_process('it').wait(DEADLINE)
                self.assertEqual(expected, runner.state('it'))

    def assertState(self, expected, alias='it'):
        settle()
        self.assertEqual(expected, self.runner.state(alias))

    def test_an_end_that_is_none_of_a_failure(self):
        self.runner.add('it', 'cat')
        self.runner.start('it')
        self.assertState('running')
        self.runner.get_channel('it').write_eof()
        self.wait('it')
        self.assertState('ended')
        self.assertEqual([logging.INFO], self.levels('ended with 0'))

    def test_an_end_that_is_wanted(self):
        self.runner.add('it', 'cat', restart='always')
        self.runner.start('it')
        self.runner.terminate('it')
        self.assertState('ended')
        self.assertEqual([logging.INFO], self.levels('ended with -15'))

    def test_a_failure(self):
        self.runner.add('it', 'exit 3', shell=True)
        self.runner.start('it')
        self.log.wait_for('it is not restarted')
        self.assertState('given-up')
        self.assertEqual([logging.WARNING], self.levels('ended with 3'))

    def test_a_failure_and_its_last_words(self):
        self.add_server(body=f'''
            if os.fork():
                say('This is bad.')
                wait()
                os._exit(4)
            {ECHO}''')
        self.runner.start('server')
        self.log.wait_for('server: This')
        self.let_go()
        message = self.log.wait_for('not restarted')
        self.assertRegex(message, "^<Process 'server' .*: ended with 4>; it "
                                  'is not restarted; its output ends with:\n'
                                  'This is bad.$')
        self.assertEqual([logging.WARNING], self.levels('not restarted'))

    def test_the_last_words_that_nobody_has_read(self):
        for options in {}, {'stdout': 'null', 'stderr': 'pipe'}:
            self.runner.add('it', 'read x; echo bad | tee /dev/stderr; exit 3',
                            shell=True, **{'stderr': 'null'} | options)
            self.runner.start('it')
            self.runner.get_channel('it', 'stdout').write(b'\n')
            self.assertRegex(self.log.wait_for('not restarted'),
                             'not restarted; its output ends with:\nbad$')
            self.log.messages.clear()
        # They can still be read.
        self.assertEqual('bad', self.read_line('it', 'stderr'))

    def test_after_the_last_restart(self):
        self.runner.add('it', 'false', restart='always', restart_limit=1,
                        restart_delay=0)
        self.runner.start('it')
        self.log.wait_for('given up after 1')
        self.assertState('given-up')
        self.runner.start('it', command='cat')
        self.assertState('running')
        self.runner.terminate('it')
        self.assertState('ended')

    def test_one_that_does_not_listen(self):
        self.add_server('it', 'sys.exit(3)')
        self.assertRaises(StartError, self.runner.start, 'it')
        self.assertState('given-up')

    def test_a_name_that_is_not_known(self):
        with self.assertRaisesRegex(KeyError, "nothing was started as 'it'"):
            self.runner.state('it')

    def test_who_waits_with_the_poller_is_woken(self):
        with Poller() as poller, type(self.runner)(poller=poller) as runner:
            runner.add('it', 'exit 3', shell=True)
            runner.start('it')
            process = runner.get_process('it')
            while not poller.poll(DEADLINE):
                if process.returncode is not None:
                    break
            self.assertEqual('given-up', runner.state('it'))

    def test_who_waits_is_woken_though_a_daemon_holds_the_output(self):
        with Poller() as poller, type(self.runner)(poller=poller) as runner:
            runner.add('it', 'sleep 1000 & read x; exit 0', shell=True)
            runner.start('it')
            channel = runner.get_channel('it')
            poller.register(channel)
            woken = mock.Mock(wraps=poller.wakeup)
            with mock.patch.object(poller, 'wakeup', woken):
                channel.write(b'\n')
                while runner.get_process('it').returncode is None:
                    poller.poll(DEADLINE)
            woken.assert_called()
            self.assertEqual('ended', runner.state('it'))

    def levels(self, text):
        return [record.levelno for record in self.ends()
                if text in record.getMessage()]


class ForkTests(RestartTestCase):

    def test_one_that_the_parent_has_run(self):
        self.runner.add('cat', 'cat')
        self.runner.start('cat')
        self.runner.get_channel('cat').write_eof()
        self.wait('cat')
        pid = os.fork()
        if not pid:
            status = 1
            try:
                self.runner.start('cat')
                self.runner.get_channel('cat').write_eof()
                status = self.wait('cat')
                self.runner.close()
            finally:
                os._exit(status)
        self.assertEqual((pid, 0), os.waitpid(pid, 0))
