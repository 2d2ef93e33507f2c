"""A template that has loaded Zope, and the workers that it forks."""

import re
import sys

from gocept.runner.house.link import Ready
from gocept.runner.tests.house.templates import TemplateTestCase
from gocept.runner.tests.zope.instances import InstanceTestCase, make_instance

SHOP = '''\
    import os
    import sys
    import gocept.runner
    from zope.globalrequest import getRequest

    @gocept.runner.appmain(ticks=100)
    def sell(word):
        app = getRequest()['PARENTS'][-1]
        app.sold = getattr(app, 'sold', 0) + 1
        print(word, app.sold, app.absolute_url(),
              'Products.Five' in sys.modules, flush=True)
    '''


class ZopeTests(TemplateTestCase):

    declare_in_instance = InstanceTestCase.declare

    def setUp(self):
        super().setUp()
        make_instance(self.dir)
        self.write('shop.py', SHOP)
        self.declare_in_instance(
            '<runner:worker name="sell" handler="shop.sell" />')
        conf = self.dir / 'etc' / 'zope.conf'
        text = conf.read_text()
        # Each worker has a database of its own.
        conf.write_text(re.sub(
            r'<filestorage>.*?</filestorage>',
            '<mappingstorage>\n</mappingstorage>', text, flags=re.DOTALL))
        sys.path.insert(0, str(self.dir))
        self.addCleanup(sys.path.remove, str(self.dir))

    def test_ticks(self):
        ready = self.start_template(str(self.dir / 'zope.conf'))
        self.assertIsInstance(ready, Ready, f'{ready} {self.template_log()}')
        self.assertEqual(('zope', ()), (ready.application, ready.threads))
        workers = [self.fork('sell', '--', word) for word in 'abc']
        for word, worker in zip('abc', workers, strict=True):
            self.assertEqual(f'{word} 1 http://nohost True',
                             worker.line())
        self.assertEqual([0, 0, 0], [each.end() for each in workers])
