"""``gocept-runner shell``: in this process, and on a terminal."""

import contextlib
import io
import os
import pathlib
import pty
import signal
import subprocess
import sys
from unittest import mock

from ZODB.FileStorage import FileStorage

from gocept.runner.tests.cli.test_declared import CommandTestCase
from gocept.runner.tests.support import (
    DEADLINE,
    child_environment,
    ignore_nothing,
    process_state,
)
from gocept.runner.waits.deadline import READABLE, Deadline, wait_for

COMMAND = ('from gocept.runner.cli import main; import sys; '
           'sys.exit(main(["shell", *sys.argv[1:]]))')

BUSY = r"exec('print(\"<busy>\")\nwhile True: pass')" + '\n'
"""Waits in no system call, which could begin just after a signal; readline
has such a call, too."""


class ShellTests(CommandTestCase):

    def run_code(self, code: str, *argv: str) -> object:
        return self.command('shell', '-c', code, *argv)

    def run_script(self, script: str | None, *argv: str,
                   encoding: str = 'utf-8') -> object:
        stdin = None if script is None else io.TextIOWrapper(
            io.BytesIO(script.encode(encoding)))
        with mock.patch('sys.stdin', stdin):
            return self.command('shell', *argv)

    def assertSilent(self) -> None:
        self.assertEqual(('', ''), (self.output, self.errors))

    def test_what_there_is(self) -> None:
        self.conf('')
        before = process_state()
        self.assertEqual(0, self.run_code(
            'from zope.component.hooks import getSite\n'
            'from zope.security.management import queryInteraction\n'
            'import zope.component\n'
            'from gocept.runner.interfaces import IRunner\n'
            'print(type(app).__name__, app is site is getSite())\n'
            'print(queryInteraction(), __name__)\n'
            'print(zope.component.getUtility(IRunner) is not None)\n'
            'print(transaction.get().isDoomed())\n'), self.errors)
        self.assertEqual('Folder True\nNone __main__\nTrue\nFalse\n',
                         self.output)
        self.assertEqual(before, process_state())

    def test_what_is_committed_is_stored(self) -> None:
        self.conf('')
        self.assertEqual(0, self.run_code('app.x = 1; transaction.commit()'))
        self.assertSilent()
        self.assertEqual(0, self.run_code('app.x = 2'))
        self.assertEqual(
            'gocept-runner shell: there were changes that were not '
            'committed, and they are undone\n', self.errors)
        self.assertEqual(0, self.run_code('print(app.x)'))
        self.assertEqual('1\n', self.output)

    def test_a_script_in_a_file(self) -> None:
        self.conf('')
        path = self.write('script.py', 'print(__file__, type(app).__name__)\n'
                          'app.x = 1; transaction.commit()\n1 / 0\n')
        self.assertEqual(1, self.command('shell', str(path)))
        self.assertEqual(f'{path} Folder\n', self.output)
        self.assertIn(f'File "{path}", line 3', self.errors)
        self.assertMistake(2, 'shell', 'missing.py', expected=('missing.py',))

    def test_its_arguments(self) -> None:
        self.conf('')
        path = str(self.write('script.py', 'import sys; print(sys.argv)'))
        before = sys.argv
        for argv in (['a', '--all', '--site', 'x', '-c'], ['a', '--', 'b'],
                     []):
            for ours in ([], ['-v'], ['--principal', 'zope.mgr', '-vv'],
                         ['--application=toolkit']):
                self.assertEqual(
                    0, self.command('shell', *ours, path, *argv), self.errors)
                self.assertEqual(f'{[path, *argv]}\n', self.output)
        for between in (['--', path, '--all'], [path, '--', '--all']):
            self.assertEqual(0, self.command('shell', *between), self.errors)
            self.assertEqual(f'{[path, "--all"]}\n', self.output)
        self.assertEqual(0, self.run_code('import sys; print(sys.argv)'))
        self.assertEqual("['-c']\n", self.output)
        self.assertIs(before, sys.argv)

    def test_a_script_on_standard_input(self) -> None:
        self.conf('')
        self.assertEqual(0, self.run_script(
            'def square(number):\n    return number * factor\n'
            'factor = 7\n'
            'print([square(each) for each in range(3)])\n'))
        self.assertEqual(('[0, 7, 14]\n', ''), (self.output, self.errors))
        for nothing in '', None:
            self.assertEqual(0, self.run_script(nothing))
            self.assertSilent()

    def test_a_script_in_another_encoding(self) -> None:
        self.conf('')
        self.assertEqual(0, self.run_script(
            '# coding: latin-1\nprint(ascii("é"))', encoding='latin-1'))
        self.assertEqual("'\\xe9'\n", self.output)
        self.assertEqual(1, self.run_script('"é"', encoding='latin-1'))
        self.assertRegex(self.errors, 'SyntaxError: .*utf-8')

    def test_an_exception(self) -> None:
        self.conf('')
        for run, name in ((self.run_code, '<string>'),
                          (self.run_script, '<stdin>')):
            self.assertEqual(1, run('app.x = 1\ntransaction.commit()\n1 / 0'))
            self.assertEqual(
                'Traceback (most recent call last):\n'
                f'  File "{name}", line 3, in <module>\n'
                'ZeroDivisionError: division by zero\n', self.errors)
            self.assertEqual(1, run('1 +'))
            self.assertRegex(
                self.errors, f'^  File "{name}", line \\d\n(?s:.*)SyntaxError')
        self.assertEqual(0, self.run_code('print(app.x)'))
        self.assertEqual('1\n', self.output)

    def test_an_exit(self) -> None:
        self.conf('')
        self.assertEqual(5, self.run_code('import sys; sys.exit(5)'))
        self.assertEqual('no', self.run_code('raise SystemExit("no")'))
        self.assertEqual(130, self.run_code('raise KeyboardInterrupt'))
        self.assertEqual('gocept-runner shell: interrupted\n', self.errors)

    def test_a_site(self) -> None:
        self.conf('')
        self.assertEqual(0, self.run_code(
            'from zope.site.folder import Folder\n'
            'from zope.site.site import LocalSiteManager\n'
            'app["shop"] = Folder()\n'
            'app["shop"].setSiteManager(LocalSiteManager(app["shop"]))\n'
            'transaction.commit()'), self.errors)
        self.assertEqual(0, self.run_code(
            'print(app["shop"] == site is obj, app is site)', '-O', 'shop'))
        self.assertEqual('True False\n', self.output)

    def test_a_principal(self) -> None:
        self.conf('')
        self.assertEqual(0, self.run_code(
            'import zope.security.management\n'
            'transaction.commit()\n'
            'print(zope.security.management.getInteraction()'
            '.participations[0].principal.id)', '--principal', 'zope.mgr'))
        self.assertEqual('zope.mgr\n', self.output)

    def test_what_an_undo_log_tells(self) -> None:
        self.conf('')
        for user, argv in ('', ()), ('/ zope.mgr', (
                '--principal', 'zope.mgr')):
            self.assertEqual(0, self.run_code(
                'for app.x in 1, 2: transaction.commit()\n'
                'print([(each["user_name"], each["description"])'
                ' for each in app._p_jar.db().undoLog(0, 2)])', *argv))
            self.assertEqual(f"{[(user, 'gocept-runner shell')] * 2}\n",
                             self.output)
        self.assertEqual(0, self.run_code(
            'app.x = 3; transaction.get().note("Three"); transaction.commit()'
            '\nprint(app._p_jar.db().undoLog(0, 1)[0]["description"])'))
        self.assertEqual('Three\n', self.output)

    def test_mistakes(self) -> None:
        self.conf('')
        for status, argv, expected in (
                (66, ('--site', 'x'), "no object 'x'"),
                (67, ('--principal', 'x'), 'knows the principal x'),
                (2, ('--server-url', 'http://x'),
                 '--server-url is for applications of Zope'),
                (2, ('--application', 'x'), "no kind of application 'x'"),
                (78, ('--config', 'x'), 'no such file: x')):
            self.assertMistake(status, 'shell', '-c', 'print(1)', *argv,
                               expected=(expected,))
        with contextlib.closing(FileStorage(str(self.dir / 'Data.fs'))):
            self.assertMistake(69, 'shell', '-c', 'print(1)',
                               expected=('the database open',))
        for argv, expected in ((('--x', 'y'), 'unrecognized arguments: --x'),
                               (('-c', '1', 'x'), 'either -c CODE or FILE'),
                               (('-c',), 'expected one argument')):
            self.assertBadUsage('shell', *argv, expected=expected)

    def test_children(self) -> None:
        self.conf('<runner:app name="a" command="cat" start="eager" />')
        self.assertEqual(0, self.run_code(
            'import zope.component\n'
            'from gocept.runner.interfaces import IRunner\n'
            'runner = zope.component.getUtility(IRunner)\n'
            'print([*runner.aliases()])\n'
            'runner.ensure_running("a")\n'
            'print(runner.get_process("a").pid)'), self.errors)
        none, pid = self.output.splitlines()
        self.assertEqual('[]', none)
        with self.assertRaises(ProcessLookupError):
            os.kill(int(pid), 0)


class TerminalTests(CommandTestCase):
    """A person at a terminal."""

    def setUp(self) -> None:
        super().setUp()
        self.conf('')
        ours, theirs = pty.openpty()
        self.addCleanup(os.close, ours)
        ignore_nothing()
        with os.fdopen(theirs) as terminal:
            self.shell = subprocess.Popen(
                [sys.executable, '-c', COMMAND], cwd=self.dir,
                env=child_environment(HOME=str(self.dir), TERM='dumb'),
                stdin=terminal, stdout=terminal, stderr=terminal,
                process_group=0)
        self.addCleanup(self.shell.wait)
        self.addCleanup(self.shell.kill)
        self.terminal = ours
        self.seen = ''

    def wait_for(self, text: str) -> None:
        """Read up to the text."""
        deadline = Deadline(DEADLINE)
        while text not in self.seen:
            if not wait_for(self.terminal, READABLE, deadline):
                raise AssertionError(f'{text!r} not in {self.seen!r}')
            try:
                self.seen += os.read(self.terminal, 4096).decode()
            except OSError as error:  # it has ended
                raise AssertionError(self.seen) from error
        self.said, _, self.seen = self.seen.partition(text)

    def type(self, line: str) -> None:
        """Type a line where there is a prompt."""
        self.wait_for('>>> ')
        os.write(self.terminal, line.encode())

    def test_a_session(self) -> None:
        self.wait_for('>>> ')
        for text in ('gocept.runner ', f'{self.dir}/zope.conf', 'app ',
                     'transaction.commit() stores your changes',
                     'what is not committed is undone'):
            self.assertIn(text, self.said)
        self.seen = '>>> '
        self.type('app.x = 6 * 7; 1 / 0\n')
        self.wait_for('ZeroDivisionError')
        self.type('print(f"<{app.x}>")\n')
        self.wait_for('<42>')
        self.type('transaction.commit()\n')
        self.type('app.x = 0\n')
        self.type('\x04')
        self.wait_for('not committed, and they are undone')
        self.assertEqual(0, self.shell.wait(DEADLINE))
        self.assertEqual(0, self.command('shell', '-c', 'print(app.x)'))
        self.assertEqual('42\n', self.output)
        self.assertIn('app.x = 6 * 7', pathlib.Path(
            self.dir, '.python_history').read_text())

    def test_names_are_completed(self) -> None:
        self.type('print(transac\t.__na\t)\n')
        self.wait_for('\r\ntransaction\r\n')
        self.type('exit(3)\n')
        self.assertEqual(3, self.shell.wait(DEADLINE))

    def test_an_interrupt_goes_on(self) -> None:
        self.type(BUSY)
        self.wait_for('\r\n<busy>')
        os.kill(self.shell.pid, signal.SIGINT)
        self.wait_for('KeyboardInterrupt')
        self.type('exit()\n')
        self.assertEqual(0, self.shell.wait(DEADLINE))

    def test_a_signal_ends_it_in_order(self) -> None:
        self.type(BUSY)
        self.wait_for('\r\n<busy>')
        os.kill(self.shell.pid, signal.SIGTERM)
        self.assertEqual(143, self.shell.wait(DEADLINE))
