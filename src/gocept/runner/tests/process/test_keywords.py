"""The table has what processes, executors and ZCML have, and nothing else."""

import inspect
import subprocess
import unittest

import zope.schema

from gocept.runner.executor import SimpleExecutor
from gocept.runner.process import Process, keywords
from gocept.runner.process.keywords import POPEN, TABLE, Part
from gocept.runner.process.launch import Launch, PopenOptions
from gocept.runner.zcml import IAppDirective, IExecutorDirective

OF_POPEN = {*inspect.signature(subprocess.Popen).parameters}


def named(function):
    """The names of its parameters, without ``self`` and ``**options``."""
    return {name for name, parameter
            in inspect.signature(function).parameters.items()
            if parameter.kind is not parameter.VAR_KEYWORD} - {'self'}


def of(*parts):
    return {row.process for row in TABLE if row.part in parts}


class TableTests(unittest.TestCase):

    def test_each_keyword_stands_in_one_row(self):
        names = [row.process for row in TABLE]
        self.assertEqual(len({*names}), len(names))

    def test_of_a_process(self):
        self.assertEqual(
            named(Process.__init__) - {'command'}, of(Part.WATCH, Part.END))
        self.assertLessEqual(named(Launch.__init__), of(Part.START))
        # The rest is handed on to Popen.
        self.assertLessEqual(of(Part.START) - named(Launch.__init__),
                             {*PopenOptions.__annotations__})

    def test_of_executors(self):
        self.assertLessEqual(
            {row.executor for row in TABLE if row.executor},
            named(SimpleExecutor.__init__))
        self.assertLessEqual(POPEN, OF_POPEN)

    def test_in_zcml(self):
        app = zope.schema.getFields(IAppDirective)
        self.assertLessEqual(
            of(*Part) - {'process_group', 'start_new_session'} - {*app},
            keywords.WATCH)
        executor = zope.schema.getFields(IExecutorDirective)
        for row in TABLE:
            if row.executor not in (None, 'popen_kwargs'):
                self.assertIn(row.executor, executor)

    def test_what_a_process_refuses_of_popen(self):
        self.assertLessEqual({*PopenOptions.__annotations__}, OF_POPEN)
        for name in ('args', 'bufsize', 'errors', 'preexec_fn', 'text',
                     'universal_newlines'):
            with self.assertRaisesRegex(TypeError, f"'{name}' is no keyword"):
                Launch('cat', **{name: None})
