import contextlib
import io
import logging
import sys

from gocept.runner.boot import loggers
from gocept.runner.errors import ConfigurationError
from gocept.runner.tests.boot.test_toolkit import Case


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

    def test_a_file_for_logging(self):
        stderr = io.StringIO()
        path = self.write('zope.ini', '''
            [loggers]
            keys = root, shop
            [handlers]
            keys = file
            [formatters]
            keys =
            [logger_root]
            level = WARNING
            handlers = file
            [logger_shop]
            level = DEBUG
            qualname = gocept.runner.tests.shop
            handlers =
            [handler_file]
            class = FileHandler
            args = (%(here)r + '/event.log',)
            ''')
        path.write_text(path.read_text().replace("%(here)r", "'%(here)s'"))
        other = logging.getLogger('gocept.runner.tests.other')
        shop = logging.getLogger('gocept.runner.tests.shop')
        self.addCleanup(shop.setLevel, logging.NOTSET)
        with (contextlib.redirect_stderr(stderr),
              contextlib.ExitStack() as undo):
            loggers.set_up(undo, 'zope.conf', log_config=str(path))
            shop.debug('one')
            other.info('two')
            other.warning('three')
            self.assertEqual(2, self.lines())
            [handler] = self.root.handlers
            self.assertIn(handler, loggers.installed)
        self.assertEqual(([], ''), (self.root.handlers, stderr.getvalue()))
        self.assertEqual(logging.NOTSET, shop.level)

    def test_a_file_that_sets_up_nothing(self):
        for text in '', '[loggers]\nkeys = root\n', 'x':
            path = self.write('zope.ini', text)
            with self.assertRaisesRegex(
                    ConfigurationError, f'^{path} cannot set up logging'), \
                    contextlib.ExitStack() as undo:
                loggers.set_up(undo, 'zope.conf', log_config=str(path))

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
