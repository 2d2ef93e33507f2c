"""A site of Zope in an attempt, with request, user and security manager."""

from collections.abc import Callable, Iterable
from typing import Any, Self

import transaction
import zope.event
import zope.interface
from AccessControl.security import newInteraction
from AccessControl.SecurityManagement import (
    getSecurityManager,
    newSecurityManager,
    noSecurityManager,
    setSecurityManager,
)
from Acquisition import aq_base, aq_chain, aq_inner
from ZODB.POSException import POSKeyError
from zope.component.hooks import getSite, getSiteManager, setSite
from zope.component.interfaces import ISite
from zope.globalrequest import clearRequest, getRequest, setRequest
from zope.security.management import (
    endInteraction,
    queryInteraction,
    thread_local,
)
from zope.traversing.interfaces import BeforeTraverseEvent

from gocept.runner.boot.zope.place import objects_at
from gocept.runner.boot.zope.request import (
    renew,
    request_of,
    set_virtual_root,
    with_request,
)
from gocept.runner.boot.zope.serverurl import ServerURL
from gocept.runner.boot.zope.user import anonymous, author, find_user
from gocept.runner.interfaces import ICurrentSite, IPlacedSite
from gocept.runner.logs import Log

log = Log('gocept.runner.environment')

_LAST_STEP = '@@gocept.runner'
"""Stands for the view that a browser would ask for after the site.

Without a further name, the hooks of content objects look for their default
view.
"""


@zope.interface.implementer(ICurrentSite, IPlacedSite)
class CurrentSite:
    """See `ICurrentSite`, `IPlacedSite`, and `entered` of `IEnvironment`."""

    components: Any
    path: str | None
    _request: Any

    def __init__(self, app: Any, principal: Callable[[], object], name: str,
                 replaced: Callable[[Any], object], url: ServerURL) -> None:
        self.app = app
        self._get_principal = principal
        self._name = name
        self._replaced = replaced
        self._url = url
        self._has_begun = False

    # No generator: what is forgotten would end at any time.
    def __enter__(self) -> Self:
        self._before = (getSite(), queryInteraction(), getSecurityManager(),
                        getRequest())
        self._request = None
        try:
            endInteraction()
            self._names = self.app.getPhysicalPath()[1:]
            self.path = '/'.join(self._names)
            self._root = self.app.getPhysicalRoot()
            request = request_of(self.app)
            if request is None:  # the caller has opened the database
                self._root = with_request(self._root, self._url)
                request = request_of(self._root)
                self.app = [
                    self._root, *objects_at(self._root, self._names)][-1]
            self._request = request
            self._attributes = vars(request).copy()  # each attempt has others
            setSite(site_of(aq_chain(aq_inner(self.app))))
            self.components = getSiteManager()
            self._principal = self._get_principal()
            if self._principal is not None:
                find_user(self.app, self._principal)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.end()
        site, interaction, security, request = self._before
        if self._request is not None:
            # The code around a loop has objects with this request, too.
            attributes = vars(self._request)
            attributes.clear()
            attributes.update(self._attributes)
        setRequest(request)
        setSecurityManager(security)
        endInteraction()
        if interaction is not None:
            thread_local.interaction = interaction
        setSite(site)

    def begin(self) -> None:
        """See `ICurrentSite`."""
        self.end()
        self.begin_item()

    def begin_item(self) -> None:
        """See `ICurrentSite`.

        The request is not closed, but what code has put into it is gone.
        """
        self._has_begun = True
        endInteraction()
        txn = transaction.begin()
        txn.description = self._name
        renew(self._request, self._url, self._root)
        setRequest(self._request)
        self._traverse(self._request)
        principal = self._principal
        if principal is None:
            user = anonymous(self.app)
        else:
            user = find_user(self.app, principal)
            txn.user = author(user, principal)
        self._request['AUTHENTICATED_USER'] = user
        newSecurityManager(None, user)
        newInteraction()

    def _traverse(self, request: Any) -> None:
        """Find the site, and do what the publisher does on its way to it."""
        try:
            objects = [self._root, *objects_at(self._root, self._names)]
        except POSKeyError:
            raise  # the database is broken
        except LookupError:
            raise LookupError(
                f'the site {"/".join(self._names)!r} is gone: the database '
                'has no object at its place') from None
        found = objects[-1]
        if aq_base(found) is aq_base(self.app):
            objects[-1] = self.app
        else:
            self.app = found
            self._replaced(found)
        if self._url.path is not None:
            nearest = site_of(reversed(objects))
            set_virtual_root(
                request, self._root if nearest is None else nearest,
                self._url.path)
        setSite(None)
        site, left = None, [_LAST_STEP, *reversed(self._names)]
        for each in objects:
            request['TraversalRequestNameStack'] = left.copy()
            if _tell_traversed(each, request):
                site = each
            left.pop()
        request['TraversalRequestNameStack'] = []
        request['PARENTS'] = objects[::-1]
        if getSite() is not site:
            setSite(site)
        self.components = getSiteManager()

    def end(self) -> None:
        """See `ICurrentSite`."""
        if not self._has_begun:
            return
        self._has_begun = False
        site = getSite()
        try:
            endInteraction()
            self._request.close()
        except Exception:
            log.error('An error at the end of the request', exc_info=True)
        finally:
            noSecurityManager()
            clearRequest()
            if getSite() is not site:
                setSite(site)  # the end of a request has reset it


def site_of(objects: Iterable[Any]) -> Any:
    """The first one with a site manager; the nearest must come first."""
    for each in objects:
        if ISite.providedBy(each):
            return each
    return None


def _tell_traversed(traversed: Any, request: Any) -> bool:
    """Do what the publisher does there; returns whether it is a site."""
    hook = getattr(traversed, '__before_publishing_traverse__', None)
    if hook is not None:
        hook(traversed, request)
    if not ISite.providedBy(traversed):
        return False
    # Where somebody has called setSiteManager() only, there is no hook.
    if aq_base(getSite()) is not aq_base(traversed):
        zope.event.notify(BeforeTraverseEvent(traversed, request))
    return True
