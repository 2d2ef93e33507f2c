"""A template for a test, and the workers that it forks."""

import contextlib
import os
import signal
import textwrap

from gocept.runner.house import launch
from gocept.runner.house.launch import Wanted
from gocept.runner.house.link import (
    Fork,
    Forked,
    Ready,
    Stage,
    Streams,
    Template,
    unpack,
)
from gocept.runner.poller import Poller
from gocept.runner.process.orphan import Expected, Orphan
from gocept.runner.tests.declaring import SITE, zcml
from gocept.runner.tests.process.test_child import ProcessTestCase
from gocept.runner.tests.victims import DEADLINE, adopt_no_more
from gocept.runner.waits.deadline import Deadline, wait_for
from gocept.runner.waits.packets import Packets, pair

MEMORY = '''
    <zodb>
      <mappingstorage />
    </zodb>
    '''
"""Databases that are in the memory of each worker."""

WORKERS = '''
    import os, signal, sys, threading
    import zope.component.hooks
    from gocept.runner import appmain, once

    def say(*what):
        os.write(1, (' '.join(map(str, what)) + '\\n').encode())

    def tick(*args):
        say('tick', *args)

    def work(*args):
        """The same, with other words to be called by."""
        tick(*args)
    '''


class Worker:
    """A forked worker, and what it says."""

    def __init__(self, orphan, stdout, stderr, control, life):
        self.orphan = orphan
        self.stdout, self.stderr, self.life = stdout, stderr, life
        self.control = control
        self.pid = orphan.pid
        self._seen = {stdout: b'', stderr: b''}

    def line(self, fd=None):
        """The next line of its output."""
        fd = self.stdout if fd is None else fd
        while b'\n' not in self._seen[fd]:
            data = self._read(fd)
            if not data:
                raise AssertionError(f'no line: {self._seen}')
        line, _, self._seen[fd] = self._seen[fd].partition(b'\n')
        return line.decode()

    def error_line(self, word):
        """The next line of its errors with this word."""
        while word not in (line := self.line(self.stderr)):
            pass
        return line

    def _read(self, fd):
        if not wait_for(fd, 1, Deadline(DEADLINE)):
            for each in {self.stdout, self.stderr} - {fd}:
                os.set_blocking(each, False)
                with contextlib.suppress(BlockingIOError):
                    self._seen[each] += os.read(each, 65536)
            raise AssertionError(f'silent: {self._seen}')
        data = os.read(fd, 65536)
        self._seen[fd] += data
        return data

    def rest(self, fd=None):
        """What it writes up to the end."""
        fd = self.stdout if fd is None else fd
        while self._read(fd):
            pass
        return self._seen[fd].decode()

    def stage(self):
        """What it says on its control socket; None for its end."""
        if not wait_for(self.control.fileno(), 1, Deadline(DEADLINE)):
            raise AssertionError('it says nothing')
        packet = self.control.receive()
        return None if packet is None else unpack(packet.data)

    def end(self, signum=signal.SIGTERM):
        """End it; returns the status."""
        self.orphan.send_signal(signum)
        return self.orphan.wait(DEADLINE)

    def close(self):
        self.orphan.close()
        for fd in {self.stdout, self.stderr, self.life} - {-1}:
            os.close(fd)
        self.control.close()

    def end_life(self):
        """As if the program above had ended."""
        os.close(self.life)
        self.life = -1


class TemplateTestCase(ProcessTestCase):

    def setUp(self):
        super().setUp()
        self.addCleanup(adopt_no_more)
        self.poller = Poller()
        self.addCleanup(self.poller.close)
        self.count = 0

    def declare(self, body, workers='', conf=MEMORY, more='', include=''):
        """Write a zope.conf with these declarations, and their code.

        Workers write their states beside it.
        """
        self.write('site.zcml', '').write_text(zcml(
            body, SITE + '<include package="gocept.runner" />' + include))
        self.write('ticking.py', textwrap.dedent(WORKERS)
                   + textwrap.dedent(workers))
        return str(self.write('zope.conf', '\n'.join([
            f'site-definition {self.dir}/site.zcml', f'path {self.dir}',
            textwrap.dedent(conf), textwrap.dedent(more), ''])))

    def start_template(self, conf, until=lambda: None, **wanted):
        """Start a template; returns what it says after `until` was called."""
        ours, theirs = pair()
        link = Template(Packets(ours))
        self.addCleanup(link.close)
        with theirs, open(self.dir / 'template.log', 'ab') as log:
            process = launch.start(
                Wanted(conf, **wanted), theirs, poller=self.poller,
                stdout=log, stderr=log)
        self.addCleanup(process.close)
        self.poller.register(link)
        self.link, self.template = link, process
        until()
        return self.told()

    def template_log(self):
        return (self.dir / 'template.log').read_text()

    def told(self):
        """The next thing that the template says."""
        while True:
            for said, source in self.poller.poll(DEADLINE) or [(None, None)]:
                if source is self.link:
                    return said
                if source is None:
                    raise AssertionError('it says nothing')
                if source is self.template:
                    raise AssertionError(
                        f'it ended with {said}: {self.template_log()}')

    def boot(self, *args, **wanted):
        """Start a template that is ready."""
        ready = self.start_template(self.declare(*args), **wanted)
        self.assertIsInstance(ready, Ready, ready)
        return ready

    def fork(self, name, *words):
        """Have the template fork a worker."""
        self.count += 1
        expected = Expected()
        self.addCleanup(expected.close)
        (out, theirs_out), (errors, theirs_errors), (theirs_life, life) = (
            os.pipe() for _ in range(3))
        ours, theirs = pair()
        self.link.fork(
            Fork(self.count, name, (
                '--state', f'{self.dir}/state-{self.count}', *words),
                expected.mark),
            Streams(theirs_out, theirs_errors, theirs_life, theirs.detach()))
        told = self.told()
        self.assertIsInstance(told, Forked, told)
        self.assertEqual(self.count, told.number)
        worker = Worker(
            Orphan(expected, name, told.pid, told.pidfd), out, errors,
            Packets(ours), life)
        self.addCleanup(worker.close)
        return worker

    def assertRunning(self, worker):
        self.assertEqual(Stage('running'), worker.stage())
