"""The add-on and the script of docs/plone.rst, as a reader runs them."""

import re
import sys
import textwrap
import unittest.mock

from gocept.runner.tests.support import Program, TestCase
from gocept.runner.tests.test_documents import CHECKOUT
from gocept.runner.tests.zope.plones import Instance

PAGE = (CHECKOUT / 'docs' / 'plone.rst').read_text()

# Documents that have expired one, twenty and forty days ago.
FILL = '''
    from datetime import datetime, timedelta
    from plone import api

    for days in 1, 20, 40:
        document = api.content.create(site, 'Document', f'news-{days}')
        api.content.transition(document, 'publish')
        document.expires = datetime.now() - timedelta(days)
        document.reindexObject()
    transaction.commit()
    '''

COMMAND = '''
    import sys
    from gocept.runner.cli import main
    sys.exit(main())
    '''

STATES = ('{brain.getId: brain.review_state for brain in '
          'api.content.find(portal_type="Document")}')


def block(first_line: str) -> str:
    """The code of the page that begins with this line."""
    found = re.search(
        rf'^    {re.escape(first_line)}\n(?:    .*\n|\n)*', PAGE, re.MULTILINE)
    assert found is not None
    return textwrap.dedent(found[0])


class PageTests(TestCase):

    def setUp(self) -> None:
        super().setUp()
        self.enterContext(unittest.mock.patch.object(
            sys, 'path', [str(self.dir), *sys.path]))  # of children, too
        self.instance = Instance(self.dir / 'instance')
        for name in 'shop', 'scripts':
            (self.dir / name).mkdir()
        for path in 'workers.py', 'configure.zcml':
            comment = ('<!-- src/shop/{} -->' if path.endswith('zcml')
                       else '# src/shop/{}').format(path)
            self.write(f'shop/{path}', block(comment))
        self.write('shop/__init__.py', '')
        self.write('scripts/expire.py', block('# scripts/expire.py'))
        slug = self.instance.directory / 'etc' / 'package-includes'
        slug.mkdir()
        (slug / 'shop-configure.zcml').write_text(
            '<include package="shop" />\n')
        self.write('fill.py', FILL)
        self.write('command.py', COMMAND)
        self.run_command('shell', '--principal=admin', 'fill.py')

    def run_command(self, name: str, *args: str) -> str:
        """Run ``gocept-runner`` on the site; returns what it writes."""
        program = Program(
            self.dir / 'command.py', name, *args[:1],
            '--config', str(self.instance.conf), '--site', 'Plone', *args[1:],
            cwd=self.dir)
        self.addCleanup(program.close)
        self.assertEqual(0, program.end(), program.output)
        return program.output

    def test_the_worker_and_the_script_retract_expired_documents(self) -> None:
        # One test, as each start of Plone takes seconds.
        self.assertIn('expire: 1 done', self.run_command(
            'run', 'expire', '--once', '--dry-run'))
        self.run_command(
            'shell', '--principal=system', 'scripts/expire.py', '30')
        states = {'news-1': 'published', 'news-20': 'published',
                  'news-40': 'private'}
        self.assertEqual(states, self.instance.ask(STATES))
        self.assertIn('expire: 1 done', self.run_command(
            'run', 'expire', '--once', '10'))
        self.assertEqual(
            states | {'news-20': 'private'}, self.instance.ask(STATES))
