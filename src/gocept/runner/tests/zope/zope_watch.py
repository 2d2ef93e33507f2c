"""Workers in Zope whose pause a change in the database ends."""

import contextlib
import re
import subprocess
import sys
from typing import Any

import ZEO
from ZODB.POSException import ConflictError

from gocept.runner.executor import UnixSocketExecutor
from gocept.runner.tests.support import (
    DEADLINE,
    child_environment,
    end_background,
)
from gocept.runner.tests.zope.instances import InstanceTestCase

SCRIPT = '''\
    import sys
    import threading

    import transaction
    import Zope2
    from AccessControl import getSecurityManager
    from BTrees.LOBTree import LOBTree
    from zope.globalrequest import getRequest

    import gocept.runner

    def watched(site):
        print('watching', site.absolute_url(), getRequest().get('left'),
              getSecurityManager().getUser().getId(), flush=True)
        getRequest()['left'] = 'something'
        return getattr(site, 'queue', site)

    @gocept.runner.appmain(ticks=10000, principal='admin', watch=watched)
    def work():
        site = getRequest()['PARENTS'][0]
        if getattr(site, 'queue', None) is None:
            site.queue = LOBTree()
        found = [*site.queue]
        print('found', found, getRequest().get('left'), flush=True)
        for key in found:
            del site.queue[key]
        if 3 in found:
            return gocept.runner.Exit
        {then}

    def put(key):
        connection = Zope2.DB.open(transaction.TransactionManager())
        connection.root()['Application'].queue[key] = 1
        connection.transaction_manager.commit()
        connection.close()

    if __name__ == '__main__':
        sys.exit(work.main())
    '''

FROM_A_THREAD = """\
transaction.get().addAfterCommitHook(lambda committed: threading.Thread(
            target=put, args=[found[0] + 1 if found else 1]).start())"""


def put(database: Any, key: int) -> None:
    """Fill the queue, though this client may know the last commit too late."""
    while True:
        with (contextlib.suppress(AttributeError, ConflictError),
              database.transaction() as connection):
            connection.root()['Application'].queue[key] = 1
            return


class WatchTests(InstanceTestCase):

    def test_a_thread_of_the_process(self) -> None:
        output = self.run_program(SCRIPT.format(then=FROM_A_THREAD),
                                  '--server-url', 'https://example.org')
        self.assertEqual(
            ['[]', '[1]', '[2]', '[3]'],
            re.findall(r'^found (.*) None$', output, re.MULTILINE), output)
        # Three pauses, and the tree is made in the first tick.
        self.assertEqual(
            3, output.count('watching https://example.org None admin\n'),
            output)
        self.assertNotIn('ERROR', output)

    def test_another_process_on_zeo(self) -> None:
        self.addCleanup(end_background)
        address = str(self.dir / 'zeo.sock')
        self.enterContext(UnixSocketExecutor(
            [sys.executable, '-m', 'ZEO.runzeo', '-a', address,
             '-f', str(self.dir / 'served.fs')], address, timeout=DEADLINE,
            envvars=child_environment(), stdout=subprocess.DEVNULL,
            stderr=str(self.dir / 'zeo.log')))
        self.conf.write_text(re.sub(
            '<filestorage>.*</filestorage>',
            f'<zeoclient>\n    server {address}\n  </zeoclient>',
            self.conf.read_text(), flags=re.DOTALL))
        worker = self.program(SCRIPT.format(then='pass'))
        # Each transaction sees what the worker has committed before.
        database = ZEO.DB(address, server_sync=True)
        self.addCleanup(database.close)
        for key in range(4):
            worker.wait_for('watching')
            put(database, key)
            worker.wait_for(f'found [{key}]')
        self.assertEqual(0, worker.end(), worker.output)
        self.assertNotIn('ERROR', worker.output)
