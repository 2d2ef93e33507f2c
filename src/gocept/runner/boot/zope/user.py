"""The user of a worker, as the user folders of its site know it."""

from collections.abc import Iterator
from typing import Any

import AccessControl.users
from Acquisition import aq_base, aq_chain, aq_inner, aq_parent
from zope.authentication.interfaces import PrincipalLookupError

from gocept.runner.errors import UNKNOWN_PRINCIPAL, RunnerError

SYSTEM = 'system'
"""The id that stands for the user that Zope itself works as."""


class UnknownUser(RunnerError, PrincipalLookupError):  # type: ignore[misc]
    """Raised when no user folder knows the user that a worker is to be."""

    status = UNKNOWN_PRINCIPAL


def find_user(site: Any, principal: object) -> Any:
    """The user with this id, wrapped in its user folder.

    The user folder of the site is asked first, then those above it, and at
    last that of the root. A user object, in place of an id, is wrapped in the
    nearest user folder unless it is in one.

    UnknownUser if none of them knows the id.
    """
    if not isinstance(principal, str):
        return _wrapped(principal, list(_user_folders(site)))
    if principal == SYSTEM:
        return _wrapped(
            AccessControl.users.system, list(_user_folders(site))[-1:])
    for folder in _user_folders(site):
        user = folder.getUserById(principal, None)
        if user is not None:
            return _wrapped(user, [folder])
    paths = ' and '.join('/'.join(folder.getPhysicalPath())
                         for folder in _user_folders(site))
    raise UnknownUser(f'no user has the id {principal!r} in '
                      f'{paths or "the site, which has no user folder"}')


def anonymous(site: Any) -> Any:
    """The user of a worker without a principal."""
    return _wrapped(AccessControl.users.nobody, [*_user_folders(site)][-1:])


def author(user: Any, principal: object) -> str:
    """Who that is, in the words of an undo log: path of user folder, and id.

    The path is that of the object with the user folder, as the publisher
    writes it.
    """
    folder = aq_parent(user)
    path = () if folder is None else folder.getPhysicalPath()[1:-1]
    name = user.getId() or (principal if isinstance(principal, str)
                            else user.getUserName())
    return f'{"/".join(path)} {name}'


def _user_folders(site: Any) -> Iterator[Any]:
    for each in aq_chain(aq_inner(site)):
        # The publisher takes what this attribute names, too.
        if getattr(aq_base(each), 'acl_users', None) is not None:
            yield each.acl_users


def _wrapped(user: Any, folders: list[Any]) -> Any:
    if aq_parent(user) is None and hasattr(user, '__of__') and folders:
        return user.__of__(folders[0])
    return user
