"""The attributes of the directives are the keywords of the Python API."""

import inspect
import unittest
from collections.abc import Callable, Mapping
from typing import Any

import zope.schema
from zope.interface import Interface

from gocept.runner import executor, runner
from gocept.runner.channel import Channel, PipeChannel
from gocept.runner.process import Process
from gocept.runner.process.keywords import CHANNEL
from gocept.runner.process.launch import Launch
from gocept.runner.spawn import Runner
from gocept.runner.spawn.application import Application
from gocept.runner.zcml import (
    IAppDirective,
    IExecutorDirective,
    IKernelDirective,
    IWorkerDirective,
)

SCHEMAS = (IAppDirective, IExecutorDirective, IKernelDirective,
           IWorkerDirective)

START = 'when it is started, which only a supervisor decides'

OF_DIRECTIVES = {
    IAppDirective: {
        'start': START,
        'requires': 'the names of others, which only a supervisor knows',
        'umask': 'a keyword of Popen, which a process hands on',
        'pass_fds': 'a keyword of Popen, which a process hands on',
    },
    IExecutorDirective: {
        'start': START,
        'type': 'chooses the class',
        'class_': 'the class itself',
        'user': 'a keyword of Popen, part of popen_kwargs',
        'group': 'a keyword of Popen, part of popen_kwargs',
        'extra_groups': 'a keyword of Popen, part of popen_kwargs',
        'umask': 'a keyword of Popen, part of popen_kwargs',
        'probe': 'the command of exits_zero(), as the executor has one',
        'dbuser': 'the user of postgresql(), as the process has one',
    },
    IWorkerDirective: {
        'name': 'what it is called on the command line',
        'handler': 'what is decorated',
        'once': 'chooses the decorator',
        'site': 'what a call of the program has',
        'arguments': 'what a call of the program has',
    },
}
"""Attributes that are no keywords, and why."""

ONLY_IN_PYTHON = {
    'poller': 'a poller is an object of the program; children that are '
              'declared are served by the thread in the background',
    'on_start': 'a function that the runner itself has set; in ZCML, '
                'subscribe to IChildStarted',
    'on_end': 'a function that the runner itself has set; in ZCML, '
              'subscribe to IChildEnded',
    'servers': 'a function; an executor has its condition tell them',
}
"""Keywords that are no attributes, and why."""


def keywords(function: Callable[..., Any], *but: str) -> set[str]:
    """The names of its parameters, without ``*args`` and ``**kwargs``."""
    return {name for name, parameter
            in inspect.signature(function).parameters.items()
            if parameter.kind not in (parameter.VAR_KEYWORD,
                                      parameter.VAR_POSITIONAL)
            } - {'self', *but}


def fields(schema: Any) -> Mapping[str, Any]:
    found: Mapping[str, Any] = zope.schema.getFields(schema)
    return found


class DescriptionTests(unittest.TestCase):

    def test_each_attribute_has_a_description(self) -> None:
        for schema in SCHEMAS:
            for name, field in fields(schema).items():
                with self.subTest(schema=schema, name=name):
                    self.assertRegex(field.description, r'^["A-Z].*\.$')

    def test_all_attributes_are_fields(self) -> None:
        for schema in SCHEMAS:
            self.assertEqual({*schema.names(all=True)}, {*fields(schema)})

    def test_all_can_take_their_text_from_zope_conf(self) -> None:
        for schema in SCHEMAS:
            for name, field in fields(schema).items():
                with self.subTest(schema=schema, name=name):
                    self.assertEqual(
                        'gocept.runner.zcml.fields', type(field).__module__)

    def test_each_directive_is_described(self) -> None:
        for schema in SCHEMAS:
            self.assertTrue(schema.__doc__.strip())

    def test_what_is_required(self) -> None:
        self.assertEqual(
            [{'name', 'command'}, {'name', 'command'}, set(),
             {'name', 'handler'}],
            [{name for name, field in fields(schema).items()
              if field.required} for schema in SCHEMAS])

    def test_only_what_the_directive_itself_decides_has_a_default(
            self) -> None:
        # All else is left to the Python API, which has its own.
        for schema in SCHEMAS:
            self.assertLessEqual(
                {name for name, field in fields(schema).items()
                 if field.default is not None}, {'start'})


class CoverageTests(unittest.TestCase):

    def assertCovers(self, schema: type[Interface], wanted: set[str],
                     but: Mapping[str, str] = {}) -> None:
        """The attributes are the keywords, but for what is said above."""
        self.assertLessEqual({*but}, wanted)
        self.assertEqual(wanted - {*but} | {*OF_DIRECTIVES[schema]},
                         {*fields(schema)})

    def assertDefault(self, schema: Any, name: str, expected: object) -> None:
        """The description tells the default that the Python API has."""
        description = fields(schema)[name].description
        text = f'{expected:g}' if isinstance(expected, float) else expected
        for written in (f'default: {text})', f'"{text}" (default)',
                        f'{text} by default'):
            if written in description:
                return
        self.fail(f'{name}: {description!r} does not tell {expected!r}')

    def test_apps(self) -> None:
        own = {*Application.__dataclass_fields__} - {'options', 'home'}
        process = keywords(Process.__init__)
        wanted = (keywords(Runner.add) | own | process
                  | keywords(Launch.__init__) | {*CHANNEL})
        self.assertCovers(IAppDirective, wanted, ONLY_IN_PYTHON)

    def test_channels_have_no_other_options(self) -> None:
        # Their descriptors are those of the process.
        found = set()
        for each in PipeChannel.__mro__:
            if issubclass(each, Channel):
                found |= keywords(each.__init__, 'faucet', 'sink', 'send')
        self.assertEqual(found, {*CHANNEL})

    def test_executors(self) -> None:
        classes = (
            executor.SimpleExecutor, executor.OutputExecutor,
            executor.TCPExecutor, executor.HTTPExecutor,
            executor.PidExecutor, executor.UnixSocketExecutor,
            executor.PostgreSQLExecutor, executor.RedisExecutor,
            executor.ConditionExecutor, executor.Executor)
        wanted = set()
        for each in classes:
            wanted |= keywords(each.__init__)
        self.assertCovers(IExecutorDirective, wanted)

    def test_all_executors_are_there(self) -> None:
        classes = {each for each in vars(executor).values()
                   if isinstance(each, type)
                   and issubclass(each, executor.SimpleExecutor)}
        self.assertEqual({
            executor.SimpleExecutor, executor.OutputExecutor,
            executor.TCPExecutor, executor.HTTPExecutor,
            executor.PidExecutor, executor.UnixSocketExecutor,
            executor.PostgreSQLExecutor, executor.RedisExecutor,
            executor.ConditionExecutor, executor.Executor}, classes)

    def test_conditions(self) -> None:
        names = {*fields(IExecutorDirective)}
        for condition, renamed in (
                (executor.tcp, {}), (executor.http, {}),
                (executor.output, {}), (executor.unix, {'path':
                                                        'socket_name'}),
                (executor.pid_file, {'path': 'filename'}),
                (executor.exits_zero, {'command': 'probe'}),
                (executor.postgresql, {'user': 'dbuser'}),
                (executor.redis, {}),
                (executor.notified, {})):
            with self.subTest(condition):
                self.assertLessEqual(
                    {renamed.get(name, name)
                     for name in keywords(condition)}, names)

    def test_all_conditions_are_there(self) -> None:
        conditions = {name for name, each in vars(executor).items()
                      if isinstance(each, type)
                      and issubclass(each, executor.Condition)}
        # Those of several, and of your own, are objects in Python.
        self.assertEqual(
            {'tcp', 'http', 'unix', 'output', 'pid_file', 'exits_zero',
             'notified', 'all_of', 'Condition'}, conditions)

    def test_workers(self) -> None:
        wanted = (keywords(runner.appmain.__init__)
                  | keywords(runner.once.__init__))
        self.assertCovers(IWorkerDirective, wanted, {
            'application': 'It is known before ZCML is read.'})

    def test_defaults_of_workers(self) -> None:
        decorator = runner.appmain()
        for name in ('ticks', 'attempts', 'max_backoff', 'shutdown_timeout'):
            self.assertDefault(
                IWorkerDirective, name, getattr(decorator, name))

    def test_defaults_of_apps(self) -> None:
        for name in ('start_timeout', 'restart', 'restart_delay',
                     'restart_limit'):
            self.assertDefault(IAppDirective, name, getattr(
                Application, name))
        for name in ('limit', 'high_water'):
            self.assertDefault(IAppDirective, name, 2 ** 20)
        self.assertDefault(IAppDirective, 'setsid', 'true')
        for name in ('shell', 'detached', 'adopt',
                     'die_with_parent'):
            self.assertDefault(IAppDirective, name, 'false')
            self.assertIs(False, {
                **inspect.signature(Launch).parameters,
                **inspect.signature(Process).parameters}[name].default)

    def test_defaults_of_executors(self) -> None:
        parameters = inspect.signature(executor.SimpleExecutor).parameters
        for name in ('timeout', 'sleep', 'output_size'):
            self.assertDefault(
                IExecutorDirective, name, parameters[name].default)
        self.assertDefault(IExecutorDirective, 'method', inspect.signature(
            executor.http).parameters['method'].default)
        self.assertDefault(IExecutorDirective, 'status', inspect.signature(
            executor.http).parameters['status'].default)
