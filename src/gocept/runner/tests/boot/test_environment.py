import contextlib
import io
import logging
import sys
from unittest import mock

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
import zope.processlifetime
import zope.security.management
from zope.app.appsetup import appsetup
from zope.app.appsetup.product import getProductConfiguration
from zope.authentication.interfaces import IAuthentication
from zope.component.interfaces import ISite
from zope.site.folder import Folder

from gocept.runner import once
from gocept.runner.boot import environment, zopeconf
from gocept.runner.errors import ConfigurationError, NotASiteError
from gocept.runner.interfaces import ISupervisor
from gocept.runner.runner import init
from gocept.runner.tests.support import TestCase


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
        with environment.configured(options, **kwargs):
            return options

    @contextlib.contextmanager
    def opened_root(self, options):
        with (environment.open_databases(options) as database,
              environment.root_of(database) as root):
            yield root

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
            environment._report_ignored(options)
        self.assertEqual(
            'Ignored in zope.conf, as only a web server needs it: '
            '<accesslog>, <server>, <sslserver>, interrupt-check-interval, '
            'threads', logs.records[0].getMessage())

    def test_nothing_to_ignore_is_no_news(self):
        options = zopeconf.load(self.zope_conf())
        with self.assertNoLogs('gocept.runner.environment', 'DEBUG'):
            environment._report_ignored(options)


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
                     provides="gocept.runner.tests.boot.test_environment.IMine"
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
                 provides="gocept.runner.tests.boot.test_environment.IMine" />
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


class LoggingTests(Case):

    def lines(self, name='event.log'):
        return (self.dir / name).read_text().count('\n')

    def logfile(self, name='event.log', level='info', section='eventlog'):
        return f'''
            <{section}>
              level {level}
              <logfile>
                path {self.dir / name}
                format %(message)s
              </logfile>
            </{section.split()[0]}>
            '''

    def test_standard_error_without_an_eventlog(self):
        self.configure('')
        self.configure('')
        [handler] = self.root.handlers
        self.assertIs(sys.stderr, handler.stream)
        self.assertEqual(logging.INFO, self.root.level)

    def test_handlers_of_the_caller_will_do(self):
        mine = logging.NullHandler()
        self.root.addHandler(mine)
        self.configure('')
        self.assertEqual([mine], self.root.handlers)

    def test_the_same_file_twice_logs_once(self):
        for _ in range(3):
            self.configure(self.logfile())
        self.root.info('hello')
        self.assertEqual(1, self.lines())

    def test_another_file_replaces_the_first(self):
        self.configure(self.logfile('one.log'))
        self.configure(self.logfile('two.log'))
        self.root.info('hello')
        self.assertEqual((0, 1), (self.lines('one.log'),
                                  self.lines('two.log')))

    def test_one_without_a_file_leaves_it(self):
        self.configure(self.logfile())
        self.configure()
        self.root.info('hello')
        self.assertEqual(1, self.lines())

    def test_further_loggers(self):
        name = 'gocept.runner.tests.further'
        self.configure(self.logfile() + self.logfile(
            'further.log', 'debug', 'logger').replace(
                'level', f'name {name}\nlevel'))
        logger = logging.getLogger(name)
        [handler] = logger.handlers
        self.addCleanup(logger.removeHandler, handler)
        self.addCleanup(handler.close)
        logger.debug('hello')
        self.assertEqual((1, 1), (self.lines(), self.lines('further.log')))

    def test_a_logger_that_cannot_be_made(self):
        for line, message in (
                ('format %(nothing)s', "zope.conf: KeyError: 'nothing'"),
                ('formatter no.such.Formatter', 'No module named')):
            with self.assertRaisesRegex(ConfigurationError, message):
                self.configure('<eventlog>\n<logfile>\npath STDOUT\n'
                               f'{line}\n</logfile>\n</eventlog>')

    def test_a_log_file_that_cannot_be_opened(self):
        for section, name in (
                ('<eventlog>', '<eventlog>'), ('<logger>\nname shop', 'shop')):
            with self.assertRaisesRegex(
                    ConfigurationError,
                    f'^{self.dir}/zope.conf: the log file of {name} cannot be '
                    "opened: .*No such file or directory: '/nodir/x.log'"):
                self.configure(f'{section}\n<logfile>\npath /nodir/x.log\n'
                               f'</logfile>\n</{section.split(">")[0][1:]}>')

    def test_verbose_beside_an_eventlog_on_standard_error(self):
        stderr = io.StringIO()
        with contextlib.redirect_stderr(stderr):
            self.configure(
                '<eventlog>\n<logfile>\npath STDERR\nformat %(message)s\n'
                '</logfile>\n</eventlog>', verbose=True)
        self.root.debug('hello')
        self.assertEqual(1, stderr.getvalue().count('hello'))

    def test_verbose(self):
        stderr = io.StringIO()
        with contextlib.redirect_stderr(stderr):
            self.configure(self.logfile(), verbose=True)
        self.root.debug('hello')
        self.assertRegex(stderr.getvalue(), r'DEBUG root hello\n$')
        self.assertEqual(2, len(self.root.handlers))

    def test_no_logs(self):
        level = self.root.level
        self.configure(self.logfile(level='debug'), logs=False)
        self.configure('', logs=False)
        self.assertEqual(([], level), (self.root.handlers, self.root.level))
        self.assertFalse((self.dir / 'event.log').exists())
        # A later one has them.
        self.configure(self.logfile())
        self.root.info('hello')
        self.assertEqual(1, self.lines())


class DatabaseTests(Case):

    def test_an_empty_database_gets_its_root_folder(self):
        events = []
        zope.event.subscribers.append(events.append)
        self.addCleanup(zope.event.subscribers.pop)
        with self.opened_root(self.configure()) as root:
            folder = root['Application']
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
        with self.opened_root(options) as root:
            self.assertTrue(ISite.providedBy(root['Application']))
        self.assertEqual(1, self.opened_with_root(events))

    def test_the_root_folder_is_the_same_as_appsetups(self):
        from zope.app.appsetup.bootstrap import bootStrapSubscriber
        database = ZODB.DB(None)
        self.addCleanup(database.close)
        bootStrapSubscriber(zope.processlifetime.DatabaseOpened(database))
        with database.transaction() as connection:
            theirs = self.describe(connection.root()['Application'])
        with self.opened_root(self.configure()) as root:
            self.assertEqual(theirs, self.describe(root['Application']))

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
            with self.opened_root(options):
                pass
        database = ZODB.DB(f'{self.dir}/Data.fs')
        with database.transaction() as connection:
            self.assertEqual({'theirs', 3}, set(connection.root()))
        database.close()

    def test_two_that_create_it_at_the_same_time(self):
        options = self.configure()
        other = ZODB.DB(None)
        self.addCleanup(other.close)
        create = environment._new_root_folder

        def create_late():
            with mock.patch.object(environment, '_new_root_folder', create):
                if 'first' not in seen:
                    seen.append('first')
                    environment._ensure_root_folder(other, mock.Mock())
            return create()
        seen = []
        with mock.patch.object(
                environment, '_new_root_folder', create_late):
            environment._ensure_root_folder(other, mock.Mock())
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
        with mock.patch.dict(sys.modules, missing):
            with self.assertRaisesRegex(
                    ConfigurationError, 'needs a package that is not '
                    'installed: .*ZEO'):
                with environment.open_databases(zopeconf.load(path)):
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


class SupervisedTests(Case):

    def test_where_zcml_includes_none(self):
        with environment.supervised(30) as supervisor:
            self.assertIsNone(supervisor)

    def test_the_utility(self):
        @zope.interface.implementer(ISupervisor)
        class Recording:
            @contextlib.contextmanager
            def running(self, timeout):
                log.append(timeout)
                try:
                    yield
                finally:
                    log.append('stopped')
        log = []
        mine = Recording()
        zope.component.provideUtility(mine)
        for error in (RuntimeError, KeyboardInterrupt):
            with self.assertRaises(error), environment.supervised(7) as it:
                self.assertEqual([7], log[-1:])
                self.assertIs(mine, it)
                raise error
            self.assertEqual('stopped', log[-1])
