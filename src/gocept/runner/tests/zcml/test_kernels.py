"""Children that ZCML declares in a kernel, and workers that find them."""

import contextlib
import os
import signal
import sys
from typing import Any

import transaction
import ZODB.interfaces
import zope.component
import zope.component.hooks
from ZODB.DB import DB
from ZODB.FileStorage import FileStorage
from ZODB.MappingStorage import MappingStorage

from gocept.runner import runner
from gocept.runner.errors import ConfigurationError
from gocept.runner.interfaces import (
    IExecutor,
    IKernel,
    IPoller,
    IRunner,
    ISupervisor,
)
from gocept.runner.testing import KernelLayer
from gocept.runner.tests.cli.test_declared import CommandTestCase
from gocept.runner.tests.declaring import attributes
from gocept.runner.tests.executors import is_gone
from gocept.runner.tests.support import (
    DEADLINE,
    end_background,
    reset_process,
)
from gocept.runner.tests.zcml.test_directives import DirectiveTestCase
from gocept.runner.zcml.kernels import DeclaredKernel

KERNEL = KernelLayer('KERNEL')

HERE = __name__

COUNTING = '''
import os, sys
for number in range(1, 4):
    print(os.getpid(), number, flush=True)
sys.stdin.read()
'''

fetched: list[str] = []


@runner.once()
def fetch_one() -> None:
    """Store one line of the child."""
    site = zope.component.hooks.getSite()
    channel = zope.component.getUtility(IRunner).get_channel('counting')
    poller = zope.component.getUtility(IPoller)
    while not (line := channel.read()):
        poller.register(channel)
        if not poller.pause(DEADLINE):
            raise AssertionError(f'nothing to read in {channel!r}')
    poller.unregister(channel)
    site.lines = [*getattr(site, 'lines', ()), line]
    fetched.append(line)


@runner.once()
def terminate() -> None:
    """End what another worker has started."""
    zope.component.getUtility(IRunner).terminate('counting')


class DeclaredTests(DirectiveTestCase):

    def kernel(self, name: str = '') -> Any:
        return zope.component.getUtility(IKernel, name)

    def test_nothing_is_opened(self) -> None:
        path = str(self.dir / 'kernel')
        supervisor = self.load(
            f'<runner:kernel path="{path}" instance="house" />'
            '<runner:app name="a" command="cat" kernel="" />'
            '<runner:kernel name="main" port="20303" />'
            '<runner:executor name="b" command="cat" kernel="main" />')
        self.assertFalse(os.path.exists(path))
        self.assertEqual('house', self.kernel().instance)
        self.assertEqual(f'<DeclaredKernel at {path}>', repr(self.kernel()))
        self.assertEqual('on port 20303', self.kernel('main').description)
        self.assertIs(self.kernel('main'), zope.component.getUtility(
            IExecutor, 'b').kernel)
        self.assertEqual({'', 'main'}, {*supervisor.kernels})

    def test_after_those_that_live_there(self) -> None:
        self.load('<runner:app name="a" command="cat" kernel="main" />'
                  '<runner:kernel name="main" port="20303" />')

    def test_a_relative_path(self) -> None:
        self.load('<runner:kernel path="var/kernel" />')
        self.assertEqual(f'at {os.getcwd()}/var/kernel',
                         self.kernel().description)

    def test_mistakes(self) -> None:
        for body, *expected in (
                ('<runner:kernel port="1" path="a" />', 'not both'),
                ('<runner:kernel port="0" />', '0 is less than 1'),
                ('<runner:app name="a" command="cat" kernel="main" />',
                 "there is no kernel 'main'; there are: none"),
                ('<runner:kernel /><runner:app name="a" command="cat" '
                 'kernel="" umask="77" />', 'kernel cannot have umask'),
                ('<runner:kernel /><runner:app name="a" command="cat" '
                 'kernel="" stdout="inherit" />', 'stdout'),
                ('<runner:kernel /><runner:executor name="a" command="cat '
                 '{port}" type="tcp" host="127.0.0.1" port="0" kernel="" />',
                 "executor 'a' lives in a kernel", 'a fixed port, not 0'),
                ('<runner:kernel /><runner:app name="a" command="cat" '
                 'kernel="" on_change="ask" />', 'keep, replace, refuse'),
                ('<runner:app name="a" command="cat" on_change="replace" />',
                 'only with a kernel')):
            with self.subTest(body):
                self.assertWrong(body, *expected)

    def test_the_same_name_twice(self) -> None:
        with self.assertRaisesRegex(Exception, 'Conflict'):
            self.load('<runner:kernel />\n<runner:kernel port="20303" />')


class InstanceTests(DirectiveTestCase):

    def register(self, name: str, storage: Any = None) -> None:
        database = DB(MappingStorage() if storage is None else storage)
        self.addCleanup(database.close)
        zope.component.provideUtility(
            database, ZODB.interfaces.IDatabase, name)

    def test_none(self) -> None:
        with self.assertRaisesRegex(ConfigurationError, 'there is none'):
            DeclaredKernel().instance

    def test_several(self) -> None:
        self.register('one')
        self.register('two')
        with self.assertRaisesRegex(ConfigurationError, 'more than one'):
            DeclaredKernel().instance

    def test_one(self) -> None:
        self.register('one')
        self.assertRegex(DeclaredKernel().instance,
                         '^MappingStorage-[0-9a-f]{8}$')

    def test_the_main_one(self) -> None:
        self.register('two', MappingStorage('two'))
        self.register('main', MappingStorage('first'))
        self.assertRegex(DeclaredKernel().instance, '^first-')

    def test_a_file_by_any_path(self) -> None:
        data = self.dir / 'data'
        data.mkdir()
        (self.dir / 'link').symlink_to(data)
        names = set()
        for directory in data, self.dir / 'link':
            with contextlib.closing(DB(FileStorage(
                    str(directory / 'Data.fs')))) as database:
                zope.component.provideUtility(
                    database, ZODB.interfaces.IDatabase)
                names.add(DeclaredKernel().instance)
        self.assertEqual(1, len(names))
        self.assertRegex(names.pop(), '^Data-')


class WorkerTests(CommandTestCase):

    layer = KERNEL

    def setUp(self) -> None:
        super().setUp()
        fetched.clear()
        self.addCleanup(transaction.abort)
        self.addCleanup(self.end_all)
        script = self.write('counting.py', COUNTING)
        self.declare(f'{sys.executable} {script}')

    def declare(self, command: str, **more: str) -> None:
        reset_process()  # or else the ZCML would not be run again
        self.conf('<runner:kernel ' + attributes(
            path=str(KERNEL.kernel.port_or_path)) + ' />'
            + '<runner:app ' + attributes(
                name='counting', command=command, kernel='',
                buffering='line', encoding='utf-8', transactional='true',
                **more) + ' />'
            + f'<runner:worker name="w" handler="{HERE}:fetch_one" />'
            + f'<runner:worker name="t" handler="{HERE}:terminate" />')

    def end_all(self) -> None:
        end_background()
        kernel = KERNEL.kernel
        for entry in kernel.list_processes().values():
            if entry['running']:
                os.kill(entry['pid'], signal.SIGKILL)
        for kind in 'processes', 'values':
            for name in getattr(kernel, f'list_{kind}')():
                getattr(kernel, f'remove_{kind}')(name)
        kernel.close()

    def run_worker(self, *options: str) -> None:
        self.assertEqual(0, self.command('run', 'w', *options), self.errors)

    def test_each_worker_goes_on_where_the_last_one_has_committed(
            self) -> None:
        for _ in range(3):
            self.run_worker()
        numbers = [line.split()[1] for line in fetched]
        self.assertEqual(['1', '2', '3'], numbers)
        pid, = {int(line.split()[0]) for line in fetched}
        self.assertFalse(is_gone(pid))
        name, = KERNEL.kernel.list_processes()
        self.assertRegex(name, r'^Data-[0-9a-f]{8}\.counting$')

    def test_a_dry_run_takes_nothing_away(self) -> None:
        self.run_worker()
        self.run_worker('--dry-run')
        self.run_worker()
        self.assertEqual(['1', '2', '2'],
                         [line.split()[1] for line in fetched])

    def test_a_new_release(self) -> None:
        self.run_worker()
        script = self.write('new.py', COUNTING)
        self.declare(f'{sys.executable} {script}')
        self.run_worker()
        self.assertEqual(['1', '2'], [line.split()[1] for line in fetched])
        self.declare(f'{sys.executable} {script}', on_change='replace')
        for _ in range(2):
            self.run_worker()
        # First the rest of the one before.
        self.assertEqual(['3', '1'], [
            line.split()[1] for line in fetched[2:]])

    def test_an_eager_one(self) -> None:
        script = self.write('counting.py', COUNTING)
        self.declare(f'{sys.executable} {script}', start='eager')
        self.run_worker()
        self.run_worker()
        self.assertEqual(1, len({line.split()[0] for line in fetched}))

    def test_a_worker_ends_it(self) -> None:
        self.run_worker()
        self.assertEqual(0, self.command('run', 't'), self.errors)
        self.assertEqual({}, KERNEL.kernel.list_processes())

    def test_the_list(self) -> None:
        self.assertEqual(0, self.command('list'), self.errors)
        path = KERNEL.kernel.port_or_path
        self.assertIn(f'at {path}\n', self.output)
        self.assertIn('counting.py (in the kernel)\n', self.output)
        self.run_worker()
        (name, entry), = KERNEL.kernel.list_processes().items()
        self.assertEqual(0, self.command('list'), self.errors)
        self.assertIn(f'(in the kernel: {name} runs as process '
                      f'{entry["pid"]})\n', self.output)

    def test_a_kernel_that_cannot_be_reached(self) -> None:
        self.conf(
            f'<runner:kernel path="{self.dir}/none/kernel" />'
            '<runner:app name="a" command="cat" kernel="" start="eager" />'
            f'<runner:worker name="w" handler="{HERE}:fetch_one" />')
        self.assertMistake(71, 'run', 'w', expected=(
            "app 'a'", f'{self.dir}/none/kernel'))

    def test_the_supervisor_lets_go(self) -> None:
        self.run_worker()
        supervisor = zope.component.queryUtility(ISupervisor)
        self.assertIsNone(supervisor.kernels['']._kernel)
