"""Names of hosts."""

import socket
import unittest

from gocept.runner.executor.conditions.listeners import reserve
from gocept.runner.executor.conditions.network import resolve
from gocept.runner.waits.names import look_up


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
