"""Children whose other side the test has."""

import io
import os
import queue
import signal
import sys

import transaction
import zope.interface.verify
from zope.component import getUtility, queryUtility
from zope.component.hooks import getSite

import gocept.runner
from gocept.runner.errors import (
    DeadlineExceeded,
    EndpointClosedException,
    ProcessExistsException,
)
from gocept.runner.interfaces import (
    IFakeChild,
    IFakeChildren,
    IPoller,
    IProcess,
    IRunner,
)
from gocept.runner.poller import Poller
from gocept.runner.spawn import Runner
from gocept.runner.testing import children as module
from gocept.runner.testing import fake_children, runner_config
from gocept.runner.tests.executors import ExecutorTestCase
from gocept.runner.tests.support import DEADLINE

LINES = {'buffering': 'line', 'encoding': 'utf-8'}


class FakeChildrenTests(ExecutorTestCase):

    children = None

    def fake(self, *args, **options):
        return self.enterContext(fake_children(*args, **options))

    def runner(self, **keywords):
        """With an application that cannot be run."""
        if self.children is None:
            self.children = self.fake()
        runner = self.enterContext(Runner())
        runner.add('app', '/missing', **keywords)
        return runner

    def test_keeps_its_contract(self):
        runner = self.runner()
        runner.start('app')
        zope.interface.verify.verifyObject(IFakeChildren, self.children)
        child = self.children['app']
        zope.interface.verify.verifyObject(IFakeChild, child)
        zope.interface.verify.verifyObject(IProcess, child.process)
        self.assertEqual('app', child.name)
        self.assertIs(child.process, runner.get_process('app'))
        self.assertIn("FakeChild <Process 'app'", repr(child))

    def test_says_and_hears(self):
        runner = self.runner()
        runner.start('app')
        channel, child = runner.get_channel('app'), self.children['app']
        self.assertEqual(b'', channel.read())
        child.put(b'a', b'b')
        child.put(b'c')
        self.assertEqual(b'abc', channel.read())
        self.assertEqual(b'', child.get())
        channel.write(b'd')
        channel.write(b'e')
        self.assertEqual(b'de', child.get())
        self.assertEqual(b'', child.get())
        with self.assertRaises(ValueError):
            child.put_error(b'')

    def test_lines_of_text(self):
        runner = self.runner(**LINES)
        runner.start('app')
        channel, child = runner.get_channel('app'), self.children['app']
        child.put('ä\nö\n', 'ü')
        self.assertEqual(['ä\n', 'ö\n', ''],
                         [channel.read() for _ in range(3)])
        self.assertEqual('', child.get())
        channel.write('ß')
        self.assertEqual('ß', child.get())

    def test_standard_error(self):
        runner = self.runner(stderr='pipe')
        runner.start('app')
        self.children['app'].put_error(b'oops')
        self.assertEqual(b'oops', runner.get_channel('app', 'stderr').read())

    def test_other_streams(self):
        path = str(self.dir / 'out')
        for keywords in ({'stdout': path, 'stderr': path}, {'stdin': 'null'},
                         {'stderr': 'merge'}):
            with self.subTest(keywords):
                runner = self.runner(**keywords)
                runner.start('app')
                child = self.children['app']
                self.assertEqual(b'', child.get())
                if 'stdout' in keywords:
                    with self.assertRaisesRegex(ValueError, "stdout='pipe'"):
                        child.put(b'a')
                else:
                    child.put(b'a')
                    self.assertEqual(b'a', runner.get_channel('app').read())
                child.end()

    def test_its_end(self):
        for status, expected, state in (
                (0, 0, 'ended'), (3, 3, 'given-up'), (255, 255, 'given-up'),
                (-signal.SIGKILL, -9, 'given-up')):
            with self.subTest(status):
                runner = self.runner()
                runner.start('app')
                channel, child = (runner.get_channel('app'),
                                  self.children['app'])
                child.put(b'last')
                channel.write(b'unread')
                child.end(status)
                self.assertEqual(state, runner.state('app'))
                self.assertEqual(expected, runner.status('app'))
                self.assertEqual(b'last', channel.read())
                self.assertRaises(EndpointClosedException, channel.read)
                self.assertIsNone(runner.get_channel('app'))
                self.assertRaises(EndpointClosedException, child.put, b'')
                self.assertRaises(RuntimeError, child.end)
                self.assertEqual(b'unread', child.get())
                with self.assertRaises(EndpointClosedException):
                    channel.write(b'late')

    def test_the_worker_ends_it(self):
        runner = self.runner()
        runner.start('app')
        runner.get_channel('app').write(b'bye')
        runner.terminate('app')
        self.assertEqual(-signal.SIGTERM, runner.status('app'))
        self.assertEqual(b'bye', self.children['app'].get())

        with self.assertRaisesRegex(RuntimeError, 'has ended already'):
            self.children['app'].end()

    def test_more_than_a_pipe_holds(self):
        self.addCleanup(setattr, module, '_PATIENCE', module._PATIENCE)
        module._PATIENCE = 0.01
        runner = self.runner()
        runner.start('app')
        channel, child = runner.get_channel('app'), self.children['app']
        child.put(b'x' * 200_000)
        with self.assertRaisesRegex(DeadlineExceeded, 'were not read by the'):
            child.end()
        module._PATIENCE = DEADLINE
        read = b''
        with Poller() as poller:
            poller.register(channel)
            while len(read) < 200_000:
                [(data, _)] = poller.poll(DEADLINE)
                read += data
        self.assertEqual(b'x' * 200_000, read)
        child.end()

    def test_its_arguments_and_aliases(self):
        runner = self.runner()
        runner.start('app', 'one', ['a', 'b c'])
        runner.start('app', 'two')
        with self.assertRaises(ProcessExistsException):
            runner.start('app', 'two')
        self.assertEqual(['a', 'b c'], self.children['one'].args)
        self.assertEqual([], self.children['two'].args)
        with self.assertRaisesRegex(
                KeyError, "no child 'app' was started yet; started were: "
                'one, two'):
            self.children['app']
        self.assertEqual([], self.children.all('app'))

    def test_what_is_declared_for_another_machine(self):
        runner = self.runner(
            cwd='/missing', user='nobody-knows', rlimits={'nofile': 3},
            type='socket', socket='missing', env={}, extra_env={'A': 'b'},
            popen_kwargs={}, start_timeout=3)
        runner.start('app')
        self.children['app'].put(b'a')
        self.assertEqual(b'a', runner.get_channel('app').read())

    def test_is_polled(self):
        poller = self.enterContext(Poller())
        runner = self.runner()
        runner.start('app')
        channel, child = runner.get_channel('app'), self.children['app']
        poller.register(channel)
        self.assertFalse(poller.pause(0))
        child.put(b'a')
        self.assertTrue(poller.pause(0))
        self.assertEqual([(b'a', channel)], poller.poll(0))
        poller.register(child.process)
        child.end(4)
        self.assertCountEqual(
            [(b'', channel), (4, child.process)], poller.poll(0))

    def test_is_restarted(self):
        runner = self.runner(restart='on-failure', restart_limit=1)
        runner.start('app')
        first = self.children.wait_for('app')
        first.end(1)
        second = self.children.wait_for('app', 2)
        self.assertIsNot(first, second)
        self.assertEqual([first, second], self.children.all('app'))
        self.assertIs(second, self.children['app'])
        second.end(1)
        self.assertEqual('given-up', runner.state('app'))

    def test_one_that_is_not_started(self):
        self.runner()
        self.addCleanup(setattr, module, '_PATIENCE', module._PATIENCE)
        module._PATIENCE = 0
        with self.assertRaisesRegex(
                DeadlineExceeded, "0 of 1 children 'app' were started"):
            self.children.wait_for('app')

    def test_transactions(self):
        runner = self.runner(**LINES, transactional=True)
        runner.start('app')
        channel, child = runner.get_channel('app'), self.children['app']
        child.put('a\n')
        for _ in range(2):
            self.assertEqual('a\n', channel.read())
            channel.write('b\n')
            transaction.abort()
            self.assertEqual('', child.get())
        self.assertEqual('a\n', channel.read())
        channel.write('c\n')
        transaction.commit()
        self.assertEqual('c\n', child.get())
        self.assertEqual('', channel.read())
        transaction.abort()

    def test_what_runs_is_ended(self):
        for policy in 'never', 'on-failure', 'always':
            with self.subTest(policy), Runner() as runner:
                with fake_children() as children:
                    runner.add('app', 'missing', restart=policy)
                    runner.start('app')
                    child = children['app']
                self.assertLess(child.process.returncode, 0)
                self.assertEqual('given-up', runner.state('app'))
                self.assertEqual([child], children.all('app'))
                with self.assertRaises(FileNotFoundError):
                    runner.start('app')

    def test_a_forked_child_ends_none(self):
        with Runner() as runner, fake_children() as children:
            runner.add('app', 'missing')
            runner.start('app')
            pid = os.fork()
            if not pid:
                sys.stderr = io.StringIO()
                sys.exit()
            self.assertEqual((pid, 0), os.waitpid(pid, 0))
            self.assertIsNone(children['app'].process.poll())
            children['app'].end()

    def test_a_start_is_told(self):
        def on_start(child):
            child.put(b'ready')
            runner.get_channel('app')
            started.put(child)
        started = queue.Queue()
        children = self.fake(on_start=on_start)
        runner = self.enterContext(Runner())
        runner.add('app', 'missing', restart='always')
        runner.start('app')
        self.assertIs(children['app'], started.get_nowait())
        self.assertEqual(b'ready', runner.get_channel('app').read())
        children['app'].end()
        self.assertIs(children.wait_for('app', 2), started.get(
            timeout=DEADLINE))

    def test_one_that_has_ended_before_it_says_something(self):
        def on_start(child):
            child.end()
            child.put(b'late')
        children = fake_children(on_start=on_start)
        with children, Runner() as runner:
            runner.add('app', 'missing')
            runner.start('app')

    def test_an_error_at_a_start(self):
        with (self.assertRaises(ZeroDivisionError), Runner() as runner,
              fake_children(on_start=lambda child: 1 / 0)):
            runner.add('app', 'missing')
            runner.start('app')

    def test_utilities(self):
        with fake_children({'app': LINES}) as children:
            poller = getUtility(IPoller)
            channel = getUtility(IRunner).get_channel('app')
            poller.register(channel)
            children['app'].put('a\n')
            self.assertEqual([('a\n', channel)], poller.poll(0))
            with self.assertRaises(KeyError):
                getUtility(IRunner).get_channel('other')
        self.assertIsNone(queryUtility(IRunner))
        self.assertIsNone(queryUtility(IPoller))
        self.assertTrue(channel.closed)

    def test_one_at_a_time(self):
        with fake_children() as children:
            with self.assertRaisesRegex(RuntimeError, 'is open already'):
                fake_children()
            children.close()
            fake_children().close()

    def test_mistakes_in_keywords(self):
        for error, keywords in (
                (ValueError, {'buffering': 'nonsense'}),
                (ValueError, {'redeliveries': 3}),
                (ValueError, {'restart': 'sometimes'})):
            with (self.assertRaises(error), fake_children({'app': keywords})):
                """Not reached."""
        self.assertIsNone(queryUtility(IRunner))

    def test_a_whole_program(self):
        @gocept.runner.appmain(ticks=3600)
        def program():
            poller = getUtility(IPoller)
            channel = getUtility(IRunner).get_channel('scale')
            if channel is not None:
                poller.register(channel)
            for line, source in poller.poll(0):
                if line:
                    source.write(f'got {line}')
                    site = getSite()
                    site.total = getattr(site, 'total', 0) + int(line)

        def until():
            self.assertEqual('got 3\n', children['scale'].get())
            return True

        children = self.fake(on_start=lambda child: child.put('3\n'))
        config = self.enterContext(runner_config(zcml='''
            <runner:app
                name="scale"
                command="/usr/lib/scale --daemon"
                user="scale-which-is-not-here"
                buffering="line"
                encoding="utf-8"
                transactional="true" />'''))
        config.run_ticks(program, until=until, timeout=DEADLINE)
        self.assertEqual(-signal.SIGTERM,
                         children['scale'].process.returncode)
        with config.site() as site:
            self.assertEqual(3, site.total)
            program.worker()
            self.assertEqual(6, site.total)
            self.assertEqual('', children['scale'].get())
            transaction.commit()
            self.assertEqual('got 3\n', children['scale'].get())
