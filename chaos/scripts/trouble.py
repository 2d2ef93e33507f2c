"""A worker that gets into trouble; see `chaos.trouble`.

The file ``plan`` in the working directory is JSON: what happens in which tick.
What goes wrong is appended to the file ``failures``.
"""

import contextlib
import faulthandler
import fcntl
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from unittest import mock

import zope.event

import gocept.runner
from chaos.processes import arguments, kill
from chaos.scripts import pid_file
from gocept.runner.errors import EndpointClosedException, WriteBufferFull
from gocept.runner.executor import SimpleExecutor
from gocept.runner.poller import Timer, background
from gocept.runner.process import Process, procfs
from gocept.runner.spawn import Runner
from gocept.runner.tests.cli.test_worker import acknowledge, count

LONGEST_WAIT = 60
"""For what has to happen, in seconds."""

ERRORS = {error.__name__: error for error in (
    ValueError, SystemExit, KeyboardInterrupt, GeneratorExit, BaseException,
    MemoryError, StopIteration)}

STATUSES = {'return': 0, 'ImportError': 1, 'SystemExit': 7, '_exit': 0}
"""What a forked child ends with, by how it ends."""

plan: dict = {}
runner = Runner()
runner.add('echo', 'cat', buffering='line', restart='always',
           restart_delay=0.001, restart_limit=1000)
real_time = time.time


def fail(text: str) -> None:
    """Have the run fail."""
    with open('failures', 'a') as file:
        file.write(f'{os.getpid()}: {text}\n')


@gocept.runner.appmain(attempts=1000, max_backoff=0.02)
def worker() -> object:
    """Count, and do what the plan has for this number."""
    number = count()
    for fd in 1, 2:  # as a library does that reports something
        os.write(fd, b'tick\n')
    for name, detail in plan['acts'].pop(str(number), ()):
        # Whatever an act fails with is none of its own errors.
        if globals()[f'do_{name}'](detail):
            break  # a fork, which goes on as code of users may
    acknowledge(number, 'worker.acknowledged')
    return gocept.runner.Exit if number >= plan['last'] else None


def do_fork(how: str) -> bool:
    """Fork, and let the child come back to the loop; whether it is that."""
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        if os.waitstatus_to_exitcode(status) != STATUSES[how]:
            fail(f'a fork that ended by {how} has {status}')
        return False
    if how == '_exit':
        os._exit(0)
    if how == 'ImportError':
        raise ImportError('in a fork')
    if how == 'SystemExit':
        sys.exit(7)
    return True


def do_daemon(detail: object) -> bool:
    """Become a daemon, as programs do that know nothing of us."""
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return False
    os.setsid()
    if os.fork():
        os._exit(0)
    os.closerange(3, 256)
    files = [os.open(f'daemon{number}', os.O_WRONLY | os.O_CREAT)
             for number in range(8)]
    with contextlib.suppress(Exception):
        Process('true', stdin='pipe', stdout='pipe').close()
    for fd in files:
        try:
            os.write(fd, b'mine')
            os.close(fd)
        except OSError as error:
            fail(f'the file of a daemon: {error}')
    return True


def do_callback(name: str) -> None:
    """Raise an error in the thread of the background, in all its places."""
    called = threading.Semaphore(0)

    def fails(*args: object) -> None:
        called.release()
        raise ERRORS[name]

    for _ in range(3):
        background().register(Timer(0), fails)
    child = Process('true', on_end=fails)
    for _ in range(4):
        if not called.acquire(timeout=LONGEST_WAIT):
            fail('a callback was not called')
    child.wait(LONGEST_WAIT)

    def subscriber(event: object) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise ERRORS[name]

    zope.event.subscribers.append(subscriber)
    do_kill(signal.SIGKILL)
    do_echo(1)
    zope.event.subscribers.remove(subscriber)
    probe()


def probe() -> None:
    """The thread of the background goes on."""
    alive = threading.Event()
    background().register(Timer(0), lambda *args: alive.set())
    if not alive.wait(LONGEST_WAIT):
        fail('the background thread is dead')


def do_threads(number: int) -> None:
    """No thread can be started for a while, the background's neither."""
    with mock.patch('threading.Thread.start',
                    side_effect=RuntimeError("can't start new thread")):
        background().close()
        for _ in range(number):
            with contextlib.suppress(RuntimeError, OSError):
                runner.ensure_running('echo')
            with contextlib.suppress(RuntimeError, OSError):
                Process('true', detached=True).wait(LONGEST_WAIT)
    Process('true').close()  # from now on there is all again
    probe()


def do_descriptors(number: int) -> None:
    """No descriptor is left for a while."""
    held = []
    with contextlib.suppress(OSError):
        while True:
            held.append(os.open(os.devnull, os.O_RDONLY))
    for _ in range(number):
        with contextlib.suppress(OSError):
            Process('true', stdin='pipe').close()
    for fd in held:
        os.close(fd)
    probe()


def do_clock(seconds: float) -> None:
    """Somebody sets the clock."""
    def stepped() -> float:
        return real_time() + seconds
    time.time = stepped


def do_disk(detail: list) -> None:
    """No file gets longer than the database for a while."""
    more, seconds = detail
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (
        os.stat('Data.fs').st_size + more, hard))
    lift: Callable[..., None] = resource.setrlimit
    threading.Timer(
        seconds, lift, [resource.RLIMIT_FSIZE, (hard, hard)]).start()


def do_kill(signum: int) -> None:
    """The child ends."""
    runner.ensure_running('echo')
    process = runner.get_process('echo')
    assert process is not None
    process.send_signal(signum)


def do_interrupt(seconds: float) -> None:
    """A signal handler raises an exception while children are started."""
    def handler(*args: object) -> None:
        raise InterruptedError

    before = signal.signal(signal.SIGALRM, handler)
    children = []
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            for _ in range(20):
                children.append(Process(
                    [sys.executable, '-c', 'pass', 'interrupted'],
                    stdin='pipe'))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except InterruptedError:
        pass
    signal.signal(signal.SIGALRM, before)
    for each in children:
        each.close()
    if any(b'interrupted' in arguments(pid)
           for pid in procfs.children(os.getpid())):
        fail('an interrupted start has left a child')


def do_log(detail: object) -> None:
    """The disk is full for a while, with the log of an executor on it.

    Thereafter it is not, also if `do_disk` had filled it: its timer may be
    over.
    """
    path = pathlib.Path('executor.log')
    with SimpleExecutor('cat', log_file=path) as executor:
        assert executor.child is not None
        channel = executor.child.channel
        assert channel is not None
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        channel.write(b'before\n')
        until(lambda: path.read_bytes().endswith(b'before\n'))
        resource.setrlimit(
            resource.RLIMIT_FSIZE, (path.stat().st_size, hard))
        channel.write(b'lost\n')
        if not executor.output().readline() or (
                not executor.output().readline()):
            fail('an executor has no output')
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        channel.write(b'after\n')
        until(lambda: path.read_bytes().endswith(b'after\n'))


def do_server(seconds: float) -> None:
    """A server has lost its manager, and its pid file is of any time."""
    def manage(how: str) -> str:
        return subprocess.run(
            [sys.executable, pid_file.__file__, how], text=True,
            stdout=subprocess.PIPE, timeout=LONGEST_WAIT).stdout.strip()

    manage('leave')
    pid = int(pathlib.Path('server.pid').read_text())
    os.utime('server.pid', (real_time() + seconds,) * 2)
    if (said := manage('start')) != 'runs already':
        fail(f'a server runs, and another one {said}')
    if not kill(pid, LONGEST_WAIT):
        fail('a server that was killed has not ended')
    os.utime('server.pid', (real_time() + seconds,) * 2)
    if (said := manage('start')) != 'started':
        fail(f'no server runs, and another one {said}')


def until(condition: Callable[[], object]) -> None:
    """Wait for something that has to happen."""
    deadline = time.monotonic() + LONGEST_WAIT
    while not condition():
        if time.monotonic() > deadline:
            fail(''.join(traceback.format_stack(limit=2)))
            return
        time.sleep(0.002)


def do_orphans(number: int) -> None:
    """Another library leaves children behind."""
    for _ in range(number):
        pid = os.fork()
        if not pid:
            os.setsid()  # so that it is known that they are not ours
            if not os.fork():
                time.sleep(0.01)
            os._exit(0)
        os.waitpid(pid, 0)
    if os.getpid() == 1:  # they are ours now
        until(lambda: not any(is_zombie_of_strangers(pid)
                              for pid in procfs.children(1)))


def is_zombie_of_strangers(pid: int) -> bool:
    """Whether it could be known that somebody else has forked it.

    It cannot be known of the server of `do_server`, which leads a session.
    """
    now = procfs.look(pid)
    return now.state == 'Z' and now.session not in (pid, os.getsid(0))


def do_echo(number: int) -> None:
    """The child answers, also if it was killed or could not be started."""
    line = b'%d\n' % number
    deadline = time.monotonic() + LONGEST_WAIT
    sent = None
    while time.monotonic() < deadline:
        runner.ensure_running('echo')
        channel = runner.get_channel('echo')
        with contextlib.suppress(EndpointClosedException, WriteBufferFull):
            if channel is not None and channel is not sent:
                channel.write(line)
                sent = channel
            if channel is not None and channel.read() == line:
                return
        time.sleep(0.001)
    fail('the child does not answer')


def main() -> None:
    """Be the worker that the plan says."""
    plan.update(json.loads(pathlib.Path('plan').read_text()))
    pid = os.getpid()
    # Not under the number of a stream that is closed.
    stacks = os.open('stacks', os.O_WRONLY | os.O_CREAT)
    faulthandler.register(signal.SIGUSR1, file=fcntl.fcntl(
        stacks, fcntl.F_DUPFD_CLOEXEC, 100))
    os.close(stacks)
    pathlib.Path('begun').touch()
    try:
        status = worker()
    finally:
        if os.getpid() != pid:
            fail('a fork has come to the end')
    runner.close()
    sys.exit(status)


if __name__ == '__main__':
    main()
