"""aragaer's runner and channels, as their manuals and programs use them.

The programs are a chat service that is made of parts: a router, a translator,
clients in a terminal, and the tests that start them all.
"""

from gocept.runner.channel import EndpointClosedException
from gocept.runner.spawn import ProcessExistsException
from gocept.runner.tests.compatibility.rows import Raises, Row

# A server on a Unix socket that answers with what it is told.
SERVER = '''
write('server.py', """
    import os, socket, sys
    server = socket.socket(socket.AF_UNIX)
    server.bind(sys.argv[1])
    server.listen()
    while True:
        client, _ = server.accept()
        while data := client.recv(100):
            client.sendall(data)
""")
os.mkdir('there')
command = f'{sys.executable} {os.path.abspath("server.py")} socket'

'''

# A class of a user, with the three methods that the manual asks for.
CUSTOM = '''
class MockChannel(Channel):

    def __init__(self):
        self.to_read = [b'a\\nb', b'\\nrest']
        self.written = []

    def read(self):
        return self.to_read.pop(0) if self.to_read else b''

    def write(self, *data):
        self.written.extend(data)

    def close(self):
        self.written.append('closed')

'''

RUNNER = [
    Row('Runner(extra_paths=)', '''
os.mkdir('there')
write('there/hello', '#!/bin/sh\\necho hello\\n').chmod(0o755)
runner = Runner(extra_paths=[os.path.abspath('there')])
runner.add('hello', 'hello')
runner.start('hello')
read(runner.get_channel('hello'))
''', b'hello\n'),
    Row('Runner.add, start, get_channel', '''
runner = Runner()
runner.add('cat', 'cat')
runner.start('cat')
channel = runner.get_channel('cat')
channel.write(b'hello, world')
read(channel), isinstance(channel, Channel)
''', (b'hello, world', True)),
    Row('Runner.add(command=)', '''
runner = Runner()
runner.add('main', command='cat', buffering='line')
runner.start('main')
runner.get_channel('main').buffering
''', 'line'),
    Row('Runner.add updates', '''
runner = Runner()
runner.add('tell', 'echo one')
runner.add('tell', 'echo two')
runner.start('tell')
read(runner.get_channel('tell'))
''', b'two\n'),
    Row('Runner.update_config, ensure_running', '''
runner = Runner()
runner.update_config({'cat': {'command': 'cat', 'type': 'stdio'}})
runner.ensure_running('cat')
channel = runner.get_channel('cat')
channel.write(b'hello, world')
read(channel)
''', b'hello, world'),
    Row('Runner.start of what runs', '''
runner = Runner()
runner.add('cat', 'cat')
runner.start('cat')
runner.start('cat')
''', Raises(ProcessExistsException)),
    Row('Runner.ensure_running of what runs', '''
runner = Runner()
runner.add('cat', 'cat')
runner.start('cat')
channel = runner.get_channel('cat')
runner.ensure_running('cat'), runner.get_channel('cat') is channel
''', (None, True)),
    Row('Runner.ensure_running of what has ended', '''
runner = Runner()
runner.add('tell', 'echo hello')
runner.start('tell')
first = read_all(runner.get_channel('tell'))
until(lambda: runner.get_channel('tell') is None)
runner.ensure_running('tell')
first, read_all(runner.get_channel('tell'))
''', (b'hello\n', b'hello\n'), 'starts nothing'),
    Row('Runner.start of what was not added', '''
Runner().start('cat')
''', Raises(KeyError, 'cat')),
    Row('alias', '''
runner = Runner()
runner.add('cat', 'cat')
runner.start('cat', 'first')
runner.start('cat', alias='second')
runner.get_channel('first').write(b'1')
runner.get_channel('second').write(b'2')
read(runner.get_channel('first')), read(runner.get_channel('second'))
''', (b'1', b'2')),
    Row('with_args', '''
runner = Runner()
runner.add('tell', 'echo one')
runner.start('tell', with_args=['two', 'three'])
read(runner.get_channel('tell'))
''', b'one two three\n'),
    Row('keywords of start override', '''
os.mkdir('there')
runner = Runner()
runner.add('where', 'pwd', cwd='/')
runner.start('where', cwd=os.path.abspath('there'))
read(runner.get_channel('where')).endswith(b'/there\\n')
''', True),
    Row('keywords of ensure_running override', '''
runner = Runner()
runner.add('cat', 'cat')
runner.ensure_running('cat', buffering='line')
runner.get_channel('cat').buffering
''', 'line'),
    Row('cwd', '''
os.mkdir('there')
runner = Runner()
runner.add('where', 'pwd', cwd='there')
runner.start('where')
read(runner.get_channel('where')).endswith(b'/there\\n')
''', True),
    Row('setpgrp', '''
runner = Runner()
command = f'{sys.executable} -c "import os; print(os.getpgrp())"'
runner.add('own', command, setpgrp=True)
runner.add('ours', command)
runner.start('own')
runner.start('ours')
[int(read(runner.get_channel(each))) == os.getpgrp()
 for each in ('own', 'ours')]
''', [False, True]),
    Row('type=socket', SERVER + '''
runner = Runner()
runner.update_config({'server': {
    'command': command, 'type': 'socket', 'socket': 'socket'}})
runner.ensure_running('server')
channel = runner.get_channel('server')
channel.write(b'hello, world')
read(channel), isinstance(channel, SocketChannel)
''', (b'hello, world', True)),
    Row('socket= of start', SERVER + '''
runner = Runner()
runner.add('server', command, type='socket')
runner.start('server', socket='socket')
runner.get_channel('server').write(b'hello, world')
read(runner.get_channel('server'))
''', b'hello, world'),
    Row('socket= of ensure_running', SERVER + '''
runner = Runner()
runner.update_config({'server': {'command': command, 'type': 'socket'}})
runner.ensure_running('server', socket=os.path.abspath('socket'))
runner.get_channel('server').write(b'hello, world')
read(runner.get_channel('server'))
''', b'hello, world'),
    Row('a relative socket belongs to a relative cwd', SERVER + '''
runner = Runner()
runner.add('server', command, type='socket', cwd='there', socket='socket')
runner.start('server')
runner.get_channel('server').write(b'hello, world')
read(runner.get_channel('server')), os.path.exists('there/socket')
''', (b'hello, world', True), 'waits for ever'),
    Row('a socket in the cwd', SERVER + '''
runner = Runner()
runner.add('server', command, type='socket', cwd='there',
           socket='there/socket')
runner.start('server')
runner.get_channel('server').write(b'hello, world')
read(runner.get_channel('server'))
''', b'hello, world'),
    Row('buffering=line', '''
runner = Runner()
runner.add('cat', 'cat', buffering='line')
runner.start('cat')
channel = runner.get_channel('cat')
channel.write(b'one\\ntwo\\nthr')
isinstance(channel, LineChannel), [read(channel), read(channel)]
''', (True, [b'one\n', b'two\n']), 'channels 0.2 has no LineChannel'),
    Row('buffering=line: the unfinished line at the end', '''
runner = Runner()
runner.add('tell', "printf 'one\\\\nrest'", buffering='line')
runner.start('tell')
channel = runner.get_channel('tell')
[read(channel), read(channel)]
''', [b'one\n', b'rest']),
    Row('get_channel of what has ended and was read', '''
runner = Runner()
runner.add('tell', 'echo hello')
runner.start('tell')
output = read_all(runner.get_channel('tell'))
output, until(lambda: runner.get_channel('tell') is None)
''', (b'hello\n', True), 'the channel, again'),
    Row('get_channel of what was never started', '''
Runner().get_channel('cat')
''', None),
    Row('terminate', '''
write('child.sh', 'echo $$; exec cat')
runner = Runner()
runner.add('cat', 'sh child.sh')
runner.start('cat')
pid = int(read(runner.get_channel('cat')))
runner.terminate('cat'), os.path.exists(f'/proc/{pid}')
''', (None, False)),
    Row('terminate of what was never started', '''
Runner().terminate('main')
''', Raises(KeyError, 'main')),
    Row('terminate ends the channel', '''
runner = Runner()
runner.add('cat', 'cat')
runner.start('cat')
channel = runner.get_channel('cat')
runner.terminate('cat')
channel.write(b'hello')
''', Raises(EndpointClosedException)),
    Row('a component of a service', '''
class Kapellmeister:
    def __init__(self, components):
        self._components = components
        self._runner = Runner()
    def run(self):
        self._runner.update_config(self._components)
        for component in self._components:
            self._runner.ensure_running(component)
    def connect(self, component):
        return self._runner.get_channel(component)
service = Kapellmeister({'brain': {'command': 'cat', 'buffering': 'line'},
                         'voice': {'command': 'cat'}})
service.run()
channels = {name: service.connect(name) for name in ('brain', 'voice')}
names = {channel: name for name, channel in channels.items()}
poller = Poller()
for channel in channels.values():
    poller.register(channel)
channels['brain'].write(b'{"message": 1}', b'\\n')
[(data, channel)] = poller.poll(60)
data, names[channel]
''', (b'{"message": 1}\n', 'brain')),
]

CHANNELS = [
    Row('PipeChannel(faucet, sink)', '''
one, two = os.pipe(), os.pipe()
channel, other = PipeChannel(one[0], two[1]), PipeChannel(two[0], one[1])
other.write(b'hello')
channel.write(b'wor', b'ld')
read(channel), read(other), channel.get_fd() == one[0]
''', (b'hello', b'world', True)),
    Row('PipeChannel(faucet)', '''
faucet, sink = os.pipe()
os.write(sink, b'hello')
os.close(sink)
channel = PipeChannel(faucet)
read_all(channel), os.get_blocking(faucet)
''', (b'hello', False)),
    Row('PipeChannel(sink=)', '''
faucet, sink = os.pipe()
channel = PipeChannel(sink=sink)
channel.write(b'hello')
channel.close()
open(faucet, 'rb').read()
''', b'hello'),
    Row('PipeChannel(buffering=)', '''
faucet, sink = os.pipe()
channel = PipeChannel(faucet, buffering='line')
os.write(sink, b'one\\ntwo')
first = read(channel), channel.read()
os.close(sink)
first, read(channel), channel.buffering
''', ((b'one\n', b''), b'two', 'line')),
    Row('PipeChannel is a LineChannel with lines', '''
faucet, sink = os.pipe()
channel = PipeChannel(faucet, sink, buffering='line')
isinstance(channel, LineChannel), isinstance(channel, Channel)
''', (True, True), 'channels 0.2 has no LineChannel'),
    Row('PipeChannel of a FIFO', '''
os.mkfifo('pipe')
channel = PipeChannel(os.open('pipe', os.O_RDONLY | os.O_NONBLOCK))
poller = Poller()
poller.register(channel)
with open('pipe', 'wb') as file:
    file.write(b'message:hello')
results = poller.poll(60), poller.poll(60)
[(data, each is channel) for [(data, each)] in results]
''', [(b'message:hello', True), (b'', True)]),
    Row('SocketChannel(sock)', '''
one, other = socket.socketpair()
channel = SocketChannel(one)
channel.write(b'hello\\n')
other.sendall(b'world')
other.recv(100), read(channel), channel.get_fd() == one.fileno()
''', (b'hello\n', b'world', True)),
    Row('SocketChannel(buffering=)', '''
one, other = socket.socketpair()
channel = SocketChannel(one, buffering='line')
other.sendall(b'one\\ntwo\\nthr')
read(channel), channel.read(), channel.read(), channel.buffering
''', (b'one\n', b'two\n', b'', 'line')),
    Row('read of nothing', '''
one, other = socket.socketpair()
SocketChannel(one).read()
''', b''),
    Row('read after the end', '''
one, other = socket.socketpair()
channel = SocketChannel(one)
other.close()
read_all(channel)
channel.read()
''', Raises(EndpointClosedException)),
    Row('write after the end', '''
faucet, sink = os.pipe()
os.close(faucet)
PipeChannel(sink=sink).write(b'hello')
''', Raises(EndpointClosedException)),
    Row('write after close', '''
one, other = socket.socketpair()
channel = SocketChannel(one)
channel.close()
channel.write(b'hello')
''', Raises(EndpointClosedException)),
    Row('read after close', '''
one, other = socket.socketpair()
channel = SocketChannel(one)
channel.close()
channel.read()
''', Raises(EndpointClosedException)),
    Row('a descriptor that somebody has closed: read', '''
faucet, sink = os.pipe()
channel = PipeChannel(faucet)
os.close(faucet)
os.close(sink)
channel.read()
''', Raises(EndpointClosedException)),
    Row('a descriptor that somebody has closed: write', '''
faucet, sink = os.pipe()
channel = PipeChannel(sink=sink)
os.close(faucet)
os.close(sink)
channel.write(b'hello')
''', Raises(EndpointClosedException)),
    Row('close twice', '''
one, other = socket.socketpair()
channel = SocketChannel(one)
channel.close(), channel.close()
''', (None, None)),
    Row('LineChannel(channel)', '''
one, other = socket.socketpair()
channel = LineChannel(SocketChannel(one))
other.sendall(b'one\\ntwo\\nthr')
lines = []
while data := read(channel) if not lines else channel.read():
    lines.append(data)
lines, channel.buffering
''', ([b'one\n', b'two\n'], 'line'), 'channels 0.2 has no LineChannel'),
    Row('LineChannel: the unfinished line at the end', '''
one, other = socket.socketpair()
channel = LineChannel(SocketChannel(one))
other.sendall(b'one\\nrest')
other.close()
lines = []
while data := read(channel):
    lines.append(data)
    if data == b'rest':
        break
lines
''', [b'one\n', b'rest'], 'channels 0.2 has no LineChannel'),
    Row('LineChannel: after the unfinished line', '''
one, other = socket.socketpair()
channel = LineChannel(SocketChannel(one))
other.sendall(b'rest')
other.close()
read(channel)
channel.read()
''', Raises(EndpointClosedException), 'channels 0.2 has no LineChannel'),
    Row('Channel.buffering', '''
one, other = socket.socketpair()
SocketChannel(one).buffering, PipeChannel().buffering, TestChannel().buffering
''', ('bytes', 'bytes', 'bytes')),
    Row('Channel.buffering is read-only', '''
TestChannel().buffering = 'line'
''', Raises(AttributeError)),
    Row('a custom channel', CUSTOM + '''
channel = MockChannel()
channel.write(b'a', b'b')
channel.read(), channel.written, isinstance(channel, Channel)
''', (b'a\nb', [b'a', b'b'], True), 'TypeError: _read is abstract'),
    Row('a custom channel has no descriptor', CUSTOM + '''
MockChannel().get_fd()
''', Raises(NotImplementedError), 'TypeError: _read is abstract'),
    Row('LineChannel of a custom channel', CUSTOM + '''
custom = MockChannel()
channel = LineChannel(custom)
lines = [channel.read() for each in range(3)]
channel.write(b'hello')
channel.close()
lines, custom.written
''', ([b'a\n', b'b\n', b''], [b'hello', 'closed']),
        'TypeError: _read is abstract'),
    Row('channels as keys', '''
one, other = socket.socketpair()
channel = SocketChannel(one)
{channel: 'one'}[channel], channel == other, channel == channel
''', ('one', False, True)),
    Row('get_fd for select.poll', '''
one, other = socket.socketpair()
channel = SocketChannel(one)
poll = select.poll()
poll.register(channel.get_fd(), select.POLLIN)
other.sendall(b'hello')
[(fd, event)] = poll.poll(60_000)
fd == channel.get_fd(), channel.read()
''', (True, b'hello')),
    Row('TestChannel.put and get', '''
channel = TestChannel()
channel.put(b'hello')
channel.write(b'wor', b'ld')
channel.read(), channel.read(), channel.get(), channel.get()
''', (b'hello', b'', b'world', b'')),
    Row('TestChannel(buffering=)', '''
channel = TestChannel(buffering='line')
channel.put(b'one\\ntw')
first = channel.read(), channel.read()
channel.put(b'o\\n')
first, channel.read()
''', ((b'one\n', b''), b'two\n')),
    Row('TestChannel in a poller', '''
channel = TestChannel()
poller = Poller()
poller.register(channel)
nothing = poller.poll(0)
channel.put(b'hello')
[(data, each)] = poller.poll(60)
nothing, data, each is channel
''', ([], b'hello', True)),
]

POLLER = [
    Row('Poller.poll of nothing', '''
Poller().poll(0.01)
''', []),
    Row('Poller.register and poll', '''
one, other = socket.socketpair()
channel = SocketChannel(one)
poller = Poller()
poller.register(channel)
other.sendall(b'hello')
[(data, each)] = poller.poll()
data, each is channel
''', (b'hello', True)),
    Row('Poller: the end of a channel comes once', '''
one, other = socket.socketpair()
channel = SocketChannel(one)
poller = Poller()
poller.register(channel)
other.close()
[(data, each)] = poller.poll(60)
data, each is channel, poller.poll(0)
''', (b'', True, [])),
    Row('Poller: lines come one by one', '''
one, other = socket.socketpair()
poller = Poller()
poller.register(SocketChannel(one, buffering='line'))
other.sendall(b'one\\ntwo\\nthr')
[data for data, channel in poller.poll(60)]
''', [b'one\n', b'two\n']),
    Row('Poller.add_server', '''
server = socket.create_server(('127.0.0.1', 0))
poller = Poller()
poller.add_server(server)
client = socket.create_connection(server.getsockname())
[((address, channel), each)] = poller.poll(60)
client.sendall(b'hello')
[(data, source)] = poller.poll(60)
(address == client.getsockname(), each is server, data, source is channel,
 source == server)
''', (True, True, b'hello', True, False)),
    Row('Poller.add_server of a Unix socket', '''
server = socket.socket(socket.AF_UNIX)
server.bind('socket')
server.listen()
poller = Poller()
poller.add_server(server)
client = socket.socket(socket.AF_UNIX)
client.connect('socket')
[((address, channel), each)] = poller.poll(60)
channel.write(b'hello', b'\\n')
address, client.recv(100)
''', ('', b'hello\n')),
    Row('Poller(buffering=)', '''
server = socket.create_server(('127.0.0.1', 0))
poller = Poller(buffering='line')
poller.add_server(server)
client = socket.create_connection(server.getsockname())
[((address, channel), each)] = poller.poll(60)
client.sendall(b'one\\ntwo\\nthr')
channel.buffering, [data for data, channel in poller.poll(60)]
''', ('line', [b'one\n', b'two\n'])),
    Row('Poller.unregister', '''
one, other = socket.socketpair()
channel = SocketChannel(one)
poller = Poller()
poller.register(channel)
poller.unregister(channel)
other.sendall(b'hello')
poller.poll(0), channel.read()
''', ([], b'hello')),
    Row('Poller.unregister of what is not registered', '''
one, other = socket.socketpair()
Poller().unregister(SocketChannel(one))
''', None),
    Row('Poller: unregister and close between results', '''
one, other = socket.socketpair()
channel = SocketChannel(one, buffering='line')
poller = Poller()
poller.register(channel)
other.sendall(b'no json\\n')
for data, channel in poller.poll(60):
    poller.unregister(channel)
    channel.close()
poller.poll(0)
''', []),
    Row('Poller: a channel that was closed', '''
one, other = socket.socketpair()
channel = SocketChannel(one)
poller = Poller()
poller.register(channel)
channel.close()
[data for data, channel in poller.poll(0)], poller.poll(0)
''', ([b''], [])),
    Row('Poller.close_all', '''
server = socket.create_server(('127.0.0.1', 0))
one, other = socket.socketpair()
channel = SocketChannel(one)
poller = Poller()
poller.add_server(server)
poller.register(channel)
poller.close_all(), poller.close_all(), server.fileno(), other.recv(100)
''', (None, None, -1, b'')),
]

PROGRAMS = [
    Row('a translator', '''
class TranslatorServer:
    def __init__(self, socket):
        self._poller = Poller()
        self._socket = socket
        self._poller.add_server(socket)
    def work(self, timeout=None):
        for data, channel in self._poller.poll(timeout):
            if channel == self._socket:
                seen.append('connected')
            else:
                try:
                    request = json.loads(data.decode())
                except json.JSONDecodeError:
                    self._poller.unregister(channel)
                    channel.close()
                    continue
                channel.write(json.dumps({'text': request['intent']}).encode(),
                              b'\\n')
server = socket.socket(socket.AF_UNIX)
server.bind('socket')
server.listen(0)
translator = TranslatorServer(server)
client = socket.socket(socket.AF_UNIX)
client.connect('socket')
translator.work()
client.sendall(b'{"intent": "hello"}\\n')
translator.work()
answer = client.recv(100)
client.sendall(b'no json')
translator.work()
seen, answer, client.recv(100)
''', (['connected'], b'{"text": "hello"}\n', b'')),
    Row('a router', '''
class Router:
    def __init__(self, server, backend):
        self._server = server
        self._backend = backend
        self._poller = Poller(buffering='line')
        self._poller.add_server(server)
        self._poller.register(backend)
        self._names = {}
    def tick(self, timeout=None):
        for data, channel in self._poller.poll(timeout):
            if channel == self._server:
                continue
            elif channel == self._backend:
                for endpoint in self._names:
                    endpoint.write(data)
            elif not data:
                seen.append(f'{self._names.pop(channel)} is gone')
                channel.close()
            elif channel not in self._names:
                self._names[channel] = data.decode().strip()
            else:
                self._backend.write(data)
brain, ours = socket.socketpair()
server = socket.create_server(('127.0.0.1', 0))
router = Router(server, SocketChannel(ours, buffering='line'))
client = socket.create_connection(server.getsockname())
router.tick(60)
client.sendall(b'local\\n')
router.tick(60)
client.sendall(b'hello\\n')
router.tick(60)
question = brain.recv(100)
brain.sendall(b'who is there?\\n')
router.tick(60)
answer = client.recv(100)
client.close()
router.tick(60)
router.tick(0)
question, answer, seen
''', (b'hello\n', b'who is there?\n', ['local is gone'])),
    Row('a server with select', '''
server = socket.create_server(('127.0.0.1', 0))
client = socket.create_connection(server.getsockname())
sock, _ = server.accept()
channel = LineChannel(SocketChannel(sock))
client.sendall(b'one\\ntwo\\n')
while len(seen) < 2:
    select.select([sock], [], [], 60)
    while True:
        line = channel.read()
        if not line:
            break
        seen.append(line)
seen
''', [b'one\n', b'two\n'], 'channels 0.2 has no LineChannel'),
    Row('a test that reads until the end', '''
runner = Runner()
runner.add('main', 'echo hello')
runner.start('main')
channel = runner.get_channel('main')
replies = ''
while True:
    try:
        message = channel.read()
    except Exception:
        break
    if message:
        replies += message.decode()
replies
''', 'hello\n'),
]

ROWS = [*RUNNER, *CHANNELS, *POLLER, *PROGRAMS]
