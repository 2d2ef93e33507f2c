"""The place of an object below the root, and what is there."""

from collections.abc import Iterator, Sequence
from typing import Any

from Acquisition import aq_base, aq_inner, aq_parent
from zExceptions import NotFound
from ZODB.broken import Broken
from ZODB.POSException import POSKeyError

from gocept.runner.errors import (
    ConfigurationError,
    NoSuchSite,
    NotASiteError,
)


def find_site(root: Any, path: str | None) -> Any:
    """See `IEnvironment`."""
    if '://' in (path or ''):
        raise NoSuchSite(f'{path} is a URL; name the path of the site in the '
                         'database, such as Plone')
    names = [name for name in (path or '').split('/') if name]
    what = repr('/'.join(names))
    try:
        found = [root, *objects_at(root, names)][-1]
    except LookupError as error:
        if isinstance(error, POSKeyError):
            raise  # the database is broken
        raise NoSuchSite(f'the root has no object {what}') from None
    if isinstance(aq_base(found), Broken):
        kind = type(aq_base(found))
        raise ConfigurationError(
            f'{what} is a {kind.__module__}.{kind.__name__}, which cannot be '
            'imported; is its package installed in this environment?')
    if names and getattr(aq_base(found), '_p_jar', None) is None:
        raise NotASiteError(
            f'{what} is a {type(aq_base(found)).__name__} and no object of '
            'the database, so it cannot be the site')
    return found


def objects_at(root: Any, names: Sequence[str]) -> Iterator[Any]:
    """The objects on the way from the root to the object at its end.

    LookupError if there is none. What would be acquired is not there.
    """
    for name in names:
        container = root
        try:
            root = container.unrestrictedTraverse(name)
        except (AttributeError, NotFound) as error:
            raise LookupError(name) from error
        is_acquired = (aq_base(aq_parent(aq_inner(root)))
                       is not aq_base(container))
        if is_acquired and not isinstance(root, Broken):
            raise LookupError(name)
        yield root
