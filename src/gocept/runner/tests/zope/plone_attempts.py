"""What a worker on a Plone site sees in its attempts, as a request would."""

import atexit
import functools
import json
import pathlib
import re
import shutil
import tempfile
import unittest
from typing import Any

from gocept.runner.tests.zope.plones import Instance

SCRIPT = '''
import itertools, json, sys
import gocept.runner
import transaction
from AccessControl import getSecurityManager, Unauthorized
from plone import api
from plone.memoize import view
from Products.Five.browser import BrowserView
from ZODB.POSException import ConflictError
from zope.annotation.interfaces import IAnnotations
from zope.component import getUtility, queryMultiAdapter
from zope.component.hooks import getSite
from zope.globalrequest import getRequest
from zope.i18n import translate

numbers = itertools.count()
seen = []

class Numbers(BrowserView):
    @view.memoize
    def number(self):
        return next(numbers)

def look():
    """All that an attempt sees."""
    site = api.portal.get()
    request = getRequest()
    memoized = Numbers(site, request)
    user = api.user.get_current()
    facts = dict(
        site=getSite() == site,
        url=site.absolute_url(),
        news=api.content.get('/news').absolute_url(),
        brains=sorted(brain.getURL()
                      for brain in api.content.find(portal_type='Folder')),
        numbers=[memoized.number(), Numbers(site, request).number()],
        marker=[request.get('marker'), IAnnotations(request).get('marker'),
                request.response.getHeader('marker')],
        same=site.REQUEST is request,
        published=[each.getId() for each in request['PARENTS']],
        skin=site.getCurrentSkinName(),
        layers=[each.__name__ for each in request.__provides__.__iro__],
        view=queryMultiAdapter(
            (site, request), name='plone_portal_state').portal_url(),
        template='tag' in dir(site.restrictedTraverse('@@images')),
        language=[api.portal.get_current_language(), request['LANGUAGE'],
                  translate('Home', 'plone', context=request)],
        registry=api.portal.get_registry_record('plone.site_title'),
        user=user.getId(),
        roles=sorted(api.user.get_roles()),
    )
    request['marker'] = 'item'
    request.response.setHeader('marker', 'header')
    IAnnotations(request)['marker'] = 'annotation'
    return facts

@gocept.runner.appmain(ticks=0, principal='writer', attempts=3)
def conflict():
    seen.append(look())
    if len(seen) == 1:
        raise ConflictError('somebody was faster')
    return gocept.runner.Exit if len(seen) == 3 else None

catalog_paths = []

@gocept.runner.appmain(ticks=0, principal='writer')
def index():
    catalog = api.portal.get_tool('portal_catalog')
    number = len(catalog_paths)
    # Before anything works off the queue.
    catalog_paths.append(sorted(catalog._catalog.uids))
    if number == 2:
        return gocept.runner.Exit
    created = api.content.create(
        api.content.get('/news'), 'Document', f'new-{number}')
    transaction.get().addBeforeCommitHook(before_commit)
    if number == 0:
        transaction.doom()

hooks = []

def before_commit():
    hooks.append([
        getRequest() is not None and getRequest().get('PARENTS') is not None,
        getSite().getId(), getSecurityManager().getUser().getId(),
        api.content.get('/news/new-1').absolute_url()])

def attempt(step):
    try:
        step()
    except Unauthorized:
        return 'Unauthorized'
    except Exception as error:
        return repr(error)
    return 'done'

def rights():
    news = api.content.get('/news')
    secret = api.portal.get().unrestrictedTraverse('news/secret')
    return dict(
        user=api.user.get_current().getId(),
        create=attempt(lambda: api.content.create(news, 'Document', 'mine')),
        read=attempt(lambda: api.portal.get().restrictedTraverse(
            'news/secret')),
        publish=attempt(lambda: api.content.transition(secret, 'publish')),
        find=len(api.content.find(id='secret')),
        unrestricted=len(api.content.find(id='secret', unrestricted=True)),
    )

def as_principal(principal):
    rights_of = []
    @gocept.runner.once(principal=principal)
    def one():
        rights_of.append(rights())
        transaction.doom()
    one()
    return rights_of

@gocept.runner.once(principal='writer')
def hide():
    api.content.create(api.content.get('/news'), 'Document', 'secret')

items_seen = []

@gocept.runner.once(principal='writer')
@gocept.runner.transaction_per_item(attempts=3)
def items():
    news = api.content.get('/news')
    created = []
    def create(name):
        created.append(api.content.create(news, 'Document', name))
        items_seen.append([name, created[-1].absolute_url(), look()])
    def publish(document):
        items_seen.append(
            ['again', document.absolute_url(), look()])
        if len(items_seen) == 3:
            raise ConflictError('somebody was faster')
        api.content.transition(document, 'publish')
        news.reindexObject()
    def fail():
        raise ValueError('of this item')
    yield lambda: create('a')
    yield lambda: create('b')
    yield fail
    for document in created:
        yield lambda: publish(document)

results = {}

def loop(worker):
    return worker()  # with the command line of this program

results['conflict status'] = loop(conflict)
results['index status'] = loop(index)
results['hide status'] = loop(hide)
for name in 'writer', 'reader', 'admin', 'system', None:
    results[f'rights {name}'] = as_principal(name)

def found():
    user = api.user.get('reader').getUser()
    return user.__of__(api.portal.get().acl_users)

results['rights found'] = as_principal(found)
results['items status'] = loop(items)
results.update(seen=seen, catalog=catalog_paths, hooks=hooks, items=items_seen)
print('RESULTS', json.dumps(results))
'''


ALL_RIGHTS = {'create': 'done', 'read': 'done', 'publish': 'done', 'find': 1,
              'unrestricted': 1}

SITE = 'https://www.example.org/portal'


@functools.cache
def run() -> tuple[Instance, str]:
    """Run the script, for all tests: loops of one process, in turn."""
    directory = pathlib.Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, directory)
    instance = Instance(directory / 'instance')
    script = directory / 'script.py'
    script.write_text(SCRIPT)
    program = instance.start(script, '--server-url', SITE)
    try:
        program.end()
    finally:
        program.close()
    return instance, program.output


class AttemptTests(unittest.TestCase):
    """What the loops have seen, and what they have stored."""

    def setUp(self) -> None:
        self.instance, output = run()
        found = re.search('^RESULTS (.*)$', output, re.M)
        self.assertIsNotNone(found, output)
        self.results: dict[str, Any] = json.loads(found[1])

    def attempts(self) -> list[dict[str, Any]]:
        """What was seen by all attempts, of ticks and of items."""
        seen: list[dict[str, Any]] = self.results['seen']
        return seen + [facts for _, _, facts in self.results['items']]

    def assert_in_each_attempt(self, name: str, value: object) -> None:
        self.assertTrue(self.attempts())
        for seen in self.attempts():
            self.assertEqual(value, seen[name])

    def test_the_site_is_set_and_has_the_request_of_the_process(self) -> None:
        self.assert_in_each_attempt('site', True)
        self.assert_in_each_attempt('same', True)

    def test_a_url_is_one_for_browsers(self) -> None:
        self.assert_in_each_attempt('url', SITE)
        self.assert_in_each_attempt('news', f'{SITE}/news')
        self.assert_in_each_attempt(
            'brains', [f'{SITE}/archive', f'{SITE}/news'])
        self.assert_in_each_attempt('view', SITE)

    def test_what_is_remembered_in_a_request_ends_with_the_attempt(
            self) -> None:
        numbers = [seen['numbers'] for seen in self.attempts()]
        for first, second in numbers:
            self.assertEqual(first, second)  # within an attempt
        self.assertEqual(len(numbers), len({first for first, _ in numbers}))
        self.assert_in_each_attempt('marker', [None, None, None])

    def test_skin_and_browser_layers_are_those_of_the_site(self) -> None:
        self.assert_in_each_attempt('skin', 'Plone Default')
        for seen in self.attempts():
            self.assertIn('IPloneFormLayer', seen['layers'])

    def test_a_view_is_found_as_by_a_request(self) -> None:
        self.assert_in_each_attempt('template', True)

    def test_the_language_is_that_of_the_site(self) -> None:
        self.assert_in_each_attempt('language', ['de', 'de', 'Startseite'])

    def test_the_registry_is_that_of_the_site(self) -> None:
        self.assert_in_each_attempt('registry', 'A site')

    def test_the_user_is_one_of_the_site_with_its_roles(self) -> None:
        self.assert_in_each_attempt('user', 'writer')
        self.assert_in_each_attempt(
            'roles', ['Authenticated', 'Contributor', 'Editor', 'Member',
                      'Reviewer'])

    def test_a_conflict_has_one_more_attempt(self) -> None:
        self.assertEqual(0, self.results['conflict status'])
        self.assertEqual(3, len(self.results['seen']))

    def test_the_catalog_is_written_at_the_commit(self) -> None:
        self.assertEqual(0, self.results['index status'])
        before, doomed, stored = self.results['catalog']
        self.assertEqual(before, doomed)
        self.assertEqual([*before, '/Plone/news/new-1'], sorted(stored))

    def test_a_hook_before_the_commit_has_request_site_and_user(self) -> None:
        self.assertEqual(
            [True, 'Plone', 'writer', f'{SITE}/news/new-1'],
            self.results['hooks'][-1])

    def test_an_item_and_its_closures_have_the_request_of_the_attempt(
            self) -> None:
        self.assertEqual(1, self.results['items status'])  # one has failed
        urls = [[name, url] for name, url, _ in self.results['items']]
        self.assertEqual(
            [['a', f'{SITE}/news/a'], ['b', f'{SITE}/news/b'],
             ['again', f'{SITE}/news/a'],  # with a conflict
             ['again', f'{SITE}/news/a'], ['again', f'{SITE}/news/b']], urls)

    def test_catalog_and_content_agree(self) -> None:
        state = self.instance.ask('plones.state(site)')
        self.assertEqual([], state['disagreements'])
        self.assertEqual(
            {'/Plone': '', '/Plone/archive': 'published',
             '/Plone/news': 'published', '/Plone/news/a': 'published',
             '/Plone/news/b': 'published', '/Plone/news/new-1': 'private',
             '/Plone/news/secret': 'private'}, state['states'])

    def test_a_user_may_do_what_his_roles_allow(self) -> None:
        self.assertEqual([ALL_RIGHTS | {'user': 'writer'}],
                         self.results['rights writer'])

    def test_a_member_may_not_do_what_his_roles_do_not_allow(self) -> None:
        for name in 'reader', 'found':
            [rights] = self.results[f'rights {name}']
            self.assertEqual('reader', rights['user'])
            self.assertEqual('Unauthorized', rights['read'])
            self.assertNotEqual('done', rights['create'])
            self.assertNotEqual('done', rights['publish'])
            self.assertEqual([0, 1], [rights['find'], rights['unrestricted']])

    def test_without_a_principal_it_is_nobody(self) -> None:
        [rights] = self.results['rights None']
        self.assertEqual(None, rights['user'])
        self.assertEqual('Unauthorized', rights['read'])

    def test_the_root_has_users_as_well(self) -> None:
        self.assertEqual([ALL_RIGHTS | {'user': 'admin'}],
                         self.results['rights admin'])

    def test_system_may_do_everything(self) -> None:
        [rights] = self.results['rights system']
        self.assertEqual(['done'] * 3, [
            rights['create'], rights['read'], rights['publish']])

    def test_the_undo_log_names_user_and_worker(self) -> None:
        log = self.instance.ask(
            '[[each["user_name"], each["description"]] for each in '
            'site._p_jar.db().undoInfo(0, 30)]')
        self.assertIn(['Plone writer', 'index'], log)
