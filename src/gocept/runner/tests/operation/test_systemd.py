"""A loop that tells a service manager of itself.

The manager is a stand-in, since tests run where there is no systemd.
"""

import os
import pathlib
import signal
import socket
import sys
import tempfile
import threading
import time
from unittest import mock

from gocept.runner import events
from gocept.runner.errors import AlreadyRun
from gocept.runner.executor import ConditionExecutor, notified
from gocept.runner.operation import systemd
from gocept.runner.poller import background
from gocept.runner.schedule import Schedule
from gocept.runner.signals.systemd import ServiceManager, Wishes
from gocept.runner.tests.operation.managers import Manager
from gocept.runner.tests.support import (
    DEADLINE,
    TestCase,
    child_environment,
    end_background,
    settle,
)
from gocept.runner.tests.victims import until
from gocept.runner.waits.instants import Instant


class Loop:
    """What is read of a loop."""

    tick = 0
    tick_started = next_tick = tick_timeout = deadline = schedule = None
    stopping = False


class ServiceTests(TestCase):

    def setUp(self):
        super().setUp()
        self.addCleanup(end_background)
        self.socket = self.enterContext(
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        self.socket.bind(str(self.dir / 'notify'))
        self.socket.settimeout(DEADLINE)
        self.loop = Loop()
        # Nothing comes later, unless a test asks for it.
        self.enterContext(
            mock.patch.object(systemd, '_LEAST_INTERVAL', 10 * DEADLINE))

    def test_a_pause_that_does_not_end(self):
        service = self.service()
        for seconds in float('inf'), 1e18:
            self.loop.next_tick = Instant('monotonic', seconds)
            self.assertEqual('No tick in the next 30 years; 0 ticks, 0 with '
                             'errors', service._as_text())

    def service(self, watchdog=None):
        service = systemd.Service(
            self.loop, ServiceManager(str(self.dir / 'notify')),
            Wishes('', watchdog), 30)
        self.addCleanup(service.close)
        return service

    def received(self):
        """What was sent up to now."""
        messages = []
        self.socket.setblocking(False)
        try:
            while True:
                messages.append(self.socket.recv(9999).decode())
        except BlockingIOError:
            return messages
        finally:
            self.socket.settimeout(DEADLINE)

    def hear(self, service, *happened):
        for event in happened:
            service.hear(event)

    def test_it_is_ready_when_the_first_tick_begins(self):
        service = self.service()
        service.hear(events.LoopStarted(self.loop))
        self.assertEqual([], self.received())
        service.hear(events.TickStarted(self.loop))
        self.assertEqual(['READY=1'], self.received())
        service.hear(events.TickStarted(self.loop))
        self.assertEqual([], self.received())

    def test_it_is_ready_when_the_pause_before_the_first_tick_begins(self):
        service = self.service()
        self.loop.next_tick = Instant('realtime', time.time() + 5)
        service.hear(events.PauseStarted(self.loop))
        ready, status = self.received()
        self.assertEqual('READY=1', ready)
        self.assertRegex(status, r'^STATUS=Next tick at .*\d\d:\d\d:\d\d; '
                                 '0 ticks, 0 with errors$')

    def test_the_clock_of_the_schedule(self):
        self.addCleanup(time.tzset)
        self.enterContext(mock.patch.dict(os.environ, TZ='UTC'))
        time.tzset()
        service = self.service()
        self.loop.schedule = Schedule('30 2 * * *', 'Asia/Kathmandu')
        at = self.loop.schedule.after(1_790_000_000)
        self.loop.next_tick = Instant('realtime', at)
        service.hear(events.PauseStarted(self.loop))
        self.assertRegex(self.received()[1], r'^STATUS=Next tick at '
                         r'2026-09-22 02:30:00\+05:45; 0 ticks')

    def test_a_timer_that_begins_as_all_is_closed(self):
        service, poller = self.service(), background()

        def close_first():
            service.close()
            return poller
        with mock.patch.object(systemd, 'background', close_first):
            service._start('extension', 0.01, self.fail, True)
        until(lambda: not poller._watches)

    def test_events_of_other_loops(self):
        service = self.service()
        service.hear(events.TickStarted(Loop()))
        service.hear(object())
        self.assertEqual([], self.received())

    def test_status(self):
        service, loop = self.service(), self.loop
        loop.tick, loop.tick_started = 1, time.monotonic()
        service.hear(events.TickStarted(loop))
        service.hear(events.TickAborted(loop, ValueError('too\n\x1blate')))
        loop.tick_started = None
        loop.next_tick = Instant('monotonic', time.monotonic() + 9)
        service.hear(events.PauseStarted(loop))
        self.assertRegex(
            self.received()[-1], r'^STATUS=Next tick at [\d :-]+; 1 tick, 1 '
            r'with errors, the last took [\d.e-]+ s, last error: ValueError: '
            'too late$')
        service.hear(events.LoopStopped(loop))
        stopping, status, extension = self.received()
        self.assertEqual('STOPPING=1', stopping)
        self.assertRegex(status, '^STATUS=Ended; 1 tick, 1 with errors, ')
        self.assertEqual('EXTEND_TIMEOUT_USEC=60000000', extension)

    def test_a_run_that_another_machine_has_done_is_no_error(self):
        service = self.service()
        service.hear(events.TickAborted(self.loop, AlreadyRun()))
        service.hear(events.LoopStopped(self.loop))
        self.assertIn('1 tick, 0 with errors', self.received()[1])

    def test_a_long_error(self):
        service = self.service()
        service.hear(events.TickAborted(self.loop, ValueError('x' * 9999)))
        service.hear(events.LoopStopped(self.loop))
        self.assertLess(max(map(len, self.received())), 500)

    def test_many_ticks_are_not_told_one_by_one(self):
        service, loop = self.service(), self.loop
        loop.next_tick = Instant('monotonic', time.monotonic() + 9)
        for _ in range(100):
            self.hear(service, events.TickStarted(loop),
                      events.TickCommitted(loop),
                      events.PauseStarted(loop))
        self.assertEqual(['READY=1', 'STATUS'], [
            message.replace('STATUS=', 'STATUS=\n').split('=\n')[0]
            for message in self.received()])

    def test_the_last_status_is_told_later(self):
        service, loop = self.service(), self.loop
        with mock.patch.object(systemd, '_LEAST_INTERVAL', 0.01):
            loop.tick, loop.tick_started = 7, time.monotonic()
            service.hear(events.TickStarted(loop))
            self.assertEqual(b'READY=1', self.socket.recv(999))
            self.assertRegex(self.socket.recv(999),
                             b'^STATUS=Running tick 7 since .*')

    def test_the_watchdog_is_fed_in_pauses(self):
        service = self.service(watchdog=0.02)
        self.loop.next_tick = Instant('monotonic', time.monotonic() + 3600)
        service.begin()
        for _ in range(3):
            self.assertEqual(b'WATCHDOG=1', self.socket.recv(999))

    def test_when_a_loop_is_on_time(self):
        service, loop, now = self.service(), self.loop, time.monotonic()
        self.assertTrue(service._is_on_time())  # no event, so far
        service.hear(events.LoopStarted(loop))
        self.assertTrue(service._is_on_time())
        loop.tick_started = now - 3600
        self.assertTrue(service._is_on_time())  # without any limit
        loop.tick_timeout = 3000
        self.assertFalse(service._is_on_time())
        loop.deadline = now + 100  # of an item
        self.assertTrue(service._is_on_time())
        loop.deadline = now - 1
        self.assertFalse(service._is_on_time())
        loop.tick_started = loop.deadline = None
        for clock, now in ('monotonic', now), ('realtime', time.time()):
            loop.next_tick = Instant(clock, now + 1)
            self.assertTrue(service._is_on_time())
            loop.next_tick = Instant(clock, now - 5)
            self.assertTrue(service._is_on_time())
            loop.next_tick = Instant(clock, now - 11)
            self.assertFalse(service._is_on_time())

    def test_the_limit_is_that_of_the_watchdog(self):
        service = self.service(watchdog=100)
        self.loop.tick_started = time.monotonic() - 50
        self.assertTrue(service._is_on_time())
        self.loop.tick_started = time.monotonic() - 101
        self.assertFalse(service._is_on_time())

    def test_who_hangs_between_ticks(self):
        service = self.service()
        self.loop.tick_timeout = 100
        service.hear(events.LoopStarted(self.loop))
        service._changed -= 101
        self.assertFalse(service._is_on_time())

    def test_a_late_tick_does_not_feed_the_watchdog(self):
        service = self.service(watchdog=100)
        self.loop.tick_started = time.monotonic() - 101
        service.hear(events.ConflictRetried(self.loop, ValueError(), 1))
        self.assertEqual([], self.received())

    def test_events_feed_the_watchdog(self):
        service = self.service(watchdog=100)
        for _ in range(9):
            service.hear(events.TickStarted(self.loop))
        self.assertEqual(['READY=1', 'WATCHDOG=1'], self.received())

    def test_a_request_is_told_by_the_background_thread(self):
        service = self.service()
        background()
        service.note_request()
        self.assertEqual(b'STOPPING=1', self.socket.recv(999))
        self.assertRegex(self.socket.recv(999), b'^STATUS=Ending; 0 ticks')
        settle()
        self.assertEqual([], self.received())

    def test_a_tick_within_its_time_gets_more_time_for_its_end(self):
        service, loop = self.service(), self.loop
        loop.tick, loop.tick_started, loop.tick_timeout = (
            3, time.monotonic(), 3600)
        service._tell_stopping()
        stopping, status, extension = self.received()
        self.assertEqual('STOPPING=1', stopping)
        self.assertRegex(status, '^STATUS=Completing tick 3, which began at ')
        self.assertEqual('EXTEND_TIMEOUT_USEC=30000000', extension)
        service._extend()
        self.assertEqual([extension], self.received())
        loop.tick_started -= 3601
        service._extend()
        self.assertEqual([], self.received())

    def test_children_get_their_time_after_a_request(self):
        service = self.service()
        service._tell_stopping()
        self.received()
        service.hear(events.LoopStopped(self.loop))
        status, extension = self.received()
        self.assertRegex(status, '^STATUS=Ended')
        self.assertEqual('EXTEND_TIMEOUT_USEC=60000000', extension)

    def test_reopening_after_a_request(self):
        service = self.service()
        with service.reopening():
            message, = self.received()
            self.assertRegex(message, r'^RELOADING=1\nMONOTONIC_USEC=\d+$')
            service._tell_stopping()
            self.received()
        self.assertEqual(['READY=1', 'STOPPING=1'], self.received())

    def test_a_busy_manager_is_told_later(self):
        service = self.service()
        self.socket.setblocking(False)
        filler = ServiceManager(str(self.dir / 'notify'))
        self.addCleanup(filler.close)
        with self.assertRaises(BlockingIOError):
            while True:
                filler.send('X=1')
        with mock.patch.object(systemd, '_LEAST_INTERVAL', 0.01):
            self.hear(service, events.TickStarted(self.loop),
                      events.LoopStopped(self.loop))
            found = ''
            self.socket.settimeout(DEADLINE)
            while not found.startswith('EXTEND'):
                found = self.socket.recv(999).decode()
                if found == 'READY=1':
                    self.assertEqual(b'STOPPING=1', self.socket.recv(999))

    def test_a_manager_that_is_gone_is_reported_once(self):
        service = self.service()
        self.socket.close()
        with self.assertLogs('gocept.runner.systemd', 'WARNING') as logs:
            self.hear(service, events.TickStarted(self.loop),
                      events.LoopStopped(self.loop))
        self.assertRegex(logs.output[0], 'cannot be told .* Connection ref')
        self.assertEqual(1, len(logs.output))

    def test_a_manager_that_has_waited_for_the_start_only(self):
        service = self.service()
        service.hear(events.TickStarted(self.loop))
        self.socket.close()
        with self.assertLogs('gocept.runner.systemd', 'INFO') as logs:
            service.hear(events.LoopStopped(self.loop))
        self.assertRegex(logs.output[0], '^INFO:.* cannot be told')
        self.assertEqual(1, len(logs.output))

    def test_nothing_is_opened_after_the_end(self):
        service = self.service()
        service.close()
        self.received()
        service._outbox.put('status', 'STATUS=late')
        self.assertEqual([], self.received())

    def test_a_loop_that_sends_no_events(self):
        self.loop.tick = 1
        service = self.service()
        with mock.patch.object(systemd, '_LEAST_INTERVAL', 0.01):
            service.begin()
            self.assertEqual(b'READY=1', self.socket.recv(999))
            self.loop.stopping = True
            while self.socket.recv(999) != b'STOPPING=1':
                pass

    def test_a_child_that_was_forked_is_not_the_service(self):
        service = self.service()
        service.begin()
        pid = os.fork()
        if not pid:
            service.hear(events.TickStarted(self.loop))
            service.close()
            os._exit(threading.active_count() - 1)
        self.assertEqual(0, os.waitpid(pid, 0)[1])
        self.assertEqual([], self.received())
        service.hear(events.TickStarted(self.loop))
        self.assertEqual(['READY=1'], self.received())


class AttachedTests(TestCase):

    def setUp(self):
        super().setUp()
        self.addCleanup(end_background)

    def test_without_a_manager_nothing_happens(self):
        before = {*threading.enumerate()}
        with (mock.patch.dict(os.environ), systemd.attached(Loop(), 30)):
            # One of another test may end meanwhile.
            self.assertLessEqual({*threading.enumerate()}, before)

    def test_an_address_that_is_of_no_use(self):
        with (mock.patch.dict(os.environ, NOTIFY_SOCKET='vsock:2:3'),
              self.assertLogs('gocept.runner.systemd', 'WARNING') as logs,
              systemd.attached(Loop(), 30)):
            self.assertNotIn('NOTIFY_SOCKET', os.environ)
        self.assertRegex(logs.output[0], "NOTIFY_SOCKET is 'vsock:2:3'")
        self.assertEqual(1, len(logs.output))


class WorkerTests(TestCase):
    """Programs under a manager."""

    def manage(self, tick, decorator='ticks=3600', more='', **options):
        command = self.worker(tick, decorator, more)
        manager = Manager(self.dir, **options)
        self.addCleanup(manager.kill)
        manager.start(command, self.dir)
        return manager

    def worker(self, tick, decorator='ticks=3600', more=''):
        """The command of a worker, in a new directory."""
        self.dir = pathlib.Path(tempfile.mkdtemp(dir=self.dir))
        self.zope_conf('')  # so that the log is in the output
        os.mkfifo(self.dir / 'go')
        # Open for reading as well, so that no write waits for a reader.
        self.go = os.open(self.dir / 'go', os.O_RDWR)
        self.addCleanup(os.close, self.go)
        script = self.write('program.py', f'''
            import ctypes, os, signal, subprocess, sys, time
            import gocept.runner.runner
            from gocept.runner.tests.victims import wait_at
            {more}

            @gocept.runner.appmain({decorator})
            def worker():
                {tick}

            if __name__ == '__main__':
                sys.exit(worker())
            ''')
        return [sys.executable, str(script)]

    def let_go(self):
        """Let the last worker go on that waits."""
        os.write(self.go, b'.')

    def test_the_life_of_a_service(self):
        for abstract in False, True:
            with self.subTest(abstract=abstract):
                manager = self.manage('pass', abstract=abstract)
                manager.until_state('active')
                manager.until(lambda: 'Next tick at' in manager.status)
                self.assertIn('1 tick, 0 with errors', manager.status)
                manager.stop()
                manager.until_state('dead')
                self.assertEqual('success', manager.result)
                self.assertIn('STOPPING=1', manager.messages)
                self.assertIn('Ended; 1 tick, 0 with errors', manager.status)
                self.assertNotIn('WATCHDOG=1', manager.messages)

    def test_a_schedule_is_ready_before_its_first_run(self):
        manager = self.manage('raise Exception', 'schedule="0 0 29 2 *"')
        manager.until_state('active')
        manager.until(lambda: 'Next tick at 20' in manager.status)
        self.assertRegex(manager.status, '-02-29 00:00:00; 0 ticks, 0 with')
        manager.stop()
        manager.until_state('dead')
        self.assertIn('STOPPING=1', manager.messages)

    def test_a_worker_that_ends_itself(self):
        manager = self.manage('return gocept.runner.Exit')
        manager.until_state('dead')
        self.assertEqual('success', manager.result)
        self.assertEqual(['READY=1', 'STOPPING=1'], [
            message for message in manager.messages if '=1' in message])

    def test_a_start_that_fails(self):
        manager = self.manage('pass', 'ticks=1, principal="nobody"')
        manager.until_state('dead')
        self.assertEqual('exit-code', manager.result)
        self.assertNotIn('READY=1', manager.messages)

    def test_the_loop_of_an_adopter(self):
        manager = self.manage('wait_at("go")', 'ticks=1', """
            class Loop(gocept.runner.runner.MainLoop):
                def __call__(self):
                    while not self.stopping:
                        self.begin()
                        self.worker()
                        self.commit()
            gocept.runner.appmain.main_loop = Loop
            """)
        manager.until_state('active')
        self.let_go()
        manager.until(lambda: manager.status.startswith('Running tick 2'))

    def test_a_long_tick_is_completed(self):
        manager = self.manage('wait_at("go")', 'ticks=3600, tick_timeout=3600',
                              timeout=20)
        manager.until_state('active')
        manager.stop()
        limit = manager.killed_at
        manager.until(lambda: manager.status.startswith(
            'Completing tick 1, which began at '))
        manager.until(lambda: 'EXTEND_TIMEOUT_USEC=30000000'
                      in manager.messages)
        self.assertLess(limit, manager.killed_at)
        self.let_go()
        manager.until_state('dead')
        self.assertEqual('success', manager.result)

    def test_a_tick_without_a_timeout_gets_no_more_time(self):
        manager = self.manage('wait_at("go")', timeout=0.1)
        manager.until_state('active')
        manager.stop()
        manager.until_state('dead')
        self.assertEqual('timeout', manager.result)

    def test_a_reload_opens_the_logs_anew(self):
        manager = self.manage('pass')
        manager.until(lambda: 'Next tick at' in manager.status)
        manager.process.send_signal(signal.SIGUSR2)
        manager.until(lambda: manager.state == 'active' and any(
            message.startswith('RELOADING=1\nMONOTONIC_USEC=')
            for message in manager.messages))
        told = [message for message in manager.messages
                if not message.startswith('STATUS=')]
        self.assertEqual('READY=1', told[-1])

    def test_a_pause_may_be_longer_than_the_watchdog_waits(self):
        manager = self.manage('pass', watchdog=0.1, patience=DEADLINE)
        manager.until(lambda: 'Next tick at' in manager.status)
        for _ in range(3):
            manager.until_told('WATCHDOG=1')

    def test_a_tick_that_hangs_is_ended(self):
        for tick in ('time.sleep(3600)', 'while True: pass',
                     # C code that keeps the interpreter for itself
                     'ctypes.PyDLL(None).sleep(3600)'):
            with self.subTest(tick=tick):
                manager = self.manage(tick, watchdog=0.5)
                manager.until_state('dead')
                self.assertEqual('watchdog', manager.result)
                self.assertEqual(
                    -signal.SIGABRT, manager.process.returncode)

    def test_children_do_not_get_the_variables(self):
        manager = self.manage(
            'subprocess.run(["env"]); print("done", flush=True)',
            watchdog=DEADLINE)
        manager.until(lambda: 'done' in manager.output)
        self.assertIn('PATH=', manager.output)
        self.assertNotIn('NOTIFY_SOCKET', manager.output)
        self.assertNotIn('WATCHDOG', manager.output)

    def test_an_executor_waits_for_a_worker(self):
        self.addCleanup(end_background)
        executor = ConditionExecutor(
            self.worker('pass'), notified(), timeout=DEADLINE, cwd=self.dir,
            envvars=child_environment())
        with executor:
            self.assertTrue(executor.running())

    def test_a_manager_that_goes_away(self):
        manager = self.manage('print("tick", flush=True)', 'ticks=0.001')
        manager.until_state('active')
        manager.close()
        os.unlink(self.dir / 'notify')
        until(lambda: 'cannot be told' in manager.output)
        ticks = manager.output.count('tick\n')
        until(lambda: manager.output.count('tick\n') > ticks)
        manager.process.terminate()
        self.assertEqual(0, manager.process.wait(DEADLINE))
        self.assertEqual(1, manager.output.count('cannot be told'))

    def test_a_manager_that_does_not_read(self):
        manager = self.manage('print("tick", flush=True)', 'ticks=0')
        until(lambda: manager.output.count('tick\n') > 100)
        manager.process.terminate()
        self.assertEqual(0, manager.process.wait(DEADLINE))
