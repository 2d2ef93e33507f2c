"""The uses of gocept.runner 3, aragaer's runner and mirakuru run on ours.

Each name that these libraries document, or that public programs use, has a
row: its name, how it is used, and what comes back. A row that fails names
itself.
"""

import contextlib
import functools
import itertools
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
import warnings
from typing import Any
from unittest import mock

import transaction
import ZODB
import zope.component.hooks
import zope.security.management
import zope.site.folder
from zope.site.site import LocalSiteManager

import gocept.runner
import gocept.runner.executor
import gocept.runner.runner
from gocept.runner.channel import (
    Channel,
    EndpointClosedException,
    LineChannel,
    PipeChannel,
    SocketChannel,
)
from gocept.runner.poller import Poller
from gocept.runner.process import procfs
from gocept.runner.spawn import ProcessExistsException, Runner
from gocept.runner.testing import TestChannel
from gocept.runner.tests.compatibility import aragaer, gocept3, mirakuru
from gocept.runner.tests.compatibility.rows import table
from gocept.runner.tests.executors import ExecutorTestCase, is_gone
from gocept.runner.tests.kernels import free_port
from gocept.runner.tests.streams import wait_readable
from gocept.runner.tests.support import (
    DEADLINE,
    TestCase,
    child_environment,
)
from gocept.runner.tests.victims import until


class CompatibilityCase(TestCase):
    """The directory of a test is the current one."""

    def setUp(self) -> None:
        # Uses are short. What they leave open is collected in a clean-up of
        # the base class, so this ends after it.
        self.enterContext(warnings.catch_warnings())
        warnings.simplefilter('ignore', ResourceWarning)
        super().setUp()
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.dir)

    def names(self) -> dict[str, Any]:
        return {'__name__': 'use', 'os': os, 'sys': sys, 'signal': signal,
                'subprocess': subprocess, 'seen': [], 'write': self.write,
                'python': self.python, 'until': until}

    def python(self, *arguments: str) -> str:
        """What a new interpreter prints that runs this text, or script."""
        if not arguments[0].endswith('.py'):
            arguments = '-c', *arguments
        process = subprocess.run(
            [sys.executable, *arguments], env=child_environment(), text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, timeout=DEADLINE)
        return process.stdout.strip()


@table(gocept3.ROWS)
class GoceptRunner3Tests(CompatibilityCase):

    def setUp(self) -> None:
        super().setUp()
        zope.component.hooks.setHooks()
        self.zope_conf('''
            <product-config test>
              foo bar
              user zope.mgr
            </product-config>
            <eventlog>
            </eventlog>
            ''')
        self.enterContext(mock.patch(
            'gocept.runner.boot.attempts.LONGEST_PAUSE', 0.001))

    def names(self) -> dict[str, Any]:
        return super().names() | {
            'gocept': gocept, 'zope': zope, 'transaction': transaction,
            'logging': logging, 'time': time, 'functools': functools,
            'itertools': itertools, 'app': self.app, 'user': self.user,
            'add_site': self.add_site, 'committed': self.committed,
            'committed_of': self.committed_of, 'logged': self.logged}

    def app(self) -> Any:
        """The root folder of a database that the user opens."""
        db = ZODB.DB(None)
        self.addCleanup(db.close)
        connection = db.open()
        self.addCleanup(connection.close)
        self.addCleanup(transaction.abort)
        app = zope.site.folder.rootFolder()
        app.setSiteManager(LocalSiteManager(app))
        connection.root()['Application'] = app
        transaction.commit()
        return app

    def add_site(self, root: Any, name: str) -> None:
        root[name] = site = zope.site.folder.Folder()
        site.setSiteManager(LocalSiteManager(site))
        transaction.commit()

    def user(self) -> str | None:
        """The id of the principal of the interaction, if there is one."""
        interaction = zope.security.management.queryInteraction()
        return interaction and interaction.participations[0].principal.id

    def committed_of(self, app: Any, name: str) -> object:
        with app._p_jar.db().transaction() as connection:
            return getattr(connection.root()['Application'], name, None)

    def committed(self, name: str) -> object:
        """What is in the database of zope.conf."""
        with gocept.runner.runner.init(None, 'zope.conf') as app:
            return getattr(app, name, None)

    def logged(self, call: Any) -> list[str]:
        with self.assertLogs('gocept.runner.runner') as logs:
            call()
        return [record.getMessage() for record in logs.records]


@table(aragaer.ROWS)
class AragaerTests(CompatibilityCase, ExecutorTestCase):

    def names(self) -> dict[str, Any]:
        return super().names() | {
            'Channel': Channel, 'LineChannel': LineChannel,
            'PipeChannel': PipeChannel, 'Poller': Poller,
            'ProcessExistsException': ProcessExistsException,
            'Runner': self.runner, 'SocketChannel': SocketChannel,
            'TestChannel': TestChannel, 'json': json, 'read': self.read,
            'read_all': self.read_all, 'select': select, 'socket': socket}

    def runner(self, **keywords: Any) -> Runner:
        """One whose children end with the test, as with the program."""
        runner = Runner(**keywords)
        self.addCleanup(runner.close)
        return runner

    def read(self, channel: Channel) -> bytes:
        """What comes next, which the user waits for."""
        while not (data := channel.read()):
            wait_readable(channel)
        return data

    def read_all(self, channel: Channel) -> bytes:
        """What comes until the end."""
        data = b''
        with contextlib.suppress(EndpointClosedException):
            while True:
                data += self.read(channel)
        return data


@table(mirakuru.ROWS)
class MirakuruTests(CompatibilityCase, ExecutorTestCase):

    def names(self) -> dict[str, Any]:
        executor = gocept.runner.executor
        return super().names() | {
            name: getattr(executor, name) for name in executor.__all__} | {
            'alive': lambda pid: not is_gone(pid), 'mirakuru': executor,
            'mock': mock, 'port': free_port(), 'select': select,
            'children': procfs.children, 'socket': socket, 'time': time,
            'warnings': warnings}
