"""Put back what ZCML registers: components, security checkers, principals."""

import contextlib
import copy
import sys
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import zope.component
import zope.security.checker
from zope.security.management import getSecurityPolicy, setSecurityPolicy


def restore_with(undo: contextlib.ExitStack) -> None:
    """Let `undo` put back what is registered now."""
    for kind in _component_kinds():
        undo.callback(kind.restore, kind.current())
    checkers = zope.security.checker._checkers
    undo.callback(_restore_mapping, checkers, dict(checkers))
    undo.callback(setSecurityPolicy, getSecurityPolicy())
    undo.callback(_restore_principals, _principals())


class _Kind:
    """One of the four kinds of registrations in the global registry."""

    def __init__(self, registered: Callable[[], Iterable[Any]],
                 register: Callable[..., object],
                 unregister: Callable[..., object],
                 *attributes: str) -> None:
        self._registered = registered
        self._register = register
        self._unregister = unregister
        self._attributes = attributes

    def current(self) -> list[Any]:
        return list(self._registered())

    def _arguments(self, registration: Any) -> list[Any]:
        return [getattr(registration, name) for name in self._attributes]

    def _key(self, registration: Any) -> Hashable:
        # By identity, as components need not be hashable.
        first, *others = self._arguments(registration)
        return (id(first), *others, registration.info)

    def restore(self, before: list[Any]) -> None:
        for registration in self._missing_in(before, self.current()):
            self._unregister(*self._arguments(registration))
        # What was replaced, and equal subscribers that went with the others.
        for registration in self._missing_in(self.current(), before):
            self._register(*self._arguments(registration),
                           info=registration.info, event=False)

    def _missing_in(self, known: list[Any], wanted: list[Any]) -> list[Any]:
        counts = Counter(map(self._key, known))
        missing = []
        for registration in wanted:
            key = self._key(registration)
            if counts[key]:
                counts[key] -= 1
            else:
                missing.append(registration)
        return missing


def _component_kinds() -> list[_Kind]:
    components = zope.component.getGlobalSiteManager()
    return [
        _Kind(components.registeredUtilities,
              components.registerUtility, components.unregisterUtility,
              'component', 'provided', 'name'),
        _Kind(components.registeredAdapters,
              components.registerAdapter, components.unregisterAdapter,
              'factory', 'required', 'provided', 'name'),
        _Kind(components.registeredSubscriptionAdapters,
              components.registerSubscriptionAdapter,
              components.unregisterSubscriptionAdapter,
              'factory', 'required', 'provided'),
        _Kind(components.registeredHandlers,
              components.registerHandler, components.unregisterHandler,
              'factory', 'required'),
    ]


def _restore_mapping(mapping: dict[Any, Any], before: dict[Any, Any]) -> None:
    mapping.clear()
    mapping.update(before)


def _registry() -> Any:
    # Not imported for its own sake: only ZCML that uses it brings it in.
    module = sys.modules.get('zope.principalregistry.principalregistry')
    return module.principalRegistry if module is not None else None


def _principals() -> dict[str, Any] | None:
    registry = _registry()
    if registry is None:
        return None
    return {name: copy.copy(value) for name, value in vars(registry).items()}


def _restore_principals(before: dict[str, Any] | None) -> None:
    registry = _registry()
    if registry is None:
        return
    if before is None:
        registry._clear()
    else:
        _restore_mapping(vars(registry), before)
