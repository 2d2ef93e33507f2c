"""A temporary zope.conf."""

import contextlib
import gc
import io
import logging
import os
import pathlib
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor

import transaction
import zope.component
import zope.interface.verify
import zope.security.checker
from zope.app.appsetup import appsetup
from zope.app.appsetup.product import getProductConfiguration
from zope.authentication.interfaces import (
    IAuthentication,
    PrincipalLookupError,
)
from zope.component.hooks import getSite
from zope.configuration.exceptions import ConfigurationError
from zope.container.contained import Contained
from zope.security.management import getInteraction, queryInteraction
from zope.site.folder import Folder

import gocept.runner
from gocept.runner import errors
from gocept.runner.interfaces import IPoller, IRunner, IRunnerConfig
from gocept.runner.testing import runner_config
from gocept.runner.tests import support

work_name = f'{__name__}.declared'


@gocept.runner.once()
def declared(text='none'):
    getSite().text = text


class Shop(Folder):
    pass


class IConverter(zope.interface.Interface):
    pass


class TestCase(support.TestCase):

    def config(self, *args, **options):
        return self.enterContext(runner_config(*args, **options))


class RunnerConfigTests(TestCase):

    def test_keeps_its_contract(self):
        config = self.config()
        zope.interface.verify.verifyObject(IRunnerConfig, config)
        self.assertEqual(str(config.directory / 'zope.conf'), config.path)

    def test_the_directory_lives_as_long_as_the_block(self):
        with runner_config() as config:
            self.assertTrue(os.path.exists(config.path))
        self.assertFalse(config.directory.exists())

    def test_a_forked_child_removes_nothing(self):
        for leave in sys.exit, lambda: None, lambda: os._exit(0):
            with runner_config() as config:
                pid = os.fork()
                if not pid:
                    sys.stderr = io.StringIO()
                    leave()
                else:
                    self.assertEqual((pid, 0), os.waitpid(pid, 0))
                    self.assertTrue(os.path.exists(config.path))
        config = runner_config()
        pid = os.fork()
        if not pid:
            del config
            gc.collect()
            os._exit(0)
        self.assertEqual((pid, 0), os.waitpid(pid, 0))
        self.assertTrue(os.path.exists(config.path))
        config.close()
        config.close()

    def test_one_thread_at_a_time(self):
        def other():
            with self.assertRaisesRegex(RuntimeError, 'one thread at a time'):
                runner_config()
            with (self.assertRaisesRegex(RuntimeError, 'one thread at a time'),
                  config.site()):
                pass
        one, config = self.config(), self.config()
        with ThreadPoolExecutor(1) as thread:
            with one.site() as site:
                thread.submit(other).result(support.DEADLINE)
                with config.site():  # the same thread may
                    pass
                self.assertIs(site, getSite())
            self.assertEqual(0, thread.submit(config.run, declared).result(
                support.DEADLINE))

    def test_to_forget_it_is_a_mistake(self):
        config = runner_config()
        directory = config.directory
        with self.assertWarnsRegex(ResourceWarning, str(directory)):
            del config
            gc.collect()
        self.assertFalse(directory.exists())

    def test_the_site_is_made(self):
        with self.config().site() as site, self.config().root() as other:
            self.assertIsNone(site.__parent__)
            self.assertIsNot(site, other)
        config = self.config('shop')
        with config.site() as site:
            self.assertIs(site, getSite())
            self.assertEqual('shop', site.__name__)
            self.assertIs(Folder, type(site))
        with config.root() as root:
            self.assertIs(root, getSite())
            self.assertEqual(['shop'], list(root))
        with self.config('shop', factory=Shop).site() as site:
            self.assertIs(Shop, type(site))

    def test_a_factory_needs_a_name(self):
        with (self.assertRaisesRegex(ValueError, 'there is no name'),
              runner_config(factory=Shop)):
            """Not reached."""

    def test_what_cannot_be_a_site(self):
        with (self.assertRaises(AttributeError),
              runner_config('shop', factory=Contained)):
            """Not reached."""

    def test_set_up(self):
        def setup(site):
            self.assertIs(site, getSite())
            site.text = 'hello'
        for name in None, 'shop':
            with self.config(name, setup=setup).site() as site:
                self.assertEqual('hello', site.text)
        with (self.assertRaises(ZeroDivisionError),
              runner_config(setup=lambda site: 1 / 0)):
            """Not reached."""

    def test_the_block_is_a_transaction(self):
        config = self.config()
        with config.site() as site:
            site.text = 'kept'
        with self.assertRaises(ZeroDivisionError), config.site() as site:
            site.text = 'lost'
            raise ZeroDivisionError
        with config.site() as site:
            self.assertEqual('kept', site.text)
            site.text = 'undone'
            transaction.abort()
        with config.site() as site:
            self.assertEqual('kept', site.text)

    def test_one_block_at_a_time(self):
        config = self.config()
        with config.site():
            for call in (config.site, config.root):
                with (self.assertRaisesRegex(RuntimeError, 'is open already'),
                      call()):
                    """Not reached."""
            with self.assertRaisesRegex(RuntimeError, 'is open already'):
                config.run(declared)
        config.run(declared)

    def test_a_principal(self):
        config = self.config()
        with config.site():
            self.assertIsNone(queryInteraction())
        with config.site('zope.mgr'):
            principal = getInteraction().participations[0].principal
            self.assertEqual('zope.mgr', principal.id)
        self.assertIsNone(queryInteraction())
        with (self.assertRaises(PrincipalLookupError), config.site('nobody')):
            """Not reached."""

    def test_zcml_in_pieces(self):
        for zcml in (
                '<include package="zope.component" />',
                '<configure xmlns="http://namespaces.zope.org/zope" />',
                '''
                <?xml version="1.0" encoding="utf-8"?>
                <configure xmlns="http://namespaces.zope.org/zope">
                  <!-- J\xfcrgen -->
                </configure>'''):
            config = self.config(zcml=zcml)
            with config.site():
                self.assertEqual(
                    '<incl' in zcml,
                    zope.component.queryUtility(IRunner) is not None)

    def test_a_zcml_file(self):
        path = self.write('$here.zcml', '''
            <configure xmlns="http://namespaces.zope.org/zope">
              <include package="gocept.runner" />
            </configure>''')
        for zcml in path, str(path), os.path.relpath(path):
            with self.config(zcml=zcml).site():
                zope.component.getUtility(IPoller)

    def test_mistakes_in_zcml(self):
        for zcml, error in (
                ('<nonsense />', ConfigurationError),
                ('<include package="nonsense" />', ConfigurationError),
                ('<runner:app name="a" command="" />', ConfigurationError),
                ('missing.zcml', FileNotFoundError),
                (pathlib.Path('<missing>'), FileNotFoundError)):
            with (self.subTest(zcml), self.assertRaises(error),
                  runner_config(zcml=zcml)):
                """Not reached."""
        self.assertIsNone(appsetup.getConfigSource())

    def test_mistakes_in_zcml_are_told_in_one_line(self):
        with (self.assertRaises(ConfigurationError) as caught,
              runner_config(zcml='<include package="nonsense" />')):
            """Not reached."""
        self.assertRegex(
            str(caught.exception), "^Invalid value for 'package' .*nonsense")
        shown = traceback.format_exception(caught.exception)
        self.assertNotIn('zope/configuration', ''.join(shown))

    def test_product_configuration(self):
        values = {'text': 'a $b $$ # %c <d>', 'number': 3,
                  'path': pathlib.Path('/a/b'), 'float': 0.5, 'empty': ''}
        config = self.config(product_config={'one': values, 'two': {}})
        with config.site():
            self.assertEqual(
                {key: str(value) for key, value in values.items()},
                getProductConfiguration('one'))
            self.assertEqual({}, getProductConfiguration('two'))
        self.assertIsNone(getProductConfiguration('one'))

    def test_what_no_product_configuration_can_have(self):
        for value in 'a\nb', ' a', 'b ', 'a\n':
            with (self.subTest(value), self.assertRaisesRegex(
                    ValueError, '^product_config: one: key: zope.conf cannot'),
                  runner_config(product_config={'one': {'key': value}})):
                """Not reached."""

        for name in 'a b', 'a\n', '', '<a>', '#a', '%a', 'a(', '$a':
            for options in {name: {}}, {'one': {name: 'c'}}:
                with (self.subTest(options), self.assertRaisesRegex(
                        ValueError, 'zope.conf cannot have the name')):
                    runner_config(product_config=options)
        with self.assertRaisesRegex(TypeError, 'a dictionary of settings'):
            runner_config(product_config={'one': 'a'})

    def test_storage_and_more(self):
        config = self.config(
            storage='<demostorage>\n</demostorage>', more='''
            <zodb other>
              <mappingstorage>
              </mappingstorage>
            </zodb>
            <eventlog>
              <logfile>
                path $here/log
              </logfile>
            </eventlog>''')
        with config.site() as site:
            self.assertEqual({'', 'other'}, {*site._p_jar.db().databases})
            site.text = 'lost'
        with config.site() as site:
            self.assertFalse(hasattr(site, 'text'))
            logging.getLogger('test').warning('heard')
        logging.getLogger('test').warning('not heard')
        text = (config.directory / 'log').read_text()
        self.assertIn('heard', text)
        self.assertNotIn('not heard', text)


class RunTests(TestCase):

    def test_runs_a_program(self):
        config = self.config('shop')
        self.assertEqual(errors.SUCCESS, config.run(declared, 'hello'))
        with config.site() as site:
            self.assertEqual('hello', site.text)

    def test_what_a_program_raises_makes_the_status(self):
        @gocept.runner.once()
        def program(error):
            raise error
        config = self.config()
        self.assertEqual(
            errors.WORKER_FAILED, config.run(program, ValueError('bad')))
        self.assertEqual(7, config.run(program, SystemExit(7)))

    def test_what_keeps_a_program_from_its_first_tick(self):
        @gocept.runner.once(principal='nobody')
        def program():
            """Not reached."""
        config = self.config()
        with self.assertRaises(PrincipalLookupError):
            config.run(program)
        for args in ((), ('a',)):
            with self.assertRaisesRegex(TypeError, '^len is no program: it'):
                config.run(len, *args)
        with self.assertRaises(TypeError):
            config.run(program, 'a')

    def test_what_is_declared_of_a_worker(self):
        config = self.config(zcml=(
            f'<runner:worker name="work" handler="{work_name}" '
            'arguments="early" site="shop" lock="true" />'))
        for args, expected in ((), 'early'), (('late',), 'late'):
            self.assertEqual(0, config.run('work', *args))
            with config.root() as root:
                self.assertEqual(expected, root.text)
        self.assertEqual([], [*config.directory.glob('*.work.lock')])

    def test_declared_workers(self):
        config = self.config(
            zcml=f'<runner:worker name="work" handler="{work_name}" />')
        self.assertEqual(0, config.run('work', 'hello'))
        with config.site() as site:
            self.assertEqual('hello', site.text)
        with self.assertRaisesRegex(
                LookupError, "no worker 'play' is declared; there are: work"):
            config.run('play')
        with self.assertRaisesRegex(LookupError, 'there are: none'):
            self.config(zcml='<configure/>').run('play')

    def test_ticks(self):
        @gocept.runner.appmain(ticks=3600)
        def program():
            getSite().count = getattr(getSite(), 'count', 0) + 1
        config = self.config()
        self.assertEqual(3, config.run_ticks(program, ticks=3).committed)
        ticks = config.run_ticks(program, until=lambda: getSite().count == 5)
        self.assertEqual(2, ticks.committed)
        with self.assertRaisesRegex(AssertionError, 'has not ended'):
            config.run_ticks(program, timeout=0)

    def test_other_processes_see_the_database(self):
        config = self.config()
        program = self.program('''
            import sys
            import gocept.runner
            from zope.component.hooks import getSite

            @gocept.runner.once()
            def work():
                getSite().text = 'from there'

            sys.exit(work())
            ''', '--config', config.path)
        self.assertEqual(errors.SUCCESS, program.end(), program.output)
        with config.site() as site:
            self.assertEqual('from there', site.text)

    def test_children_are_ended(self):
        @gocept.runner.once()
        def program():
            runner = zope.component.getUtility(IRunner)
            runner.ensure_running('cat')
            found.append(runner.get_process('cat'))
        self.addCleanup(support.end_background)
        found = []
        config = self.config(zcml='<runner:app name="cat" command="cat" />')
        self.assertEqual(0, config.run(program))
        with config.site():
            program.worker()
            self.assertIsNone(found[1].poll())
        self.assertEqual([False, False],
                         [each.returncode is None for each in found])


class AsNewProcessTests(TestCase):
    """What is found in the process, and is there again afterwards."""

    def state(self):
        root = logging.getLogger()
        return (
            support.process_state(), list(root.handlers), root.level,
            appsetup.getConfigSource(), appsetup.getConfigContext(),
            appsetup._configured, sys.path[:],
            getProductConfiguration('mine'), getProductConfiguration('ours'),
            zope.component.queryUtility(IAuthentication),
            zope.component.queryUtility(IRunner),
            logging.getLogger('gocept.runner.environment').level)

    def test_all_is_put_back(self):
        zcml = self.write('site.zcml', '''
            <configure xmlns="http://namespaces.zope.org/zope">
              <include package="zope.component" />
            </configure>''')
        more = f'''
            path {self.dir}
            <eventlog>
              level debug
              <logfile>
                path {self.dir}/log
              </logfile>
              <logfile>
                path STDERR
              </logfile>
            </eventlog>
            '''
        self.enterContext(contextlib.redirect_stderr(io.StringIO()))
        for context in None, appsetup.config(str(zcml)):
            with self.subTest(context):
                if context is None:
                    appsetup.reset()
                before = self.state()
                with runner_config(
                        product_config={'mine': {'a': 'b'}}, more=more,
                        ) as config:
                    self.assertEqual(before, self.state())
                    with config.site():
                        self.assertNotEqual(before, self.state())
                        self.assertIn(str(self.dir), sys.path)
                    self.assertEqual(before, self.state())
                    config.run(declared)
                    with self.assertRaises(AssertionError):
                        config.run_ticks(declared, until=lambda: False)
                self.assertEqual(before, self.state())

    def test_components_of_the_test_are_there(self):
        utility = object()
        zope.component.provideUtility(utility, IConverter)
        with self.config().site():
            self.assertIs(utility, zope.component.getUtility(IConverter))

    def test_a_layer_that_has_loaded_the_same(self):
        appsetup.config(str(self.write('site.zcml', f"""
            <configure xmlns="http://namespaces.zope.org/zope">
              <include package="gocept.runner" file="site.zcml" />
              <include package="zope.security" file="meta.zcml" />
              <class class="{__name__}.Shop">
                <require permission="zope.Public" attributes="values" />
              </class>
            </configure>""")))
        before = self.state()
        checker = zope.security.checker.getCheckerForInstancesOf(Shop)
        self.assertIsNotNone(checker)
        with self.config(zcml=self.dir / 'site.zcml').site('zope.mgr'):
            self.assertIsNot(
                checker, zope.security.checker.getCheckerForInstancesOf(Shop))
        self.assertEqual(before, self.state())
        self.assertIs(
            checker, zope.security.checker.getCheckerForInstancesOf(Shop))

    def test_two_configurations_side_by_side(self):
        one, two = self.config(), self.config(zcml='<configure/>')
        for config in one, two, one, two:
            with config.site():
                self.assertEqual(
                    config is one,
                    zope.component.queryUtility(IRunner) is not None)

    def test_messages_go_where_the_test_has_them(self):
        @gocept.runner.once()
        def program():
            log.info('it works')
        log = logging.getLogger('test')
        config = self.config()
        with self.assertLogs('test', 'INFO') as logged:
            config.run(program)
        self.assertEqual(['INFO:test:it works'], logged.output)

    def test_warnings_go_to_standard_error(self):
        text = '''
            import logging
            from gocept.runner.testing import runner_config
            with runner_config() as config, config.site():
                logging.getLogger('test').info('not heard')
                logging.getLogger('test').warning('heard')
            logging.getLogger('test').warning('heard')
            '''
        program = self.program(text)
        self.assertEqual(0, program.end())
        self.assertEqual('heard\nheard\n', program.output)


