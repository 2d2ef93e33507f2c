"""What goes over the wire is understood on Windows, too."""

import subprocess
import sys
import unittest

from gocept.runner.tests.background.scripted import (
    Conversation,
    ScriptedServer,
)
from gocept.runner.tests.kernels import free_port
from gocept.runner.tests.support import DEADLINE, child_environment

LACKING = '''
import os, select, signal, socket, sys
for name in 'fcntl', 'grp', 'pwd', 'resource':
    sys.modules[name] = None
for name in ('fork', 'geteuid', 'getuid', 'register_at_fork', 'O_CLOEXEC',
             'O_NOFOLLOW', 'O_NONBLOCK'):
    delattr(os, name)
for name in 'epoll', 'poll':
    delattr(select, name)
del signal.SIGKILL, socket.AF_UNIX
'''

USED = '''
from gocept.runner import background
from gocept.runner.background.frames import (
    ANSWERS, REQUESTS, Opener, Sealer)
from gocept.runner.background.handshake import Challenge, prove
from gocept.runner.background.tls import client_context
from gocept.runner.background.tokens import find_token, given_token
from gocept.runner.background.values import decode, encode

token = background.token_create().encode()
challenge = Challenge()
proof = prove(challenge.data, 0, token)
server = challenge.check(proof.data, {0: token})
client = proof.check(server.answer)
pieces, flags = encode({'f': lambda: 42}, by_value=[background])
opener = Opener(server.receive, kinds=REQUESTS)
[message] = opener.feed(
    b''.join(Sealer(client.send).pieces(2, flags, 1, pieces)))
assert decode(message.pieces)['f']() == 42
assert given_token(None, {}) is None
assert find_token('127.0.0.1', 1) is None
assert issubclass(background.ServerRefused, PermissionError)
'''

CLIENT = '''
from gocept.runner.background import Client, execute, initialize, terminate
from gocept.runner.errors import BackgroundError

taken, free = map(int, sys.argv[1:])
token = 'the token of the tests'
tasks = len, lambda *args: 42, None
options = dict(host='127.0.0.1', port=taken, token=token)
assert initialize(*tasks, **options)['message'] == 'got 1'
assert initialize('127.0.0.1', taken, *tasks, token)['message'] == 'got 1'
assert execute({'x': 1}, True, **options)['message'] == 'got 2'
assert terminate(await_response=True, **options)['message'] == 'got 3'
big = b'x' * 5_000_000
with Client(**options, timeout=60) as client:
    assert client.execute(big, True)['message'] == 'got 2'
    pending = [client.submit(big) for _ in range(5)]
    assert pending[-1].result()['message'] == 'got 2'
try:
    initialize(*tasks, port=free, token=token)
except BackgroundError as error:
    assert 'need Linux' in str(error), error
else:
    raise AssertionError
'''

COUNTED = '''
for name in 'zope', 'ZODB', 'subprocess', 'asyncio', 'multiprocessing':
    assert name not in sys.modules, name
'''


class PortableTests(unittest.TestCase):

    def run_script(self, script: str, *args: str) -> None:
        result = subprocess.run(
            [sys.executable, '-c', script, *args], env=child_environment(),
            stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            timeout=DEADLINE)
        self.assertEqual('', result.stderr)
        self.assertEqual(0, result.returncode)

    def test_without_what_only_posix_has(self) -> None:
        self.run_script(LACKING + USED)

    def test_little_is_imported(self) -> None:
        self.run_script('import sys\n' + USED.replace(
            "{'f': lambda: 42}, by_value=[background]", "{'f': len}").replace(
            "['f']() == 42", "['f']('x') == 1") + COUNTED)

    def test_client_without_what_only_posix_has(self) -> None:
        def script(conversation: Conversation) -> None:
            conversation.agree()
            while True:
                request = conversation.receive()
                conversation.respond(
                    request, {'message': f'got {request.kind}'})
        with ScriptedServer(script) as server:
            self.run_script(
                LACKING + CLIENT, str(server.port), str(free_port()))
