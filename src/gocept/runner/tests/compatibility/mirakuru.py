"""mirakuru, as its manual, pytest plugins and conftests of projects use it.

The plugins subclass the executors, set attributes of their own before the
constructor of the class is called, and override most methods.
"""

import signal
import subprocess

from gocept.runner.executor import (
    AlreadyRunning,
    ProcessExitedWithError,
    ProcessFinishedWithError,
    TimeoutExpired,
)
from gocept.runner.tests.compatibility.rows import Raises, Row

# A server that listens on the port, or the path, in its arguments.
SERVER = '''
write('server.py', """
    import os, socket, sys
    if sys.argv[1].isdecimal():
        address = '127.0.0.1', int(sys.argv[1])
        server = socket.create_server(address)
    else:
        server = socket.socket(socket.AF_UNIX)
        server.bind(sys.argv[1])
        server.listen()
    while True:
        client, _ = server.accept()
        client.close()
""")
command = f'{sys.executable} server.py {port}'

'''

WEB_SERVER = '''
write('web.py', """
    import http.server, sys
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(404 if self.path == '/missing' else 200)
            self.end_headers()
        def do_POST(self):
            length = int(self.headers['Content-Length'])
            body = self.rfile.read(length).decode()
            ok = body == 'key=value' and self.headers['X-Key'] == 'value'
            self.send_response(200 if ok else 400)
            self.end_headers()
        def log_message(self, *args):
            pass
    address = '127.0.0.1', int(sys.argv[1])
    http.server.HTTPServer(address, Handler).serve_forever()
""")
command = f'{sys.executable} web.py {port}'
url = f'http://127.0.0.1:{port}/status'

'''

# How a plugin starts PostgreSQL: the command ends, the server goes on.
LAUNCHER = SERVER + '''
class LauncherExecutor(TCPExecutor):

    def __init__(self, host, port, datadir, *, shell=False, timeout=60,
                 sleep=0.1, user='postgres', options=''):
        self._directory_initialised = False
        self.user = user
        self.options = options
        self.datadir = datadir
        super().__init__(
            ['sh', '-c', f'{command} & echo $! > {datadir}/pid'], host, port,
            shell=shell, timeout=timeout, sleep=sleep,
            envvars={'LC_ALL': 'C.UTF-8', 'LANG': 'C.UTF-8'})

    @property
    def version(self):
        return 15

    @property
    def pid(self):
        with open(f'{self.datadir}/pid') as file:
            return int(file.read())

    def start(self):
        os.makedirs(self.datadir)
        env = os.environ.copy()
        env.update(self.envvars)
        subprocess.check_output(['true'], env=env, timeout=self._timeout)
        self._directory_initialised = True
        return super().start()

    def running(self):
        if not os.path.exists(f'{self.datadir}/pid'):
            return False
        return os.path.exists(f'/proc/{self.pid}')

    def check_subprocess(self):
        return super().check_subprocess()

    def stop(self, sig=None, exp_sig=None):
        try:
            os.kill(self.pid, signal.SIGTERM)
            super().stop(sig, exp_sig)
        except ProcessFinishedWithError:
            pass
        return self

    def __del__(self, seen=seen):
        try:
            super().__del__()
        finally:
            seen.append('deleted')

'''

NAMES = [
    Row('mirakuru', '''
from gocept.runner.executor import (
    AlreadyRunning, Executor, ExecutorError, HTTPExecutor, OutputExecutor,
    PidExecutor, ProcessExitedWithError, ProcessFinishedWithError,
    SimpleExecutor, TCPExecutor, TimeoutExpired, UnixSocketExecutor)
[each.__mro__[1].__name__ for each in (
    AlreadyRunning, ProcessExitedWithError, ProcessFinishedWithError,
    TimeoutExpired)]
''', ['ExecutorError', 'ExecutorError', 'ProcessExitedWithError',
      'ExecutorError']),
    Row('from mirakuru import *', '''
names = {}
exec('from gocept.runner.executor import *', names)
{'SimpleExecutor', 'HTTPExecutor', 'ProcessExitedWithError'} <= set(names)
''', True),
    Row('each executor is a SimpleExecutor', '''
[issubclass(each, Executor) and issubclass(each, SimpleExecutor)
 for each in (TCPExecutor, HTTPExecutor, PidExecutor, UnixSocketExecutor)]
''', [True, True, True, True]),
    Row('HTTPExecutor is a TCPExecutor', '''
issubclass(HTTPExecutor, TCPExecutor)
''', True),
    Row('TimeoutExpired(executor, timeout)', '''
executor = SimpleExecutor('sleep 100', timeout=5)
error = TimeoutExpired(executor, executor._timeout)
error.executor is executor, error.timeout, 'sleep 100' in str(error)
''', (True, 5, True)),
    Row('TimeoutExpired(executor, None)', '''
executor = SimpleExecutor('sleep 100', timeout=None)
error = TimeoutExpired(executor, executor._timeout)
error.timeout, 'sleep 100' in str(error)
''', (None, True)),
    Row('ProcessFinishedWithError(executor, exit_code)', '''
executor = SimpleExecutor('sleep 100')
error = ProcessFinishedWithError(executor, 3)
error.executor is executor, error.exit_code, 'sleep 100' in str(error)
''', (True, 3, True)),
    Row('ProcessExitedWithError(executor, exit_code)', '''
executor = SimpleExecutor('sleep 100')
error = ProcessExitedWithError(executor, -9)
error.executor is executor, error.exit_code, 'sleep 100' in str(error)
''', (True, -9, True)),
    Row('AlreadyRunning(executor)', '''
executor = SimpleExecutor('sleep 100')
error = AlreadyRunning(executor)
error.executor is executor, 'already running' in str(error)
''', (True, True)),
    Row('how messages begin', '''
executor = SimpleExecutor('sleep 100', timeout=5)
[str(error).startswith(f'Executor {executor} ') for error in (
    TimeoutExpired(executor, 5), AlreadyRunning(executor))]
''', [True, True]),
    Row('words of messages', '''
executor = SimpleExecutor('sleep 100', timeout=5)
('timed out after 5 seconds' in str(TimeoutExpired(executor, 5)),
 'exited with a non-zero code: 3' in str(ProcessExitedWithError(executor, 3)))
''', (True, True)),
    Row('ExecutorError(executor)', '''
executor = SimpleExecutor('sleep 100')
ExecutorError(executor).executor is executor
''', True),
]

SIMPLE = [
    Row('SimpleExecutor.start, running, stop', '''
process = SimpleExecutor('sleep 100')
before = process.running()
started = process.start()
running = process.running()
stopped = process.stop()
before, started is process, running, stopped is process, process.running()
''', (False, True, True, True, False)),
    Row('SimpleExecutor: a list', '''
process = SimpleExecutor(['sleep', '100'])
process.command, list(process.command_parts), process.start().running()
''', ('sleep 100', ['sleep', '100'], True)),
    Row('SimpleExecutor: the command of a list is quoted', '''
process = SimpleExecutor(['echo', 'a  b;', '$HOME'], shell=True)
process.command, process.start().output().read()
''', ("echo 'a  b;' '$HOME'", 'a  b; $HOME\n')),
    Row('SimpleExecutor: a text', '''
process = SimpleExecutor('sleep "100"')
process.command, list(process.command_parts), process.start().running()
''', ('sleep "100"', ['sleep', '100'], True)),
    Row('SimpleExecutor: a tuple', '''
SimpleExecutor(('sleep', '100')).start().running()
''', True),
    Row('SimpleExecutor: a text of several lines', '''
process = SimpleExecutor(f"""
    echo
    -n 'hello
world'
""")
process.start().output().read()
''', 'hello\nworld'),
    Row('the parameters have an order', '''
process = SimpleExecutor(
    'pwd; echo $KEY', '/', True, 10, 0.1, signal.SIGTERM, signal.SIGKILL,
    None, {'KEY': 'value'}, subprocess.PIPE, subprocess.PIPE, None).start()
process.output().read()
''', '/\nvalue\n'),
    Row('cwd', '''
process = SimpleExecutor('pwd', cwd='/').start()
process.output().read()
''', '/\n'),
    Row('shell=True', '''
process = SimpleExecutor('echo $((1 + 1))', shell=True).start()
process.output().read()
''', '2\n'),
    Row('shell=True with a list', '''
process = SimpleExecutor(['echo', 'one', 'two'], shell=True).start()
process.output().read()
''', 'one two\n'),
    Row('envvars', '''
process = SimpleExecutor('echo $KEY', shell=True, envvars={'KEY': 'value'})
process.envvars['KEY'], process.start().output().read()
''', ('value', 'value\n')),
    Row('envvars has the environment, too', '''
os.environ['COMPATIBILITY'] = 'value'
try:
    envvars = SimpleExecutor('sleep 100', envvars={'KEY': 'value'}).envvars
finally:
    del os.environ['COMPATIBILITY']
envvars['COMPATIBILITY'], envvars['KEY']
''', ('value', 'value')),
    Row('envvars that are for the child alone', '''
process = SimpleExecutor('echo $PYTHONHOME $LD_PRELOAD', shell=True, envvars={
    'PYTHONHOME': '/nowhere', 'PYTHONPATH': '/nowhere', 'PYTHONSTARTUP': '/no',
    'LD_PRELOAD': ''}).start()
process.output().read()
''', '/nowhere\n'),
    Row('popen_kwargs', '''
process = SimpleExecutor('umask', shell=True, popen_kwargs={'umask': 0o27})
process.start().output().read()
''', '0027\n'),
    Row('a parameter comes before popen_kwargs', '''
process = SimpleExecutor('pwd', cwd='/', popen_kwargs={'cwd': '/usr'})
process.start().output().read()
''', '/\n'),
    Row('popen_kwargs: preexec_fn', '''
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    process = SimpleExecutor('sleep 100', popen_kwargs={
        'preexec_fn': os.setsid}).start()
[each.category for each in caught if 'preexec_fn' in str(each.message)] != []
''', True, 'no warning'),
    Row('attributes of the plugins', '''
process = SimpleExecutor(
    'sleep 100', cwd='/', timeout=12, sleep=0.2, envvars={'KEY': 'value'},
    stop_signal=signal.SIGINT)
(process._timeout, process._sleep, process._cwd, process._shell,
 process._stop_signal, process._popen_kwargs['env']['KEY'],
 'PATH' in process._popen_kwargs['env'])
''', (12, 0.2, '/', False, signal.SIGINT, 'value', True)),
    Row('_popen_kwargs after the start', '''
process = SimpleExecutor('sleep 100', envvars={'KEY': 'value'}).start()
subprocess.check_output(['sh', '-c', 'echo $KEY'],
                        env=process._popen_kwargs['env'])
''', b'value\n'),
    Row('process before the start and after the stop', '''
process = SimpleExecutor('sleep 100')
process.process, process.start().stop().process
''', (None, None)),
    Row('stop_signal', '''
write('child.sh', 'trap "exit 7" INT; echo ready; while :; do sleep .1; done')
process = OutputExecutor('sh child.sh', 'ready', stop_signal=signal.SIGINT,
                         expected_returncode=7)
process.start().stop().running()
''', False),
    Row('stop of a child that ends with 0', '''
write('child.sh', 'trap "exit 0" TERM; echo ready; while :; do sleep .1; done')
OutputExecutor('sh child.sh', 'ready').start().stop().running()
''', False),
    Row('kill_signal', '''
process = SimpleExecutor('sleep 100', kill_signal=signal.SIGQUIT).start()
process.kill().running()
''', False),
    Row('children of the child end, too', '''
process = OutputExecutor('sleep 100 & echo $!; wait', r'\\d+', shell=True)
process.start()
[child] = children(process.process.pid)
process.stop()
alive(child)
''', False),
    Row('stop(stop_signal, expected_returncode)', '''
write('child.sh', 'trap "exit 7" INT; echo ready; while :; do sleep .1; done')
process = OutputExecutor('sh child.sh', 'ready').start()
process.stop(signal.SIGINT, 7).running()
''', False),
    Row('stop of a child with another status', '''
write('child.sh', 'trap "exit 7" TERM; echo ready; while :; do sleep .1; done')
OutputExecutor('sh child.sh', 'ready').start().stop()
''', Raises(ProcessFinishedWithError, '7')),
    Row('stop after an end with a status', '''
process = SimpleExecutor('exit 3', shell=True).start()
until(lambda: not process.running())
try:
    process.stop()
except mirakuru.ProcessExitedWithError as error:
    seen.append(error.exit_code)
seen, process.running()
''', ([3], False)),
    Row('stop after a SIGKILL from elsewhere', '''
process = SimpleExecutor('sleep 100').start()
os.kill(process.process.pid, signal.SIGKILL)
until(lambda: not process.running())
try:
    process.stop()
except mirakuru.ProcessExitedWithError as error:
    seen.append(error.exit_code)
seen
''', [-9]),
    Row('stop before the start', '''
SimpleExecutor('sleep 100').stop().running()
''', False),
    Row('kill', '''
process = SimpleExecutor('sleep 100').start()
process.kill() is process, process.running()
''', (True, False)),
    Row('kill(wait=, sig=)', '''
process = SimpleExecutor('sleep 100').start()
process.kill(wait=True, sig=signal.SIGTERM).running()
''', False),
    Row('stop, and then kill', '''
SimpleExecutor('sleep 100').start().stop().kill().stop().running()
''', False),
    Row('stop as a finalizer', '''
process = SimpleExecutor('sleep 100')
finalizer = process.stop
process.start()
finalizer().running()
''', False),
    Row('two executors of one command', '''
first, second = [SimpleExecutor('sleep 100').start() for each in range(2)]
first.stop()
first.running(), second.running()
''', (False, True)),
    Row('a chain', '''
callable(SimpleExecutor('sleep 100').start().stop().output)
''', True),
    Row('with', '''
with SimpleExecutor('sleep 100') as process:
    seen.append(process.running())
seen.append(process.running())
seen
''', [True, False]),
    Row('stopped', '''
process = SimpleExecutor('sleep 100').start()
with process.stopped() as same:
    seen.append(process.running())
seen.append(process.running())
seen, same is process
''', ([False, True], True)),
    Row('output: readline', '''
process = SimpleExecutor('echo one; echo two', shell=True).start()
process.output().readline(), process.output().readline()
''', ('one\n', 'two\n')),
    Row('output: lines', '''
process = SimpleExecutor('echo one; echo two', shell=True).start()
[line for line in process.output()]
''', ['one\n', 'two\n']),
    Row('output: bytes', '''
process = SimpleExecutor('echo one', shell=True, popen_kwargs={
    'universal_newlines': False}).start()
process.output().read()
''', b'one\n', 'a text'),
    Row('output after the end of the child', '''
process = SimpleExecutor('echo one', shell=True).start()
until(lambda: not process.running())
process.output().read()
''', 'one\n'),
    Row('err_output', '''
process = SimpleExecutor('echo one >&2', shell=True, stderr=subprocess.PIPE)
process.start().err_output().readline()
''', 'one\n'),
    Row('stdout=DEVNULL', '''
SimpleExecutor('echo one', shell=True,
               stdout=subprocess.DEVNULL).start().output()
''', None),
    Row('stdin', '''
process = SimpleExecutor('cat').start()
process.process.stdin.write('hello\\n')
process.process.stdin.flush()
process.output().readline()
''', 'hello\n'),
    Row('output for select', '''
process = SimpleExecutor('echo one; exec sleep 100', shell=True).start()
poll = select.poll()
poll.register(process.output(), select.POLLIN)
poll.poll(60_000) != [], process.output().readline()
''', (True, 'one\n')),
    Row('a group of its own', '''
process = SimpleExecutor('sleep 100').start()
os.killpg(process.process.pid, signal.SIGTERM)
until(lambda: not process.running())
process.stop().running()
''', False),
    Row('str and repr', '''
process = TCPExecutor('sleep 100', 'localhost', port)
'sleep 100' in str(process), 'TCPExecutor' in repr(process)
''', (True, True)),
    Row('an executor that is forgotten ends its child', '''
process = SimpleExecutor('sleep 100').start()
pid = process.process.pid
del process
until(lambda: not alive(pid))
''', True),
    Row('timeout=None', '''
OutputExecutor('echo ready; exec sleep 100', 'ready', shell=True,
               timeout=None).start().running()
''', True, 'TypeError'),
    Row('check_timeout', '''
process = SimpleExecutor('sleep 100', timeout=60).start()
process._set_timeout()
process.check_timeout()
''', True),
    Row('check_timeout in a loop of its own', '''
process = SimpleExecutor('sleep 100', timeout=0.01).start()
process._set_timeout()
while process.check_timeout():
    time.sleep(0.001)
process.check_timeout(), process.running()
''', (False, True)),
    Row('wait_for', '''
process = SimpleExecutor('echo one > file; exec sleep 100', shell=True,
                         timeout=60).start()
process._set_timeout()
process.wait_for(lambda: os.path.exists('file')) is process
''', True),
    Row('an empty command', '''
SimpleExecutor([]).running()
''', False),
    Row('start of an empty command', '''
SimpleExecutor([]).start()
''', Raises(ValueError, 'command'), 'IndexError'),
    Row('a program that is not there', '''
SimpleExecutor('no-such-program').start()
''', Raises(FileNotFoundError, 'no-such-program')),
]

PROCESS = [
    Row('process.args, pid, poll, returncode', '''
executor = SimpleExecutor('sleep 100').start()
popen = executor.process
list(popen.args), alive(popen.pid), popen.poll(), popen.returncode
''', (['sleep', '100'], True, None, None)),
    Row('process.wait', '''
process = SimpleExecutor('exit 3', shell=True).start()
process.process.wait(), process.process.poll(), process.process.returncode
''', (3, 3, 3)),
    Row('process.wait(timeout)', '''
executor = SimpleExecutor('sleep 100').start()
executor.process.wait(timeout=0.01)
''', Raises(subprocess.TimeoutExpired)),
    Row('process.terminate, wait', '''
process = SimpleExecutor('sleep 100').start()
process.process.terminate(), process.process.wait(timeout=60)
''', (None, -15)),
    Row('process.kill, wait', '''
process = SimpleExecutor('sleep 100').start()
process.process.kill(), process.process.wait(timeout=60)
''', (None, -9)),
    Row('process.send_signal', '''
process = SimpleExecutor('sleep 100').start()
process.process.send_signal(signal.SIGINT)
process.process.wait(timeout=60)
''', -2),
    Row('process.stdout', '''
process = SimpleExecutor('echo one', shell=True).start()
process.process.stdout.readline(), process.process.stderr
''', ('one\n', None)),
    Row('process.communicate', '''
process = SimpleExecutor('cat').start()
process.process.communicate('hello', timeout=60)
''', ('hello', None)),
    Row('with process', '''
executor = SimpleExecutor('exit 3', shell=True).start()
with executor.process as popen:
    pass
popen.returncode
''', 3),
]

CHECKED = [
    Row('OutputExecutor', '''
process = OutputExecutor('echo foo; echo bar; exec sleep 100', 'foo',
                         shell=True, timeout=60).start()
process.running(), process.output().readline(), 'foo' in str(process)
''', (True, 'bar\n', True)),
    Row('OutputExecutor: a regular expression', '''
OutputExecutor('echo ready on 7; exec sleep 100', banner=r'ready on \\d+',
               shell=True).start().running()
''', True),
    Row('OutputExecutor: the error output', '''
process = OutputExecutor('echo foo >&2; echo bar >&2; exec sleep 100', 'foo',
                         shell=True, stdin=None, stderr=subprocess.PIPE)
process.start().err_output().readline()
''', 'bar\n'),
    Row('OutputExecutor: the time-out', '''
OutputExecutor('sleep 100', 'ready', timeout=0.1).start()
''', Raises(TimeoutExpired, '0.1')),
    Row('OutputExecutor: a child that ends', '''
OutputExecutor('exit 3', 'ready', shell=True).start()
''', Raises(ProcessExitedWithError, '3'), 'waits until the time-out'),
    Row('nothing runs after a time-out', '''
process = OutputExecutor('sleep 100', 'ready', timeout=0.1)
try:
    process.start()
except TimeoutExpired as error:
    seen.append(error.executor is process)
seen, process.running()
''', ([True], False)),
    Row('TCPExecutor(command, host, port)', SERVER + '''
process = TCPExecutor(command, '127.0.0.1', port, timeout=60).start()
socket.create_connection((process.host, process.port)).close()
process.host, process.port == port
''', ('127.0.0.1', True)),
    Row('TCPExecutor(command=, host=, port=, stdout=None)', SERVER + '''
with TCPExecutor(command=command, host='localhost', port=int(port),
                 stdout=None, stderr=None) as process:
    seen.append(process.running())
process.stop()
seen
''', [True]),
    Row('TCPExecutor: host and port come before the constructor', SERVER + '''
class RedisExecutor(TCPExecutor):
    def __init__(self, host, port, username=None, startup_timeout=60):
        self.host = host
        self.port = port
        self.username = username
        self.timeout = startup_timeout
        super().__init__(command, host, port, timeout=startup_timeout)
RedisExecutor('127.0.0.1', port).start().running()
''', True),
    Row('TCPExecutor.port is changed before the start', SERVER + '''
process = TCPExecutor(command, '127.0.0.1', 1, timeout=60)
process.port = port
process.start().running()
''', True),
    Row('TCPExecutor: what runs already', SERVER + '''
with TCPExecutor(command, '127.0.0.1', port, timeout=60):
    TCPExecutor(command, '127.0.0.1', port, timeout=60).start()
''', Raises(AlreadyRunning, 'already running')),
    Row('TCPExecutor: the time-out', '''
TCPExecutor('sleep 100', '127.0.0.1', port, timeout=0.1).start()
''', Raises(TimeoutExpired)),
    Row('TCPExecutor.pre_start_check and after_start_check', SERVER + '''
process = TCPExecutor(command, '127.0.0.1', port, timeout=60)
before = process.pre_start_check()
process.start()
before, process.after_start_check(), process.check_subprocess()
''', (False, True, True)),
    Row('checks before the first start', '''
process = TCPExecutor('sleep 100', '127.0.0.1', port)
process.after_start_check(), process.check_subprocess()
''', (False, False)),
    Row('checks of a server that was killed', SERVER + '''
process = TCPExecutor(command, '127.0.0.1', port, timeout=60).start()
os.kill(process.process.pid, signal.SIGKILL)
until(lambda: not process.running())
process.after_start_check()
''', False),
    Row('HTTPExecutor', WEB_SERVER + '''
process = HTTPExecutor(command, url=url, timeout=60).start()
process.running(), process.host, process.port == port, process.url.path
''', (True, '127.0.0.1', True, '/status')),
    Row('HTTPExecutor.url', WEB_SERVER + '''
process = HTTPExecutor(command, url)
process.url.geturl() == url, process.url.scheme, process.url.port == port
''', (True, 'http', True)),
    Row('HTTPExecutor.url without a port', '''
process = HTTPExecutor('sleep 100', 'http://localhost/status')
process.host, process.port, HTTPExecutor.DEFAULT_PORT
''', ('localhost', 80, 80)),
    Row('HTTPExecutor: its attributes', '''
process = HTTPExecutor(
    'sleep 100', 'http://localhost/', status=200, method='POST',
    payload={'key': 'value'}, headers={'X-Key': 'value'})
(process.status, bool(process.status_re.match('200')), process.method,
 process.payload, process.headers)
''', ('200', True, 'POST', {'key': 'value'}, {'X-Key': 'value'})),
    Row('HTTPExecutor: the usual status', '''
process = HTTPExecutor('sleep 100', 'http://localhost/')
[bool(process.status_re.match(each)) for each in ('200', '204', '404')]
''', [True, True, False]),
    Row('HTTPExecutor: another status', WEB_SERVER + '''
HTTPExecutor(command, url=f'http://127.0.0.1:{port}/missing',
             status='(200|404)', timeout=60).start().running()
''', True),
    Row('HTTPExecutor: a status that is a number', WEB_SERVER + '''
HTTPExecutor(command, url=f'http://127.0.0.1:{port}/missing', status=404,
             timeout=60).start().running()
''', True),
    Row('HTTPExecutor: method, payload and headers', WEB_SERVER + '''
HTTPExecutor(command, url=url, method='POST', payload={'key': 'value'},
             headers={'X-Key': 'value'}, timeout=60).start().running()
''', True),
    Row('HTTPExecutor.status is changed before the start', WEB_SERVER + '''
process = HTTPExecutor(command, f'http://127.0.0.1:{port}/missing', timeout=60)
process.status = '404'
process.start().running()
''', True),
    Row('HTTPExecutor: what runs already', WEB_SERVER + '''
with HTTPExecutor(command, url, timeout=60):
    HTTPExecutor(command, url, timeout=60).start()
''', Raises(AlreadyRunning, 'already running')),
    Row('PidExecutor', '''
write('child.sh', 'echo $$ > pid; exec sleep 100')
process = PidExecutor('sh child.sh', 'pid', timeout=60).start()
process.running(), process.filename
''', (True, 'pid')),
    Row('PidExecutor(filename=, shell=True)', '''
PidExecutor('echo $$ > pid; exec sleep 100', filename='pid', timeout=60,
            shell=True).start().running()
''', True),
    Row('PidExecutor.filename is changed before the start', '''
process = PidExecutor('echo $$ > pid; exec sleep 100', 'other', timeout=60,
                      shell=True)
process.filename = 'pid'
process.start().running()
''', True),
    Row('PidExecutor without a file', '''
PidExecutor('sleep 100', None)
''', Raises(ValueError)),
    Row('PidExecutor with an empty name', '''
PidExecutor('sleep 100', '')
''', Raises(ValueError)),
    Row('PidExecutor: the time-out', '''
PidExecutor('sleep 100', 'pid', timeout=0.1).start()
''', Raises(TimeoutExpired)),
    Row('UnixSocketExecutor', SERVER + '''
process = UnixSocketExecutor(f'{sys.executable} server.py socket',
                             socket_name='socket', timeout=60).start()
process.running(), process.socket
''', (True, 'socket')),
    Row('UnixSocketExecutor.pre_start_check without a start', SERVER + '''
probe = UnixSocketExecutor('true', socket_name='socket')
before = probe.pre_start_check()
process = UnixSocketExecutor(f'{sys.executable} server.py socket',
                             socket_name='socket', timeout=60).start()
before, probe.pre_start_check()
''', (False, True)),
]

SUBCLASSES = [
    Row('Executor: both checks', '''
class FileExecutor(Executor):
    def pre_start_check(self):
        return os.path.exists('made')
    def after_start_check(self):
        return os.path.exists('made')
process = FileExecutor('touch made; exec sleep 100', shell=True, timeout=60)
process.start().running()
''', True),
    Row('Executor: the first check', '''
class FileExecutor(Executor):
    def pre_start_check(self):
        return os.path.exists('made')
    def after_start_check(self):
        return os.path.exists('made')
write('made', '')
FileExecutor('sleep 100').start()
''', Raises(AlreadyRunning, 'already running')),
    Row('Executor: checks that are set on an instance', '''
process = Executor('sleep 100')
process.pre_start_check = lambda: bool(seen.append('before'))
process.after_start_check = lambda: seen.append('after') or True
process.start().running(), seen
''', (True, ['before', 'after'])),
    Row('Executor: the checks are abstract', '''
for check in (Executor('true').pre_start_check,
              Executor('true').after_start_check):
    try:
        check()
    except NotImplementedError:
        seen.append('abstract')
seen
''', ['abstract', 'abstract']),
    Row('Executor: a check that is patched in the class', '''
class FileExecutor(Executor):
    def pre_start_check(self):
        return False
    def after_start_check(self):
        return True
process = FileExecutor('sleep 100', timeout=0.1)
with mock.patch.object(FileExecutor, 'after_start_check', lambda self: False):
    process.start()
''', Raises(TimeoutExpired)),
    Row('Executor: mocks as checks', '''
process = Executor('sleep 100')
process.pre_start_check = mock.Mock(return_value=False)
process.after_start_check = mock.Mock(return_value=True)
process.start()
process.pre_start_check.called, process.after_start_check.called
''', (True, True)),
    Row('Executor that waits for the end', '''
class WaitExecutor(Executor):
    def pre_start_check(self):
        return False
    def after_start_check(self):
        return not self.running()
process = WaitExecutor('true', timeout=60).start()
process.running(), process.stop().running()
''', (False, False)),
    Row('a default of its own for the time-out', '''
class StartTimeoutExecutor(SimpleExecutor):
    def __init__(self, *args, **kwargs):
        if kwargs.get('timeout') is None:
            kwargs['timeout'] = 60
        super().__init__(*args, **kwargs)
StartTimeoutExecutor('sleep 100').start()._timeout
''', 60),
    Row('a fixture for a server that runs elsewhere', SERVER + '''
class NoopRedis(TCPExecutor):
    def __init__(self, host, port, unixsocket=None, startup_timeout=60):
        self.host = host
        self.port = port
        self.unixsocket = unixsocket
        self.timeout = startup_timeout
        super().__init__([], host, port, timeout=startup_timeout)
    def start(self):
        self._set_timeout()
        self.wait_for(self.redis_available)
        return self
    def redis_available(self):
        with socket.socket() as sock:
            try:
                sock.settimeout(1)
                sock.connect((self.host, self.port))
            except (TimeoutError, ConnectionRefusedError):
                return False
        return True
with TCPExecutor(command, '127.0.0.1', port, timeout=60):
    with NoopRedis('127.0.0.1', port) as redis:
        seen.append((redis.host, redis.port == port))
seen
''', [('127.0.0.1', True)]),
    Row('wait_for: the time-out', '''
class NoopRedis(TCPExecutor):
    def start(self):
        self._set_timeout()
        self.wait_for(lambda: False)
        return self
NoopRedis([], '127.0.0.1', port, timeout=0.1).start()
''', Raises(TimeoutExpired)),
    Row('after_start_check with a probe beside it', SERVER + '''
class MySQLExecutor(TCPExecutor):
    def __init__(self, user, port, timeout=60):
        self.unixsocket = 'socket'
        self.user = user
        self._initialised = False
        command = (
            f'{sys.executable} server.py {port} & '
            f'exec {sys.executable} server.py {self.unixsocket}')
        super().__init__(command, '127.0.0.1', port, timeout=timeout,
                         shell=True)
        self._unixsocketexecutor = UnixSocketExecutor(
            command, socket_name=self.unixsocket, timeout=timeout)
    def version(self):
        return '8.0'
    def start(self):
        self._initialised = True
        return super().start()
    def after_start_check(self):
        return (super().after_start_check()
                and self._unixsocketexecutor.pre_start_check())
    def stop(self, *args, **kwargs):
        os.kill(self.process.pid, signal.SIGTERM)
        self.process.wait(60)
        return super().stop(*args, **kwargs)
with MySQLExecutor('root', port) as server:
    seen.append(server.running())
    seen.append(server._unixsocketexecutor.pre_start_check())
seen.append(server.running())
seen
''', [True, True, False]),
    Row('variables for a command of the server', SERVER + '''
class RabbitMqExecutor(TCPExecutor):
    def __init__(self, command, host, port):
        super().__init__(command, host, port, timeout=60,
                         envvars={'RABBITMQ_NODE_PORT': str(port)})
    def rabbitctl_output(self, *args):
        return subprocess.check_output(
            args, env=self._popen_kwargs['env']).decode('utf-8')
with RabbitMqExecutor(command, '127.0.0.1', port) as rabbit:
    seen.append(rabbit.rabbitctl_output(
        'sh', '-c', 'echo $RABBITMQ_NODE_PORT'))
seen == [f'{port}\\n']
''', True),
    Row('an HTTP server with a version', WEB_SERVER + '''
class ElasticSearchExecutor(HTTPExecutor):
    def __init__(self, host, port, timeout):
        self._version = None
        self.host = host
        self.port = port
        super().__init__(self._exec_command(),
                         f'http://{self.host}:{self.port}', timeout=timeout)
    @property
    def version(self):
        if not self._version:
            self._version = '8.0'
        return self._version
    def _exec_command(self):
        return f"""
            {sys.executable} web.py
            {self.port}
        """
with ElasticSearchExecutor('127.0.0.1', port, 60) as server:
    seen.append((server.running(), server.version))
seen
''', [(True, '8.0')]),
    Row('a request of its own', WEB_SERVER + '''
import http.client
class OwnExecutor(HTTPExecutor):
    def __init__(self, *args, method='HEAD', io=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.method = method
        self.stdio = io
    def after_start_check(self):
        try:
            connection = http.client.HTTPConnection(self.host, self.port)
            connection.request(self.method, self.url.path)
            status = str(connection.getresponse().status)
            if status == self.status or self.status_re.match(status):
                connection.close()
                return True
        except (http.client.HTTPException, OSError):
            return False
        return False
    def running(self):
        return super().running() or self.pre_start_check()
process = OwnExecutor(command, url, timeout=60).start()
process.running(), process.stop().running()
''', (True, False)),
    Row('a user that is made after the start', SERVER + '''
class MongoExecutor(TCPExecutor):
    def __init__(self, command, host, port, username=None, password=None,
                 uri=None, tls=False, **kwargs):
        self.username = username
        self.password = password
        self.uri = uri
        self.tls = tls
        self._user_created = False
        super().__init__(command, host, port, **kwargs)
    def start(self):
        executor = super().start()
        if not self._user_created:
            try:
                self._create(self.host, self.port)
            except Exception:
                self.stop()
                raise
            self._user_created = True
        return executor
    def _create(self, host, port):
        socket.create_connection((host, port)).close()
with MongoExecutor(command=command, host='127.0.0.1', port=port,
                   username='admin', timeout=60) as server:
    seen.append(server._user_created)
seen
''', [True]),
    Row('a launcher that ends', LAUNCHER + '''
server = LauncherExecutor('127.0.0.1', port, 'data')
with server:
    seen.append(server.running())
    socket.create_connection((server.host, server.port)).close()
until(lambda: not server.running())
seen
''', [True]),
    Row('a launcher that is stopped for a while', LAUNCHER + '''
import shutil
server = LauncherExecutor('127.0.0.1', port, 'data').start()
with server.stopped():
    until(lambda: not server.running())
    shutil.rmtree('data')
server.running(), server.stop().running() or True
''', (True, True)),
    Row('__del__ of a class of its own', LAUNCHER + '''
server = LauncherExecutor('127.0.0.1', port, 'data')
del server
seen
''', ['deleted']),
    Row('__del__ after a constructor that has failed', '''
class OwnExecutor(HTTPExecutor):
    def __init__(self):
        raise ValueError('no such thing')
    def __del__(self):
        super().__del__()
        seen.append('deleted')
try:
    OwnExecutor()
except ValueError:
    pass
seen
''', ['deleted']),
    Row('_process is set', '''
process = SimpleExecutor('sleep 100')
process._process = None
process.start().running()
''', True),
    Row('a method of the plugin raises our errors', '''
class OwnExecutor(SimpleExecutor):
    def start(self):
        try:
            subprocess.run(['sleep', '100'], timeout=self._timeout)
        except subprocess.TimeoutExpired as error:
            raise TimeoutExpired(self, self._timeout) from error
OwnExecutor('sleep 100', timeout=0.01).start()
''', Raises(TimeoutExpired, '0.01')),
    Row('a retry after errors', '''
process = OutputExecutor('sleep 100', 'ready', timeout=0.01)
try:
    process.start()
except mirakuru.ExecutorError as error:
    seen.append(type(error).__name__)
seen
''', ['TimeoutExpired']),
]

ROWS = [*NAMES, *SIMPLE, *PROCESS, *CHECKED, *SUBCLASSES]
