"""The request of an attempt is like one that was just made."""

from typing import Any

from zope.interface.interfaces import ISpecification
from zope.publisher.browser import setDefaultSkin
from ZPublisher.HTTPRequest import WSGIRequest
from ZPublisher.HTTPResponse import WSGIResponse

from gocept.runner.boot.zope.request import Stream, renew
from gocept.runner.boot.zope.serverurl import ServerURL
from gocept.runner.tests.support import TestCase

URL = ServerURL('https', 'www.example.org', 8443, '/portal')

ENVIRON = {
    'HTTP_HOST': 'www.example.org:8443',
    'PATH_INFO': '/',
    'QUERY_STRING': '',
    'REQUEST_METHOD': 'GET',
    'SCRIPT_NAME': '',
    'SERVER_NAME': 'www.example.org',
    'SERVER_PORT': '8443',
    'SERVER_PROTOCOL': 'HTTP/1.1',
    'wsgi.url_scheme': 'https',
}


def renewed() -> Any:
    request = WSGIRequest.__new__(WSGIRequest)
    renew(request, URL, 'the root')
    return request


def made() -> Any:
    """One that was made by Zope itself."""
    request = WSGIRequest(Stream(), dict(ENVIRON), WSGIResponse(
        stdout=Stream(), stderr=Stream()))
    request['PARENTS'] = ['the root']
    request['ACTUAL_URL'] = request['URL']
    setDefaultSkin(request)
    return request


class RenewTests(TestCase):

    def test_it_has_what_a_new_request_has(self) -> None:
        found, expected = renewed(), made()
        self.assertIs(found.response, found['RESPONSE'])
        for one, other in [(found, expected),
                           (found.response, expected.response)]:
            self.assertEqual(plain(vars(one)), plain(vars(other)))

    def test_it_shares_nothing_with_the_one_before(self) -> None:
        one, other, new = renewed(), renewed(), made()
        for two in [(one, other, new),
                    (one.response, other.response, new.response)]:
            first, second, third = map(vars, two)
            self.assertEqual([], [
                name for name, value in first.items()
                if value is second[name] and value is not third[name]
                and not is_constant(value)])

    def test_what_was_put_into_it_is_gone(self) -> None:
        request = renewed()
        request.note, request['left'] = 1, 2
        request.form['word'] = request.cookies['name'] = 'text'
        request.response.setHeader('X-Word', 'text')
        request.response.setStatus(404)
        request.debug.showTAL = True
        request.close()
        renew(request, URL, 'the root')
        self.assertFalse(hasattr(request, 'note'))
        self.assertEqual(
            [None, {}, {}, {}, 200, False],
            [request.get('left'), request.form, request.cookies,
             request.response.headers, request.response.status,
             request.debug.showTAL])
        self.assertEqual('https://www.example.org:8443', request['URL'])


def is_constant(value: object) -> bool:
    return (value is None or isinstance(value, str | int | tuple)
            or ISpecification.providedBy(value))


def plain(value: object) -> object:
    """Such that it can be compared."""
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if value is None or isinstance(value, str | int | list | tuple):
        return value
    return type(value)
