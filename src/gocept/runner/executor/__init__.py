"""A child counts as started once it is ready; see `IExecutor`."""

from gocept.runner.errors import (
    AlreadyRunning,
    ExecutorError,
    ProcessExitedWithError,
    ProcessFinishedWithError,
    TimeoutExpired,
)
from gocept.runner.executor.base import SimpleExecutor
from gocept.runner.executor.checked import ConditionExecutor, Executor
from gocept.runner.executor.conditions.base import Check, Condition, all_of
from gocept.runner.executor.conditions.http import http
from gocept.runner.executor.conditions.network import tcp, unix
from gocept.runner.executor.conditions.notified import notified
from gocept.runner.executor.conditions.output import output
from gocept.runner.executor.conditions.pid_file import pid_file
from gocept.runner.executor.conditions.postgresql import postgresql
from gocept.runner.executor.conditions.probe import exits_zero
from gocept.runner.executor.conditions.redis import redis
from gocept.runner.executor.groups import start_all, stop_all
from gocept.runner.executor.named import (
    HTTPExecutor,
    OutputExecutor,
    PidExecutor,
    TCPExecutor,
    UnixSocketExecutor,
)
from gocept.runner.executor.services import PostgreSQLExecutor, RedisExecutor

__all__ = [
    'AlreadyRunning', 'Check', 'Condition', 'ConditionExecutor', 'Executor',
    'ExecutorError', 'HTTPExecutor', 'OutputExecutor', 'PidExecutor',
    'PostgreSQLExecutor', 'ProcessExitedWithError', 'ProcessFinishedWithError',
    'RedisExecutor', 'SimpleExecutor', 'TCPExecutor', 'TimeoutExpired',
    'UnixSocketExecutor', 'all_of', 'exits_zero', 'http', 'notified', 'output',
    'pid_file', 'postgresql', 'redis', 'start_all', 'stop_all', 'tcp', 'unix',
]
