"""The queue of the example, in an application of the Zope Toolkit."""

import zope.site.folder
from zope.publisher.browser import TestRequest

from gocept.runner.example.queue import worker
from gocept.runner.example.queue.jobs import find_queue, queue_of
from gocept.runner.example.queue.views import Words
from gocept.runner.example.queue.words import counted
from gocept.runner.testing import runner_config
from gocept.runner.tests import support

SITE_ZCML = '''\
<configure xmlns="http://namespaces.zope.org/zope">
  <include package="gocept.runner" file="site.zcml" />
  <class class="zope.site.folder.Folder">
    <implements interface="zope.annotation.interfaces.IAttributeAnnotatable" />
  </class>
  <include package="gocept.runner.example.queue" file="worker.zcml" />
</configure>
'''


def content_of(site):
    """A folder in a folder, neither of which is a site."""
    if 'news' not in site:
        site['news'] = zope.site.folder.Folder()
        site['news']['hello'] = zope.site.folder.Folder()
        site['news']['hello'].title = 'Good morning'
        site['news']['hello'].text = 'to you'
    return site['news']['hello']


def page(content, method):
    """What a browser gets."""
    request = TestRequest()
    request.method = method
    return Words(content, request)()


class QueueTests(support.TestCase):

    def setUp(self):
        super().setUp()
        self.config = self.enterContext(runner_config(
            zcml=self.write('site.zcml', SITE_ZCML)))

    def test_the_view_fills_it_and_the_worker_empties_it(self):
        with self.config.site() as site:
            content = content_of(site)
            self.assertIsNone(find_queue(site))
            self.assertIn('? words', page(content, 'GET'))
            self.assertIsNone(find_queue(site))
            self.assertIn('? words', page(content, 'POST'))
            self.assertEqual(
                [('news', 'hello')], list(find_queue(site).jobs.values()))
        with self.assertLogs('gocept.runner.example', 'INFO') as logs:
            self.config.run_ticks(worker.work, ticks=1)
        self.assertEqual(
            ["INFO:gocept.runner.example:'news/hello' has 4 words"],
            logs.output)
        with self.config.site() as site:
            self.assertEqual(0, len(find_queue(site).jobs))
            self.assertIn('4 words', page(content_of(site), 'GET'))

    def test_an_object_that_is_gone(self):
        with self.config.site() as site:
            page(content_of(site), 'POST')
            queue_of(site).put(())
            del site['news']['hello']
        self.config.run_ticks(worker.work, ticks=1)
        with self.config.site() as site:
            self.assertEqual(0, len(find_queue(site).jobs))
            self.assertEqual(0, counted(site))

    def test_what_is_watched(self):
        with self.config.site() as site:
            self.assertIs(site, worker.watched(site))
            jobs = queue_of(site)
            self.assertIs(jobs, worker.watched(site))

    def test_jobs_of_one_moment_are_kept_apart(self):
        with self.config.site() as site:
            jobs = queue_of(site)
            for number in range(100):
                jobs.put((str(number),))
            self.assertEqual([(str(number),) for number in range(100)],
                             list(jobs.jobs.values()))
