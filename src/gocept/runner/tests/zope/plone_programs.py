"""Programs with a worker on a Plone site."""

from gocept.runner import errors
from gocept.runner.tests import support
from gocept.runner.tests.zope.plones import Instance

WORKER = '''
import os, signal, sys
import gocept.runner
from plone import api
from zope.component.hooks import getSite
from zope.globalrequest import getRequest

@gocept.runner.appmain(ticks=0, principal={principal!r})
def work():
    folder = getRequest()['PARENTS'][0]
    print('in', folder.absolute_url(), 'of', getSite().getId(), flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    document = api.content.create(folder, 'Document', 'new')
    api.content.transition(document, 'publish')

sys.exit(work())
'''


class ProgramTests(support.TestCase):

    def setUp(self) -> None:
        super().setUp()
        self.addCleanup(support.end_background)
        self.instance = Instance(self.dir / 'instance')

    def run_worker(self, *args: str, principal: str = 'writer',
                   status: int = 0) -> str:
        """Run a worker that gets a signal at the beginning of its tick."""
        return self.instance.run(
            self.write('worker.py', WORKER.format(principal=principal)),
            *args, status=status)

    def test_a_signal_ends_it_after_its_tick(self) -> None:
        with self.instance.zeo():
            output = self.run_worker('--site', '/Plone/news')
            self.assertEqual(
                1, output.count('in http://nohost/Plone/news of Plone\n'),
                output)
            state = self.instance.ask('plones.state(site)')
        self.assertEqual([], state['disagreements'])
        self.assertEqual('published', state['states']['/Plone/news/new'])

    def test_a_dry_run_stores_nothing(self) -> None:
        data = self.instance.directory / 'var' / 'Data.fs'
        before = data.read_bytes()
        output = self.run_worker('--site', 'Plone/news', '--dry-run')
        self.assertIn('in http://nohost/Plone/news of Plone\n', output)
        self.assertIn('would commit', output)
        self.assertEqual(before, data.read_bytes())

    def test_an_unknown_principal(self) -> None:
        output = self.run_worker(
            principal='nobody', status=errors.UNKNOWN_PRINCIPAL)
        self.assertNotIn('in http', output)
        self.assertIn("'nobody'", output)
