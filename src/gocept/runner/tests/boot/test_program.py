"""Programs with children that ZCML declares: whatever ends them, nobody stays.

In a program the worker is run in one of two ways: by ``gocept-runner run``,
and as a function, ``program(None, 'zope.conf')``.
"""

import contextlib
import os
import pathlib
import random
import signal
import subprocess
import textwrap
import time
import unittest
from typing import Any

from gocept.runner import errors
from gocept.runner.boot.program import End
from gocept.runner.process import procfs
from gocept.runner.tests.cli.test_worker import (
    LOG_TO_STDOUT,
    PREAMBLE,
    ProgramTestCase,
    caught_by,
)
from gocept.runner.tests.declaring import DeclaringTestCase
from gocept.runner.tests.executors import is_gone
from gocept.runner.tests.support import SIGNALS, Program
from gocept.runner.tests.victims import until

EAGER = {'start': 'eager'}

WAITS = "note('waits')\npause()\n"

COMMAND = '''
    from gocept.runner import cli
    sys.exit(cli.main(['run', 'w', '--config', 'zope.conf', *sys.argv[1:]]))
    '''

FUNCTION = '''
    import handlers
    handlers.worker(None, 'zope.conf', *sys.argv[1:])
    '''

MODES = {'command': COMMAND, 'function': FUNCTION}

SLEEPER = '''
    @gocept.runner.appmain(ticks=3600)
    def worker():
        pass
    '''


class EndTests(unittest.TestCase):
    """What a call in Python returns, and what a program exits with."""

    def test_a_success(self) -> None:
        self.assertEqual((None, errors.SUCCESS), (End().result, End().status))

    def test_a_failure(self) -> None:
        for status in errors.WORKER_FAILED, errors.PARTLY_COMMITTED, 128 + 15:
            end = End(status)
            self.assertEqual((status, status), (end.result, end.status))

    def test_an_interrupt(self) -> None:
        end = End(by=KeyboardInterrupt())
        self.assertEqual((None, errors.INTERRUPTED), (end.result, end.status))

    def test_a_system_exit(self) -> None:
        end = End(by=SystemExit(3))
        self.assertIsNone(end.result)
        with self.assertRaises(SystemExit) as caught:
            end.status
        self.assertIs(end.by, caught.exception)

    def test_an_exit_that_claims_a_success(self) -> None:
        for status in errors.WORKER_FAILED, errors.PARTLY_COMMITTED:
            self.assertEqual(status, End(status, SystemExit(0)).status)
        end = End(errors.PARTLY_COMMITTED, KeyboardInterrupt())
        self.assertEqual(errors.PARTLY_COMMITTED, end.status)


class DeclaredProgramTestCase(DeclaringTestCase, ProgramTestCase):

    def run_worker(self, mode: str, children: str, worker: str = SLEEPER,
                   *args: str, more: str = '') -> Program:
        """Start a program that runs the worker, as `mode` says."""
        self.write('handlers.py', '').write_text(
            PREAMBLE + textwrap.dedent(worker))
        conf = LOG_TO_STDOUT + f'\npath {self.dir}\n'
        self.conf(children + '<runner:worker name="w" '
                  f'handler="handlers:worker" {more} />', conf)
        return self.start(MODES[mode], *args, conf=None)

    def run_body(self, children: str, body: str) -> Program:
        """Start a program with a body of ``init``."""
        self.conf(children, LOG_TO_STDOUT)
        return self.start('''
            from gocept.runner.runner import init
            ''' + textwrap.indent(textwrap.dedent(body), ' ' * 12), conf=None)

    def start(self, *args: Any, **options: Any) -> Program:
        for name in ('notes', 'pids'):
            (self.dir / name).unlink(missing_ok=True)
        program: Program = super().start(*args, **options)
        return program

    def assertNobodyLeft(self, count: int) -> None:
        """So many were started, and all have ended."""
        pids = self.noted_pids()
        self.assertEqual(count, len(pids), self.notes)
        self.assertEqual([], [pid for pid in pids if not is_gone(pid)])

    def assertEndedInOrder(self, *names: str) -> None:
        self.assertNobodyLeft(len(names))
        self.assertEqual([f'{name} ended' for name in names],
                         self.notes[-len(names):])

    @property
    def two(self) -> str:
        """An app, and an executor that requires it."""
        return (self.an_app('a', **EAGER)
                + self.an_executor('b', requires='a', **EAGER))

    @property
    def slow(self) -> str:
        """Those whose start does not end by itself."""
        return (self.an_app('a', **EAGER)
                + self.an_executor('b', WAITS, requires='a', **EAGER)
                + self.an_app('c', WAITS, requires='a', start_timeout='3600',
                              **EAGER))


class EachSignal:

    signum: signal.Signals

    def test_in_the_pause(self: Any) -> None:
        for mode in MODES:
            with self.subTest(mode):
                program = self.run_worker(mode, self.two)
                program.wait_for('Sleeping 3600 seconds')
                program.send(self.signum)
                self.assertTerminated(program, self.signum)
                self.assertEndedInOrder('b', 'a')

    def test_in_a_tick(self: Any) -> None:
        for mode in MODES:
            with self.subTest(mode):
                program = self.run_worker(mode, self.two, '''
                    @gocept.runner.appmain(ticks=3600)
                    def worker():
                        say('in the tick')
                        wait()
                        count()
                    ''')
                program.wait_for('in the tick')
                program.send(self.signum)
                self.assertEqual(['a started', 'b started'], self.notes)
                self.let_go()
                self.assertTerminated(program, self.signum)
                self.assertEndedInOrder('b', 'a')
        self.assertEqual(2, self.assertConsistent())

    def test_during_the_start(self: Any) -> None:
        for mode in MODES:
            with self.subTest(mode):
                program = self.run_worker(mode, self.slow)
                until(lambda: {'b waits', 'c waits'} <= {*self.notes})
                program.send(self.signum)
                # A script may not look at what the function returns.
                self.assertEnded(128 + self.signum, program)
                self.assertNobodyLeft(3)
                self.assertIn('a ended', self.notes)
                self.assertNotIn('Sleeping', program.output)
                self.assertIn(
                    f'Received signal {self.signum:d}, terminating.\n',
                    program.output)

    def test_a_second_one_while_they_are_slow_to_end(self: Any) -> None:
        ignore = "signal.signal(signal.SIGTERM, lambda *args: note('told'))\n"
        # All that is wrong here is that their time is long.
        long = {'stop_timeout': '3600', 'die_with_parent': 'true', **EAGER}
        for mode in MODES:
            with self.subTest(mode):
                program = self.run_worker(
                    mode, self.an_app('a', ignore, **long)
                    + self.an_executor('b', ignore, **long), '''
                    @gocept.runner.appmain(ticks=3600, shutdown_timeout=3600)
                    def worker():
                        pass
                    ''')
                program.wait_for('Sleeping 3600 seconds')
                program.send(self.signum)
                until(lambda: {'a told', 'b told'} <= {*self.notes})
                self.assertFalse(caught_by(program.process.pid) & {*SIGNALS})
                program.send(self.signum)
                self.assertEnded(-self.signum, program)
                self.assertEqual(2, len(self.noted_pids()))
                until(lambda: all(map(is_gone, self.noted_pids())))

    def test_a_second_one_where_the_first_ended_a_tick(self: Any) -> None:
        ignore = "signal.signal(signal.SIGTERM, lambda *args: note('told'))\n"
        program = self.run_worker(
            'command', self.an_app('a', ignore, stop_timeout='3600',
                                   die_with_parent='true', **EAGER), '''
            @gocept.runner.appmain(shutdown_timeout=3600)
            def worker():
                return gocept.runner.Exit
            ''')
        until(lambda: 'a told' in self.notes)
        # No signal has ended the loop, so that this is the first one.
        program.send(self.signum)
        until(lambda: not caught_by(program.process.pid) & {*SIGNALS})
        program.send(self.signum)
        self.assertEnded(-self.signum, program)
        until(lambda: all(map(is_gone, self.noted_pids())))

    def test_one_while_they_end_changes_nothing(self: Any) -> None:
        program = self.run_worker(
            'command', self.an_app('a', '''
                def end_later(*args):
                    note('told')
                    wait()
                    end()
                signal.signal(signal.SIGTERM, end_later)
                ''', stop_timeout='3600', **EAGER), '''
            @gocept.runner.appmain(shutdown_timeout=3600)
            def worker():
                raise SystemExit(7)
            ''')
        until(lambda: 'a told' in self.notes)
        program.send(self.signum)
        until(lambda: not caught_by(program.process.pid) & {*SIGNALS})
        self.let_child_go()
        self.assertEnded(7, program)
        self.assertEndedInOrder('a')

    def test_in_a_body(self: Any) -> None:
        program = self.run_body(self.two, '''
            try:
                with init(None, 'zope.conf'):
                    try:
                        say('inside')
                        wait()
                        say('still there')
                    finally:
                        say(open('notes').read().split())
            except BaseException as error:
                say(f'ended by {error!r}')
                raise
            ''')
        program.wait_for('inside')
        program.send(self.signum)
        status = program.end()
        self.assertIn("['a', 'started', 'b', 'started']", program.output)
        self.assertNotIn('still there', program.output)
        self.assertEndedInOrder('b', 'a')
        if self.signum == signal.SIGINT:  # as everywhere in Python
            self.assertEqual(-self.signum, status, program.output)
            self.assertIn('ended by KeyboardInterrupt()', program.output)
        else:
            self.assertEqual(128 + self.signum, status, program.output)
            self.assertIn('ended by Terminated(', program.output)
            self.assertNotIn('Traceback', program.output)

    def test_in_a_body_with_a_handler(self: Any) -> None:
        program = self.run_body(self.two, f'''
            def handle(signum, frame):
                say(f'handled {{signum:d}}')
            signal.signal({self.signum:d}, handle)
            with init(None, 'zope.conf'):
                say('inside')
                for _ in range(3):
                    wait()
            say('after it')
            wait()
            ''')
        program.wait_for('inside')
        for _ in range(2):  # it stays
            program.send(self.signum)
            program.wait_for(f'handled {self.signum:d}')
            self.let_go()
        self.let_go()
        program.wait_for('after it')
        self.assertEndedInOrder('b', 'a')
        program.send(self.signum)
        program.wait_for(f'handled {self.signum:d}')
        self.let_go()
        self.assertEnded(0, program)

    def test_the_end_of_a_body_aborts_before_children_end(self: Any) -> None:
        program = self.run_body(self.two, '''
            with init(None, 'zope.conf'):
                Joined('abort', lambda: say(open('notes').read().split()))
            ''')
        self.assertEnded(0, program)
        self.assertIn("['a', 'started', 'b', 'started']", program.output)
        self.assertEndedInOrder('b', 'a')

    def test_before_a_body(self: Any) -> None:
        program = self.run_body(self.slow, '''
            with init(None, 'zope.conf'):
                say('inside')
            ''')
        until(lambda: {'b waits', 'c waits'} <= {*self.notes})
        program.send(self.signum)
        self.assertEnded(128 + self.signum, program)
        self.assertNotIn('inside', program.output)
        self.assertNobodyLeft(3)
        self.assertIn('a ended', self.notes)

    def test_after_a_body(self: Any) -> None:
        ignore = "signal.signal(signal.SIGTERM, lambda *args: note('told'))\n"
        program = self.run_body(
            self.an_app('a', ignore, stop_timeout='1', **EAGER), '''
            with init(None, 'zope.conf'):
                pass
            say('behind')
            ''')
        until(lambda: 'a told' in self.notes)
        program.send(self.signum)
        self.assertEnded(128 + self.signum, program)
        self.assertNotIn('behind', program.output)
        self.assertNobodyLeft(1)

    def test_while_children_are_stopped(self: Any) -> None:
        # Nobody is told more than once, and the status is the worker's.
        ignore = "signal.signal(signal.SIGTERM, lambda *args: note('told'))\n"
        for mode in ('command', 'function'):
            with self.subTest(mode):
                program = self.run_worker(
                    mode, self.an_app('a', ignore, stop_timeout='1', **EAGER),
                    '''
                    @gocept.runner.once()
                    def worker():
                        raise ValueError('failed')
                    ''')
                until(lambda: 'a told' in self.notes)
                program.send(self.signum)
                # The function returns it, and its program ends with 0.
                self.assertEqual(
                    mode == 'command', program.end(), program.output)
                self.assertNobodyLeft(1)

    def test_a_second_one_after_a_body(self: Any) -> None:
        ignore = "signal.signal(signal.SIGTERM, lambda *args: note('told'))\n"
        program = self.run_body(
            self.an_app('a', ignore, stop_timeout='3600',
                        die_with_parent='true', **EAGER), '''
            with init(None, 'zope.conf', shutdown_timeout=3600):
                say('inside')
                wait()
            ''')
        program.wait_for('inside')
        program.send(self.signum)
        until(lambda: 'a told' in self.notes)
        program.send(self.signum)
        self.assertEnded(-self.signum, program)
        until(lambda: all(map(is_gone, self.noted_pids())))


class SIGTERMTests(EachSignal, DeclaredProgramTestCase):

    level = 2
    signum = signal.SIGTERM


class SIGHUPTests(EachSignal, DeclaredProgramTestCase):

    level = 2
    signum = signal.SIGHUP


class SIGINTTests(EachSignal, DeclaredProgramTestCase):

    level = 2
    signum = signal.SIGINT


class TerminalTests(DeclaredProgramTestCase):
    """Ctrl-C sends a signal to a whole process group."""

    level = 2

    def test_it_is_for_the_program_only(self) -> None:
        hears = "signal.signal(signal.SIGINT, lambda *args: note('heard'))\n"
        program = self.run_worker(
            'command', self.an_app('a', hears, **EAGER)
            + self.an_executor('b', hears, **EAGER))
        program.wait_for('Sleeping 3600 seconds')
        os.killpg(program.pid, signal.SIGINT)
        self.assertTerminated(program, signal.SIGINT)
        self.assertNobodyLeft(2)
        self.assertNotIn('a heard', self.notes)
        self.assertNotIn('b heard', self.notes)


class LoopTests(DeclaredProgramTestCase):
    """What ends without a signal."""

    level = 2

    def test_the_worker_ends_it(self) -> None:
        for mode in MODES:
            with self.subTest(mode):
                program = self.run_worker(mode, self.two, '''
                    @gocept.runner.appmain()
                    def worker():
                        count()
                        return gocept.runner.Exit
                    ''')
                self.assertEnded(0, program)
                self.assertEndedInOrder('b', 'a')
        self.assertEqual(2, self.assertConsistent())

    def test_once(self) -> None:
        for mode in MODES:
            with self.subTest(mode):
                program = self.run_worker(mode, self.two, '''
                    @gocept.runner.once()
                    def worker():
                        say(open('notes').read().split())
                    ''')
                self.assertEnded(0, program)
                self.assertIn("['a', 'started', 'b', 'started']",
                              program.output)
                self.assertEndedInOrder('b', 'a')

    def test_once_as_declared(self) -> None:
        program = self.run_worker('command', self.two, more='once="true"')
        self.assertEnded(0, program)
        self.assertEndedInOrder('b', 'a')

    def test_once_in_vain(self) -> None:
        worker = '''
            @gocept.runner.once()
            def worker():
                raise RuntimeError('in vain')
            '''
        for mode, status in (('command', 1), ('function', 0)):
            with self.subTest(mode):
                program = self.run_worker(mode, self.two, worker)
                self.assertEqual(status, program.end(), program.output)
                self.assertEndedInOrder('b', 'a')

    def test_a_system_exit_of_the_worker(self) -> None:
        worker = '''
            @gocept.runner.appmain()
            def worker(*args):
                raise SystemExit(7)
            '''
        for mode, status in (('command', 7), ('function', 0)):
            with self.subTest(mode):
                program = self.run_worker(mode, self.two, worker)
                self.assertEnded(status, program)
                self.assertEndedInOrder('b', 'a')

    def test_a_child_wakes_the_worker(self) -> None:
        for mode in MODES:
            with self.subTest(mode):
                program = self.run_worker(mode, '''
                    <runner:app name="echo" command="cat" buffering="line"
                        encoding="utf-8" />
                    ''', '''
                    from zope.component import getUtility
                    from gocept.runner.interfaces import IPoller, IRunner
                    @gocept.runner.appmain(ticks=3600)
                    def worker():
                        poller = getUtility(IPoller)
                        news = poller.poll(0)
                        if news:
                            say([data for data, channel in news])
                            return gocept.runner.Exit
                        channel = getUtility(IRunner).get_channel('echo')
                        poller.register(channel)
                        channel.write('hello\\n')
                    ''')
                self.assertEnded(0, program)
                self.assertIn("['hello\\n']", program.output)

    def test_one_that_cannot_be_started(self) -> None:
        children = (self.an_app('a', **EAGER) + self.an_executor(
            'bad', "say('sorry')\nos._exit(3)", requires='a', **EAGER))
        program = self.run_worker('command', children)
        self.assertEqual(errors.CANNOT_START, program.end())
        [line] = [line for line in program.output.splitlines()
                  if line.startswith('gocept-runner')]
        for expected in ("gocept-runner run: error: executor 'bad': ",
                         'non-zero code: 3', 'sorry'):
            self.assertIn(expected, line)
        self.assertNobodyLeft(2)
        program = self.run_worker('function', children)
        self.assertEqual(1, program.end())
        self.assertRegex(program.output,
                         r"CannotStart: executor 'bad': .* non-zero code: 3")
        self.assertNobodyLeft(2)
        self.assertIn('a ended', self.notes)

    def test_one_that_does_not_end(self) -> None:
        children = (self.an_app('a', **EAGER) + self.an_executor(
            'b', 'ignore()', requires='a', **EAGER))
        limited = SLEEPER.replace('ticks=3600',
                                  'ticks=3600, shutdown_timeout=1')
        for mode, worker, more in (
                ('command', SLEEPER, 'shutdown_timeout="1"'),
                ('command', limited, ''), ('function', limited, '')):
            with self.subTest(mode=mode, more=more):
                program = self.run_worker(mode, children, worker, more=more)
                program.wait_for('Sleeping')
                program.send(signal.SIGTERM)
                self.assertTerminated(program, signal.SIGTERM)
                self.assertNobodyLeft(2)
                self.assertIn('a ended', self.notes)


class BodyTests(DeclaredProgramTestCase):
    """``with init(...)``"""

    level = 2

    def test_success(self) -> None:
        program = self.run_body(
            self.two + self.an_app('c', requires='b'), '''
            import zope.component
            from gocept.runner.interfaces import IRunner
            with init(None, 'zope.conf') as site:
                say(site)
                runner = zope.component.getUtility(IRunner)
                say(runner.get_channel('c'))
            ''')
        self.assertEnded(0, program)
        self.assertIn('SocketChannel', program.output)
        self.assertEndedInOrder('c', 'b', 'a')

    def test_an_exception(self) -> None:
        for error, status in (('RuntimeError', 1), ('SystemExit(7)', 7),
                              ('KeyboardInterrupt', -signal.SIGINT)):
            with self.subTest(error):
                program = self.run_body(self.two, f'''
                    with init(None, 'zope.conf'):
                        raise {error}
                    ''')
                self.assertEqual(status, program.end(), program.output)
                self.assertEndedInOrder('b', 'a')

    def test_one_that_cannot_be_started(self) -> None:
        program = self.run_body(
            self.an_app('a', **EAGER) + self.an_executor(
                'bad', 'os._exit(3)', requires='a', **EAGER), '''
            from gocept.runner.errors import CannotStart
            try:
                with init(None, 'zope.conf'):
                    say('inside')
            except CannotStart as error:
                say(error)
                say(open('notes').read().split())
            ''')
        self.assertEnded(0, program)
        self.assertNotIn('inside', program.output)
        self.assertIn("executor 'bad': ", program.output)
        self.assertIn("'a', 'ended']", program.output)

    def test_one_that_does_not_end(self) -> None:
        program = self.run_body(
            self.an_app('a', **EAGER) + self.an_executor(
                'b', 'ignore()', requires='a', **EAGER), '''
            with init(None, 'zope.conf', shutdown_timeout=1):
                pass
            ''')
        self.assertEnded(0, program)
        self.assertNobodyLeft(2)
        self.assertIn('a ended', self.notes)

    def test_a_second_life(self) -> None:
        program = self.run_body(self.two, '''
            for _ in range(2):
                with init(None, 'zope.conf'):
                    pass
            ''')
        self.assertEnded(0, program)
        self.assertNobodyLeft(4)
        self.assertEqual(
            ['a started', 'b started', 'b ended', 'a ended'] * 2, self.notes)

    def test_a_loop_within(self) -> None:
        program = self.run_body(self.two, '''
            from gocept.runner.runner import MainLoop
            with init(None, 'zope.conf') as site:
                MainLoop(site, 3600, lambda: None)()
                say('after the loop')
                say(open('notes').read().split())
            say('after the body')
            ''')
        program.wait_for('Sleeping 3600 seconds')
        program.send(signal.SIGTERM)
        for expected in ('after the loop', "['a', 'started', 'b', 'started']",
                         'after the body'):
            program.wait_for(expected)
        self.assertEnded(0, program)
        self.assertEndedInOrder('b', 'a')

    def test_a_second_signal_after_a_loop_within(self) -> None:
        ignore = "signal.signal(signal.SIGTERM, lambda *args: note('told'))\n"
        program = self.run_body(
            self.an_app('a', ignore, stop_timeout='3600',
                        die_with_parent='true', **EAGER), '''
            from gocept.runner.runner import MainLoop
            with init(None, 'zope.conf', shutdown_timeout=3600) as site:
                MainLoop(site, 3600, lambda: None)()
            ''')
        program.wait_for('Sleeping 3600 seconds')
        program.send(signal.SIGTERM)
        until(lambda: 'a told' in self.notes)
        program.send(signal.SIGTERM)
        self.assertEnded(-signal.SIGTERM, program)
        until(lambda: all(map(is_gone, self.noted_pids())))


class KilledTests(DeclaredProgramTestCase):
    """SIGKILL of the program."""

    level = 2

    WORKER = '''
        from zope.component import getUtility
        from gocept.runner.interfaces import IExecutor, IRunner
        @gocept.runner.appmain(ticks=3600)
        def worker():
            getUtility(IRunner).get_channel('lazy-app')
            getUtility(IExecutor, 'lazy-executor').ensure_running()
            getUtility(IRunner).start('lazy-app', 'another', socket='x.sock',
                                      with_args=['x.sock'])
        '''

    def test_children_with_die_with_parent(self) -> None:
        listens = 'sock = listen(sys.argv[1] if sys.argv[1:] else SOCKET)'
        dies = {'die_with_parent': 'true'}
        children = (
            self.an_app('eager-app', **EAGER, **dies)
            + self.an_executor('eager-executor', 'ignore()',
                               stop_timeout='0.1', requires='eager-app',
                               **EAGER, **dies)
            + self.an_app('restarted', restart='always', restart_delay='0',
                          **EAGER, **dies)
            + self.an_app('lazy-app', f'''
                SOCKET = {str(self.dir / 'lazy-app.sock')!r}
                if sys.argv[1:]:
                    {listens}
                    pause()
                ''', requires='lazy-executor', **dies)
            + self.an_executor('lazy-executor', **dies))
        names = {'eager-app', 'eager-executor', 'restarted', 'lazy-app',
                 'lazy-executor'}
        for mode in ('command', 'function', 'command'):
            with self.subTest(mode):
                program = self.run_worker(mode, children, self.WORKER)
                program.wait_for('Sleeping 3600 seconds')
                self.assertEqual(6, len(self.noted_pids()))
                self.assertEqual({f'{name} started' for name in names},
                                 {*self.notes})
                [pid] = self.noted_pids('restarted')
                os.kill(pid, signal.SIGKILL)
                # By the thread in the background.
                until(lambda: len(self.noted_pids('restarted')) == 2)
                self.assertEqual([pid], [*filter(is_gone, self.noted_pids())])
                program.send(signal.SIGKILL)
                self.assertEnded(-signal.SIGKILL, program)
                until(lambda: all(map(is_gone, self.noted_pids())))
        # What a killed program leaves is not in the way of the next one.
        program = self.run_worker('command', children, self.WORKER)
        program.wait_for('Sleeping 3600 seconds')
        program.send(signal.SIGTERM)
        self.assertTerminated(program, signal.SIGTERM)
        self.assertNobodyLeft(6)

    def test_during_the_start(self) -> None:
        dies = {'die_with_parent': 'true', **EAGER}
        program = self.run_worker(
            'command', self.an_app('a', **dies)
            + self.an_executor('b', WAITS, requires='a', **dies)
            + self.an_app('c', WAITS, requires='a', **dies))
        until(lambda: {'b waits', 'c waits'} <= {*self.notes})
        program.send(signal.SIGKILL)
        self.assertEnded(-signal.SIGKILL, program)
        self.assertEqual(3, len(self.noted_pids()))
        until(lambda: all(map(is_gone, self.noted_pids())))

    def test_a_signal_of_their_own(self) -> None:
        program = self.run_worker(
            'command', self.an_app('a', die_with_parent='TERM', **EAGER)
            + self.an_executor('b', die_with_parent='TERM', **EAGER))
        program.wait_for('Sleeping 3600 seconds')
        program.send(signal.SIGKILL)
        self.assertEnded(-signal.SIGKILL, program)
        until(lambda: {'a ended', 'b ended'} <= {*self.notes})


class RandomInstantTests(DeclaredProgramTestCase):

    level = 2

    def test_a_signal_at_any_time(self) -> None:
        randomly = random.Random(5)
        for mode in (*MODES, 'body'):
            began = time.monotonic()
            self.assertEqual(0, self.run_program(mode, None, 0))
            longest = 1.1 * (time.monotonic() - began)
            for _ in range(8):
                signum = randomly.choice(SIGNALS)
                delay = randomly.uniform(0, longest)
                with self.subTest(mode=mode, signum=signum, delay=delay):
                    status = self.run_program(mode, signum, delay)
                    self.assertIn(status, {
                        0, -signum, 128 + signum,
                        *{1} & {signum == signal.SIGINT}})

    def run_program(self, mode: str, signum: int | None,
                    delay: float) -> int:
        if mode == 'body':
            program = self.run_body(self.two, '''
                with init(None, 'zope.conf'):
                    for _ in range(20):
                        count
                ''')
        else:
            program = self.run_worker(mode, self.two, '''
                @gocept.runner.appmain(ticks=0)
                def worker():
                    if count() % 20 == 0:
                        return gocept.runner.Exit
                ''')
        if signum is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                program.process.wait(delay)
            program.send(signum)
        status = program.end()
        self.assertEqual([], self.living(), program.output)
        return status

    def living(self) -> list[int]:
        """Children, also those that have not come as far as a note."""
        found = []
        for pid in procfs.pids():
            with contextlib.suppress(OSError):
                command = pathlib.Path(f'/proc/{pid}/cmdline').read_bytes()
                if os.fsencode(self.dir) in command and not is_gone(pid):
                    found.append(pid)
        return found
