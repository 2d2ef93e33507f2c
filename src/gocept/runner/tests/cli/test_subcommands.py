"""The command ``gocept-runner``, and how it finds its subcommands."""

import contextlib
import inspect
import io
import json
import signal
import subprocess
import sys
import threading
import types
import unittest
from importlib import import_module
from unittest import mock

from gocept.runner import cli
from gocept.runner.cli import declared, subcommands
from gocept.runner.cli import run as run_command
from gocept.runner.tests.support import DEADLINE, child_environment


class MainTests(unittest.TestCase):

    def run_main(self, *argv: str) -> tuple[int, str, str]:
        """The status, and what was written to standard output and error."""
        with (contextlib.redirect_stdout(io.StringIO()) as stdout,
              contextlib.redirect_stderr(io.StringIO()) as stderr):
            try:
                status = cli.main(argv)
            except SystemExit as error:
                status = error.code  # type: ignore[assignment]
        return status, stdout.getvalue(), stderr.getvalue()

    def test_the_subcommands(self) -> None:
        self.assertEqual(
            {'new', 'run', 'list', 'next', 'shell', 'kernel', 'server',
             'terminate', 'call', 'servers', 'status', 'units', 'version',
             'up', 'reload'},
            {*subcommands.SUBCOMMANDS})
        for module, function, text in subcommands.SUBCOMMANDS.values():
            it = getattr(import_module(module), function)
            self.assertEqual(['argv'], [*inspect.signature(it).parameters])
            self.assertTrue(text)

    def test_a_subcommand_gets_what_follows_and_gives_the_status(self) -> None:
        with mock.patch.object(
                run_command, 'run', return_value=7) as run:
            self.assertEqual(
                (7, '', ''),
                self.run_main('run', 'name', '--help', '--', '--config', 'x'))
        run.assert_called_once_with(('name', '--help', '--', '--config', 'x'))

    def test_the_arguments_of_the_program(self) -> None:
        with mock.patch.object(declared, 'list_', return_value=0) as list_:
            with mock.patch('sys.argv', ['gocept-runner', 'list', 'more']):
                self.assertEqual(0, cli.main())
        list_.assert_called_once_with(['more'])

    def test_an_interrupt_while_it_is_imported(self) -> None:
        with mock.patch.object(subcommands, 'import_module',
                               side_effect=KeyboardInterrupt):
            self.assertEqual((130, '', 'gocept-runner: interrupted\n'),
                             self.run_main('list'))

    def test_an_interrupt_that_an_import_throws_away(self) -> None:
        def throwing(name: str) -> types.ModuleType:
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            return import_module(name)
        self.addCleanup(signal.signal, signal.SIGINT,
                        signal.getsignal(signal.SIGINT))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with (mock.patch.object(subcommands, 'import_module', throwing),
              mock.patch.object(declared, 'list_') as list_):
            self.assertEqual((130, '', 'gocept-runner: interrupted\n'),
                             self.run_main('list'))
        list_.assert_not_called()
        self.assertIs(signal.default_int_handler,
                      signal.getsignal(signal.SIGINT))

    def test_the_handler_of_a_caller_stays_while_it_is_imported(self) -> None:
        came = []
        self.addCleanup(signal.signal, signal.SIGINT,
                        signal.getsignal(signal.SIGINT))
        signal.signal(signal.SIGINT, lambda signum, frame: came.append(signum))

        def raising(name: str) -> types.ModuleType:
            signal.raise_signal(signal.SIGINT)
            return import_module(name)
        with (mock.patch.object(subcommands, 'import_module', raising),
              mock.patch.object(declared, 'list_', return_value=0)):
            self.assertEqual((0, '', ''), self.run_main('list'))
        self.assertEqual([signal.SIGINT], came)

    def test_outside_the_main_thread(self) -> None:
        self.addCleanup(signal.signal, signal.SIGINT,
                        signal.getsignal(signal.SIGINT))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        statuses = []
        thread = threading.Thread(
            target=lambda: statuses.append(cli.main(['list'])))
        with mock.patch.object(declared, 'list_', return_value=7):
            thread.start()
            thread.join(DEADLINE)
        self.assertEqual([7], statuses)

    def test_nobody_reads_any_more(self) -> None:
        program = subprocess.Popen(
            [sys.executable, '-c', 'import sys; '
             'from gocept.runner import cli; '
             'from gocept.runner.cli import declared; sys.stdin.read(); '
             'declared.list_ = print; sys.exit(cli.main(["list"]))'],
            env=child_environment(), stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert program.stdout is not None
        program.stdout.close()
        _, errors = program.communicate(timeout=DEADLINE)
        self.assertEqual((141, b''), (program.returncode, errors))

    def test_the_output_cannot_be_written(self) -> None:
        program = ('import sys; from gocept.runner import cli; '
                   'from gocept.runner.cli import declared; '
                   'declared.list_ = print; sys.exit(cli.main())')
        for unbuffered, argv in ('', '--help'), ('', 'list'), ('1', 'list'):
            with (self.subTest(argv, unbuffered=unbuffered),
                  open('/dev/full', 'wb') as full):
                done = subprocess.run(
                    [sys.executable, '-c', program, argv],
                    env={**child_environment(),
                         'PYTHONUNBUFFERED': unbuffered},
                    stdout=full, stderr=subprocess.PIPE, timeout=DEADLINE)
                self.assertEqual((
                    1, b'gocept-runner: error: the output cannot be written: '
                    b'No space left on device\n'),
                    (done.returncode, done.stderr))

    def test_help(self) -> None:
        for option in ('--help', '-h'):
            status, output, errors = self.run_main(option)
            self.assertEqual((0, ''), (status, errors))
            self.assertTrue(output.startswith(
                'usage: gocept-runner COMMAND [options]\n'), output)
            for name, (_, _, text) in subcommands.SUBCOMMANDS.items():
                self.assertRegex(output, rf'(?m)^  {name} +{text}$')

    def test_help_of_the_subcommands(self) -> None:
        for name in subcommands.SUBCOMMANDS:
            status, output, errors = self.run_main(name, '--help')
            self.assertEqual((0, ''), (status, errors))
            self.assertTrue(output.startswith(f'usage: gocept-runner {name}'),
                            output)
            for expected in ('examples:', 'statuses:', ' 2  bad usage'):
                self.assertIn(expected, output)
            if name in ('run', 'list', 'next'):
                for expected in '--config FILE', '78  bad configuration':
                    self.assertIn(expected, output)

    def test_mistakes(self) -> None:
        names = ', '.join(subcommands.SUBCOMMANDS)
        for argv, expected in (
                ([], f'error: a COMMAND is needed: {names}'),
                (['begin'], "error: there is no command 'begin'; there are: "
                 + names),
                (['ru'], "error: there is no command 'ru' (did you mean run?);"
                 ' there are: new, '),
                (['--config', 'zope.conf'],
                 'error: unrecognized arguments: --config'),
                (['--conf'], 'error: unrecognized arguments: --conf')):
            with self.subTest(argv):
                status, output, errors = self.run_main(*argv)
                self.assertEqual((2, ''), (status, output))
                self.assertIn('gocept-runner: ' + expected,
                              errors.splitlines()[-1])


class LazyImportTests(unittest.TestCase):
    """What is not needed is not waited for."""

    def imported(self, *argv: str) -> set[str]:
        """The modules that a call imports."""
        program = '\n'.join([
            'import contextlib, io, json, sys',
            'from gocept.runner import cli',
            'with contextlib.redirect_stdout(io.StringIO()):',
            '    try:',
            '        cli.main(sys.argv[1:])',
            '    except SystemExit:',
            '        pass',
            'print(json.dumps([*sys.modules]))'])
        process = subprocess.run(
            [sys.executable, '-c', program, *argv], check=True,
            # Where no server of the user is to be asked.
            env=child_environment(XDG_STATE_HOME='/nowhere'),
            stdout=subprocess.PIPE, text=True, timeout=DEADLINE)
        return {*json.loads(process.stdout)}

    def test_help(self) -> None:
        modules = self.imported('--help')
        self.assertIn('gocept.runner.cli', modules)
        self.assertEqual([], sorted(
            name for name in modules
            if name.partition('.')[0] in ('ZConfig', 'ZODB', 'transaction',
                                          'zope')))
        self.assertNotIn('gocept.runner.cli.declared', modules)

    def test_a_kernel_needs_no_database(self) -> None:
        modules = self.imported('kernel', 'status', '--help')
        self.assertIn('gocept.runner.cli.kernel', modules)
        self.assertEqual([], sorted(
            name for name in modules
            if name.partition('.')[0] in ('ZConfig', 'ZODB', 'transaction',
                                          'zope')))

    def test_background_servers_need_no_database(self) -> None:
        for command in 'version', 'servers':
            modules = self.imported(command)
            self.assertIn('gocept.runner.cli.servers', modules)
            self.assertEqual([], sorted(
                name for name in modules if name.partition('.')[0] in (
                    'ZConfig', 'ZODB', 'cloudpickle', 'transaction', 'zope')))

    def test_that_the_modules_are_imported_at_all(self) -> None:
        modules = self.imported('list', '--help')
        self.assertLessEqual({'gocept.runner.cli.declared', 'ZODB'}, modules)
