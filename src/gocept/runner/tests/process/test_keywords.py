"""The parts have what processes, executors and ZCML have, and nothing else."""

import inspect
import subprocess
import unittest

import zope.schema

from gocept.runner.executor import SimpleExecutor
from gocept.runner.process import Process
from gocept.runner.process.keywords import CHANNEL, END, POPEN, WATCH
from gocept.runner.process.launch import Launch, PopenOptions
from gocept.runner.zcml import IAppDirective, IExecutorDirective

OF_POPEN = {*inspect.signature(subprocess.Popen).parameters}


def named(function):
    """The names of its parameters, without ``self`` and ``**options``."""
    return {name for name, parameter
            in inspect.signature(function).parameters.items()
            if parameter.kind is not parameter.VAR_KEYWORD} - {'self'}


class PartTests(unittest.TestCase):

    def test_each_keyword_belongs_to_one_part(self):
        parts = (CHANNEL, WATCH, END, named(Launch.__init__))
        self.assertEqual(len({*CHANNEL, *WATCH, *END}
                             | named(Launch.__init__)),
                         sum(map(len, parts)))

    def test_of_a_process(self):
        self.assertEqual(named(Process.__init__) - {'command'}, WATCH | END)
        # Launch takes the rest, or hands it on to Popen.
        self.assertLessEqual(POPEN, named(Launch.__init__)
                             | {*PopenOptions.__annotations__})

    def test_of_executors(self):
        executor = named(SimpleExecutor.__init__)
        self.assertEqual(
            {'rlimits', 'setpgrp', 'setsid', 'detached', 'extra_env'},
            named(Launch.__init__) - POPEN - executor)
        self.assertIn('envvars', executor)
        self.assertEqual({'adopt'}, END - executor)
        self.assertLessEqual(POPEN, OF_POPEN)

    def test_in_zcml(self):
        everything = (CHANNEL | WATCH | END | POPEN | named(Launch.__init__))
        app = {*zope.schema.getFields(IAppDirective)}
        self.assertLessEqual(
            everything - {'process_group', 'start_new_session'} - app, WATCH)
        executor = {*zope.schema.getFields(IExecutorDirective)}
        self.assertLessEqual(
            (everything | {'envvars'}) & named(SimpleExecutor.__init__),
            executor)

    def test_what_a_process_refuses_of_popen(self):
        self.assertLessEqual({*PopenOptions.__annotations__}, OF_POPEN)
        for name in ('args', 'bufsize', 'errors', 'preexec_fn', 'text',
                     'universal_newlines'):
            with self.assertRaisesRegex(TypeError, f"'{name}' is no keyword"):
                Launch('cat', **{name: None})
