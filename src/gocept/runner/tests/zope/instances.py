"""Instances of Zope for tests, and programs that run in them."""

import contextlib
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import transaction

from gocept.runner.boot.environments import Settings, choose
from gocept.runner.tests.support import DEADLINE, Program, TestCase


def make_instance(directory: pathlib.Path) -> None:
    """Make an instance with ``admin`` as the first user, and its zope.conf."""
    subprocess.run(
        [pathlib.Path(sys.executable).with_name('mkwsgiinstance'),
         '--dir', directory, '--user', 'admin:secret'],
        check=True, timeout=DEADLINE)
    (directory / 'zope.conf').symlink_to('etc/zope.conf')


class InstanceTestCase(TestCase):
    """An instance in a directory of its own."""

    def setUp(self) -> None:
        super().setUp()
        make_instance(self.dir)

    @property
    def conf(self) -> pathlib.Path:
        """The path of its zope.conf."""
        return self.dir / 'etc' / 'zope.conf'

    def declare(self, zcml: str) -> None:
        """Write ZCML that the site.zcml of the instance includes."""
        (self.dir / 'etc' / 'package-includes').mkdir(exist_ok=True)
        self.write('etc/package-includes/test-configure.zcml', f'''\
            <configure xmlns="http://namespaces.zope.org/zope"
                       xmlns:runner="http://namespaces.gocept.com/runner">
              <include package="gocept.runner" />
              {zcml}
            </configure>
            ''')

    def run_program(self, text: str, *args: str, status: int = 0) -> str:
        """Run a script to its end; returns what it writes."""
        program = self.program(text, *args)
        self.assertEqual(status, program.end(), program.output)
        return program.output

    def hold_database(self) -> Program:
        """A process with the database open, as that of the web server."""
        program = self.program("""\
            import signal
            from Zope2.Startup.run import configure_wsgi
            configure_wsgi('zope.conf')
            import Zope2
            Zope2.app()
            print('open', flush=True)
            signal.pause()
            """)
        program.wait_for('open')
        return program


class Application:
    """A layer: an instance that this process has set up.

    A process can set up one, so nothing else can follow here.
    """

    url = 'https://www.example.org:8443/portal'

    @classmethod
    def setUp(cls) -> None:
        cls._stack = contextlib.ExitStack()
        cls.dir = pathlib.Path(tempfile.mkdtemp())
        cls._stack.callback(shutil.rmtree, cls.dir)
        make_instance(cls.dir)
        conf = cls.dir / 'zope.conf'
        cls.environment = choose(conf)
        cls.options: Any = cls.environment.load(conf)
        cls._stack.enter_context(
            cls.environment.configured(cls.options, logs=False))
        with cls.opened() as root:
            make_content(root)
            transaction.commit()

    @classmethod
    def tearDown(cls) -> None:
        cls._stack.close()
        raise NotImplementedError

    @classmethod
    @contextlib.contextmanager
    def opened(cls, server_url: str | None = None) -> Iterator[Any]:
        """Open the database; hands out the root."""
        conf = cls.options.configfile
        cls.environment = choose(conf, Settings(server_url=server_url))
        with cls.environment.opened(cls.options) as root:
            yield root


def make_content(root: Any) -> None:
    """Make ``plain/inner``, and ``site/folder`` in a site.

    The site has the user ``fred`` in a user folder of its own.
    """
    root.manage_addFolder('plain')
    root.plain.manage_addFolder('inner')
    root.manage_addFolder('site')
    root.site.manage_addFolder('folder')
    root.site.manage_addUserFolder()
    root.site.acl_users.userFolderAddUser('fred', 'secret', ['Manager'], [])
    make_site(root.site)


def make_site(folder: Any) -> None:
    """Give it a site manager, as its ZMI does."""
    from Products.Five.component import enableSite
    from zope.component import getGlobalSiteManager
    from zope.component.persistentregistry import PersistentComponents
    enableSite(folder)
    folder.setSiteManager(
        PersistentComponents(bases=(getGlobalSiteManager(),)))
