"""The request that the objects of an application acquire.

There is one for each connection. For each attempt it is made as if it were
new. So all objects that were found from the root on have the request of the
present attempt, also those that a worker or a generator holds.
"""

import copy
import functools
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any, NoReturn, Self

import zope.component.hooks
from Acquisition import aq_get
from zope.publisher.base import DebugFlags
from zope.publisher.browser import setDefaultSkin
from ZPublisher.BaseRequest import RequestContainer
from ZPublisher.HTTPRequest import WSGIRequest
from ZPublisher.HTTPResponse import WSGIResponse

from gocept.runner.boot.zope.serverurl import ServerURL


def with_request(root: Any, url: ServerURL) -> Any:
    """The ``Application`` object with a request."""
    request = WSGIRequest.__new__(WSGIRequest)
    root = root.__of__(RequestContainer(REQUEST=request))
    renew(request, url, root)
    return root


def request_of(application_object: Any) -> Any:
    """The request that an object acquires; None if it has none."""
    request = aq_get(application_object, 'REQUEST', None)
    # Without a request, there is a string at the top of each class.
    return request if isinstance(request, WSGIRequest) else None


def renew(request: WSGIRequest, url: ServerURL, root: Any) -> None:
    """Make it as if it were new; what code has put into it is gone."""
    of_request, of_response = _fresh(url)
    response = WSGIResponse.__new__(WSGIResponse)
    of_response.copy_to(response)
    of_request.copy_to(request)
    request.response = request.other['RESPONSE'] = response
    request.other['PARENTS'] = [root]


class _State:
    """The attributes of a new object, for others of its kind.

    To copy them takes a third of the time of ``__init__``, which computes
    them from the environment.
    """

    def __init__(self, new: object, another: object) -> None:
        """Both are new; what they share is shared by all."""
        shared = vars(another)
        self._attributes = vars(new)
        self._copies = [
            (name, value, _COPY.get(type(value), copy.copy))
            for name, value in self._attributes.items()
            if value is not shared[name] and copy.copy(value) is not value]

    def copy_to(self, other: object) -> None:
        """Give `other` these attributes, and no others."""
        attributes = other.__dict__
        attributes.clear()
        attributes.update(self._attributes)
        for name, value, copied in self._copies:
            attributes[name] = copied(value)


class Stream(BytesIO):
    """A stream of a request, which is as little to be stored as a socket is.

    Otherwise, an object with a request as its attribute could be committed,
    and could never be loaded again.
    """

    def __copy__(self) -> Self:
        return type(self)()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError('a request cannot be stored in the database')


_COPY: Mapping[type, Callable[[Any], object]] = {
    dict: dict.copy, list: list.copy, Stream: Stream.__copy__,
    DebugFlags: lambda unset: DebugFlags()}
"""What `copy.copy` would do, in a tenth of the time."""


@functools.cache
def _fresh(url: ServerURL) -> tuple[_State, _State]:
    """That of a new request, and that of a response."""
    new, another = _make(url), _make(url)
    responses = [vars(each).pop('response') for each in (new, another)]
    return _State(new, another), _State(*responses)


def _make(url: ServerURL) -> WSGIRequest:
    request = WSGIRequest(
        Stream(), _environ(url),
        WSGIResponse(stdout=Stream(), stderr=Stream()))
    request['ACTUAL_URL'] = request['URL']
    with zope.component.hooks.site(None):  # as in the publisher
        setDefaultSkin(request)
    return request


def _environ(url: ServerURL) -> dict[str, str]:
    """What a web server says of a request."""
    return {
        'HTTP_HOST': url.netloc,
        'PATH_INFO': '/',
        'QUERY_STRING': '',
        'REQUEST_METHOD': 'GET',
        'SCRIPT_NAME': '',
        'SERVER_NAME': url.host,
        'SERVER_PORT': str(url.port),
        'SERVER_PROTOCOL': 'HTTP/1.1',
        'wsgi.url_scheme': url.scheme,
    }


def set_virtual_root(request: WSGIRequest, site: Any, path: str) -> None:
    """Let the URL of `site` have this path."""
    parents = request['PARENTS']
    request['PARENTS'] = [site]
    request.setVirtualRoot(path)
    request['PARENTS'] = parents
    request['ACTUAL_URL'] = request['VIRTUAL_URL'] = request['URL']
