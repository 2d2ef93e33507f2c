"""Tasks for tests of servers: what is to be done is in the request."""

import contextlib
import logging
import os
import pathlib
import signal
import sys
import threading

from gocept.runner.background import Client, respond


def init(socket):
    return {'calls': 0}


def fail(*args):
    raise ValueError('so it is')


def execute(socket, state, args):
    """Call the function of this module that is named, and respond."""
    state['calls'] += 1
    name, *more = args
    respond(socket, globals()[name](*more))
    return state


def end(socket, state, args):
    for path in args or ():
        pathlib.Path(path).write_text(str(state['calls']))
    respond(socket, state['calls'])


def wait_for_fifo(socket, state, path):
    """Wait until somebody has opened a FIFO, and closed it again."""
    with open(path, 'rb') as file:
        file.read()


def end_in_file(socket, state, args):
    pathlib.Path(os.environ['END_FILE']).write_text(f'{state} {args}')


def variable(name):
    return os.environ.get(name)


def flags():
    return sys.flags.optimize, sys.dont_write_bytecode


def is_blocking(fd):
    return os.get_blocking(fd)


def session():
    return os.getsid(0), os.getpgrp(), os.getppid(), os.getpid()


def say(text):
    print(text)
    print(text, file=sys.stderr)
    logging.getLogger('elsewhere').warning('logged %s', text)
    logging.getLogger('elsewhere').info('quiet %s', text)


def log(text):
    logging.getLogger('elsewhere').error('%s', text)


def touch_and_read(path, fifo):
    """Say in a file that this runs, and wait for somebody at a FIFO."""
    pathlib.Path(path).touch()
    with open(fifo, 'rb') as file:
        file.read()
    return 'done'


def leave(status):
    os._exit(status)


def exit_by_exception():
    sys.exit(3)


def change_handlers():
    import asyncio  # noqa: F401  or else the descriptor is not set again
    for signum in signal.SIGTERM, signal.SIGINT:
        signal.signal(signum, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)


def run_loop():
    import asyncio

    async def main():
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, loop.stop)
        await asyncio.sleep(0)
        return 'looped'
    return asyncio.run(main())


def leave_alarm(fifo):
    """Have an alarm come soon that tells a reader of the FIFO, and raises."""
    def ring(*args):
        with open(fifo, 'w'):
            pass
        raise TimeoutError('the job takes too long')
    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, .01)


def call_itself(port, wait):
    """Be a client of this server, which waits for its own task or not."""
    with Client(port=port, timeout=30) as client:
        match wait:
            case 'execute':
                return client.execute(['flags'], True)
            case 'submit':
                return client.submit(['flags']).result()
            case 'terminate':
                return client.terminate()
            case 'status':
                return client.status()['running']
            case 'send':
                return client.execute(['flags'])


def raise_signal(signum):
    signal.raise_signal(signum)


def close_descriptors():
    os.closerange(3, 1000)


def close_standard():
    os.closerange(0, 3)


def fork_and_stay():
    """Fork a child that stays; returns its pid."""
    pid = os.fork()
    if not pid:
        while True:
            signal.pause()
    return pid


def fork_and_return():
    """Fork a child that comes back; returns the status."""
    pid = os.fork()
    if not pid:
        raise ValueError('in the child')
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def threads():
    return [each.name for each in threading.enumerate()]


def descriptors():
    names = {}
    for fd in os.listdir('/proc/self/fd'):
        with contextlib.suppress(FileNotFoundError):
            names[int(fd)] = os.readlink(f'/proc/self/fd/{fd}')
    return names
