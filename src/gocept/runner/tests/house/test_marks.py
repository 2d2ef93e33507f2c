import json
import unittest

from gocept.runner.house.marks import JSONMarks, Marks


class MarksTests(unittest.TestCase):

    def test_lines_stand_below_each_other(self):
        marks = Marks(colours=False)
        marks.add(['up', 'import', 'x'])
        self.assertEqual(
            [b'import | hello\n', b'x      | \n'],
            [marks.line('import', b'hello'), marks.line('x', b'')])

    def test_a_new_name_makes_room(self):
        marks = Marks(colours=False)
        marks.add(['a'])
        self.assertEqual(b'a | 1\n', marks.line('a', b'1'))
        self.assertEqual(b'longer | 2\n', marks.line('longer', b'2'))
        self.assertEqual(b'a      | 3\n', marks.line('a', b'3'))

    def test_one_long_name_does_not_move_the_others(self):
        marks = Marks(colours=False)
        marks.add(['a', 'n' * 50])
        self.assertEqual(b'a | 1\n', marks.line('a', b'1'))
        self.assertEqual(b'n' * 50 + b' | 1\n', marks.line('n' * 50, b'1'))

    def test_each_worker_has_a_colour_of_its_own(self):
        marks = Marks(colours=True)
        marks.add(['up'], dim=True)
        marks.add(['a', 'b'])
        self.assertEqual(
            [b'\x1b[2mup |\x1b[0m 1\n', b'\x1b[36ma  |\x1b[0m 1\n',
             b'\x1b[33mb  |\x1b[0m 1\n'],
            [marks.line(name, b'1') for name in ('up', 'a', 'b')])

    def test_there_are_colours_for_many(self):
        marks = Marks(colours=True)
        marks.add(map(str, range(50)))
        self.assertEqual(marks.line('0', b''), marks.line('10', b'').replace(
            b'10', b'0 '))


class JSONTests(unittest.TestCase):

    def test_objects_stay_as_they_are(self):
        self.assertEqual(b'{"a": 1}\n', JSONMarks().line('w', b'{"a": 1}'))

    def test_other_lines_become_objects(self):
        line = json.loads(JSONMarks().line('w', b'gr\xfc\xc3\xbc'))
        self.assertEqual(('w', 'gr\\xfc\xfc', 'INFO'), (
            line['worker'], line['message'], line['level']))
        self.assertRegex(line['time'], r'^\d{4}-.*T.*\.\d{6}Z$')
