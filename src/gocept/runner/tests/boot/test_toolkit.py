import errno
import logging
import sys
from unittest import mock

import persistent
import transaction
import zc.lockfile
import ZODB
import ZODB.FileStorage
import ZODB.interfaces
import zope.component
import zope.component.hooks
import zope.configuration.exceptions
import zope.event
import zope.interface
import zope.interface.verify
import zope.processlifetime
import zope.security.management
from zope.app.appsetup import appsetup
from zope.app.appsetup.product import getProductConfiguration
from zope.authentication.interfaces import IAuthentication
from zope.component.interfaces import ISite
from zope.site.folder import Folder
from zope.site.site import LocalSiteManager

from gocept.runner import once
from gocept.runner.boot import messages, toolkit, zopeconf
from gocept.runner.boot.environments import Settings
from gocept.runner.boot.toolkit import Toolkit
from gocept.runner.errors import (
    ConfigurationError,
    NoSuchSite,
    NotASiteError,
    UsageError,
)
from gocept.runner.interfaces import ICurrentSite, IEnvironment
from gocept.runner.runner import init
from gocept.runner.tests.support import TestCase, replaced_modules


class Leaf(persistent.Persistent):
    pass


class IMine(zope.interface.Interface):
    pass


class Case(TestCase):

    def setUp(self):
        super().setUp()
        path = list(sys.path)
        self.addCleanup(sys.path.__setitem__, slice(None), path)
        self.root = logging.getLogger()
        self.addCleanup(self.root.setLevel, self.root.level)
        self.addCleanup(self.set_handlers, list(self.root.handlers))
        self.root.handlers[:] = []

    def set_handlers(self, handlers):
        for handler in self.root.handlers:
            handler.close()
        self.root.handlers[:] = handlers

    def configure(self, more='<eventlog>\n</eventlog>', **kwargs):
        options = zopeconf.load(self.zope_conf(more))
        with Toolkit().configured(options, **kwargs):
            return options

    def zcml(self, body, name='my.zcml'):
        path = self.write(name, f'''
            <configure xmlns="http://namespaces.zope.org/zope"
                       xmlns:meta="http://namespaces.zope.org/meta"
                       xmlns:zcml="http://namespaces.zope.org/zcml">
              <include package="zope.component" />
              <include package="zope.principalregistry" file="meta.zcml" />
              <include package="zope.security" file="meta.zcml" />
              {body}
            </configure>
            ''')
        return f'site-definition {path}\n<eventlog>\n</eventlog>'


class IgnoredTests(Case):

    def test_what_a_web_server_needs_is_ignored(self):
        options = zopeconf.load(self.zope_conf('''
            interrupt-check-interval 200
            threads 4
            <accesslog>
              <logfile>
                path STDOUT
              </logfile>
            </accesslog>
            <server>
              type HTTP
              address 8080
            </server>
            <sslserver>
              type HTTPS
              address 8443
              privatekeypath server.pem
            </sslserver>
            <eventlog>
              level debug
            </eventlog>
            '''))
        with self.assertLogs('gocept.runner.environment', 'DEBUG') as logs:
            toolkit._report_ignored(options)
        self.assertEqual(
            'Ignored in zope.conf, as only a web server needs it: '
            '<accesslog>, <server>, <sslserver>, interrupt-check-interval, '
            'threads', logs.records[0].getMessage())

    def test_nothing_to_ignore_is_no_news(self):
        options = zopeconf.load(self.zope_conf())
        with self.assertNoLogs('gocept.runner.environment', 'DEBUG'):
            toolkit._report_ignored(options)


class ConfigureTests(Case):

    def test_product_config(self):
        self.configure('''
            <product-config test>
              foo bar
            </product-config>
            <eventlog>
            </eventlog>
            ''')
        self.assertEqual({'foo': 'bar'}, getProductConfiguration('test'))

    def test_path(self):
        self.write('found_by_path.py', 'x = 1')
        self.configure(f'path {self.dir}\n<eventlog>\n</eventlog>')
        self.configure(f'path {self.dir}\n<eventlog>\n</eventlog>')
        self.assertEqual(str(self.dir), sys.path[0])
        self.assertEqual(1, sys.path.count(str(self.dir)))

    def test_the_built_in_zcml(self):
        self.configure()
        auth = zope.component.getUtility(IAuthentication)
        self.assertEqual('zope.mgr', auth.getPrincipal('zope.mgr').id)
        self.assertEqual('zope.anybody', auth.unauthenticatedPrincipal().id)
        from zope.security.interfaces import IPermission
        zope.component.getUtility(IPermission, 'zope.View')

    def test_nobody_can_log_in_as_the_manager(self):
        from zope.password.interfaces import IPasswordManager
        from zope.password.password import SSHAPasswordManager
        self.configure()
        zope.component.provideUtility(
            SSHAPasswordManager(), IPasswordManager, 'SSHA')
        [manager] = zope.component.getUtility(
            IAuthentication).getPrincipals('zope.mgr')
        for password in ('', '!', 'zope.mgr'):
            self.assertFalse(manager.validate(password))

    def test_devmode(self):
        zcml = self.zcml('''
            <utility zcml:condition="have devmode" name="devmode"
                     provides="gocept.runner.tests.boot.test_toolkit.IMine"
                     component="gocept.runner.boot.environment" />
            ''')
        with self.assertLogs('gocept.runner.environment', 'WARNING') as logs:
            self.configure('devmode on\n' + zcml)
        self.assertIn('Developer mode is on', logs.output[0])
        zope.component.getUtility(IMine, 'devmode')

    def test_the_same_site_definition_again(self):
        self.configure()
        context = appsetup.getConfigContext()
        self.configure(f'site-definition {zopeconf.here}/../'
                       'site.zcml\n<eventlog>\n</eventlog>')
        self.assertIs(context, appsetup.getConfigContext())

    def test_another_site_definition(self):
        self.configure()
        with self.assertRaisesRegex(
                ConfigurationError, r'site\.zcml was loaded in this process '
                r'before, so .*my\.zcml cannot be'):
            self.configure(self.zcml(''))
        self.configure()

    def test_a_missing_site_definition(self):
        with self.assertRaisesRegex(
                ConfigurationError, 'no such file: .*missing.zcml'):
            self.configure('site-definition missing.zcml')

    def test_an_interaction_from_before_stays(self):
        zope.security.management.newInteraction()
        mine = zope.security.management.getInteraction()
        self.configure()
        self.assertIs(mine, zope.security.management.getInteraction())


class FailedConfigureTests(Case):

    broken = '''
        <principal id="my.new" title="New" login="new" password="new" />
        <class class="gocept.runner.errors.RunnerError">
          <allow attributes="status" />
        </class>
        <utility name="new" component="gocept.runner.boot.environment"
                 provides="gocept.runner.tests.boot.test_toolkit.IMine" />
        <principal id="my.new2" title="New" login="new" password="new" />
    '''

    def test_leaves_all_as_it_was(self):
        self.configure('''
            <product-config mine>
              key value
            </product-config>
            <eventlog>
              level warn
            </eventlog>
            ''')
        appsetup.reset()  # so that the ZCML is run
        zope.component.provideUtility(self, IMine, 'mine')
        path, handlers = list(sys.path), list(self.root.handlers)
        utilities = len(list(zope.component.getGlobalSiteManager()
                             .registeredUtilities()))
        log = self.dir / 'event.log'
        conf = self.zcml(self.broken).partition('<eventlog>')[0] + f'''
            path {self.dir}
            <product-config other>
              key value
            </product-config>
            <eventlog>
              level debug
              <logfile>
                path {log}
              </logfile>
            </eventlog>
            '''
        with self.assertPutBack():
            with self.assertRaises(
                    zope.configuration.exceptions.ConfigurationError):
                self.configure(conf)
        self.assertEqual(path, sys.path)
        self.assertEqual(handlers, self.root.handlers)
        self.assertEqual(logging.WARNING, self.root.level)
        self.assertEqual({'key': 'value'}, getProductConfiguration('mine'))
        self.assertIsNone(getProductConfiguration('other'))
        self.assertIs(self, zope.component.getUtility(IMine, 'mine'))
        self.assertEqual(utilities, len(list(
            zope.component.getGlobalSiteManager().registeredUtilities())))

    def test_can_be_repeated_with_the_mistake_mended(self):
        for _ in range(2):
            with self.assertRaises(
                    zope.configuration.exceptions.ConfigurationError):
                self.configure(self.zcml(self.broken))
            self.assertIsNone(zope.component.queryUtility(IMine, 'new'))
        good = self.broken.rpartition('<principal')[0]
        self.configure(self.zcml(good))
        zope.component.getUtility(IMine, 'new')

    def test_zcml_errors_name_file_and_line(self):
        with self.assertRaises(
                zope.configuration.exceptions.ConfigurationError) as caught:
            self.configure(self.zcml('<nonsense />'))
        self.assertRegex(str(caught.exception), r'my\.zcml", line 7')


    def test_a_database_that_cannot_be_opened_counts_too(self):
        other = self.zcml('')
        conf = self.zope_conf()
        locked = ZODB.DB(f'{self.dir}/Data.fs')
        with self.assertPutBack(), self.assertRaises(zc.lockfile.LockError):
            with init(None, conf):
                pass
        locked.close()
        self.assertIsNone(zope.component.queryUtility(IAuthentication))
        with init(None, self.zope_conf(other)):
            pass

    def test_what_fails_in_the_block_leaves_the_components(self):
        with self.assertRaises(ZeroDivisionError):
            with init(None, self.zope_conf()):
                raise ZeroDivisionError
        zope.component.getUtility(IAuthentication)


class DatabaseTests(Case):

    def test_an_empty_database_gets_its_root_folder(self):
        events = []
        zope.event.subscribers.append(events.append)
        self.addCleanup(zope.event.subscribers.pop)
        with Toolkit().opened(self.configure()) as root:
            folder = root
            self.assertTrue(ISite.providedBy(folder))
            self.assertIn('default', folder.getSiteManager())
        self.assertEqual(1, self.opened_with_root(events))

    def opened_with_root(self, events):
        return sum(
            zope.processlifetime.IDatabaseOpenedWithRoot.providedBy(event)
            for event in events)

    def test_so_it_does_where_zcml_includes_the_subscriber(self):
        events = []
        zope.event.subscribers.append(events.append)
        self.addCleanup(zope.event.subscribers.pop)
        options = self.configure(self.zcml('''
            <subscriber
                for="zope.processlifetime.IDatabaseOpened"
                handler="zope.app.appsetup.bootstrap.bootStrapSubscriber" />
            '''))
        with Toolkit().opened(options) as root:
            self.assertTrue(ISite.providedBy(root))
        self.assertEqual(1, self.opened_with_root(events))

    def test_the_root_folder_is_the_same_as_appsetups(self):
        from zope.app.appsetup.bootstrap import bootStrapSubscriber
        database = ZODB.DB(None)
        self.addCleanup(database.close)
        bootStrapSubscriber(zope.processlifetime.DatabaseOpened(database))
        with database.transaction() as connection:
            theirs = self.describe(connection.root()['Application'])
        with Toolkit().opened(self.configure()) as root:
            self.assertEqual(theirs, self.describe(root))

    def describe(self, folder):
        manager = folder.getSiteManager()
        return (type(folder), list(zope.interface.providedBy(folder)),
                list(folder), type(manager), list(manager),
                folder.__name__, folder.__parent__)

    def test_a_foreign_database_is_left_alone(self):
        database = ZODB.DB(f'{self.dir}/Data.fs')
        with database.transaction() as connection:
            connection.root()['theirs'] = 1
            connection.root()[3] = 1
        database.close()
        options = self.configure(self.zcml('''
            <subscriber
                for="zope.processlifetime.IDatabaseOpened"
                handler="zope.app.appsetup.bootstrap.bootStrapSubscriber" />
            '''))
        with self.assertPutBack(), self.assertRaisesRegex(
                ConfigurationError, "no root folder 'Application'.*holds "
                "'theirs', 3"):
            with Toolkit().opened(options):
                pass
        database = ZODB.DB(f'{self.dir}/Data.fs')
        with database.transaction() as connection:
            self.assertEqual({'theirs', 3}, set(connection.root()))
        database.close()

    def test_two_that_create_it_at_the_same_time(self):
        options = self.configure()
        other = ZODB.DB(None)
        self.addCleanup(other.close)
        create = toolkit._new_root_folder

        def create_late():
            with mock.patch.object(toolkit, '_new_root_folder', create):
                if 'first' not in seen:
                    seen.append('first')
                    toolkit._ensure_root_folder(other, mock.Mock())
            return create()
        seen = []
        with mock.patch.object(
                toolkit, '_new_root_folder', create_late):
            toolkit._ensure_root_folder(other, mock.Mock())
        with other.transaction() as connection:
            self.assertEqual(['Application'], list(connection.root()))
        self.assertTrue(options)

    def test_a_storage_whose_package_is_not_installed(self):
        path = self.write('zeo.conf', '''
            <zodb>
              <zeoclient>
                server localhost:1
              </zeoclient>
            </zodb>
            ''')
        missing = {'ZEO': None, 'ZEO.ClientStorage': None}
        with replaced_modules(missing):
            with self.assertRaisesRegex(
                    ConfigurationError, 'needs a package that is not '
                    'installed: .*ZEO'):
                with Toolkit().opened(zopeconf.load(path)):
                    pass

    def test_a_multi_database(self):
        path = self.write('multi.conf', f'''
            <zodb>
              <filestorage>
                path {self.dir}/Data.fs
              </filestorage>
            </zodb>
            <zodb other>
              <mappingstorage>
              </mappingstorage>
            </zodb>
            <eventlog>
            </eventlog>
            ''')
        with self.assertPutBack(), init(None, str(path)) as app:
            other = zope.component.getUtility(
                ZODB.interfaces.IDatabase, 'other')
            root = app._p_jar.get_connection('other').root()
            root['x'] = 1
            transaction.commit()
            self.assertIs(other, root._p_jar.db())
        self.assertIsNone(zope.component.queryUtility(
            ZODB.interfaces.IDatabase, 'other'))
        self.assertIsNone(zope.component.queryUtility(
            ZODB.interfaces.IDatabase))

    def test_a_full_disk_is_told_with_the_path_of_the_database(self):
        with init(None, self.zope_conf()):
            pass
        full = OSError(errno.ENOSPC, 'No space left on device')
        with (mock.patch('ZODB.FileStorage.FileStorage.FileStorage.__init__',
                         side_effect=full),
              self.assertRaises(OSError) as caught):
            with init(None, self.zope_conf()):
                pass
        self.assertEqual(
            '[Errno 28] No space left on device (the database is '
            f'{self.dir}/Data.fs)', messages.message(caught.exception))

    def test_if_the_second_cannot_be_opened_the_first_is_closed(self):
        locked = ZODB.DB(f'{self.dir}/Locked.fs')
        self.addCleanup(locked.close)
        with init(None, self.zope_conf()):
            pass  # so that the components stay
        path = self.write('locked.conf', f'''
            <zodb>
              <filestorage>
                path {self.dir}/Data.fs
              </filestorage>
            </zodb>
            <zodb other>
              <filestorage>
                path {self.dir}/Locked.fs
              </filestorage>
            </zodb>
            <eventlog>
            </eventlog>
            ''')
        with (self.assertPutBack(),
              self.assertRaises(zc.lockfile.LockError)):
            with init(None, str(path)):
                pass
        ZODB.DB(f'{self.dir}/Data.fs').close()
        self.assertEqual([], list(zope.component.getUtilitiesFor(
            ZODB.interfaces.IDatabase)))

    def test_a_root_folder_that_is_no_site(self):
        database = ZODB.DB(f'{self.dir}/Data.fs')
        with database.transaction() as connection:
            connection.root()['Application'] = Folder()
        database.close()
        with self.assertPutBack(), self.assertRaisesRegex(
                NotASiteError, 'the root folder is a Folder without'):
            with init(None, self.zope_conf()):
                pass

    def test_the_contract(self):
        zope.interface.verify.verifyObject(IEnvironment, Toolkit())
        with Toolkit().opened(self.configure()) as root:
            with Toolkit().entered(root, lambda: None, '', print) as current:
                zope.interface.verify.verifyObject(ICurrentSite, current)

    def test_a_path(self):
        with init(None, self.zope_conf()) as root:
            root['a'] = Folder()
            root['a']['b'] = Folder()
            root['a']['b'].setSiteManager(LocalSiteManager(root['a']['b']))
            root['a']['leaf'] = Leaf()
            transaction.commit()
        with init('/', self.zope_conf()) as site:
            self.assertIn('a', site)
        for path in 'a/b', '/a/b', 'a/b/':
            with init(path, self.zope_conf()) as site:
                self.assertEqual('b', site.__name__)
        for path, expected in {
                'a/x': "'a' in the root folder has no object 'x'",
                'x/b': "the root folder has no object 'x'",
                'a//b': "'a' in the root folder has no object ''",
                '': "the root folder has no object ''",
                'a/leaf/x': "'a/leaf' in the root folder is a Leaf, which "
                "contains nothing, so there is no 'x'"}.items():
            with (self.assertRaisesRegex(NoSuchSite, f'^{expected}$'),
                  init(path, self.zope_conf())):
                self.fail('not reached')
        with (self.assertRaisesRegex(NotASiteError, "^'a/leaf' in the .* is a"
                                     " Leaf without a site manager"),
              init('a/leaf', self.zope_conf())):
            self.fail('not reached')

    def test_options_of_zope(self):
        for settings, expected in {
                Settings(server_url='http://x'): '--server-url is for app',
                Settings(log_config='zope.ini'): '--log-config is for app',
                }.items():
            with self.assertRaisesRegex(UsageError, f'^{expected}'):
                Toolkit(settings)

    def test_a_server_that_is_not_there_is_named(self):
        path = self.write('zeo.conf', f'''
            %import ZEO
            <zodb>
              <clientstorage>
                server {self.dir}/nobody.sock
                server localhost:1
                wait-timeout 1
              </clientstorage>
            </zodb>
            <eventlog>
            </eventlog>
            ''')
        self.root.addHandler(logging.NullHandler())  # ZEO may log it
        with self.assertRaises(Exception) as caught:
            with init(None, str(path)):
                pass
        self.assertIn(
            f'(the server is {self.dir}/nobody.sock) (the server is '
            'localhost:1)', messages.message(caught.exception))

    def test_an_error_when_the_database_is_closed_changes_nothing(self):
        @once()
        def worker():
            zope.component.hooks.getSite().number = 1
        close = ZODB.FileStorage.FileStorage.close

        def fail(storage):
            close(storage)
            raise OSError(28, 'No space left on device')
        with (mock.patch.object(ZODB.FileStorage.FileStorage, 'close', fail),
              self.assertLogs('gocept.runner.environment', 'ERROR') as logs):
            self.assertIsNone(worker(None, self.zope_conf()))
            with init(None, self.zope_conf()) as site:
                self.assertEqual(1, site.number)
        self.assertEqual(2, len(logs.records))
        self.assertIn("An error while the database '' was closed",
                      logs.output[0])
        self.assertIn('No space left', logs.output[0])

    def test_a_transaction_that_cannot_be_aborted_is_no_obstacle(self):
        with (self.assertPutBack(),
              mock.patch('transaction.abort', side_effect=OSError),
              self.assertLogs('gocept.runner.transaction', 'ERROR')):
            with init(None, self.zope_conf()):
                pass
