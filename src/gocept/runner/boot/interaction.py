"""The interactions of a principal, one for each attempt."""

from collections.abc import Callable
from typing import Any, Protocol

from zope.authentication.interfaces import IAuthentication
from zope.component.hooks import getSiteManager
from zope.security.management import getSecurityPolicy, thread_local


class Components(Protocol):
    """What is used of the site manager of a site."""

    def getUtility(self, provided: type) -> Any: ...


Participation = Callable[[Components], Callable[[], None]]
"""Returns what begins an interaction in the site of these components."""


def participation(principal: str) -> Participation:
    """Return what makes the beginning of interactions of a principal.

    PrincipalLookupError, or ComponentLookupError, if the site that is set does
    not know the principal.
    """
    # Imported here, since it takes its time and few workers need it.
    from zope.publisher.base import BaseResponse

    from gocept.runner.boot.request import RunnerRequest
    response = BaseResponse()  # never read, so all requests share it

    def participation_in(components: Components) -> Callable[[], None]:
        get_utility = components.getUtility

        def participate() -> None:
            request = RunnerRequest(response=response)
            request.setPrincipal(
                get_utility(IAuthentication).getPrincipal(principal))
            # Like newInteraction(), without the check that there is none.
            thread_local.interaction = getSecurityPolicy()(request)
        return participate

    getSiteManager().getUtility(IAuthentication).getPrincipal(principal)
    return participation_in
