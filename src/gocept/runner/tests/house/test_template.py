"""A template, and the workers that it forks."""

import contextlib
import json
import os
import pathlib
import re
import signal
import sys

from gocept.runner import errors
from gocept.runner.house.link import Failed, Fork, Ready, Streams, Unforked
from gocept.runner.process import procfs
from gocept.runner.tests.house.templates import TemplateTestCase
from gocept.runner.tests.support import sqlite_conf
from gocept.runner.tests.victims import DEADLINE, ended, lines, until

WORKER = '<runner:worker name="work" handler="ticking.tick" {} />'


class TemplateTests(TemplateTestCase):

    def test_what_is_declared(self):
        ready = self.boot(
            WORKER.format('ticks="3" site="shop" lock="true"') + '''
            <runner:worker name="nightly" handler="ticking.work"
                schedule="0 2 * * *" timezone="Europe/Berlin" jitter="5" />
            <runner:worker name="import" handler="ticking.tick" once="true"
                arguments="a b" tick_timeout="60" shutdown_timeout="7" />
            <runner:app name="converter" command="cat" type="stdio" />
            ''')
        self.assertEqual(('toolkit', ()), (ready.application, ready.threads))
        by_name = {each.name: each for each in ready.workers}
        work, nightly, imports = (
            by_name[name] for name in ('work', 'nightly', 'import'))
        self.assertEqual((3.0, 'shop', True, False, None), (
            work.ticks, work.site, work.lock, work.once, work.schedule))
        self.assertEqual((None, '0 2 * * *', 'Europe/Berlin', 5.0), (
            nightly.ticks, nightly.schedule, nightly.timezone,
            nightly.jitter))
        self.assertEqual((True, None, ('a', 'b'), 60.0, 7.0), (
            imports.once, imports.ticks, imports.arguments,
            imports.tick_timeout, imports.shutdown_timeout))
        [app] = ready.children
        self.assertEqual(('app', 'converter', 'lazy', (), False), (
            app.kind, app.name, app.start, app.requires, app.in_kernel))

    def test_ticks_of_several_workers(self):
        self.boot(WORKER.format('ticks="0.01"'))
        workers = [self.fork('work', '--', str(number))
                   for number in range(3)]
        for number, worker in enumerate(workers):
            self.assertRunning(worker)
            self.assertEqual([f'tick {number}'] * 3,
                             [worker.line() for _ in range(3)])
        self.assertEqual([0, 0, 0], [each.end() for each in workers])
        self.assertIsNone(workers[0].stage())

    def test_one_database_for_several_workers(self):
        self.boot(
            WORKER.format('ticks="0.01"'), '''
            def tick(name):
                site = zope.component.hooks.getSite()
                if name not in site:
                    from zope.container.folder import Folder
                    site[name] = Folder()
                if {'a', 'b', 'c'} <= set(site):
                    say('all')
            ''', sqlite_conf(self.dir))
        # Several cannot make the tables of SQLite at the same time.
        workers = [self.fork('work', '--', 'a')]
        self.assertRunning(workers[0])
        workers += [self.fork('work', '--', name) for name in 'bc']
        for worker in workers:
            self.assertEqual('all', worker.line())
        self.assertEqual([0, 0, 0], [each.end() for each in workers])

    def test_a_worker_is_like_a_program(self):
        self.boot(WORKER.format('once="true"'), '''
            def tick():
                say(os.getppid())
                say(os.getpgid(0) == os.getpid())
                say(os.environ['GOCEPT_RUNNER_CHILD'].split()[-1])
                say(sys.argv)
                say(open('/proc/self/comm').read().strip())
                say(os.readlink('/proc/self/fd/0'))
                found = [f'/proc/self/fd/{fd}'
                         for fd in os.listdir('/proc/self/fd')]
                say([os.readlink(each) for each in found
                     if os.path.islink(each)])
                say([each.name for each in threading.enumerate()
                     if 'gocept' not in each.name])
            ''')
        worker = self.fork('work')
        self.assertEqual([
            str(os.getpid()), 'True', worker.orphan.mark,
            str(['gocept-runner', 'run', 'work', '--state',
                 f'{self.dir}/state-1']),
            'work', '/dev/null'], [worker.line() for _ in range(6)])
        # Its control socket, and not the link of the template.
        self.assertEqual(1, worker.line().count('socket:'))
        self.assertEqual("['MainThread']", worker.line())
        self.assertEqual(0, worker.orphan.wait(DEADLINE))

    def test_options_of_the_command_line(self):
        self.boot(WORKER.format('ticks="100"'))
        worker = self.fork('work', '--once', '--', 'a', '--b')
        self.assertEqual('tick a --b', worker.line())
        self.assertEqual(0, worker.orphan.wait(DEADLINE))
        worker = self.fork('work', '--ticks', '0.01')
        for _ in range(3):
            self.assertEqual('tick', worker.line())
        self.assertEqual(0, worker.end())
        worker = self.fork('work', '--log-format', 'json')
        self.assertEqual('tick', worker.line())
        self.assertEqual('Received signal 15, terminating.',
                         self.end_with_messages(worker)[-1])
        worker = self.fork('work', '-v')
        worker.error_line('DEBUG')
        self.assertEqual('tick', worker.line())
        self.assertEqual(0, worker.end())

    def end_with_messages(self, worker):
        self.assertEqual(0, worker.end())
        return [json.loads(line)['message']
                for line in worker.rest(worker.stderr).splitlines()]

    def test_settings_of_the_template(self):
        self.boot(WORKER.format('ticks="100"'), log_format='json')
        worker = self.fork('work')
        self.assertEqual('tick', worker.line())
        self.assertIn("Worker 'work' starts: a tick every 100 s, in the "
                      'root folder', ' '.join(self.end_with_messages(worker)))

    def test_the_state_is_written(self):
        self.boot(WORKER.format('ticks="100"'))
        worker = self.fork('work')
        self.assertRunning(worker)
        self.assertEqual('tick', worker.line())
        path = self.dir / 'state-1'
        until(path.exists)
        state = json.loads(path.read_text())
        self.assertEqual(worker.pid, state['pid'])

    def test_statuses(self):
        self.boot(
            WORKER.format('once="true"')
            + '<runner:worker name="locked" handler="ticking.wait"'
            ' lock="true" ticks="100" />', '''
            def tick(how='fail'):
                if how == 'fail':
                    raise ValueError('its own')
                if how == 'text':
                    sys.exit('a text')
                sys.exit(int(how))

            def wait():
                say('tick')
            ''')
        for status, words in (
                (errors.WORKER_FAILED, []), (7, ['--', '7']),
                (errors.WORKER_FAILED, ['--', 'text']),
                (errors.BAD_USAGE, ['--bad']),
                (errors.BAD_USAGE, ['--', 'too', 'many']),
                (errors.UNKNOWN_SITE, ['--site', 'nowhere'])):
            with self.subTest(words):
                worker = self.fork('work', *words)
                self.assertEqual(status, worker.orphan.wait(DEADLINE))
                said = worker.rest(worker.stderr)
                if status == errors.WORKER_FAILED:
                    self.assertIn('a text' if words else 'its own', said)
                else:
                    self.assertEqual(status != 7, 'error: ' in said, said)
        worker = self.fork('unknown')
        self.assertEqual(errors.BAD_USAGE, worker.orphan.wait(DEADLINE))
        self.assertIn("no worker 'unknown' is declared",
                      worker.rest(worker.stderr))
        first = self.fork('locked')
        self.assertEqual('tick', first.line())
        second = self.fork('locked')
        self.assertEqual(errors.ALREADY_RUNNING, second.orphan.wait(DEADLINE))
        self.assertIn(f'process {first.pid}', second.rest(second.stderr))

    def test_bad_configuration(self):
        for body, status, text in (
                ('<unknown />', errors.BAD_CONFIGURATION, 'unknown directive'),
                (WORKER.format('handler="no.such"').replace(
                    'handler="ticking.tick"', ''),
                 errors.BAD_CONFIGURATION, "Couldn't import no"),
                ('<include package="ticking" file="no.zcml" />',
                 errors.BAD_CONFIGURATION, 'no.zcml')):
            with self.subTest(body):
                failed = self.start_template(self.declare(body))
                self.assertIsInstance(failed, Failed)
                self.assertEqual(status, failed.status)
                self.assertIn(text, failed.error)
                self.assertNotIn('\n', failed.error)
                self.assertEqual(status, self.template.wait(DEADLINE))
        failed = self.start_template(f'{self.dir}/no.conf')
        self.assertEqual(errors.BAD_CONFIGURATION, failed.status)

    def test_code_that_fails_when_it_is_imported(self):
        failed = self.start_template(self.declare(
            WORKER.format(''), 'raise ZeroDivisionError("at import")'))
        self.assertIsInstance(failed, Failed)
        self.assertIn('at import', failed.error)
        self.assertEqual(failed.status, self.template.wait(DEADLINE))

    def test_threads_of_the_configuration(self):
        ready = self.boot(WORKER.format(''), '''
            threading.Thread(target=signal.pause, daemon=True,
                             name='of an add-on').start()
            ''')
        self.assertEqual(('of an add-on',), ready.threads)
        streams = Streams(*(os.memfd_create('it') for _ in range(3)))
        self.link.fork(Fork(5, 'work'), streams)
        self.assertEqual(Unforked(5, 'there are threads: of an add-on'),
                         self.told())

    def test_it_ends_with_the_link(self):
        self.boot(WORKER.format('ticks="0.01"'))
        worker = self.fork('work')
        self.link.close()
        self.assertEqual(0, self.template.wait(DEADLINE))
        self.template.terminate()
        for _ in range(5):
            self.assertEqual('tick', worker.line())
        self.assertEqual(0, worker.end())

    def test_it_is_killed(self):
        self.boot(WORKER.format('ticks="0.01"'))
        worker = self.fork('work')
        # Before, it may wait for the template to let it begin.
        self.assertEqual('tick', worker.line())
        self.template.send_signal(signal.SIGKILL)
        self.assertEqual(-9, self.template.wait(DEADLINE))
        self.template.terminate()
        for _ in range(5):
            self.assertEqual('tick', worker.line())
        self.assertEqual(0, worker.end())

    def test_logs_are_reopened(self):
        path = self.dir / 'events.log'
        self.boot(WORKER.format('ticks="100"'), '', f'''
            <zodb>
              <mappingstorage />
            </zodb>
            <eventlog>
              <logfile>
                path {path}
              </logfile>
            </eventlog>
            ''')
        path.rename(self.dir / 'old.log')
        self.template.send_signal(signal.SIGUSR2)  # ends nothing
        worker = self.fork('work')
        self.assertRunning(worker)
        self.assertIn("Worker 'work' starts", path.read_text())

    def test_temporary_files_of_the_configuration_stay(self):
        self.boot(WORKER.format('once="true"'), '''
            import atexit, tempfile
            directory = tempfile.TemporaryDirectory()
            atexit.register(say, 'exit')

            class Removing:
                def __del__(self):
                    say('removed')
            removing = Removing()

            def tick():
                say(os.path.isdir(directory.name))
                threading.Timer(0.01, say, ['thread']).start()
            ''')
        for _ in range(2):
            worker = self.fork('work')
            self.assertEqual(0, worker.orphan.wait(DEADLINE))
            self.assertEqual('True\nthread\nexit\n', worker.rest())

    def test_what_the_configuration_prints_is_written_once(self):
        self.boot(WORKER.format('ticks="100"'), '''
            print('configured')

            def tick():
                print('tick')
            ''')
        self.assertEqual('configured\n', self.template_log())
        worker = self.fork('work')
        self.assertEqual('tick', worker.line())  # in a pipe, too
        self.assertEqual(0, worker.end())
        self.assertEqual('', worker.rest())

    def test_objects_of_the_configuration_are_frozen(self):
        self.boot(WORKER.format('once="true"'), '''
            import gc
            def tick():
                say(gc.isenabled(), gc.get_freeze_count() > 10000)
            ''')
        self.assertEqual('True True', self.fork('work').line())

    def test_a_storm(self):
        self.boot(WORKER.format('once="true"'))
        before = len(os.listdir(f'/proc/{self.template.pid}/fd'))
        for _ in range(5):
            workers = [self.fork('work') for _ in range(6)]
            for worker in workers:
                self.assertEqual(0, worker.orphan.wait(DEADLINE))
                worker.close()
                worker.stdout = worker.stderr = worker.life = -1
        self.assertEqual(
            before, len(os.listdir(f'/proc/{self.template.pid}/fd')))
        self.assertEqual([], procfs.children(self.template.pid))


class DeathTests(TemplateTestCase):
    """The end of the program that has started all."""

    def test_a_configuration_that_takes_for_ever(self):
        path = self.dir / 'here'
        conf = self.declare(WORKER.format(''), f'''
            open({str(path)!r}, 'w').close()
            while True:
                signal.pause()
            ''')
        with self.assertRaisesRegex(AssertionError, 'it ended with'):
            self.start_template(
                conf, until=lambda: (until(path.exists), self.link.close()))
        self.assertEqual(-signal.SIGIO, self.template.wait(DEADLINE))

    def test_workers_end(self):
        self.boot(WORKER.format('ticks="100"'))
        workers = [self.fork('work') for _ in range(3)]
        for worker in workers:
            self.assertEqual('tick', worker.line())
            worker.end_life()
        for worker in workers:
            self.assertEqual(0, worker.orphan.wait(DEADLINE))
            self.assertIn('has started this worker has ended',
                          worker.rest(worker.stderr))

    def test_a_tick_is_completed(self):
        self.boot(WORKER.format('ticks="100"'), f'''
            def tick():
                say('tick')
                open({str(self.dir / "go")!r}).close()  # of a FIFO
                say('done')
            ''')
        os.mkfifo(self.dir / 'go')
        worker = self.fork('work')
        self.assertEqual('tick', worker.line())
        worker.end_life()
        until(lambda: self.has_got(worker.pid, signal.SIGIO))
        worker.orphan.send_signal(signal.SIGIO)  # and no second one harms
        with open(self.dir / 'go', 'w'):
            self.assertEqual('done', worker.line())
        self.assertEqual(0, worker.orphan.wait(DEADLINE))

    def has_got(self, pid, signum):
        """Whether it waits for no such signal any more."""
        text = pathlib.Path(f'/proc/{pid}/status').read_text()
        pending = re.search('^ShdPnd:\t(.*)$', text, re.MULTILINE)[1]
        return not int(pending, 16) >> signum - 1 & 1

    def test_before_the_worker_has_booted(self):
        self.boot(WORKER.format('ticks="100"'), '''
            from gocept.runner.house import template
            become = template._become
            def late(wish, streams, *args):
                from gocept.runner.waits.deadline import NEVER, wait_for
                wait_for(streams.life, 1, NEVER)
                become(wish, streams, *args)
            template._become = late
            ''')
        worker = self.fork('work')
        worker.end_life()
        self.assertIn(worker.orphan.wait(DEADLINE),
                      (-15, 128 + signal.SIGTERM))
        self.assertEqual('', worker.rest())

    def test_up_is_killed(self):
        self.declare(WORKER.format('ticks="100"'))
        up = self.start([sys.executable, '-c', '''if True:
            import os, signal, sys
            from gocept.runner.tests.house.templates import TemplateTestCase
            class Up(TemplateTestCase):
                def runTest(self):
                    ready = self.start_template(sys.argv[1])
                    workers = [self.fork('work') for _ in range(3)]
                    for worker in workers:
                        worker.line()
                    print(self.template.pid, *(each.pid for each in workers),
                          flush=True)
                    signal.pause()
            up = Up()
            up.setUp()
            up.runTest()
            ''', str(self.dir / 'zope.conf')], stdout='pipe',
            env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
            adopt=True)
        [pids] = lines(up, 1)
        handles = [self.hold(pid) for pid in pids]
        up.send_signal(signal.SIGKILL)
        up.wait(DEADLINE)
        for handle in handles:
            self.assertTrue(ended(handle))
        with contextlib.suppress(ProcessLookupError):
            up.terminate()


class ManyForksTests(TemplateTestCase):

    level = 2  # takes a minute

    def test_many_forks_leave_nothing(self):
        ready = self.boot(WORKER.format('once="true"'))
        self.assertIsInstance(ready, Ready)
        before = os.listdir(f'/proc/{self.template.pid}/fd')
        for _ in range(1000):
            worker = self.fork('work', '--bad')
            self.assertEqual(2, worker.orphan.wait(DEADLINE))
            worker.close()
            worker.stdout = worker.stderr = worker.life = -1
        self.assertEqual(before, os.listdir(f'/proc/{self.template.pid}/fd'))
