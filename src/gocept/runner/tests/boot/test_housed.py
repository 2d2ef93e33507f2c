"""The beginning and the end of a worker that was forked."""

import os
import signal

from gocept.runner.boot import environments
from gocept.runner.boot.environments import Settings
from gocept.runner.boot.housed import Life, Warm
from gocept.runner.boot.program import configuration, unguarded
from gocept.runner.errors import Terminated
from gocept.runner.signals import Shutdown
from gocept.runner.signals.shutdown import booting, requesting
from gocept.runner.tests.support import TestCase


class LifeTests(TestCase):

    def setUp(self):
        super().setUp()
        read, self.end = os.pipe()
        self.life = Life(read)
        os.close(read)
        self.addCleanup(self.life.close)

    def end_it(self):
        os.close(self.end)

    def test_a_loop_is_asked_to_end(self):
        handlers = [*map(signal.getsignal, (signal.SIGIO, signal.SIGTERM))]
        with (self.assertLogs('gocept.runner.house', 'WARNING') as logs,
              self.life.watched(), Shutdown() as shutdown,
              requesting(shutdown)):
            self.assertFalse(shutdown.requested)
            self.assertFalse(self.life.is_over)
            self.end_it()
            self.assertTrue(shutdown.wait(60))
            self.assertEqual(signal.SIGTERM, shutdown.signum)
        self.assertEqual(handlers, [*map(
            signal.getsignal, (signal.SIGIO, signal.SIGTERM))])
        self.assertIn('has started this worker has ended', logs.output[0])

    def test_the_start_of_a_worker_is_ended(self):
        with self.assertRaises(Terminated) as raised:
            with self.life.watched(), booting():
                self.end_it()
                signal.pause()
        self.assertEqual(signal.SIGTERM, raised.exception.signum)

    def test_one_that_has_ended_before(self):
        self.end_it()
        with self.assertLogs('gocept.runner.house', 'WARNING'):
            with Shutdown() as shutdown, self.life.watched():
                self.assertTrue(shutdown.requested)

    def test_one_that_is_ending_is_left_alone(self):
        with (self.assertLogs('gocept.runner.house', 'WARNING'),
              self.life.watched(), Shutdown() as shutdown):
            shutdown.request(signal.SIGINT)
            self.end_it()
            self.assertTrue(shutdown.wait(60))
            signal.raise_signal(signal.SIGIO)
            self.assertEqual(signal.SIGINT, shutdown.signum)

    def test_a_worker_that_ends_first(self):
        with self.assertNoLogs('gocept.runner.house'):
            with self.life.watched():
                pass
        self.end_it()


class WarmTests(TestCase):

    def configured(self, **options):
        """What a worker finds, after that with the same zope.conf."""
        conf = self.zope_conf()
        with configuration(conf, settings=Settings(log_format='json')) as it:
            pass
        warm = Warm(it, Settings(log_format='json'), 0)
        os.unlink(conf)  # it is not read again
        with warm.configuration(
                conf, unguarded, Settings(**options), verbose=0) as found:
            self.assertIs(it, found)
        self.assertEqual('toolkit', environments.current().name)

    def test_the_configuration_is_the_same(self):
        self.configured()

    def test_other_settings(self):
        self.configured(log_format='text')


class MoveInTests(TestCase):
    """In a program, as the process is changed for good."""

    preamble = '''
        import os, sys, tempfile, threading, atexit
        from gocept.runner.boot import housed
        from gocept.runner.process.marks import MARKER
        os.environ[MARKER] = 'above.1 template.2'
        '''

    def test_standard_streams_and_marks(self):
        program = self.program(self.preamble + '''
        out, error = (os.open(name, os.O_WRONLY | os.O_CREAT)
                      for name in ('out', 'error'))
        housed.move_in(out, error, 'up.3', ['run', 'it'], 'a long name ä')
        print(sys.argv, os.environ[MARKER], os.readlink('/proc/self/fd/0'))
        print(open('/proc/self/comm').read().strip(), flush=True)
        print('bad', file=sys.stderr)
        os.system('echo from below; echo bad below >&2')
        ''')
        self.assertEqual(0, program.end(), program.output)
        self.assertEqual('', program.output)
        self.assertEqual(
            "['run', 'it'] above.1 up.3 /dev/null\na long name \xe4\n"
            'from below\n', (self.dir / 'out').read_text())
        self.assertEqual('bad\nbad below\n', (self.dir / 'error').read_text())

    def end(self, main, before=''):
        """The status and the output of a process with this function."""
        program = self.program(self.preamble + f'''
        def main():
            {main}
        {before}
        housed.end_process(main)
        ''')
        return program.end(), program.output

    def test_statuses(self):
        self.assertEqual((3, ''), self.end('return 3'))
        self.assertEqual((4, ''), self.end('sys.exit(4)'))
        self.assertEqual((0, ''), self.end('sys.exit()'))
        self.assertEqual((1, 'why\n'), self.end('sys.exit("why")'))
        status, output = self.end('raise ValueError("it")')
        self.assertEqual(1, status)
        self.assertIn('Traceback', output)
        self.assertIn('ValueError: it', output)

    def test_what_is_done_at_the_end(self):
        status, output = self.end(
            'atexit.register(print, "exit"); threading.Timer('
            '0.01, print, ["thread"]).start(); print("main"); return 0')
        self.assertEqual((0, 'main\nthread\nexit\n'), (status, output))

    def test_files_of_the_template_stay(self):
        status, output = self.end(
            'print(directory.name); return 0',
            'directory = tempfile.TemporaryDirectory()')
        self.assertEqual(0, status)
        os.rmdir(output.strip())

    def test_nobody_reads_the_output(self):
        status, _ = self.end(
            'os.close(1); print("lost"); return 5',
            'sys.stdout = open(1, "w", closefd=False)')
        self.assertEqual(5, status)
