"""What the directives register, and how they refuse what is wrong."""

import contextlib
import gc
import os
import signal
import ssl
import subprocess
from collections.abc import Mapping
from typing import Any

import zope.component
from zope.configuration.exceptions import ConfigurationError
from zope.interface.verify import verifyObject

from gocept.runner import executor, runner
from gocept.runner.boot import messages, zopeconf
from gocept.runner.boot.toolkit import Toolkit
from gocept.runner.executor import Condition, SimpleExecutor
from gocept.runner.executor.conditions.answer import Question
from gocept.runner.interfaces import (
    IExecutor,
    IPoller,
    IRunner,
    ISupervisor,
)
from gocept.runner.spawn.application import Application
from gocept.runner.tests.declaring import DeclaringTestCase, attributes, zcml
from gocept.runner.tests.support import (
    DEADLINE,
    open_descriptors,
    reset_process,
)
from gocept.runner.tests.victims import until
from gocept.runner.zcml.supervisor import Supervisor
from gocept.runner.zcml.utilities import WorkerPoller, WorkerRunner

HERE = __name__


class Recording(SimpleExecutor):
    """An executor class of one's own."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        self.arguments = args, keywords
        popen = {**keywords.pop('popen_kwargs')}
        super().__init__(*args, popen_kwargs=popen, **{
            key: value for key, value in keywords.items()
            if key not in ('port', 'banner')})


class Always(Condition):
    """A condition of one's own."""


always = Always()

ssl_context = ssl.create_default_context()

popen_kwargs = {'umask': 0o27, 'pipesize': 65536}
new_session = {'start_new_session': True}
our_group = {'process_group': os.getpgid(0)}

not_a_dictionary = 3


def expect(response: Any) -> bool:
    return True


def plain() -> None:
    """A worker without a decorator."""


@runner.appmain(ticks=7, principal='zope.mgr', attempts=2, max_backoff=9,
                shutdown_timeout=11)
def decorated() -> None:
    """A worker with one."""


@runner.once(principal='zope.mgr')
def decorated_once() -> None:
    """Another one."""


OF_SCHEDULE = {'schedule': '0 2 * * *', 'timezone': 'Asia/Tokyo', 'jitter': 7,
               'missed': 'once'}


@runner.appmain(lock=True, **OF_SCHEDULE)
def decorated_schedule() -> None:
    """One at times."""


def with_arguments(mode: str, rest: str = '') -> None:
    """One with arguments."""


class CanBeCalled:
    def __call__(self) -> None:
        """A worker that is an object."""


instance = CanBeCalled()


class DirectiveTestCase(DeclaringTestCase):

    def assertWrong(self, body: str, *expected: str, line: int = 2,
                    file: str = 'site.zcml', **options: str) -> None:
        """It is refused, with file and line, and on one line."""
        with self.assertRaises(ConfigurationError) as caught:
            self.load(body, **options)
        error = caught.exception
        self.assertIn(f'File "{self.dir}/{file}", line {line}.', str(error))
        message = messages.message(error)
        self.assertNotIn('\n', message)
        for text in expected:
            self.assertIn(text, message)


class IncludeTests(DirectiveTestCase):

    def test_the_utilities(self) -> None:
        self.load('')
        for interface, kind in ((IPoller, WorkerPoller),
                                (IRunner, WorkerRunner),
                                (ISupervisor, Supervisor)):
            with self.subTest(interface):
                utility = zope.component.getUtility(interface)
                self.assertIs(kind, type(utility))
                verifyObject(interface, utility)
        zope.component.getUtility(IPoller).close()

    def test_the_directives_alone(self) -> None:
        meta = '<include package="gocept.runner" file="meta.zcml" />'
        self.assertIsNone(self.load('', meta))
        for body in ('<runner:app name="a" command="cat" />',
                     '<runner:executor name="a" command="cat" />',
                     f'<runner:worker name="a" handler="{HERE}:plain" />'):
            with self.subTest(body):
                self.assertWrong(
                    body, '<include package="gocept.runner" />',
                    include=meta)

    def test_an_include_that_comes_too_late(self) -> None:
        self.assertWrong('''
            <runner:app name="a" command="cat" />
            <include package="gocept.runner" />
            ''', 'before this directive',
            include='<include package="gocept.runner" file="meta.zcml" />')

    def test_it_may_be_included_more_than_once(self) -> None:
        self.write('part.zcml', zcml('<runner:app name="b" command="cat" />'))
        supervisor = self.load('''
            <runner:app name="a" command="cat" />
            <include package="gocept.runner" />
            <include file="part.zcml" />
            ''')
        self.assertEqual({'a', 'b'}, {*supervisor.children})

    def test_utilities_of_ones_own(self) -> None:
        # As zope.component has it, what is nearer overrides.
        self.write('overrides.zcml', zcml(
            '<utility factory="gocept.runner.poller.Poller"'
            ' provides="gocept.runner.interfaces.IPoller" />'))
        self.load('<includeOverrides file="overrides.zcml" />')
        poller = zope.component.getUtility(IPoller)
        self.addCleanup(poller.close)
        self.assertNotIsInstance(poller, WorkerPoller)
        with zope.component.getUtility(ISupervisor).running(30):
            pass
        self.assertFalse(poller.closed)  # it is not ours


class AppTests(DirectiveTestCase):

    def assertConfigured(self, written: Mapping[str, str],
                         **keywords: Any) -> None:
        keywords = {'command': 'cat', **keywords}
        if 'setpgrp' not in keywords:
            keywords['setsid'] = True
        self.load('<runner:app name="a" ' + attributes(
            **{'command': 'cat', **written}) + ' />')
        self.assertEqual(Application.from_config(keywords),
                         self.runner._application('a', None, {}))

    def test_the_least(self) -> None:
        supervisor = self.load('<runner:app name="a" command="cat -n" />')
        child = supervisor.children['a']
        self.assertEqual(
            ('app', 'a', False, (), 'cat -n'),
            (child.kind, child.name, child.eager, child.requires,
             child.description))
        self.assertEqual(Application.from_config({'command': 'cat -n',
                                                  'setsid': True}),
                         self.runner._application('a', None, {}))

    def test_all_attributes(self) -> None:
        self.assertConfigured(
            {'type': 'socket', 'socket': 'house.sock', 'start_timeout': '5',
             'buffering': 'line', 'encoding': 'utf-8', 'limit': '10',
             'high_water': '20', 'restart': 'on-failure',
             'restart_delay': '0.5', 'restart_limit': '7',
             'transactional': 'true', 'redeliveries': 'none',
             'shell': 'true', 'cwd': '/tmp', 'env': 'A=1', 'extra_env': 'B=2',
             'user': str(os.getuid()), 'group': str(os.getgid()),
             'extra_groups': f'{os.getgid()}', 'umask': '027',
             'rlimits': 'core=0:-1 nofile=64', 'setpgrp': 'false',
             'setsid': 'true', 'stdin': 'null', 'stdout': 'pipe',
             'stderr': 'merge', 'pass_fds': '1 2', 'stop_signal': 'HUP',
             'stop_timeout': '3', 'kill_signal': 'ABRT',
             'die_with_parent': 'TERM', 'adopt': 'true',
             'popen_kwargs': f'{HERE}:popen_kwargs'},
            type='socket', socket='house.sock', start_timeout=5,
            buffering='line', encoding='utf-8', limit=10, high_water=20,
            restart='on-failure', restart_delay=0.5, restart_limit=7,
            transactional=True, redeliveries=None,
            shell=True, cwd='/tmp', env={'A': '1'}, extra_env={'B': '2'},
            user=os.getuid(), group=os.getgid(), extra_groups=[os.getgid()],
            umask=0o27, rlimits={'core': (0, -1), 'nofile': 64},
            setpgrp=False, setsid=True, stdin='null', stdout='pipe',
            stderr='merge', pass_fds=[1, 2], stop_signal=signal.SIGHUP,
            stop_timeout=3, kill_signal=signal.SIGABRT,
            die_with_parent=signal.SIGTERM, adopt=True,
            popen_kwargs=popen_kwargs)

    def test_a_detached_one(self) -> None:
        self.assertConfigured({'detached': 'true', 'setpgrp': 'yes'},
                              detached=True, setpgrp=True)

    def test_the_group_of_the_child(self) -> None:
        for written, is_own in (
                ('', True), ('setsid="true"', True), ('detached="true"', True),
                (f'popen_kwargs="{HERE}:new_session"', True),
                (f'popen_kwargs="{HERE}:our_group"', False),
                ('setpgrp="false"', False)):
            with self.subTest(written):
                supervisor = self.load(
                    f'<runner:app name="a" command="cat" {written} />')
                with supervisor.running(30):
                    self.runner.get_channel('a')
                    pid = self.runner.get_process('a').pid
                    self.assertEqual(
                        pid if is_own else os.getpgid(0), os.getpgid(pid))
                reset_process()

    def test_a_worker_that_changes_the_directory(self) -> None:
        (self.dir / 'sub').mkdir()
        with contextlib.chdir(self.dir):
            supervisor = self.load('''
                <runner:app name="a" shell="true" buffering="line"
                    command="pwd; echo error >&amp;2; read x; exit 3"
                    restart="on-failure" restart_delay="0"
                    stderr="./errors" />
                <runner:app name="b" command="pwd" cwd="sub"
                    buffering="line" />
                ''')
        with supervisor.running(30):
            for _ in range(2):  # a restart, too
                channel = self.runner.get_channel('a')
                self.assertEqual((str(self.dir).encode(), b'\n'),
                                 channel.read_until(b'\n', DEADLINE))
                process = self.runner.get_process('a')
                channel.write(b'\n')
                until(lambda: self.runner.get_process('a') is not process)
            self.assertEqual(
                f'{self.dir}/sub', self.runner.get_channel('b').read_until(
                    b'\n', DEADLINE)[0].decode())
        self.assertIn('error', (self.dir / 'errors').read_text())

    def test_the_child_has_no_terminal(self) -> None:
        supervisor = self.load('<runner:app name="a" command="cat" />')
        with supervisor.running(30):
            self.runner.get_channel('a')
            pid = self.runner.get_process('a').pid
            self.assertEqual(pid, os.getsid(pid))

    def test_it_is_started_as_it_is_declared(self) -> None:
        supervisor = self.load(f'''
            <runner:app name="a" shell="true" command="echo $A; umask; pwd"
                buffering="line" encoding="utf-8" extra_env="A='the value'"
                umask="027" cwd="{self.dir}" />
            ''')
        with supervisor.running(30):
            channel = self.runner.get_channel('a')
            for expected in ('the value\n', '0027\n', f'{self.dir}\n'):
                self.assertEqual(
                    ('', expected), channel.read_until(expected, 60))

    def test_wrong_values(self) -> None:
        for written, expected in (
                ({'start': 'soon'}, "'soon' is none of lazy, eager"),
                ({'type': 'tcp'}, "'tcp' is none of stdio, socket"),
                ({'start_timeout': '-1'}, "'-1' is no number of seconds"),
                ({'limit': '0'}, 'limit must be a number >= 1'),
                ({'limit': 'much'}, "'much'"),
                ({'encoding': 'nonsense'}, 'unknown encoding: nonsense'),
                ({'buffering': 'word'}, "'word' is none of bytes, line"),
                ({'socket': '/tmp/x'}, "needs type='socket'"),
                ({'type': 'socket'}, 'needs socket=PATH'),
                ({'user': 'no-such-user'}, "no user 'no-such-user'"),
                ({'group': 'no-such-group'}, "no group 'no-such-group'"),
                ({'umask': 'rwx'}, "'rwx' is no mask"),
                ({'shell': 'maybe'}, "'maybe' is neither true nor false"),
                ({'die_with_parent': 'NO-SUCH'}, "no signal 'NO-SUCH'"),
                ({'die_with_parent': 'true', 'detached': 'true'},
                 'leave out die_with_parent'),
                ({'stop_signal': '0'}, "no signal '0'"),
                ({'rlimits': 'doors=3'}, "no resource limit 'doors'"),
                ({'rlimits': 'core=1:2:3'}, 'two with a colon'),
                ({'env': 'A'}, "'A' is not written NAME=VALUE"),
                ({'stdin': 'merge'}, "not 'merge'"),
                ({'stdout': 'file'}, "not 'file'"),
                ({'restart': 'perhaps'},
                 "'perhaps' is none of never, on-failure, always"),
                ({'restart_limit': '-1'}, 'restart_limit must be'),
                ({'popen_kwargs': f'{HERE}:no_such_name'}, 'no_such_name'),
                ({'popen_kwargs': f'{HERE}:not_a_dictionary'}, 'TypeError'),
                ({'command': ''}, 'the value is empty'),
                ({'command': 'cat "'}, 'No closing quotation'),
                ({'cwd': '${product-config:house:dir}'},
                 'zope.conf has no <product-config house>'),
                ({'poller': 'mine'}, "unknown attributes 'poller'"),
                ({'banner': 'ready'}, "unknown attributes 'banner'"),
        ):
            with self.subTest(written):
                self.assertWrong('<runner:app name="a" ' + attributes(
                    **{'command': 'cat', **written}) + ' />', expected)

    def test_what_is_missing(self) -> None:
        self.assertWrong('<runner:app name="a" />', "'command'")
        self.assertWrong('<runner:app command="cat" />', "'name'")
        self.assertWrong('<runner:app name="" command="cat" />',
                         "'name'", 'the value is empty')


class ExecutorTests(DirectiveTestCase):

    def assertMade(self, expected: SimpleExecutor, **written: str) -> Any:
        """The utility is like the one that Python code would make."""
        supervisor = self.load('<runner:executor name="a" ' + attributes(
            **{'command': 'cat', **written}) + ' />')
        it = zope.component.getUtility(IExecutor, 'a')
        verifyObject(IExecutor, it)
        self.assertIs(it, supervisor.children['a'].it)
        self.assertEqual(self.state(expected), self.state(it))
        return it

    def state(self, it: Any) -> Any:
        """All that there is to be known of an executor that never ran."""
        if isinstance(it, SimpleExecutor | Condition | Question):
            return type(it), {
                name: self.state(value) for name, value in vars(it).items()
                if name != '_changing'}
        return it

    def test_the_least(self) -> None:
        self.assertMade(SimpleExecutor('cat', name='a'))
        self.assertMade(SimpleExecutor('cat', name='a'), type='simple')

    def test_its_name(self) -> None:
        it = self.assertMade(SimpleExecutor('cat', name='a'))
        self.assertEqual('a', it.name)

    def test_the_description(self) -> None:
        supervisor = self.load('''
            <runner:executor name="a" type="tcp" host="127.0.0.1" port="0"
                command="serve {port}" start="eager" />
            ''')
        child = supervisor.children['a']
        # The port is another one each time.
        self.assertEqual(
            ('executor', 'a', True, 'serve {port}'),
            (child.kind, child.name, child.eager, child.description))
        self.assertRegex(child.it.command, r'^serve \d+$')

    def test_the_registration_tells_where_it_is_declared(self) -> None:
        self.load('<runner:executor name="a" command="cat" />')
        [info] = [each.info for each in
                  zope.component.getGlobalSiteManager().registeredUtilities()
                  if each.provided is IExecutor]
        self.assertEqual((f'{self.dir}/site.zcml', 2), (info.file, info.line))

    def test_what_all_have(self) -> None:
        self.assertMade(
            SimpleExecutor(
                'cat -n', name='a', cwd='/tmp', shell=True, timeout=20,
                sleep=0.5, stop_signal=signal.SIGHUP,
                kill_signal=signal.SIGABRT, expected_returncode=3,
                envvars={'A': '1', 'B': 'two words'}, stdin=None,
                stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT,
                stop_timeout=2.5, output_size=100,
                log_file='/tmp/log', die_with_parent=signal.SIGTERM),
            command='cat -n', cwd='/tmp', shell='true', timeout='20',
            sleep='0.5', stop_signal='HUP', kill_signal='ABRT',
            expected_returncode='3', envvars='A=1 B="two words"',
            stdin='inherit', stdout='null', stderr='merge',
            stop_timeout='2.5', output_size='100', log_file='/tmp/log',
            die_with_parent='TERM')

    def test_what_popen_gets(self) -> None:
        us = os.getuid(), os.getgid()
        self.assertMade(
            SimpleExecutor('cat', name='a', popen_kwargs={
                'user': us[0], 'group': us[1], 'extra_groups': [us[1]],
                'umask': 0o77}),
            user=str(us[0]), group=str(us[1]), extra_groups=str(us[1]),
            umask='077')
        # What is said twice is as it is said there.
        self.assertMade(
            SimpleExecutor('cat', name='a', popen_kwargs={
                'umask': 0o27, 'pipesize': 65536}),
            umask='077', popen_kwargs=f'{HERE}:popen_kwargs')
        self.assertEqual({'umask': 0o27, 'pipesize': 65536}, popen_kwargs)

    def test_each_type(self) -> None:
        for expected, written in (
                (executor.OutputExecutor('cat', '^ready', name='a'),
                 {'type': 'output', 'banner': '^ready'}),
                (executor.OutputExecutor(
                    'cat', 'ready', failure='^no', name='a'),
                 {'type': 'output', 'banner': 'ready', 'failure': '^no'}),
                (executor.TCPExecutor('cat', '127.0.0.1', 8999, name='a'),
                 {'type': 'tcp', 'host': '127.0.0.1', 'port': '8999'}),
                (executor.TCPExecutor(
                    'cat', '127.0.0.1', 8999, send=b'PING\r\n',
                    expect='PONG:1', name='a'),
                 {'type': 'tcp', 'host': '127.0.0.1', 'port': '8999',
                  'send': r'PING\r\n', 'expect': 'PONG:1'}),
                (executor.PostgreSQLExecutor('cat', '/tmp', name='a'),
                 {'type': 'postgresql', 'host': '/tmp'}),
                (executor.PostgreSQLExecutor(
                    'cat', '127.0.0.1', 8999, user='me', dbname='mine',
                    stop_signal=signal.SIGTERM, name='a',
                    popen_kwargs={'user': 'root'}),
                 {'type': 'postgresql', 'host': '127.0.0.1', 'port': '8999',
                  'dbuser': 'me', 'dbname': 'mine', 'user': 'root',
                  'stop_signal': 'TERM'}),
                (executor.RedisExecutor('cat', '/tmp/sock', name='a'),
                 {'type': 'redis', 'host': '/tmp/sock'}),
                (executor.RedisExecutor(
                    'cat', '127.0.0.1', 8999, password='x y', name='a'),
                 {'type': 'redis', 'host': '127.0.0.1', 'port': '8999',
                  'password': 'x y'}),
                (executor.HTTPExecutor(
                    'cat', 'http://127.0.0.1:8999/ok', name='a'),
                 {'type': 'http', 'url': 'http://127.0.0.1:8999/ok'}),
                (executor.HTTPExecutor(
                    'cat', 'https://127.0.0.1:8999/ok', 404, 'POST',
                    {'a': '1'}, {'Accept': 'text/plain'}, 2.5,
                    ssl_context=ssl_context, expect=expect, name='a'),
                 {'type': 'http', 'url': 'https://127.0.0.1:8999/ok',
                  'status': '404', 'method': 'POST', 'payload': 'a=1',
                  'headers': 'Accept=text/plain', 'request_timeout': '2.5',
                  'ssl_context': f'{HERE}:ssl_context',
                  'expect': f'{HERE}:expect'}),
                (executor.HTTPExecutor(
                    'cat', 'http://127.0.0.1:8999/ok', '^[23]', name='a'),
                 {'type': 'http', 'url': 'http://127.0.0.1:8999/ok',
                  'status': '^[23]'}),
                (executor.PidExecutor('cat', '/tmp/pid', name='a'),
                 {'type': 'pid', 'filename': '/tmp/pid'}),
                (executor.UnixSocketExecutor('cat', '/tmp/sock', name='a'),
                 {'type': 'unix', 'socket_name': '/tmp/sock'}),
                (executor.UnixSocketExecutor(
                    'cat', '/tmp/sock', send=b'?', expect='^!', name='a'),
                 {'type': 'unix', 'socket_name': '/tmp/sock', 'send': '?',
                  'expect': '^!'}),
                (executor.ConditionExecutor(
                    'cat', executor.notified(), name='a'),
                 {'type': 'notified'}),
                (executor.ConditionExecutor(
                    'cat', executor.exits_zero('true -x "a b"'), name='a'),
                 {'type': 'probe', 'probe': 'true -x "a b"'}),
                (executor.ConditionExecutor('cat', always, name='a'),
                 {'type': 'condition', 'condition': f'{HERE}:always'}),
        ):
            with self.subTest(written):
                self.assertMade(expected, **written)

    def test_all_types_are_tested(self) -> None:
        from gocept.runner.zcml import IExecutorDirective
        from gocept.runner.zcml.directives import _KINDS
        tested = {'simple', 'output', 'tcp', 'http', 'pid', 'unix',
                  'postgresql', 'redis', 'notified', 'probe', 'condition'}
        self.assertEqual(tested, {*_KINDS})
        self.assertEqual(tested, {
            each.value for each in IExecutorDirective['type'].vocabulary})

    def test_a_class_of_ones_own(self) -> None:
        supervisor = self.load(f'''
            <runner:executor name="a" class="{HERE}.Recording" port="80"
                command="cat -n" banner="x" umask="022" start="eager" />
            ''')
        it = supervisor.children['a'].it
        self.assertIs(Recording, type(it))
        self.assertEqual(
            (('cat -n',), {'name': 'a', 'port': 80, 'banner': 'x'}),
            it.arguments)
        self.assertEqual(0o22, it._popen['umask'])

    def test_what_a_class_expects(self) -> None:
        for expected, written in (
                (executor.TCPExecutor('cat', 'h', 1, expect='P.NG', name='a'),
                 {'host': 'h', 'port': '1', 'expect': 'P.NG'}),
                (executor.HTTPExecutor(
                    'cat', 'http://h:1', expect=expect, name='a'),
                 {'url': 'http://h:1', 'expect': f'{HERE}:expect'})):
            kind = type(expected).__name__
            self.assertMade(expected, **written, **{
                'class': f'gocept.runner.executor.{kind}'})

    def test_a_class_that_is_none(self) -> None:
        for name, expected in (
                ('builtins.dict', ''), (f'{HERE}.not_a_dictionary', 'int'),
                (f'{HERE}.NoSuchClass', 'NoSuchClass'),
                (f'{HERE}.make_nothing', 'None is no executor')):
            with self.subTest(name):
                self.assertWrong(
                    f'<runner:executor name="a" command="cat"'
                    f' class="{name}" />', expected)

    def test_a_class_and_a_type(self) -> None:
        self.assertWrong(
            f'<runner:executor name="a" command="cat" type="simple"'
            f' class="{HERE}.Recording" />',
            '"class" and "type" exclude each other')

    def test_a_keyword_that_a_class_does_not_know(self) -> None:
        self.assertWrong(
            '<runner:executor name="a" command="cat" port="80"'
            ' class="gocept.runner.executor.SimpleExecutor" />', "'port'")

    def test_what_a_type_needs(self) -> None:
        for kind, needed in (
                ('output', 'banner'), ('tcp', 'host'), ('http', 'url'),
                ('pid', 'filename'), ('unix', 'socket_name'),
                ('postgresql', 'host'), ('redis', 'host'),
                ('probe', 'probe'), ('condition', 'condition')):
            with self.subTest(kind):
                self.assertWrong(
                    f'<runner:executor name="a" command="x" type="{kind}" />',
                    f'an executor of type "{kind}" needs "{needed}"')
        self.assertWrong(
            '<runner:executor name="a" command="x" type="tcp" host="h" />',
            'needs "port"')

    def test_what_a_type_has_not(self) -> None:
        for written, expected in (
                ({'banner': 'x'}, 'type "simple" has no "banner"'),
                ({'expect': 'x'}, 'type "simple" has no "expect"'),
                ({'type': 'redis', 'host': 'h', 'expect': 'x'},
                 'type "redis" has no "expect"'),
                ({'type': 'notified', 'url': 'http://127.0.0.1:1'},
                 'type "notified" has no "url"'),
                ({'type': 'http', 'url': 'http://127.0.0.1:1', 'port': '1'},
                 'type "http" has no "port"')):
            with self.subTest(written):
                self.assertWrong('<runner:executor name="a" ' + attributes(
                    command='cat', **written) + ' />', expected)

    def test_wrong_values(self) -> None:
        for written, expected in (
                ({'start': 'soon'}, "'soon' is none of lazy, eager"),
                ({'type': 'udp'}, "'udp' is none of simple, output, tcp"),
                ({'timeout': 'long'}, 'long'),
                ({'sleep': '-1'}, "'-1' is no number of seconds >= 0"),
                ({'output_size': '-1'}, 'output_size must be a number >= 0'),
                ({'stop_signal': 'NO-SUCH'}, "no signal 'NO-SUCH'"),
                ({'die_with_parent': 'x'}, "no signal 'x'"),
                ({'stdin': 'merge'}, "'merge' is none of"),
                ({'stdout': 'file'}, "'file' is none of"),
                ({'envvars': '=1'}, "'=1' is not written NAME=VALUE"),
                ({'user': 'no-such-user'}, "no user 'no-such-user'"),
                ({'group': 'no-such-group'}, "no group 'no-such-group'"),
                ({'extra_groups': '0 no-such-group'},
                 "no group 'no-such-group'"),
                ({'umask': '8'}, "'8' is no mask"),
                ({'popen_kwargs': f'{HERE}:not_a_dictionary'}, 'TypeError'),
                ({'type': 'output', 'banner': '('}, 'unterminated subpattern'),
                ({'type': 'tcp', 'host': '127.0.0.1', 'port': '65536'},
                 '65536'),
                ({'type': 'tcp', 'expect': '('}, "Invalid value for 'expect'"),
                ({'type': 'tcp', 'expect': '('}, 'unterminated subpattern'),
                ({'type': 'tcp', 'send': 'ä'}, "'ä' is not written in ASCII"),
                ({'type': 'postgresql', 'host': '/tmp', 'port': '0'},
                 'any but 0'),
                ({'type': 'http', 'expect': 'no.such:function'},
                 "Couldn't import no.such"),
                ({'type': 'http', 'url': 'ftp://127.0.0.1'}, 'is no URL'),
                ({'type': 'http', 'url': 'http://127.0.0.1:1',
                  'status': '('}, 'unterminated subpattern'),
                ({'type': 'condition', 'condition': f'{HERE}:plain'},
                 'is no condition'),
                ({'type': 'probe', 'probe': '"'}, 'No closing quotation'),
                ({'command': 'cat "'}, 'No closing quotation'),
                ({'command': ''}, 'the value is empty'),
                ({'log_file': ''}, 'the value is empty'),
                ({'restart': 'always'}, "'restart'"),
        ):
            with self.subTest(written):
                self.assertWrong('<runner:executor name="a" ' + attributes(
                    **{'command': 'cat', **written}) + ' />', expected)


def make_nothing(*args: Any, **keywords: Any) -> None:
    pass


class RequiresTests(DirectiveTestCase):

    def test_of_apps_and_executors(self) -> None:
        supervisor = self.load('''
            <runner:app name="a" command="cat" requires="b c" />
            <runner:executor name="b" command="cat" requires="c" />
            <runner:app name="c" command="cat" />
            ''')
        a, b, c = (supervisor.children[name] for name in 'abc')
        self.assertEqual((('b', 'c'), ('c',), ()),
                         (a.requires, b.requires, c.requires))
        self.assertEqual(((b.it, c.it), (c.it,), ()),
                         (a.it.requires, b.it.requires, c.it.requires))

    def test_many_paths_to_one(self) -> None:
        # Each of two requires both of the next two.
        supervisor = self.load(''.join(
            f'<runner:app name="{side}{number}" command="cat" requires="'
            + (f'a{number + 1} b{number + 1}' if number < 40 else '')
            + '" />' for number in range(41) for side in 'ab'))
        self.assertEqual(82, len(supervisor.children))

    def test_names_with_spaces(self) -> None:
        supervisor = self.load('''
            <runner:app name="a" command="cat" requires="'the cat'" />
            <runner:executor name="the cat" command="cat" />
            ''')
        self.assertEqual(('the cat',), supervisor.children['a'].requires)

    def test_what_stands_in_a_file_that_comes_later(self) -> None:
        self.write('part.zcml', zcml('<runner:app name="b" command="cat" />'))
        supervisor = self.load('''
            <runner:executor name="a" command="cat" requires="b" />
            <include file="part.zcml" />
            ''')
        self.assertEqual((supervisor.children['b'].it,),
                         zope.component.getUtility(IExecutor, 'a').requires)

    def test_what_is_not_there(self) -> None:
        self.assertWrong('''
            <runner:app name="other" command="cat" />
            <runner:app name="a" command="cat" requires="nobody" />
            ''', "app 'a' requires 'nobody'", 'there are: a, other', line=3)
        # A worker is nothing that can be required.
        self.assertWrong(f'''
            <runner:worker name="w" handler="{HERE}:plain" />
            <runner:executor name="a" command="cat" requires="w" />
            ''', "executor 'a' requires 'w'", line=3)

    def test_those_that_require_each_other(self) -> None:
        self.assertWrong(
            '<runner:app name="a" command="cat" requires="a" />',
            'require each other', "app 'a'")
        self.assertWrong('''
            <runner:app name="a" command="cat" requires="b" />
            <runner:executor name="b" command="cat" requires="c" />
            <runner:app name="c" command="cat" requires="a" />
            ''', 'require each other', "app 'a'", "executor 'b'", "app 'c'",
            line=4)


class NameTests(DirectiveTestCase):

    def assertConflict(self, body: str, *lines: int) -> None:
        with self.assertRaises(ConfigurationError) as caught:
            self.load(body)
        for line in lines:
            self.assertIn(f'File "{self.dir}/site.zcml", line {line}.',
                          str(caught.exception))
        self.assertIn('Conflicting configuration actions',
                      messages.message(caught.exception))

    def test_a_name_that_is_used_twice(self) -> None:
        app = '<runner:app name="a" command="cat" />\n'
        executor = '<runner:executor name="a" command="cat" />\n'
        for first, second in ((app, app), (executor, executor),
                              (app, executor), (executor, app)):
            self.assertConflict(first + second, 2, 3)
        worker = f'<runner:worker name="a" handler="{HERE}:plain" />\n'
        self.assertConflict(worker + worker, 2, 3)

    def test_a_worker_may_be_called_as_an_app_is(self) -> None:
        supervisor = self.load(f'''
            <runner:app name="a" command="cat" />
            <runner:worker name="a" handler="{HERE}:plain" />
            ''')
        self.assertEqual((['a'], ['a']), ([*supervisor.children],
                                          [*supervisor.workers]))


class OverrideTests(DirectiveTestCase):

    def load_over(self, over: str) -> Any:
        self.write('base.zcml', zcml(f'''
            <runner:app name="a" command="cat" start="eager"
                requires="nobody" />
            <runner:executor name="b" command="cat" />
            <runner:worker name="w" handler="{HERE}:plain" ticks="1" />
            '''))
        self.write('over.zcml', zcml(over))
        return self.load('''
            <include file="base.zcml" />
            <includeOverrides file="over.zcml" />
            ''')

    def test_all_kinds(self) -> None:
        supervisor = self.load_over(f'''
            <runner:app name="a" command="cat -n" requires="b" />
            <runner:executor name="b" command="cat" type="notified" />
            <runner:worker name="w" handler="{HERE}:plain" ticks="2" />
            ''')
        a, b = supervisor.children['a'], supervisor.children['b']
        self.assertEqual(('cat -n', False, ('b',)),
                         (a.description, a.eager, a.requires))
        self.assertIs(executor.ConditionExecutor, type(b.it))
        self.assertIs(b.it, zope.component.getUtility(IExecutor, 'b'))
        self.assertEqual(2, supervisor.workers['w'].decorator.ticks)

    def test_an_app_by_an_executor(self) -> None:
        supervisor = self.load_over(
            '<runner:executor name="a" command="cat" requires="b" />')
        self.assertEqual('executor', supervisor.children['a'].kind)
        self.assertRaises(KeyError, self.runner.start, 'a')

    def test_an_executor_by_an_app(self) -> None:
        supervisor = self.load_over('''
            <runner:app name="a" command="cat" />
            <runner:app name="b" command="cat" />
            ''')
        self.assertEqual('app', supervisor.children['b'].kind)
        self.assertIsNone(zope.component.queryUtility(IExecutor, 'b'))

    def test_a_mistake_in_what_overrides(self) -> None:
        with self.assertRaises(ConfigurationError) as caught:
            self.load_over(
                '\n<runner:app name="a" command="cat" requires="no-one" />')
        self.assertIn("'no-one'", str(caught.exception))
        self.assertIn('over.zcml", line 2.', str(caught.exception))
        self.assertNotIn('base.zcml', str(caught.exception))


class WorkerTests(DirectiveTestCase):

    def worker(self, handler: str, **written: str) -> Any:
        """What is registered."""
        supervisor = self.load('<runner:worker name="w" ' + attributes(
            handler=f'{HERE}:{handler}', **written) + ' />')
        return supervisor.workers['w']

    def assertOptions(self, worker: Any, **expected: object) -> None:
        expected = {
            'ticks': 1, 'principal': None, 'attempts': 3, 'max_backoff': 60,
            'shutdown_timeout': 30, 'once': False, 'application': None,
            'watch': None, 'watch_interval': 0.5, 'schedule': None,
            'timezone': None, 'jitter': 0, 'missed': 'skip', 'lock': False,
            'tick_timeout': None, 'tick_timeout_action': 'log', **expected}
        self.assertEqual(expected, {
            name: getattr(worker.decorator, name) for name in expected})
        self.assertEqual({*expected} - {'once'},
                         {*vars(runner.appmain())})
        self.assertIsInstance(worker.decorator, runner.appmain)

    def test_a_plain_function(self) -> None:
        worker = self.worker('plain')
        self.assertIs(plain, worker.worker)
        self.assertOptions(worker)

    def test_all_options(self) -> None:
        self.assertOptions(
            self.worker('plain', ticks='0.5', principal='zope.mgr',
                        once='true', attempts='5', max_backoff='6',
                        shutdown_timeout='7', watch=f'{HERE}:plain',
                        watch_interval='8'),
            ticks=0.5, principal='zope.mgr', once=True, attempts=5,
            max_backoff=6, shutdown_timeout=7, watch=plain, watch_interval=8)

    def test_a_function_with_a_decorator(self) -> None:
        worker = self.worker('decorated')
        self.assertIs(decorated.worker, worker.worker)
        self.assertIsNot(decorated, worker.worker)
        self.assertOptions(worker, ticks=7, principal='zope.mgr', attempts=2,
                           max_backoff=9, shutdown_timeout=11)

    def test_what_zcml_says_comes_before_the_decorator(self) -> None:
        self.assertOptions(
            self.worker('decorated', ticks='1', attempts='4'),
            ticks=1, principal='zope.mgr', attempts=4, max_backoff=9,
            shutdown_timeout=11)
        # The decorator is another one's as well.
        self.assertEqual(7, decorated.decorator.ticks)
        self.assertOptions(self.worker('decorated', once='true'), once=True,
                           ticks=7, principal='zope.mgr', attempts=2,
                           max_backoff=9, shutdown_timeout=11)

    def test_a_schedule(self) -> None:
        written = {'schedule': '0 2 * * *', 'timezone': 'Asia/Tokyo',
                   'missed': 'once'}
        worker = self.worker('plain', jitter='2.5', lock='true',
                             tick_timeout='60', tick_timeout_action='abort',
                             **written)
        self.assertOptions(worker, jitter=2.5, lock=True, tick_timeout=60,
                           tick_timeout_action='abort', **written)
        # In place of the ticks of the decorator.
        self.assertOptions(self.worker('decorated', **written),
                           principal='zope.mgr', attempts=2, max_backoff=9,
                           shutdown_timeout=11, **written)

    def test_the_schedule_of_a_decorator(self) -> None:
        self.assertOptions(
            self.worker('decorated_schedule'), lock=True, **OF_SCHEDULE)
        self.assertOptions(
            self.worker('decorated_schedule', lock='false', schedule='@daily'),
            **{**OF_SCHEDULE, 'schedule': '@daily'})
        self.assertOptions(
            self.worker('decorated_schedule', ticks='1'), lock=True)
        self.assertOptions(
            self.worker('decorated_schedule', once='true'), lock=True,
            once=True, **OF_SCHEDULE)

    def test_a_schedule_in_place_of_one_tick(self) -> None:
        self.assertOptions(
            self.worker('decorated_once', once='false', schedule='@daily'),
            principal='zope.mgr', schedule='@daily')

    def test_one_tick_at_each_time_of_a_schedule(self) -> None:
        self.assertOptions(
            self.worker('decorated_once', schedule='@daily'),
            principal='zope.mgr', once=True, schedule='@daily')
        self.assertOptions(
            self.worker('plain', once='true', schedule='@daily'),
            once=True, schedule='@daily')

    def test_site_and_arguments(self) -> None:
        worker = self.worker('plain')
        self.assertEqual((None, ()), (worker.site, worker.arguments))
        worker = self.worker('with_arguments', site='intranet/news',
                             arguments="fast 'and good'")
        self.assertEqual(('intranet/news', ['fast', 'and good']),
                         (worker.site, worker.arguments))

    def test_one_that_runs_once(self) -> None:
        self.assertOptions(self.worker('decorated_once'), once=True,
                           principal='zope.mgr')
        self.assertOptions(self.worker('decorated_once', once='false'),
                           principal='zope.mgr')
        self.assertTrue(decorated_once.decorator.once)

    def test_an_object_that_can_be_called(self) -> None:
        self.assertIs(instance, self.worker('instance').worker)

    def test_a_decorated_one_can_be_called_as_before(self) -> None:
        self.assertEqual('decorated', decorated.__name__)
        self.assertRaises(TypeError, decorated, 'name')

    def test_no_such_handler(self) -> None:
        self.write('broken_handler.py', 'raise RuntimeError("at import")')
        for handler, expected in (
                ('no_such_module:run', 'no_such_module'),
                (f'{HERE}:no_such_function', 'no_such_function'),
                (f'{HERE}:not_a_dictionary',
                 'the handler is not callable: 3'),
                ('', ''), ('*', 'the handler is not callable: None')):
            with self.subTest(handler):
                self.assertWrong(
                    f'<runner:worker name="w" handler="{handler}" />',
                    expected)

    def test_a_module_that_cannot_be_imported(self) -> None:
        package = self.dir / 'broken_package'
        package.mkdir()
        for name, text, expected in (
                ('raising', 'raise RuntimeError("at import")', 'at import'),
                ('unparsable', 'def :', 'invalid syntax'),
                ('importing', 'import no_such_module', 'no_such_module')):
            with self.subTest(name):
                (package / f'{name}.py').write_text(text)
                options = zopeconf.load(self.zope_conf(f'''
                    path {self.dir}
                    site-definition {self.dir}/site.zcml
                    '''))
                self.write('site.zcml', '').write_text(zcml(
                    '<runner:worker name="w"'
                    f' handler="broken_package.{name}:run" />'))
                with self.assertRaises(ConfigurationError) as caught:
                    with Toolkit().configured(options, logs=False):
                        pass
                self.assertIn(expected, str(caught.exception))
                self.assertIn(f'{self.dir}/site.zcml", line 2.',
                              str(caught.exception))

    def test_wrong_values(self) -> None:
        for written, expected in (
                ({'ticks': '-1'}, "'-1' is no number of seconds >= 0"),
                ({'attempts': '0'}, '0'),
                ({'max_backoff': 'nan'}, "'nan' is no number of seconds"),
                ({'shutdown_timeout': 'soon'}, 'soon'),
                ({'once': 'twice'}, "'twice' is neither true nor false"),
                ({'principal': ''}, 'the value is empty'),
                ({'watch': 'os:sep'}, '"watch" is not callable: \'/\''),
                ({'watch_interval': '0'}, 'must be more than 0 seconds'),
                ({'schedule': '0 25 * * *'}, "bad hour '25'"),
                ({'schedule': '@daily', 'timezone': 'Mars'},
                 "there is no time zone 'Mars'"),
                ({'schedule': '@daily', 'ticks': '1'},
                 'a worker has either ticks or a schedule'),
                ({'schedule': '@daily', 'watch': f'{HERE}:plain'},
                 'cannot have watch as well'),
                ({'schedule': '@daily', 'missed': 'twice'},
                 "'twice' is none of skip, once"),
                ({'schedule': '@daily', 'jitter': '-1'},
                 "'-1' is no number of seconds >= 0"),
                *(({name: value}, 'timezone, jitter and missed are about a ')
                  for name, value in (('timezone', 'UTC'), ('jitter', '1'),
                                      ('missed', 'once'))),
                ({'lock': 'twice'}, "'twice' is neither true nor false"),
                ({'tick_timeout': '0'}, 'must be more than 0 seconds'),
                ({'tick_timeout_action': 'kill'},
                 "'kill' is none of log, abort"),
                ({'tick_timeout_action': 'abort'},
                 'is about tick_timeout, and the worker has none'),
                ({'site': ''}, 'the value is empty'),
                ({'arguments': 'one'},
                 'the arguments do not fit the handler: too many'),
                ({'arguments': '"one'}, 'No closing quotation'),
                ({'start': 'eager'}, "'start'")):
            with self.subTest(written):
                self.assertWrong('<runner:worker name="w" ' + attributes(
                    handler=f'{HERE}:plain', **written) + ' />', expected)

    def test_what_is_missing(self) -> None:
        self.assertWrong('<runner:worker name="w" />', "'handler'")
        self.assertWrong(f'<runner:worker handler="{HERE}:plain" />',
                         "'name'")


class LeftBehindTests(DirectiveTestCase):
    """ZCML that fails leaves nothing that was registered before."""

    def setUp(self) -> None:
        super().setUp()
        self.options = zopeconf.load(self.zope_conf(
            f'site-definition {self.dir}/site.zcml'))

    def configure(self, body: str) -> Any:
        self.write('site.zcml', '').write_text(zcml(body))
        with Toolkit().configured(self.options, logs=False):
            return zope.component.queryUtility(ISupervisor)

    DECLARED = f'''
        <runner:app name="a" command="cat" start="eager" />
        <runner:executor name="b" command="cat" type="tcp"
            host="127.0.0.1" port="0" start="eager" />
        <runner:worker name="w" handler="{HERE}:plain" />
        '''

    def test_utilities_and_descriptors(self) -> None:
        components = zope.component.getGlobalSiteManager()
        before = list(components.registeredUtilities()), open_descriptors()
        with self.assertRaises(ConfigurationError):
            self.configure(
                self.DECLARED
                + '<runner:app name="c" command="cat" requires="nobody" />')
        gc.collect()
        self.assertEqual(before, (
            list(components.registeredUtilities()), open_descriptors()))

    def test_it_can_be_loaded_when_it_is_mended(self) -> None:
        for wrong in ('<runner:app name="c" />',
                      '<runner:app name="a" command="cat" />',
                      '<runner:app name="c" command="cat" requires="x" />',
                      '<runner:worker name="v" handler="no_such:x" />'):
            with self.assertRaises(ConfigurationError):
                self.configure(self.DECLARED + wrong)
            self.assertIsNone(zope.component.queryUtility(ISupervisor))
        supervisor = self.configure(self.DECLARED)
        self.assertEqual((['a', 'b'], ['w']), (
            [*supervisor.children], [*supervisor.workers]))
        # It was read; again nothing is done.
        self.assertIs(supervisor, self.configure('<nonsense />'))
