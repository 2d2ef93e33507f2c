"""Clients of servers with TLS."""

import os

from gocept.runner.background import initialize
from gocept.runner.errors import (
    BackgroundError,
    ProtocolError,
    ServerRefused,
)
from gocept.runner.tests import services
from gocept.runner.tests.background import test_tls
from gocept.runner.tests.background.test_calls import (
    ServerTestCase,
    execute_all,
    init,
)
from gocept.runner.tests.support import DEADLINE


class EncryptedTests(ServerTestCase):

    file = test_tls.TLSTests.file
    sign = test_tls.TLSTests.sign
    paths = test_tls.TLSTests.paths

    def setUp(self):
        super().setUp()
        self.openssl = services.need(self, 'openssl')
        self.directory = str(self.dir)
        self.ca = self.sign('ca')
        self.tls = self.paths('server', 'ca')
        self.ours = self.paths('client', 'ca')

    def start(self):
        found = initialize(
            init, execute_all, port=self.port, tls=self.tls, timeout=DEADLINE)
        self.remember(tls=self.ours)
        return found

    def test_requests(self):
        self.start()
        with self.client(tls=self.ours) as client:
            for value in 5, 'x' * 100_000:
                self.assertEqual(value, client.execute({'value': value}, True))
            pending = [client.submit({'value': each}) for each in range(50)]
            self.assertEqual(
                [*range(50)], [each.result() for each in pending])

    def test_both_send_much(self):
        self.start()
        big = os.urandom(1000) * 8000
        with self.client(tls=self.ours) as client:
            pending = [client.submit({'value': big}) for _ in range(4)]
            for each in pending:
                self.assertEqual(big, each.result())

    def test_long_task(self):
        self.start()
        self.check_long_task(tls=self.ours)

    def test_client_without(self):
        self.start()
        with self.assertRaisesRegex(BackgroundError, 'tls='):
            self.client(connect_timeout=DEADLINE).execute({}, True)

    def test_server_without(self):
        super().start()
        with self.assertRaisesRegex(ProtocolError, 'does not speak TLS'):
            self.client(tls=self.ours).execute({}, True)

    def test_certificate_of_somebody_else(self):
        self.start()
        self.sign('other')
        with self.assertRaisesRegex(ServerRefused, 'certificate'):
            self.client(tls=self.ours._replace(ca=self.file('other.pem'))
                        ).execute({}, True)

    def test_our_certificate_is_unknown(self):
        self.start()
        self.sign('other')
        other = self.ours._replace(
            cert=self.file('other.pem'), key=self.file('other.key'))
        with self.assertRaisesRegex(BackgroundError, 'certificate'):
            self.client(tls=other).execute({}, True)
