import errno
import os
import subprocess
import unittest
from unittest import mock

from gocept.runner.process import Process
from gocept.runner.process import adoption as module
from gocept.runner.process.adoption import adoption
from gocept.runner.tests.process.test_child import (
    Fallback,
    PidTests,
    ProcessTestCase,
)
from gocept.runner.tests.victims import adopt_no_more, until

GET_SUBREAPER = module._subreaper


class FlagTests(ProcessTestCase):
    """PR_SET_CHILD_SUBREAPER."""

    def setUp(self):
        super().setUp()
        self.assertEqual(0, GET_SUBREAPER())
        self.addCleanup(adopt_no_more)

    def test_as_long_as_one_adopts(self):
        first, second = self.start(adopt=True), self.start(adopt=True)
        self.assertEqual(1, GET_SUBREAPER())
        first.close()
        self.assertEqual(1, GET_SUBREAPER())
        second.terminate()
        self.assertEqual(0, GET_SUBREAPER())
        second.terminate()
        self.assertEqual(0, GET_SUBREAPER())

    def test_it_has_its_previous_value_then(self):
        module._set_subreaper(1)
        self.addCleanup(module._set_subreaper, 0)
        self.start(adopt=True).close()
        self.assertEqual(1, GET_SUBREAPER())

    def test_after_one_that_was_forgotten(self):
        child = Process('true', adopt=True)
        child.wait()
        del child
        until(lambda: not GET_SUBREAPER())

    def test_after_a_start_that_fails(self):
        with self.assertRaises(FileNotFoundError):
            self.start('/does/not/exist', adopt=True)
        self.assertEqual(0, GET_SUBREAPER())

    def test_refused(self):
        with mock.patch(
                'gocept.runner.waits.libc.call',
                side_effect=OSError(errno.EINVAL, 'Invalid argument')):
            with self.assertRaisesRegex(OSError, 'Invalid argument'):
                self.start(adopt=True)
        self.assertFalse(adoption.adopts)

    def test_a_fork_does_not_adopt(self):
        self.start(adopt=True)
        pid = os.fork()
        if not pid:
            os._exit(10 * adoption.adopts + GET_SUBREAPER())
        self.assertEqual(0, os.waitpid(pid, 0)[1])
        self.assertEqual(1, GET_SUBREAPER())


class OrphanTests(ProcessTestCase):
    """In programs, as it is a property of the whole process."""

    preamble = ProcessTestCase.preamble + '''
        from gocept.runner.process import adoption

        def dead():
            return [pid for pid in procfs.children(os.getpid())
                    if procfs.look(pid).state == 'Z']

        def children():
            return procfs.children(os.getpid())

        # What reads standard input lives until `last` is closed. A shell gives
        # another input to what it starts in the background.
        waiting, last = os.pipe()
        os.dup2(waiting, 0)

        '''

    def test_reaped_as_they_end(self):
        output = self.run_program('''
            with Process(victim("""
                    leave()
                    pause()
                    """), stdout='pipe', adopt=True) as child:
                [[_, pid]] = lines(child, 1)
                until(lambda: adoption.adoption._held)
                os.kill(int(pid), signal.SIGKILL)
                until(lambda: len(children()) == 1)
                say(child.poll())
            ''')
        self.assertEqual(['None'], output)

    def test_the_background_thread_was_ended_meanwhile(self):
        output = self.run_program('''
            from gocept.runner.poller import background
            with Process(victim("""
                    os.read(0, 1)
                    leave()
                    pause()
                    """), stdin='pipe', stdout='pipe', adopt=True) as child:
                background().close()
                Process('true').close()
                child.channel.write(b'.\\n')
                [[_, pid]] = lines(child, 1)
                until(lambda: adoption.adoption._held)
                os.kill(int(pid), signal.SIGKILL)
                until(lambda: dead() == [] and len(children()) == 1)
                say('reaped')
            ''')
        self.assertEqual(['reaped'], output)

    def test_reaped_though_they_were_dead_when_they_came(self):
        # Their session is told by the zombie itself.
        output = self.run_program('''
            adoption._INTERVAL = 0.01
            child = Process(
                'exec 3<&0; (cat <&3 & cat <&3 & true & (true & true &) &);'
                'exec sleep 100', shell=True, adopt=True, setsid=True)
            until(lambda: len(children()) > 1)
            os.close(last)
            until(lambda: len(children()) == 1)
            say(child.poll())
            ''')
        self.assertEqual(['None'], output)

    def test_those_of_other_libraries(self):
        output = self.run_program('''
            adoption._INTERVAL = 0.01
            child = Process('sleep 100', adopt=True)
            subprocess.run('exec 3<&0; cat <&3 & true &', shell=True,
                           start_new_session=True)
            until(lambda: len(children()) > 1)
            os.close(last)
            until(lambda: len(children()) == 1)
            child.close()
            subprocess.run('true &', shell=True)
            say(children())
            ''')
        self.assertEqual(['[]'], output)

    def test_no_status_is_stolen(self):
        output = self.run_program('''
            import asyncio, multiprocessing, time
            context = multiprocessing.get_context('fork')

            async def run():
                processes = [await asyncio.create_subprocess_exec(
                    'sh', '-c', 'exit 5', start_new_session=new)
                    for new in (False, True)]
                await asyncio.to_thread(until, lambda: looks > 9)
                return [await process.wait() for process in processes]

            def look(self):
                global looks
                looks += 1
                look_really(self)
            looks = 0
            kind = type(adoption.adoption)
            look_really, kind.look = kind.look, look
            adoption._INTERVAL = 0.01
            child = Process('sleep 100', adopt=True, setpgrp=True)
            popens = [subprocess.Popen(
                ['sh', '-c', 'exit 3'], **options) for options in (
                {}, {'start_new_session': True}, {'process_group': 0})]
            worker = context.Process(target=sys.exit, args=(4,))
            worker.start()
            forked = os.fork()
            if not forked:
                os.setsid()
                os._exit(6)
            until(lambda: len(dead()) == 5)
            seen = looks
            until(lambda: looks > seen + 3)
            child.close()
            say([popen.wait() for popen in popens])
            worker.join()
            say(worker.exitcode, os.waitpid(forked, 0)[1] >> 8)
            looks = 0
            with Process('sleep 100', adopt=True):
                say(asyncio.run(run()))
            ''')
        self.assertEqual(['[3, 3, 3]', '4 6', '[5, 5]'], output)

    def test_one_that_outlives_the_adoption_is_reaped_as_it_ends(self):
        output = self.run_program('''
            adoption._INTERVAL = 0.01
            child = Process('sleep 100', adopt=True)
            subprocess.run('exec 3<&0; cat <&3 &', shell=True,
                           start_new_session=True)
            until(lambda: adoption.adoption._held)
            child.close()
            os.close(last)
            until(lambda: not children())
            say('reaped')
            ''')
        self.assertEqual(['reaped'], output)

    def test_at_exit_what_a_library_waits_for_is_left(self):
        output = self.run_program('''
            import atexit

            @atexit.register
            def last():
                say(popen.wait(), len(children()))
            child = Process('sleep 100', adopt=True)
            popen = subprocess.Popen(['sh', '-c', 'exit 3'])
            forked = os.fork()
            if not forked:
                os._exit(0)
            until(lambda: len(dead()) == 2)
            ''')
        self.assertEqual(['3 0'], output)


class FallbackOrphanTests(Fallback, OrphanTests):

    preamble = OrphanTests.preamble + '''
        without_pidfds().__enter__()

        '''


class InitTests(PidTests):
    """As the process with the number 1."""

    level = 1

    def test_orphans_of_strangers_are_reaped(self):
        output = self.run_program('''
            from gocept.runner.process import adoption
            say(os.getpid())
            adoption._INTERVAL = 0.01
            popen = subprocess.Popen(['sh', '-c', 'exit 3'],
                                     start_new_session=True)
            with adoption.adoption.reaping_strangers():
                for _ in range(3):
                    subprocess.run('true & sleep 0.05 & true', shell=True,
                                   start_new_session=True)
                until(lambda: procfs.children(1) == [popen.pid])
            say(popen.wait())
            ''')
        self.assertEqual(['1', '3'], output)

    def test_nothing_is_done_by_others(self):
        with adoption.reaping_strangers():
            self.assertIsNone(adoption._timer)

    # They are about other things.
    test_the_group_of_another_with_the_same_number = None
    test_a_handle_of_another_with_the_same_number = None


class KnownTests(unittest.TestCase):

    def test_nobody_is_reaped_that_a_library_knows(self):
        child = subprocess.Popen(['sh', '-c', 'exit 3'])
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        adoption.reap_all()
        self.assertEqual(3, child.wait())


del PidTests, ProcessTestCase
