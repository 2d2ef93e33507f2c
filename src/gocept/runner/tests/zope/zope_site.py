"""The site of a worker of Zope, its request and its user, in each attempt."""

import contextlib
import unittest
from collections.abc import Iterator
from typing import Any

import transaction
import zope.component
import zope.event
from AccessControl import Unauthorized, getSecurityManager
from AccessControl.users import UnrestrictedUser, system
from Acquisition import aq_base, aq_parent
from zope.annotation.attribute import AttributeAnnotations
from zope.authentication.interfaces import PrincipalLookupError
from zope.component.hooks import getSite
from zope.globalrequest import getRequest
from zope.publisher.interfaces import IEndRequestEvent
from zope.publisher.interfaces.browser import IDefaultBrowserLayer
from zope.security.management import queryInteraction
from zope.traversing.interfaces import IBeforeTraverseEvent
from ZPublisher.BeforeTraverse import (
    registerBeforeTraverse,
    unregisterBeforeTraverse,
)

from gocept.runner.errors import (
    ConfigurationError,
    NoSuchSite,
    NotASiteError,
)
from gocept.runner.tests.zope.instances import Application, make_site


class SiteTestCase(unittest.TestCase):
    """Has the root of an open database as `root`."""

    layer = Application

    url: str | None = None

    def setUp(self) -> None:
        self.root = self.enterContext(Application.opened(self.url))
        self.environment = Application.environment
        self.replaced: list[Any] = []

    def entered(self, path: str | None, principal: object = None) -> Any:
        app = self.environment.find_site(self.root, path)
        return self.enterContext(self.environment.entered(
            app, lambda: principal, 'worker', self.replaced.append))

    @contextlib.contextmanager
    def attempt(self, path: str | None, principal: object = None,
                ) -> Iterator[Any]:
        """An attempt that is aborted."""
        current = self.entered(path, principal)
        current.begin()
        yield current.app
        transaction.abort()
        current.end()

    @contextlib.contextmanager
    def heard(self, interface: Any) -> Iterator[list[Any]]:
        """The events of this interface that the block sends."""
        events: list[Any] = []

        def hear(event: Any) -> None:
            if interface.providedBy(event):
                events.append(event)
        zope.event.subscribers.append(hear)
        try:
            yield events
        finally:
            zope.event.subscribers.remove(hear)


class FindSiteTests(SiteTestCase):

    def find(self, path: str | None) -> Any:
        return self.environment.find_site(self.root, path)

    def test_nothing_names_the_root(self) -> None:
        for path in None, '', '/':
            with self.subTest(path=path):
                self.assertEqual(('',), self.find(path).getPhysicalPath())

    def test_a_path_has_the_names_from_the_root_on(self) -> None:
        for path in 'plain/inner', '/plain/inner', '/plain/inner/':
            with self.subTest(path=path):
                self.assertEqual(('', 'plain', 'inner'),
                                 self.find(path).getPhysicalPath())

    def test_there_may_be_no_object(self) -> None:
        for path in 'nothing', 'plain/nothing', 'plain/inner/nothing':
            with self.subTest(path=path), self.assertRaises(
                    NoSuchSite) as raised:
                self.find(path)
            self.assertEqual(f'the root has no object {path!r}',
                             str(raised.exception))

    def test_a_url_is_no_path(self) -> None:
        with self.assertRaisesRegex(NoSuchSite, '^http://localhost:8080/plain '
                                    'is a URL; name the path of the site '):
            self.find('http://localhost:8080/plain')

    def test_what_is_acquired_is_not_there(self) -> None:
        with self.assertRaises(NoSuchSite):
            self.find('plain/site')
        with self.assertRaises(NoSuchSite):
            self.find('plain/acl_users')

    def test_a_method_cannot_be_the_site(self) -> None:
        for path in 'plain/objectIds', 'plain/title':
            with self.subTest(path=path), self.assertRaises(
                    (NotASiteError, NoSuchSite)):
                self.find(path)


class BrokenSiteTests(unittest.TestCase):

    layer = Application

    def test_the_class_may_be_gone(self) -> None:
        from OFS.Folder import Folder

        from gocept.runner.tests import zope as package
        kind = type('Gone', (Folder,), {'__module__': package.__name__})
        package.Gone = kind  # type: ignore[attr-defined]
        with Application.opened() as root:
            root._setObject('gone', kind('gone'))
            transaction.commit()
        del package.Gone  # type: ignore[attr-defined]
        with Application.opened() as root:
            with self.assertRaises(ConfigurationError) as raised:
                Application.environment.find_site(root, 'gone')
            root._delObject('gone', suppress_events=True)
            transaction.commit()
        self.assertEqual(
            "'gone' is a gocept.runner.tests.zope.Gone, which cannot be "
            'imported; is its package installed in this environment?',
            str(raised.exception))


class AttemptTests(SiteTestCase):

    def test_the_request_is_there(self) -> None:
        with self.attempt('plain') as app:
            self.assertIs(app.REQUEST, getRequest())
            self.assertEqual([app, self.root], app.REQUEST['PARENTS'])
            self.assertTrue(IDefaultBrowserLayer.providedBy(app.REQUEST))
            self.assertEqual('GET', app.REQUEST.method)
            self.assertEqual('http://nohost/plain', app.absolute_url())
            self.assertEqual('http://nohost', self.root.absolute_url())

    def test_nothing_of_it_is_left(self) -> None:
        with (self.heard(IEndRequestEvent) as ends,
              self.attempt('site', 'fred') as app):
            self.assertEqual([], ends)
        self.assertEqual([app.REQUEST], [end.request for end in ends])
        self.assertIsNone(queryInteraction())
        self.assertEqual('Anonymous User',
                         getSecurityManager().getUser().getUserName())
        self.assertNotIsInstance(getRequest(), type(app.REQUEST))

    def test_outside_of_the_block_the_site_is_the_one_before(self) -> None:
        app = self.environment.find_site(self.root, 'site')
        with self.environment.entered(
                app, lambda: None, 'worker', print) as current:
            self.assertEqual(app, getSite())
            current.begin()
            app.REQUEST['mine'] = 1
        self.assertIsNone(getSite())
        self.assertIsNone(queryInteraction())
        self.assertEqual('Anonymous User',
                         getSecurityManager().getUser().getUserName())
        self.assertIs(app.REQUEST, getRequest())
        self.assertNotIn('mine', app.REQUEST)
        self.assertEqual('http://nohost/site', app.absolute_url())

    def test_a_loop_in_an_attempt(self) -> None:
        with self.attempt('site', 'fred') as app:
            with self.environment.entered(
                    self.root, lambda: 'admin', 'inner', print) as inner:
                inner.begin()
                self.assertEqual(
                    'admin', getSecurityManager().getUser().getId())
                transaction.abort()
            self.assertEqual('fred', getSecurityManager().getUser().getId())
            self.assertIsNotNone(queryInteraction())
            self.assertEqual('site', getSite().getId())
            self.assertEqual('http://nohost/site', app.absolute_url())

    def test_commits_have_request_user_and_site(self) -> None:
        seen: list[Any] = []

        def look() -> None:
            seen.extend([getRequest().method, getSite().getId(),
                         getSecurityManager().getUser().getId(),
                         queryInteraction() is not None])
        current = self.entered('site', 'fred')
        current.begin()
        transaction.get().addBeforeCommitHook(look)
        transaction.get().addAfterCommitHook(lambda status: look())
        transaction.commit()
        current.end()
        self.assertEqual(['GET', 'site', 'fred', True] * 2, seen)

    def test_what_is_kept_with_a_request_does_not_outlive_it(self) -> None:
        for again in 'begin', 'begin_item':
            with self.subTest(again):
                current = self.entered('plain')
                current.begin()
                request = current.app.REQUEST
                request.set('mine', 1)
                AttributeAnnotations(request)['mine'] = 1
                request.response.setHeader('X-Mine', '1')
                request.mine = 1
                transaction.abort()
                getattr(current, again)()
                self.assertNotIn('mine', request)
                self.assertNotIn('mine', AttributeAnnotations(request))
                self.assertIsNone(request.response.getHeader('X-Mine'))
                self.assertEqual('http://nohost/plain',
                                 current.app.absolute_url())
                transaction.abort()

    def test_an_attempt_that_was_not_ended_is_ended_by_the_next(self) -> None:
        current = self.entered('plain')
        with self.heard(IEndRequestEvent) as ends:
            current.begin()
            current.begin()
            self.assertEqual(1, len(ends))
            current.end()
            current.end()
        self.assertEqual(2, len(ends))

    def test_an_item_is_of_the_request_that_its_generator_has(self) -> None:
        current = self.entered('site', 'fred')
        with self.heard(IEndRequestEvent) as ends:
            current.begin()
            item = current.app.folder
            transaction.abort()
            for _ in range(2):
                current.begin_item()
                self.assertEqual('http://nohost/site/folder',
                                 item.absolute_url())
                self.assertEqual('fred',
                                 getSecurityManager().getUser().getId())
                self.assertEqual('site fred', transaction.get().user)
                transaction.abort()
            self.assertEqual([], ends)
            current.end()
        self.assertEqual(1, len(ends))

    def test_the_end_logs_errors_and_goes_on(self) -> None:
        def fail(event: Any) -> None:
            if IEndRequestEvent.providedBy(event):
                raise ZeroDivisionError
        current = self.entered('site', 'fred')
        current.begin()
        transaction.abort()
        zope.event.subscribers.append(fail)
        self.addCleanup(zope.event.subscribers.remove, fail)
        with self.assertLogs('gocept.runner.environment') as logged:
            current.end()
        self.assertIn('ZeroDivisionError', logged.output[0])
        self.assertIsNone(queryInteraction())


class TraversalTests(SiteTestCase):

    def test_sites_on_the_way_hear_of_it_and_become_the_site(self) -> None:
        current = self.entered('site/folder')
        with self.heard(IBeforeTraverseEvent) as events:
            current.begin()
        self.assertEqual([('', 'site')], [
            event.object.getPhysicalPath() for event in events])
        self.assertIs(current.app.REQUEST, events[0].request)
        self.assertEqual('site', getSite().getId())
        self.assertEqual('folder', current.app.getId())
        self.assertIs(aq_base(self.root.site.getSiteManager()),
                      aq_base(current.components))
        transaction.abort()

    def test_a_site_without_a_hook_hears_of_it_too(self) -> None:
        from Products.Five.component import HOOK_NAME
        make_site(self.root.plain)
        unregisterBeforeTraverse(self.root.plain, HOOK_NAME)
        transaction.commit()
        self.addCleanup(transaction.commit)
        self.addCleanup(self._unmake_site)
        current = self.entered('plain')
        with self.heard(IBeforeTraverseEvent) as events:
            current.begin()
        self.assertEqual(['plain'],
                         [event.object.getId() for event in events])
        self.assertEqual('plain', getSite().getId())
        transaction.abort()

    def _unmake_site(self) -> None:
        from Products.Five.component import disableSite
        disableSite(self.root.plain)
        self.root.plain.setSiteManager(None)

    def test_without_a_site_the_components_are_the_global_ones(self) -> None:
        for path in None, 'plain':
            with self.subTest(path=path):
                current = self.entered(path)
                current.begin()
                self.assertIsNone(getSite())
                self.assertIs(zope.component.getGlobalSiteManager(),
                              current.components)
                transaction.abort()
                current.end()

    def test_hooks_are_called_as_by_the_publisher(self) -> None:
        registerBeforeTraverse(self.root.plain, note_traversal, 'test')
        transaction.commit()
        self.addCleanup(transaction.commit)
        self.addCleanup(unregisterBeforeTraverse, self.root.plain, 'test')
        self.addCleanup(_traversals.clear)
        for path in 'plain', 'plain/inner':
            with self.attempt(path) as app:
                self.assertEqual([], app.REQUEST['TraversalRequestNameStack'])
        self.assertEqual(
            [('plain', ['@@gocept.runner']),
             ('plain', ['@@gocept.runner', 'inner'])], _traversals)


class ReplacedSiteTests(SiteTestCase):

    def setUp(self) -> None:
        super().setUp()
        self.root.manage_addFolder('other')
        transaction.commit()
        self.addCleanup(transaction.commit)
        self.addCleanup(self._delete)

    def _delete(self) -> None:
        if 'other' in self.root.objectIds():
            self.root._delObject('other')

    def test_another_object_takes_the_place(self) -> None:
        current = self.entered('other')
        current.begin()
        transaction.commit()
        current.begin()
        self.assertEqual([], self.replaced)
        self.root._delObject('other')
        self.root.manage_addFolder('other')
        transaction.commit()
        current.begin()
        self.assertEqual(self.replaced, [current.app])
        self.assertEqual('http://nohost/other', current.app.absolute_url())
        transaction.abort()

    def test_no_object_is_there_any_more(self) -> None:
        current = self.entered('other')
        self.root._delObject('other')
        transaction.commit()
        with self.assertRaises(LookupError) as raised:
            current.begin()
        self.assertEqual(
            "the site 'other' is gone: the database has no object at its "
            'place', str(raised.exception))
        current.end()


class UserTests(SiteTestCase):

    def user(self, path: str | None, principal: object) -> Any:
        with self.attempt(path, principal) as app:
            user = getSecurityManager().getUser()
            self.assertIs(aq_base(user),
                          aq_base(app.REQUEST['AUTHENTICATED_USER']))
            self.author = transaction.get().user
        return user

    def test_the_user_folder_of_the_site_is_asked_first(self) -> None:
        user = self.user('site/folder', 'fred')
        self.assertEqual('fred', user.getId())
        self.assertEqual(('', 'site', 'acl_users'),
                         aq_parent(user).getPhysicalPath())
        self.assertEqual('site fred', self.author)

    def test_then_that_of_the_root(self) -> None:
        user = self.user('site', 'admin')
        self.assertEqual(('', 'acl_users'), aq_parent(user).getPhysicalPath())
        self.assertEqual(' admin', self.author)
        self.assertEqual(['Manager', 'Authenticated'],
                         list(user.getRolesInContext(self.root.site)))

    def test_a_user_folder_is_not_that_of_objects_above_it(self) -> None:
        for path in None, 'plain':
            with self.subTest(path=path), self.assertRaisesRegex(
                    PrincipalLookupError, 'fred'):
                self.entered(path, 'fred')

    def test_system_is_zope_itself(self) -> None:
        user = self.user('site', 'system')
        self.assertIs(aq_base(system), aq_base(user))
        self.assertEqual(' system', self.author)
        with self.attempt('site', 'system') as app:
            app.restrictedTraverse('folder').manage_addFolder('sub')

    def test_a_user_object_is_taken_as_it_is(self) -> None:
        fred = UnrestrictedUser('robot', '', ['Editor'], [])
        user = self.user('site', fred)
        self.assertIs(fred, aq_base(user))
        self.assertEqual(('', 'site', 'acl_users'),
                         aq_parent(user).getPhysicalPath())
        self.assertEqual('site robot', self.author)
        wrapped = fred.__of__(self.root.acl_users)
        self.assertEqual(
            ('', 'acl_users'),
            aq_parent(self.user('site', wrapped)).getPhysicalPath())

    def test_without_a_principal_it_is_the_anonymous_user(self) -> None:
        with self.attempt('site') as app:
            user = getSecurityManager().getUser()
            self.assertEqual('Anonymous User', user.getUserName())
            with self.assertRaises(Unauthorized):
                app.restrictedTraverse('manage_addFolder')
            self.assertEqual('', transaction.get().user)

    def test_the_user_may_go_while_the_worker_runs(self) -> None:
        self.root.acl_users.userFolderAddUser('eve', 'secret', [], [])
        transaction.commit()
        current = self.entered('plain', 'eve')
        self.root.acl_users.userFolderDelUsers(['eve'])
        transaction.commit()
        with self.assertRaises(PrincipalLookupError):
            current.begin()
        transaction.abort()
        current.end()

    def test_the_environment_finds_principals_in_the_current_site(
            self) -> None:
        self.assertEqual(
            'admin', self.environment.find_principal('admin').getId())
        with self.assertRaises(PrincipalLookupError):
            self.environment.find_principal('fred')
        with self.attempt('site'):
            self.assertEqual(
                'fred', self.environment.find_principal('fred').getId())


class URLTests(SiteTestCase):

    url = 'https://www.example.org:8443/the/portal'

    def test_the_url_is_that_of_the_site(self) -> None:
        with self.attempt('site') as app:
            self.assertEqual(self.url, app.absolute_url())
            self.assertEqual(f'{self.url}/folder', app.folder.absolute_url())
            self.assertEqual('/the/portal/folder',
                             app.folder.absolute_url_path())
            self.assertEqual(
                ['', 'site', 'folder'],
                app.REQUEST.physicalPathFromURL(f'{self.url}/folder'))
            self.assertEqual(self.url, app.REQUEST['ACTUAL_URL'])

    def test_it_is_that_of_the_nearest_site(self) -> None:
        with self.attempt('site/folder') as app:
            self.assertEqual(f'{self.url}/folder', app.absolute_url())

    def test_without_a_site_it_is_that_of_the_root(self) -> None:
        with self.attempt('plain/inner') as app:
            self.assertEqual(f'{self.url}/plain/inner', app.absolute_url())
            self.assertEqual(self.url, self.root.absolute_url())

    def test_items_have_it_too(self) -> None:
        current = self.entered('site')
        current.begin()
        item = current.app.folder
        transaction.abort()
        current.begin_item()
        self.assertEqual(f'{self.url}/folder', item.absolute_url())
        transaction.abort()

    def test_a_request_cannot_be_stored(self) -> None:
        for name in 'REQUEST', 'RESPONSE':
            with self.attempt('site') as app:
                app.stored = getattr(app.REQUEST, name)
                with self.assertRaisesRegex(
                        TypeError, 'a request cannot be stored'):
                    transaction.commit()
                transaction.abort()
                self.assertFalse(hasattr(aq_base(app), 'stored'))


class HostURLTests(SiteTestCase):

    url = 'http://[::1]:8080'

    def test_a_url_without_a_path_is_that_of_the_site_too(self) -> None:
        with self.attempt('site') as app:
            self.assertEqual(self.url, app.absolute_url())
            self.assertEqual(f'{self.url}/folder', app.folder.absolute_url())
            self.assertEqual('[::1]:8080', app.REQUEST['HTTP_HOST'])


class OtherConnectionTests(SiteTestCase):

    def test_a_loop_in_a_tick_leaves_the_request_of_the_tick(self) -> None:
        with self.attempt('site', 'fred') as site:
            request = site.REQUEST
            request.set('kept', 'something')
            before = vars(request).copy()
            with self.environment.entered(
                    self.root, lambda: 'system', 'inner', print) as inner:
                inner.begin()
                self.assertNotIn('kept', request)
                request.set('of the inner loop', 'something')
                transaction.abort()
                inner.end()
            self.assertIs(request, getRequest())
            self.assertEqual(before, vars(request))
            self.assertEqual('something', request['kept'])
            self.assertNotIn('of the inner loop', request)
            self.assertEqual(site, request['PARENTS'][0])

    def test_an_application_object_of_others_gets_a_request(self) -> None:
        import Zope2
        app = Zope2.app()
        self.addCleanup(app._p_jar.close)
        self.addCleanup(transaction.abort)
        with self.environment.entered(
                app.site, lambda: 'fred', 'worker', print) as current:
            current.begin()
            self.assertEqual('http://nohost/site', current.app.absolute_url())
            transaction.abort()


_traversals: list[tuple[str, list[str]]] = []


def note_traversal(traversed: Any, request: Any) -> None:
    """A hook that is called before an object is traversed."""
    _traversals.append(
        (traversed.getId(), list(request['TraversalRequestNameStack'])))
