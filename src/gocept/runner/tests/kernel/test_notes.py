"""What a kernel remembers of a process."""

import unittest

from gocept.runner.kernel.child.notes import Notes


class FakeKernel:

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.get = self.values.get
        self.set = self.values.__setitem__

    def list_values(self, *names: str) -> dict[str, str]:
        return {name: self.values[name] for name in names
                if name in self.values}

    def remove_values(self, *names: str) -> None:
        for name in names:
            del self.values[name]


class NotesTests(unittest.TestCase):

    def setUp(self) -> None:
        self.kernel = FakeKernel()
        self.notes = Notes(self.kernel, 'it')

    def test_nothing(self) -> None:
        self.assertIsNone(self.notes.declaration)
        self.assertFalse(self.notes.is_ready('life'))
        self.assertEqual({}, self.notes.ahead('life'))
        self.notes.clear()

    def test_the_declaration(self) -> None:
        self.notes.declaration = 'digest'
        self.assertEqual('digest', self.notes.declaration)
        self.assertEqual({'it.declaration': 'digest'}, self.kernel.values)

    def test_of_one_life(self) -> None:
        self.notes.set_ready('life')
        self.notes.set_ahead('life', {'err': 7})
        self.assertTrue(self.notes.is_ready('life'))
        self.assertEqual({'err': 7}, self.notes.ahead('life'))
        self.assertFalse(self.notes.is_ready('other'))
        self.assertEqual({}, self.notes.ahead('other'))

    def test_all_are_forgotten(self) -> None:
        self.notes.declaration = 'digest'
        self.notes.set_ready('life')
        self.notes.set_ahead('life', {})
        self.kernel.values['it'] = 'not a note'
        self.notes.clear()
        self.assertEqual({'it': 'not a note'}, self.kernel.values)
