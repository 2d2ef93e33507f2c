"""TLS in which both sides show a certificate."""

import os
import ssl
import subprocess
import tempfile
import unittest

from gocept.runner.background.tls import TLS, client_context, server_context
from gocept.runner.errors import BackgroundError
from gocept.runner.tests import services

HOST = '127.0.0.1'


class TLSTests(unittest.TestCase):
    """The ends talk to each other in memory."""

    def setUp(self) -> None:
        self.openssl = services.need(self, 'openssl')
        self.directory = self.enterContext(tempfile.TemporaryDirectory())
        self.ca = self.sign('ca')
        self.server = self.paths('server', 'ca')
        self.client = self.paths('client', 'ca')

    def file(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def sign(self, name: str, ca: str | None = None, *options: str) -> str:
        """A certificate that `ca` signs, or that signs itself."""
        signer = () if ca is None else (
            '-CA', self.file(f'{ca}.pem'), '-CAkey', self.file(f'{ca}.key'))
        subprocess.run(
            [self.openssl, 'req', '-x509', '-days', '2', '-newkey', 'ec',
             '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-subj',
             f'/CN={name}', '-addext', f'subjectAltName=IP:{HOST}',
             '-keyout', self.file(f'{name}.key'),
             '-out', self.file(f'{name}.pem'), *signer,
             *(options or ('-nodes',))],
            check=True, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return self.file(f'{name}.pem')

    def paths(self, name: str, ca: str | None) -> TLS:
        self.sign(name, ca)
        return TLS(self.file(f'{name}.pem'), self.file(f'{name}.key'), self.ca)

    def talk(self, server: ssl.SSLContext, client: ssl.SSLContext,
             host: str = HOST) -> bytes:
        """What the server gets from the client."""
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        ends = [
            server.wrap_bio(to_server, to_client, server_side=True),
            client.wrap_bio(to_client, to_server, server_hostname=host)]
        for _ in range(10):  # turns
            for end in ends:
                try:
                    end.do_handshake()
                except ssl.SSLWantReadError:
                    continue
        ends[1].write(b'hello')
        return ends[0].read(5)

    def test_both_are_signed(self) -> None:
        self.assertEqual(b'hello', self.talk(
            server_context(*self.server), client_context(*self.client)))

    def test_tls_1_2(self) -> None:
        client = client_context(*self.client)
        client.maximum_version = ssl.TLSVersion.TLSv1_2
        self.assertEqual(
            b'hello', self.talk(server_context(*self.server), client))

    def test_what_is_older_is_refused(self) -> None:
        for context in (server_context(*self.server),
                        client_context(*self.client)):
            self.assertEqual(
                ssl.TLSVersion.TLSv1_2, context.minimum_version)

    def test_a_client_that_is_not_signed(self) -> None:
        stranger = self.paths('stranger', None)
        with self.assertRaises(ssl.SSLError):
            self.talk(server_context(*self.server), client_context(*stranger))

    def test_a_client_without_a_certificate(self) -> None:
        client = ssl.create_default_context(cafile=self.ca)
        with self.assertRaises(ssl.SSLError):
            self.talk(server_context(*self.server), client)

    def test_a_server_that_is_not_signed(self) -> None:
        stranger = self.paths('stranger', None)
        with self.assertRaises(ssl.SSLCertVerificationError):
            self.talk(server_context(*stranger), client_context(*self.client))

    def test_a_server_with_another_address(self) -> None:
        for host in '127.0.0.2', 'localhost':
            with self.assertRaises(ssl.SSLCertVerificationError):
                self.talk(server_context(*self.server),
                          client_context(*self.client), host)

    def test_files_that_are_not_there(self) -> None:
        missing = self.file('missing')
        for number in range(3):
            paths = [*self.server]
            paths[number] = missing
            for make in server_context, client_context:
                with self.assertRaises(BackgroundError) as caught:
                    make(*paths)
                self.assertEqual(
                    f'{missing} cannot be read: No such file or directory',
                    str(caught.exception))

    def test_files_of_another_kind(self) -> None:
        cert, key, ca = self.server
        for paths, named in (
                ((key, key, ca), key), ((cert, cert, ca), cert),
                ((cert, self.client.key, ca), cert), ((cert, key, key), key)):
            with self.assertRaises(BackgroundError) as caught:
                server_context(*paths)
            self.assertIn(named, str(caught.exception))
            self.assertNotIn('\n', str(caught.exception))

    def test_a_key_with_a_passphrase(self) -> None:
        self.sign('locked', 'ca', '-passout', 'pass:secret')
        with self.assertRaises(BackgroundError) as caught:
            server_context(
                self.file('locked.pem'), self.file('locked.key'), self.ca)
        self.assertIn('wants a passphrase', str(caught.exception))
