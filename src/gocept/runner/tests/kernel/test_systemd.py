"""What a kernel tells systemd."""

import os

from gocept.runner.kernel.keeper import systemd
from gocept.runner.tests.support import TestCase


class NotifyTests(TestCase):

    def test_who_cannot_be_told_does_not_matter(self):
        for address in ('', 'relative', str(self.dir / 'gone'), '@gone'):
            os.environ['NOTIFY_SOCKET'] = address
            self.addCleanup(os.environ.pop, 'NOTIFY_SOCKET', None)
            with self.assertNoLogs('other'):
                systemd.notify('READY=1')
