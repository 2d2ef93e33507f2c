"""The protocol of lines."""

import unittest

from hypothesis import given
from hypothesis import strategies as st

from gocept.runner.errors import KernelError
from gocept.runner.kernel.wire import text
from gocept.runner.kernel.wire.frames import OutRecord
from gocept.runner.kernel.wire.text import Command, parse, result_text, split
from gocept.runner.tests.properties import steady

WORDS = st.text(st.characters(exclude_categories=['Cs', 'Cc', 'Z'],
                              exclude_characters='\\'), min_size=1)


def parsed(line: str) -> tuple[str, dict[str, object]]:
    return tuple(parse(split(line)))  # type: ignore[return-value]


class TestSplit(unittest.TestCase):

    def test_a_backslash_keeps_a_space(self) -> None:
        for line, words in (
                ('a b', ['a', 'b']), ('a   b', ['a', 'b']),
                ('a\\ b c', ['a b', 'c']), ('a\\ \\ b', ['a  b']),
                ('a\\b', ['a\\b']), ('a\\', ['a ']), ('\\', [' ']),
                ('\\ a', ['a']), ('a\tb', ['a\tb'])):
            self.assertEqual(words, split(line), line)

    @steady()
    @given(st.lists(st.lists(WORDS, min_size=1, max_size=3).map(' '.join)))
    def test_words_survive_as_papa_writes_them(self, words: list[str],
                                               ) -> None:
        self.assertEqual(words, split(
            ' '.join(word.replace(' ', '\\ ') for word in words)))

    @steady()
    @given(st.binary())
    def test_bytes_survive(self, line: bytes) -> None:
        self.assertEqual(line, text.to_bytes(text.from_bytes(line)))

    @steady()
    @given(st.text())
    def test_any_line_is_a_command_or_an_error(self, line: str) -> None:
        words = split(line.strip())
        if words:
            try:
                command = parse(words)
            except KernelError as error:
                self.assertTrue(str(error))
            else:
                self.assertTrue(command.op)


class TestParse(unittest.TestCase):

    def test_words_may_be_short(self) -> None:
        for line, op in (
                ('l p', 'list-processes'), ('list s', 'list-sockets'),
                ('LIST VAL', 'list-values'), ('w p', 'watch'),
                ('r p', 'remove-processes'), ('rem sock', 'remove-sockets'),
                ('r v', 'remove-values')):
            self.assertEqual((op, {'names': ['a', 'b*']}),
                             parsed(f'{line} a b*'))
            self.assertEqual((op, {'names': []}), parsed(line))
        self.assertEqual(('quit', {}), parsed('q'))
        self.assertEqual(('exit-if-idle', {}), parsed('exit-if-idle'))

    def test_errors_say_what_comes_next(self) -> None:
        for line, error in (
                ('x', "no command 'x'"), ('list', 'next word is to be one of: '
                                          'processes, sockets, values'),
                ('list x', "'x' is not one of: processes, sockets, values"),
                ('e', '"exit-if-idle" has to be written out'),
                ('get', 'a value needs a name'), ('set', 'needs a name'),
                ('set *', 'needs a name'), ('m s', 'a socket needs a name'),
                ('m p', 'a process needs a name'),
                ('m s a b=1', "no option 'b', but: family, type"),
                ('m s a port=x', "port is a number, not 'x'"),
                ('m p a b=1 x', "no option 'b'"),
                ('m p a rlimit.nofile=x y', 'rlimit.nofile is a number'),
                ('m p a bufsize=x y', 'bufsize is a number, such as 4096')):
            with self.assertRaisesRegex(KernelError, error):
                parsed(line)

    def test_values(self) -> None:
        self.assertEqual(('set', {'name': 'a', 'value': 'b c'}),
                         parsed('set a b  c'))
        self.assertEqual(('set', {'name': 'a', 'value': None}),
                         parsed('s a'))
        self.assertEqual(('get', {'name': 'a b'}), parsed('g a\\ b c'))

    def test_sockets(self) -> None:
        self.assertEqual(
            ('make-socket', {'name': 'a', 'port': 8080, 'host': '::1',
                             'family': 'inet6', 'reuseport': '1'}),
            parsed('m s a port=8080 host=::1 family=inet6 reuseport=1'))
        self.assertEqual(
            ('make-socket', {'name': 'a', 'path': '/x y\\', 'umask': 7}),
            parsed('make socket a path="/x\\ y\\" umask=7 junk'))

    def test_processes(self) -> None:
        self.assertEqual(
            ('make-process', {
                'name': 'a', 'uid': 1001, 'gid': 'web', 'bufsize': 2 ** 21,
                'env': {'A': 'x y=z', 'B': ''}, 'rlimits': {'nofile': 64},
                'stdout': 'null', 'stderr': 'stdout', 'watch': True,
                'working_dir': '/srv', 'args': ['/bin/x', 'C=1', '-v']}),
            parsed('m p a uid=1001 gid=web bufsize=2m env.A=x\\ y=z env.B= '
                   'rlimit.NOFILE=64 stdout=0 stderr=stdout watch=1 '
                   'working_dir=/srv /bin/x C=1 -v'))
        self.assertEqual(
            ('make-process', {'name': 'a', 'env': {}, 'rlimits': {},
                              'stdout': 'null', 'stderr': 'null',
                              'bufsize': 0, 'args': []}),
            parsed('m p a bufsize=0'))
        self.assertEqual(['/bin/sh', '-c', 'a|b'],
                         parsed('m p a shell=1 a|b')[1]['args'])

    def test_help(self) -> None:
        for line, word in (('help', 'list sockets'), ('h l p', 'pid'),
                           ('h m p', 'env.NAME='), ('help list', 'sockets'),
                           ('help watch', '"q"'), ('help', '--allow-user'),
                           ('h x', 'no command'), ('h l x', 'is not one of')):
            op, params = parsed(line)
            self.assertEqual('help', op)
            self.assertIn(word, str(params['text']))
            self.assertTrue(str(params['text']).endswith('\n'))


class TestResults(unittest.TestCase):

    def shown(self, op: str, result: object, **params: object) -> str:
        return result_text(Command(op, params), result)

    def test_sockets_are_shown_as_papa_does(self) -> None:
        self.assertEqual(
            'web family=inet type=stream backlog=5 host=127.0.0.1 port=80 '
            'fileno=64', self.shown('make-socket', {
                'fileno': 64, 'port': 80, 'host': '127.0.0.1', 'backlog': 5,
                'type': 'stream', 'family': 'inet', 'path': None,
                'reuseport': False}, name='web'))
        self.assertEqual(
            'a family=unix umask=0\nb family=inet reuseport=1',
            self.shown('list-sockets', {
                'b': {'family': 'inet', 'reuseport': '1'},
                'a': {'family': 'unix', 'umask': 0}}))

    def test_processes_are_shown_as_papa_does(self) -> None:
        self.assertEqual(
            'web pid=7 running=False started=1.5 gid=5 args=/bin/x a b c',
            self.shown('make-process', {
                'pid': 7, 'running': False, 'started': 1.5, 'uid': 0,
                'gid': 5, 'args': '/bin/x a b\nc', 'life': 'abc'},
                name='web'))

    def test_the_rest(self) -> None:
        self.assertEqual('', self.shown('set', None))
        self.assertEqual('', self.shown('list-processes', {}))
        self.assertEqual('5', self.shown('get', '5', name='a'))
        self.assertEqual('Watching 2', self.shown(
            'watch', {'processes': {'a': 'x', 'b': 'y'}}))

    def test_a_batch_of_output_is_framed(self) -> None:
        self.assertEqual(
            b'err:a b:1.5:3\n\n> \nclosed:a b:2.5:-15\n] ',
            b''.join(text.output_pieces([
                OutRecord('a\nb', '', 'err', 1.5, b'\n> '),
                OutRecord('a\nb', '', 'closed', 2.5, b'', -15)])))

    def test_a_batch_can_be_made_longer(self) -> None:
        for record, plain in (
                (OutRecord('a', '', 'out', 1.5, b'x'), b'out:a:1.5:1\nx\n] '),
                (OutRecord('a', '', 'closed', 2.5, b'', 3),
                 b'closed:a:2.5:3\n] ')):
            with self.subTest(plain):
                batch = b''.join(text.output_pieces([record], 100))
                self.assertEqual(100, len(batch))
                self.assertEqual(plain, batch.replace(b'\r', b''))
                self.assertEqual(
                    plain,
                    b''.join(text.output_pieces([record], len(plain))))
