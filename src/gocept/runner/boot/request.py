"""The request that stands for a tick.

A module of its own, since zope.publisher takes its time to be imported and
few workers need it.
"""

from zope.publisher.base import BaseRequest, BaseResponse


class RunnerRequest(BaseRequest):  # type: ignore[misc]
    """The first participation of an interaction; see `IMainLoop`.

    It takes any attributes. The arguments are the positional ones of a
    publication.
    """

    __slots__ = ('__dict__',)  # no weak references: one is made in each tick

    def __init__(self, *args: object,
                 response: BaseResponse | None = None) -> None:
        BaseRequest.__init__(self, None, {}, response, args)
