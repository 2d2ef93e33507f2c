import functools
import os
import unittest

from ZODB.POSException import ConflictError

from gocept.runner.boot.texts import described, name_of, text
from gocept.runner.errors import RemoteTaskError


class TextTests(unittest.TestCase):

    def test_an_error_has_its_type(self):
        for expected, error in [('KeyError: 3', KeyError(3)),
                                ('ConflictError: x', ConflictError('x')),
                                ('ValueError', ValueError()),
                                ('RemoteTaskError: OSError: x',
                                 RemoteTaskError('x', type='OSError',
                                                 traceback='Traceback'))]:
            self.assertEqual(expected, described(error))

    def test_the_name_of_a_function(self):
        class Worker:
            def __call__(self):
                pass
        for name, function in [
                ('fork', os.fork), ('Worker', Worker()),
                ('fork', functools.partial(functools.partial(os.fork), 1))]:
            self.assertEqual(name, name_of(function))

    def test_what_cannot_be_printed(self):
        class Broken(Exception):
            def __str__(self):
                raise ValueError
            __repr__ = __str__
        self.assertEqual('<Broken, unprintable: ValueError>', text(Broken()))
        self.assertEqual('<Broken, unprintable: ValueError>',
                         text(Broken(), repr))
        self.assertEqual('x', text('x'))
