"""What can be said of Zope where none is installed.

The other tests are in ``tests/zope/``.
"""

import unittest

from gocept.runner.boot.environments import NOTHING_SAID, Settings
from gocept.runner.boot.zope.environment import ZopeEnvironment
from gocept.runner.boot.zope.serverurl import ServerURL
from gocept.runner.errors import ConfigurationError, UsageError
from gocept.runner.tests.support import replaced_modules


class EnvironmentTests(unittest.TestCase):

    def test_zope_is_missing(self) -> None:
        with replaced_modules({'App': None}), self.assertRaises(
                ConfigurationError) as raised:
            ZopeEnvironment(NOTHING_SAID).load('etc/zope.conf')
        self.assertRegex(str(raised.exception), (
            r'^etc/zope.conf belongs to Zope, which is not installed here '
            r'\(.*\): pip install "gocept.runner\[zope6\]", or use the '
            r'environment of the Zope instance$'))

    def test_a_url_that_is_none(self) -> None:
        with self.assertRaisesRegex(UsageError, "'here' is not the URL of a"):
            ZopeEnvironment(Settings(server_url='here'))


class ServerURLTests(unittest.TestCase):

    def test_what_a_url_says(self) -> None:
        for url, expected, netloc in (
                ('https://www.example.org',
                 ('https', 'www.example.org', 443, ''), 'www.example.org'),
                ('http://localhost:8080/a%20b/c/',
                 ('http', 'localhost', 8080, '/a b/c/'), 'localhost:8080'),
                ('https://[::1]/', ('https', '::1', 443, '/'), '[::1]'),
                ('http://[::1]:1', ('http', '::1', 1, ''), '[::1]:1')):
            with self.subTest(url=url):
                parsed = ServerURL.parse(url)
                self.assertEqual(expected, parsed)
                self.assertEqual(netloc, parsed.netloc)

    def test_what_is_not_the_url_of_a_site(self) -> None:
        for url in ('', 'www.example.org', 'ftp://example.org', 'http://',
                    'http://example.org:x', 'http://a@example.org',
                    'http://example.org?a=b', 'http://example.org#a'):
            with self.subTest(url=url), self.assertRaises(UsageError):
                ServerURL.parse(url)
