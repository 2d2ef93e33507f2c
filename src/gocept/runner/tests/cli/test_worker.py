"""Programs as processes: signals, faults, lost storages, the command line.

The scripts of the programs import their helpers from here.
"""

import concurrent.futures
import contextlib
import importlib.metadata
import io
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import unittest
from unittest import mock

import persistent.list
import transaction
import zc.lockfile
import ZEO.Exceptions
import ZODB
import ZODB.FileStorage
import zope.component.hooks
import zope.configuration.exceptions
from ZODB.POSException import POSKeyError
from zope.site.folder import rootFolder
from zope.site.site import LocalSiteManager

from gocept.runner import errors, runner
from gocept.runner.boot import attempts, environment
from gocept.runner.cli import worker
from gocept.runner.poller import poller
from gocept.runner.signals import handlers, shutdown
from gocept.runner.tests import support
from gocept.runner.tests.support import DEADLINE, SIGNALS
from gocept.runner.tests.victims import until, wait_at

LOG_TO_STDOUT = '''
    <eventlog>
      level debug
      <logfile>
        path STDOUT
        format %(levelname)s %(name)s %(message)s
      </logfile>
    </eventlog>
    '''

PREAMBLE = '''\
import os, signal, sys
import transaction
import gocept.runner
from gocept.runner.signals import current_shutdown
from gocept.runner.tests.cli.test_worker import (
    Joined,
    acknowledge,
    count,
    say,
    wait,
)
from zope.component.hooks import getSite

'''


# Helpers of the scripts

def say(text):
    """Write a line to standard output; from signal handlers as well."""
    os.write(1, f'{text}\n'.encode())


def wait():
    """Wait until the test calls `ProgramTestCase.let_go`."""
    wait_at('go')


class Joined:
    """A data manager of the current transaction that acts in one step."""

    def __init__(self, step, action, key='~after the storages'):
        setattr(self, step, lambda txn: action())
        self.sortKey = lambda: key
        transaction.get().join(self)

    def _nothing(self, txn):
        pass

    abort = tpc_begin = commit = tpc_vote = tpc_finish = tpc_abort = _nothing


def count():
    """Count up, in two objects of one transaction; returns the number."""
    site = zope.component.hooks.getSite()
    if not hasattr(site, 'numbers'):
        site.count, site.numbers = 0, persistent.list.PersistentList()
    site.count += 1
    site.numbers.append(site.count)
    return site.count


def acknowledge(number, path='acknowledged'):
    """Write the number to a file when the transaction is committed."""
    def write(committed):
        if committed:
            # At once, so that not even SIGKILL keeps half of it back.
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.write(fd, b'%d\n' % number)
            os.close(fd)
    transaction.get().addAfterCommitHook(write)


# Helpers of the tests

def caught_by(pid):
    """The signals for which a process has a handler; see proc(5)."""
    status = pathlib.Path(f'/proc/{pid}/status').read_text()
    mask = int(re.search(r'SigCgt:\s*(\w+)', status)[1], 16)
    return {signum for signum in signal.Signals if mask >> (signum - 1) & 1}


@contextlib.contextmanager
def stored(path):
    """The root folder in a file that no process has open."""
    # For writing, as this truncates what a killed process has left behind.
    database = ZODB.DB(ZODB.FileStorage.FileStorage(str(path)))
    manager = transaction.TransactionManager()
    connection = database.open(manager)
    try:
        yield connection.root()[environment.APPLICATION]
    finally:
        manager.abort()
        connection.close()
        database.close()


class ZEOServer:
    """A ZEO server in a process of its own, which can be lost."""

    def __init__(self, directory):
        self.socket = directory / 'zeo.sock'
        self.storage = directory / 'Data.fs'
        self._log = directory / 'zeo.log'
        self._process = None
        self.start()

    def start(self):
        with self._log.open('ab') as log:
            self._process = subprocess.Popen(
                [sys.executable, '-m', 'ZEO.runzeo',
                 '-a', str(self.socket), '-f', str(self.storage)],
                env=support.child_environment(), stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, process_group=0)
        until(self._accepts)

    def _accepts(self):
        if self._process.poll() is not None:
            raise AssertionError(self._log.read_text())
        with socket.socket(socket.AF_UNIX) as client:
            return not client.connect_ex(str(self.socket))

    def kill(self):
        """Lose it, without a chance to say good-bye."""
        self._process.kill()
        self._process.wait()

    def zope_conf(self, more=LOG_TO_STDOUT):
        return textwrap.dedent(f'''
            %import ZEO
            <zodb>
              <clientstorage>
                server {self.socket}
                wait-timeout 1
              </clientstorage>
            </zodb>
            ''') + textwrap.dedent(more)


class ProgramTestCase(support.TestCase):
    """Starts programs, and makes them wait where a test wants it."""

    def setUp(self):
        super().setUp()
        os.mkfifo(self.dir / 'go')
        # Open for reading as well, so that no write waits for a reader.
        self._go = os.open(self.dir / 'go', os.O_RDWR)
        self.addCleanup(os.close, self._go)

    def create_database(self):
        """So that this is no news in the log of a test."""
        with runner.init(None, self.zope_conf()):
            pass

    def let_go(self):
        """End a `wait` of the program; or else the next one."""
        os.write(self._go, b'.')

    def start(self, body, *args, conf=LOG_TO_STDOUT, environment=None):
        """Start a program, with a zope.conf; it ends after the deadline."""
        if conf is not None:
            self.zope_conf(conf)
        program = self.program(PREAMBLE + textwrap.dedent(body), *args,
                               environment=environment)
        watchdog = threading.Timer(DEADLINE, program.process.kill)
        watchdog.start()
        self.addCleanup(watchdog.join)
        self.addCleanup(watchdog.cancel)
        return program

    def assertEnded(self, status, program):
        got = program.end()
        self.assertEqual(status, got, program.output)
        if status >= 0:
            self.assertNotIn('Traceback', program.output)

    def assertTerminated(self, program, signum):
        self.assertEnded(0, program)
        self.assertIn('INFO gocept.runner.runner '
                      f'Received signal {signum:d}, terminating.\n',
                      program.output)

    def stored(self, name):
        """An attribute of the root folder, as a later program finds it."""
        with stored(self.dir / 'Data.fs') as site:
            return getattr(site, name, None)

    def assertConsistent(self, path=None):
        """Each transaction is stored as a whole; returns their number."""
        with stored(path or self.dir / 'Data.fs') as site:
            numbers = list(getattr(site, 'numbers', ()))
            self.assertEqual(list(range(1, len(numbers) + 1)), numbers)
            self.assertEqual(getattr(site, 'count', 0), len(numbers))
        return len(numbers)

    def acknowledged(self, path='acknowledged'):
        """The numbers that workers know to be committed."""
        try:
            lines = (self.dir / path).read_text().splitlines()
        except FileNotFoundError:
            return []
        return list(map(int, lines))


class EachSignal:

    signum: signal.Signals

    def test_in_a_sleep(self):
        program = self.start('''
            @gocept.runner.appmain(ticks=3600)
            def worker():
                count()
            worker(None, 'zope.conf')
            ''')
        program.wait_for('Sleeping 3600 seconds')
        program.send(self.signum)
        self.assertTerminated(program, self.signum)
        self.assertEqual(1, self.assertConsistent())

    def test_in_a_tick(self):
        program = self.start('''
            @gocept.runner.appmain(ticks=3600)
            def worker():
                count()
                say('in the tick')
                wait()
                say('still there')
            worker(None, 'zope.conf')
            ''')
        program.wait_for('in the tick')
        program.send(self.signum)
        self.let_go()
        self.assertTerminated(program, self.signum)
        self.assertEqual(1, program.output.count('still there'))
        self.assertEqual(1, self.assertConsistent())

    def test_in_a_commit(self):
        program = self.start('''
            @gocept.runner.appmain(ticks=3600)
            def worker():
                count()
                Joined('tpc_vote', vote)
            def vote():
                say('voting')
                wait()
            worker(None, 'zope.conf')
            ''')
        program.wait_for('voting')
        program.send(self.signum)
        self.let_go()
        self.assertTerminated(program, self.signum)
        self.assertEqual(1, self.assertConsistent())

    def test_between_two_attempts(self):
        program = self.start('''
            from ZODB.POSException import ConflictError
            import gocept.runner.boot.attempts
            gocept.runner.boot.attempts.FIRST_PAUSE = 3600
            gocept.runner.boot.attempts.LONGEST_PAUSE = 3600
            @gocept.runner.appmain(ticks=3600, attempts=1000000)
            def worker():
                count()
                raise ConflictError
            worker(None, 'zope.conf')
            ''')
        program.wait_for('Conflict error in attempt 1 of 1000000')
        program.send(self.signum)
        self.assertTerminated(program, self.signum)
        self.assertEqual(0, self.assertConsistent())

    def test_the_second_one_ends_a_tick(self):
        program = self.start('''
            @gocept.runner.appmain(ticks=3600)
            def worker():
                count()
                say('in the tick')
                with current_shutdown() as shutdown:
                    while not shutdown.requested:
                        pass
                say('requested')
                while True:  # no system call, which could begin just after
                    pass     # the signal and go on for ever
            worker(None, 'zope.conf')
            ''')
        program.wait_for('in the tick')
        program.send(self.signum)
        program.wait_for('requested')
        # Another one than the first, as Python code runs.
        second = {signal.SIGTERM: signal.SIGINT, signal.SIGHUP: signal.SIGTERM,
                  signal.SIGINT: signal.SIGHUP}[self.signum]
        program.send(second)
        self.assertEnded(self.at_once(second), program)
        self.assertEqual(0, self.assertConsistent())

    BOOTING = {
        'a command': 'sys.exit(worker())',
        'a call in Python': "worker(None, 'zope.conf')",
        'a body': """
            from gocept.runner.runner import init
            with init(None, 'zope.conf'):
                say('inside')
            """,
        'a list': """
            from gocept.runner import cli
            sys.exit(cli.main(['list']))
            """,
    }

    def start_slowly(self, way, module):
        """Start a program whose ZCML imports a module."""
        self.write('slow.py', 'from gocept.runner.tests.cli.test_worker '
                   'import say, wait\n' + textwrap.dedent(module))
        self.write('slow.zcml', """
            <configure xmlns="http://namespaces.zope.org/zope">
              <include package="zope.component" />
              <utility name="slow" component="slow.say"
                       provides="zope.interface.Interface" />
            </configure>
            """)
        worker = """
            @gocept.runner.appmain()
            def worker():
                say('inside')
            """
        return self.start(
            textwrap.dedent(worker) + textwrap.dedent(self.BOOTING[way]),
            conf=LOG_TO_STDOUT + f"""
            path {self.dir}
            site-definition {self.dir}/slow.zcml
            """)

    def test_while_booting(self):
        for way in self.BOOTING:
            with self.subTest(way):
                program = self.start_slowly(way, """
                    say('importing')
                    wait()
                    say('behind')
                    """)
                program.wait_for('importing')
                program.send(self.signum)
                status = program.end()
                self.assertIn(status, [128 + self.signum, -self.signum])
                self.assertNotIn('behind', program.output)
                self.assertNotIn('inside', program.output)
                if self.signum != signal.SIGINT:  # as everywhere in Python
                    self.assertEqual(128 + self.signum, status)
                    self.assertNotIn('Traceback', program.output)
                elif way in ('a command', 'a list'):
                    self.assertEqual(130, status)
                    self.assertNotIn('Traceback', program.output)
                    self.assertIn('interrupted\n', program.output)

    def test_the_second_one_while_booting(self):
        program = self.start_slowly('a call in Python', """
            try:
                say('importing')
                wait()
            finally:
                say('cleaning')
                while True:
                    pass
            """)
        program.wait_for('importing')
        program.send(self.signum)
        program.wait_for('cleaning')
        program.send(self.signum)
        status = program.end()
        if self.signum != signal.SIGINT:  # which raises KeyboardInterrupt
            self.assertEqual(self.at_once(self.signum), status)

    def at_once(self, signum):
        """The status of a program that a signal ends at once."""
        return -signum

    @unittest.skipUnless(sys.platform == 'linux', 'needs sigaction(2)')
    def test_the_second_one_ends_c_code(self):
        program = self.start('''
            import itertools
            @gocept.runner.appmain(ticks=3600)
            def worker():
                count()
                say('in the tick')
                None in itertools.repeat(0)  # for ever, and looks at nothing
            worker(None, 'zope.conf')
            ''')
        program.wait_for('in the tick')
        program.send(self.signum)
        until(lambda: self.signum not in caught_by(program.process.pid))
        program.send(self.signum)
        self.assertEnded(-self.signum, program)
        self.assertEqual(0, self.assertConsistent())


class WithoutHandler:
    """For signals that Python itself does not handle."""

    def test_while_booting_where_others_swallow_it(self):
        program = self.start_slowly('a call in Python', """
            try:
                say('importing')
                wait()
            except BaseException:
                say('swallowed')
            """)
        program.wait_for('importing')
        program.send(self.signum)
        self.assertEnded(128 + self.signum, program)
        self.assertIn('swallowed', program.output)
        self.assertNotIn('inside', program.output)


class SIGTERMTests(EachSignal, WithoutHandler, ProgramTestCase):

    level = 2
    signum = signal.SIGTERM


class SIGHUPTests(EachSignal, WithoutHandler, ProgramTestCase):

    level = 2
    signum = signal.SIGHUP


class SIGINTTests(EachSignal, ProgramTestCase):

    level = 2
    signum = signal.SIGINT


class FirstProcess(support.Program):
    """The first process of a namespace, as in a container."""

    interpreter = ('unshare', '--pid', '--fork', '--kill-child',
                   '--mount-proc', sys.executable)

    @property
    def pid(self):
        """Of the child of `unshare`."""
        pid = self.process.pid
        return int(pathlib.Path(
            f'/proc/{pid}/task/{pid}/children').read_text())

    def send(self, signum):
        os.kill(self.pid, signum)


class OfFirstProcess:
    """A signal with the default action has no effect on this one."""

    level = 2
    make_program = FirstProcess

    def setUp(self):
        super().setUp()
        command = ['unshare', '--pid', '--fork', '--mount-proc', 'true']
        if shutil.which('unshare') is None or subprocess.run(
                command, stderr=subprocess.DEVNULL).returncode:
            self.skipTest('needs a namespace of its own')

    def at_once(self, signum):
        return 128 + signum

    test_the_second_one_ends_c_code = None  # nothing does, as the first one


class EachSignalOfFirstProcess(OfFirstProcess, EachSignal):

    def test_before_zope_conf_is_read(self):
        worker = """
            from gocept.runner.boot import program
            def wait_before():
                say('not yet')
                wait()
            program.fill_standard = wait_before
            @gocept.runner.appmain()
            def worker():
                say('inside')
            """
        for way, body in self.BOOTING.items():
            with self.subTest(way):
                program = self.start(
                    textwrap.dedent(worker) + textwrap.dedent(body))
                program.wait_for('not yet')
                program.send(self.signum)
                self.assertEqual(128 + self.signum, program.end())
                self.assertNotIn('inside', program.output)


class FirstProcessSIGTERMTests(EachSignalOfFirstProcess, WithoutHandler,
                               ProgramTestCase):

    signum = signal.SIGTERM


class FirstProcessSIGHUPTests(EachSignalOfFirstProcess, WithoutHandler,
                              ProgramTestCase):

    signum = signal.SIGHUP


class FirstProcessSIGINTTests(EachSignalOfFirstProcess, ProgramTestCase):

    signum = signal.SIGINT


class StrangersTests(OfFirstProcess, ProgramTestCase):
    """What others leave to the first process of a container."""

    BODY = """
        import subprocess
        from gocept.runner.tests.victims import until, wait_at
        def zombies():
            with open('/proc/1/task/1/children') as file:
                return [int(pid) for pid in file.read().split()]
        def work():
            # Its child is in a session that we never were in.
            subprocess.run(['setsid', 'sh', '-c', 'sleep 0.01 & true'])
            until(lambda: not zombies())
            # But this is a child of a library.
            child = subprocess.Popen(['sh', '-c', 'exit 3'])
            until(lambda: open(f'/proc/{child.pid}/stat').read().split()[2]
                  == 'Z')
            subprocess.run(['setsid', 'sh', '-c', 'sleep 0.01 & true'])
            until(lambda: zombies() == [child.pid])
            say(f'its status is {child.wait()}')
        """

    def test_of_a_worker(self):
        program = self.start(self.BODY + """
        @gocept.runner.once()
        def worker():
            work()
        worker(None, 'zope.conf')
        """)
        self.assertEnded(0, program)
        self.assertIn('its status is 3\n', program.output)

    def test_of_a_body(self):
        program = self.start(self.BODY + """
        from gocept.runner.runner import init
        with init(None, 'zope.conf'):
            work()
        """)
        self.assertEnded(0, program)
        self.assertIn('its status is 3\n', program.output)


class TerminalTests(ProgramTestCase):
    """What a program says on a terminal when Ctrl-C is pressed."""

    level = 2

    WORKER = """
        @gocept.runner.appmain(ticks=3600)
        def worker():
            say('in the tick')
            wait()
            count()
        worker(None, 'zope.conf')
        """

    def setUp(self):
        super().setUp()
        terminal, stderr = os.openpty()
        self.addCleanup(os.close, stderr)
        self.terminal = self.enterContext(open(terminal, 'rb', buffering=0))
        self.make_program = type('', (support.Program,), {'stderr': stderr})

    def said(self):
        """All that is on the terminal, without a wait."""
        os.set_blocking(self.terminal.fileno(), False)
        return self.terminal.read() or b''

    def test_in_a_tick(self):
        program = self.start(self.WORKER)
        program.wait_for('in the tick')
        program.send(signal.SIGINT)
        # The tick still waits.
        self.assertEqual(b'\r\n', self.terminal.readline())
        self.assertEqual(
            b'Interrupted: the tick is completed first. '
            b'Another Ctrl-C ends the program at once.\r\n',
            self.terminal.readline())
        self.let_go()
        self.assertTerminated(program, signal.SIGINT)
        self.assertEqual(1, self.assertConsistent())

    def test_a_second_one(self):
        program = self.start(self.WORKER)
        program.wait_for('in the tick')
        program.send(signal.SIGINT)
        self.terminal.readline()
        program.send(signal.SIGINT)
        self.assertEnded(-signal.SIGINT, program)

    def test_in_a_pause(self):
        self.let_go()
        program = self.start(self.WORKER)
        program.wait_for('Sleeping')
        program.send(signal.SIGINT)
        self.assertTerminated(program, signal.SIGINT)
        self.assertEqual(b'', self.said())

    def test_another_signal(self):
        program = self.start(self.WORKER)
        program.wait_for('in the tick')
        program.send(signal.SIGTERM)
        self.let_go()
        self.assertTerminated(program, signal.SIGTERM)
        self.assertEqual(b'', self.said())

    def test_a_bar_with_an_end(self):
        program = self.start('''
            @gocept.runner.once()
            @gocept.runner.transaction_per_item(
                batch=2, total=lambda number: int(number))
            def items(number):
                for _ in range(int(number)):
                    yield count
            sys.exit(items())
            ''', '5', conf='<eventlog>\n</eventlog>')
        self.assertEnded(0, program)
        bar = self.said().decode().split('\r')
        self.assertRegex(bar[1], r'^items: +0%.* 0/5 \[')
        self.assertRegex(bar[-2], r'^items: 100%.* 5/5 \[')
        self.assertEqual(5, self.assertConsistent())

    def test_a_bar_with_more_items_than_expected(self):
        program = self.start('''
            @gocept.runner.once()
            @gocept.runner.transaction_per_item(total=2)
            def items():
                yield from [count] * 3
            sys.exit(items())
            ''', conf='<eventlog>\n</eventlog>')
        self.assertEnded(0, program)
        self.assertRegex(self.said().decode().split('\r')[-2],
                         r'^items: 100%.* 3/3 \[')

    def test_no_bar_where_nothing_is_done(self):
        for total in None, 0, 2:
            program = self.start(f'''
                @gocept.runner.once()
                @gocept.runner.transaction_per_item(total={total})
                def items():
                    yield from []
                sys.exit(items())
                ''', conf='<eventlog>\n</eventlog>')
            self.assertEnded(0, program)
            said = self.said().decode()
            self.assertEqual('', said.split('\r')[-1].strip())
            self.assertEqual(total == 2, 'items' in said)  # then it is removed

    def test_not_in_a_log(self):
        self.make_program = support.Program
        program = self.start(self.WORKER)
        program.wait_for('in the tick')
        program.send(signal.SIGINT)
        self.let_go()
        self.assertTerminated(program, signal.SIGINT)
        self.assertNotIn('Interrupted', program.output)


class ScriptTests(ProgramTestCase):
    """Scripts that name the site and zope.conf, as buildout makes them."""

    level = 2

    WORKER = """
        @gocept.runner.appmain(ticks=3600)
        def worker(*args):
            \"""Count to one.\"""
            say(f'called with {args}')
            count()
            return gocept.runner.Exit
        """

    def run_script(self, call, *args, worker=WORKER, conf=LOG_TO_STDOUT):
        program = self.start(textwrap.dedent(worker) + call, *args, conf=conf)
        program.end()
        return program

    def assertRan(self, program, times, *args):
        """It counted so often in all; as it was called with `args`."""
        self.assertEqual(0, program.process.returncode, program.output)
        self.assertIn(f'called with {args}\n', program.output)
        self.assertEqual(times, self.assertConsistent())

    MAIN = "sys.exit(worker.main(site=None, config='zope.conf'))"
    CALL = "worker(None, 'zope.conf')"

    def test_without_a_command_line(self):
        for times, call in enumerate((self.MAIN, self.CALL), 1):
            with self.subTest(call):
                self.assertRan(self.run_script(call), times)

    def test_a_dry_run(self):
        self.assertRan(self.run_script(self.CALL), 1)
        for call in self.MAIN, self.CALL:
            with self.subTest(call):
                program = self.run_script(call, '--dry-run')
                self.assertRan(program, 1)
                self.assertIn('Dry run: would commit', program.output)

    def test_the_help(self):
        for call in self.MAIN, "worker('shop', '/srv/shop/zope.conf')":
            with self.subTest(call):
                program = self.run_script(call, '--help')
                self.assertEqual(0, program.process.returncode)
                self.assertIn('Count to one.', program.output)
                self.assertNotIn('called with', program.output)
                for option in '--config', '--site':  # a script names these
                    self.assertEqual(call is self.MAIN,
                                     option in program.output)

    def test_defaults_of_main(self):
        program = self.run_script(
            "sys.exit(worker.main('x', 'wrong.conf'))")
        self.assertEqual(78, program.process.returncode)
        self.assertIn('wrong.conf', program.output)
        program = self.run_script(
            "sys.exit(worker.main('x', 'zope.conf'))")
        self.assertEqual(66, program.process.returncode)
        program = self.run_script(
            "sys.exit(worker.main(config='wrong.conf'))",
            '--config', 'zope.conf')
        self.assertRan(program, 1)

    def test_arguments_of_the_worker(self):
        self.assertRan(self.run_script(self.CALL), 1)
        for call in self.MAIN, self.CALL:
            with self.subTest(call):
                program = self.run_script(call, '--dry-run', '--', 'a', 'b')
                self.assertRan(program, 1, 'a', 'b')
        program = self.run_script("worker(None, 'zope.conf', 'a')",
                                  '--dry-run')
        self.assertRan(program, 1, 'a')
        program = self.run_script(self.MAIN, '--dry-run', 'a', 'b')
        self.assertRan(program, 1, 'a', 'b')

    def test_a_wrong_value_is_not_for_the_script(self):
        program = self.run_script(self.CALL, '--dry-run', '--ticks', 'often')
        self.assertEqual(2, program.process.returncode, program.output)
        self.assertIn("not a number >= 0: 'often'", program.output)

    def test_arguments_that_the_worker_does_not_take(self):
        worker = self.WORKER.replace('*args', 'args=()')
        program = self.run_script(
            self.CALL, '--dry-run', '--', 'a', 'b', worker=worker)
        self.assertEqual(2, program.process.returncode, program.output)
        # Without a word of ours they are the script's.
        program = self.run_script(self.CALL, '--', 'a', 'b', worker=worker)
        self.assertRan(program, 1)

    def test_options_among_the_arguments_of_the_worker(self):
        worker = self.WORKER.replace('*args', 'args=()')
        program = self.run_script(self.MAIN, '--', 'a', '--dry-run',
                                  worker=worker)
        self.assertEqual(2, program.process.returncode, program.output)
        self.assertIn('such as --dry-run, stand before --', program.output)

    def test_a_failure_ends_the_script_with_a_status(self):
        worker = self.WORKER.replace('count()', 'raise ValueError')
        program = self.run_script(self.CALL, '--once', worker=worker)
        self.assertEqual(1, program.process.returncode, program.output)

    def test_words_that_are_not_ours(self):
        for times, args in enumerate((
                ['--nonsense'], ['--dry-run', '--nonsense'], ['x'],
                ['--dry-run', 'x'], ['--help', 'x'], ['--tick', '1']), 1):
            with self.subTest(args=args):
                program = self.run_script(self.CALL, *args)
                self.assertRan(program, times)
                self.assertNotIn('Dry run', program.output)
                self.assertEqual(
                    '--dry-run' in args,
                    'none of its options has an effect, --dry-run neither'
                    in program.output)

    def test_config_and_site_are_not_ours(self):
        for times, args in enumerate((
                ['--config', 'x'], ['--site=x'], ['--site', 'x', '--once'],
                ['--dry-run', '--site', 'x']), 1):
            with self.subTest(args=args):
                program = self.run_script(self.CALL, *args)
                self.assertRan(program, times)
                self.assertIn('The command line is ignored', program.output)
                self.assertIn('an effect, --dry-run neither', program.output)

    def test_a_call_from_other_code(self):
        self.write('shop.py', PREAMBLE + textwrap.dedent(self.WORKER)
                   + textwrap.dedent("""
            def call():
                worker(None, 'zope.conf')
            """))
        program = self.run_script('import shop; shop.call()', '--dry-run')
        self.assertRan(program, 1)
        self.assertNotIn('Dry run', program.output)


class RemovedHandlerTests(ProgramTestCase):
    """Code of a tick that removes the handlers of the loop."""

    level = 2

    def test_of_asyncio(self):
        program = self.start("""
            import asyncio
            async def main():
                loop = asyncio.get_running_loop()
                for name in 'SIGTERM', 'SIGINT', 'SIGHUP', 'SIGUSR2':
                    loop.add_signal_handler(getattr(signal, name), print)
                    loop.remove_signal_handler(getattr(signal, name))
            @gocept.runner.appmain(ticks=3600)
            def worker():
                count()
                asyncio.run(main())
            worker(None, 'zope.conf')
            """)
        program.wait_for('Sleeping')
        for name in 'SIGTERM', 'SIGINT', 'SIGHUP', 'SIGUSR2':
            self.assertIn(
                f'INFO gocept.runner.signals The handler of {name} was '
                'removed in a tick: it is in place again', program.output)
        program.send(signal.SIGUSR2)
        program.wait_for('Reopened the log files')
        program.send(signal.SIGTERM)
        self.assertTerminated(program, signal.SIGTERM)


class SIGUSR2Tests(ProgramTestCase):

    LOG_TO_FILE = '''
        <eventlog>
          level debug
          <logfile>
            path worker.log
          </logfile>
        </eventlog>
        '''

    def log(self, name='worker.log'):
        path = self.dir / name
        return path.read_text() if path.exists() else ''

    def test_reopens_the_log_in_a_sleep(self):
        program = self.start('''
            @gocept.runner.appmain(ticks=3600)
            def worker():
                count()
            worker(None, 'zope.conf')
            ''', conf=self.LOG_TO_FILE)
        until(lambda: 'Sleeping 3600 seconds' in self.log())
        for name in ('worker.log.1', 'worker.log.2'):
            (self.dir / 'worker.log').rename(self.dir / name)
            program.send(signal.SIGUSR2)
            until(lambda: 'Reopened the log files' in self.log())
        program.send(signal.SIGTERM)
        self.assertEnded(0, program)
        self.assertIn('Received signal 15', self.log())
        self.assertNotIn('Received signal', self.log('worker.log.1'))
        self.assertNotIn('Received signal', self.log('worker.log.2'))
        self.assertEqual(1, self.assertConsistent())

    def test_does_not_cut_into_a_tick(self):
        program = self.start('''
            @gocept.runner.appmain(ticks=3600)
            def worker():
                count()
                say('in the tick')
                wait()
                say('still there')
            worker(None, 'zope.conf')
            ''', conf=self.LOG_TO_FILE)
        program.wait_for('in the tick')
        (self.dir / 'worker.log').rename(self.dir / 'worker.log.1')
        program.send(signal.SIGUSR2)
        self.let_go()
        until(lambda: 'Reopened the log files' in self.log())
        program.send(signal.SIGTERM)
        self.assertEnded(0, program)
        self.assertIn('still there', program.output)
        self.assertEqual(1, self.assertConsistent())

    def test_goes_on_with_the_old_file_if_there_can_be_no_new_one(self):
        (self.dir / 'logs').mkdir()
        program = self.start('''
            @gocept.runner.appmain(ticks=3600)
            def worker():
                count()
            worker(None, 'zope.conf')
            ''', conf=self.LOG_TO_FILE.replace('worker', 'logs/worker'))
        until(lambda: 'Sleeping 3600 seconds' in self.log('logs/worker.log'))
        (self.dir / 'logs').rename(self.dir / 'old')
        program.send(signal.SIGUSR2)
        until(lambda: 'Cannot reopen a log file' in self.log('old/worker.log'))
        self.assertNotIn('Reopened', self.log('old/worker.log'))
        (self.dir / 'logs').mkdir()
        program.send(signal.SIGUSR2)
        until(lambda: 'Reopened' in self.log('logs/worker.log'))
        program.send(signal.SIGTERM)
        self.assertEnded(0, program)

    def test_while_the_program_starts(self):
        program = self.start('''
            @gocept.runner.once()
            def worker():
                say('in the tick')

            import builtins
            def importing(name, *args):
                if name == 'gocept.runner.cli' or 'argparse' in name:
                    builtins.__import__ = before
                    os.kill(os.getpid(), signal.SIGUSR2)
                return before(name, *args)
            before, builtins.__import__ = builtins.__import__, importing
            sys.modules.pop('argparse', None)
            sys.exit(worker())
            ''')
        self.assertEnded(0, program)
        self.assertIn('in the tick', program.output)


class WordsAtTheEndTests(ProgramTestCase):

    def test_threads_that_keep_the_process(self):
        program = self.start('''
            import threading
            @gocept.runner.appmain(ticks=3600)
            def worker():
                threading.Thread(target=wait, name='uploader').start()
                threading.Thread(target=wait, name='x', daemon=True).start()
                say('in the tick')
            sys.exit(worker())
            ''')
        program.wait_for('in the tick')
        program.send(signal.SIGTERM)
        program.wait_for("The process ends when these threads have ended: "
                         "'uploader'\n")
        self.let_go()
        self.let_go()
        self.assertEnded(0, program)

    def test_a_character_that_cannot_be_encoded(self):
        program = self.start('''
            @gocept.runner.once()
            def worker():
                raise ValueError(os.fsdecode(b'caf\\xe9.csv'))
            sys.exit(worker())
            ''', conf='''
            <eventlog>
              <logfile>
                path event.log
              </logfile>
            </eventlog>
            ''')
        self.assertEqual(1, program.end(), program.output)
        self.assertIn("Error in worker 'worker': ValueError: caf\\udce9.csv\n",
                      (self.dir / 'event.log').read_text())
        self.assertNotIn('Logging error', program.output)


class RandomInstantTests(ProgramTestCase):

    level = 2

    def test_a_signal_at_any_time(self):
        randomly = random.Random(3)
        started = time.monotonic()
        self.assertEqual((0, ''), self.run_program(None, 0))
        longest = 1.1 * (time.monotonic() - started)
        for run in range(12):
            signum = randomly.choice(SIGNALS)
            delay = randomly.uniform(0, longest)
            with self.subTest(run=run, signum=signum, delay=delay):
                status, output = self.run_program(signum, delay)
                # 128 and the signal, if the signal came while it booted; 1, if
                # SIGINT came while Python itself started.
                self.assertIn(status, {
                    errors.SUCCESS, -signum, errors.SIGNALLED + signum,
                    *{1} & {signum == signal.SIGINT
                            and output.startswith('Fatal Python error')}},
                        output)
                if 'Received signal' in output:
                    self.assertGreaterEqual(status, errors.SUCCESS)
                # Where no loop runs, SIGINT does what it does in Python.
                if signum != signal.SIGINT or 'Received signal' in output:
                    self.assertNotIn('Traceback', output)

    def run_program(self, signum, delay):
        (self.dir / 'acknowledged').unlink(missing_ok=True)
        for path in self.dir.glob('Data.fs*'):
            if path.is_file():  # and no state
                path.unlink()
        program = self.start('''
            @gocept.runner.appmain(ticks=0)
            def worker():
                number = count()
                acknowledge(number)
                if number == 100:
                    return gocept.runner.Exit
            sys.argv[1:] = []
            sys.exit(worker())
            ''', conf='''
            <eventlog>
              <logfile>
                path STDOUT
              </logfile>
            </eventlog>
            ''' if signum else '<eventlog>\n</eventlog>')
        if signum is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                program.process.wait(delay)
            program.send(signum)
        status = program.end()
        if (self.dir / 'Data.fs').exists() and self.has_root_folder():
            self.assertIn(self.assertConsistent() - len(self.acknowledged()),
                          (0, 1))
        else:
            self.assertEqual([], self.acknowledged())
        return status, program.output

    def has_root_folder(self):
        try:
            self.assertConsistent()
        except KeyError:
            return False
        return True


class EachInstantTests(support.TestCase):
    """A signal before each instruction of the loop (or line of its helpers).
    """

    level = 2

    def setUp(self):
        super().setUp()
        self.database = ZODB.DB(None)
        self.addCleanup(self.database.close)
        with self.database.transaction() as connection:
            site = rootFolder()
            site.setSiteManager(LocalSiteManager(site))
            connection.root()[environment.APPLICATION] = site
        for signum in SIGNALS:
            self.addCleanup(signal.signal, signum, signal.getsignal(signum))
        self.addCleanup(
            signal.signal, signal.SIGALRM, signal.getsignal(signal.SIGALRM))
        self.addCleanup(signal.setitimer, signal.ITIMER_REAL, 0)
        self.events = {
            runner.__file__: 'opcode', shutdown.__file__: 'opcode',
            handlers.__file__: 'opcode', environment.__file__: 'line',
            poller.__file__: 'line', attempts.__file__: 'line',
            contextlib.__file__: 'line'}

    def handle_outside(self, signum, frame):
        self.received.append('outside')
        self.loop.stop()

    def handle_inside(self, signum, frame):
        self.received.append('inside')
        runner.MainLoop.stopMainLoop(self.loop, signum, frame)

    def look(self):
        if self.received == ['inside']:
            self.not_default |= caught_by('self') & {*SIGNALS}
            self.not_default |= {
                signum for signum in SIGNALS
                if signal.getsignal(signum) != signal.SIG_DFL}

    def work(self):
        self.look()
        self.ticks += 1
        self.ticks_after_signal += bool(self.received)
        count()
        self.look()
        return 0.000001 if self.ticks == 1 else self.last_pause

    def run_loop(self, instant=-1, signum=signal.SIGTERM):
        """Send the signal at that instant, or none."""
        self.received = []
        self.not_default = set()
        self.ticks = self.ticks_after_signal = 0
        self.where = 'nothing'
        self.instants = 0

        def trace(frame, event, arg):
            filename = frame.f_code.co_filename
            wanted = self.events.get(filename)
            if wanted is None:
                return None
            frame.f_trace_opcodes = wanted == 'opcode'
            if event == wanted:
                if self.instants == instant:
                    self.where = (f'{os.path.basename(filename)}, '
                                  f'line {frame.f_lineno}')
                    os.kill(os.getpid(), signum)
                self.instants += 1
            return trace

        for number in SIGNALS:
            signal.signal(number, self.handle_outside)
        connection = self.database.open()
        self.loop = runner.MainLoop(
            connection.root()[environment.APPLICATION], 0, self.work,
            self.look)
        self.loop.stopMainLoop = self.handle_inside
        outer = sys.gettrace()
        try:
            sys.settrace(trace)
            try:
                self.loop()
            finally:
                sys.settrace(outer)
        finally:
            transaction.abort()
            connection.close()

    def run_with_each_instant(self, total):
        def give_up(signum, frame):
            raise AssertionError(
                f'the loop sleeps, {self.instants} instants after its start, '
                f'although {self.where} was sent a signal')
        signal.signal(signal.SIGALRM, give_up)
        self.run_loop(0)
        before = support.process_state()
        problems = []
        for instant in range(total):
            signum = SIGNALS[instant % len(SIGNALS)]
            signal.setitimer(signal.ITIMER_REAL, DEADLINE)
            self.run_loop(instant, signum)
            after = support.process_state()
            found = [f'not put back: {key}' for key in before
                     if before[key] != after[key]]
            if self.not_default:
                found.append(f'not default in the loop: {self.not_default!r}')
            if len(self.received) != 1:
                found.append(f'received: {self.received!r}')
            # A tick may have begun before the worker is called.
            if self.ticks_after_signal > 1:
                found.append(f'{self.ticks_after_signal} more ticks')
            if self.loop.failed:
                found.append('failed')
            problems += [f'{signum.name} at {self.where}: {problem}'
                         for problem in found]
        if problems:
            self.fail('\n'.join(sorted(set(problems))))
        with self.database.transaction() as connection:
            site = connection.root()[environment.APPLICATION]
            self.assertEqual(list(range(1, site.count + 1)),
                             list(site.numbers))

    def test_a_loop_that_sleeps_in_the_end(self):
        self.last_pause = 3600

        def end_sleep(signum, frame):
            pausing = self.loop._shutdown._pausing
            if (self.ticks == 2 and pausing is not None
                    and pausing._descriptors.waiting):
                signal.setitimer(signal.ITIMER_REAL, 0)
                totals.append(self.instants)
                os.kill(os.getpid(), signal.SIGTERM)
        totals = []
        signal.signal(signal.SIGALRM, end_sleep)
        for _ in range(2):  # the first one imports
            # Again and again, as nobody knows when it sleeps.
            signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
            self.run_loop()
        self.assertGreater(totals[-1], 500)
        self.run_with_each_instant(totals[-1])

    def test_a_loop_that_ends(self):
        self.last_pause = runner.Exit
        for _ in range(2):
            self.run_loop()
        self.assertGreater(self.instants, 500)
        self.run_with_each_instant(self.instants)

    def test_a_loop_beside_a_thread(self):
        # A storage may have one, and the system gives it a signal that the
        # main thread blocks.
        self.last_pause = runner.Exit
        with concurrent.futures.ThreadPoolExecutor(1) as executor:
            end = threading.Event()
            executor.submit(end.wait)
            try:
                for _ in range(2):
                    self.run_loop()
                self.run_with_each_instant(self.instants)
            finally:
                end.set()


class FailingCommitTests(ProgramTestCase):

    def setUp(self):
        super().setUp()
        self.create_database()

    def run_ticks(self, *ticks):
        """Run a loop in which each of these functions works for one tick."""
        remaining = iter(ticks)

        @runner.appmain(ticks=0)
        def worker():
            for work in remaining:
                count()
                return work()
            return runner.Exit
        worker(None, self.zope_conf())

    def run_failing_ticks(self, *ticks):
        """The same; returns what the loop has to log."""
        with self.assertLogs('gocept.runner', 'WARNING') as logs:
            self.run_ticks(*ticks)
        return logs.output

    def test_a_step_of_the_commit(self):
        for step in ('tpc_begin', 'commit', 'tpc_vote', 'tpc_finish'):
            for key in ('!before the storages', '~after the storages'):
                with self.subTest(step=step, key=key):
                    # What the storages have finished cannot be undone.
                    finished = (step, key[0]) == ('tpc_finish', '~')
                    self.check_step(step, key, 4 if finished else 2)

    def test_a_step_of_the_abort(self):
        for key in ('!before the storages', '~after the storages'):
            with self.subTest(key=key):
                self.check_step('abort', key, 2, self.raise_error)
                self.check_step('tpc_abort', key, 2, lambda: Joined(
                    'tpc_vote', self.raise_error, key + '!'))

    def check_step(self, step, key, stored, more=lambda: None):
        def fail():
            Joined(step, self.raise_error, key)
            more()
        for path in self.dir.glob('Data.fs*'):
            if path.is_file():  # and no state
                path.unlink()
        with self.assertLogs('txn', 'DEBUG'):
            output = self.run_failing_ticks(work, fail, fail, work)
        self.assertEqual(stored, self.assertConsistent(), output)
        told = ('Partly committed' if step == 'tpc_finish'
                else 'Error in worker')
        self.assertEqual(2, sum(told in line for line in output), output)

    def raise_error(self):
        raise RuntimeError('injected')

    def test_the_last_step_of_the_storage(self):
        # A FileStorage closes itself then.
        program = self.start('''
            import sys
            module = sys.modules['ZODB.FileStorage.FileStorage']
            def fail(fd):
                raise OSError(5, 'Input/output error')

            @gocept.runner.appmain(ticks=0)
            @gocept.runner.transaction_per_item
            def worker():
                yield count
                yield lambda: say(count())
                module.fsync = fail
                yield count
            sys.exit(worker())
            ''')
        self.assertEqual(69, program.end(), program.output)
        closed = (f'the database {self.dir}/Data.fs has closed itself after an'
                  ' error, so no tick can work any more: start the program '
                  'again\n')
        self.assertIn(f'CRITICAL gocept.runner.environment {closed}',
                      program.output)
        self.assertIn(f'error: {closed}', program.output)
        self.assertEqual(1, program.output.count('Partly committed'))
        self.assertEqual(3, self.assertConsistent())

    def test_a_database_that_the_worker_closes(self):
        program = self.start('''
            @gocept.runner.appmain(ticks=0)
            def worker():
                count()
                getSite()._p_jar.db().close()
            worker(None, 'zope.conf')
            ''')
        self.assertEqual(1, program.end(), program.output)
        self.assertIn('DatabaseClosed: the connection of the site was closed '
                      'in a tick, so no tick can work', program.output)

    def test_a_connection_that_a_worker_without_changes_closes(self):
        # Later ticks would see no changes of others.
        program = self.start('''
            @gocept.runner.appmain(ticks=0)
            def worker():
                getSite()._p_jar.close()
            worker(None, 'zope.conf')
            ''')
        self.assertEqual(1, program.end(), program.output)
        self.assertIn('DatabaseClosed: the connection of the site was closed '
                      'in a tick, so no tick can work', program.output)

    def test_an_object_that_cannot_be_pickled(self):
        def fail():
            zope.component.hooks.getSite().lock = threading.Lock()
        output = self.run_failing_ticks(work, fail, work)
        self.assertEqual(2, self.assertConsistent())
        self.assertIsNone(self.stored('lock'))
        self.assertIn('cannot pickle', output[0])

    def test_a_hook_before_the_commit(self):
        def fail():
            transaction.get().addBeforeCommitHook(self.raise_error)
        self.run_failing_ticks(work, fail, work)
        self.assertEqual(2, self.assertConsistent())

    def test_a_hook_after_the_commit(self):
        def fail():
            transaction.get().addAfterCommitHook(
                lambda committed: self.raise_error())
        with (self.assertLogs('txn', 'ERROR'),
              self.assertNoLogs('gocept.runner', 'WARNING')):
            self.run_ticks(work, fail, work)
        self.assertEqual(3, self.assertConsistent())

    def test_a_quota(self):
        self.write('zope.conf', f'''
            <zodb>
              <filestorage>
                path {self.dir}/Data.fs
                quota 100KB
              </filestorage>
            </zodb>
            <eventlog>
            </eventlog>
            ''')
        ballast = ['x' * 200_000, '']

        @runner.appmain(ticks=0)
        def worker():
            if not ballast:
                return runner.Exit
            zope.component.hooks.getSite().ballast = ballast.pop(0)
            count()
            return 0
        with self.assertLogs('gocept.runner', 'ERROR') as logs:
            worker(None, str(self.dir / 'zope.conf'))
        self.assertIn('FileStorageQuotaError', logs.output[0])
        self.assertEqual(1, self.assertConsistent())

    def test_a_full_disk(self):
        program = self.start('''
            import resource
            unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
            failures = 0
            def look(committed):
                global failures
                failures += not committed
                if failures == 3:
                    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
            @gocept.runner.appmain(ticks=0)
            def worker():
                number = count()
                acknowledge(number)
                if number == 5:
                    # As on a full disk, a part of it can still be written.
                    size = os.stat('Data.fs').st_size
                    if not failures:
                        resource.setrlimit(
                            resource.RLIMIT_FSIZE, (size + 100, unlimited[1]))
                    transaction.get().addAfterCommitHook(look)
                    getSite().ballast = 'x' * 1000
                if number == 9:
                    return gocept.runner.Exit
            worker(None, 'zope.conf')
            ''')
        self.assertEqual(0, program.end(), program.output)
        self.assertEqual(3, program.output.count('Error in worker'))
        self.assertEqual(3, program.output.count(
            "ERROR gocept.runner.runner Error in worker 'worker': OSError: "
            '[Errno 27]'))
        self.assertEqual(list(range(1, 10)), self.acknowledged())
        self.assertEqual(9, self.assertConsistent())


def work():
    """Nothing more for this tick."""


class LeftBehindTests(support.TestCase):

    def setUp(self):
        super().setUp()
        self.conf = self.zope_conf()

    def assertNothingLeft(self, run, times=20):
        run()  # what is set up once for a process
        threads = threading.enumerate()
        with self.assertPutBack():
            for _ in range(times):
                run()
        # One of another test may end meanwhile.
        self.assertLessEqual({*threading.enumerate()}, {*threads})

    def assertNothingLeftBy(self, error, appname=None, conf=None,
                            principal=None, times=20):
        program = runner.appmain(0, principal)(lambda: runner.Exit)

        def run():
            with self.assertRaises(error):
                program(appname, conf or self.conf)
        self.assertNothingLeft(run, times)

    def test_exit(self):
        program = runner.appmain(principal='zope.mgr')(lambda: runner.Exit)
        self.assertNothingLeft(lambda: program(None, self.conf))

    def test_system_exit(self):
        @runner.appmain()
        def program():
            raise SystemExit(3)
        self.assertNothingLeft(lambda: program(None, self.conf))

    def test_a_failure(self):
        @runner.once()
        def program():
            raise RuntimeError

        def run():
            with self.assertLogs('gocept.runner', 'ERROR'):
                self.assertEqual(1, program(None, self.conf))
        self.assertNothingLeft(run)

    def test_a_signal(self):
        @runner.appmain(ticks=3600)
        def program():
            signal.raise_signal(signal.SIGTERM)
        self.assertNothingLeft(lambda: program(None, self.conf))

    def test_an_unknown_principal(self):
        self.assertNothingLeftBy(LookupError, principal='nobody')

    def test_an_unknown_site(self):
        self.assertNothingLeftBy(KeyError, appname='nothing')

    def test_wrong_zcml(self):
        self.write('wrong.zcml', '<configure><wrong /></configure>')
        conf = self.zope_conf(f'''
            site-definition {self.dir}/wrong.zcml
            <eventlog>
              <logfile>
                path {self.dir}/worker.log
              </logfile>
            </eventlog>
            ''', name='wrong.conf')
        self.assertNothingLeftBy(
            zope.configuration.exceptions.ConfigurationError, conf=conf)

    def test_a_locked_database(self):
        conf = self.zope_conf(f'''
            <zodb second>
              <filestorage>
                path {self.dir}/Second.fs
              </filestorage>
            </zodb>
            ''', name='two.conf')
        for name in ('Data.fs', 'Second.fs'):
            with self.subTest(name=name), contextlib.closing(
                    ZODB.FileStorage.FileStorage(str(self.dir / name))):
                self.assertNothingLeftBy(zc.lockfile.LockError, conf=conf)

    def test_a_server_that_is_not_there(self):
        conf = str(self.write('zeo.conf', f'''
            %import ZEO
            <zodb>
              <filestorage>
                path {self.dir}/Data.fs
              </filestorage>
            </zodb>
            <zodb second>
              <clientstorage>
                server {self.dir}/nobody.sock
                wait-timeout 1
              </clientstorage>
            </zodb>
            <eventlog>
            </eventlog>
            '''))
        with self.assertLogs('ZEO'):
            self.assertNothingLeftBy(
                ZEO.Exceptions.ClientDisconnected, conf=conf, times=1)


class OtherClientTests(ProgramTestCase):

    def test_a_tick_sees_what_another_one_has_committed(self):
        seen = []

        @runner.appmain(ticks=0)
        def worker():
            site = zope.component.hooks.getSite()
            seen.append(getattr(site, 'news', None))
            if len(seen) == 3:
                return runner.Exit
            with site._p_jar.db().transaction() as connection:
                other = connection.root()[environment.APPLICATION]
                other.news = len(seen)
            # Not in the middle of a tick.
            self.assertEqual(seen[-1], getattr(site, 'news', None))
            return 0
        self.create_database()
        with self.assertNoLogs('gocept.runner', 'WARNING'):
            worker(None, self.zope_conf())
        self.assertEqual([None, 1, 2], seen)


class ZEOTests(ProgramTestCase):

    level = 2

    def setUp(self):
        super().setUp()
        self.server = ZEOServer(self.dir)
        self.addCleanup(self.server.kill)

    def start(self, body, *args):
        self.write('zope.conf', self.server.zope_conf())
        return super().start(body, *args, conf=None)

    def test_a_server_that_is_lost_for_a_while(self):
        program = self.start('''
            @gocept.runner.appmain(ticks=0, attempts=1)
            def worker():
                number = count()
                acknowledge(number)
                say(f'number {number}')
            worker(None, 'zope.conf')
            ''')
        losses = 2
        for _ in range(losses):
            number = len(self.acknowledged())
            program.wait_for(f'number {number + 5}')
            self.server.kill()
            program.wait_for("ERROR gocept.runner.runner Error in worker "
                             "'worker': ClientDisconnected")
            self.server.start()
        program.wait_for(f'number {len(self.acknowledged()) + 5}')
        program.send(signal.SIGTERM)
        self.assertEqual(0, program.end(), program.output)
        self.assertIn('Received signal 15', program.output)
        self.server.kill()
        acknowledged = self.acknowledged()
        self.assertEqual(sorted(set(acknowledged)), acknowledged)
        # A commit of which the server could not tell any more.
        self.assertIn(self.assertConsistent() - len(acknowledged),
                      range(losses + 1))

    def test_two_workers_with_one_object(self):
        body = '''
            done = 0
            attempts = 0
            @gocept.runner.appmain(ticks=0, attempts=1000)
            def worker(path, ticks):
                global attempts, done
                attempts += 1
                if done == int(ticks):
                    say(f'{attempts} attempts')
                    return gocept.runner.Exit
                number = count()
                if attempts == 1:
                    say('counted')
                    wait()
                acknowledge(number, path)
                transaction.get().addAfterCommitHook(note)
            def note(committed):
                global done
                done += committed
            worker(None, 'zope.conf', *sys.argv[1:])
            '''
        # Lest both of them make the root folder, or the objects.
        first = self.start(body, 'first', '1')
        first.wait_for('counted')
        self.let_go()
        self.assertEnded(0, first)
        ticks = 50
        programs = [self.start(body, name, str(ticks))
                    for name in ('second', 'third')]
        for program in programs:
            program.wait_for('counted')
        for _ in programs:
            self.let_go()
        attempts = 0
        for program in programs:
            self.assertEqual(0, program.end(), program.output)
            self.assertNotIn('ERROR', program.output)
            attempts += int(re.search(r'(\d+) attempts', program.output)[1])
        self.server.kill()
        self.assertEqual(1 + 2 * ticks, self.assertConsistent())
        self.assertEqual(
            list(range(1, 2 + 2 * ticks)),
            sorted(number for name in ('first', 'second', 'third')
                   for number in self.acknowledged(name)))
        # Each has one attempt to see that it is done; one at least was
        # made in vain.
        self.assertGreater(attempts, 2 * ticks + 2)

    def test_a_signal_while_the_server_is_lost(self):
        program = self.start('''
            @gocept.runner.appmain(ticks=3600)
            def worker():
                say('in the tick')
                wait()
                count()
            worker(None, 'zope.conf')
            ''')
        program.wait_for('in the tick')
        self.server.kill()
        self.let_go()
        program.wait_for('Transient error in attempt 1 of 3')
        program.send(signal.SIGTERM)
        # The client itself may log a traceback of the loss.
        self.assertEqual(0, program.end(), program.output)
        self.assertIn('Received signal 15', program.output)


class ClosedStandardStreamsTests(ProgramTestCase):
    """Started with closed descriptors 0 to 2, as some daemons are."""

    level = 2

    WORKER = """
        @gocept.runner.once()
        def worker():
            for _ in range(100):
                count()
                transaction.commit()
                for fd in range(3):  # as libraries and the interpreter do it
                    with contextlib.suppress(OSError):
                        os.write(fd, b'a line for the log')
            with open('streams', 'w') as file:
                file.write(' '.join(os.readlink(f'/proc/self/fd/{fd}')
                                    for fd in range(3)))
        import contextlib
        """

    WAYS = {
        'a command': 'sys.exit(worker())',
        'a call in Python': "worker(None, 'zope.conf')",
        'another command': """
            from gocept.runner import cli
            cli.main(['list'])
            from gocept.runner.runner import init
            with init(None, 'zope.conf') as site:
                from zope.component.hooks import setSite
                setSite(site)
                worker.worker()
            """,
    }

    def test_the_database_gets_no_such_number(self):
        self.zope_conf(LOG_TO_STDOUT)
        for way, call in self.WAYS.items():
            with self.subTest(way):
                script = self.write('program.py', PREAMBLE + textwrap.dedent(
                    self.WORKER) + textwrap.dedent(call))
                subprocess.run(
                    ['/bin/sh', '-c', 'exec 0<&- 1>&- 2>&-; exec "$@"', 'sh',
                     sys.executable, script], check=True, cwd=self.dir,
                    env=support.child_environment(), timeout=DEADLINE)
                self.assertEqual('/dev/null /dev/null /dev/null',
                                 (self.dir / 'streams').read_text())
        self.assertEqual(300, self.assertConsistent())


class RelStorageTests(ProgramTestCase):

    level = 2

    def test_a_program_and_a_later_one(self):
        (self.dir / 'data').mkdir()
        self.write('zope.conf', support.sqlite_conf(self.dir) + '''
            <eventlog>
              level warning
              <logfile>
                path STDOUT
              </logfile>
            </eventlog>
            ''')
        for expected in ('[1, 2, 3]', '[1, 2, 3, 4, 5, 6]'):
            program = self.start('''
                @gocept.runner.appmain(ticks=0)
                def worker():
                    if count() % 3 == 0:
                        say(list(getSite().numbers))
                        return gocept.runner.Exit
                worker(None, 'zope.conf')
                ''', conf=None)
            self.assertEnded(0, program)
            self.assertIn(expected, program.output)


class CommandLineTests(ProgramTestCase):

    level = 2

    QUIET = '<eventlog>\n</eventlog>\n'

    WORKER = '''
        @gocept.runner.appmain(ticks=3600)
        def worker():
            """Count to one."""
            count()
            return gocept.runner.Exit
        sys.exit(worker())
        '''

    FAILING = '''
        @gocept.runner.appmain(ticks=3600)
        def worker(kind='RuntimeError', *args):
            count()
            raise eval(kind)(*map(eval, args))
        sys.exit(worker())
        '''

    def run_program(self, *args, body=WORKER, conf=QUIET, environment=None):
        program = self.start(body, *args, conf=conf, environment=environment)
        program.end()
        return program

    def assertMistake(self, status, program, *expected):
        """It ended with one line that says what is wrong."""
        self.assertEqual(status, program.process.returncode, program.output)
        self.assertEqual(1, program.output.count('\n'), program.output)
        self.assertTrue(program.output.startswith('program.py: error: '),
                        program.output)
        for text in expected:
            self.assertIn(text, program.output)

    def test_success(self):
        program = self.run_program()
        self.assertEqual((0, ''), (program.process.returncode,
                                   program.output))
        self.assertEqual(1, self.assertConsistent())

    def test_once_failed(self):
        program = self.run_program('--once', body=self.FAILING)
        self.assertEqual(1, program.process.returncode, program.output)
        self.assertEqual(0, self.assertConsistent())

    def test_once_succeeded(self):
        program = self.run_program('--once', body='''
            @gocept.runner.appmain(ticks=3600)
            def worker():
                count()
            sys.exit(worker())
            ''')
        self.assertEqual(0, program.process.returncode, program.output)
        self.assertEqual(1, self.assertConsistent())

    def test_once_by_its_decorator(self):
        program = self.run_program(body='''
            @gocept.runner.once()
            def worker():
                raise RuntimeError
            sys.exit(worker())
            ''')
        self.assertEqual(1, program.process.returncode, program.output)

    def test_ticks(self):
        program = self.run_program('--ticks', '0', body='''
            @gocept.runner.appmain(ticks=3600)
            def worker():
                if count() == 3:
                    return gocept.runner.Exit
            sys.exit(worker())
            ''')
        self.assertEqual(0, program.process.returncode, program.output)
        self.assertEqual(3, self.assertConsistent())

    def test_bad_usage(self):
        cases = [
            (['--nonsense'], 'unrecognized arguments: --nonsense (the worker '
             'has no arguments of its own)'),
            (['--dryrun'], '--dryrun (did you mean --dry-run?)'),
            (['--dryrun=1'], '--dryrun=1 (did you mean --dry-run?)'),
            (['--on'], 'arguments: --on (did you mean --once?)'),
            (['argument'], 'unrecognized arguments: argument (the worker has '
             'no arguments of its own)'),
            (['argument', '--'], 'argument (the worker has no arguments of '),
            (['--ticks', '-1'], '--ticks'),
            (['--ticks', 'nan'], '--ticks'),
            (['--ticks', 'soon'], '--ticks'),
            (['--', 'one', 'two'], 'unrecognized arguments: one two (the '),
        ]
        program = runner.appmain()(lambda: runner.Exit)
        self.assertMistakes(program, cases)
        program = runner.once()(lambda year: None)
        self.assertMistakes(program, [
            (['2024', '2025'], 'too many positional arguments'),
            (['2024', '--nonsense'], 'unrecognized arguments: 2024 --nonsense '
             '(arguments of the worker itself follow --)'),
            (['--ticks', '5', '2024'], '--ticks: <lambda> runs one tick, and'),
        ])

    def assertMistakes(self, program, cases):
        self.zope_conf(self.QUIET)
        for args, expected in cases:
            with (self.subTest(args=args), contextlib.chdir(self.dir),
                  mock.patch('sys.argv', ['program.py', *args]),
                  contextlib.redirect_stderr(io.StringIO()) as stderr):
                with self.assertRaises(SystemExit) as raised:
                    program()
                self.assertEqual(2, raised.exception.code)
                self.assertIn(expected, stderr.getvalue().splitlines()[-1])
        self.assertFalse((self.dir / 'Data.fs').exists())

    def test_arguments_of_the_worker(self):
        body = '''
            @gocept.runner.once()
            def worker(first, second='b'):
                say(f'got {first} {second}')
            sys.exit(worker())
            '''
        program = self.run_program('--', '--once', '--', body=body)
        self.assertEqual(0, program.process.returncode, program.output)
        self.assertEqual('got --once --\n', program.output)
        program = self.run_program('2024', body=body)
        self.assertEqual('got 2024 b\n', program.output)
        program = self.run_program(body=body)
        self.assertEqual(2, program.process.returncode, program.output)
        self.assertIn('FIRST is missing', program.output)
        self.assertIn('[--] FIRST [SECOND]', program.output)

    def test_an_unknown_site(self):
        for option in '--site', '-O', '--object-path':
            self.assertMistake(66, self.run_program(option, 'nothing'),
                               "'nothing'")

    def test_options_about_the_kind_of_application(self):
        for argv, expected in {
                ('--application', 'toolkit', '--log-config', 'x'):
                '--log-config is for applications of Zope',
                ('--application', 'x'): "no kind of application 'x'"}.items():
            self.assertMistake(2, self.run_program(*argv), expected)

    def test_a_broken_database_is_no_mistake_of_the_user(self):
        for kinds in (KeyError,), (KeyError, ValueError):
            with (self.assertRaises(POSKeyError),
                  worker.expecting(errors.UNKNOWN_SITE, *kinds)):
                raise POSKeyError(bytes(8))
        with (self.assertRaises(worker.UserError) as caught,
              worker.expecting(errors.DATABASE_UNAVAILABLE, Exception)):
            raise POSKeyError(bytes(8))
        self.assertEqual(69, caught.exception.status)

    def test_an_object_that_is_no_site(self):
        program = self.run_program('--once', body='''
            from zope.container.btree import BTreeContainer
            @gocept.runner.appmain()
            def worker():
                getSite()['folder'] = BTreeContainer()
            sys.exit(worker())
            ''')
        self.assertEqual(0, program.process.returncode, program.output)
        self.assertMistake(66, self.run_program('--site', 'folder'),
                           "'folder'", 'BTreeContainer')

    def test_an_unknown_principal(self):
        program = self.run_program(body='''
            @gocept.runner.appmain(principal='somebody')
            def worker():
                pass
            sys.exit(worker())
            ''')
        self.assertMistake(67, program, 'somebody')

    def check_bug(self, body, *expected):
        """It is told with a traceback, as what it is."""
        program = self.run_program(body=body)
        self.assertEqual(1, program.process.returncode, program.output)
        self.assertIn('Traceback', program.output)
        self.assertNotIn('error: ', program.output)
        for text in expected:
            self.assertIn(text, program.output.splitlines()[-1])

    def test_a_bug_in_the_callable_of_the_principal(self):
        self.check_bug('''
            @gocept.runner.appmain(principal=lambda: {}['my own'])
            def worker():
                pass
            sys.exit(worker())
            ''', "KeyError: 'my own'")

    def test_a_bug_in_the_authentication(self):
        self.check_bug('''
            import zope.component
            import zope.interface
            from zope.authentication.interfaces import IAuthentication
            @zope.interface.implementer(IAuthentication)
            class Mine:
                def getPrincipal(self, name):
                    zope.component.getUtility(zope.interface.Interface, 'x')
            def principal():
                zope.component.provideUtility(Mine())
                return 'somebody'
            @gocept.runner.appmain(principal=principal)
            def worker():
                pass
            sys.exit(worker())
            ''', 'ComponentLookupError: (<InterfaceClass zope.interface.Int')

    STORE = '''
            import kinds
            @gocept.runner.once()
            def worker():
                getSite()._p_jar.root()['Application'] = kinds.{kind}
            sys.exit(worker())
            '''

    KINDS = '''
            import zope.site.folder, zope.site.site
            class Site(zope.site.folder.Folder):
                pass
            def site(folder):
                folder.setSiteManager(zope.site.site.LocalSiteManager(folder))
                return folder
            class Buggy(zope.site.folder.Folder):
                def getSiteManager(self):
                    return self.no_such_attribute
            class Searching(zope.site.folder.Folder):
                def __getitem__(self, name):
                    return {}['my own']
            '''

    def store(self, kind):
        """Let the root folder be of a class in the module kinds."""
        self.write('kinds.py', self.KINDS)
        program = self.run_program(body=self.STORE.format(kind=kind))
        self.assertEqual(0, program.process.returncode, program.output)

    def test_a_class_that_is_gone(self):
        self.store('site(kinds.Site())')
        (self.dir / 'kinds.py').unlink()
        for args in (), ('--site', 'nothing'):
            self.assertMistake(
                78, self.run_program(*args),
                'the root folder is a kinds.Site, which cannot be imported')

    def test_a_bug_in_the_class_of_the_root_folder(self):
        self.store('Buggy()')
        program = self.run_program()
        self.assertIn("AttributeError: 'Buggy' object has no attribute "
                      "'no_such_attribute'", program.output)
        self.assertIn('Traceback', program.output)

    def test_a_bug_in_a_lookup_of_the_root_folder(self):
        self.store('site(kinds.Searching())')
        program = self.run_program('--site', 'shop')
        self.assertIn("KeyError: 'my own'", program.output)
        self.assertIn('Traceback', program.output)

    def test_a_principal_that_zope_conf_does_not_name(self):
        program = self.run_program(body='''
            @gocept.runner.appmain(
                principal=gocept.runner.from_config('worker', 'principal'))
            def worker():
                pass
            sys.exit(worker())
            ''')
        self.assertMistake(78, program, 'has no <product-config worker>')

    def test_a_locked_database(self):
        with contextlib.closing(
                ZODB.FileStorage.FileStorage(str(self.dir / 'Data.fs'))):
            program = self.run_program()
        self.assertMistake(69, program, 'Data.fs', 'another process')

    def test_a_server_that_is_not_there(self):
        self.write('zope.conf', f'''
            %import ZEO
            <zodb>
              <clientstorage>
                server {self.dir}/nobody.sock
                wait-timeout 1
              </clientstorage>
            </zodb>
            ''' + self.QUIET)
        self.assertMistake(69, self.run_program(conf=None))

    def test_a_database_that_is_none(self):
        self.write('Data.fs', 'not a FileStorage ' * 10)
        self.assertMistake(69, self.run_program())

    def test_a_missing_zope_conf(self):
        self.assertMistake(78, self.run_program(conf=None), './zope.conf')
        program = self.run_program('--config', 'other.conf')
        self.assertMistake(78, program, 'other.conf')

    def test_zope_conf_from_the_environment(self):
        self.zope_conf(self.QUIET, name='other.conf')
        program = self.run_program(
            conf=None, environment={'ZOPE_CONF': 'other.conf'})
        self.assertEqual(0, program.process.returncode, program.output)
        self.assertEqual(1, self.assertConsistent())

    def test_mistakes_in_zope_conf(self):
        cases = [
            ('unknown-key yes', 'unknown-key'),
            ('<zodb broken>', 'zope.conf'),
            ('%import no.such.package', 'no.such.package'),
            ('devmode maybe', 'maybe'),
            ('site-definition missing.zcml', 'missing.zcml'),
            ('<eventlog>\n<logfile>\npath missing/worker.log\n'
             '</logfile>\n</eventlog>', 'missing/worker.log'),
        ]
        for more, expected in cases:
            with self.subTest(more=more):
                self.assertMistake(
                    78, self.run_program(conf=more), expected)
        self.assertFalse((self.dir / 'Data.fs').exists())

    def test_file_and_line_of_an_unknown_key(self):
        program = self.run_program(conf='unknown-key yes')
        self.assertMistake(78, program, 'zope.conf', 'line 6')

    def test_wrong_zcml(self):
        for zcml, expected in (
                ('<configure><nonsense /></configure>', 'nonsense'),
                ('<configure', 'site.zcml'),
                ('<configure xmlns="http://namespaces.zope.org/zope">'
                 '<include package="no_such_package" /></configure>',
                 'no_such_package'),
        ):
            with self.subTest(zcml=zcml):
                self.write('site.zcml', zcml)
                self.assertMistake(78, self.run_program(
                    conf='site-definition site.zcml\n' + self.QUIET),
                    expected)

    def test_system_exit(self):
        cases = [
            (['5'], 5, ''),
            (['0'], 0, ''),
            ([], 0, ''),
            (["'message'"], 1, 'message\n'),
        ]
        for args, status, output in cases:
            with self.subTest(args=args):
                program = self.run_program(
                    '--', 'SystemExit', *args, body=self.FAILING)
                self.assertEqual((status, output), (
                    program.process.returncode, program.output))
        self.assertEqual(0, self.assertConsistent())

    def test_keyboard_interrupt(self):
        program = self.run_program(
            '--', 'KeyboardInterrupt', body=self.FAILING)
        self.assertEqual((130, ''), (
            program.process.returncode, program.output))
        self.assertEqual(0, self.assertConsistent())

    def test_dry_run(self):
        self.assertEqual(0, self.run_program().process.returncode)
        program = self.run_program('--dry-run', conf=LOG_TO_STDOUT)
        self.assertEqual(0, program.process.returncode, program.output)
        self.assertIn(
            'Dry run: would commit 1 persistent.list.PersistentList, '
            '1 zope.site.folder.Folder\n', program.output)
        self.assertEqual(1, self.assertConsistent())

    def test_a_dry_run_creates_no_database(self):
        before = {*os.listdir(self.dir), 'program.py', 'zope.conf'}
        program = self.run_program('--dry-run')
        self.assertMistake(
            69, program, f'there is no database {self.dir}/Data.fs, and a dry '
            'run creates none: correct the path, or run the program without '
            '--dry-run first')
        self.assertEqual(before, {*os.listdir(self.dir)})

    def test_a_dry_run_creates_no_root_folder(self):
        ZODB.DB(f'{self.dir}/Data.fs').close()
        program = self.run_program('--dry-run')
        self.assertMistake(
            69, program, f'the database {self.dir}/Data.fs is empty, and a '
            'dry run does not create its root folder')
        with contextlib.closing(ZODB.DB(f'{self.dir}/Data.fs')) as database:
            with database.transaction() as connection:
                self.assertEqual([], [*connection.root()])

    def test_a_dry_run_in_memory(self):
        program = self.run_program(
            '--dry-run', conf=None, environment={'ZOPE_CONF': str(self.write(
                'memory.conf', '<zodb>\n<demostorage>\n</demostorage>\n'
                '</zodb>\n'))})
        self.assertEqual(0, program.process.returncode, program.output)

    def test_a_new_database(self):
        program = self.run_program(conf='')
        self.assertEqual(0, program.process.returncode, program.output)
        self.assertIn('WARNING gocept.runner.environment Created a new, empty '
                      f'database: {self.dir}/Data.fs\n', program.output)
        self.assertNotIn('Created', self.run_program(conf='').output)

    def test_debug(self):
        program = self.run_program('--debug', body=self.FAILING)
        self.assertEqual(1, program.process.returncode, program.output)
        self.assertIn('(Pdb)', program.output)
        self.assertIn('raise eval(kind)', program.output)
        self.assertEqual(0, self.assertConsistent())

    def test_while_somebody_debugs_no_tick_is_too_long(self):
        loop = runner.MainLoop(None, 1, int)
        loop.tick_timeout = 5
        with worker._PostMortem().watching(loop):
            self.assertIsNone(loop.tick_timeout)

    def test_verbose(self):
        program = self.run_program('--verbose')
        self.assertEqual(0, program.process.returncode, program.output)
        self.assertIn('DEBUG gocept.runner', program.output)
        for more in '-v', '--verbose':
            program = self.run_program('-v', more)
            self.assertEqual(0, program.process.returncode, program.output)
            self.assertIn('DEBUG txn', program.output)

    def test_the_traceback_of_a_mistake_in_zcml(self):
        self.write('broken.py', 'x = 1\ny = undefined_name\n')
        self.write('broken.zcml', """
            <configure xmlns="http://namespaces.zope.org/zope">
              <include package="zope.component" />
              <utility name="x" component="broken.x"
                       provides="zope.interface.Interface" />
            </configure>
            """)
        conf = ('path $here\nsite-definition $here/broken.zcml\n')
        program = self.run_program(conf=conf)
        self.assertMistake(78, program, "NameError: name 'undefined_name'",
                           f'(in the module broken: {self.dir}/broken.py, '
                           'line 2)')
        program = self.run_program('--verbose', conf=conf)
        self.assertEqual(78, program.process.returncode)
        self.assertIn('Traceback', program.output)
        self.assertIn('broken.py", line 2, in <module>', program.output)
        self.assertIn('program.py: error: ', program.output.splitlines()[-1])

    def test_what_is_verbose(self):
        body = """
            import logging
            @gocept.runner.once()
            def worker():
                for name in 'shop', 'txn', 'ZODB.Connection', 'quiet':
                    logging.getLogger(name).debug('debug of %s', name)
                    logging.getLogger(name).info('info of %s', name)
            sys.exit(worker())
            """
        conf = """
            <logger>
              name quiet
              level warn
            </logger>
            """
        usual = {'info of shop', 'info of txn', 'info of ZODB.Connection'}
        for options, expected in (
                ([], usual), (['--verbose'], usual | {'debug of shop'}),
                (['-vv'], usual | {'debug of shop', 'debug of txn',
                                   'debug of ZODB.Connection'})):
            with self.subTest(options):
                output = self.run_program(
                    *options, body=body, conf=conf).output
                self.assertEqual(expected, {*re.findall(
                    r'(?:debug|info) of [.\w]+', output)})
                if options == ['--verbose']:
                    self.assertNotRegex(output, 'DEBUG (?!shop|gocept)')

    def test_the_line_of_the_start(self):
        program = self.run_program(conf='')
        self.assertIn(
            "INFO gocept.runner.environment Worker 'worker' starts: a tick "
            f'every 3600 s, in the root folder of {self.dir}/Data.fs\n',
            program.output)
        with stored(self.dir / 'Data.fs') as root:
            site = root['shop'] = rootFolder()
            site.setSiteManager(LocalSiteManager(site))
            root._p_jar.transaction_manager.commit()
        program = self.run_program('--once', '--site', 'shop', conf='')
        self.assertIn("'worker' starts: one tick, in the site 'shop' of ",
                      program.output)

    def test_the_log_without_an_eventlog(self):
        program = self.run_program('--once', conf='', body=self.FAILING)
        self.assertEqual(1, program.process.returncode, program.output)
        self.assertIn("ERROR gocept.runner.runner Error in worker 'worker': "
                      'RuntimeError\n', program.output)

    def test_help(self):
        program = self.run_program('--help', conf=None)
        self.assertEqual(0, program.process.returncode, program.output)
        for expected in ('Count to one.', '--dry-run', '69  the database',
                         '--ticks'):
            self.assertIn(expected, program.output)
        program = self.run_program('--help', conf=None, body="""
            @gocept.runner.once()
            def worker():
                pass
            worker()
            """)
        self.assertEqual(0, program.process.returncode, program.output)
        self.assertNotIn('--ticks', program.output)

    def test_the_version(self):
        program = self.run_program('--version', conf=None)
        self.assertEqual(0, program.process.returncode, program.output)
        self.assertEqual(
            f'gocept.runner {importlib.metadata.version("gocept.runner")}\n',
            program.output)

    def test_a_signal(self):
        program = self.start('''
            @gocept.runner.appmain(ticks=3600)
            def worker():
                count()
                say('in the tick')
            sys.exit(worker())
            ''')
        program.wait_for('in the tick')
        program.send(signal.SIGINT)
        self.assertTerminated(program, signal.SIGINT)
        self.assertEqual(1, self.assertConsistent())
