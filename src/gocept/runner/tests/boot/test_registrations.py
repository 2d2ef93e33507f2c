import contextlib
import unittest

import zope.component
import zope.interface
import zope.security.checker
import zope.security.management
import zope.security.simplepolicies
import zope.testing.cleanup
from zope.principalregistry.principalregistry import principalRegistry

from gocept.runner.boot import registrations


class IOne(zope.interface.Interface):
    pass


class ITwo(zope.interface.Interface):
    pass


@zope.component.adapter(IOne)
@zope.interface.implementer(ITwo)
class Adapter:
    def __init__(self, context):
        pass


@zope.component.adapter(IOne)
def handler(event):
    pass


class Unhashable:
    __hash__ = None


class RegistrationsTests(unittest.TestCase):

    def setUp(self):
        zope.testing.cleanup.cleanUp()
        self.addCleanup(zope.testing.cleanup.cleanUp)
        self.components = zope.component.getGlobalSiteManager()

    @contextlib.contextmanager
    def undone(self):
        before = self.state()
        with contextlib.ExitStack() as undo:
            registrations.restore_with(undo)
            yield
            self.assertNotEqual(before, self.state())
        self.assertEqual(before, self.state())

    def state(self):
        return (
            sorted(map(repr, self.components.registeredUtilities())),
            sorted(map(repr, self.components.registeredAdapters())),
            sorted(map(repr,
                       self.components.registeredSubscriptionAdapters())),
            sorted(map(repr, self.components.registeredHandlers())),
            dict(zope.security.checker._checkers),
            zope.security.management.getSecurityPolicy(),
            principalRegistry.getPrincipals(''),
        )

    def register(self, name):
        self.components.registerUtility(Unhashable(), IOne, name)
        self.components.registerAdapter(Adapter, name=name)
        self.components.registerSubscriptionAdapter(Adapter)
        self.components.registerHandler(handler)

    def test_new_registrations_go(self):
        with self.undone():
            self.register('a')

    def test_those_from_before_stay(self):
        self.register('a')
        self.register('b')
        with self.undone():
            self.register('c')

    def test_replaced_ones_come_back(self):
        self.register('a')
        mine = zope.component.getUtility(IOne, 'a')
        with self.undone():
            self.register('a')
            self.assertIsNot(mine, zope.component.getUtility(IOne, 'a'))
        self.assertIs(mine, zope.component.getUtility(IOne, 'a'))

    def test_removed_ones_come_back(self):
        self.register('a')
        with self.undone():
            self.components.unregisterHandler(handler)
            self.components.unregisterAdapter(Adapter, name='a')

    def test_checkers(self):
        with self.undone():
            zope.security.checker.defineChecker(
                Adapter, zope.security.checker.NamesChecker())
        # Without the undo this one would be a duplicate.
        with self.undone():
            zope.security.checker.defineChecker(
                Adapter, zope.security.checker.NamesChecker())

    def test_the_security_policy(self):
        with self.undone():
            zope.security.management.setSecurityPolicy(
                zope.security.simplepolicies.PermissiveSecurityPolicy)

    def test_principals(self):
        principalRegistry.definePrincipal('mine', 'Mine', '', 'mine', b'')
        with self.undone():
            principalRegistry.definePrincipal('new', 'New', '', 'new', b'')
        with self.undone():
            principalRegistry.definePrincipal('new', 'New', '', 'new', b'')

    def test_principals_of_a_registry_that_was_not_imported_before(self):
        principalRegistry.definePrincipal('new', 'New', '', 'new', b'')
        registrations._restore_principals(None)
        self.assertEqual([], principalRegistry.getPrincipals(''))
