import contextlib
import os
import re
import signal

from gocept.runner.process.pidfd import hold
from gocept.runner.tests.house.fakehouse import HouseTestCase, worker
from gocept.runner.tests.support import DEADLINE
from gocept.runner.tests.victims import until
from gocept.runner.waits.deadline import READABLE, Deadline, wait_for


class StartTests(HouseTestCase):

    def test_workers_run_until_a_signal(self):
        self.declare(worker('import'), worker('export'))
        house = self.house()
        self.all_run(house, 2)
        house.send(signal.SIGTERM)
        self.assertEqual(0, house.end())
        self.assertIn('2 workers: import, export', house.output)
        for name in 'import', 'export':
            self.assertIn(f'{name}   | {name} runs', house.output)
        self.assertRegex(house.output, r'(?m)^import +\| import ends$')
        self.assertRegex(house.output, r'(?m)^export +\| export ends$')
        self.assertEqual(
            ['ended', 'ended'],
            [each['phase'] for each in self.state()['workers']])

    def test_only_those_that_are_named(self):
        self.declare(worker('import'), worker('export'))
        house = self.house("names=['export']")
        house.wait_for('export   | export runs')
        house.send(signal.SIGTERM)
        self.assertEqual(0, house.end())
        self.assertNotIn('import', house.output)

    def test_a_name_that_is_not_declared(self):
        self.declare(worker('import'))
        house = self.house("names=['imprt']")
        self.assertEqual(2, house.end())
        self.assertEqual(
            "error: no worker 'imprt' is declared (did you mean import?); "
            'there are: import\n', house.output)

    def test_a_configuration_that_cannot_be_read(self):
        self.declare(failed=[78, 'zope.conf: line 3 is wrong'])
        house = self.house()
        self.assertEqual(78, house.end())
        self.assertEqual('error: zope.conf: line 3 is wrong\n', house.output)

    def test_a_template_that_dies_at_once(self):
        house = self.house()  # nothing is declared, which raises an exception
        self.assertEqual(71, house.end())
        self.assertIn('error: the template has ended with status 1 before it '
                      'was ready', house.output)

    def test_once(self):
        self.declare(worker('a', 'ok', once=True), worker('b', 'fail',
                                                          once=True))
        house = self.house()
        self.assertEqual(1, house.end())
        self.assertIn('a        | a is done', house.output)
        self.assertIn('b has ended with status 3; it runs once, and is not '
                      'restarted', house.output)

    def test_all_that_run_once_succeed(self):
        self.declare(worker('a', 'ok', once=True))
        house = self.house()
        self.assertEqual(0, house.end())


class ProgramTests(HouseTestCase):
    """Where the template has threads."""

    def test_each_worker_is_a_program(self):
        self.declare(worker('a'), worker('b'), threads=['watcher'])
        house = self.house()
        self.all_run(house, 2)
        [pid] = map(int, re.findall(r'b runs version 1 as (\d+)',
                                    house.output))
        self.assertRegex(
            house.output, 'ZCML has started threads, .*: watcher')
        os.kill(pid, signal.SIGKILL)
        house.wait_for('b has ended with signal SIGKILL; it is restarted')
        house.wait_for('b runs')
        self.assertIsNone(self.state()['template'])
        house.send(signal.SIGTERM)
        self.assertEqual(0, house.end())
        self.assertIn('a ends', house.output)

    def test_a_reload(self):
        self.declare(worker('a'), threads=['watcher'])
        house = self.house()
        house.wait_for('a runs version 1')
        self.declare(worker('a'), threads=['watcher'], version=2)
        house.send(signal.SIGHUP)
        house.wait_for('a runs version 2')
        self.declare(worker('a'), version=3)  # and no threads any more
        house.send(signal.SIGHUP)
        house.wait_for('a runs version 3')
        self.assertEqual(3, self.state()['template']['generation'])
        house.send(signal.SIGTERM)
        self.assertEqual(0, house.end())

    def test_they_end_with_a_house_that_was_killed(self):
        self.declare(worker('a'), threads=['watcher'])
        house = self.house()
        pid = self.started(house, 'a')
        house.send(signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            with contextlib.closing(hold(pid)) as handle:
                wait_for(handle.fileno(), READABLE, Deadline(DEADLINE))
                self.assertTrue(handle.has_ended())


class RestartTests(HouseTestCase):

    def test_a_worker_that_was_killed(self):
        self.declare(worker('a'))
        house = self.house()
        pid = self.started(house, 'a')
        os.kill(pid, signal.SIGKILL)
        house.wait_for('a has ended with signal SIGKILL; it is restarted in '
                       '0.25 s')
        self.assertNotEqual(pid, self.started(house, 'a'))
        house.send(signal.SIGTERM)
        self.assertEqual(0, house.end())

    def test_one_that_cannot_be_forked(self):
        self.declare(worker('a', 'unforked'))
        house = self.house()
        house.wait_for('a cannot be forked: no memory')
        house.wait_for('a has ended with status 71; it is restarted')
        house.send(signal.SIGTERM)
        self.assertEqual(0, house.end())

    def test_the_template_dies_and_workers_go_on(self):
        self.declare(worker('a'))
        house = self.house()
        pid = self.started(house, 'a')
        os.kill(self.state()['template']['pid'], signal.SIGKILL)
        house.wait_for('another template is started')
        os.kill(pid, signal.SIGKILL)
        house.wait_for('a has ended with signal SIGKILL')
        house.wait_for('a runs')
        self.assertEqual(2, self.worker_state('a')['generation'])
        house.send(signal.SIGTERM)
        self.assertEqual(0, house.end())

    def test_the_template_dies_before_it_says_what_it_has_forked(self):
        self.declare(worker('a', 'mute'))
        house = self.house()
        house.wait_for('The template has ended with status 9')
        self.declare(worker('a'))
        house.wait_for('a is an orphan')  # and ends, before
        house.wait_for('a runs')
        house.send(signal.SIGTERM)
        self.assertEqual(0, house.end())
        self.assertEqual(2, house.output.count('a runs'))

    def test_workers_end_with_a_house_that_was_killed(self):
        self.declare(worker('a', 'slow'))
        os.mkfifo(self.dir / 'go')
        house = self.house()
        pid = self.started(house, 'a')
        house.send(signal.SIGKILL)
        house.process.wait()
        # The next one is killed as well, when it has written its own state.
        house = self.house('Former()')
        house.wait_for(f'waiting until they end: a ({pid})')
        house.wait_for('1 worker: a')
        until(lambda: self.state()['pid'] == house.pid)
        house.send(signal.SIGKILL)
        house.process.wait()
        house = self.house('Former()')
        house.wait_for(f'waiting until they end: a ({pid})')
        with open(self.dir / 'go', 'w'):
            pass
        house.wait_for('a runs')
        house.send(signal.SIGTERM)
        with open(self.dir / 'go', 'w'):
            pass
        self.assertEqual(0, house.end())


class ReloadTests(HouseTestCase):

    def test_workers_change_over(self):
        self.declare(worker('a'), worker('b'))
        house = self.house()
        self.all_run(house, 2)
        self.declare(worker('a'), worker('b'), version=2)
        house.send(signal.SIGHUP)
        house.wait_for('a ends')
        house.wait_for('a runs version 2')
        house.wait_for('b runs version 2')
        house.send(signal.SIGTERM)
        self.assertEqual(0, house.end())
        # The new process of a is there by then, but may have said nothing yet.
        self.assertLess(house.output.index('a ends'),
                        house.output.index('b ends'))

    def test_code_that_cannot_boot(self):
        self.declare(worker('a'))
        house = self.house()
        pid = self.started(house, 'a')
        self.declare(failed=[78, 'no module named shop'])
        house.send(signal.SIGHUP)
        house.wait_for('The new code cannot boot, so the workers go on with '
                       'the old: no module named shop')
        os.kill(pid, signal.SIGKILL)
        house.wait_for('a runs version 1')
        house.send(signal.SIGTERM)
        self.assertEqual(0, house.end())

    def test_workers_come_and_go(self):
        self.declare(worker('a'), worker('b'))
        house = self.house()
        self.all_run(house, 2)
        self.declare(worker('a'), worker('c'), version=2)
        house.send(signal.SIGHUP)
        house.wait_for('b is not declared any more, and ends')
        house.wait_for('c runs')
        house.send(signal.SIGTERM)
        self.assertEqual(0, house.end())
        self.assertIn('b ends', house.output)

    def test_one_that_was_given_up_is_started_again(self):
        self.declare(worker('a'), worker('b', 'fail'))
        house = self.house()
        house.wait_for('b has ended')
        self.declare(worker('a'), worker('b'), version=2)
        house.send(signal.SIGHUP)
        house.wait_for('b runs version 2')
        house.send(signal.SIGTERM)
        self.assertEqual(0, house.end())

    def test_log_files_are_reopened(self):
        self.declare(worker('a'))
        house = self.house()
        house.wait_for('a runs')
        house.send(signal.SIGUSR2)
        house.wait_for('a reopens')
        house.send(signal.SIGTERM)
        self.assertEqual(0, house.end())


class EndTests(HouseTestCase):

    def test_a_tick_is_completed(self):
        os.mkfifo(self.dir / 'go')
        self.declare(worker('a', 'slow'))
        house = self.house()
        house.wait_for('a runs')
        house.send(signal.SIGTERM)
        house.wait_for('1 worker completes the tick first')
        with open(self.dir / 'go', 'w'):
            pass
        self.assertEqual(0, house.end())
        self.assertIn('a ends', house.output)

    def test_one_that_does_not_end_is_killed(self):
        self.declare(worker('a', 'stubborn'), worker('b'))
        house = self.house('shutdown_timeout=0.5')
        self.all_run(house, 2)
        house.send(signal.SIGTERM)
        self.assertEqual(0, house.end())
        self.assertIn('Killing workers that have not ended in 0.4 s: a',
                      house.output)

    def test_the_second_signal_ends_at_once(self):
        self.declare(worker('a', 'stubborn'))
        house = self.house()
        house.wait_for('a runs')
        house.send(signal.SIGINT)
        house.wait_for('Received SIGINT, ending')
        house.send(signal.SIGINT)
        self.assertEqual(130, house.end())
