import contextlib
import datetime
import io
import json
import logging
import os
import sys
import threading
import types
import unittest

import gocept.runner
from gocept.runner.boot import current, loggers, zopeconf
from gocept.runner.boot.environments import Settings
from gocept.runner.boot.jsonlines import LONGEST, JSONFormatter
from gocept.runner.boot.toolkit import Toolkit
from gocept.runner.tests.boot.test_toolkit import Case

KEYS = ['time', 'level', 'logger', 'message', 'worker', 'tick', 'attempt',
        'principal', 'transaction', 'exception', 'process']


class Unprintable:

    def __str__(self):
        raise RuntimeError('no text')

    __repr__ = __str__


class UnprintableError(Exception):

    __str__ = __repr__ = Unprintable.__str__


class Nested(dict):

    def items(self):
        raise RuntimeError('no items')


class Stubborn(str):

    isascii = encode = __str__ = Unprintable.__str__


class Disguised:

    __class__ = property(Unprintable.__str__)


def refused(constant):
    raise AssertionError(f'{constant} is not JSON')


def parsed(line):
    """The object of a line, which has to be one line of valid JSON."""
    assert line.isascii() and len(line.splitlines()) == 1, line
    return json.loads(line, parse_constant=refused)


def formatted(msg='hello', *args, level=logging.INFO, exc_info=None,
              **extra):
    logger = logging.getLogger('gocept.runner.tests.jsonlines')
    record = logger.makeRecord(logger.name, level, __file__, 1, msg, args,
                               exc_info, 'a_function', extra)
    return parsed(JSONFormatter().format(record))


class LineTests(unittest.TestCase):

    def test_keys(self):
        line = formatted('%d of %s', 1, 'two')
        self.assertEqual(KEYS, list(line))
        self.assertEqual(
            ['INFO', 'gocept.runner.tests.jsonlines', '1 of two'],
            [line[name] for name in ('level', 'logger', 'message')])
        self.assertEqual([*[None] * 6, os.getpid()],
                         [line[name] for name in KEYS[4:]])

    def test_time_is_utc_with_microseconds(self):
        record = logging.makeLogRecord({'created': 1000000000.25})
        line = parsed(JSONFormatter().format(record))
        self.assertEqual('2001-09-09T01:46:40.250000Z', line['time'])
        for wrong in None, float('nan'), 1e99, 'now':
            record = logging.makeLogRecord({'created': wrong})
            datetime.datetime.fromisoformat(
                parsed(JSONFormatter().format(record))['time'])

    def test_message_with_lines_and_other_characters(self):
        text = 'one\ntwo\r\x1b\0\u2028 \xe4 \U0001f40d'
        self.assertEqual(text, formatted(text)['message'])

    def test_a_surrogate_is_no_text(self):
        self.assertEqual(r'\udcff', formatted('\udcff')['message'])
        self.assertEqual({r'\udcff': r'\udcff'},
                         formatted(**{'\udcff': '\udcff'})['extra'])

    def test_a_message_that_cannot_be_made(self):
        self.assertRegex(formatted('%d items', 'no')['message'],
                         r"^%d items % \('no',\) \(TypeError: %d format")
        self.assertIn('Unprintable, unprintable: RuntimeError',
                      formatted(Unprintable())['message'])
        self.assertIn('unprintable', formatted('%s', Unprintable())['message'])

    def test_a_long_message_loses_its_middle(self):
        message = formatted('a' * LONGEST + 'b' * LONGEST)['message']
        self.assertRegex(message, f'^a+ ... \\({LONGEST} characters are '
                                  'left out\\) ... b+$')

    def test_further_values(self):
        extra = {'number': 1, 'ratio': .5, 'yes': True, 'nothing': None,
                 'names': ['a', ('b', {'c': frozenset([1])})], 'tick': 'mine'}
        self.assertEqual(
            {**extra, 'names': ['a', ['b', {'c': [1]}]]},
            formatted(**extra)['extra'])

    def test_values_that_json_does_not_have(self):
        recursive = []
        recursive.append(recursive)
        deep = ()
        for _ in range(10_000):
            deep = (deep,)
        extra = formatted(
            bytes=b'a\xff', nan=float('nan'), infinite=[float('inf')],
            int=1 << 100_000, keys={(1, 2): 3, Unprintable(): 4},
            object=Unprintable(), disguised=Disguised(),
            stubborn=Stubborn('a\xe4\udcff'), nested=Nested(a=1),
            recursive=recursive,
            deep=deep, date=datetime.date(2026, 2, 1),
            space=types.SimpleNamespace(a=1),
            long=list(range(LONGEST)))['extra']
        self.assertEqual(
            (r'a\xff', 'nan', ['inf'], '2026-02-01', 'namespace(a=1)'),
            tuple(map(extra.get,
                      ('bytes', 'nan', 'infinite', 'date', 'space'))))
        self.assertEqual(3, extra['keys']['(1, 2)'])
        self.assertIn('unprintable', extra['object'])
        self.assertEqual('a\xe4\\udcff', extra['stubborn'])
        self.assertRegex(extra['long'], r'^\[0, 1.* are left out.*\]$')

    def test_a_value_that_is_in_many_others(self):
        tree = {}
        tree['children'] = [{'parent': tree} for _ in range(1000)]
        extra = formatted(tree=tree)['extra']
        self.assertIn('more are left out', extra['tree'])

    def test_the_end_of_a_long_container(self):
        for kind in list, dict.fromkeys:
            many = kind(map(str, range(1_000_000)))
            self.assertRegex(formatted(many=many)['extra']['many'],
                             r'\(9\d{5} more are left out\)')

    def test_an_exception(self):
        try:
            raise ValueError('x\ny')
        except ValueError:
            line = formatted(exc_info=sys.exc_info())
        self.assertRegex(line['exception'],
                         r'(?s)^Traceback .*\nValueError: x\ny$')

    def test_an_exception_without_a_text(self):
        try:
            raise UnprintableError
        except UnprintableError:
            line = formatted(exc_info=sys.exc_info())
        self.assertIn('UnprintableError', line['exception'])

    def test_exceptions_that_are_none(self):
        self.assertIsNone(formatted(exc_info=(None, None, None))['exception'])
        self.assertIn('ValueError', formatted(
            exc_info=(ValueError, ValueError(), 'no traceback'))['exception'])
        record = logging.makeLogRecord({'exc_text': 'from afar'})
        self.assertEqual('from afar',
                         parsed(JSONFormatter().format(record))['exception'])

    def test_a_stack(self):
        record = logging.makeLogRecord({'stack_info': 'Stack:\n  a'})
        self.assertEqual({'stack_info': 'Stack:\n  a'},
                         parsed(JSONFormatter().format(record))['extra'])


class TickTests(unittest.TestCase):

    def setUp(self):
        loop = types.SimpleNamespace(
            name='expire', tick=0, attempt=0, known_principal='zope.manager')
        self.enterContext(current.running(loop))
        self.loop = loop

    def seen(self, line):
        return {name: line[name] for name in KEYS[4:8]}

    def test_before_the_first_tick(self):
        self.assertEqual(
            {'worker': 'expire', 'tick': None, 'attempt': None,
             'principal': 'zope.manager'}, self.seen(formatted()))

    def test_of_the_thread_of_the_loop(self):
        self.loop.tick, self.loop.attempt = 7, 2
        self.assertEqual(
            {'worker': 'expire', 'tick': 7, 'attempt': 2,
             'principal': 'zope.manager'}, self.seen(formatted()))

    def test_of_another_thread(self):
        self.loop.tick = 7
        lines = []
        thread = threading.Thread(target=lambda: lines.append(formatted()))
        thread.start()
        thread.join()
        # What runs there may still be about the worker, as nothing else runs.
        self.assertEqual(['expire', None, None, None],
                         list(self.seen(lines[0]).values()))

    def test_formatted_by_another_thread(self):
        self.loop.tick = 7
        record = logging.makeLogRecord({'thread': 1})
        line = parsed(JSONFormatter().format(record))
        self.assertIsNone(line['tick'])

    def test_of_another_thread_beside_two_loops(self):
        other = types.SimpleNamespace(name='mail')
        with current.running(other):
            record = logging.makeLogRecord({'thread': 1})
            line = parsed(JSONFormatter().format(record))
        self.assertIsNone(line['worker'])


class ConfiguredTests(Case):

    def lines(self):
        return [parsed(line) for line
                in (self.dir / 'event.log').read_text().splitlines()]

    def test_formatter_in_zope_conf(self):
        for more in ('', 'format %(message)s',
                     'style safe-template\nformat $$message',
                     'style format\nformat {message}'):
            self.configure(f'''
                <eventlog>
                  <logfile>
                    path {self.dir / 'event.log'}
                    formatter gocept.runner.JSONFormatter
                    {more}
                  </logfile>
                </eventlog>
                ''')
            self.root.warning('hello')
        self.assertEqual(['hello'] * 4,
                         [line['message'] for line in self.lines()])

    def test_formatter_of_a_file_for_logging(self):
        path = self.write('zope.ini', f'''
            [loggers]
            keys = root
            [handlers]
            keys = file
            [formatters]
            keys = json
            [logger_root]
            level = INFO
            handlers = file
            [handler_file]
            class = FileHandler
            args = ('{self.dir}/event.log',)
            formatter = json
            [formatter_json]
            class = gocept.runner.JSONFormatter
            ''')
        with contextlib.ExitStack() as undo:
            loggers.set_up(undo, 'zope.conf', log_config=str(path))
            self.root.info('hello')
        self.assertEqual(['hello'], [each['message'] for each in self.lines()])

    def configure_json(self, more):
        options = zopeconf.load(self.zope_conf(more))
        with Toolkit(Settings(log_format='json')).configured(options):
            pass

    def test_format_of_all_handlers(self):
        self.configure_json(f'''
            <eventlog>
              <logfile>
                path {self.dir / 'event.log'}
              </logfile>
            </eventlog>
            ''')
        self.root.info('\udcff')
        self.assertEqual([r'\udcff'],
                         [line['message'] for line in self.lines()])

    def test_format_of_standard_error(self):
        stderr = io.StringIO()
        with contextlib.redirect_stderr(stderr):
            self.configure_json('')
        self.root.info('hello')
        self.assertEqual('hello', parsed(stderr.getvalue())['message'])

    def test_formatters_are_put_back(self):
        handler = logging.NullHandler()
        before = logging.Formatter()
        handler.setFormatter(before)
        self.root.addHandler(handler)
        with contextlib.ExitStack() as undo:
            loggers.set_up(undo, 'zope.conf', log_format='json')
            self.assertIsInstance(handler.formatter,
                                  gocept.runner.JSONFormatter)
        self.assertIs(before, handler.formatter)
