"""A server and a client on two machines: network namespaces and a cable."""

import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

from gocept.runner.tests import services
from gocept.runner.tests.support import DEADLINE, child_environment

HERE, THERE = '192.0.2.1', '192.0.2.2'  # of the server, of the client

PORT = 54321  # the machine has no other servers

SERVER = f'''
from gocept.runner.background import Server

Server({HERE!r}, {PORT}, 'secret', insecure=True).run()
'''

CLIENT = f'''
import sys
from gocept.runner.background import Client, respond
from gocept.runner.errors import BackgroundError

def init_task():
    return {{'calls': 0}}

def exec_task(client_socket, state, path):
    state['calls'] += 1
    respond(client_socket, [state['calls'], open(path).read() if path else ''])
    return state

def tell(*words):
    print(*words, flush=True)

def call(*args):
    try:
        return client.execute(*args, True)
    except BackgroundError as error:
        return f'{{type(error).__name__}}: {{error}}'

client = Client({HERE!r}, {PORT}, 'secret', heartbeat=1,
                connect_timeout={DEADLINE})
tell(client.initialize(init_task, exec_task, None)['message'])
tell(call(''))
tell(call(sys.argv[1]))
sys.stdin.readline()
tell(call(''))
tell(client.terminate()['message'])
'''


class NetworkTests(unittest.TestCase):

    def setUp(self) -> None:
        unshare = shutil.which('unshare')
        if unshare is None or subprocess.run(
                [unshare, '--net', 'true'], stderr=subprocess.DEVNULL,
                check=False).returncode:
            self.skipTest('no network namespace can be made here')
        self.unshare = unshare
        self.ip = services.need(self, 'ip')
        self.dir = pathlib.Path(self.enterContext(
            tempfile.TemporaryDirectory()))

    def start(self, script: str, *args: str) -> 'subprocess.Popen[str]':
        """Start a program on a machine of its own, without a cable."""
        process = subprocess.Popen(
            [self.unshare, '--net', sys.executable, '-c',
             'import sys; print(flush=True); sys.stdin.readline()\n' + script,
             *args],
            env=child_environment(XDG_STATE_HOME=str(self.dir)),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True)
        self.addCleanup(process.communicate, timeout=DEADLINE)
        self.addCleanup(process.kill)
        self.hear(process)
        return process

    def hear(self, process: 'subprocess.Popen[str]') -> str:
        assert process.stdout is not None
        return process.stdout.readline().rstrip('\n')

    def go_on(self, process: 'subprocess.Popen[str]') -> None:
        assert process.stdin is not None
        process.stdin.write('\n')
        process.stdin.flush()

    def do(self, machine: 'subprocess.Popen[str]', *words: str) -> None:
        """Call ``ip`` on a machine."""
        subprocess.run(['nsenter', '--net', '--target', str(machine.pid),
                        self.ip, *words], check=True)

    def test_a_cable_that_is_cut(self) -> None:
        fifo = self.dir / 'fifo'
        subprocess.run(['mkfifo', str(fifo)], check=True)
        server, client = self.start(SERVER), self.start(CLIENT, str(fifo))
        self.do(server, 'link', 'add', 'cable', 'type', 'veth', 'peer',
                'name', 'cable', 'netns', str(client.pid))
        for machine, address in (server, HERE), (client, THERE):
            self.do(machine, 'address', 'add', f'{address}/24', 'dev', 'cable')
            self.do(machine, 'link', 'set', 'cable', 'up')
        self.go_on(server)
        self.assertIn(f'A server listens at {HERE}', self.hear(server))
        self.go_on(client)
        self.assertEqual('Initialization successful.', self.hear(client))
        self.assertEqual("[1, '']", self.hear(client))
        with open(fifo, 'w'):  # the task runs
            self.do(server, 'link', 'set', 'cable', 'down')
            self.assertRegex(self.hear(client), '^ConnectionLost: the server '
                             f'at {HERE}:{PORT} has been silent for 3 s:')
        self.do(server, 'link', 'set', 'cable', 'up')
        self.go_on(client)
        self.assertEqual("[3, '']", self.hear(client))
        self.assertEqual("Received 'EXIT'", self.hear(client))
        self.assertEqual(0, server.wait(DEADLINE))


if __name__ == '__main__':
    unittest.main()
