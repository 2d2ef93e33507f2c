import contextlib
import errno
import gc
import itertools
import os
import pkgutil
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import zope.interface.verify

from gocept.runner.errors import DeadlineExceeded, ShortageError
from gocept.runner.interfaces import IProcess
from gocept.runner.poller import Poller, background
from gocept.runner.process import (
    LOST_STATUS,
    Process,
    descendants,
    ending,
    forker,
    procfs,
    registry,
    terminate_all,
)
from gocept.runner.process import child as child_module
from gocept.runner.process.newborn import Newborn
from gocept.runner.process.pidfd import hold
from gocept.runner.tests import support
from gocept.runner.tests.streams import Alarms
from gocept.runner.tests.victims import (
    DEADLINE,
    STUBBORN,
    adopt_no_more,
    ended,
    lines,
    marked,
    until,
    victim,
    without_pidfds,
)


class ProcessTestCase(support.TestCase):
    """No descriptor, zombie or thread stays behind."""

    # What a program of a test begins with.
    preamble = '''
        import os, signal, subprocess, sys, threading, warnings
        from gocept.runner.process import descendants
        from gocept.runner.process import procfs
        from gocept.runner.process import child
        from gocept.runner.process import Process, terminate_all
        from gocept.runner.tests.victims import *
        # Of a fork beside threads: it is what is tested.
        warnings.filterwarnings('ignore', 'This process', DeprecationWarning)

        '''

    def setUp(self):
        super().setUp()
        self.addCleanup(support.end_background)
        Process('true').close()  # begins what lasts
        forker.call(int, also_main=True)
        support.settle()
        self.before = self.state()
        self.addCleanup(self.assertNothingLeft)

    def state(self):
        return {
            'descriptors': sorted(support.open_descriptors().values()),
            'children': set(procfs.children(os.getpid())),
            'threads': set(threading.enumerate()),
            'unfinished': set(registry.processes),
        }

    def assertNothingLeft(self):
        # Whoever has noticed an end first may be a bit behind.
        with contextlib.suppress(AssertionError):
            until(lambda: self.state() == self.before)
        self.assertEqual(self.before, self.state())

    def start(self, command='sleep 100', **options):
        child = Process(command, **options)
        self.addCleanup(child.close)
        return child

    def start_victim(self, body, **options):
        return self.start(victim(body), stdout='pipe', **options)

    def start_stubborn(self, **options):
        child = self.start(STUBBORN, shell=True, stdout='pipe', **options)
        lines(child, 1)
        return child

    def hold(self, pid):
        handle = hold(int(pid))
        self.addCleanup(handle.close)
        return handle

    def children_of(self, child, count=1):
        """Held, when they have said that they are there."""
        handles = []
        for word, pid in lines(child, count):
            self.assertEqual('child', word)
            handles.append(self.hold(pid))
        return handles

    def assertAllEnded(self, handles):
        for handle in handles:
            self.assertTrue(handle.has_ended(), procfs.stat(handle.pid))

    def start_program(self, body, **environment):
        program = self.program(
            textwrap.dedent(self.preamble) + textwrap.dedent(body),
            environment=environment)
        watchdog = threading.Timer(DEADLINE, program.process.kill)
        watchdog.start()
        self.addCleanup(watchdog.join)
        self.addCleanup(watchdog.cancel)
        return program

    def run_program(self, body, status=0, **environment):
        """Run a program; returns its lines when all have closed its output.
        """
        program = self.start_program(body, **environment)
        self.assertEqual(status, program.end(), program.output)
        return program.output.splitlines()


class Fallback(ProcessTestCase):
    """The same as on a system without pidfds."""

    level = 2

    preamble = ProcessTestCase.preamble + '''
        without_pidfds().__enter__()

        '''

    def setUp(self):
        super().setUp()
        patch = without_pidfds()
        patch.__enter__()
        self.addCleanup(patch.__exit__, None, None, None)


class TerminateTests(ProcessTestCase):

    def test_the_signal(self):
        child = self.start()
        self.assertEqual(-signal.SIGTERM, child.terminate())
        self.assertEqual(-signal.SIGTERM, child.returncode)

    def test_the_signal_of_the_child(self):
        child = self.start(stop_signal=signal.SIGINT)
        self.assertEqual(-signal.SIGINT, child.terminate())

    def test_a_signal_for_once(self):
        child = self.start()
        self.assertEqual(-signal.SIGHUP, child.terminate(signal.SIGHUP))

    def test_it_may_end_in_its_own_way(self):
        child = self.start_victim('''
            signal.signal(signal.SIGTERM, lambda *args: sys.exit(7))
            say('ready')
            pause()
            ''')
        lines(child, 1)
        self.assertEqual(7, child.terminate())

    def test_who_ignores_the_signal_is_killed(self):
        child = self.start_stubborn(stop_timeout=0.01)
        self.assertEqual(-signal.SIGKILL, child.terminate())

    def test_no_time_at_all(self):
        child = self.start_stubborn()
        self.assertEqual(-signal.SIGKILL, child.terminate(timeout=0))

    def test_who_is_stopped_is_continued(self):
        child = self.start_victim('''
            signal.signal(signal.SIGTERM, lambda *args: sys.exit(7))
            say('ready')
            pause()
            ''')
        lines(child, 1)
        child.send_signal(signal.SIGSTOP)
        until(lambda: procfs.stat(child.pid).state == 'T')
        self.assertEqual(7, child.terminate())

    def test_who_is_stopped_and_stubborn(self):
        child = self.start_stubborn()
        child.send_signal(signal.SIGSTOP)
        until(lambda: procfs.stat(child.pid).state == 'T')
        self.assertEqual(-signal.SIGKILL, child.terminate(timeout=0.01))

    def test_a_stopped_group(self):
        child = self.start_victim('''
            fork(int)
            pause()
            ''', setpgrp=True)
        [grandchild] = self.children_of(child)
        child.signal_group(signal.SIGSTOP)
        until(lambda: procfs.stat(grandchild.pid).state == 'T')
        self.assertEqual(-signal.SIGTERM, child.terminate())
        self.assertAllEnded([grandchild])

    def test_has_ended_already(self):
        child = self.start('true')
        child.wait(DEADLINE)
        self.assertEqual(0, child.terminate())
        self.assertEqual(0, child.terminate())

    def test_has_ended_but_nobody_has_noticed(self):
        with Poller() as poller:
            child = self.start('true', poller=poller)
            handle = self.hold(child.pid)
            self.assertTrue(ended(handle))
            self.assertEqual(0, child.terminate())

    def test_a_group_gets_the_signal_at_once(self):
        # The child itself ends last: it waits for its own children.
        child = self.start_victim('''
            pids = [fork(int), fork(int)]
            signal.signal(signal.SIGTERM, lambda *args: None)
            say('ready')
            for pid in pids:
                say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            ''', setpgrp=True)
        grandchildren = self.children_of(child, 2)
        lines(child, 1)
        self.assertEqual(0, child.terminate())
        self.assertEqual([['-15'], ['-15']], lines(child, 2))
        self.assertAllEnded(grandchildren)

    def test_without_a_group_the_children_get_it_after_the_child(self):
        child = self.start_victim('''
            def report(*args):
                say('told', os.getpid())
                os._exit(0)

            def listen():
                signal.signal(signal.SIGTERM, report)

            pid = fork(listen)
            signal.signal(signal.SIGTERM, report)
            say('ready')
            pause()
            ''')
        [grandchild] = self.children_of(child)
        lines(child, 1)
        self.assertEqual(0, child.terminate())
        self.assertEqual([['told', str(child.pid)],
                          ['told', str(grandchild.pid)]],
                         lines(child, 2))
        self.assertAllEnded([grandchild])

    def test_children_and_grandchildren(self):
        child = self.start_victim('''
            def further():
                fork(ignore)
                fork(os.setsid)
            fork(further)
            fork(ignore)
            pause()
            ''')
        handles = self.children_of(child, 4)
        self.assertEqual(-signal.SIGTERM, child.terminate(timeout=0.05))
        self.assertAllEnded(handles)

    def test_our_own_group_is_never_signalled(self):
        lines = self.run_program('''
            signal.signal(signal.SIGTERM, lambda *args: say('we are hit'))
            sibling = subprocess.Popen(['sleep', '100'])
            for options in {'stop_timeout': 0}, {'stop_timeout': 0.01}:
                child = Process(['sleep', '100'], **options)
                assert os.getpgid(child.pid) == os.getpgrp()
                child.signal_group(signal.SIGUSR1)
                assert child.wait(DEADLINE) == -signal.SIGUSR1
                child = Process(victim('ignore()\\nfork(int)\\npause()'),
                                stdout='pipe', **options)
                lines(child, 1)
                child.close()
                say(child.returncode)
            say(sibling.poll())
            sibling.kill()
            sibling.wait()
            ''')
        self.assertEqual(['-9', '-9', 'None'], lines)

    def test_who_leaves_is_known_by_the_mark(self):
        child = self.start_victim('''
            leave()
            leave(ignore)
            pause()
            ''')
        leavers = self.children_of(child, 2)
        self.assertEqual(-signal.SIGTERM, child.terminate(timeout=0.05))
        self.assertAllEnded(leavers)

    def test_who_left_a_child_that_has_ended(self):
        child = self.start_victim('leave()')
        leavers = self.children_of(child)
        self.assertEqual(0, child.wait(DEADLINE))
        self.assertFalse(leavers[0].has_ended())
        self.assertEqual(0, child.terminate())
        self.assertAllEnded(leavers)

    def test_the_group_of_a_leader_that_has_ended(self):
        # No mark can be read, and nobody is its parent.
        child = self.start_victim('''
            fork(overwrite)
            fork(ignore)
            ''', setpgrp=True)
        orphans = self.children_of(child, 2)
        self.assertEqual([], descendants.marks(orphans[0].pid))
        self.assertEqual(0, child.wait(DEADLINE))
        self.assertFalse(orphans[0].has_ended())
        self.assertEqual(0, child.terminate(timeout=0.05))
        self.assertAllEnded(orphans)

    def test_a_leaver_forks_while_it_is_ended(self):
        # Blocked for the fork, as Python forgets in a new child which signals
        # have arrived already.
        child = self.start_victim('''
            def fork_when_told():
                def told(*args):
                    if os.getpid() != leaver:
                        ends.append(True)
                        return
                    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
                    if os.fork():
                        os._exit(0)
                    else:
                        signal.pthread_sigmask(
                            signal.SIG_UNBLOCK, [signal.SIGTERM])
                        say(os.getpid())
                        while not ends:
                            select.select([], [], [], 0.01)
                        os._exit(0)
                leaver, ends = os.getpid(), []
                signal.signal(signal.SIGTERM, told)
            leave(fork_when_told)
            pause()
            ''')
        leavers = self.children_of(child)
        self.assertEqual(-signal.SIGTERM, child.terminate(timeout=DEADLINE))
        self.assertAllEnded(leavers)
        [[pid]] = lines(child, 1)
        self.assertIn(procfs.look(int(pid)).state, 'ZX')
        self.assertFalse(child.killed)

    def test_grandchildren_that_hold_the_pipes_do_not_delay(self):
        child = self.start_victim('''
            leave(ignore)
            fork(ignore)
            pause()
            ''', stdin='pipe', stderr='merge')
        grandchildren = self.children_of(child, 2)
        child.channel.write(b'x' * 100_000)  # more than a pipe takes
        child.stop_timeout = 0.05
        with self.assertLogs('gocept.runner.channel', 'WARNING') as logs:
            child.close()
        self.assertIn('34464 bytes could not be sent', logs.output[0])
        self.assertAllEnded(grandchildren)

    def test_a_member_of_the_group_that_is_born_at_the_end(self):
        child = self.start_victim('''
            def told(*args):
                if not os.fork():
                    pid = os.fork()
                    if not pid:
                        os.execve('/bin/sleep', ['sleep', '100'], {})
                    say(pid)
                    os._exit(0)
                os.wait()
                os._exit(0)
            signal.signal(signal.SIGTERM, told)
            say('ready')
            pause()
            ''', setpgrp=True)
        lines(child, 1)
        self.assertEqual(0, child.terminate())
        pid, _ = child.channel.read_until(b'\n', DEADLINE)
        self.assertIn(getattr(procfs.stat(int(pid)), 'state', 'X'), 'ZX')

    def test_one_that_keeps_forking(self):
        # Bounded, should it not be ended.
        child = self.start_victim('''
            ignore()
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            say('ready')
            for _ in range(3000):
                if os.fork():
                    signal.sigtimedwait([signal.SIGUSR1], 0.002)
                    os._exit(0)
                os.setsid()
            ''')
        lines(child, 1)
        # A busy machine may need longer than usual to kill so many.
        with mock.patch.object(ending, 'KILL_TIMEOUT', DEADLINE):
            child.terminate(timeout=0.05)
        self.assertEqual([], marked([child.mark]))

    def test_one_that_forks_broadly(self):
        child = self.start_victim('''
            ignore()
            say('ready')
            for _ in range(7):  # 2 ** 7 in all
                os.fork()
            pause()
            ''')
        lines(child, 1)
        # A busy machine may need longer than usual to kill so many.
        with mock.patch.object(ending, 'KILL_TIMEOUT', DEADLINE):
            child.terminate(timeout=0.05)
        self.assertEqual([], marked([child.mark]))

    def test_side_by_side(self):
        # All were told before the first one is killed: they report to one
        # pipe, and none of them ends by itself.
        read, write = os.pipe()
        self.addCleanup(os.close, read)
        children = [self.start_victim('''
            signal.signal(signal.SIGTERM, lambda *args: os.write(2, b'.'))
            say('ready')
            pause()
            ''', stderr=write, stop_timeout=0.3) for _ in range(10)]
        os.close(write)
        for child in children:
            lines(child, 1)
        states, told = [], []

        def look(self):
            states.append([each.returncode for each in children])
            while sum(map(len, told)) < 10:  # a busy machine takes its time
                told.append(os.read(read, 100))
            kill(self)
        kill = ending.Ending._kill
        with mock.patch.object(ending.Ending, '_kill', look):
            terminate_all(children)
        self.assertEqual([None] * 10, states[0])
        self.assertEqual([-signal.SIGKILL] * 10,
                         [child.returncode for child in children])
        self.assertEqual(b'.' * 10, b''.join(told))

    def test_a_fork_that_loses_the_signal_as_it_becomes_its_program(self):
        child = self.start(victim('''
            read, write = os.pipe()
            if not os.fork():
                signal.signal(signal.SIGTERM, lambda *args: None)
                os.close(write)
                say('ready')
                os.read(read, 1)  # until its parent has ended
                os.execvp('sleep', ['sleep', '100'])
            pause()
            '''), stdout='pipe', setsid=True, stop_timeout=DEADLINE)
        lines(child, 1)
        child.terminate()
        self.assertFalse(child.killed)

    def test_what_cannot_be_ended(self):
        child = self.start()
        with mock.patch.object(Process, 'signal_group'), mock.patch.object(
                ending, 'KILL_TIMEOUT', 0.01):
            with self.assertRaisesRegex(DeadlineExceeded, 'sleep.*killed'):
                child.terminate(timeout=0.01)
        self.assertIsNone(child.returncode)
        self.assertIn(child, registry.processes)
        self.assertEqual(-signal.SIGTERM, child.terminate())

    def test_from_several_threads(self):
        child = self.start_stubborn(stop_timeout=0.05)
        statuses = []
        threads = [threading.Thread(
            target=lambda: statuses.append(child.terminate()))
            for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
        self.assertEqual([-signal.SIGKILL] * 4, statuses)

    def test_by_a_callback_of_the_background_poller(self):
        other = self.start()
        done = threading.Event()

        def end_other(child):
            other.terminate()
            done.set()
        self.start('true', on_end=end_other)
        self.assertTrue(done.wait(DEADLINE))
        self.assertEqual(-signal.SIGTERM, other.returncode)

    def test_a_context_manager(self):
        with Process('cat', stdin='pipe', stdout='pipe') as child:
            pass
        self.assertEqual(-signal.SIGTERM, child.returncode)
        self.assertTrue(child.channel.closed)

    def test_nothing_to_end(self):
        terminate_all([])


class FallbackTerminateTests(Fallback, TerminateTests):
    pass


class AdoptTests(ProcessTestCase):
    """In programs, as it is a property of the whole process."""

    def test_orphans_return_and_are_ended_and_reaped(self):
        output = self.run_program('''
            child = Process(victim("""
                leave()
                fork(ignore)
                pause()
                """), stdout='pipe', adopt=True, stop_timeout=0.05)
            pids = [int(pid) for _, pid in lines(child, 2)]
            say(*[procfs.stat(pid).parent == os.getpid() for pid in pids])
            child.close()
            say(child.returncode, procfs.children(os.getpid()))
            ''')
        self.assertEqual(['True False', '-15 []'], output)

    def test_orphans_of_a_child_that_has_ended(self):
        output = self.run_program('''
            def left():
                return len(procfs.children(os.getpid()))

            for options in {}, {'setpgrp': True}, {'setsid': True}:
                child = Process(victim("""
                    fork(ignore)
                    leave()
                    leave(ignore)
                    fork(int)
                    """), stdout='pipe', adopt=True, stop_timeout=0.05,
                    **options)
                lines(child, 4)
                child.wait(DEADLINE)
                before = left()
                child.close()
                say(child.returncode, before, left())
            ''')
        self.assertEqual(['0 4 0'] * 3, output)

    def test_orphans_without_a_mark_that_have_left_their_session(self):
        # They were held when the child had ended, and their mark was read.
        output = self.run_program('''
            child = Process(victim("""
                def forget():
                    say('child', os.getpid())
                    os.read(0, 1)
                    os.setsid()
                    overwrite()

                if not os.fork():
                    forget()
                    say('child', os.getpid())
                    pause()
                """), stdin='pipe', stdout='pipe', adopt=True, setpgrp=True)
            [[_, pid]] = lines(child, 1)
            child.wait(DEADLINE)
            child.channel.write(b'.')
            lines(child, 1)
            pid = int(pid)
            say(descendants.marks(pid), procfs.stat(pid).session == pid)
            child.close()
            say(procfs.children(os.getpid()))
            ''')
        self.assertEqual(['[] True', '[]'], output)

    def test_no_stranger_is_stolen(self):
        output = self.run_program('''
            strangers = [
                subprocess.Popen(['sh', '-c', 'exit 3']),
                subprocess.Popen(['sleep', '100']),
                subprocess.Popen(['sleep', '100'], start_new_session=True)]
            child = Process(victim("""
                leave()
                pause()
                """), stdout='pipe', adopt=True, setpgrp=True)
            lines(child, 1)
            os.waitid(os.P_PID, strangers[0].pid, os.WEXITED | os.WNOWAIT)
            child.close()
            say(*[stranger.poll() for stranger in strangers])
            say(len(procfs.children(os.getpid())))
            for stranger in strangers:
                stranger.kill()
                stranger.wait()
            ''')
        self.assertEqual(['3 None None', '2'], output)

    def test_what_nobody_knows_is_reaped_at_exit(self):
        # What is registered first is called last.
        output = self.run_program('''
            import atexit
            atexit.register(lambda: say(procfs.children(os.getpid())))
            child = Process(victim("""
                pid = os.fork()
                if not pid:
                    os._exit(0)
                # Else it would be known, and reaped as it ends.
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
                """), adopt=True)
            child.wait(DEADLINE)
            until(lambda: [pid for pid in procfs.children(os.getpid())
                           if procfs.stat(pid).state == 'Z'])
            ''')
        self.assertEqual(['[]'], output)


class FallbackAdoptTests(Fallback, AdoptTests):
    pass


class EndTests(ProcessTestCase):

    def test_the_interface(self):
        child = self.start()
        zope.interface.verify.verifyObject(IProcess, child)
        self.assertEqual(['sleep', '100'], child.args)
        self.assertEqual('sleep', child.name)
        self.assertEqual(f"<Process 'sleep' ({child.pid}): running>",
                         repr(child))
        child.terminate()
        self.assertEqual(f"<Process 'sleep' ({child.pid}): ended with -15>",
                         repr(child))

    def test_each_status(self):
        for status in (0, 1, 127, 128, 254, 255):
            with self.subTest(status):
                child = self.start(f'exit {status}', shell=True)
                self.assertEqual(status, child.wait(DEADLINE))
                self.assertEqual(status, child.returncode)
                self.assertEqual(status, child.poll())

    def test_each_signal(self):
        for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGKILL,
                       signal.SIGSEGV, signal.SIGABRT, signal.SIGUSR1,
                       signal.SIGRTMAX):
            with self.subTest(signum):
                child = self.start(rlimits={'core': 0})
                child.send_signal(signum)
                self.assertEqual(-signum, child.wait(DEADLINE))

    def test_what_is_left_behind_is_held_before_the_end_is_known(self):
        known = []
        group = descendants.group

        def look(*args):
            known.append(child.returncode)
            return group(*args)
        with mock.patch.object(descendants, 'group', look):
            child = self.start_victim('fork(int)', setpgrp=True)
            self.assertEqual(0, child.wait(DEADLINE))
        self.assertEqual([None], known)
        self.assertTrue(child.has_left)

    def test_no_zombie(self):
        child = self.start('true')
        child.wait(DEADLINE)
        with self.assertRaises(ChildProcessError):
            os.waitpid(child.pid, os.WNOHANG)

    def test_no_signal_after_the_end(self):
        child = self.start('true', setpgrp=True)
        child.wait(DEADLINE)
        with mock.patch('os.killpg') as killpg, mock.patch('os.kill') as kill:
            child.send_signal(signal.SIGKILL)
            child.signal_group(signal.SIGKILL)
        self.assertFalse(killpg.called or kill.called)

    def test_a_signal_handler_passes_a_signal_on(self):
        # Whatever this thread was doing with the child.
        child = self.start()
        previous = signal.signal(signal.SIGUSR1, lambda signum, frame: (
            child.send_signal(signal.SIGTERM)))
        self.addCleanup(signal.signal, signal.SIGUSR1, previous)
        with child._lock:
            signal.raise_signal(signal.SIGUSR1)
        self.assertEqual(-signal.SIGTERM, child.wait(DEADLINE))

    def test_an_event_of_a_poller(self):
        with Poller() as poller:
            child = self.start('exit 3', shell=True, poller=poller)
            self.assertEqual([(3, child)], poller.poll(DEADLINE))
            self.assertEqual([], poller.poll(0))
            self.assertEqual(3, child.returncode)
            poller.register(child)
            self.assertEqual([(3, child)], poller.poll(DEADLINE))
            self.assertEqual([], poller.poll(0))

    def test_an_event_of_several_pollers(self):
        with Poller() as one, Poller() as two:
            child = self.start('exit 3', shell=True, poller=one)
            two.register(child)
            self.assertEqual([(3, child)], two.poll(DEADLINE))
            self.assertEqual([(3, child)], one.poll(DEADLINE))
            self.assertEqual([], one.poll(0) + two.poll(0))

    def test_an_event_though_somebody_else_has_waited(self):
        with Poller() as poller:
            child = self.start('exit 3', shell=True, poller=poller)
            self.assertEqual(3, child.wait(DEADLINE))
            self.assertEqual([(3, child)], poller.poll(DEADLINE))
            self.assertEqual([], poller.poll(0))

    def test_the_end_wakes_a_poller_that_waits(self):
        with Poller() as poller:
            child = self.start('cat', stdin='pipe', poller=poller)
            results = []
            thread = threading.Thread(
                target=lambda: results.extend(poller.poll(DEADLINE)))
            thread.start()
            child.channel.write_eof()
            thread.join(DEADLINE)
            self.assertEqual([(0, child)], results)

    def test_in_the_background(self):
        ends = []
        done = threading.Event()

        def on_end(child):
            ends.append((child, child.returncode, threading.current_thread()))
            done.set()
        child = self.start('exit 3', shell=True, on_end=on_end)
        self.assertTrue(done.wait(DEADLINE))
        [(same, status, thread)] = ends
        self.assertIs(child, same)
        self.assertEqual(3, status)
        self.assertEqual('gocept.runner.poller', thread.name)

    def test_on_end_fails(self):
        with Poller() as poller, self.assertLogs(
                'gocept.runner.process', 'ERROR') as logs:
            child = self.start('true', poller=poller, on_end=lambda child: 1/0)
            self.assertEqual([(0, child)], poller.poll(DEADLINE))
        self.assertEqual(1, len(logs.output))
        self.assertIn('ZeroDivisionError', logs.output[0])

    def test_the_start_is_told_before_the_end(self):
        told = []

        def on_start(child):
            ended(child.handle)  # but nobody has noticed it so far
            told.append(('start', child, child.returncode))
        child = self.start('true', on_start=on_start, on_end=(
            lambda child: told.append(('end', child, child.returncode))))
        until(lambda: len(told) > 1)
        self.assertEqual([('start', child, None), ('end', child, 0)], told)

    def test_at_the_start_all_is_there(self):
        seen = []

        def on_start(child):
            seen.append((child.pid, child.name, child.channel.closed,
                         child.returncode, threading.current_thread()))
        with Poller() as poller:
            child = self.start('true', stdout='pipe', poller=poller,
                               on_start=on_start)
            self.assertEqual([(child.pid, 'true', False, None,
                               threading.current_thread())], seen)
            self.assertEqual([(0, child)], poller.poll(DEADLINE))

    def test_on_start_ends_it(self):
        for how in Process.terminate, Process.wait:
            ends = []
            child = self.start('true', on_start=how, on_end=ends.append)
            self.assertIsNotNone(child.returncode)
            self.assertEqual([child], ends)

    def test_on_start_fails(self):
        started = []

        def on_start(child):
            started.append(child)
            raise ZeroDivisionError
        with Poller() as poller:
            for options in {}, {'poller': poller}:
                with self.assertRaises(ZeroDivisionError):
                    Process('sleep 100', stdin='pipe', on_start=on_start,
                            **options)
        for child in started:
            self.assertTrue(child.channel.closed)
            self.assertFalse(procfs.stat(child.pid))

    def assertInterrupted(self, owner, name, when=lambda *args: True):
        """A signal handler raises an exception after this call."""
        call, seen = getattr(owner, name), []

        def interrupted(*args):
            result = call(*args)
            if when(*args):
                seen.append(set(procfs.children(os.getpid())))
                raise InterruptedError
            return result
        with Poller() as poller:
            for options in {}, {'poller': poller}:
                before = set(procfs.children(os.getpid()))
                with mock.patch.object(owner, name, interrupted):
                    with self.assertRaises(InterruptedError):
                        Process('sleep 100', stdin='pipe', stdout='pipe',
                                **options)
                [pid] = seen.pop() - before
                self.assertIsNone(procfs.stat(pid))

    def test_interrupted_when_its_channel_has_one_end(self):
        self.assertInterrupted(Newborn, 'take', lambda newborn, fd: (
            fd == newborn.stdout))

    def test_interrupted_when_a_thread_may_notice_its_end(self):
        self.assertInterrupted(Poller, 'register', lambda poller, source: (
            isinstance(source, Process)))

    def test_interrupted_when_all_is_done(self):
        self.assertInterrupted(Process, '_start')

    def test_on_start_ends_it_and_fails(self):
        # By then another process may have its number.
        def on_start(child):
            child.terminate()
            raise ZeroDivisionError
        with mock.patch('os.waitpid') as waitpid:  # after the signal
            with self.assertRaises(ZeroDivisionError):
                Process('sleep 100', on_start=on_start)
        self.assertFalse(waitpid.called)

    def test_each_end_once_whoever_asks(self):
        ends = []
        for _ in range(10):
            child = self.start('exit 3', shell=True, on_end=ends.append)
            statuses = []
            threads = [threading.Thread(
                target=lambda: statuses.append(child.wait(DEADLINE)))
                for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(DEADLINE)
            self.assertEqual([3, 3, 3], statuses)
            until(lambda: child in ends)
        self.assertEqual(10, len(ends))
        self.assertEqual(10, len(set(ends)))

    def test_a_deadline(self):
        child = self.start()
        with self.assertRaisesRegex(DeadlineExceeded,
                                    r'sleep.*running> has not ended in 0.01'):
            child.wait(0.01)
        self.assertIsNone(child.poll())
        self.assertIsNone(child.returncode)

    def test_somebody_else_reaps_it(self):
        with Poller() as poller:
            child = self.start('true', poller=poller)
            os.waitpid(child.pid, 0)
            with self.assertLogs('gocept.runner.process', 'WARNING') as logs:
                self.assertEqual(LOST_STATUS, child.wait(DEADLINE))
            self.assertIn('ended with an unknown status>: somebody else has '
                          'reaped it', logs.output[0])
            self.assertTrue(child.lost)
            self.assertEqual([(LOST_STATUS, child)], poller.poll(DEADLINE))

    def test_pollers_are_told_of_its_end_without_its_lock(self):
        class Watcher:
            def source_closing(self, source, fd):
                held.append(child._lock.held)

            def source_ready(self, source):
                held.append(child._lock.held)
        held = []
        child = self.start('cat', stdin='pipe')
        child.handle.attach(Watcher())
        child.channel.close()
        child.wait(DEADLINE)
        until(lambda: held)
        self.assertNotIn(True, held)

    def test_somebody_else_reaps_it_before_it_is_known(self):
        def popen(*args):
            pid = start(*args)
            os.waitpid(pid, 0)
            return pid
        start = child_module.Launch.start.__globals__['_popen']
        with mock.patch('gocept.runner.process.launch._popen', popen), Poller(
                ) as poller, self.assertLogs('gocept.runner.process'):
            child = self.start('true', poller=poller)
            self.assertEqual([(LOST_STATUS, child)], poller.poll(DEADLINE))
        self.assertEqual(LOST_STATUS, child.terminate())

    def test_where_children_need_not_be_reaped(self):
        output = self.run_program('''
            import logging
            from gocept.runner.process import LOST_STATUS
            logging.disable()
            from gocept.runner.process import roster
            roster.action = lambda *args: None  # as without sigaction()
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            for _ in range(20):
                child = Process('true')
                assert child.wait(DEADLINE) == LOST_STATUS
                child.close()
            child = Process(STUBBORN, shell=True, stdout='pipe')
            lines(child, 1)
            child.terminate(timeout=0.01)
            say(child.returncode)
            child.close()
            for options in {}, {'rlimits': {'core': 0}}:
                try:
                    Process('/does/not/exist', **options)
                except FileNotFoundError as error:
                    say(error.filename)
            say(procfs.children(os.getpid()))
            ''', PYTHONDEVMODE='')  # Popen warns of what it cannot reap
        self.assertEqual(
            [str(LOST_STATUS), *['/does/not/exist'] * 2, '[]'], output)

    def test_in_the_background_after_a_wait(self):
        ended = threading.Event()
        child = self.start('cat', stdin='pipe',
                           on_end=lambda it: ended.set())
        for _ in range(3):
            self.assertRaises(DeadlineExceeded, child.wait, 0.001)
        child.channel.write_eof()
        self.assertTrue(ended.wait(DEADLINE))

    def test_a_callback_of_the_background_though_somebody_waits(self):
        told = []
        child = self.start('cat', stdin='pipe')
        background().register(child, lambda status, it: told.append(status))
        child.channel.write_eof()
        self.assertEqual(0, child.wait(DEADLINE))
        until(lambda: told)
        self.assertEqual([0], told)

    def test_signals_while_it_waits(self):
        child = self.start('cat', stdin='pipe')

        def let_go():
            until(lambda: alarms.count > 20)
            child.channel.write_eof()
        thread = threading.Thread(target=let_go)
        with Alarms() as alarms:
            thread.start()
            self.assertEqual(0, child.wait(DEADLINE))
        thread.join(DEADLINE)

    def test_dropped_without_a_word(self):
        child = Process('true', poller=background())
        pid = child.pid
        del child
        # Its poller still knows it.
        until(lambda: procfs.stat(pid) is None)

    def test_what_is_detached_may_be_forgotten(self):
        with Poller() as poller:
            child = Process('sleep 100', detached=True, poller=poller)
            handle = self.hold(child.pid)
            self.addCleanup(os.waitpid, handle.pid, 0)
            self.addCleanup(handle.signal, signal.SIGKILL)
        del child
        gc.collect()
        self.assertFalse(handle.has_ended())


class FallbackEndTests(Fallback, EndTests):

    level = 1
    test_where_children_need_not_be_reaped = None  # nobody could know


class SignalAllTests(ProcessTestCase):

    # These queue, so that each can be counted.
    counting = '''
        counted = {signal.SIGRTMIN, signal.SIGRTMIN + 1}
        signal.pthread_sigmask(signal.SIG_BLOCK, counted)

        def pause():
            while True:
                say(os.getpid(), signal.sigwait(counted) - signal.SIGRTMIN)

        '''

    def setUp(self):
        super().setUp()
        self.addCleanup(adopt_no_more)

    def start_family(self, body, count, **options):
        """A child, and so many descendants that are held."""
        child = self.start_victim(
            textwrap.dedent(self.counting) + textwrap.dedent(body), **options)
        return child, self.children_of(child, count)

    def assertEachIsToldOnce(self, child, pids):
        for number in 0, 1:
            child.signal_all(signal.SIGRTMIN + number)
        told = lines(child, 2 * len(pids))
        self.assertEqual(
            sorted([str(pid), number] for pid in pids for number in '01'),
            sorted(told))

    def test_it_and_its_descendants_are_told_once(self):
        for options in ({}, {'setpgrp': True}, {'setsid': True},
                        {'adopt': True}, {'adopt': True, 'setsid': True}):
            with self.subTest(**options):
                child, others = self.start_family('''
                    fork(fork, int)
                    fork(os.setsid)
                    leave()
                    pause()
                    ''', 4, **options)
                self.assertEachIsToldOnce(
                    child, [child.pid, *(each.pid for each in others)])
                child.close()
                self.assertAllEnded(others)

    def test_nobody_else_is_told(self):
        sibling = self.start()
        child = self.start()
        self.assertEqual(os.getpgrp(), os.getpgid(child.pid))
        child.signal_all(signal.SIGKILL)
        self.assertEqual(-signal.SIGKILL, child.wait(DEADLINE))
        self.assertIsNone(sibling.poll())

    def test_nobody_is_waited_for(self):
        child, others = self.start_family('''
            ignore()
            leave()
            say('ready')
            pause()
            ''', 1)
        lines(child, 1)
        child.signal_all(signal.SIGTERM)
        self.assertIsNone(child.poll())
        self.assertFalse(others[0].has_ended())
        child.signal_all(signal.SIGKILL)
        self.assertEqual(-signal.SIGKILL, child.wait(DEADLINE))
        self.assertTrue(ended(others[0]))

    def test_who_is_left_when_it_has_ended_is_told_once(self):
        for options in ({}, {'setsid': True}, {'adopt': True},
                        {'adopt': True, 'setsid': True}):
            with self.subTest(**options):
                child, others = self.start_family('''
                    fork(os.setsid)
                    leave()
                    fork(int)
                    ''', 3, **options)
                self.assertEqual(0, child.wait(DEADLINE))
                self.assertEachIsToldOnce(
                    child, [each.pid for each in others])
                child.close()
                self.assertAllEnded(others)

    def test_nobody_is_left_when_it_has_ended(self):
        child = self.start('true', setsid=True)
        child.wait(DEADLINE)
        with mock.patch('os.killpg') as killpg, mock.patch('os.kill') as kill:
            child.signal_all(signal.SIGKILL)
        self.assertNotIn(mock.call(child.pid, signal.SIGKILL), [
            *killpg.call_args_list, *kill.call_args_list])


class FallbackSignalAllTests(Fallback, SignalAllTests):
    pass


class ServersTests(ProcessTestCase):
    """Daemons that are known by what they serve, and by nothing else."""

    def setUp(self):
        super().setUp()
        self.addCleanup(adopt_no_more)
        self.asked = []

    def start_daemon(self, body, **options):
        """A child, and one who has left its session, and has no mark."""
        pids = []

        def servers():
            self.asked.append(child.returncode)
            return pids
        child = self.start_victim(f'leave(overwrite)\n{body}', adopt=True,
                                  servers=servers, **options)
        [daemon] = self.children_of(child)
        until(lambda: procfs.stat(daemon.pid).parent == os.getpid())
        pids.append(daemon.pid)
        return child, daemon

    def test_one_that_a_child_has_become(self):
        child, daemon = self.start_daemon('')
        self.assertEqual(0, child.wait(DEADLINE))
        self.assertTrue(child.has_left)
        self.assertIn(child, registry.processes)
        self.assertFalse(child.finished)
        self.assertEqual(0, child.terminate())
        self.assertTrue(daemon.has_ended())
        self.assertTrue(child.finished)
        self.assertFalse(child.has_left)

    def test_one_that_ends_by_itself(self):
        child, daemon = self.start_daemon('')
        self.assertEqual(0, child.wait(DEADLINE))
        self.assertTrue(child.has_left)
        daemon.signal(signal.SIGKILL)
        until(lambda: child not in registry.processes)
        self.assertFalse(child.has_left)

    def test_one_that_a_child_becomes_while_it_is_ended(self):
        child, daemon = self.start_daemon('pause()')
        self.assertFalse(child.has_left)
        self.assertEqual([], self.asked)  # as long as it runs
        self.assertEqual(-signal.SIGTERM, child.terminate())
        self.assertTrue(daemon.has_ended())
        self.assertNotIn(None, self.asked)

    def test_one_of_several_that_are_ended_side_by_side(self):
        child, daemon = self.start_daemon('pause()')
        terminate_all([self.start(), child, self.start()])
        self.assertTrue(daemon.has_ended())

    def test_a_signal_for_all(self):
        for body in '', 'pause()':
            with self.subTest(body):
                child, daemon = self.start_daemon(body)
                if not body:
                    child.wait(DEADLINE)
                child.signal_all(signal.SIGKILL)
                child.wait(DEADLINE)
                child.signal_all(signal.SIGKILL)
                self.assertTrue(ended(daemon))

    def test_at_exit(self):
        output = self.run_program('''
            pids = []
            child = Process(victim("leave(overwrite)"), stdout='pipe',
                            adopt=True, servers=lambda: pids)
            [[_, pid]] = lines(child, 1)
            pids.append(int(pid))
            say(pid)
            ''')
        self.assertEqual(1, len(output))
        self.assertIn(getattr(procfs.stat(int(output[0])), 'state', 'X'), 'ZX')

    def test_nobody_else_is_ended(self):
        another = subprocess.Popen(['sleep', '100'])
        self.addCleanup(another.wait)
        self.addCleanup(another.kill)
        process = self.start()
        child = self.start('true', servers=lambda: [
            os.getppid(), process.pid, 2 ** 22 + 1])
        child.wait(DEADLINE)
        self.assertFalse(child.has_left)
        self.assertEqual(0, child.terminate())
        self.assertIsNone(another.poll())
        self.assertIsNone(process.poll())

    def test_they_cannot_be_told(self):
        child = self.start_victim('leave()', servers=lambda: 1/0)
        [leaver] = self.children_of(child)
        child.wait(DEADLINE)
        with self.assertLogs('gocept.runner.process', 'ERROR') as logs:
            child.terminate()
        self.assertIn('ZeroDivisionError', logs.output[0])
        self.assertTrue(leaver.has_ended())

    def test_a_copy_asks_nobody(self):
        child, daemon = self.start_daemon('')
        child.wait(DEADLINE)
        pid = os.fork()
        if not pid:
            os._exit(child.has_left)
        self.assertEqual(0, os.waitpid(pid, 0)[1])
        self.assertEqual([], self.asked)
        self.assertFalse(daemon.has_ended())


class FallbackServersTests(Fallback, ServersTests):
    pass


class DeafTests(support.TestCase):
    """The signals that end a child, where we do not listen to them."""

    STATUS = 'grep -e SigBlk -e SigIgn /proc/self/status'

    def setUp(self):
        super().setUp()
        self.addCleanup(support.end_background)

    def is_deaf(self, stop_signal, **options):
        with Process(self.STATUS, stop_signal=stop_signal, stdin='null',
                     stdout='pipe', **options) as child:
            return any(int(mask, 16) >> (stop_signal - 1) & 1
                       for _, mask in lines(child, 2))

    def test_blocked(self):
        def run():
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
            # It waits for us, and is not for the child.
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
            try:
                self.assertFalse(self.is_deaf(signal.SIGTERM))
                self.assertFalse(
                    self.is_deaf(signal.SIGTERM, die_with_parent=True))
                with Process('sleep 100') as child:
                    self.assertEqual(-signal.SIGTERM, child.terminate())
            finally:
                signal.sigwait([signal.SIGTERM])

        with ThreadPoolExecutor(1) as threads:
            threads.submit(run).result(DEADLINE)

    def test_ignored(self):
        for signum in signal.SIGINT, signal.SIGTERM, signal.SIGQUIT:
            before = signal.signal(signum, signal.SIG_IGN)
            try:
                self.assertFalse(self.is_deaf(signum))
                self.assertFalse(self.is_deaf(signum, rlimits={'core': 0}))
            finally:
                signal.signal(signum, before)

    def test_as_the_caller_wants_it(self):
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.addCleanup(signal.signal, signal.SIGINT, before)
        self.assertTrue(self.is_deaf(signal.SIGINT, restore_signals=False))


class SystemTests(ProcessTestCase):

    def test_children_need_linux(self):
        # Where most is not there that they need.
        output = self.run_program('''
            import time
            for module, names in (
                    (os, ['pidfd_open', 'waitid']),
                    (signal, ['pidfd_send_signal']),
                    (time, ['CLOCK_BOOTTIME'])):
                for name in names:
                    delattr(module, name)
            for name in [name for name in sys.modules
                         if name.startswith('gocept.runner')]:
                del sys.modules[name]
            sys.platform = 'atari'
            from gocept.runner.process import Process
            try:
                Process('true')
            except NotImplementedError as error:
                say(error)
            ''')
        self.assertEqual([
            'children can be started on Linux 4.18 or later only, and this '
            'system is atari'], output)


class ChannelTests(ProcessTestCase):

    def test_none(self):
        child = self.start()
        self.assertIsNone(child.channel)
        self.assertIsNone(child.stderr)
        self.assertEqual([], list(child.channels()))

    def test_both_ways(self):
        child = self.start('cat', stdin='pipe', stdout='pipe')
        child.channel.write(b'hello\n')
        self.assertEqual([['hello']], lines(child, 1))
        child.channel.write_eof()
        self.assertEqual(0, child.wait(DEADLINE))

    def test_only_to_the_child(self):
        child = self.start('sh -c "read line; exit $line"', stdin='pipe')
        child.channel.write(b'7\n')
        self.assertEqual(7, child.wait(DEADLINE))

    def test_errors(self):
        child = self.start('echo out; echo err >&2', shell=True,
                           stdout='pipe', stderr='pipe')
        self.assertEqual((b'out', b'\n'),
                         child.channel.read_until(b'\n', DEADLINE))
        self.assertEqual((b'err', b'\n'),
                         child.stderr.read_until(b'\n', DEADLINE))
        self.assertEqual([child.channel, child.stderr],
                         list(child.channels()))

    def test_options(self):
        child = self.start('cat', stdin='pipe', stdout='pipe',
                           buffering='line', encoding='utf-8', limit=4,
                           high_water=2)
        self.assertEqual('line', child.channel.buffering)
        child.channel.write('äöüß\n')
        self.assertEqual(('äöüß', '\n'),
                         child.channel.read_until('\n', DEADLINE))
        self.assertIn("'cat'", repr(child.channel))

    def test_wrong_options_start_nothing(self):
        for options in {'buffering': 'block'}, {'encoding': 'no-such'}:
            with self.subTest(options), mock.patch(
                    'gocept.runner.process.launch._popen') as popen:
                with self.assertRaises((ValueError, LookupError)):
                    self.start('cat', stdout='pipe', **options)
                self.assertFalse(popen.called)

    def test_what_is_kept_is_sent_in_the_background(self):
        child = self.start('wc -c', stdin='pipe', stdout='pipe')
        child.channel.write(b'x' * 1_000_000)
        child.channel.write_eof()
        self.assertEqual([['1000000']], lines(child, 1))

    def test_read_after_the_end(self):
        child = self.start('echo last words', stdout='pipe')
        child.wait(DEADLINE)
        self.assertEqual([['last', 'words']], lines(child, 1))


class ForkTests(ProcessTestCase):

    def in_a_fork(self, look):
        """What a forked copy of this process sees, as text."""
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                os.write(write, repr(look()).encode())
            except BaseException as error:
                os.write(write, repr(error).encode())
            finally:
                os._exit(0)
        os.close(write)
        with open(read) as reader:
            seen = reader.read()
        os.waitpid(pid, 0)
        return seen

    def test_a_copy_knows_nothing(self):
        child = self.start('cat', stdin='pipe')
        self.assertEqual('None', self.in_a_fork(child.poll))
        for method in (child.wait, child.terminate,
                       lambda: child.signal_all(signal.SIGKILL)):
            self.assertRegex(self.in_a_fork(method),
                             'RuntimeError.*a child of process '
                             f'{os.getpid()}, of which this is a fork')
        self.assertIsNone(child.poll())

    def test_a_copy_closes_only_what_is_its_own(self):
        child = self.start('cat', stdin='pipe', stdout='pipe')

        def close():
            with child:
                pass
            return child.channel.closed
        self.assertEqual('True', self.in_a_fork(close))
        child.channel.write(b'still there\n')
        self.assertEqual([['still', 'there']], lines(child, 1))

    def test_a_copy_of_one_that_ends_meanwhile(self):
        child = self.start()
        read, write = os.pipe()
        self.addCleanup(os.close, write)
        pid = os.fork()
        if not pid:
            os.close(write)
            os.read(read, 1)
            os._exit(0)
        os.close(read)
        child.send_signal(signal.SIGKILL)
        self.assertEqual(-signal.SIGKILL, child.wait(DEADLINE))
        os.write(write, b'.')
        os.waitpid(pid, 0)

    def test_a_copy_has_children_of_its_own(self):
        self.start()

        def run():
            child = Process('exit 3', shell=True)
            return child.wait(DEADLINE), child.mark.split('.')[0] == str(
                os.getpid())
        self.assertEqual('(3, True)', self.in_a_fork(run))

    def test_the_exit_of_a_copy_ends_nothing(self):
        output = self.run_program('''
            child = Process('cat', stdin='pipe', stdout='pipe')
            for leave in sys.exit, os._exit:
                pid = os.fork()
                if not pid:
                    leave(3)
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                child.channel.write(b'still there\\n')
                say(status, *lines(child, 1)[0])
            ''')
        self.assertEqual(['3 still there'] * 2, output)

    def test_a_copy_ends_its_own_at_exit(self):
        output = self.run_program('''
            mine = Process('cat', stdin='pipe', stdout='pipe')
            pid = os.fork()
            if not pid:
                its = Process(victim("pause()"))
                print(its.mark, flush=True)
                sys.exit(3)
            say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            mine.channel.write(b'still there\\n')
            say(*lines(mine, 1)[0])
            ''')
        self.assertEqual([], marked(output[:1]))
        self.assertEqual(['3', 'still there'], output[1:])


    DAEMON = '''
            import gc
            from gocept.runner.channel import PipeChannel, SocketChannel
            from gocept.runner.poller import Poller
            import socket

            def make():
                """Of each kind that has descriptors."""
                poller = Poller()
                channels = [PipeChannel(*os.pipe())] + [
                    SocketChannel(sock) for sock in socket.socketpair()]
                for channel in channels:
                    poller.register(channel)
                return [Process('cat', stdin='pipe', stdout='pipe'),
                        *channels, poller]

            def become_daemon():
                """Returns files that have the numbers of what was closed."""
                os.closerange(3, 256)
                return [open(os.devnull) for _ in range(60)]

            def closed(files):
                found = 0
                for file in files:
                    try:
                        os.fstat(file.fileno())
                    except OSError:
                        found += 1
                return found
            owned = make()
            '''

    def test_a_daemon_keeps_its_files(self):
        # A number may be that of a file by the time that its object of the
        # parent is closed, forgotten, or told of another fork.
        output = self.run_program(self.DAEMON + '''
            if os.fork():
                say(os.wait()[1])
                sys.exit()
            files = become_daemon()
            if os.fork():
                os._exit(os.wait()[1])
            say(closed(files))
            try:
                for each in reversed(owned):
                    each.close()
            except Exception as error:
                say(error)
            say(closed(files))
            del owned, each
            gc.collect()
            say(closed(files))
            child = Process('true')
            say(child.wait(), closed(files))
            child.close()
            say(closed(files))
            ''')
        self.assertEqual(['0', '0', '0', '0 0', '0', '0'], output)

    def test_what_is_forgotten_closes_no_file(self):
        output = self.run_program(self.DAEMON + '''
            warnings.simplefilter('ignore')
            if os.fork():
                say(os.wait()[1])
                sys.exit()
            files = become_daemon()
            del owned
            gc.collect()
            say(closed(files))
            ''')
        self.assertEqual(['0', '0'], output)


class FallbackForkTests(Fallback, ForkTests):
    pass


class DieWithParentTests(ProcessTestCase):

    def test_it_outlives_the_thread_that_has_started_it(self):
        program = self.start_program('''
            def start():
                started.append((threading.get_native_id(), Process(
                    victim('say(*sys.stdin.readline().split())\\npause()'),
                    stdin='pipe', stdout='pipe', die_with_parent=True)))
            started = []
            thread = threading.Thread(target=start)
            thread.start()
            thread.join()
            [(number, child)] = started
            # For the system, too, which would have told the child by then.
            until(lambda: not os.path.exists(f'/proc/self/task/{number}'))
            child.channel.write(b'still there\\n')
            say('child', child.pid, *lines(child, 1)[0])
            signal.pause()
            ''')
        program.wait_for('still there')
        child = self.hold(program.output.split()[1])
        self.addCleanup(child.signal, signal.SIGKILL)
        self.assertFalse(child.has_ended())
        program.send(signal.SIGKILL)
        self.assertTrue(ended(child))
        self.assertEqual(-signal.SIGKILL, program.end())


class ExitTests(ProcessTestCase):
    maxDiff = None
    """What inherits the output of a program is waited for by `run_program`.
    """

    SOME_CHILDREN = '''
        def some_children():
            started = [
                Process(victim('say("child")\\npause()'), stdout='pipe'),
                Process(victim('ignore()\\nsay("child")\\npause()'),
                        stdout='pipe', stop_timeout=0.05),
                Process(victim('leave()\\nleave(ignore)\\npause()'),
                        stdout='pipe', stop_timeout=0.05),
                Process(victim('leave()'), stdout='pipe'),
                Process(victim('fork(overwrite)'), stdout='pipe',
                        setpgrp=True)]
            for child, count in zip(started, [1, 1, 2, 1, 1]):
                lines(child, count)
            for child in started[3:]:
                child.wait(DEADLINE)
                child.channel.close()
            say(*[child.mark for child in started])

        '''

    def assertEndsAll(self, how, status=0, more=(), **environment):
        output = self.run_program(
            textwrap.dedent(self.SOME_CHILDREN) + textwrap.dedent(how),
            status, **environment)
        self.assertEqual([], marked(output[0].split()))
        self.assertEqual(list(more), output[1:])

    def test_nothing_is_printed_in_development_mode(self):
        self.assertEndsAll('some_children()', PYTHONDEVMODE='1')

    def test_side_by_side(self):
        # The last one to be told is not told after the first one has ended.
        output = self.run_program('''
            read, write = os.pipe()
            children = [Process(victim(f"""
                def told(*args):
                    os.write(2, b'told\\\\n')
                    os.close({write})
                    os.read({read}, 1)  # until all were told
                    os._exit(0)
                signal.signal(signal.SIGTERM, told)
                say('ready')
                pause()
                """), stdout='pipe', stop_timeout=DEADLINE, pass_fds=[
                read, write], on_end=lambda child: say('ended'))
                for _ in range(5)]
            os.close(write)
            for child in children:
                lines(child, 1)
            ''')
        self.assertEqual(['told'] * 5 + ['ended'] * 5, output)

    def test_what_is_detached_stays(self):
        self.run_program(
            f'''
            os.environ['NOTIFY_SOCKET'] = 'x'
            child = Process(victim("""
                say(os.getpid(), sorted(os.environ.items()))
                pause()
                """), detached=True, stdin='null',
                stdout={str(self.dir / 'out')!r}, stderr='null')
            until({str(self.dir / 'out')!r}.__class__ and (
                lambda: os.path.getsize({str(self.dir / 'out')!r})))
            ''', GOCEPT_RUNNER_CHILD='1.2.3')
        pid, environment = (self.dir / 'out').read_text().split(' ', 1)
        handle = self.hold(pid)
        self.addCleanup(handle.signal, signal.SIGKILL)
        self.assertFalse(handle.has_ended())
        self.assertEqual(handle.pid, procfs.stat(handle.pid).session)
        self.assertNotIn('GOCEPT_RUNNER_CHILD', environment)
        self.assertNotIn('NOTIFY_SOCKET', environment)

    def test_a_detached_program_ends_its_own(self):
        output = self.run_program('''
            child = Process([sys.executable, '-c', """if True:
                from gocept.runner.process import Process
                from gocept.runner.tests.victims import victim
                child = Process(victim("pause()"))
                print(child.mark)
                """], detached=True)
            assert child.wait(DEADLINE) == 0
            ''')
        self.assertEqual([], marked(output))
        self.assertEqual(1, len(output))

    def test_one_whose_start_a_signal_handler_has_interrupted(self):
        output = self.run_program('''
            from gocept.runner.process import launch, marks

            def popen(*args):
                start(*args)
                raise KeyboardInterrupt  # as soon as the first one is there
            start, launch._popen = launch._popen, popen
            say(marks.our_mark())
            try:
                Process(victim('pause()'))
            except KeyboardInterrupt:
                pass
            say(len(procfs.children(os.getpid())))
            ''')
        [mark, count] = output
        self.assertEqual('0', count)
        self.assertEqual([], [pid for pid in procfs.pids() if any(
            each.startswith(mark) for each in descendants.marks(pid))])

    def test_without_descriptors(self):
        self.assertEndsAll('''
            some_children()
            held = []
            try:
                while True:
                    held.append(os.dup(0))
            except OSError:
                pass
            ''')


class MoreExitTests(ExitTests):

    level = 2

    def test_the_end_of_the_script(self):
        self.assertEndsAll('some_children()')

    def test_an_exit(self):
        self.assertEndsAll('''
            some_children()
            sys.exit(3)
            ''', 3)

    def test_an_exception(self):
        output = self.run_program('''
            child = Process(victim('pause()'))
            say(child.mark)
            1/0
            ''', 1)
        self.assertEqual([], marked(output[:1]))
        self.assertIn('ZeroDivisionError', output[-1])

    def test_nothing_was_started(self):
        self.assertEqual([], self.run_program(''))

    def test_all_was_closed(self):
        self.assertEqual(['0'], self.run_program('''
            with Process('true') as child:
                child.wait(DEADLINE)
            say(child.returncode)
            '''))

    def test_a_handler_of_the_program_has_its_turn_before(self):
        output = self.run_program('''
            import atexit
            child = Process('cat', stdin='pipe', stdout='pipe')
            def talk():
                child.channel.write(b'still there\\n')
                say(*lines(child, 1)[0])
            atexit.register(talk)
            ''')
        self.assertEqual(['still there'], output)


class FallbackExitTests(Fallback, MoreExitTests):
    pass


class FaultTests(ProcessTestCase):

    OPTIONS = (
        {},
        {'rlimits': {'core': 0}},
        {'stdin': 'pipe', 'stdout': 'pipe', 'stderr': 'pipe'},
        {'stdin': 'pipe', 'stdout': 'pipe', 'stderr': 'pipe',
         'rlimits': {'core': 0}, 'setpgrp': True},
    )

    def assertStartFails(self, error=OSError, **options):
        """Whatever was started is dead and reaped, and nothing is left."""
        with self.assertRaises(error):
            Process('sleep 100', **options)
        self.assertNothingLeft()

    def test_each_call_fails(self):
        error = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        for name in ('os.pidfd_open', 'gocept.runner.process.child.hold',
                     'gocept.runner.poller.Poller.register',
                     'gocept.runner.poller.Poller.send_for',
                     'gocept.runner.process.child.PipeChannel',
                     'os.pipe', 'os.set_blocking', 'os.get_blocking',
                     'fcntl.fcntl', 'subprocess.Popen',
                     'subprocess._fork_exec'):
            for options in self.OPTIONS:
                with self.subTest(name, options=options):
                    self.fail_each_call(name, error, options)

    def fail_each_call(self, name, error, options):
        original = pkgutil.resolve_name(name)
        for number in itertools.count(1):
            calls = itertools.count(1)

            def call(*args, **kw):
                if next(calls) == number:
                    raise error
                return original(*args, **kw)
            with mock.patch(name, call):
                try:
                    child = Process('sleep 100', **options)
                except ShortageError as raised:
                    self.assertIs(error, raised.__cause__)
                    self.assertEqual(errno.EMFILE, raised.errno)
                    child = None
            if child is not None:
                child.close()
                break
            self.assertNothingLeft()
        self.assertLess(number, 20)

    def test_the_poller_is_closed(self):
        poller = Poller()
        poller.close()
        self.assertStartFails(RuntimeError, poller=poller)

    def test_the_program_does_not_exist(self):
        for options in self.OPTIONS:
            with self.subTest(options):
                with self.assertRaises(FileNotFoundError) as raised:
                    Process('/does/not/exist', **options)
                self.assertEqual('/does/not/exist', raised.exception.filename)
                self.assertNothingLeft()

    def test_no_descriptors_are_left(self):
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        for options in self.OPTIONS:
            refused = 0
            for spare in range(40):
                fds = self.take_descriptors(spare, limits[1])
                try:
                    with Process('sleep 100', **options):
                        pass
                except OSError as error:
                    self.assertEqual(errno.EMFILE, error.errno)
                    refused += 1
                else:
                    break
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
                    for fd in fds:
                        os.close(fd)
                with self.subTest(options, spare=spare):
                    self.assertNothingLeft()
            self.assertGreater(refused, 1)
            self.assertLess(refused, 30)

    def take_descriptors(self, spare, hard):
        """Leave so many descriptors that can be opened."""
        highest = max(map(int, support.open_descriptors()))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 30, hard))
        fds = []
        with contextlib.suppress(OSError):
            while True:
                fds.append(os.dup(0))
        for _ in range(spare):
            if fds:
                os.close(fds.pop())
        return fds

    def test_ended_without_descriptors(self):
        output = self.run_program('''
            import resource
            resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
            child = Process(victim("""
                fork(ignore)
                fork(int)
                leave()
                leave(ignore)
                for _ in range(10):
                    fork(int)
                pause()
                """), stdout='pipe', adopt=True)
            lines(child, 14)
            held = []
            try:
                while True:
                    held.append(os.dup(0))
            except OSError:
                pass
            child.terminate(timeout=0.1)
            os.close(held.pop())
            say(child.returncode, marked([child.mark]))
            child.close()
            ''')
        self.assertEqual(['-15 []'], output)

    def test_other_threads_open_and_close_files(self):
        stop = threading.Event()
        wrong = []

        def use_files(number):
            path = self.dir / str(number)
            text = f'{number}' * 100
            while not stop.is_set():
                try:
                    with open(path, 'w+') as file:
                        file.write(text)
                        file.seek(0)
                        if file.read() != text:
                            wrong.append('another file')
                except OSError as error:
                    wrong.append(error)
        threads = [threading.Thread(target=use_files, args=(number,))
                   for number in range(3)]
        for thread in threads:
            thread.start()
        try:
            for number in range(20):
                child = Process('cat', stdin='pipe', stdout='pipe',
                                stderr='pipe')
                child.channel.write(b'%d\n' % number)
                self.assertEqual([[str(number)]], lines(child, 1))
                child.close()
                with self.assertRaises(FileNotFoundError):
                    Process('/does/not/exist', stdin='pipe', stdout='pipe')
        finally:
            stop.set()
            for thread in threads:
                thread.join(DEADLINE)
        self.assertEqual([], wrong)


class FallbackFaultTests(Fallback, FaultTests):
    pass


class SomeTests(ProcessTestCase):

    def test_one_after_another(self):
        self.start_and_end(40)

    def start_and_end(self, count):
        for number in range(count):
            child = Process('true', stdin='pipe', stdout='pipe',
                            setpgrp=bool(number % 2))
            if number % 3:
                self.assertEqual(0, child.wait(DEADLINE))
            child.close()

    def test_at_once(self):
        children = [self.start('cat', stdin='pipe', stdout='pipe',
                               setpgrp=bool(number % 2))
                    for number in range(40)]
        terminate_all(children)
        self.assertEqual([-signal.SIGTERM] * 40,
                         [child.returncode for child in children])


class FallbackSomeTests(Fallback, SomeTests):
    pass


class ManyTests(SomeTests):

    level = 2

    def test_one_after_another(self):
        self.start_and_end(1000)

    def test_at_once(self):
        children = [self.start(STUBBORN, shell=True, stdout='pipe',
                               stdin='pipe', stop_timeout=0.5)
                    for _ in range(200)]
        for child in children:
            lines(child, 1)
        # A busy machine may need longer than usual to kill so many.
        with mock.patch.object(ending, 'KILL_TIMEOUT', DEADLINE):
            terminate_all(children)
        self.assertEqual([-signal.SIGKILL] * 200,
                         [child.returncode for child in children])


class FallbackManyTests(Fallback, ManyTests):
    pass


class PidTests(ProcessTestCase):
    """In a namespace, where nobody else takes the next number."""

    level = 2

    def run_program(self, body, status=0, proc=('--mount-proc',),
                    **environment):
        script = self.write('program.py', textwrap.dedent(
            self.preamble) + REUSE + textwrap.dedent(body))
        command = ['unshare', '--pid', '--fork', '--kill-child', *proc]
        if shutil.which('unshare') is None or subprocess.run(
                [*command, 'sh', '-c', 'test -w '
                 '/proc/sys/kernel/ns_last_pid'],
                stderr=subprocess.DEVNULL).returncode:
            self.skipTest('needs a namespace of its own')
        result = subprocess.run(
            [*command, sys.executable, script], cwd=self.dir, text=True,
            env=support.child_environment(**environment),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=DEADLINE)
        self.assertEqual(status, result.returncode, result.stdout)
        return result.stdout.splitlines()

    def test_the_group_of_another_with_the_same_number(self):
        output = self.run_program('''
            child = Process('sleep 100', setpgrp=True)
            child.send_signal(signal.SIGKILL)
            child.wait(DEADLINE)
            until(lambda: descendants.clock() > child.ended_at)
            other = reuse(child.pid)
            child.signal_group(signal.SIGKILL)
            child.terminate(timeout=0)
            say(os.waitpid(other, os.WNOHANG))
            ''')
        self.assertEqual(['(0, 0)'], output)

    def test_a_handle_of_another_with_the_same_number(self):
        output = self.run_program('''
            pid = fork()
            handle = child.hold(pid)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            reuse(pid)
            handle.signal(signal.SIGKILL)
            say(handle.has_ended(), os.waitpid(pid, os.WNOHANG))
            handle.close()
            ''')
        self.assertEqual(['True (0, 0)'], output)

    def test_the_proc_of_another_namespace_has_no_processes_of_ours(self):
        output = self.run_program("""
            child = Process(['sh', '-c', 'setsid sh -c "read number rest'
                ' </proc/self/stat; echo \\\\$number; exec sleep 100" & wait'],
                stdin='null', stdout='pipe')
            other = reuse(int(lines(child, 1)[0][0]))
            child.terminate()
            say(os.waitpid(other, os.WNOHANG))
            """, proc=())
        self.assertIn('another PID namespace', output[0])
        self.assertEqual(['(0, 0)'], output[1:])


class FallbackPidTests(Fallback, PidTests):
    pass


REUSE = '''
def fork():
    """A process in a group of its own."""
    pid = os.fork()
    if not pid:
        os.setpgid(0, 0)
        os.execlp('sleep', 'sleep', '100')
    while os.getpgid(pid) != pid:
        pass
    return pid

def reuse(pid):
    """Another process with the number of one that has ended."""
    with open('/proc/sys/kernel/ns_last_pid', 'w') as file:
        file.write(str(pid - 1))
    assert fork() == pid
    return pid

'''
