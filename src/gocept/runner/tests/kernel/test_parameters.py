"""What a process is asked to be, and names with wildcards."""

import unittest

from gocept.runner.errors import KernelError
from gocept.runner.kernel.daemon.names import matching
from gocept.runner.kernel.daemon.parameters import Parameters, replaced


class ParametersTests(unittest.TestCase):

    def of(self, **params):
        return Parameters.of({'name': 'a', 'args': ['true'], **params})

    def test_defaults(self):
        self.assertEqual(
            Parameters('a', ['true'], {}, None, None, None, {}, 'null',
                       'pipe', 'pipe', 2 ** 20, 'drop'), self.of())

    def test_without_a_buffer_nothing_is_recorded(self):
        parameters = self.of(bufsize=0, stderr='stdout')
        self.assertEqual(('null', 'null'),
                         (parameters.stdout, parameters.stderr))

    def test_the_digest_tells_them_apart(self):
        digest = self.of().digest
        self.assertEqual(digest, self.of(uid=5, gid='x', env={}).digest)
        for change in ({'args': ['true', '']}, {'env': {'A': ''}},
                       {'env': {'A': '\udcff'}}, {'bufsize': 1},
                       {'rlimits': {'core': 0}}, {'stdin': 'pipe'}):
            self.assertNotEqual(digest, self.of(**change).digest)
        self.assertEqual(self.of(env={'A': '1', 'B': '2'}).digest,
                         self.of(env={'B': '2', 'A': '1'}).digest)

    def test_numbers_of_users(self):
        self.assertEqual((5, 'x'), self.of(uid='5', gid='x')[4:6])

    def test_errors(self):
        for params in ({'name': ''}, {'args': []}, {'args': 'true'},
                       {'args': ['']}, {'args': [1]}, {'bufsize': -1},
                       {'bufsize': '1m'}, {'bufsize': True},
                       {'env': []}, {'env': {'A': 1}}, {'env': {'A=': ''}},
                       {'env': {'A': '\0'}}, {'working_dir': 'x'},
                       {'uid': -1}, {'uid': 2 ** 32}, {'uid': 1.5},
                       {'rlimits': []}, {'rlimits': {'x': 1}},
                       {'stdin': 'x'}, {'stdout': 'stdout'},
                       {'overflow': 'x'}):
            with self.subTest(params=params):
                with self.assertRaises(KernelError):
                    self.of(**params)

    def test_placeholders(self):
        def value(name, part):
            return f'<{name} {part}>'

        for arg, expected in [
                ('x', 'x'), ('$(x)', '$(x)'),
                ('$(socket.a.fileno)', '<a fileno>'),
                ('-$(socket.a.b.port)-$(socket.c.fileno))',
                 '-<a.b port>-<c fileno>)')]:
            self.assertEqual(expected, replaced(arg, value))
        for arg in ('$(socket.a', '$(socket.a)', '$(socket.a.x)',
                    '$(socket..port'):
            with self.assertRaises(KernelError):
                replaced(arg, value)


class NamesTests(unittest.TestCase):

    def test_matching(self):
        things = {'a': 1, 'a.1': 2, 'a.2': 3, 'b': 4, '64': 5}
        for names, expected in [
                ([], things), (['*'], things), (['a'], {'a': 1}),
                (['a.*'], {'a.1': 2, 'a.2': 3}), (['a', 'x', 'y*'], {'a': 1}),
                (['64'], {'64': 5}), (['65'], {'b': 4}), (['66'], {})]:
            with self.subTest(names=names):
                self.assertEqual(expected, matching(
                    things, names, False, {65: 'b'}.get))
        for names in (['x'], ['a', '66'], ['²']):
            with self.assertRaises(KernelError):
                matching(things, names, True, {65: 'b'}.get)
        self.assertEqual({}, matching(things, ['x*'], True))
