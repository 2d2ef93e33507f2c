"""The place of a site in its database, where another object may be found."""

from collections.abc import Callable
from typing import Any

from ZODB.POSException import POSKeyError
from zope.component.interfaces import ISite

MOST_PARENTS = 100
"""Of an object; more of them are taken for a circle."""


def finder(site: ISite) -> Callable[[], ISite] | None:
    """Return what looks up the object at the place of `site`.

    The place is the path of names from the root of the database. None if
    `site` is not found at such a place. The lookup raises LookupError if there
    is no object any more.
    """
    connection = getattr(site, '_p_jar', None)
    if connection is None:
        return None
    names: list[str] = []
    top: Any = site
    while getattr(top, '__parent__', None) is not None:
        if len(names) == MOST_PARENTS:
            return None
        names.append(top.__name__)
        top = top.__parent__
    root = connection.root()
    keys = [key for key, each in root.items() if is_same(each, top)]
    if not keys:
        return None
    names = names[::-1]
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


def is_same(one: object, other: object) -> bool:
    """Whether these are one object of a database, though in two wrappers."""
    return one is other or (
        _address(one) is not None and _address(one) == _address(other))


def _address(one: object) -> tuple[object, object] | None:
    oid = getattr(one, '_p_oid', None)
    return None if oid is None else (oid, getattr(one, '_p_jar', None))

