"""The manual of a house of workers, run as tests."""

import unittest

from gocept.runner.tests.test_narratives import narratives

NARRATIVES = ('house/house.rst', 'house/page.rst', 'house/zeo.rst')


def test_suite() -> unittest.TestSuite:
    return narratives(*NARRATIVES)
