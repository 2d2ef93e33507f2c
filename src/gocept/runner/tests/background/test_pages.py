"""Memory in large pages, where there are some."""

import mmap
import os
import unittest
from unittest import mock

from gocept.runner.background import pages


@unittest.skipUnless(hasattr(mmap, 'MADV_HUGEPAGE'), 'only Linux has them')
class PagesTests(unittest.TestCase):

    def test_a_region(self) -> None:
        region = pages.new_region()
        assert region is not None  # a kernel without them is rare
        self.assertEqual(pages.REGION, len(region))
        region[-3:] = b'end'
        self.assertEqual(b'\0end', region[-4:].tobytes())
        self.assertTrue(pages.is_region(region))
        self.assertTrue(pages.is_region(region[5:7]))
        for other in b'', bytearray(9), memoryview(b'x'):
            self.assertFalse(pages.is_region(other))

    def mapped(self) -> int:
        with open('/proc/self/statm') as statm:
            return int(statm.read().split()[0]) * mmap.PAGESIZE

    def test_it_goes_back_to_the_system(self) -> None:
        before = self.mapped()
        regions = [pages.new_region() for _ in range(64)]
        self.assertGreater(self.mapped() - before, 60 * pages.REGION)
        del regions
        self.assertLess(self.mapped() - before, 10 * pages.REGION)

    def test_there_are_none(self) -> None:
        with mock.patch.object(mmap, 'mmap', side_effect=OSError(22, 'no')):
            self.assertIsNone(pages.new_region())
        with mock.patch.object(pages, '_ADVICE', None):
            self.assertIsNone(pages.new_region())
            pages.advise(memoryview(bytearray(pages.REGION)))

    def test_advice_changes_nothing(self) -> None:
        for size in 0, 1, pages.REGION - 1, pages.REGION, 9 * 10 ** 6 + 1:
            data = os.urandom(size)
            buffer = bytearray(data)
            pages.advise(memoryview(buffer))
            self.assertEqual(data, buffer)
