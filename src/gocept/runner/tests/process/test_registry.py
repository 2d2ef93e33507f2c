import os
import signal
import time
from unittest import mock

from gocept.runner.process import procfs, registry, terminate_all
from gocept.runner.tests.process.test_child import Fallback, ProcessTestCase
from gocept.runner.tests.support import DEADLINE
from gocept.runner.tests.victims import looks_for_marks, until


class UnfinishedTests(ProcessTestCase):

    def test_until_it_has_ended(self):
        child = self.start()
        self.assertIn(child, registry.processes)
        child.terminate()
        self.assertNotIn(child, registry.processes)

    def test_all_are_ended(self):
        children = [self.start() for _ in range(3)]
        registry.end_all()
        self.assertFalse(any(each.returncode is None for each in children))

    def test_a_fork_ends_nothing(self):
        child = self.start()
        registry._at_exit(os.getpid() + 1)
        self.assertIsNone(child.poll())


class FinishedTests(ProcessTestCase):

    def test_who_was_ended_is_not_looked_for_again(self):
        children = [self.start(stdout='pipe') for _ in range(5)]
        self.assertFalse(any(child.finished for child in children))
        with looks_for_marks() as looks:
            terminate_all(children)
            for child in children:
                child.terminate()
                child.close()
            terminate_all(children)
        self.assertEqual(1, looks.call_count)
        self.assertTrue(all(child.finished for child in children))

    def test_who_has_ended_by_himself_is(self):
        child = self.start_victim('leave()')
        [leaver] = self.children_of(child)
        child.wait(DEADLINE)
        self.assertFalse(child.finished)
        child.terminate()
        self.assertTrue(leaver.has_ended())
        self.assertTrue(child.finished)

    def test_after_an_exception_it_is_not(self):
        child = self.start()
        with mock.patch('gocept.runner.process.registry.end',
                        side_effect=KeyboardInterrupt):
            with self.assertRaises(KeyboardInterrupt):
                child.terminate()
        self.assertFalse(child.finished)


class AtMostTests(ProcessTestCase):
    """A time for all, however long each of them may take."""

    def test_who_would_take_longer_is_killed(self):
        children = [self.start_stubborn(stop_timeout=3600) for _ in range(3)]
        terminate_all(children, at_most=0.05)
        self.assertEqual([-signal.SIGKILL] * 3,
                         [each.returncode for each in children])
        self.assertEqual([True] * 3, [each.killed for each in children])

    def test_who_obeys_is_not(self):
        child = self.start(stop_timeout=3600)
        terminate_all([child], at_most=DEADLINE)
        self.assertEqual(-signal.SIGTERM, child.returncode)
        self.assertFalse(child.killed)

    def test_it_takes_that_long(self):
        child = self.start_stubborn(stop_timeout=3600)
        began = time.monotonic()
        terminate_all([child], at_most=0.05)
        self.assertGreaterEqual(time.monotonic() - began, 0.05)

    def test_the_time_of_a_child_may_be_shorter(self):
        child = self.start_stubborn(stop_timeout=0)
        terminate_all([child], at_most=3600)
        self.assertTrue(child.killed)

    def test_the_time_of_the_call_may_be_longer(self):
        child = self.start_stubborn()
        terminate_all([child], timeout=3600, at_most=0)
        self.assertTrue(child.killed)
        child = self.start_stubborn()
        terminate_all([child], timeout=0, at_most=3600)
        self.assertTrue(child.killed)


class FallbackAtMostTests(Fallback, AtMostTests):
    pass


class ExitTimeoutTests(ProcessTestCase):

    def test_five_seconds_or_less_unless_more_are_wanted(self):
        for stop_timeout, expected in (
                (None, 5), (3, 3), (10, 10), (30, 30), (3600, 30)):
            child = self.start('true', stop_timeout=stop_timeout)
            self.assertEqual(expected, child.exit_timeout)

    def test_it_counts_at_exit(self):
        output = self.run_program('''
            children = [Process(STUBBORN, shell=True, stdout='pipe',
                                on_end=lambda it: say(it.returncode))
                        for _ in range(3)]
            for child in children:
                lines(child, 1)
                child.exit_timeout = 0.05
            ''')
        self.assertEqual(['-9'] * 3, output)

    def test_a_callback_is_not_cut_short(self):
        output = self.run_program('''
            import threading
            from gocept.runner.process import registry
            registry._CALLBACKS_TIMEOUT = DEADLINE
            begun = threading.Event()

            def on_end(child):
                begun.set()
                until(lambda: registry._called)  # the exit has begun
                say(child.returncode)

            child = Process('true', on_end=on_end)
            begun.wait()
            ''')
        self.assertEqual(['0'], output)

    def test_it_counts_for_daemons(self):
        output = self.run_program('''
            child = Process(victim('leave(ignore)'), stdout='pipe')
            child.exit_timeout = 0.05
            [[_, pid]] = lines(child, 1)
            child.wait()
            say(pid)
            ''')
        self.assertTrue(is_dead(output[0]))


def is_dead(pid):
    return procfs.look(int(pid)).state in 'ZX'


class InterruptTests(ProcessTestCase):
    """Ctrl-C at exit."""

    def interrupt(self, body, count):
        program = self.start_program(f'''
            import atexit
            children = [
                Process(STUBBORN, shell=True, stdout='pipe'),
                Process(victim("leave(ignore)\\nleave(ignore)"),
                        stdout='pipe', stop_timeout=1000),
                Process(victim("fork(ignore, signal.SIGTERM, signal.SIGINT)"),
                        stdout='pipe', setpgrp=True, stop_timeout=1000)]
            pids = [*(children[0].pid for _ in lines(children[0], 1)), *(
                pid for child, count in [(children[1], 2), (children[2], 1)]
                for _, pid in lines(child, count))]
            children[1].wait()
            children[2].wait()
            from gocept.runner.process import ending
            def signalled(handle, signum):
                send(handle, signum)
                if signum == signal.SIGTERM:
                    told.add(handle.pid)
                    if len(told) == 3:
                        say('ending', *pids)
            told = set()
            from gocept.runner.process.pidfd import Handle
            signal.signal(signal.SIGURG, lambda *args: None)
            send, Handle.signal = Handle.signal, signalled
            {body}
            ''')
        program.wait_for('ending')
        pids = program.output.splitlines()[-1].split()[1:]
        self.assertEqual(4, len(pids))
        for _ in range(count):
            program.send(signal.SIGINT)

        def has_ended():
            # So that it sees the others, if these came just before a system
            # call; in the end, Python has it ignored.
            program.send(signal.SIGURG)
            return program.process.poll() is not None
        until(has_ended)
        status = program.end()
        self.assertEqual([], [pid for pid in pids if not is_dead(pid)])
        return status, program.output

    def test_all_are_killed_at_once(self):
        status, output = self.interrupt('', 1)
        self.assertEqual(0, status)
        self.assertIn('they are killed', output)
        self.assertNotIn('Traceback', output)

    def test_once_more(self):
        status, _ = self.interrupt('', 5)
        self.assertEqual(0, status)


class AfterwardsTests(ProcessTestCase):

    def test_no_child_can_be_started_any_more(self):
        output = self.run_program('''
            import atexit

            @atexit.register
            def late():
                Process('true', detached=True).wait()
                for options in {}, {'adopt': True}:
                    try:
                        Process('true', **options)
                    except RuntimeError as error:
                        say(error)
            Process('true').wait()
            ''')
        self.assertEqual(2, len(output))
        self.assertIn('no other child can be started any more', output[0])


class DaemonTests(ProcessTestCase):

    def test_one_whose_child_has_ended_before_anybody_looked(self):
        output = self.run_program('''
            pids = []
            child = Process(victim("leave(overwrite)"), stdout='pipe',
                            adopt=True, servers=lambda: pids)
            [[_, pid]] = lines(child, 1)
            child.wait()
            until(lambda: child.handle.fileno() < 0)
            pids.append(int(pid))
            say(pid)
            ''')
        self.assertTrue(is_dead(output[0]))


class WorkerTests(ProcessTestCase):
    """Of `multiprocessing`, which leave by os._exit()."""

    def end_with(self, method, body):
        output = self.run_program(f'''
            import multiprocessing, time

            def work(how):
                child = Process(victim("leave()\\npause()"), stdout='pipe')
                [[_, pid]] = lines(child, 1)
                say(child.pid, pid)
                if how == 'error':
                    1/0
                if how == 'exit':
                    sys.exit(3)
                return how

            if __name__ == '__main__':
                context = multiprocessing.get_context({method!r})
            ''' + body)
        pids = ' '.join(line for line in output
                        if line.replace(' ', '').isdigit()).split()
        self.assertEqual(6, len(pids), output)
        self.assertEqual([], [pid for pid in pids if not is_dead(pid)])

    PROCESSES = '''
                for how in 'return', 'error', 'exit':
                    worker = context.Process(target=work, args=(how,))
                    worker.start()
                    worker.join()
        '''

    def test_forked(self):
        self.end_with('fork', self.PROCESSES)

    def test_spawned(self):
        self.end_with('spawn', self.PROCESSES)

    def test_a_pool(self):
        self.end_with('fork', '''
                pool = context.Pool(1)
                pool.map(work, ['return'] * 3)
                pool.close()
                pool.join()
            ''')

    def test_an_executor(self):
        self.end_with('forkserver', '''
                from concurrent.futures import ProcessPoolExecutor
                with ProcessPoolExecutor(2, mp_context=context) as pool:
                    list(pool.map(work, ['return'] * 3))
            ''')
