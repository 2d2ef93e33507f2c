import contextlib
import os
import signal
from unittest import mock

from gocept.runner.process import guard, guardian, procfs
from gocept.runner.process.guard import guard as ours
from gocept.runner.process.registry import guarding
from gocept.runner.tests.process.test_child import ProcessTestCase
from gocept.runner.tests.victims import ended, until


class GuardingTests(ProcessTestCase):
    """The process that is there meanwhile."""

    def guardians(self):
        return [pid for pid in procfs.children(os.getpid())
                if guardian.__file__ in procfs.command_line(pid)]

    def guardian(self):
        """Its handle, when it is one."""
        return self.hold(until(self.guardians)[0])

    def test_without_children_there_is_none(self):
        with guarding():
            self.assertIsNone(ours._guardian)

    def test_not_for_children_that_outlive_us(self):
        with guarding():
            child = self.start('true', detached=True)
            self.assertIsNone(ours._guardian)
            child.wait()

    def test_it_begins_with_the_first_child_and_ends_with_the_block(self):
        with guarding():
            self.start()
            self.start()
            handle = self.guardian()
            self.assertEqual([handle.pid], self.guardians())
        self.assertTrue(handle.has_ended())

    def test_it_begins_with_the_block_if_there_is_a_child(self):
        self.start()
        with guarding():
            self.guardian()

    def test_one_is_enough_for_all(self):
        self.start()
        with guarding():
            handle = self.guardian()
            with guarding():
                self.assertEqual([handle.pid], self.guardians())
            self.assertFalse(handle.has_ended())
        self.assertTrue(handle.has_ended())

    def test_one_that_was_killed_is_replaced(self):
        with guarding():
            self.start()
            handle = self.guardian()
            handle.signal(signal.SIGKILL)
            self.assertTrue(ended(handle))
            self.start()
            self.assertNotEqual(handle.pid, self.guardian().pid)

    def test_signals_to_a_service_do_not_end_it(self):
        with guarding():
            self.start()
            handle = self.guardian()
            until(lambda: self.ignores(handle.pid, signal.SIGTERM))
            handle.signal(signal.SIGTERM)
            handle.signal(signal.SIGHUP)
            self.start().terminate()
            self.assertFalse(handle.has_ended())

    def ignores(self, pid, signum):
        with open(f'/proc/{pid}/status') as file:
            [mask] = [line.split()[1] for line in file
                      if line.startswith('SigIgn:')]
        return int(mask, 16) >> (signum - 1) & 1

    def test_it_is_not_that_of_a_fork(self):
        with guarding():
            self.start()
            handle = self.guardian()
            pid = os.fork()
            if not pid:
                status = 1
                with contextlib.suppress(BaseException):
                    with guarding():
                        pass
                    status = 0 if ours._guardian is None else 2
                os._exit(status)
            self.assertEqual(0, os.waitpid(pid, 0)[1])
            self.assertFalse(handle.has_ended())

    def test_children_are_started_without_it(self):
        with (mock.patch.object(guard, 'spawn', side_effect=OSError('full')),
              self.assertLogs('gocept.runner.process', 'WARNING') as logs,
              guarding()):
            self.start()
        self.assertIn('if it is killed: full', logs.output[0])


class EndTests(ProcessTestCase):
    """What it does when we end."""

    preamble = ProcessTestCase.preamble + '''
        import resource
        from gocept.runner.process.registry import guarding
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

        '''

    PROGRAM = '''
        with guarding():
            child = Process(victim("""
                leave()
                say('child', os.getpid())
                pause()
                """), stdout='pipe', {options})
            for words in lines(child, 2):
                say(*words)
            {last}
        '''

    def check(self, last, options='', end=lambda program: None):
        program = self.start_program(self.PROGRAM.format(
            last=last, options=options))
        for _ in range(2):
            program.wait_for('child')
        handles = [self.hold(line.split()[1])
                   for line in program.output.splitlines()
                   if line.startswith('child')]
        self.assertEqual(2, len(handles))
        end(program)
        for handle in handles:
            self.assertTrue(ended(handle))
        return program.end()

    def test_children_end_and_daemons_that_they_have_become(self):
        self.assertEqual(-signal.SIGKILL, self.check(
            'signal.pause()', end=lambda program: program.process.kill()))

    def test_also_if_we_end_at_once(self):
        self.assertEqual(-signal.SIGABRT, self.check('os.abort()'))

    def test_who_ignores_the_signal_is_killed(self):
        body = self.PROGRAM.replace('leave()', 'ignore(); leave()')
        with mock.patch.object(self, 'PROGRAM', body, create=True):
            self.check('os.kill(os.getpid(), signal.SIGKILL)')

    def test_also_if_we_become_another_program_that_ends(self):
        self.check("os.execvp('true', ['true'])")


class WaitTests(ProcessTestCase):
    """What the script waits for."""

    def setUp(self):
        super().setUp()
        self.enterContext(mock.patch.object(guardian, '_SOON', 0.05))

    def without_pidfds(self):
        return mock.patch.object(
            os, 'pidfd_open', create=True, side_effect=OSError)

    def wait(self, parent, pipe, write):
        """In a child: wait for the end of `parent`, and write what it was."""
        answer = b'error'
        with contextlib.suppress(BaseException):
            os.dup2(pipe, 0)
            answer = b'%d' % guardian._ends(parent)
        os.write(write, answer)
        os._exit(0)

    def answer(self, of_child):
        """What is written by a child whose parent closes the pipe."""
        pipe, closed = os.pipe()
        read, write = os.pipe()
        me = os.getpid()
        pid = os.fork()
        if not pid:
            if of_child:
                me = os.getpid()
                if os.fork():
                    os._exit(0)
            os.close(closed)
            self.wait(me, pipe, write)
        os.close(closed)
        os.close(write)
        os.close(pipe)
        with open(read, 'rb') as file:
            answer = file.read()
        os.waitpid(pid, 0)
        return answer

    def test_a_parent_that_has_become_another_program_goes_on(self):
        self.assertEqual(b'0', self.answer(of_child=False))
        with self.without_pidfds():
            self.assertEqual(b'0', self.answer(of_child=False))

    def test_a_parent_that_ends(self):
        self.assertEqual(b'1', self.answer(of_child=True))
        with self.without_pidfds():
            self.assertEqual(b'1', self.answer(of_child=True))
