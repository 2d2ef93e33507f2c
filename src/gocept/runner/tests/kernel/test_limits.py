"""How much a kernel keeps for its clients."""

import unittest

from gocept.runner.errors import KernelError
from gocept.runner.kernel.wire.limits import Limits, parse_size


class TestLimits(unittest.TestCase):

    def test_each_has_a_default_and_a_meaning(self) -> None:
        limits = Limits.parse([])
        self.assertEqual(Limits(), limits)
        for name, meaning in Limits.meanings().items():
            self.assertGreater(getattr(limits, name), 0)
            self.assertTrue(meaning)

    def test_each_can_be_set(self) -> None:
        limits = Limits.parse(['line=2k', 'memory=3G', 'values=7'])
        self.assertEqual((2048, 3 * 2 ** 30, 7),
                         (limits.line, limits.memory, limits.values))
        self.assertEqual(Limits().frame, limits.frame)

    def test_others_are_refused(self) -> None:
        for setting, error in (
                ('lines=1', "no limit 'lines': name one of line, frame, "),
                ('line', "the limit line is a number, .* not ''"),
                ('line=-1', "not '-1'"), ('line=1x', "not '1x'"),
                ('line=k', "not 'k'"), ('line=1.5m', "not '1.5m'"),
                ('line=\u0663', 'not'), ('line=' + '9' * 20, 'not')):
            with self.assertRaisesRegex(KernelError, error):
                Limits.parse([setting])

    def test_too_much_is_told_with_the_setting(self) -> None:
        limits = Limits(sockets=2)
        limits.check('sockets', 2)
        with self.assertRaisesRegex(
                KernelError, 'limit is 2 sockets.*--limit sockets=3'):
            limits.check('sockets', 3)

    def test_sizes_have_units(self) -> None:
        self.assertEqual(
            [0, 1024, 2 ** 20, 2 * 2 ** 30],
            [parse_size(each, 'x') for each in ('0', '1k', '1M', '2g')])
