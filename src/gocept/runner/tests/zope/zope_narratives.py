"""The manual for Zope 5 and Zope 6, run as tests."""

import doctest
import os
import pathlib
import sys
import unittest
import unittest.mock

from gocept.runner.tests import test_narratives
from gocept.runner.tests.support import child_environment

NARRATIVES = ('boot/zope.rst',)


def set_up(test: doctest.DocTest) -> None:
    """Like the others, but commands are found beside this Python."""
    test_narratives.set_up(test)
    test.globs['_undo'].enter_context(unittest.mock.patch.dict(
        os.environ, PATH=os.pathsep.join(
            [str(pathlib.Path(sys.executable).parent),
             os.environ.get('PATH', os.defpath)]),
        # What they print stands among their log lines, as on a terminal.
        PYTHONUNBUFFERED='1'))
    test.globs['environment'] = child_environment()


def test_suite() -> unittest.TestSuite:
    return doctest.DocFileSuite(
        *NARRATIVES, package='gocept.runner', setUp=set_up,
        tearDown=test_narratives.tear_down,
        optionflags=test_narratives.OPTIONS, encoding='utf-8')
