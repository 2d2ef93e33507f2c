import grp
import os
import pathlib
import pwd
import socket
import unittest
from typing import Any
from unittest import mock

from gocept.runner.errors import KernelError
from gocept.runner.kernel import DEVNULL, PIPE, STDOUT
from gocept.runner.kernel.client.requests import (
    process_parameters,
    socket_parameters,
    text_of,
)


def process(*args: Any, **keywords: Any) -> dict[str, Any]:
    values = dict.fromkeys((
        'executable', 'args', 'env', 'working_dir', 'uid', 'gid', 'rlimits',
        'stdout', 'stderr', 'bufsize', 'stdin'))
    values |= {'executable': 'true', 'overflow': 'drop', **keywords}
    return process_parameters('p', **values)


def make_socket(**keywords: Any) -> dict[str, Any]:
    values = dict.fromkeys((
        'host', 'port', 'family', 'socket_type', 'backlog', 'path', 'umask',
        'interface', 'reuseport'))
    return socket_parameters('s', **{**values, **keywords})


class TextTests(unittest.TestCase):

    def test_text_of(self) -> None:
        self.assertEqual('a', text_of('a'))
        self.assertEqual('ä\udcff', text_of('ä'.encode() + b'\xff'))
        self.assertEqual('/a', text_of(pathlib.Path('/a')))
        self.assertEqual('1', text_of(1))
        with self.assertRaises(TypeError):
            text_of(None)  # type: ignore[arg-type]

    def test_another_encoding_of_the_system(self) -> None:
        with mock.patch(
                'gocept.runner.kernel.client.requests._IS_UTF_8', False):
            with mock.patch('os.fsencode', lambda text: text.encode('latin1')):
                self.assertEqual('\udce4', text_of('ä'))


class ProcessTests(unittest.TestCase):

    def test_defaults(self) -> None:
        self.assertEqual(
            {'name': 'p', 'args': ['true'], 'env': {}, 'rlimits': {}},
            process())

    def test_command(self) -> None:
        for executable, args, expected in (
                ('/bin/a', None, ['/bin/a']),
                ('/bin/a', 'b c', ['/bin/a', 'b c']),
                ('/bin/a', b'\xff', ['/bin/a', '\udcff']),
                ('/bin/a', 5, ['/bin/a', '5']),
                ('/bin/a', (), ['/bin/a']),
                (pathlib.Path('/bin/a'), ['b', 5, b''],
                 ['/bin/a', 'b', '5', '']),
                (None, ('a', 'b'), ['a', 'b']),
                ('', ['a'], ['a']),
                (None, (each for each in 'ab'), ['a', 'b'])):
            with self.subTest(executable=executable, args=args):
                self.assertEqual(expected, process(
                    executable=executable, args=args)['args'])

    def test_no_command(self) -> None:
        for args in (None, []):
            with self.assertRaisesRegex(KernelError, 'needs an executable'):
                process(executable=None, args=args)

    def test_what_no_argument_can_be(self) -> None:
        for arg in ('a\0', b'\0'):
            with self.assertRaisesRegex(KernelError, 'NUL'):
                process(args=[arg])
        with self.assertRaisesRegex(KernelError, 'surrogate'):
            process(args=['\ud800'])
        with self.assertRaises(TypeError):
            process(args=[None])

    def test_env(self) -> None:
        self.assertEqual(
            {'a': '1', 'b': '', 'c': '\udcff\n'},
            process(env={'a': 1, 'b': '', b'c': b'\xff\n'})['env'])
        self.assertEqual({**os.environ}, process(env=os.environ)['env'])
        for key in ('', 'a=b', 'a\0'):
            with self.assertRaises(KernelError):
                process(env={key: '1'})

    def test_rlimits(self) -> None:
        self.assertEqual(
            {'cpu': 2, 'nofile': [1, 2], 'as': -1, 'core': 5},
            process(rlimits={'cpu': 2, 'NOFILE': (1, 2), 'RLIMIT_AS': -1,
                             'core': '5'})['rlimits'])
        for value in ('a', None, (1,), [1, 2, 3], (1, 'x')):
            with self.assertRaisesRegex(KernelError, r"rlimits\['cpu'\]"):
                process(rlimits={'cpu': value})

    def test_dictionaries(self) -> None:
        for keyword in 'env', 'rlimits':
            with self.assertRaisesRegex(
                    TypeError, f"{keyword} is a dictionary, not 'x'"):
                process(**{keyword: 'x'})

    def test_bufsize(self) -> None:
        for value, expected in ((1, 1), ('1', 1), ('2k', 2048),
                                ('2M', 2 << 20), ('1g', 1 << 30), (0, 0)):
            self.assertEqual(expected, process(bufsize=value)['bufsize'])
        for value in ('', 'm', '1.5m', -1, '1t', '1 m', '²', 1.5):
            with self.subTest(value=value):
                with self.assertRaisesRegex(KernelError, 'bufsize'):
                    process(bufsize=value)

    def test_streams(self) -> None:
        found = process(stdin=PIPE, stdout=DEVNULL, stderr=STDOUT)
        self.assertEqual(('pipe', 'null', 'stdout'), (
            found['stdin'], found['stdout'], found['stderr']))
        found = process(stdin=DEVNULL, stdout=PIPE, stderr=PIPE)
        self.assertNotIn('stdin', found)
        self.assertEqual(
            ('pipe', 'pipe'), (found['stdout'], found['stderr']))
        found = process(stdout=17, stderr=PIPE, bufsize=0)
        self.assertEqual(
            ('null', 'null'), (found['stdout'], found['stderr']))
        for keywords in ({'stdin': STDOUT}, {'stdout': STDOUT},
                         {'stderr': 5}, {'overflow': 'x'}):
            with self.assertRaisesRegex(KernelError, 'has to be'):
                process(**keywords)

    def test_overflow(self) -> None:
        self.assertEqual('block', process(overflow='block')['overflow'])

    def test_users(self) -> None:
        user = pwd.getpwuid(os.getuid())
        group = grp.getgrgid(os.getgid())
        for uid in (user.pw_name, user.pw_uid, str(user.pw_uid)):
            self.assertEqual(user.pw_uid, process(uid=uid)['uid'])
        for gid in (group.gr_name, group.gr_gid, str(group.gr_gid)):
            self.assertEqual(group.gr_gid, process(gid=gid)['gid'])
        self.assertEqual(0, process(uid='root')['uid'])
        self.assertEqual(0, process(uid=0)['uid'])
        unknown = 2 ** 31 - 5
        self.assertEqual(unknown, process(uid=unknown, gid=0)['uid'])
        with self.assertRaisesRegex(KernelError, 'pass gid'):
            process(uid=unknown)
        with self.assertRaisesRegex(KernelError, "no user 'no such'"):
            process(uid='no such')
        with self.assertRaisesRegex(KernelError, "no group 'no such'"):
            process(gid='no such')

    def test_the_directory(self) -> None:
        self.assertEqual(
            '/no/such', process(working_dir='/no/such')['working_dir'])
        # On a mount that hangs, it is the client that hangs.
        with mock.patch('os.stat', side_effect=FileNotFoundError) as stat:
            process(executable='bin/a', working_dir='/dir')
        self.assertEqual({b'/dir', b'/dir/bin/a'}, {
            args[0] for args, _ in stat.call_args_list})
        with mock.patch('os.stat') as stat:
            process()
        stat.assert_not_called()


class SocketTests(unittest.TestCase):

    def test_defaults(self) -> None:
        self.assertEqual({'name': 's'}, make_socket())

    def test_tcp(self) -> None:
        self.assertEqual(
            {'name': 's', 'host': 'localhost', 'port': 80, 'backlog': 7,
             'interface': 'lo', 'reuseport': True},
            make_socket(host='localhost', port='80', backlog=7,
                        interface='lo', reuseport=1, umask=5))

    def test_unix(self) -> None:
        self.assertEqual(
            {'name': 's', 'path': '/a b', 'umask': 0o77},
            make_socket(path=pathlib.Path('/a b'), umask=0o77, port=1,
                        reuseport=True))
        for path in ('a', '/a/', '/a\\', '/\0'):
            with self.assertRaisesRegex(KernelError, 'absolute'):
                make_socket(path=path)

    def test_constants(self) -> None:
        for family in (socket.AF_INET6, int(socket.AF_INET6), 'inet6',
                       'AF_INET6'):
            self.assertEqual('inet6', make_socket(family=family)['family'])
        for kind in (socket.SOCK_DGRAM, 'dgram', 'SOCK_DGRAM'):
            self.assertEqual('dgram', make_socket(socket_type=kind)['type'])
        for keywords in ({'family': 77777}, {'family': 'x'},
                         {'socket_type': socket.SOCK_CLOEXEC},
                         {'socket_type': ''}):
            with self.assertRaisesRegex(KernelError, 'constant'):
                make_socket(**keywords)

    def test_numbers(self) -> None:
        for keywords in ({'port': 'x'}, {'backlog': []},
                         {'umask': 'x', 'path': '/a'}):
            with self.assertRaisesRegex(KernelError, 'a number'):
                make_socket(**keywords)
