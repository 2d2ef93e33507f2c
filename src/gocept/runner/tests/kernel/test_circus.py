"""The process manager circus, whose kernel is ours."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Sequence

from gocept.runner.tests.kernels import Daemon
from gocept.runner.tests.support import (
    DEADLINE,
    Program,
    TestCase,
    child_environment,
)
from gocept.runner.tests.victims import until

CIRCUS = '''\
import shlex, sys
import papa
sys.modules.setdefault('pipes', shlex)  # Python 3.13 has none any more
from circus import {program}
# It makes its sockets before it looks at papa_endpoint.
papa.set_default_path({path!r})
sys.exit({program}.main())
'''

WRITER = '''\
import itertools, sys, time
for number in itertools.count():
    print(number, flush=True)
    print('error', number, file=sys.stderr, flush=True)
    time.sleep(0.01)
'''

# It says something all the time, as circus cannot end before it has heard
# something of each process.
SERVER = '''\
import os, socket, sys
with socket.socket(fileno=int(sys.argv[1])) as sock:
    sock.settimeout(0.01)
    while True:
        print('waiting', flush=True)
        try:
            connection, _ = sock.accept()
        except TimeoutError:
            continue
        with connection:
            connection.sendall(b'%d' % os.getpid())
'''


class CircusTests(TestCase):

    def setUp(self) -> None:
        super().setUp()
        self.daemon = Daemon(self)
        self.enterContext(kernel := self.daemon.kernel())
        self.kernel = kernel
        self.path = self.daemon.directory
        for name, text in ('writer', WRITER), ('server', SERVER):
            self.write(f'{name}.py', text)
        for name in 'circusd', 'circusctl':
            self.write(f'{name}.py', CIRCUS.format(
                program=name, path=self.daemon.where))

    def start(self, sections: str) -> Program:
        """Start circus, and wait until it takes commands."""
        ini = self.write('circus.ini', f'''
            [circus]
            endpoint = ipc://{self.path}/endpoint
            pubsub_endpoint = ipc://{self.path}/events
            papa_endpoint = ipc://{self.daemon.where}
            check_delay = 0.1
            ''' + textwrap.indent(textwrap.dedent(sections), ' ' * 12))
        circus = Program(self.dir / 'circusd.py', str(ini), cwd=self.dir)
        self.addCleanup(circus.close)
        circus.wait_for('Arbiter now waiting for commands')
        self.control('status')
        return circus

    def control(self, *command: str) -> str:
        """Have circus do something."""
        done = subprocess.run(
            [sys.executable, self.dir / 'circusctl.py', '--endpoint',
             f'ipc://{self.path}/endpoint', '--timeout', str(DEADLINE),
             *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=DEADLINE, env=child_environment())
        self.assertEqual(0, done.returncode, done.stdout)
        return done.stdout

    def stop(self, circus: Program) -> None:
        """End circus; what it has started goes on."""
        circus.send(signal.SIGTERM)
        self.assertEqual(0, circus.end(), circus.output)

    def writer(self, more: str = '') -> str:
        """A section that starts the writer."""
        return f'''
            [watcher:Writer]
            cmd = {sys.executable} -I -S {self.dir}/writer.py
            use_papa = true
            stdout_stream.class = FileStream
            stdout_stream.filename = {self.dir}/out
            stderr_stream.class = FileStream
            stderr_stream.filename = {self.dir}/err
            graceful_timeout = 5
            ''' + more

    def server(self) -> str:
        """Sections that start a server on a socket of the kernel."""
        return f'''
            [socket:web]
            host = 127.0.0.1
            port = 0
            use_papa = true

            [watcher:server]
            cmd = {sys.executable} -I -S {self.dir}/server.py $(circus.sockets.web)
            use_sockets = true
            use_papa = true
            stdout_stream.class = FileStream
            stdout_stream.filename = {self.dir}/server.out
            '''  # noqa: E501

    def pid(self, name: str) -> int | None:
        """The process that has a name in the kernel."""
        found = self.kernel.list_processes(name)
        return found[name]['pid'] if found and found[name]['running'] else None

    def lines(self, name: str = 'out') -> Sequence[str]:
        """What has arrived in a file of circus, in complete lines."""
        path = self.dir / name
        text = path.read_text() if path.exists() else ''
        return text[:text.rfind('\n') + 1].splitlines()

    def wait_for_more(self) -> int:
        """Wait until more has arrived; returns how much there is."""
        before = len(self.lines())
        return until(lambda: (
            count if (count := len(self.lines())) > before + 10 else 0))

    def assert_numbered(self) -> None:
        """Each line that was written is there, once."""
        lines = self.lines()
        self.assertEqual([*map(str, range(len(lines)))], lines)

    def test_output_arrives(self) -> None:
        self.start(self.writer())
        self.wait_for_more()
        self.assert_numbered()
        errors = self.lines('err')
        self.assertEqual([f'error {n}' for n in range(len(errors))], errors)

    def test_what_it_has_started_outlives_circus(self) -> None:
        circus = self.start(self.writer())
        self.wait_for_more()
        pid = self.pid('circus.writer.1')
        self.stop(circus)
        self.assertEqual(pid, self.pid('circus.writer.1'))
        circus = self.start(self.writer())
        self.assertEqual(pid, self.pid('circus.writer.1'))
        self.wait_for_more()
        self.assert_numbered()

    def test_killed_circus_finds_its_processes(self) -> None:
        circus = self.start(self.writer('numprocesses = 2\n'))
        self.wait_for_more()
        names = ('circus.writer.1', 'circus.writer.2')
        before = [*map(self.pid, names)]
        circus.send(signal.SIGKILL)
        circus.end()
        self.start(self.writer('numprocesses = 2\n'))
        self.wait_for_more()
        self.assertEqual(before, [*map(self.pid, names)])
        self.assertEqual({*names}, {*self.kernel.list_processes()})

    def test_process_that_was_killed_is_started_again(self) -> None:
        self.start(self.writer())
        self.wait_for_more()
        first = self.pid('circus.writer.1')
        os.kill(first, signal.SIGKILL)
        until(lambda: len(found := self.kernel.list_processes()) == 1
              and next(iter(found.values()))['pid'] != first)
        self.wait_for_more()

    def test_restart_replaces_the_process(self) -> None:
        self.start(self.writer())
        self.wait_for_more()
        first = self.pid('circus.writer.1')
        self.control('restart', 'Writer', '--waiting')
        until(lambda: len(found := self.kernel.list_processes()) == 1
              and next(iter(found.values()))['pid'] != first)
        self.wait_for_more()

    def test_stop_ends_the_process(self) -> None:
        self.start(self.writer())
        self.wait_for_more()
        self.control('stop', 'Writer', '--waiting')
        until(lambda: not self.kernel.list_processes())
        self.control('start', 'Writer', '--waiting')
        self.wait_for_more()

    def test_socket_stays_open_without_circus(self) -> None:
        circus = self.start(self.server())
        port = self.kernel.list_sockets('circus.web')['circus.web']['port']
        answer = self.ask(port)
        self.assertEqual(answer, self.pid('circus.server.1'))
        self.stop(circus)
        self.assertEqual(answer, self.ask(port))
        self.start(self.server())
        self.assertEqual(answer, self.ask(port))

    def ask(self, port: int) -> int:
        """Which process answers on the port."""
        with socket.create_connection(('127.0.0.1', port), DEADLINE) as sock:
            return int(sock.recv(100))
