"""The place of a site in its database, where another object may be found."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import zope.interface
from ZODB.POSException import POSKeyError
from zope.component.hooks import getSite, getSiteManager, setSite
from zope.component.interfaces import ISite
from zope.interface.interfaces import IComponents
from zope.security.management import (
    endInteraction,
    queryInteraction,
    thread_local,
)

from gocept.runner.boot.interaction import Participation, participation
from gocept.runner.boot.metadata import Metadata
from gocept.runner.interfaces import ICurrentSite, IPlacedSite

MOST_PARENTS = 100
"""Of an object; more of them are taken for a circle."""


def finder(site: ISite) -> Callable[[], ISite] | None:
    """Return what looks up the object at the place of `site`.

    The place is the path of names from the root of the database. None if
    `site` is not found at such a place. The lookup raises LookupError if there
    is no object any more.
    """
    connection = getattr(site, '_p_jar', None)
    way = way_to(site)
    if connection is None or way is None:
        return None
    top, names = way
    root = connection.root()
    keys = [key for key, each in root.items() if is_same(each, top)]
    if not keys:
        return None
    place = repr('/'.join(names) or 'root folder')

    key = keys[0]

    def find() -> ISite:
        try:
            # What `root[key]` returns in twice the time.
            found: Any = root.data[key]
            for name in names:
                found = found[name]
        except POSKeyError:
            raise  # the database is broken
        except KeyError as error:
            raise LookupError(
                f'the site {place} is gone: the database has no object at '
                'its place') from error
        return found  # type: ignore[no-any-return]

    try:
        return find if is_same(find(), site) else None
    except (LookupError, TypeError):
        return None


def way_to(site: ISite) -> tuple[object, Sequence[str]] | None:
    """The topmost parent, and the names from there; None: a circle."""
    names: list[str] = []
    top: Any = site
    while getattr(top, '__parent__', None) is not None:
        if len(names) == MOST_PARENTS:
            return None
        names.append(top.__name__)
        top = top.__parent__
    return top, names[::-1]


def is_same(one: object, other: object) -> bool:
    """Whether these are one object of a database, though in two wrappers."""
    return one is other or (
        _address(one) is not None and _address(one) == _address(other))


def _address(one: object) -> tuple[object, object] | None:
    oid = getattr(one, '_p_oid', None)
    return None if oid is None else (oid, getattr(one, '_p_jar', None))


@zope.interface.implementer(ICurrentSite, IPlacedSite)
class CurrentSite:
    """See `ICurrentSite`, `IPlacedSite`, and `entered` of `IEnvironment`."""

    components: IComponents
    path: str | None

    def __init__(self, app: ISite, principal: Callable[[], object], name: str,
                 replaced: Callable[[ISite], object]) -> None:
        self.app = app
        self._principal = principal
        self._name = name
        self._replaced = replaced

    # No generator: what is forgotten would end at any time.
    def __enter__(self) -> Self:
        self._before = getSite(), queryInteraction()
        try:
            endInteraction()
            setSite(self.app)
            principal = self._principal()
            # The one that an authentication is asked for.
            known = None if principal is None else str(principal)
            metadata = Metadata(known, self._name)
            self._begin = self.begin_item = metadata.begin
            self._find = finder(self.app)
            way = way_to(self.app)
            self.path = (None if self._find is None or way is None
                         else '/'.join(way[1]))
            self._participation_in: Participation | None = (
                None if known is None else participation(known))
            self._serve()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        site, interaction = self._before
        endInteraction()
        if interaction is not None:
            thread_local.interaction = interaction
        setSite(site)

    def _serve(self) -> None:
        """Take what is kept of the site from attempt to attempt."""
        self.components = components = getSiteManager()
        self._participate = (self._participation_in
                             and self._participation_in(components))

    def begin(self) -> None:
        """See `ICurrentSite`."""
        self._begin()
        find, app = self._find, self.app
        if find is not None:
            found = find()
            if found is not app and not is_same(found, app):
                self.app = app = found
                self._replaced(found)
        if getSite() is not app or (
                find is not None
                and app.getSiteManager() is not self.components):
            setSite(app)
            self._serve()
        if self._participate is not None:
            self._participate()

    def end(self) -> None:
        """See `ICurrentSite`."""
        # Cheaper than to end none, as there is none most of the time.
        if getattr(thread_local, 'interaction', None) is not None:
            endInteraction()
