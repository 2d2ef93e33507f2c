"""Undo ZCML: components, security checkers, the policy and principals."""

import contextlib
import copy
import itertools
import sys
from collections import Counter
from collections.abc import Hashable, Iterable
from typing import TYPE_CHECKING, Protocol

import zope.component
import zope.security.checker
from zope.security.management import getSecurityPolicy, setSecurityPolicy

if TYPE_CHECKING:
    from zope.principalregistry.principalregistry import PrincipalRegistry


class Registration(Protocol):
    """A registration in the global registry; its kind has more attributes."""

    info: str


_KINDS = (
    ('Utility', 'Utilities', 'component', 'provided', 'name'),
    ('Adapter', 'Adapters', 'factory', 'required', 'provided', 'name'),
    ('SubscriptionAdapter', 'SubscriptionAdapters',
     'factory', 'required', 'provided'),
    ('Handler', 'Handlers', 'factory', 'required'),
)
"""The kinds of registrations, the plural of each, and its attributes."""


def restore_with(undo: contextlib.ExitStack) -> None:
    """Let `undo` put back what is registered now."""
    for kind in itertools.starmap(_Kind, _KINDS):
        undo.callback(kind.restore, list(kind.registered()))
    checkers = zope.security.checker._checkers
    undo.callback(checkers.update, dict(checkers))
    undo.callback(checkers.clear)  # called first
    undo.callback(setSecurityPolicy, getSecurityPolicy())
    undo.callback(_restore_principals, _principals())


def forget_unique() -> None:
    """Forget the checkers and principals, which ZCML declares only once."""
    zope.security.checker._clear()
    registry = _registry()
    if registry is not None:
        registry._clear()


class _Kind:
    """A kind of registrations in the global registry."""

    def __init__(self, name: str, plural: str, *attributes: str) -> None:
        components = zope.component.getGlobalSiteManager()
        self.registered = getattr(components, f'registered{plural}')
        self._register = getattr(components, f'register{name}')
        self._unregister = getattr(components, f'unregister{name}')
        self._attributes = attributes

    def _arguments(self, registration: Registration) -> list[object]:
        return [getattr(registration, name) for name in self._attributes]

    def _key(self, registration: Registration) -> Hashable:
        # By identity, as some components are not hashable.
        first, *others = self._arguments(registration)
        return (id(first), *others, registration.info)

    def restore(self, before: list[Registration]) -> None:
        for registration in self._missing_in(before, [*self.registered()]):
            self._unregister(*self._arguments(registration))
        # Register again what was replaced, and subscribers that are equal to
        # those unregistered above.
        for registration in self._missing_in(self.registered(), before):
            self._register(*self._arguments(registration),
                           info=registration.info, event=False)

    def _missing_in(self, known: Iterable[Registration],
                    wanted: list[Registration]) -> list[Registration]:
        by_key = {self._key(registration): registration
                  for registration in wanted}
        counts = Counter(map(self._key, wanted))
        counts.subtract(map(self._key, known))
        return [by_key[key] for key in counts.elements()]


def _registry() -> 'PrincipalRegistry | None':
    # Not imported here: only ZCML that declares principals needs it.
    module = sys.modules.get('zope.principalregistry.principalregistry')
    return None if module is None else module.principalRegistry


def _principals() -> dict[str, object] | None:
    registry = _registry()
    if registry is None:
        return None
    return {name: copy.copy(value) for name, value in vars(registry).items()}


def _restore_principals(before: dict[str, object] | None) -> None:
    registry = _registry()
    if registry is None:
        return
    registry._clear()
    if before is not None:
        vars(registry).update(before)
