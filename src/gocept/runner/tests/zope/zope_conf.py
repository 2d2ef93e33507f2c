"""The zope.conf files of instances as they are: a worker beside Zope itself.

``configurations/`` has what the tools write that make instances, but for the
comments; the paths below ``/srv/zope`` and the addresses of the servers are
those of a test.
"""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
from typing import Any

from Zope2.Startup import datatypes

from gocept.runner.executor import PostgreSQLExecutor, TCPExecutor
from gocept.runner.tests import services
from gocept.runner.tests.support import (
    DEADLINE,
    Program,
    TestCase,
    child_environment,
    end_background,
)
from gocept.runner.tests.zope.instances import make_instance

CONFIGURATIONS = pathlib.Path(__file__).parent / 'configurations'

HOST = '127.0.0.1'

BAD_CONFIGURATION = 78

WORKER = '''\
    import os
    import sys

    import gocept.runner
    from ZODB.blob import Blob
    from zope.globalrequest import getRequest

    @gocept.runner.once()
    def count():
        app = getRequest()['PARENTS'][-1]
        app.ticks = getattr(app, 'ticks', 0) + 1
        for path in os.environ.get('MOUNTS', '').split():
            app.unrestrictedTraverse(path).ticks = app.ticks
        if 'BLOBS' in os.environ:
            app.blob = Blob(b'blob %d' % app.ticks)

    if __name__ == '__main__':
        sys.exit(count())
    '''

SITE = '''\
    import os
    import signal

    import transaction
    from Acquisition import aq_base
    from Zope2.Startup.run import configure_wsgi

    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    os.environ['ZEO_TMP'] = os.path.abspath('var/cache')  # as bin/instance
    configure_wsgi('zope.conf')
    import Zope2
    app = Zope2.app()
    mounts = os.environ.get('MOUNTS', '').split()
    if mounts and 'catalog' not in app.objectIds():
        from Products.ZODBMountPoint.MountedObject import manage_addMounts
        manage_addMounts(app, mounts)
        transaction.commit()
    print('the site has started', flush=True)
    signal.sigwait([signal.SIGUSR1])
    if hasattr(Zope2.DB.storage, 'ping'):
        Zope2.DB.storage.ping()  # its answer comes after invalidations
    transaction.begin()
    print('ticks:', getattr(app, 'ticks', 0))
    for path in mounts:
        mounted = aq_base(app.unrestrictedTraverse(path))
        print(path, getattr(mounted, 'ticks', 0))
    if hasattr(app, 'blob'):
        with app.blob.open() as file:
            print(file.read().decode())
    app._p_jar.close()
    Zope2.DB.close()
    '''


OBJECTS = '''\
    import sys

    import gocept.runner
    from persistent.mapping import PersistentMapping
    from zope.globalrequest import getRequest

    @gocept.runner.once()
    def make():
        root = getRequest()['PARENTS'][-1]._p_jar.root()
        root['objects'] = PersistentMapping(
            (str(number), PersistentMapping(number=number))
            for number in range(300))

    if __name__ == '__main__':
        sys.exit(make())
    '''

FORK = '''\
    import os
    import sys

    import gocept.runner
    import transaction
    from zope.globalrequest import getRequest

    def read(root):
        numbers = {each['number'] for each in root['objects'].values()}
        cursor = root._p_jar._storage._load_connection.cursor
        cursor.execute('SELECT pg_backend_pid()')
        [pid] = cursor.fetchone()
        os.write(1, b'%d objects, read by %d\\n' % (len(numbers), pid))

    @gocept.runner.once()
    def fork():
        root = getRequest()['PARENTS'][-1]._p_jar.root()
        children = []
        for begin in int, transaction.begin:
            child = os.fork()
            if not child:
                begin()
                read(root)
                os._exit(0)
            children.append(child)
        read(root)
        for child in children:
            assert os.waitpid(child, 0)[1] == 0

    if __name__ == '__main__':
        sys.exit(fork())
    '''


class ConfTestCase(TestCase):
    """Makes an instance in a directory of its own."""

    def setUp(self) -> None:
        super().setUp()
        self.addCleanup(end_background)
        self.environment = {'BLOBS': '1'}

    def instance(self, name: str, **addresses: str) -> None:
        """Make the instance of a file in ``configurations/``.

        `addresses` has what takes the place of its words HOST and PORT.
        """
        text = (CONFIGURATIONS / f'{name}.conf').read_text()
        text = text.replace('/srv/zope', str(self.dir))
        for word, address in addresses.items():
            self.assertIn(word, text)
            text = text.replace(word, address)
        self.write('zope.conf', text)
        for var in 'var', 'instance/var':
            for part in 'instance', 'cache', 'filestorage':
                (self.dir / var / part).mkdir(parents=True)
        (self.dir / 'parts' / 'instance').mkdir(parents=True)

    def start(self, text: str) -> Program:
        return self.program(text, environment=self.environment)

    def end(self, program: Program) -> str:
        """Wait until it has ended well; returns its output."""
        status = program.end()
        self.assertEqual(0, status, program.output)
        return program.output

    def start_site(self) -> Program:
        site = self.start(SITE)
        site.wait_for('the site has started')
        return site

    def check_site(self, site: Program, ticks: int) -> None:
        site.send(signal.SIGUSR1)
        output = self.end(site)
        self.assertIn(f'ticks: {ticks}\n', output)
        for path in self.environment.get('MOUNTS', '').split():
            self.assertIn(f'{path} {ticks}\n', output)
        if 'BLOBS' in self.environment and ticks:
            self.assertIn(f'blob {ticks}\n', output)

    def check_before_the_site(self) -> None:
        """A worker makes the database, and then the site has it."""
        self.end(self.start(WORKER))
        self.check_site(self.start_site(), 1)

    def check_beside_the_site(self) -> None:
        site = self.start_site()
        self.end(self.start(WORKER))
        self.check_site(site, 1)

    def check_mistake(self, *expected: str, worker: str = WORKER) -> None:
        """The worker says in one line what is wrong."""
        program = self.start(worker)
        self.assertEqual(BAD_CONFIGURATION, program.end(), program.output)
        [line] = program.output.splitlines()
        for each in expected:
            self.assertIn(each, line)


class FileStorageTests(ConfTestCase):

    def test_mkwsgiinstance(self) -> None:
        del self.environment['BLOBS']
        make_instance(self.dir)
        self.check_before_the_site()
        self.assertFalse((self.dir / 'inituser').exists())

    def test_cookiecutter(self) -> None:
        self.instance('cookiecutter-filestorage')
        self.check_before_the_site()

    def test_recipe(self) -> None:
        self.instance('recipe-filestorage')
        self.check_before_the_site()

    def test_temporary_storage(self) -> None:
        self.instance('recipe-temporary')
        self.check_before_the_site()

    def test_temporary_storage_that_is_not_installed(self) -> None:
        self.instance('recipe-temporary')
        self.check_mistake(
            'zope.conf', 'temporarystorage', worker='''\
    import sys
    sys.modules['tempstorage'] = None
''' + WORKER)

    def test_a_key_that_zope_has_until_6_0(self) -> None:
        self.instance('recipe-filestorage', **{
            'mount-point /': 'mount-point /\n    class-factory '
                             'Zope2.Startup.datatypes.simpleClassFactory'})
        if hasattr(datatypes, 'simpleClassFactory'):
            self.check_before_the_site()
        else:
            self.check_mistake('zope.conf', 'line ', 'simpleClassFactory')


class ZEOTests(ConfTestCase):

    def check(self, name: str) -> None:
        zeo_conf = self.write('zeo.conf', f'''\
            <zeo>
              address {HOST}:8100
            </zeo>
            <filestorage>
              path {self.dir}/zeo/Data.fs
              blob-dir {self.dir}/var/blobstorage
            </filestorage>
            ''')
        (self.dir / 'zeo').mkdir()
        server = TCPExecutor(
            [sys.executable, '-m', 'ZEO.runzeo', '-a', f'{HOST}:{{port}}',
             '-C', zeo_conf], HOST, 0, timeout=DEADLINE, cwd=self.dir,
            envvars=child_environment())
        self.instance(name, **{'localhost:8100': f'{HOST}:{server.port}'})
        self.enterContext(server)
        self.check_beside_the_site()

    def test_cookiecutter(self) -> None:
        self.check('cookiecutter-zeo')

    def test_recipe(self) -> None:
        self.check('recipe-zeo')

    def test_recipe_with_shared_blobs(self) -> None:
        self.check('recipe-zeo-shared')

    def test_clientstorage(self) -> None:
        self.check('clientstorage')

    def test_a_variable_that_is_not_set(self) -> None:
        self.instance('recipe-zeo', ZEO_TMP='NOT_SET')
        self.check_mistake('zope.conf', 'NOT_SET')


class RelStorageTests(ConfTestCase):

    def test_sqlite_of_cookiecutter(self) -> None:
        self.instance('cookiecutter-sqlite')
        self.check_beside_the_site()

    def test_sqlite_of_recipe(self) -> None:
        self.instance('recipe-sqlite')
        self.check_beside_the_site()

    def test_postgresql_of_cookiecutter(self) -> None:
        self.instance('cookiecutter-postgresql', **self.postgresql())
        self.check_beside_the_site()

    def test_postgresql_of_recipe(self) -> None:
        self.instance('recipe-postgresql', **self.postgresql())
        self.check_beside_the_site()

    def test_a_fork_on_postgresql(self) -> None:
        self.instance('cookiecutter-postgresql', **self.postgresql())
        self.end(self.start(OBJECTS))
        output = self.end(self.start(FORK))
        # Each process is served by another one of the server.
        self.assertEqual(
            3, len({*re.findall('300 objects, read by ([0-9]+)', output)}),
            output)

    def postgresql(self) -> dict[str, str]:
        """Start a server; returns its addresses in zope.conf."""
        programs = pathlib.Path(services.need(self, 'postgres')).parent
        home = self.dir / 'postgresql'
        home.mkdir()
        self.addCleanup(services.free_memory, home / 'data')
        user: dict[str, Any] = {}
        if os.geteuid() == 0:  # who is refused
            user = {'user': 'postgres', 'group': 'postgres',
                    'extra_groups': []}
            self.dir.chmod(0o711)
            shutil.chown(home, 'postgres', 'postgres')
        subprocess.run(
            [programs / 'initdb', '--pgdata', home / 'data', '--no-locale',
             '--auth=trust', '--username=zope', '--no-sync'],
            cwd=home, check=True, stdout=subprocess.DEVNULL, **user)
        server = self.enterContext(PostgreSQLExecutor(
            [programs / 'postgres', '-D', home / 'data', '-F', '-k', home,
             '-h', HOST, '-p', '{port}'], HOST, 0, user='zope',
            timeout=DEADLINE, cwd=home, popen_kwargs=user))
        subprocess.run(
            [programs / 'createdb', '--host', HOST, '--port',
             str(server.port), '--username', 'zope', 'zope'], check=True)
        return {'localhost': HOST, '5432': str(server.port)}


class MountTests(ConfTestCase):

    def test_several_mount_points(self) -> None:
        self.environment |= {'MOUNTS': '/catalog /archive /shop/archive'}
        self.instance('recipe-mounts')
        self.check_site(self.start_site(), 0)
        self.check_before_the_site()
