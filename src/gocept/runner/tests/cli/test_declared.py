"""``gocept-runner run`` and ``gocept-runner list``, in this process."""

import contextlib
import functools
import io
import logging
import os
import sys
from importlib.metadata import version
from typing import Any
from unittest import mock

import transaction
import zope.component.hooks
import zope.security.management
from ZODB.FileStorage import FileStorage

from gocept.runner import cli, from_config, runner
from gocept.runner.boot.toolkit import Toolkit
from gocept.runner.interfaces import IRunner
from gocept.runner.operation.lock import locked
from gocept.runner.tests.declaring import DeclaringTestCase
from gocept.runner.tests.support import open_descriptors, reset_process

HERE = __name__

calls: list[Any] = []


def note(*args: str) -> object:
    """A worker without a decorator, which ends at once."""
    calls.append(args)
    return runner.Exit


def note_two(first: str, second: str = 'b') -> object:
    calls.append((first, second))
    return runner.Exit


def note_site() -> object:
    calls.append(zope.component.hooks.getSite().__name__)
    return runner.Exit


def note_all_the_time() -> object:
    calls.append('tick')
    return runner.Exit if len(calls) == 9 else 0


def note_three() -> object:
    calls.append('tick')
    return runner.Exit if len(calls) == 3 else None


@runner.once()
def count_up() -> object:
    site = zope.component.hooks.getSite()
    site.count = getattr(site, 'count', 0) + 1
    calls.append(site.count)
    return runner.Exit if len(calls) == 9 else 0


def note_principal() -> object:
    interaction = zope.security.management.getInteraction()
    calls.append([participation.principal.id
                  for participation in interaction.participations])
    return runner.Exit


def note_child() -> object:
    process = zope.component.getUtility(IRunner).get_process('a')
    calls.append((process.poll(), process))
    return runner.Exit


@runner.appmain(ticks=7, principal='zope.mgr', max_backoff=7)
def fail(kind: str = 'RuntimeError', *args: str) -> object:
    calls.append(kind)
    if len(calls) == 9:
        return runner.Exit
    raise eval(kind)(*map(eval, args))


@runner.appmain(principal=from_config('worker', 'principal'))
def as_configured() -> object:
    return note_principal()


class CanBeCalled:
    def __call__(self) -> object:
        return note()


instance = CanBeCalled()

partial = functools.partial(note_two, 'a')


class CommandTestCase(DeclaringTestCase):

    def setUp(self) -> None:
        super().setUp()
        calls.clear()
        # What zope.conf sets is that of the process.
        root = logging.getLogger()
        self.addCleanup(root.setLevel, root.level)
        self.addCleanup(root.handlers.__setitem__, slice(None),
                        list(root.handlers))
        root.handlers[:] = []
        self.addCleanup(sys.path.__setitem__, slice(None), list(sys.path))
        self.output = self.errors = ''

    def command(self, *argv: str) -> object:
        """Run it, where zope.conf is; returns the status."""
        with (contextlib.redirect_stdout(io.StringIO()) as stdout,
              contextlib.redirect_stderr(io.StringIO()) as stderr,
              contextlib.chdir(self.dir),
              mock.patch.dict(os.environ)):
            os.environ.pop('ZOPE_CONF', None)
            try:
                status: object = cli.main(argv)
            except SystemExit as error:
                status = error.code
        self.output, self.errors = stdout.getvalue(), stderr.getvalue()
        return status

    def assertMistake(self, status: int, *argv: str,
                      expected: tuple[str, ...] = ()) -> None:
        """It ends with one line that says what is wrong."""
        self.assertEqual(status, self.command(*argv), self.errors)
        self.assertEqual('', self.output)
        self.assertEqual(1, self.errors.count('\n'), self.errors)
        self.assertTrue(self.errors.startswith(
            f'gocept-runner {argv[0]}: error: '), self.errors)
        for text in expected:
            self.assertIn(text, self.errors)

    def assertBadUsage(self, *argv: str, expected: str) -> None:
        """The same, with the usage before it."""
        self.assertEqual(2, self.command(*argv))
        self.assertIn(expected, self.errors.splitlines()[-1])
        self.assertTrue(self.errors.startswith('usage: gocept-runner '))

    def a_worker(self, handler: str, more: str = '', name: str = 'w') -> str:
        return (f'<runner:worker name="{name}" handler="{HERE}:{handler}"'
                f' {more} />\n')

    @property
    def has_database(self) -> bool:
        return (self.dir / 'Data.fs').exists()


class ConfigTests(CommandTestCase):
    """Which zope.conf is read."""

    def test_the_one_in_the_current_directory(self) -> None:
        self.conf(self.a_worker('note'))
        self.assertEqual(0, self.command('run', 'w'))
        self.assertEqual(0, self.command('list'))

    def test_an_option(self) -> None:
        self.zope_conf('nonsense')
        self.conf(self.a_worker('note'))
        (self.dir / 'zope.conf').rename(self.dir / 'other.conf')
        for argv in (['run', 'w'], ['list']):
            self.assertEqual(
                0, self.command(*argv, '--config', 'other.conf'))
            self.assertEqual(
                0, self.command(*argv, f'--config={self.dir}/other.conf'))

    def test_the_environment(self) -> None:
        self.conf(self.a_worker('note'))
        (self.dir / 'zope.conf').rename(self.dir / 'other.conf')
        for argv in (['run', 'w'], ['list']):
            with (mock.patch.dict(os.environ, ZOPE_CONF='other.conf'),
                  contextlib.redirect_stdout(io.StringIO()),
                  contextlib.chdir(self.dir)):
                self.assertEqual(0, cli.main(argv))
                # The option comes before it.
                with contextlib.redirect_stderr(io.StringIO()) as stderr:
                    self.assertEqual(
                        78, cli.main([*argv, '--config', 'missing.conf']))
                self.assertIn('missing.conf', stderr.getvalue())
        self.assertEqual([()], calls)

    def test_none(self) -> None:
        for argv in (['run', 'w'], ['list']):
            self.assertMistake(78, *argv,
                               expected=('no such file: ./zope.conf',))
            self.assertMistake(78, *argv, '--config', '/no/such.conf',
                               expected=('no such file: /no/such.conf',))

    def test_a_wrong_one(self) -> None:
        self.zope_conf('nonsense on')
        for argv in (['run', 'w'], ['list']):
            self.assertMistake(78, *argv, expected=(
                f'{self.dir}/zope.conf, line 6', "'nonsense'"))

    def test_wrong_zcml(self) -> None:
        self.conf('<runner:app name="a" command="cat" start="soon" />')
        for argv in (['run', 'w'], ['list']):
            self.assertMistake(78, *argv, expected=(
                f'File "{self.dir}/site.zcml", line 2.', "'start'",
                "'soon' is none of lazy, eager"))
        self.conf('<runner:app name="a" command="cat" requires="b" />')
        for argv in (['run', 'w'], ['list']):
            self.assertMistake(78, *argv, expected=(
                f'File "{self.dir}/site.zcml", line 2.',
                "app 'a' requires 'b'"))
        self.conf('<runner:app name="a" command="cat" />\n' * 2)
        for argv in (['run', 'w'], ['list']):
            self.assertMistake(78, *argv, expected=(
                f'File "{self.dir}/site.zcml", line 2.',
                f'File "{self.dir}/site.zcml", line 3.',
                'Conflicting configuration actions'))
        self.assertFalse(self.has_database)

    def test_what_zcml_takes_from_zope_conf(self) -> None:
        body = self.a_worker('note', 'ticks="${product-config:my:ticks}"')
        self.conf(body, '<product-config my>\n  ticks 5\n</product-config>\n')
        self.assertEqual(0, self.command('list'))
        self.assertIn('every 5 s', self.output)

    def test_what_zope_conf_does_not_say(self) -> None:
        self.conf(self.a_worker('note', 'ticks="${product-config:my:ticks}"'))
        for argv in (['run', 'w'], ['list']):
            self.assertMistake(78, *argv, expected=(
                f'File "{self.dir}/site.zcml", line 2.',
                'zope.conf has no <product-config my>'))


class RunTests(CommandTestCase):

    def test_success(self) -> None:
        self.conf(self.a_worker('note'))
        self.assertEqual(0, self.command('run', 'w'))
        self.assertEqual(('', ''), (self.output, self.errors))
        self.assertEqual([()], calls)

    def test_arguments_of_the_worker(self) -> None:
        self.conf(self.a_worker('note_two'))
        self.assertEqual(0, self.command('run', 'w', '--', 'a'))
        self.assertEqual(0, self.command(
            'run', '--once', 'w', '--', '--once', '--'))
        self.assertEqual([('a', 'b'), ('--once', '--')], calls)

    def test_arguments_that_can_be_nothing_else(self) -> None:
        conf = self.conf(self.a_worker('note_two'))
        for argv in (['w', 'x'], ['w', 'x', '--once'], ['--once', 'w', 'x'],
                     ['--config', conf, 'w', '--dry-run', 'x']):
            self.assertEqual(0, self.command('run', *argv), self.errors)
        self.assertEqual([('x', 'b')] * 4, calls)

    def test_a_worker_without_arguments(self) -> None:
        self.conf(self.a_worker('note_three'))
        for argv in ['w', '1', '2'], ['w', '--', '1', '2']:
            self.assertMistake(2, 'run', *argv, expected=(
                'unrecognized arguments: 1 2 (the worker has no arguments of '
                'its own)',))
        self.assertEqual([], calls)
        self.assertFalse(self.has_database)

    def test_declared_arguments(self) -> None:
        self.conf(self.a_worker('note_two', 'arguments="x \'y z\'"'))
        for args in [], ['--', 'a'], ['--once', 'b']:
            self.assertEqual(0, self.command('run', 'w', *args), self.errors)
        self.assertEqual([('x', 'y z'), ('a', 'b'), ('b', 'b')], calls)
        self.assertEqual(0, self.command('run', 'w', '--help'))
        self.assertIn('[options] [--] [FIRST [SECOND]]\n', self.output)
        self.assertIn("unless the command line has some: x 'y z'\n",
                      self.output)

    def test_a_declared_site(self) -> None:
        self.conf(self.a_worker('note_site', 'site="shop"'))
        self.assertMistake(66, 'run', 'w', expected=("'shop'",))
        self.assertMistake(66, 'run', 'w', '--site', 'x', expected=("'x'",))
        self.assertEqual(0, self.command('run', 'w', '--site', '/'))
        self.assertEqual([None], calls)
        self.assertEqual(0, self.command('run', 'w', '--help'))
        self.assertIn('(default: shop)', ' '.join(self.output.split()))

    def test_a_lock(self) -> None:
        conf = Toolkit().load(self.conf(self.a_worker('note', 'lock="true"')))
        with locked('w', None, conf):
            self.assertMistake(75, 'run', 'w', expected=(
                'another instance of the worker \'w\' runs already, as '
                f'process {os.getpid()}, ',))
            self.assertFalse(self.has_database)
            self.assertEqual(0, self.command('run', 'w', '--no-lock'))
        self.assertEqual(0, self.command('run', 'w'))

    def test_times(self) -> None:
        self.conf(self.a_worker('note', 'schedule="@daily"')
                  + self.a_worker('note', name='plain'))
        for name, args, expected in (
                ('w', '--ticks 1 --timezone UTC', 'exclude each other'),
                ('w', '--timezone Mars', "no time zone 'Mars'"),
                ('plain', '--timezone UTC', 'plain has no schedule')):
            self.assertMistake(2, 'run', name, *args.split(),
                               expected=(expected,))
        self.assertFalse(self.has_database)
        self.assertEqual(0, self.command('run', 'w', '--ticks', '1'))

    def test_two_places_for_the_state(self) -> None:
        self.conf(self.a_worker('note'))
        self.assertMistake(2, 'run', 'w', '--state', 'f', '--run-dir', 'd',
                           expected=('give one of them',))
        self.assertFalse(self.has_database)

    def test_ticks_of_a_worker_that_runs_once(self) -> None:
        self.conf(self.a_worker('count_up')
                  + self.a_worker('note', 'once="true"', name='declared'))
        for name in 'w', 'declared':
            self.assertMistake(2, 'run', name, '--ticks', '5', expected=(
                'runs one tick, and ends',))
            self.assertEqual(0, self.command('run', name, '--help'))
            self.assertNotIn('--ticks', self.output)
            self.assertNotIn('--once ', self.output)
            self.assertIn('--dry-run', self.output)
        self.assertEqual(0, self.command('run', 'w', '--once'))
        self.assertEqual([1], calls)

    def test_the_version(self) -> None:
        for argv in ['run', '--version'], ['run', 'w', '--version'], [
                'list', '--version']:
            self.assertEqual(0, self.command(*argv))
            self.assertEqual(f'gocept.runner {version("gocept.runner")}\n',
                             self.output)

    def test_wrong_arguments_of_the_worker(self) -> None:
        self.conf(self.a_worker('note_two'))
        for args, expected in (
                ([], 'error: FIRST is missing ('),
                (['--', '1', '2', '3'], 'too many positional arguments (')):
            self.assertMistake(2, 'run', 'w', *args, expected=(
                expected, '(the arguments of the worker are: FIRST [SECOND])'))
        self.assertFalse(self.has_database)

    def test_an_unknown_worker(self) -> None:
        self.conf(self.a_worker('note', name='one')
                  + self.a_worker('note', name='another')
                  + '<runner:app name="w" command="cat" />')
        self.assertMistake(2, 'run', 'x', expected=(
            "no worker 'x' is declared; there are: another, one",))
        self.assertMistake(2, 'run', 'w', expected=(
            "'w' is no worker, but an app; there are: another, one",))
        self.assertFalse(self.has_database)

    def test_the_help_of_a_worker(self) -> None:
        conf = self.conf(self.a_worker('note', 'ticks="30"')
                         + self.a_worker('note_two', name='two'))
        for argv in (['w', '--help'], ['-h', 'w'], ['--ticks', '1', 'w', '-h'],
                     ['w', '--config', conf, '--help', '--', 'x']):
            self.assertEqual(0, self.command('run', *argv))
            for text in ('gocept-runner run w [options] [--] [ARGS ...]',
                         'A worker without a decorator', '(default: 30',
                         '71  an eager app'):
                self.assertIn(text, self.output)
        self.assertEqual(0, self.command('run', 'two', '--help'))
        self.assertIn('run two [options] [--] FIRST [SECOND]\n', self.output)
        self.assertMistake(2, 'run', 'x', '--help', expected=(
            "no worker 'x' is declared; there are: two, w",))
        self.assertEqual([], calls)
        self.assertFalse(self.has_database)

    def test_no_worker_at_all(self) -> None:
        for include in ('', '<include package="gocept.runner" />'):
            with self.subTest(include):
                self.conf('', include=include)
                self.assertMistake(2, 'run', 'w', expected=(
                    "no worker 'w' is declared; there are: none. A worker "
                    'with @appmain() or @once() that ZCML does not declare is '
                    'started by a command of its own',))
                reset_process()

    def test_bad_usage(self) -> None:
        self.conf(self.a_worker('note'))
        for argv, expected in (
                ([], 'the following arguments are required: NAME'),
                (['--', 'w'], 'the following arguments are required: NAME'),
                (['w', 'more', '--', 'x'], 'unrecognized arguments: more '
                 '(arguments of the worker itself follow --)'),
                (['w', 'x', '--nonsense'], 'unrecognized arguments: x '
                 '--nonsense (arguments of the worker itself follow --)'),
                (['w', '-5'], 'unrecognized arguments: -5 (arg'),
                (['w', 'dry-run', 'x'], 'unrecognized arguments: dry-run x ('),
                (['w', 'help'], 'unrecognized arguments: help (did you mean '
                 '--help? Arguments of the worker itself follow --)'),
                (['w', '--onc'], 'unrecognized arguments: --onc (did you mean '
                 '--once? Arguments of'),
                (['w', '--ticks', '-1'], "not a number >= 0: '-1'"),
                (['w', '--config'], 'expected one argument')):
            self.assertBadUsage('run', *argv, expected=expected)
        self.assertEqual([], calls)
        self.assertFalse(self.has_database)

    def test_help(self) -> None:
        self.assertEqual(0, self.command('run', '--help'))
        for text in ('NAME [options] [[--] ARGUMENT ...]', '--ticks SECONDS',
                     '--dry-run', 'default: as the',
                     '71  an eager app or executor cannot be started'):
            self.assertIn(text, self.output)

    def test_ticks(self) -> None:
        self.conf(self.a_worker('note_three', 'ticks="30"'))
        self.assertEqual(0, self.command('run', 'w', '--ticks', '0'))
        self.assertEqual(['tick'] * 3, calls)

    def test_ticks_of_the_declaration(self) -> None:
        self.conf(self.a_worker('note_three', 'ticks="0"'))
        self.assertEqual(0, self.command('run', 'w'))
        self.assertEqual(['tick'] * 3, calls)

    def test_once(self) -> None:
        self.conf(self.a_worker('note_all_the_time'))
        self.assertEqual(0, self.command('run', 'w', '--once'))
        self.assertEqual(['tick'], calls)

    def test_once_of_the_declaration(self) -> None:
        self.conf(self.a_worker('note_all_the_time', 'once="true"'))
        self.assertEqual(0, self.command('run', 'w'))
        self.assertEqual(['tick'], calls)

    def test_once_of_the_decorator(self) -> None:
        self.conf(self.a_worker('count_up'))
        self.assertEqual(0, self.command('run', 'w'))
        self.assertEqual(0, self.command('run', 'w'))
        self.assertEqual([1, 2], calls)

    def test_a_failure(self) -> None:
        self.conf(self.a_worker('fail'))
        with self.assertLogs('gocept.runner.runner', 'ERROR') as logs:
            self.assertEqual(1, self.command('run', 'w', '--once'))
        self.assertIn("Error in worker 'w': ", logs.output[0])
        self.assertEqual(('', ''), (self.output, self.errors))

    def test_a_dry_run(self) -> None:
        self.conf(self.a_worker('count_up'))
        self.assertMistake(69, 'run', 'w', '--dry-run', expected=(
            f'there is no database {self.dir}/Data.fs',))
        self.assertFalse(self.has_database)
        self.assertEqual(0, self.command('run', 'w'))
        for _ in range(2):
            self.assertEqual(0, self.command('run', 'w', '--dry-run'))
        self.assertEqual([1, 2, 2], calls)

    def test_a_site(self) -> None:
        self.conf(self.a_worker('note'))
        self.assertMistake(66, 'run', 'w', '--site', 'nothing', expected=(
            "the root folder has no object 'nothing'",))
        self.assertEqual([], calls)

    def test_verbose(self) -> None:
        self.conf(self.a_worker('note'))
        self.assertEqual(0, self.command('run', 'w', '--verbose'))
        self.assertIn('DEBUG gocept.runner', self.errors)

    def test_the_principal(self) -> None:
        self.conf(self.a_worker('note_principal', 'principal="zope.mgr"'))
        self.assertEqual(0, self.command('run', 'w'))
        self.assertEqual([['zope.mgr']], calls)

    def test_an_unknown_principal(self) -> None:
        self.conf(self.a_worker('note', 'principal="somebody"'))
        self.assertMistake(67, 'run', 'w', expected=(
            'no authentication knows the principal somebody',))
        self.assertEqual([], calls)

    def test_a_principal_from_zope_conf(self) -> None:
        self.conf(self.a_worker('as_configured'), '''
            <product-config worker>
              principal zope.mgr
            </product-config>
            ''')
        self.assertEqual(0, self.command('run', 'w'))
        self.assertEqual([['zope.mgr']], calls)

    def test_a_principal_that_zope_conf_does_not_name(self) -> None:
        self.conf(self.a_worker('as_configured'))
        self.assertMistake(78, 'run', 'w',
                           expected=('has no <product-config worker>',))

    def test_a_locked_database(self) -> None:
        self.conf(self.a_worker('note'))
        with contextlib.closing(FileStorage(str(self.dir / 'Data.fs'))):
            self.assertMistake(69, 'run', 'w', expected=('Data.fs',))

    def test_system_exit(self) -> None:
        self.conf(self.a_worker('fail'))
        self.assertEqual(5, self.command('run', 'w', '--', 'SystemExit', '5'))
        self.assertIsNone(self.command('run', 'w', '--', 'SystemExit'))

    def test_keyboard_interrupt(self) -> None:
        self.conf(self.a_worker('fail'))
        self.assertEqual(
            130, self.command('run', 'w', '--', 'KeyboardInterrupt'))

    def test_what_can_be_called(self) -> None:
        self.conf(self.a_worker('instance', name='i')
                  + self.a_worker('partial', name='p'))
        self.assertEqual(0, self.command('run', 'i'))
        self.assertEqual(0, self.command('run', 'p', '--', 'c'))
        self.assertEqual([(), ('a', 'c')], calls)

    def test_eager_children_run_meanwhile(self) -> None:
        self.conf(self.an_app('a', start='eager') + self.an_executor('lazy')
                  + self.a_worker('note_child'))
        self.assertEqual(0, self.command('run', 'w'))
        [(status, process)] = calls
        self.assertIsNone(status)
        self.assertIsNotNone(process.returncode)
        self.assertEqual(['a started', 'a ended'], self.notes)

    def test_also_where_a_worker_runs_once(self) -> None:
        self.conf(self.an_app('a', start='eager')
                  + self.a_worker('note_child', 'once="yes"'))
        self.assertEqual(0, self.command('run', 'w'))
        self.assertEqual(['a started', 'a ended'], self.notes)

    def test_a_failure_ends_them(self) -> None:
        self.conf(self.an_app('a', start='eager') + self.a_worker('fail'))
        for argv, status in (
                (['--', 'SystemExit', '5'], 5),
                (['--', 'KeyboardInterrupt'], 130), (['--once'], 1)):
            with mock.patch.object(logging.getLogger('gocept.runner'),
                                   'disabled', True):
                self.assertEqual(status, self.command('run', 'w', *argv))
        self.assertEqual(['a started', 'a ended'] * 3, self.notes)

    def test_a_mistake_that_is_found_when_they_run(self) -> None:
        self.conf(self.an_app('a', start='eager')
                  + self.a_worker('note', 'principal="somebody"'))
        self.assertMistake(67, 'run', 'w')
        self.assertEqual(['a started', 'a ended'], self.notes)

    def test_one_that_cannot_be_started(self) -> None:
        self.conf(self.an_app('a', start='eager')
                  + self.an_executor('bad', "say('sorry')\nos._exit(3)",
                                     requires='a', start='eager')
                  + self.a_worker('note'))
        self.assertMistake(71, 'run', 'w', expected=(
            "executor 'bad': ", 'non-zero code: 3', 'sorry'))
        self.assertEqual([], calls)
        self.assertIn('a ended', self.notes)

    def test_they_are_not_started_for_what_fails_before(self) -> None:
        self.conf(self.an_app('a', start='eager') + self.a_worker('note_two'))
        self.assertMistake(2, 'run', 'nobody')
        self.assertMistake(2, 'run', 'w')
        self.assertMistake(66, 'run', 'w', '--site', 'x', '--', '1')
        self.assertEqual([], self.notes)

    def test_what_is_not_committed_is_gone(self) -> None:
        self.conf(self.a_worker('fail'))
        self.command('run', 'w', '--', 'SystemExit')
        self.assertIs(None, zope.component.hooks.getSite())
        self.assertEqual([], transaction.get()._resources)


class ListTests(CommandTestCase):

    def test_the_table(self) -> None:
        self.conf(f'''
            <runner:worker name="nightly" handler="{HERE}:count_up"
                principal="zope.mgr" />
            <runner:worker name="hourly" handler="{HERE}:note"
                ticks="3600" />
            <runner:executor name="database" type="output" banner="ready"
                command="serve --it" start="eager" />
            <runner:app name="converter" command="cat -n"
                requires="database 'the log'" />
            <runner:app name="the log" command="cat" />
            ''')
        self.assertEqual(0, self.command('list'))
        self.assertEqual('', self.errors)
        table = '''\
KIND      NAME       START  REQUIRES          WHAT
app       converter  lazy   database the log  cat -n
executor  database   eager  -                 serve --it
app       the log    lazy   -                 cat
worker    hourly     -      -                 HERE:note [ARGS ...], every \
3600 s: A worker without a decorator, which ends at once.
worker    nightly    -      -                 HERE:count_up, once, as zope.mgr
'''
        self.assertEqual(table.replace('HERE', HERE), self.output)

    def test_nothing(self) -> None:
        for include in ('', '<include package="gocept.runner" />'):
            with self.subTest(include):
                self.conf('', include=include)
                self.assertEqual(0, self.command('list'))
                self.assertEqual(
                    f'Nothing is declared in {self.dir}/site.zcml. A worker '
                    'with @appmain() or @once() that ZCML does not declare is '
                    'started by a command of its own.\n',
                    self.output)
                reset_process()

    def test_no_site_definition(self) -> None:
        self.zope_conf()
        self.assertEqual(0, self.command('list'))
        self.assertTrue(self.output.startswith(
            './zope.conf names no site-definition, so nothing is declared. A '
            'worker with @appmain() or @once() '), self.output)

    def test_workers_of_all_kinds(self) -> None:
        self.conf(''.join(self.a_worker(name, name=name) for name in (
            'note', 'fail', 'as_configured', 'instance', 'partial')))
        self.assertEqual(0, self.command('list'), self.errors)
        for expected in (
                f'{HERE}:note [ARGS ...], every 1 s: A worker without ',
                f'{HERE}:fail [KIND] [ARGS ...], every 7 s, as zope.mgr\n',
                f'{HERE}:as_configured, every 1 s, with a principal\n',
                f'{HERE}:CanBeCalled, every 1 s\n',
                'functools:partial [SECOND], every 1 s\n'):
            self.assertIn(f'  {expected}', self.output)

    def test_a_worker_that_a_change_wakes(self) -> None:
        self.conf(self.a_worker('note', f'watch="{HERE}:note"'))
        self.assertEqual(0, self.command('list'), self.errors)
        self.assertIn('every 1 s or on a change: A worker', self.output)

    def test_what_is_declared_of_a_worker(self) -> None:
        self.conf(
            self.a_worker('note', 'arguments="fast \'and good\'" lock="true" '
                          'site="a/b" schedule="*/15 2-5 * * mon-fri" '
                          'timezone="Europe/Berlin" principal="zope.mgr"')
            + self.a_worker('note', 'schedule="@daily"', name='local'))
        self.assertEqual(0, self.command('list'), self.errors)
        self.assertIn(
            f"{HERE}:note fast 'and good', at */15 2-5 * * mon-fri "
            '(Europe/Berlin), in a/b, as zope.mgr, with a lock: A worker',
            self.output)
        self.assertIn(f'{HERE}:note [ARGS ...], at @daily: A', self.output)

    def test_nothing_is_started_or_opened(self) -> None:
        self.conf(self.an_app('a', start='eager')
                  + self.an_executor('b', start='eager')
                  + self.a_worker('note'), f'''
            <eventlog>
              <logfile>
                path {self.dir}/event.log
              </logfile>
            </eventlog>
            <logger other>
              name other
              <logfile>
                path {self.dir}/other.log
              </logfile>
            </logger>
            ''')
        before = {*os.listdir(self.dir)}, open_descriptors()
        handlers = list(logging.getLogger().handlers)
        self.assertEqual(0, self.command('list'))
        self.assertEqual(before, ({*os.listdir(self.dir)},
                                  open_descriptors()))
        self.assertEqual(handlers, logging.getLogger().handlers)
        self.assertEqual([], calls)

    def test_a_log_file_that_cannot_be_opened(self) -> None:
        self.conf(self.a_worker('note'), '''
            <eventlog>
              <logfile>
                path /no/such/directory/event.log
              </logfile>
            </eventlog>
            ''')
        self.assertEqual(0, self.command('list'), self.errors)

    def test_a_database_that_others_have_open(self) -> None:
        self.conf(self.a_worker('note'))
        with contextlib.closing(FileStorage(str(self.dir / 'Data.fs'))):
            self.assertEqual(0, self.command('list'))

    def test_bad_usage(self) -> None:
        for argv, expected in (
                (['w'], 'unrecognized arguments: w'),
                (['--once'], 'unrecognized arguments: --once'),
                (['--config'], 'expected one argument')):
            self.assertBadUsage('list', *argv, expected=expected)
