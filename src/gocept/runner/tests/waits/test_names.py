"""Names of hosts, and places to listen at."""

import socket
import unittest

from gocept.runner.executor.conditions.listeners import reserve
from gocept.runner.executor.conditions.network import resolve
from gocept.runner.waits.names import address, look_up


class LookUpTests(unittest.TestCase):

    def test_an_address(self) -> None:
        self.assertEqual([(socket.AF_INET, ('127.0.0.1', 80))], [
            (family, address) for family, _, _, _, address
            in look_up('127.0.0.1', 80)])

    def test_to_listen(self) -> None:
        self.assertIn(('0.0.0.0', 80), [
            address for *_, address in look_up(None, 80, passive=True)])

    def test_a_name_that_no_host_can_have(self) -> None:
        for find in look_up, reserve, resolve:
            with self.subTest(find), self.assertRaises(socket.gaierror):
                find('x' * 300, 80)


class AddressTests(unittest.TestCase):

    def test_addresses(self) -> None:
        for text, expected in (
                ('9100', ('127.0.0.1', 9100)), ('0', ('127.0.0.1', 0)),
                ('10.0.0.1:80', ('10.0.0.1', 80)), ('[::]:80', ('::', 80)),
                ('localhost:65535', ('localhost', 65535))):
            self.assertEqual(expected, address(text))

    def test_wrong_ones(self) -> None:
        for text in '', ':80', 'x', '::1:80', '65536', '-1', 'host:', '\xb2':
            with self.assertRaisesRegex(ValueError, '^not .*PORT'):
                address(text)
