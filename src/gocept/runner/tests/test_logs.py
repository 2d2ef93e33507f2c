import contextlib
import io
import logging
import unittest
from unittest import mock

from gocept.runner.logs import Log

NAME = 'gocept.runner.tests'


class Failing(logging.Handler):
    """Raises an error, like a log file that cannot be opened."""

    def emit(self, record):
        raise FileNotFoundError(2, 'No such file or directory', 'event.log')


@contextlib.contextmanager
def failing_handler(name=''):
    """A log handler that raises, and what standard error is told."""
    handler, logger = Failing(), logging.getLogger(name)
    logger.addHandler(handler)
    Log.has_failed = False
    try:
        with contextlib.redirect_stderr(io.StringIO()) as stderr:
            yield stderr
    finally:
        logger.removeHandler(handler)
        Log.has_failed = False


class LogTests(unittest.TestCase):

    def test_a_line_knows_where_it_was_logged(self):
        log = Log(NAME)
        with self.assertLogs(NAME) as logs:
            log.warning('A %s', 'line')
            try:
                1 / 0
            except ZeroDivisionError:
                log.exception('An error')
        for record in logs.records:
            self.assertEqual(('test_logs.py', self._testMethodName),
                             (record.filename, record.funcName))
        self.assertEqual('A line', logs.records[0].getMessage())
        self.assertIs(ZeroDivisionError, logs.records[1].exc_info[0])

    def test_a_level_that_is_off(self):
        with self.assertNoLogs(NAME, 'INFO'):
            Log(NAME).debug('a line')

    def test_standard_error_is_told_once(self):
        with failing_handler() as stderr:
            Log(NAME).error('The %s line', 'first')
            Log(NAME + '.other').error('The second line')
        self.assertEqual(
            "The log failed with FileNotFoundError: [Errno 2] No such file or "
            "directory: 'event.log'; the first line that is lost: The first "
            'line\n', stderr.getvalue())

    def test_a_library_that_disables_all_loggers(self):
        log, other = Log(NAME), Log(NAME + '.other')
        Log.was_disabled = False
        self.addCleanup(setattr, Log, 'was_disabled', False)
        with self.assertLogs(NAME) as logs:
            log.logger.disabled = other.logger.disabled = True
            log.error('The first line')
            other.error('The second line')
        self.assertEqual(
            [f'The logger {NAME} was disabled, and is enabled again: call '
             'logging.config with disable_existing_loggers=False',
             'The first line', 'The second line'],
            [record.getMessage() for record in logs.records])
        self.assertEqual('test_logs.py', logs.records[1].filename)

    def test_a_writer_in_the_place_of_logging(self):
        lines = []
        writer = mock.Mock(write=lambda *line: lines.append(line))
        log, error = Log(NAME), ValueError('an error')
        with mock.patch.object(Log, 'writer', writer):
            log.warning('A %s', 'line')
            log.info('100 %')
            log.error('Given', exc_info=error)
            try:
                raise error
            except ValueError:
                log.exception('Current')
        self.assertEqual([
            (logging.WARNING, NAME, 'A line', None),
            (logging.INFO, NAME, '100 %', None),
            (logging.ERROR, NAME, 'Given', error),
            (logging.ERROR, NAME, 'Current', error)], lines)

    def test_a_standard_error_that_fails_too(self):
        with failing_handler() as stderr:
            stderr.close()
            Log(NAME).error('a line')
        with failing_handler(), contextlib.redirect_stderr(None):
            Log(NAME).error('a line')
