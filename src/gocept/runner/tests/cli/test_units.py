"""``gocept-runner units``: what systemd is told to start."""

import contextlib
import io
import os
import pathlib
import re
import shlex
import subprocess
import sys
import unittest
from unittest import mock

from gocept.runner import appmain, cli, errors, once
from gocept.runner.cli import units
from gocept.runner.cli.mistakes import UserError
from gocept.runner.tests.declaring import DeclaringTestCase
from gocept.runner.tests.operation.managers import Manager
from gocept.runner.tests.services import need
from gocept.runner.tests.support import DEADLINE

HERE = __name__


@appmain(ticks=5)
def clean() -> None:
    """Removes 100 % of what is old.

    And more.
    """


@appmain(schedule='30 2 13 * fri', timezone='Europe/Berlin', jitter=4.5,
         missed='once', tick_timeout=600, shutdown_timeout=20)
def nightly() -> None:
    pass


@once()
def single() -> None:
    pass


WORKERS = f'''
    <runner:worker name="clean" handler="{HERE}.clean" />
    <runner:worker name="nightly" handler="{HERE}.nightly" />
    <runner:worker name="single" handler="{HERE}.single" />
'''


class UnitsTests(DeclaringTestCase):

    def setUp(self) -> None:
        super().setUp()
        self.script = self.dir / 'bin' / 'gocept-runner'
        self.script.parent.mkdir()
        self.script.touch(0o755)
        self.out = self.dir / 'units'

    def run_units(self, *args: str, body: str = WORKERS) -> tuple[int, str]:
        """The status, and all output."""
        self.config = self.conf(body)
        output = io.StringIO()
        with (contextlib.redirect_stdout(output),
              contextlib.redirect_stderr(output),
              mock.patch('sys.argv', [str(self.script)])):
            status = cli.main(['units', '--config', self.config, *args])
        return status, output.getvalue()

    def written(self, *args: str, body: str = WORKERS) -> dict[str, str]:
        status, output = self.run_units(
            '--output', str(self.out), '--user', 'shop', *args, body=body)
        self.assertEqual(0, status, output)
        return {path.name: path.read_text() for path in self.out.iterdir()}

    def test_a_service(self) -> None:
        self.assertEqual(f'''\
# Written by gocept-runner units for {self.dir}/zope.conf
[Unit]
Description=Worker clean: Removes 100 %% of what is old.
Wants=network-online.target
After=network-online.target

[Service]
Type=notify
User=shop
WorkingDirectory={self.dir}
ExecStart={self.script} run clean --config={self.dir}/zope.conf
KillMode=mixed
ExecReload=/bin/kill -USR2 $MAINPID
TimeoutStartSec=10min
TimeoutStopSec=90
SuccessExitStatus=143
Restart=on-failure
RestartSec=5
RestartPreventExitStatus=2 66 67 78
NoNewPrivileges=yes
ProtectSystem=full
ProtectControlGroups=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
RestrictSUIDSGID=yes
LockPersonality=yes

[Install]
WantedBy=multi-user.target
''', self.written()['worker-clean.service'])

    def test_time_limits(self) -> None:
        text = self.written()['worker-nightly.service']
        self.assertIn('\nWatchdogSec=610\n', text)
        self.assertIn('\nTimeoutStopSec=620\n', text)

    def test_a_limit_that_systemd_cannot_have(self) -> None:
        text = self.written(body=f'''
            <runner:worker name="clean" handler="{HERE}.clean"
                           tick_timeout="1e300" />
        ''')['worker-clean.service']
        self.assertIn('\nWatchdogSec=infinity\n', text)
        self.assertIn('\nTimeoutStopSec=infinity\n', text)

    def test_a_worker_that_runs_once(self) -> None:
        files = self.written('--timers')
        self.assertNotIn('worker-single.timer', files)
        text = files['worker-single.service']
        self.assertIn('\nType=oneshot\n', text)
        self.assertNotRegex(text, 'Restart=|Install|--once')

    def test_a_timer(self) -> None:
        files = self.written('--timers', 'nightly')
        self.assertEqual({'worker-nightly.service', 'worker-nightly.timer'},
                         {*files})
        self.assertRegex(files['worker-nightly.service'], re.compile(
            '^Type=oneshot$.*^ExecStart=.* --once$', re.DOTALL | re.MULTILINE))
        self.assertEqual('''\
[Timer]
OnCalendar=*-*-13 02:30:00 Europe/Berlin
OnCalendar=Fri *-*-* 02:30:00 Europe/Berlin
AccuracySec=1s
RandomizedDelaySec=5
Persistent=yes

[Install]
WantedBy=timers.target
''', files['worker-nightly.timer'].partition('\n\n')[2])

    def test_kernels(self) -> None:
        files = self.written(body=WORKERS + '''
            <runner:kernel />
            <runner:kernel name="web" path="/run/shop/kernel" />''')
        self.assertIn(
            '\nAfter=network-online.target process-kernel.service '
            'process-kernel-web.service\n', files['worker-clean.service'])
        self.assertEqual(f'''\
# Written by gocept-runner units for {self.dir}/zope.conf
[Unit]
Description=Process kernel web
Wants=network.target
After=network.target

[Service]
Type=notify
NotifyAccess=all
User=shop
RuntimeDirectory=shop
RuntimeDirectoryPreserve=yes
ExecStart={self.script} kernel start --foreground --path=/run/shop/kernel
ExecReload={self.script} kernel upgrade --path=/run/shop/kernel
KillMode=process
OOMPolicy=continue
OOMScoreAdjust=-500
Restart=on-failure
RestartPreventExitStatus=71

[Install]
WantedBy=multi-user.target
''', files['process-kernel-web.service'])
        self.assertIn(' --foreground --port=20202\n',
                      files['process-kernel.service'])
        self.verify(files)
        _, output = self.run_units('clean', '--prefix', 'shop-')
        self.assertIn('# shop-worker-clean.service\n', output)

    def test_a_schedule_that_no_timer_has(self) -> None:
        self.assertEqual((
            errors.BAD_USAGE,
            "gocept-runner units: error: late: schedule '0 0 */2 * 5L': a "
            'timer of systemd cannot count days from the end of a month and '
            'from its beginning together; leave out --timers\n',
        ), self.run_units('--user', 'shop', '--timers', body=f'''
            <runner:worker name="late" handler="{HERE}.nightly"
                schedule="0 0 */2 * 5L" />'''))

    def test_without_a_directory_they_are_shown(self) -> None:
        status, output = self.run_units('clean', '--user', 'shop')
        self.assertEqual(0, status)
        self.assertTrue(output.startswith('# worker-clean.service\n\n# Writ'))
        self.assertNotIn('nightly', output)

    def test_what_to_do_next(self) -> None:
        _, output = self.run_units(
            '--user', 'shop', '--output', str(self.out), '--timers')
        self.assertEqual(f'''\
gocept-runner units: only one program at a time can open {self.dir}/Data.fs, \
but these are 3 workers: a ZEO server lets several share it
Written: {self.out}/worker-clean.service
Written: {self.out}/worker-nightly.service
Written: {self.out}/worker-nightly.timer
Written: {self.out}/worker-single.service
Go on, as root, with:
    systemctl daemon-reload
    systemctl enable --now worker-clean.service worker-nightly.timer
''', output)

    def test_nothing_that_differs_is_replaced(self) -> None:
        self.written()
        changed = self.out / 'worker-clean.service'
        changed.write_text('mine')
        (self.out / 'worker-single.service').unlink()
        status, output = self.run_units(
            '--user', 'shop', '--output', str(self.out))
        self.assertEqual(errors.BAD_USAGE, status)
        self.assertIn('worker-clean.service in ', output)
        self.assertEqual('mine', changed.read_text())
        self.assertFalse((self.out / 'worker-single.service').exists())
        _, output = self.run_units(
            '--user', 'shop', '--output', str(self.out), '--force')
        self.assertIn('Written: ' + str(changed), output)
        self.assertIn(f'Unchanged: {self.out}/worker-nightly', output)
        self.assertIn('Type=notify', changed.read_text())
        self.assertEqual(0o644, changed.stat().st_mode & 0o777)

    def test_where_nothing_can_be_written(self) -> None:
        (self.dir / 'file').touch()
        for place in 'file', 'file/below':
            status, output = self.run_units(
                '--user', 'shop', '--output', str(self.dir / place))
            self.assertEqual(errors.WORKER_FAILED, status)
            self.assertRegex(output, 'cannot be written: ')

    def test_bad_usage(self) -> None:
        for args, message in (
                (['nobody', '--user', 'u'],
                 "no worker 'nobody' is declared; there are: "),
                (['--user', 'a b'], "'a b' is no name of a user"),
                (['--user', 'u', '--prefix', 'x' * 250], 'too long'),
                (['--user', 'u', '--command', 'gone'], 'gone cannot be run')):
            with self.subTest(args=args):
                status, output = self.run_units(*args)
                self.assertEqual(errors.BAD_USAGE, status)
                self.assertRegex(output, message)
                self.assertEqual(1, output.rstrip('\n').count('\n') + 1)

    def test_without_workers(self) -> None:
        self.assertEqual(
            (0, 'No worker is declared, so there is nothing to write.\n'),
            self.run_units('--user', 'shop', body=''))

    def test_who_names_no_user_is_told(self) -> None:
        _, output = self.run_units('clean')
        self.assertIn('without --user, the workers run as root\n', output)
        self.assertNotIn('User=', output)

    def test_one_worker_needs_no_zeo_server(self) -> None:
        _, output = self.run_units('clean', 'clean', '--user', 'shop')
        self.assertNotIn('ZEO', output)
        _, output = self.run_units('clean', 'single', '--user', 'shop')
        self.assertIn('/Data.fs, but these are 2 workers: a ZEO ', output)

    def test_some_options_are_given_on(self) -> None:
        _, output = self.run_units(
            'clean', '--user', 'shop', '--application', 'toolkit',
            '--site', 'intranet/my news')
        self.assertIn(
            '/zope.conf "--site=intranet/my news" --application=toolkit\n',
            output)

    def test_a_database_in_a_protected_directory(self) -> None:
        with mock.patch.object(units, '_PROTECTED', (str(self.dir),)):
            _, output = self.run_units('clean', '--user', 'shop')
        self.assertIn(f'\nReadWritePaths={self.dir}\n', output)

    def test_a_user_without_a_state_directory(self) -> None:
        config = self.write('memory.conf', '''
            <zodb>
              <mappingstorage />
            </zodb>
            ''')
        with mock.patch.dict(os.environ, XDG_STATE_HOME='relative'):
            self.assertEqual(
                (0, 'No worker is declared, so there is nothing to write.\n'),
                self.run_units('--user', 'u', '--config', str(config)))

    def test_odd_names(self) -> None:
        files = self.written(body=f'''
            <runner:worker name="a b/c@d" handler="{HERE}.clean" />''')
        name, = files
        self.assertEqual(r'worker-a\x20b\x2fc\x40d.service', name)
        self.assertIn(' run "a b/c@d" ', files[name])

    def test_systemd_understands_them(self) -> None:
        self.verify(self.written('--timers'))

    def test_systemd_understands_odd_paths(self) -> None:
        odd = self.dir / 'a 100%h $HOME "dir" \\ \'x\';'
        odd.mkdir()
        self.script = self.dir / '100%h $HOME;gocept-runner'
        self.script.touch(0o755)
        config = odd / 'zope.conf'
        config.write_text(pathlib.Path(self.conf(WORKERS)).read_text())
        self.verify(self.written(
            'clean', '--config', str(config), '--command', str(self.script)))

    def test_what_is_written_runs(self) -> None:
        self.script.write_text(
            f'#!{sys.executable}\nimport sys\nsys.path[:] = {sys.path!r}\n'
            'from gocept.runner.cli import main\nsys.exit(main())\n')
        text = self.written('nightly')['worker-nightly.service']
        settings = dict(re.findall(r'^(\w+)=(.*)$', text, re.MULTILINE))
        manager = Manager(
            self.dir, watchdog=float(settings['WatchdogSec']),
            timeout=float(settings['TimeoutStopSec']))
        self.addCleanup(manager.kill)
        manager.start(shlex.split(settings['ExecStart']), pathlib.Path(
            settings['WorkingDirectory']))
        manager.until(lambda: 'Next tick at' in manager.status)
        self.assertEqual('active', manager.state)
        subprocess.run(
            settings['ExecReload'], shell=True, check=True,
            env=os.environ | {'MAINPID': str(manager.process.pid)})
        manager.until(lambda: any(
            'RELOADING=1' in message for message in manager.messages))
        manager.until_state('active')
        manager.stop()
        manager.until_state('dead')
        self.assertEqual('success', manager.result)

    def verify(self, files: dict[str, str]) -> None:
        analyze = need(self, 'systemd-analyze')
        self.assertTrue(files)
        done = subprocess.run(
            [analyze, 'verify', *(str(self.out / name) for name in files)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=DEADLINE)
        self.assertEqual((0, ''), (done.returncode, done.stdout))


class CommandLineTests(unittest.TestCase):

    def test_words(self) -> None:
        for words, expected in (
                (['/bin/a', '--b=c'], '/bin/a --b=c'),
                (['/a b', 'c;d', ';'], '"/a b" "c;d" ";"'),
                (['/a', '100%'], '/a 100%%'),
                (['/a', '"b"', 'c\\d', "e'f"],
                 r'/a "\"b\"" "c\\d" "e' "'" 'f"'),
                (['/a', '$HOME', '${X}'], ':/a "$HOME" "${X}"'),
                (['/a', ''], '/a ""')):
            with self.subTest(words=words):
                self.assertEqual(expected, units.command_line(words))

    def test_a_shell_reads_the_same(self) -> None:
        # Where no dollar sign and no backquote is, the rules agree.
        words = ['/a b', 'c"d', "e'f", 'g\\h', ';', '']
        self.assertEqual(words, shlex.split(units.command_line(words)))

    def test_what_no_unit_has(self) -> None:
        with self.assertRaisesRegex(UserError, '^/a"b: systemd starts no'):
            units.command_line(['/a"b'])
        for word in 'a\nb', '\x1b', '\udcff', ' a', 'a ', 'a\\':
            with self.subTest(word=word), self.assertRaises(UserError):
                units.command_line([word])

    def test_the_command(self) -> None:
        with (mock.patch('sys.argv', ['-c']),
              mock.patch('sys.prefix', '/nowhere'),
              mock.patch.dict(os.environ, PATH='/nowhere'),
              self.assertRaisesRegex(UserError, '--command')):
            units._command(None)
        with mock.patch('sys.argv', ['-c']), mock.patch(
                'shutil.which', return_value='bin/gocept-runner'):
            self.assertTrue(pathlib.Path(
                *units._command(None)).is_absolute())
