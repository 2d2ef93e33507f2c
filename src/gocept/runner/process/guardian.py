"""Wait for the end of our parent, and end its children then.

This runs as a script of its own; see `guard`. It imports what it needs to end
processes when there are some to end, so until then it takes little memory.
"""

import contextlib
import json
import os
import select
import signal
import sys

_SOON = 10.0
"""Seconds for the rest of an end that has closed the descriptors already."""


def main() -> None:
    """Argument: the pid of the parent, its mark and its path, as JSON.

    Standard input is a pipe that is closed when the parent ends. If the pipe
    is closed and the parent goes on, it has become another program, whose
    children these are now.
    """
    for signum in signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM:
        signal.signal(signum, signal.SIG_IGN)  # those of the group or service
    options = json.loads(sys.argv[1])
    for fd in map(int, os.listdir('/proc/self/fd')):
        if fd > 2:
            with contextlib.suppress(OSError):  # that of the list itself
                os.close(fd)
    sys.path[:] = options['path']
    if _ends(options['parent']):
        from gocept.runner.process.ending import end_strays
        end_strays(options['mark'])


def _ends(parent: int) -> bool:
    """Wait, and tell whether it was for the end of the parent."""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    handle = -1
    with contextlib.suppress(OSError, AttributeError):
        handle = os.pidfd_open(parent)
        poll.register(handle, select.POLLIN)
    if os.getppid() != parent:
        return True  # it has ended before, and this may be another process
    if any(fd == handle for fd, _ in poll.poll()):
        return True
    poll.unregister(0)
    if handle >= 0:
        return bool(poll.poll(_SOON * 1000))
    # No pidfd tells the end.
    from gocept.runner.process.ending import Pauses
    from gocept.runner.process.pidfd import PidAndStart
    pauses = Pauses()
    try:
        pauses.register(PidAndStart(parent))
    except ProcessLookupError:
        return True
    return os.getppid() != parent or bool(pauses.poll(_SOON))


if __name__ == '__main__':
    main()
