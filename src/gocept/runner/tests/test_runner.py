import contextlib
import inspect
import io
import logging
import math
import signal
from unittest import mock

import transaction
import zope.component
import zope.component.event
import zope.component.hooks
import zope.event
import zope.security.management
import zope.site.folder
import zope.site.site
from zope.app.appsetup.product import (
    restoreConfiguration,
    saveConfiguration,
    setProductConfiguration,
)

import gocept.runner
from gocept.runner import Exit, appmain, from_config, once
from gocept.runner.boot import zopeconf
from gocept.runner.runner import init
from gocept.runner.tests.support import TestCase

LOGGER = 'gocept.runner.runner'
LOG = logging.getLogger(LOGGER)


class DecoratorTests(TestCase):

    def test_keeps_name_doc_and_module(self):
        @appmain()
        def worker():
            """Do it."""
        self.assertEqual(('worker', 'Do it.', __name__),
                         (worker.__name__, worker.__doc__, worker.__module__))
        self.assertEqual(['appname', 'configfile', 'args'],
                         list(inspect.signature(worker).parameters))

    def test_needs_parentheses(self):
        with self.assertRaisesRegex(TypeError, 'use parentheses'):
            @appmain
            def worker():
                pass

        @once
        def other():
            pass
        for arguments in ((), (None, 'zope.conf')):
            with self.assertRaisesRegex(TypeError, 'use parentheses'):
                other(*arguments)
        with self.assertRaisesRegex(ValueError, 'attempts'):
            once(attempts=0)

    def test_ticks_must_be_seconds(self):
        for ticks in (-1, 'x', None, math.nan):
            with self.assertRaisesRegex(
                    ValueError, '^ticks: needs a number of seconds >= 0, not'):
                appmain(ticks=ticks)

    def test_other_numbers_of_seconds(self):
        for name in ('tick_timeout', 'max_backoff', 'shutdown_timeout',
                     'watch_interval'):
            with self.subTest(name), self.assertRaisesRegex(
                    ValueError, f'^{name}: needs a number of seconds >= 0, '
                                'not True$'):
                appmain(**{name: True})

    def test_keywords_of_schedules_and_timeouts(self):
        for keywords, message in (
                ({'ticks': 1, 'schedule': '* * * * *'},
                 'either ticks or a schedule'),
                ({'watch': list, 'schedule': '* * * * *'}, 'watch as well'),
                ({'jitter': 3}, 'the worker has none'),
                ({'missed': 'all'}, "missed is 'skip' or 'once', not 'all'"),
                ({'tick_timeout': 0}, 'tick_timeout must be more than 0'),
                ({'tick_timeout_action': 'kill'},
                 "tick_timeout_action is 'log' or 'abort', not 'kill'"),
                ({'tick_timeout_action': 'abort'},
                 'is about tick_timeout, and the worker has none')):
            with self.assertRaisesRegex(ValueError, message):
                appmain(**keywords)
        decorator = once(tick_timeout=3, tick_timeout_action='abort',
                         lock=True)
        self.assertTrue(decorator.lock)
        loop = decorator.loop(None, list)
        self.assertEqual((3, 'abort'),
                         (loop.tick_timeout, loop.tick_timeout_action))
        self.assertEqual(1, appmain().ticks)

    def test_attributes_of_a_subclass(self):
        class patient(appmain):
            tick_timeout = 7

            def __init__(self):
                self.ticks, self.principal, self.attempts = 1, None, 3
                self.max_backoff = 60

        self.assertEqual(7, patient().loop(None, list).tick_timeout)

    def test_runs_in_the_root_folder(self):
        sites = []

        @once()
        def worker():
            sites.append(zope.component.hooks.getSite())
        with self.assertPutBack():
            self.assertIsNone(worker(None, self.zope_conf()))
        self.assertEqual('Folder', type(sites[0]).__name__)

    def test_runs_in_the_named_object(self):
        conf = self.zope_conf()
        with init(None, conf) as app:
            site = app['a-site'] = zope.site.folder.Folder()
            site.setSiteManager(zope.site.site.LocalSiteManager(site))
            app['not'] = zope.site.folder.Folder()
            transaction.commit()
        names = []

        @once()
        def worker():
            names.append(zope.component.hooks.getSite().__name__)
        worker('a-site', conf)
        worker(appname='a-site', configfile=conf)
        self.assertEqual(['a-site'] * 2, names)
        with self.assertRaisesRegex(
                gocept.runner.errors.NotASiteError,
                "'not' in the root folder is a Folder without"):
            worker('not', conf)
        with self.assertPutBack(), self.assertRaises(KeyError) as caught:
            worker('missing', conf)
        self.assertEqual("the root folder has no object 'missing'",
                         str(caught.exception))

    def test_arguments(self):
        seen = []

        @once()
        def worker(path, encoding='utf-8'):
            seen.append((path, encoding))
        conf = self.zope_conf()
        worker(None, conf, 'file')
        worker(None, conf, 'file', 'ascii')
        self.assertEqual([('file', 'utf-8'), ('file', 'ascii')], seen)
        with self.assertRaisesRegex(TypeError, "argument: 'path'"):
            worker(None, conf)
        with self.assertRaisesRegex(TypeError, 'too many'):
            worker(None, conf, '1', '2', '3')

    def test_one_of_two_arguments_is_an_error(self):
        @once()
        def worker():
            pass
        for arguments in ({'appname': None}, {'configfile': 'x'}):
            with self.assertRaisesRegex(TypeError, 'or neither'):
                worker(**arguments)

    def test_the_status_of_a_failed_once(self):
        @once()
        def worker():
            raise ValueError
        with self.assertLogs(LOGGER):
            self.assertEqual(1, worker(None, self.zope_conf()))

    def test_a_worker_that_ended_itself(self):
        @appmain()
        def worker():
            raise SystemExit(3)
        self.assertIsNone(worker(None, self.zope_conf()))

    def test_a_worker_that_was_interrupted(self):
        @appmain()
        def worker():
            raise KeyboardInterrupt
        self.assertIsNone(worker(None, self.zope_conf()))

    def test_what_once_returns_where_the_worker_ended_itself(self):
        for error, status in [(SystemExit(3), 3), (SystemExit(), None),
                              (SystemExit('text'), 1),
                              (KeyboardInterrupt(), 130)]:
            @once()
            def worker(error=error):
                raise error
            self.assertEqual(status, worker(None, self.zope_conf()))

    def test_what_once_returns_where_an_item_ended_itself(self):
        conf = self.zope_conf()
        for error, status in [(SystemExit(3), 3), (SystemExit(), 1),
                              (SystemExit(0), 1), (KeyboardInterrupt(), 130)]:
            @once()
            @gocept.runner.transaction_per_item
            def worker(error=error):
                yield mock.Mock(side_effect=error)
                yield lambda: self.fail('this item is not run')
            with self.assertLogs('gocept.runner', 'INFO') as logs:
                self.assertEqual(status, worker(None, conf))
            lines = [line for line in logs.output if ' raised by ' in line]
            self.assertEqual(1, len(lines), lines)

    def test_the_exit_of_a_worker_is_logged(self):
        @appmain()
        def worker():
            raise SystemExit(3)
        with self.assertLogs('gocept.runner', 'INFO') as logs:
            worker(None, self.zope_conf())
        self.assertIn("INFO:gocept.runner.runner:SystemExit(3) raised by "
                      "worker 'worker', so the loop ends", logs.output)

    def test_what_once_returns_where_the_transaction_was_doomed(self):
        @once()
        def worker():
            transaction.doom()

        @once()
        @gocept.runner.transaction_per_item
        def items():
            yield transaction.doom

        @once()
        @gocept.runner.transaction_per_item(on_failure='ignore')
        def ignored():
            yield transaction.doom
        conf = self.zope_conf()
        for program, status in (worker, 1), (items, 1), (ignored, None):
            with self.assertLogs('gocept.runner.transaction',
                                 'WARNING') as logs:
                self.assertEqual(status, program(None, conf))
            self.assertIn(' was doomed', logs.output[0])

    def test_what_once_returns_after_a_signal(self):
        @once()
        @gocept.runner.transaction_per_item
        def worker():
            yield lambda: signal.raise_signal(signal.SIGTERM)
            yield lambda: self.fail('this item is not run')
        self.assertEqual(128 + 15, worker(None, self.zope_conf()))

    def test_log_files_may_be_rotated_while_it_boots(self):
        conf = self.zope_conf()
        load = zopeconf.load

        def load_late(configfile):
            signal.raise_signal(signal.SIGUSR2)  # would end the process
            return load(configfile)
        with mock.patch.object(zopeconf, 'load', load_late):
            self.assertIsNone(once()(lambda: None)(None, conf))

    def test_from_config(self):
        conf = self.zope_conf('''
            <product-config worker>
              user zope.mgr
            </product-config>
            ''')
        seen = []

        @once(principal=from_config('worker', 'user'))
        def worker():
            [request] = (zope.security.management.getInteraction()
                         .participations)
            seen.append(request.principal.id)
        with contextlib.redirect_stderr(io.StringIO()):
            worker(None, conf)
        self.assertEqual(['zope.mgr'], seen)
        with self.assertRaisesRegex(KeyError, 'has no <product-config other>'):
            from_config('other', 'user')()
        with self.assertRaisesRegex(KeyError, 'other'):
            from_config('worker', 'other')()  # a section without it

    def test_an_interrupt_before_the_command_line_is_read(self):
        @appmain()
        def worker():
            """Never called."""
        with (contextlib.redirect_stderr(io.StringIO()) as stderr,
              mock.patch('gocept.runner.cli.worker.parser_of',
                         side_effect=KeyboardInterrupt)):
            self.assertEqual([130, 130], [worker.main(), worker()])
        self.assertEqual('worker: interrupted\n' * 2, stderr.getvalue())

    def test_from_config_where_names_have_capitals(self):
        conf = self.zope_conf('''
            <product-config Shop>
              User zope.mgr
            </product-config>
            <eventlog>
            </eventlog>
            ''')
        with init(None, conf):
            for section, variable in ('Shop', 'User'), ('shop', 'user'):
                self.assertEqual('zope.mgr',
                                 from_config(section, variable)())
        # Code may have set others.
        self.addCleanup(restoreConfiguration, saveConfiguration())
        setProductConfiguration('Shop', {'User': 'of the code'})
        self.assertEqual('of the code', from_config('Shop', 'User')())
        self.assertEqual('zope.mgr', from_config('shop', 'user')())
        with self.assertRaisesRegex(KeyError, 'of zope.conf has no Other'):
            from_config('Shop', 'Other')()


class InitTests(TestCase):

    def test_hands_out_the_root_folder(self):
        conf = self.zope_conf()
        with self.assertPutBack():
            with init(None, conf) as app:
                app['x'] = zope.site.folder.Folder()
                transaction.commit()
                app['y'] = zope.site.folder.Folder()
            with init(None, conf) as app:
                self.assertEqual(['x'], list(app))

    def test_a_site_that_the_caller_has_set_is_no_obstacle(self):
        with self.assertPutBack():
            with init(None, self.zope_conf()) as app:
                zope.component.hooks.setSite(app)

    def test_closes_after_an_exception(self):
        with self.assertPutBack(), self.assertRaises(ZeroDivisionError):
            with init(None, self.zope_conf()) as app:
                app['y'] = zope.site.folder.Folder()
                raise ZeroDivisionError


class NamesTests(TestCase):

    def test_public_names(self):
        for name in gocept.runner.__all__:
            self.assertIn(name, dir(gocept.runner))
            self.assertTrue(getattr(gocept.runner, name))
        with self.assertRaisesRegex(AttributeError, "no attribute 'nothing'"):
            gocept.runner.nothing

    def test_exit_says_what_it_is(self):
        self.assertEqual('gocept.runner.Exit', repr(Exit))

    def test_the_lower_floors_read_no_zcml(self):
        # The contracts in .importlinter see all of zope as one package.
        program = self.program('''
            import sys
            import gocept.runner, gocept.runner.spawn, gocept.runner.testing
            print({'zope.configuration', 'zope.schema'} & set(sys.modules))
            ''')
        self.assertEqual(0, program.end())
        self.assertEqual('set()\n', program.output)


class PortableTests(TestCase):
    """A worker runs on any POSIX system; only children need Linux."""

    def test_a_worker_without_what_only_linux_has(self):
        self.zope_conf()
        program = self.program('''
            import ctypes
            import os
            import select
            import signal
            import time

            class CDLL(ctypes.CDLL):
                def __getattr__(self, name):
                    if name == 'sigaction':
                        raise AttributeError(name)
                    return super().__getattr__(name)

            ctypes.CDLL = CDLL
            del os.pidfd_open, signal.pidfd_send_signal, time.CLOCK_BOOTTIME
            for name in dir(select):
                if name.lower().startswith('epoll'):
                    delattr(select, name)

            import gocept.runner
            from zope.component.hooks import getSite

            @gocept.runner.appmain(ticks=0.01)
            def worker():
                site = getSite()
                site.count = getattr(site, 'count', 0) + 1
                if site.count == 3:
                    print('the third tick', flush=True)

            print(worker(None, 'zope.conf'))
            ''')
        program.wait_for('the third tick')
        program.send(signal.SIGTERM)
        self.assertEqual(0, program.end(), program.output)
        self.assertTrue(program.output.endswith('None\n'), program.output)
        with init(None, self.zope_conf()) as app:
            self.assertLessEqual(3, app.count)
