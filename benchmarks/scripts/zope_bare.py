"""A tick in Zope without a worker: what scripts of its users write by hand.

Each tick has a transaction, a request, a site, a user and an interaction.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import transaction
from AccessControl.security import newInteraction
from AccessControl.SecurityManagement import (
    newSecurityManager,
    noSecurityManager,
)
from Acquisition import aq_base
from Testing.makerequest import makerequest
from zope.component.hooks import setSite
from zope.globalrequest import clearRequest, getRequest, setRequest
from zope.security.management import endInteraction

from gocept.runner.runner import Exit


@contextmanager
def opened(conf: str) -> Iterator[Any]:
    """The root of an instance."""
    import Zope2
    from Zope2.Startup.run import configure_wsgi
    configure_wsgi(conf)
    app = Zope2.app()
    try:
        yield makerequest(app)
    finally:
        transaction.abort()
        app._p_jar.close()
        Zope2.DB.close()


def bare_loop(app: Any, site: str, user: str,
              worker: Callable[[], object]) -> None:
    """Call `worker` until it returns `Exit`; `app` may be any object there."""
    root = aq_base(app.getPhysicalRoot())
    result = None
    while result is not Exit:
        transaction.begin()
        begin(root, site, user)
        result = worker()
        transaction.commit()
        end()


def begin(root: Any, path: str, user: str) -> None:
    """The surroundings of a tick; `root` has no request."""
    app = makerequest(
        root, environ={'SERVER_NAME': 'nohost', 'SERVER_PORT': '80'})
    request = app.REQUEST
    request['PARENTS'] = [app]
    setRequest(request)
    site = app.unrestrictedTraverse(path)
    # What the publisher does on its way to a view of the site: this sends
    # BeforeTraverseEvent, sets the site, and in Plone its skin.
    request['TraversalRequestNameStack'] = ['@@bench']
    site.__before_publishing_traverse__(site, request)
    for users in site.acl_users, app.acl_users:
        found = users.getUserById(user)
        if found is not None:
            newSecurityManager(None, found.__of__(users))
            break
    newInteraction()


def end() -> None:
    """The end of a tick, after its commit."""
    request = getRequest()
    endInteraction()
    noSecurityManager()
    clearRequest()
    request.close()
    setSite(None)
