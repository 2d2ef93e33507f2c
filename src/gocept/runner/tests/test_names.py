"""The names that users rely on, wherever the modules behind them lie.

The lists are literals, made from the README, the narratives, the interfaces
and the ZCML files. A list that was computed from the package would follow each
of its changes, and so would notice none.
"""

import importlib
import importlib.metadata
import importlib.resources
import io
import json
import pickle
import subprocess
import sys
import types
import unittest

import ZODB
from ZODB.serialize import ObjectWriter

from gocept.runner.example import Catalog
from gocept.runner.tests.support import DEADLINE, child_environment

NAMES = {
    'gocept.runner': [
        'Exit', 'JSONFormatter', 'appmain', 'from_config', 'once',
        'transaction_per_item'],
    'gocept.runner.background': [
        'BackgroundError', 'BackgroundTimeout', 'Client', 'ClientSocket',
        'ConnectionLost', 'NoResponse', 'NobodyListens', 'NotDecoded',
        'NotInitialized', 'ProtocolError', 'RemoteTaskError', 'Server',
        'ServerBusy', 'ServerInsecure', 'ServerNotRunning', 'ServerNotStarted',
        'ServerOccupied', 'ServerRefused', 'VersionMismatch', 'execute',
        'initialize', 'respond', 'terminate', 'token_create'],
    'gocept.runner.background.example.tasks': [
        'exec_task', 'exit_task', 'init_task'],
    'gocept.runner.channel': [
        'Channel', 'EndpointClosedException', 'LineChannel', 'PipeChannel',
        'SocketChannel', 'StillKept', 'TransactionalChannel',
        'WriteBufferFull'],
    'gocept.runner.cli': ['main'],
    'gocept.runner.directives': ['app', 'executor', 'worker'],
    'gocept.runner.errors': [
        'AlreadyRunning', 'BAD_CONFIGURATION', 'BAD_USAGE', 'CANNOT_START',
        'CannotStart', 'ConfigurationError', 'DATABASE_UNAVAILABLE',
        'DeadlineExceeded', 'EndpointClosedException', 'ExecutorError',
        'INTERRUPTED', 'NoSuchSetting', 'NoSuchSite', 'NotASiteError',
        'PARTLY_COMMITTED', 'ProcessExistsException',
        'ProcessExitedWithError', 'ProcessFinishedWithError', 'RunnerError',
        'SUCCESS', 'StartError', 'Terminated', 'TimeoutExpired',
        'UNKNOWN_PRINCIPAL', 'UNKNOWN_SITE', 'WORKER_FAILED',
        'WriteBufferFull'],
    'gocept.runner.events': [
        'ChildEnded', 'ChildEvent', 'ChildReady', 'ChildStarted',
        'ConflictRetried', 'LoopEvent', 'LoopStarted', 'LoopStopped',
        'TickAborted', 'TickCommitted', 'TickStarted'],
    'gocept.runner.example': [
        'Catalog', 'Changes', 'Converter', 'IConverter', 'fill', 'forget',
        'index_tree'],
    'gocept.runner.executor': [
        'AlreadyRunning', 'Check', 'Condition', 'ConditionExecutor',
        'Executor', 'ExecutorError', 'HTTPExecutor', 'OutputExecutor',
        'PidExecutor', 'PostgreSQLExecutor', 'ProcessExitedWithError',
        'ProcessFinishedWithError', 'RedisExecutor', 'SimpleExecutor',
        'TCPExecutor', 'TimeoutExpired', 'UnixSocketExecutor', 'all_of',
        'exits_zero', 'http', 'notified', 'output', 'pid_file', 'postgresql',
        'redis', 'start_all', 'stop_all', 'tcp', 'unix'],
    'gocept.runner.executor.pytest': ['executor_fixture'],
    'gocept.runner.interfaces': [
        'IAppMain', 'IChannel', 'ICheckedExecutor', 'IChildEnded',
        'IChildEvent', 'IChildReady', 'IChildStarted', 'IClient',
        'IClientSocket', 'ICondition', 'IConditionExecutor',
        'IConflictRetried', 'IDeclaredServer', 'IExecute', 'IExecutor',
        'IExecutorLayer', 'IFakeChild', 'IFakeChildren', 'IFromConfig',
        'IInit', 'IInitialize', 'IJob', 'IKernel', 'IKernelLayer',
        'ILineChannel', 'ILoopEvent', 'ILoopStarted', 'ILoopStopped',
        'IMainLoop', 'IOnce', 'IPending', 'IPipeChannel', 'IPoller', 'IPopen',
        'IProcess', 'IRunner', 'IRunnerConfig', 'ISchedule', 'IServer',
        'IShutdown', 'ISocketChannel', 'ISource', 'ISupervisor',
        'ITaskSurroundings', 'ITerminate', 'ITestChannel', 'ITickAborted',
        'ITickCommitted', 'ITickStarted', 'ITickUncertain', 'ITicks', 'ITimer',
        'ITransactionPerItem', 'ITransactionalChannel', 'IWallTimer',
        'IWatcher', 'IWorkerClient'],
    'gocept.runner.kernel': [
        'DEVNULL', 'Error', 'Kernel', 'PIPE', 'ProcessOutput', 'STDOUT',
        'Watcher', 'set_default_connection_timeout', 'set_default_path',
        'set_default_port'],
    'gocept.runner.poller': ['Poller', 'Timer', 'WallTimer', 'background'],
    'gocept.runner.process': ['LOST_STATUS', 'Process', 'terminate_all'],
    'gocept.runner.runner': [
        'Exit', 'MAX_BACKOFF', 'MainLoop', 'RunnerRequest', 'SHUTDOWN_TIMEOUT',
        'appmain', 'from_config', 'init', 'once'],
    'gocept.runner.schedule': ['Schedule'],
    'gocept.runner.signals': ['Shutdown', 'current_shutdown'],
    'gocept.runner.source': ['Source', 'Watcher'],
    'gocept.runner.spawn': ['ProcessExistsException', 'Runner', 'StartError'],
    'gocept.runner.supervisor': ['Supervisor', 'WorkerPoller', 'WorkerRunner'],
    'gocept.runner.testing': [
        'ExecutorLayer', 'KernelLayer', 'TestChannel', 'fake_children',
        'private_kernel', 'private_server', 'run_ticks', 'runner_config'],
    'gocept.runner.transaction': ['transaction_per_item'],
    'gocept.runner.zcml': [
        'IAppDirective', 'IChildDirective', 'IExecutorDirective',
        'IKernelDirective', 'IServerDirective', 'IWorkerDirective'],
}
"""What a user imports, or names in ZCML, by module."""

LOGGERS = ['gocept.runner.runner', 'gocept.runner.spawn',
           'gocept.runner.transaction']
"""Those that the manual shows: a zope.conf may set levels by these names."""

OTHER_LOGGERS = [
    'gocept.runner', 'gocept.runner.accepting', 'gocept.runner.channel',
    'gocept.runner.command', 'gocept.runner.ending',
    'gocept.runner.environment', 'gocept.runner.events',
    'gocept.runner.example', 'gocept.runner.executor.capture',
    'gocept.runner.poller', 'gocept.runner.process', 'gocept.runner.signals',
    'gocept.runner.supervisor', 'gocept.runner.watch',
]
"""Those that no text names. They are not asserted: each is called after the
module that logs, and whether that is a promise has not been decided."""

INCLUDED = ['configure.zcml', 'ftesting.zcml', 'meta.zcml', 'site.zcml']
"""What ``<include package="gocept.runner" file="..." />`` may name."""

CATALOG = b'\x80\x03cgocept.runner.example\nCatalog\nq\x00.'
"""How the record of a catalog begins in the databases that exist."""

CREATED_LOGGERS = '''
import importlib, json, logging, pkgutil
import gocept.runner

def refuse(name):
    raise  # else a package that cannot be imported is left out in silence

for found in pkgutil.walk_packages(
        gocept.runner.__path__, 'gocept.runner.', onerror=refuse):
    if not (found.name + '.').startswith((
            'gocept.runner.tests.', 'gocept.runner.boot.zope.')):
        if not found.name.endswith('.__main__'):
            importlib.import_module(found.name)
print(json.dumps([
    name for name, logger in logging.root.manager.loggerDict.items()
    if isinstance(logger, logging.Logger)]))
'''


def resolve(module: str, name: str) -> object:
    return getattr(importlib.import_module(module), name)


class ImportTests(unittest.TestCase):

    def test_each_name(self) -> None:
        for module, names in NAMES.items():
            for name in names:
                with self.subTest(module=module, name=name):
                    value = resolve(module, name)
                    self.assertIsNotNone(value)
                    # A module of that name, once it is imported, takes the
                    # place of what its package has imported from it.
                    self.assertNotIsInstance(value, types.ModuleType)

    def test_one_name_is_one_object(self) -> None:
        # Or else ``except`` would miss what the other one raises.
        first: dict[str, tuple[str, object]] = {}
        for module, names in NAMES.items():
            for name in names:
                if (module, name) == ('gocept.runner.source', 'Watcher'):
                    continue  # who is told by a source: a type, not an object
                value = resolve(module, name)
                where, known = first.setdefault(name, (module, value))
                with self.subTest(name=name, modules=(where, module)):
                    self.assertIs(known, value)

    def test_each_module_may_be_the_first_that_is_imported(self) -> None:
        # What is imported before can hide that modules need each other.
        children = {
            module: subprocess.Popen(
                [sys.executable, '-c',
                 f'from {module} import {", ".join(names)}'],
                env=child_environment(), text=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE)
            for module, names in NAMES.items()}
        for module, child in children.items():
            self.addCleanup(child.wait)
            self.addCleanup(child.kill)
        for module, child in children.items():
            with self.subTest(module=module):
                _, errors = child.communicate(timeout=DEADLINE)
                self.assertEqual(0, child.returncode, errors)

    def test_the_table_has_what_the_modules_export(self) -> None:
        for module, names in NAMES.items():
            exported = getattr(importlib.import_module(module), '__all__', ())
            with self.subTest(module=module):
                self.assertLessEqual({*exported}, {*names})

    def test_the_table_is_sorted(self) -> None:
        # So that a reader, or a merge, finds a name that is there twice.
        self.assertEqual(sorted(NAMES), [*NAMES])
        for module, names in NAMES.items():
            with self.subTest(module=module):
                self.assertEqual(sorted({*names}), names)


class PersistentTests(unittest.TestCase):
    """A database outlives the version of the code that has written it."""

    def test_old_databases_can_be_read(self) -> None:
        self.assertIs(Catalog, pickle.loads(CATALOG))

    def test_new_databases_can_be_read_by_old_code(self) -> None:
        self.assertEqual('gocept.runner.example', Catalog.__module__)
        self.assertEqual('Catalog', Catalog.__qualname__)
        db = ZODB.DB(None)
        self.addCleanup(db.close)
        connection = db.open()
        self.addCleanup(connection.close)
        self.addCleanup(connection.transaction_manager.abort)
        catalog = Catalog()
        connection.add(catalog)
        record = io.BytesIO(ObjectWriter(catalog).serialize(catalog))
        self.assertEqual(CATALOG, record.read(len(CATALOG)))


class LoggerTests(unittest.TestCase):

    def test_documented_loggers(self) -> None:
        # In a process of its own, as other tests ask for loggers by name, and
        # by that create them.
        process = subprocess.run(
            [sys.executable, '-c', CREATED_LOGGERS], text=True,
            env=child_environment(), timeout=DEADLINE,
            stdin=subprocess.DEVNULL, capture_output=True)
        self.assertEqual(0, process.returncode, process.stderr)
        created = json.loads(process.stdout)
        for name in LOGGERS:
            with self.subTest(name=name):
                self.assertIn(name, created)


class DistributionTests(unittest.TestCase):

    def test_console_scripts(self) -> None:
        scripts = importlib.metadata.distribution(
            'gocept.runner').entry_points.select(group='console_scripts')
        self.assertIn('gocept-runner', scripts.names)
        for script in scripts:
            with self.subTest(script=script.name):
                self.assertTrue(callable(script.load()))

    def test_zcml_files(self) -> None:
        package = importlib.resources.files('gocept.runner')
        for name in INCLUDED:
            with self.subTest(name=name):
                self.assertTrue((package / name).is_file())
