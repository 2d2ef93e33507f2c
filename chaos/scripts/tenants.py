"""The ticks of the workers of `chaos.up`, and who opens its file beside them.

A tick counts in two objects: one of the worker, and one of all workers. It
writes a line to ``NAME.ticks`` when it begins, and the number to
``NAME.acknowledged`` when the transaction is committed.
"""

import fcntl
import os
import pathlib
import sys
import time

import transaction
from BTrees.Length import Length
from persistent.mapping import PersistentMapping
from zope.component.hooks import getSite

from gocept.runner.process import procfs

_held: dict[str, int] = {}
"""The locks that this process holds until its end."""


def tick(name: str, version: int) -> None:
    """Count. `version` is that of the code, which a reload changes."""
    directory = os.environ['TENANTS']
    begin(directory, name, version)
    site = getSite()
    site.total.change(1)
    site.counts[name].change(1)
    transaction.get().addAfterCommitHook(
        acknowledge, (f'{directory}/{name}.acknowledged',
                      site.counts[name]()))


def begin(directory: str, name: str, version: int) -> None:
    """Note which process works, and that it is the only one."""
    if name not in _held:
        fd = os.open(f'{directory}/{name}.alone', os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            append(f'{directory}/failures',
                   f'{name} runs twice: {os.getpid()}')
        _held[name] = fd
    pid = os.getpid()
    append(f'{directory}/{name}.ticks',
           f'{pid}.{procfs.look(pid).start} {version} {time.monotonic()}')


def acknowledge(committed: bool, path: str, number: int) -> None:
    """Write down that a number is stored."""
    if committed:
        append(path, str(number))


def append(path: str, line: str) -> None:
    """Write a line at once, so that not even SIGKILL keeps half of it back."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(fd, f'{line}\n'.encode())
    os.close(fd)


def main() -> None:
    """Open the file, make what workers count in, and wait for a line."""
    from gocept.runner.runner import init
    with init(None, 'zope.conf') as site:
        if not hasattr(site, 'total'):
            site.total, site.counts = Length(), PersistentMapping(
                (name, Length()) for name in sys.argv[1:])
            transaction.commit()
        pathlib.Path(os.environ['TENANTS'], 'opened').touch()
        sys.stdin.readline()


if __name__ == '__main__':
    main()
