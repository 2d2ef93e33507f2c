"""A child that does what a plan says; see `chaos.plans`.

usage: child.py WORD PLAN

`WORD` is what it and its descendants are known by, `PLAN` is JSON. It appends
what it is about to do to a file, as what it then does may be its end. Nothing
but the standard library is needed, and little of that.
"""

import json
import os
import signal
import sys
import time

LONGEST_LIFE = 400
"""How long a process lives if everything else fails, in seconds."""

NEVER = 3600.0


def main() -> None:
    """Be what the command line says."""
    plan = json.loads(sys.argv[2])
    try:
        be(plan)
    except BrokenPipeError:  # nobody listens any more
        leave(plan, status_of(plan))


def be(plan: dict) -> None:
    """Do what the plan says; does not return."""
    signal.alarm(LONGEST_LIFE)
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_DFL)
    for signum in plan.get('ignores', ()):
        signal.signal(signum, signal.SIG_IGN)
    record(plan, 'start')
    for member in plan.get('family', ()):
        beget(member)
    if plan.get('at_term') is not None:
        signal.signal(signal.SIGTERM,
                      lambda *_: leave(plan, plan['at_term']))
    DEEDS[plan['does']](plan)
    leave(plan, status_of(plan))


def record(plan: dict, what: str, number: int = 0) -> None:
    """Tell who looks at it afterwards; one write is never torn."""
    fd = os.open(plan['records'], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, b'%s %d %d\n' % (what.encode(), os.getpid(), number))
    os.close(fd)


def leave(plan: dict, status: int) -> None:
    """End with that status, or with a signal if it is negative."""
    record(plan, 'end', status)
    if status >= 0:
        os._exit(status)
    if -status not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(-status, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {-status})
    os.kill(os.getpid(), -status)
    signal.pause()


def status_of(plan: dict) -> int:
    """The next of its statuses, the last one again and again."""
    statuses = plan['statuses']
    if len(statuses) == 1:
        return statuses[0]
    fd = os.open(plan['counter'], os.O_RDWR | os.O_APPEND | os.O_CREAT)
    os.write(fd, b'.')
    count = os.fstat(fd).st_size
    os.close(fd)
    return statuses[min(count, len(statuses)) - 1]


def beget(plan: dict) -> None:
    """Have a child, which may leave its parent, session and environment."""
    pid = os.fork()
    if pid:
        if plan.get('leaves'):
            os.waitpid(pid, 0)
        return
    if plan.get('setsid'):
        os.setsid()
    if plan.get('leaves') and os.fork():
        os._exit(0)
    if plan.get('forgets'):
        os.execve(sys.executable, [
            sys.executable, '-I', '-S', __file__, sys.argv[1],
            json.dumps(plan)], {})
    be(plan)


# What a child can do.


def wait(plan: dict) -> None:
    """Do nothing for a while, or for ever."""
    time.sleep(NEVER if plan.get('life') is None else plan['life'])


def hush(plan: dict) -> None:
    """Close the standard streams, and live on."""
    for fd in (0, 1, 2):
        os.close(fd)
    wait(plan)


def stop(plan: dict) -> None:
    """Be stopped, and perhaps continued by others."""
    wait(plan)
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(NEVER)


def breed(plan: dict) -> None:
    """Have one child after the other."""
    for _ in range(plan['members']):
        beget(plan['member'])
        time.sleep(plan['pause'])
    wait(plan)


def say(plan: dict) -> None:
    """Write much to both of standard output and error."""
    rest = {1: pattern(1, plan['out']), 2: pattern(2, plan['err'])}
    while any(rest.values()):
        for fd, data in rest.items():
            write(fd, data[:plan['piece']])
            rest[fd] = data[plan['piece']:]
    wait(plan)


def pattern(fd: int, size: int) -> bytes:
    """All that is said on one of them: nothing can be missed or doubled."""
    return b''.join(b'%d %d\n' % (fd, number)
                    for number in range(size // 4 + 1))[:size]


def write(fd: int, data: bytes) -> None:
    """Write all of it."""
    while data:
        data = data[os.write(fd, data):]


def echo(plan: dict, source: int = 0, sink: int = 1) -> None:
    """Send back what comes, in pieces of its own."""
    import random
    randomly = random.Random(plan['seed'])
    while data := os.read(source, randomly.choice(plan['sizes'])):
        while data:
            size = randomly.choice(plan['sizes'])
            write(sink, data[:size])
            data = data[size:]
            if randomly.random() < plan['pausing']:
                time.sleep(randomly.uniform(0, 0.01))


def serve(plan: dict) -> None:
    """The same, through a socket, for the first who connects."""
    import socket
    time.sleep(plan['late'])
    server = socket.socket(socket.AF_UNIX)
    server.bind(plan['socket'])
    server.listen()
    print('I listen', flush=True)
    client, _ = server.accept()
    echo(plan, client.fileno(), client.fileno())
    client.close()


DEEDS = {deed.__name__: deed for deed in (
    wait, hush, stop, breed, say, echo, serve)}

if __name__ == '__main__':
    main()
