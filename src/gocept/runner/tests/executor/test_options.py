"""The keywords that all executors have."""

import inspect
import unittest

from gocept.runner.executor import SimpleExecutor
from gocept.runner.executor.options import Options


class OptionsTests(unittest.TestCase):

    def test_they_are_the_parameters_of_all_executors(self) -> None:
        names = [*inspect.signature(SimpleExecutor).parameters]
        self.assertEqual(['command', *Options.__annotations__], names)
