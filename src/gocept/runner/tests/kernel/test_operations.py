import itertools
import os
import types
import unittest
import unittest.mock

from gocept.runner.errors import KernelError
from gocept.runner.kernel.daemon import operations as module
from gocept.runner.kernel.daemon.operations import Operations
from gocept.runner.kernel.daemon.state import State
from gocept.runner.kernel.wire.conversation import Request
from gocept.runner.kernel.wire.limits import Limits


class OperationsCase(unittest.TestCase):

    limits = Limits(values=3, value=100, storage=250)

    def setUp(self):
        self.state = State()
        self.addCleanup(self.state.close)
        self.numbers = itertools.count(1)
        nothing = types.SimpleNamespace()
        self.operations = Operations(
            self.state, nothing, self.limits, nothing, nothing, nothing,
            nothing, nothing)

    def do(self, session, number, op, **params):
        """What the client is sent."""
        sent = []
        connection = types.SimpleNamespace(
            session=session, longest=1000, send=sent.append)
        self.operations.handle(Request(connection, op, params, b'', number))
        return sent

    def put(self, name, value, session='a'):
        self.do(session, next(self.numbers), 'set', name=name, value=value)


class AnswerTests(OperationsCase):

    def setUp(self):
        super().setUp()
        self.enterContext(
            unittest.mock.patch.object(module, '_MOST_SESSIONS', 3))

    def known(self):
        return [*self.state.keys('answer')]

    def test_the_answer_of_the_session_that_asked_first_goes(self):
        for session in 'abcd':
            self.put('name', session, session)
        self.assertEqual([*'bcd'], self.known())

    def test_who_asked_again_is_kept_longer(self):
        for session in 'abcad':
            self.put('name', session, session)
        self.assertEqual([*'cad'], self.known())
        successor = State(os.dup(self.state.fd))
        self.addCleanup(successor.close)
        self.assertEqual([*'cad'], [*successor.keys('answer')])

    def test_whose_client_is_connected_is_kept(self):
        self.operations.is_live = 'ab'.__contains__
        for session in 'abcd':
            self.put('name', session, session)
        self.assertEqual([*'abd'], self.known())
        self.operations.is_live = lambda session: True
        self.put('name', 'e', 'e')
        self.assertEqual([*'abde'], self.known())

    def test_it_is_done_once(self):
        self.put('name', 'one', 'a')
        self.put('name', 'two', 'b')
        again = self.do('a', 1, 'set', name='name', value='one')
        self.assertEqual(1, len(again))
        self.assertEqual('two', self.state.get('value', 'name'))


class ValueTests(OperationsCase):

    def test_all_values_together(self):
        self.put('a', 'x' * 80)
        self.put('b', 'x' * 80)
        with self.assertRaisesRegex(KernelError, 'limit is 250 bytes of all'):
            self.put('c', 'x' * 100)
        self.put('a', 'y' * 100)  # in place of what was there
        self.assertEqual('y' * 100, self.state.get('value', 'a'))
        self.put('b', None)
        self.put('c', 'x' * 100)

    def test_number_of_values(self):
        for name in 'abca':
            self.put(name, 'value')
        with self.assertRaisesRegex(KernelError, 'limit is 3 values'):
            self.put('d', 'value')

    def test_a_value_is_a_text(self):
        with self.assertRaisesRegex(KernelError, 'a string, not 5'):
            self.put('a', 5)
        with self.assertRaisesRegex(KernelError, 'bytes in a value'):
            self.put('a', 'x' * 101)
