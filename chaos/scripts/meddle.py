"""What a program does to the children of all its threads."""

import contextlib
import os
import signal

from chaos.processes import words
from gocept.runner.errors import (
    DeadlineExceeded,
    EndpointClosedException,
    ProcessExistsException,
    StartError,
    WriteBufferFull,
)
from gocept.runner.process import procfs


class Meddling:
    """For `chaos.scripts.program.Program`."""

    def meddle(self, actor: dict) -> None:
        """Do one thing after the other."""
        for op in actor['ops']:
            if self.stopping.is_set():
                return
            self.touched.add(op['alias'])
            getattr(self, f'do_{op["op"]}')(op['alias'], op)
            self.pause(op['pause'])
        # Somebody may wait for who was stopped.
        for alias in {op['alias'] for op in actor['ops']}:
            self.do_signal(alias, {'signum': signal.SIGCONT, 'number': 0})

    def do_start(self, alias: str, op: dict) -> None:
        with contextlib.suppress(
                ProcessExistsException, StartError, DeadlineExceeded):
            self.runner.start(alias)

    def do_ensure(self, alias: str, op: dict) -> None:
        with contextlib.suppress(StartError, DeadlineExceeded):
            self.runner.ensure_running(alias)

    def do_insist(self, alias: str, op: dict) -> None:
        """Be the first to start it again, when another ends it."""
        for _ in range(op['number']):
            self.do_ensure(alias, op)
            self.pause(0.001)

    def do_terminate(self, alias: str, op: dict) -> None:
        signum = None if op['default'] else op['signum']
        self.sent[alias].add(signum or signal.SIGTERM)
        if op['timeout'] is not None or signum is not None:
            self.rude.add(alias)
        with contextlib.suppress(KeyError):
            self.runner.terminate(
                alias, signum,
                0.2 if signum and op['timeout'] is None else op['timeout'])

    def do_signal(self, alias: str, op: dict) -> None:
        self.sent[alias].add(op['signum'])
        if op['signum'] == signal.SIGSTOP:
            # Who is stopped may not be able to end in time.
            self.rude.add(alias)
        with contextlib.suppress(KeyError):
            process = self.runner.get_process(alias)
            if op['number'] % 2:
                process.send_signal(op['signum'])
            else:
                process.signal_group(op['signum'])

    def do_signal_one(self, alias: str, op: dict) -> None:
        """Send a signal to a child of the child."""
        with contextlib.suppress(KeyError, ProcessLookupError):
            children = procfs.children(self.runner.get_process(alias).pid)
            if children:
                pid = children[op['number'] % len(children)]
                fd = os.pidfd_open(pid)
                try:
                    if self.plan['word'].encode() in words(pid):
                        signal.pidfd_send_signal(fd, op['signum'])
                finally:
                    os.close(fd)

    def do_look(self, alias: str, op: dict) -> None:
        runner = self.runner
        if alias in runner.aliases():
            runner.status(alias)
            runner.get_process(alias).poll()
        runner.running(alias)
        with contextlib.suppress(StartError, DeadlineExceeded):
            runner.get_channel(alias)

    def do_write(self, alias: str, op: dict) -> None:
        # What is written to the echo would not be from who talks to it.
        if self.app(alias)['plan']['does'] in ('echo', 'serve'):
            return
        channel = self.runner.get_channel(alias)
        if channel is not None:
            with contextlib.suppress(EndpointClosedException, WriteBufferFull):
                channel.write(bytes(op['size']))

    def do_close(self, alias: str, op: dict) -> None:
        for each in self.plan['apps']:
            self.touched.add(each)
            self.sent[each].add(signal.SIGTERM)
        self.runner.close()
