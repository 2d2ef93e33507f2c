"""What the system says of a process, and of itself, at this moment.

For a command that has to start fast: `gocept.runner.process.procfs` knows
more, and imports more. Where there is no /proc, little is known.
"""

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gocept.runner.operation.state import Moment

HIDDEN = '?'
"""The state of a process that is there, but that the system does not show."""


class Process:
    """What is known of a process."""

    def __init__(self, state: str, start: int | None) -> None:
        self.state = state
        """A letter as in /proc/PID/stat, or `HIDDEN`."""
        self.start = start
        """In clock ticks after the boot; None if that is not known."""


class Facts:
    """What is known of the system, and of one process."""

    def __init__(self, process: Process | None, boot: str, host: str,
                 namespaces: str, now: 'Moment') -> None:
        self.process = process
        """None: there is no such process."""
        self.boot = boot
        self.host = host
        self.namespaces = namespaces
        self.now = now


def facts_about(pid: int) -> Facts:
    """The present facts about the process with this number."""
    return Facts(process(pid), boot(), host(), namespaces(), now())


def now() -> 'Moment':
    """This moment, by both clocks."""
    return {'realtime': time.time(), 'monotonic': time.monotonic()}


def process(pid: int) -> Process | None:
    """What is known of a process; None if there is no such one."""
    content = _content(f'/proc/{pid}/stat')
    if content:
        # The name of the program, before it, may contain anything.
        fields = content.rpartition(')')[2].split()
        return Process(fields[0], int(fields[19]))
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except PermissionError:
        pass
    return Process(HIDDEN, None)


def boot() -> str:
    """The id of this boot of the system; '' if it is not known."""
    return _content('/proc/sys/kernel/random/boot_id').strip()


def host() -> str:
    """The name of the machine, or of the container."""
    return os.uname().nodename


def namespaces() -> str:
    """Those in which numbers of processes, and clocks, are the same.

    '' if they are not known, as where /proc belongs to another one.
    """
    try:
        if os.readlink('/proc/self') != str(os.getpid()):
            return ''
        return ' '.join(
            os.readlink(f'/proc/self/ns/{kind}') for kind in ('pid', 'time')
            if os.path.exists(f'/proc/self/ns/{kind}'))
    except OSError:
        return ''


def memory() -> int | None:
    """The bytes of memory that this process uses; None if not known."""
    words = _content('/proc/self/statm').split()
    return int(words[1]) * os.sysconf('SC_PAGE_SIZE') if words else None


def _content(path: str) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ''
    try:
        return os.read(fd, 4096).decode(errors='replace')
    except OSError:  # the process has ended meanwhile
        return ''
    finally:
        os.close(fd)
