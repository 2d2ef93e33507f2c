import gc
import unittest
import warnings
from unittest import mock

from gocept.runner.waits.closing import Closing, Owning


class ClosingTests(unittest.TestCase):

    def test_closed_at_the_end_of_a_with_statement(self):
        class Door(Closing):
            closed = 0

            def close(self) -> None:
                self.closed += 1

        with Door() as door:
            self.assertEqual(0, door.closed)
        self.assertEqual(1, door.closed)
        with self.assertRaises(KeyError), door:
            raise KeyError
        self.assertEqual(2, door.closed)

    def test_needs_something_to_close(self):
        with self.assertRaises(NotImplementedError):
            Closing().close()


class OwningTests(unittest.TestCase):

    def setUp(self):
        self.closed = closed = []

        class Owner(Owning):
            def open(self) -> None:
                self.closed = False

            def _release(self) -> None:
                closed.append(self)

        self.owner = Owner()

    def forgotten(self):
        """The warnings when it is forgotten."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            del self.owner
            gc.collect()
        return [str(each.message) for each in caught]

    def test_forgotten_while_open(self):
        self.owner.open()
        [message] = self.forgotten()
        self.assertIn('unclosed', message)
        self.assertIn('Owner', message)
        self.assertEqual(1, len(self.closed))

    def test_closed_though_the_warning_is_an_error(self):
        self.owner.open()
        with (warnings.catch_warnings(),
              mock.patch('sys.unraisablehook') as hook):
            warnings.simplefilter('error')
            del self.owner
        self.assertTrue(hook.called)
        self.assertEqual(1, len(self.closed))

    def test_forgotten_when_the_interpreter_exits(self):
        self.owner.open()
        with mock.patch('sys.is_finalizing', return_value=True):
            [message] = self.forgotten()
        self.assertIn('unclosed', message)
        self.assertEqual([], self.closed)

    def test_forgotten_when_closed_or_never_opened(self):
        self.assertEqual([], self.forgotten())
        self.assertEqual([], self.closed)
