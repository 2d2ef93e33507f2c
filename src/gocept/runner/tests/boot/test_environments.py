import contextlib
import importlib.metadata
import types
from unittest import mock

import persistent
import transaction
import ZODB
import zope.component
import zope.event
import zope.interface.verify
from ZODB.POSException import ConflictError

import gocept.runner
from gocept.runner.boot import environments, zopeconf
from gocept.runner.boot import program as boot
from gocept.runner.boot.environments import Settings, choose
from gocept.runner.boot.metadata import Metadata
from gocept.runner.errors import ConfigurationError, UsageError
from gocept.runner.events import LoopStopped, TickCommitted
from gocept.runner.interfaces import ICurrentSite, IEnvironment
from gocept.runner.runner import MainLoop, init
from gocept.runner.tests.support import TestCase


class Plain:
    """An environment that notes which factory has made it."""

    def __init__(self, name):
        self.name = name


class Kind:
    """A factory of another package."""

    def __init__(self, name, *words):
        self.name = name
        self.words = frozenset(words)

    def __call__(self, settings):
        environment = Plain(self.name)
        environment.settings = settings
        return environment


def replaced(**more):
    """Kinds that can be made without a database, with the words of ours."""
    return mock.patch.object(environments, 'BUILT_IN', {
        name: Kind(name, *kind.words)
        for name, kind in environments.BUILT_IN.items()})


class Case(TestCase):

    further = ()

    def setUp(self):
        super().setUp()
        self.enterContext(replaced())
        self.look_up = self.enterContext(mock.patch.object(
            environments, 'further',
            side_effect=lambda: {kind.name: kind for kind in self.further}))

    def chosen(self, text, **settings):
        path = self.write('zope.conf', text)
        return choose(path, Settings(**settings)).name


class ChoiceTests(Case):

    def test_a_file_of_the_toolkit(self):
        self.assertEqual('toolkit', self.chosen('''
            site-definition site.zcml
            <zodb>
              <mappingstorage>
              </mappingstorage>
            </zodb>
            '''))
        self.look_up.assert_not_called()

    def test_a_file_of_zope(self):
        for text in ('instancehome /tmp', 'Debug-Mode off',
                     '<zodb_db main>\n</zodb_db>',
                     '<environment>\nX y\n</environment>'):
            self.assertEqual('zope', self.chosen(text))
        self.look_up.assert_not_called()

    def test_a_file_without_a_telling_word(self):
        for text in ('', '# nothing', '<zodb>\n</zodb>',
                     '<product-config x>\ninstancehome x\n</product-config>'):
            self.assertEqual('toolkit', self.chosen(text))

    def test_a_file_that_is_not_there(self):
        for path in self.dir, self.dir / 'missing.conf':
            self.assertEqual('toolkit', choose(path).name)

    def test_a_file_that_is_not_in_utf_8(self):
        (self.dir / 'zope.conf').write_bytes(b'# \xff\ninstancehome x')
        self.assertEqual('toolkit', choose(self.dir / 'zope.conf').name)

    def test_words_of_both(self):
        with self.assertRaisesRegex(
                ConfigurationError,
                r"zope.conf has words of several kinds of applications: "
                r"'eventlog' \(toolkit\), 'zodb_db' \(zope\); say with "
                '--application'):
            self.chosen('<eventlog>\n</eventlog>\n<zodb_db main>\n</zodb_db>')
        self.assertEqual('zope', self.chosen(
            '<eventlog />\n<zodb_db main>\n</zodb_db>', application='zope'))

    def test_tabs(self):
        self.assertEqual('zope', self.chosen(
            '<zodb_db\tmain>\n\tmount-point\t/\n</zodb_db>'))

    def test_included_files(self):
        self.write('more.conf', '<zodb_db main>\n</zodb_db>')
        for text in ('%include more.conf', '%include $here/more.conf',
                     f'%define DIR {self.dir}\n%include ${{dir}}/more.conf',
                     f'%include file://{self.dir}/more.conf',
                     '%define\tNAME\tmore\n%include\t$name.conf'):
            self.assertEqual('zope', self.chosen(text))
        for text in ('%include missing.conf', '%include $missing/x.conf',
                     '%include zope.conf', '%import ZODB',
                     '<x>\n  %include more.conf\n</x>'):
            self.assertEqual('toolkit', self.chosen(text))

    def test_a_kind_that_there_is_not(self):
        self.further = Kind('other'),
        with self.assertRaisesRegex(
                UsageError, "no kind of application 'django'; there are: "
                'other, toolkit, zope'):
            self.chosen('', application='django')

    def test_a_package_that_is_not_installed(self):
        path = self.write('zope.conf', 'instancehome x')
        with (mock.patch.dict(environments.BUILT_IN, zope=mock.Mock(
                words={'instancehome'},
                side_effect=ModuleNotFoundError("No module named 'Zope2'"))),
              self.assertRaisesRegex(
                  ConfigurationError,
                  f"^{path} is that of an application of the kind zope, which "
                  "needs a package that is not installed: No module named "
                  "'Zope2'")):
            choose(path)


class FurtherTests(Case):

    further = Kind('other', 'other-home', 'instancehome'),

    def test_by_its_name(self):
        self.assertEqual('other', self.chosen('', application='other'))

    def test_by_a_word(self):
        self.assertEqual('other', self.chosen('other-home x'))

    def test_what_all_know_is_not_asked(self):
        self.assertEqual('zope', self.chosen('instancehome x'))
        self.look_up.assert_not_called()

    def test_what_nobody_knows(self):
        self.assertEqual('toolkit', self.chosen('eventlogg x'))


class WordsTests(TestCase):

    def test_those_of_the_toolkit_are_those_of_its_schema(self):
        schema = zopeconf._schema()
        names = set()
        for name, info in schema:
            if info.issection():
                names.update(each.name for each in (
                    info.sectiontype._subtypes.values()
                    if info.sectiontype.isabstract() else [info.sectiontype]))
            else:
                names.add(name)
        self.assertEqual(
            names, environments.BUILT_IN['toolkit'].words)


class CurrentTests(Case):

    def setUp(self):
        super().setUp()
        self.enterContext(environments.nothing_set_up())

    def test_where_nothing_is_set_up(self):
        self.assertEqual('toolkit', environments.current().name)

    def test_it_stays(self):
        zope = Plain('zope')
        with environments.setting_up(zope):
            self.assertIs(zope, environments.current())
        self.assertIs(zope, environments.current())
        with environments.nothing_set_up():
            self.assertEqual('toolkit', environments.current().name)
        self.assertIs(zope, environments.current())

    def test_not_after_an_error(self):
        with self.assertRaises(ZeroDivisionError), \
                environments.setting_up(Plain('zope')):
            1 / 0
        self.assertEqual('toolkit', environments.current().name)

    def test_another_kind(self):
        with environments.setting_up(Plain('zope')):
            pass
        with self.assertRaisesRegex(
                ConfigurationError, 'in a process of its own'), \
                environments.setting_up(Plain('toolkit')):
            self.fail('not reached')


@zope.interface.implementer(ICurrentSite)
class TinyAttempts:
    """Notes what is asked of it, and knows no site."""

    def __init__(self, app, principal, name):
        self.app = app
        self.components = zope.component.getGlobalSiteManager()
        self._principal = principal
        self._name = name

    def __enter__(self):
        self._begin = Metadata(self._principal(), self._name).begin
        seen.append(('entered', self._principal()))
        return self

    def __exit__(self, *error):
        seen.append('left')

    def begin(self):
        self._begin()
        seen.append('begin')

    def begin_item(self):
        self._begin()
        seen.append('begin_item')

    def end(self):
        seen.append('end')


@zope.interface.implementer(IEnvironment)
class Tiny:
    """Applications whose root is any object, and has no site manager."""

    name = 'tiny'
    words = frozenset(['tiny-home'])

    def __init__(self, settings):
        self.settings = settings

    def load(self, configfile):
        return types.SimpleNamespace(
            configfile=configfile, site_definition=None, built_in=False)

    @contextlib.contextmanager
    def configured(self, options, *, verbose=0, logs=True):
        seen.append('configured')
        yield

    @contextlib.contextmanager
    def opened(self, options, *, create=True, opening=contextlib.nullcontext):
        with (opening(), contextlib.closing(ZODB.DB(None)) as database,
              contextlib.closing(database.open()) as connection):
            connection.root()['tiny'] = persistent.Persistent()
            transaction.commit()
            yield connection.root()['tiny']
            transaction.abort()
            seen.append('closed')

    def find_site(self, root, path):
        return root

    def find_principal(self, principal):
        return f'<{principal}>'

    def entered(self, app, principal, name, replaced):
        return TinyAttempts(app, principal, name)

    def product_configuration(self, section):
        return {'colour': 'green'} if section == 'tiny' else None


seen = []


class TinyTests(TestCase):
    """All of a worker, in an environment of another package."""

    def setUp(self):
        super().setUp()
        seen.clear()
        point = importlib.metadata.EntryPoint(
            'tiny', f'{__name__}:Tiny', environments.GROUP)
        self.enterContext(mock.patch(
            'importlib.metadata.entry_points', return_value=[point]))
        self.conf = str(self.write('zope.conf', 'tiny-home x'))

    def test_the_contract(self):
        tiny = Tiny(Settings())
        zope.interface.verify.verifyObject(IEnvironment, tiny)
        with tiny.entered(None, lambda: None, '', print) as attempts:
            zope.interface.verify.verifyObject(ICurrentSite, attempts)

    def test_a_tick(self):
        @gocept.runner.once(principal='ann')
        def work():
            seen.append(transaction.get().user)
            transaction.get().addAfterCommitHook(
                lambda success: seen.append('committed'))
        self.assertIsNone(work(None, self.conf))
        self.assertEqual([
            'configured', ('entered', 'ann'), 'begin', '/ ann', 'committed',
            'end', 'left', 'closed'], seen)

    def test_it_is_found_by_its_name(self):
        @gocept.runner.once(application='tiny')
        def work():
            seen.append('work')
        work(None, str(self.write('zope.conf', '')))
        self.assertIn('work', seen)

    def test_a_worker_for_another_kind(self):
        program = gocept.runner.once(application='toolkit')(lambda: None)
        with self.assertRaisesRegex(
                UsageError, '<lambda> is a worker for applications of the '
                'kind toolkit, and this one is of the kind tiny'):
            boot.run(lambda: program, (), None,
                     boot.configuration(self.conf))

    def test_attempts_and_pauses(self):
        def work():
            seen.append('work')
            if seen.count('work') == 1:
                raise ConflictError
            if seen.count('work') == 3:
                raise ValueError
            return gocept.runner.Exit if seen.count('work') > 3 else None
        with init(None, self.conf) as app:
            loop = MainLoop(app, 0.001, work)
            wait = loop._pause

            def pause(*args):
                seen.append('pause')
                wait(*args)
            with (mock.patch.object(loop, '_pause', pause),
                  self.assertLogs('gocept.runner')):
                loop()
        self.assertEqual([
            'begin', 'work', 'end', 'begin', 'work', 'end', 'pause',
            'begin', 'work', 'end', 'pause', 'begin', 'work', 'end', 'left',
            'closed'], seen[2:])

    def test_events_come_before_the_end_of_the_attempt(self):
        zope.event.subscribers.append(seen.append)
        self.addCleanup(zope.event.subscribers.remove, seen.append)
        gocept.runner.once()(lambda: None)(None, self.conf)
        self.assertEqual(
            ['begin', TickCommitted, 'end', LoopStopped, 'left'],
            [each if isinstance(each, str) else type(each)
             for each in seen if isinstance(each, (
                 str, TickCommitted, LoopStopped))][1:-1])

    def test_items(self):
        @gocept.runner.once()
        @gocept.runner.transaction_per_item(attempts=2)
        def work():
            yield lambda: seen.append(1)
            yield conflict
            yield lambda: seen.append(3)

        def conflict():
            seen.append(2)
            if seen.count(2) == 1:
                raise ConflictError
        with self.assertLogs('gocept.runner'):
            work(None, self.conf)
        self.assertEqual([
            'begin', 1, 'begin_item', 2, 'begin_item', 2, 'begin_item', 3,
            'begin_item', 'end', 'left', 'closed'], seen[2:])

    def test_a_loop_of_its_own(self):
        class Own(MainLoop):
            def __call__(self):
                for end in self.commit, self.abort:
                    self.begin()
                    self.worker()
                    end()
        with init(None, self.conf) as app:
            loop = Own(app, 0, lambda: seen.append('work'), 'ann')
            loop()
            self.assertEqual('<ann>', loop.principal)
        self.assertEqual([
            ('entered', 'ann'), 'begin', 'work', 'end', 'left'] * 2,
            seen[1:-1])

    def test_a_user(self):
        user = types.SimpleNamespace(getId=lambda: 'ann')
        with init(None, self.conf) as app:
            loop = MainLoop(app, 0, lambda: None, lambda: user, once=True)
            loop()
            self.assertEqual('ann', loop.principal_id)
        self.assertIn(('entered', user), seen)

    def test_product_configuration(self):
        find = gocept.runner.from_config('Tiny', 'Colour')
        with init(None, self.conf):
            self.assertEqual('green', find())
        with self.assertRaisesRegex(KeyError, 'no <product-config other>'):
            gocept.runner.from_config('other', 'x')()
