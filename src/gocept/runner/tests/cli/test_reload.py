import signal

from gocept.runner.tests.cli.ups import UpTestCase


class ReloadTests(UpTestCase):

    def test_new_code(self):
        up = self.up()
        up.wait_for('version 1 runs')
        self.version(2)
        self.assertEqual(
            (0, 'The new code has booted: 1 worker changes over after its '
             'tick.\n'), self.ended(['reload']))
        up.wait_for('version 2 runs')
        up.send(signal.SIGTERM)
        self.assertEqual(0, up.end())

    def test_code_that_cannot_boot(self):
        up = self.up()
        up.wait_for('version 1 runs')
        self.write('shop.py', 'this is no Python')
        status, output = self.ended(['reload'])
        self.assertEqual(1, status)
        self.assertRegex(
            output, r'^gocept-runner reload: error: the new code cannot boot, '
            r'so the workers go on with the old: .*SyntaxError.*\n$')
        up.send(signal.SIGTERM)
        self.assertEqual(0, up.end())
        self.assertIn('ERROR gocept.runner.house The new code cannot boot',
                      up.output)

    def test_nothing_runs(self):
        self.assertEqual(
            (69, 'gocept-runner reload: error: no "gocept-runner up" runs for '
             f'{self.dir}/zope.conf, as this user\n'),
            self.ended(['reload']))

    def test_one_that_was_killed(self):
        up = self.up()
        up.wait_for('version 1 runs')
        up.send(signal.SIGKILL)
        up.process.wait()
        status, output = self.ended(['reload'])
        self.assertEqual(69, status)
        self.assertIn('no "gocept-runner up" runs', output)

    def test_it_takes_too_long(self):
        up = self.up()
        up.wait_for('version 1 runs')
        up.send(signal.SIGSTOP)
        try:
            self.assertEqual(
                (124, 'gocept-runner reload: error: the new code has not '
                 'booted in 0.1 s; the workers go on with the old until it '
                 'has\n'), self.ended(['reload', '--timeout', '0.1']))
        finally:
            up.send(signal.SIGCONT)
        up.send(signal.SIGTERM)
        self.assertEqual(0, up.end())

    def test_a_bad_timeout(self):
        for value in '0', '-1', 'nan', 'soon', 'inf':
            status, output = self.ended(['reload', '--timeout', value])
            self.assertEqual(2, status)
            self.assertIn(f'not a number of seconds above 0: {value!r}',
                          output)
