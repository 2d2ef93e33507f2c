import math
import os
import pathlib
import unittest
from unittest import mock

from gocept.runner.spawn import Runner
from gocept.runner.spawn.application import Application


def application(**config):
    return Application.from_config({'command': 'cat'} | config)


class CheckTests(unittest.TestCase):

    def assertRefused(self, kind, expected, **config):
        """One clear error, when it is added and when it is started."""
        expected = f"^application 'app': {expected}"
        with Runner() as runner:
            with self.assertRaisesRegex(kind, expected):
                runner.update_config({'app': {'command': 'cat'} | config})
            runner.add('app', 'cat')
            with self.assertRaisesRegex(kind, expected):
                runner.start('app', **config)
            self.assertEqual([], runner.aliases())

    def test_commands(self):
        for command, kind, expected in (
                ('', ValueError, 'there is no program'),
                ([], ValueError, 'there is no program'),
                ("'", ValueError, 'No closing quotation'),
                ([1], TypeError, '.*not int')):
            with self.subTest(command):
                self.assertRefused(kind, expected, command=command)
        self.assertRefused(ValueError, 'a command for the shell is a string',
                           command=['cat'], shell=True)

    def test_no_command(self):
        with Runner() as runner:
            with self.assertRaisesRegex(ValueError, "'x': there is no comm"):
                runner.update_config({'x': {}})
            with self.assertRaisesRegex(TypeError, "'x': its keywords are"):
                runner.update_config({'x': 'cat'})

    def test_keywords_that_there_are_not(self):
        for key in ('colour', 'preexec_fn', 'text', 'process', 'channel',
                    'bufsize'):
            self.assertRefused(TypeError, f"'{key}' is no keyword",
                               **{key: None})

    def test_keywords_that_are_not_yours(self):
        for key in ('poller', 'on_end'):
            self.assertRefused(TypeError, f"'{key}' is no keyword of an appl",
                               **{key: None})
        with self.assertRaisesRegex(TypeError, "'name' is no keyword"):
            application(name='x')

    def test_choices(self):
        for key, value in (('type', 'pipe'), ('restart', True),
                           ('restart', 'on_failure'), ('type', None)):
            self.assertRefused(ValueError, f'{key} must be one of .*, not '
                                           f'{value!r}$', **{key: value})

    def test_sockets(self):
        self.assertRefused(ValueError, "socket=PATH needs type='socket'",
                           socket='path')
        self.assertRefused(ValueError, "socket is a path, not ''",
                           type='socket', socket='')
        self.assertRefused(TypeError, '.*not int', type='socket', socket=3)

    def test_numbers(self):
        for key in ('start_timeout', 'restart_delay', 'restart_limit',
                    'high_water', 'stop_timeout'):
            for value in (-1, math.nan, '1', None):
                self.assertRefused(
                    ValueError, f'{key} must be a number >= 0, not {value!r}$',
                    **{key: value})
            application(**{key: 0})
            application(**{key: math.inf})
        self.assertRefused(ValueError, 'limit must be a number >= 1, not 0$',
                           limit=0)

    def test_channels(self):
        self.assertRefused(ValueError, "buffering must be .*not 'lines'",
                           buffering='lines')
        self.assertRefused(LookupError, 'unknown encoding: klingon',
                           encoding='klingon')
        self.assertRefused(TypeError, '', encoding=3)

    def test_what_the_process_refuses(self):
        for kind, expected, config in (
                (ValueError, 'stdout must be', {'stdout': 'merge'}),
                (ValueError, 'stderr must be', {'stderr': 'x'}),
                (ValueError, 'there is no resource limit', {
                    'rlimits': {'x': 1}}),
                (LookupError, "there is no user 'nix'", {'user': 'nix'}),
                (LookupError, "there is no group 'nix'", {'group': 'nix'}),
                (ValueError, '.*is not a valid Signals', {'stop_signal': 999}),
                (ValueError, '.*is not a valid Signals', {
                    'stop_signal': 'SIGTERM'}),
                (ValueError, 'a detached process', {
                    'detached': True, 'die_with_parent': True})):
            with self.subTest(config):
                self.assertRefused(kind, expected, **config)

    def test_what_can_be_meant(self):
        application(command=['cat', pathlib.Path('x')], stop_signal=2,
                    type='socket', socket=pathlib.Path('x'), adopt=True,
                    limit=1, high_water=0, buffering='bytes', encoding=None)


class KeywordsTests(unittest.TestCase):

    def test_a_path_that_is_removed(self):
        keywords = application(extra_env={'PATH': None}).keywords(['/more'])
        self.assertEqual({'PATH': f'{os.environ["PATH"]}:/more'},
                         keywords['extra_env'])

    def test_the_configuration_is_not_changed(self):
        config = {'command': 'cat', 'extra_env': {'X': '1'}}
        Application.from_config(config).keywords(['/more'])
        self.assertEqual({'X': '1'}, config['extra_env'])

    def test_without_more_paths(self):
        self.assertNotIn('extra_env', application().keywords([]))

    def test_streams(self):
        def streams(**config):
            keywords = application(**config).keywords([])
            return [keywords.get(name)
                    for name in ('stdin', 'stdout', 'stderr')]
        sock = {'type': 'socket', 'socket': 'x'}
        self.assertEqual(['pipe', 'pipe', None], streams())
        self.assertEqual(['null', 'pipe', None], streams(stdin='null'))
        self.assertEqual(['null', 'pipe', 'merge'], streams(**sock))
        self.assertEqual(['null', 'pipe', 'null'],
                         streams(**sock, stderr='null'))
        self.assertEqual(['null', 'inherit', None],
                         streams(**sock, stdout='inherit'))

    def test_socket_path(self):
        def path(**config):
            return application(type='socket', **config).socket_paths
        here = os.getcwd()
        x = f'{here}/x'
        self.assertEqual([x], path(socket='x'))
        self.assertEqual([f'{here}/a/x', x], path(socket='x', cwd='a'))
        self.assertEqual(['/a/x', x], path(socket='x', cwd='/a'))
        self.assertEqual(['/a/x', x],
                         path(socket='x', cwd=pathlib.Path('/a')))
        self.assertEqual(['/x'], path(socket=pathlib.Path('/x'), cwd='/a'))
        # As the system sees it, where there are symbolic links.
        self.assertEqual(['/a/../x', x], path(socket='x', cwd='/a/..'))
        with mock.patch('os.getcwd', side_effect=FileNotFoundError):
            self.assertEqual(['/a/x'], path(socket='x', cwd='/a'))

    def test_a_socket_seen_from_elsewhere(self):
        it = application(type='socket', socket='x', cwd='a').seen_from('/h')
        self.assertEqual(['/h/a/x', '/h/x'], it.socket_paths)
        with self.assertRaises(TypeError):
            application(home='/h')

    def test_a_socket_that_is_not_known_yet(self):
        for config in {}, {'socket': 'x'}:
            application(type='socket', **config)
        application().check_socket()
        with self.assertRaisesRegex(ValueError, 'needs socket=PATH'):
            application(type='socket').check_socket()
        with self.assertRaisesRegex(ValueError, "needs type='socket'"):
            application(socket='x')

    def test_delays(self):
        it = application(restart='always', restart_delay=0.5)
        self.assertEqual([0.5, 1, 2, 4, 8, 16, 32, 60, 60],
                         list(map(it.delay, range(9))))
        self.assertEqual(60, it.delay(10 ** 6))
        self.assertEqual(0, application(restart_delay=0).delay(10 ** 6))
        self.assertEqual(60, application(restart_delay=math.inf).delay(0))

    def test_when_to_restart(self):
        for restart, expected in (('never', [False] * 3),
                                  ('on-failure', [False, True, True]),
                                  ('always', [True] * 3)):
            it = application(restart=restart)
            self.assertEqual(expected, list(map(it.is_to_restart,
                                                (0, 1, -15))))
