"""A server with a pid file, and programs that start it.

usage: pid_file.py serve|leave|start

`leave` starts the server and is killed, so that nobody knows the server.
`start` says whether the server could be started, and ends it. A second server
on the same data writes to the file ``failures``.
"""

import fcntl
import os
import pathlib
import signal
import sys

LONGEST_LIFE = 300


def serve() -> None:
    """Be the only one."""
    signal.alarm(LONGEST_LIFE)
    data = os.open('data', os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(data, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with open('failures', 'a') as file:
            file.write('two servers have the same data\n')
    pathlib.Path('server.pid').write_text(f'{os.getpid()}\n')
    signal.pause()


def main() -> None:
    """See the module."""
    if sys.argv[1] == 'serve':
        serve()
    from gocept.runner.errors import AlreadyRunning
    from gocept.runner.executor import PidExecutor
    server = PidExecutor(
        [sys.executable, '-I', '-S', __file__, 'serve'], 'server.pid',
        timeout=60)
    try:
        server.start()
    except AlreadyRunning:
        print('runs already')
        return
    if sys.argv[1] == 'leave':
        os.kill(os.getpid(), signal.SIGKILL)
    print('started')
    server.stop()


if __name__ == '__main__':
    main()
