"""A FileStorage that ``gocept-runner up`` serves, as workers of Zope open it.
"""

from gocept.runner.tests.house.zeos import Server
from gocept.runner.tests.zope.instances import InstanceTestCase

WORKER = '''\
    import sys
    from zope.globalrequest import getRequest
    from gocept.runner import once

    @once()
    def count():
        root = getRequest()['PARENTS'][-1]
        root.number = getattr(root, 'number', 0) + 1
        print('in', type(root._p_jar.db().storage).__name__, root.number)

    sys.exit(count.main(config='zope.conf'))
    '''


class ServedTests(InstanceTestCase):

    def test_the_server_is_asked_as_long_as_there_is_a_claim(self) -> None:
        server = Server(self.dir / 'var' / 'Data.fs')
        self.addCleanup(server.close)
        server.ready()
        # The server has the file locked, so no worker could open it.
        self.assertIn('in ServedStorage 1', self.run_program(WORKER))
        self.assertIn('in ServedStorage 2', self.run_program(WORKER))
        server.stop()
        server.close()
        self.assertIn('in FileStorage 3', self.run_program(WORKER))
