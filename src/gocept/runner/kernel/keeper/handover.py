"""The keeper as another release finds it: its table in a file in memory.

A keeper that changes its code stays the same process, by exec. So it remains
the parent of its children, and its descriptors remain open. JSON in a memfd
tells the new code what they are:

``version``
    Of this format. A later one may add names, which an earlier one ignores.
``table``
    Descriptors by key.
``options``
    See `Options`.
``deaths``, ``keeper_deaths``, ``failed_upgrades``
    How often that has happened.
``previous``
    The options of the code that goes on if this one does not start, or null.
``back``
    The command that runs that code, without its arguments.
``leaving``
    The pid of the daemon that waits for the message ``go``, and the descriptor
    of the link to it; null if it has ended.
``is_stopping``
    Whether the kernel was asked to end.
"""

import errno
import json
import os
from collections.abc import Mapping
from typing import TypedDict

from gocept.runner.kernel.keeper.options import Options

VERSION = 1


class Fields(TypedDict, total=False):
    """What code is found by; the other fields of `Options` come with it."""

    path: list[str]


class Counts(TypedDict, total=False):
    """What a keeper has to know of the time before it."""

    deaths: int
    keeper_deaths: int
    failed_upgrades: int
    is_stopping: bool
    previous: Fields | None
    leaving: tuple[int, int] | None


class Content(Counts, total=False):
    """All that is in the file."""

    version: int
    table: dict[str, int]
    options: Fields
    back: list[str] | None


def write(options: Options, table: Mapping[str, int],
          more: Mapping[str, object]) -> int:
    """A memfd with all of it, to read from the beginning."""
    fd = os.memfd_create('handover', os.MFD_CLOEXEC)
    content = json.dumps({
        'version': VERSION, 'table': table, 'options': options.to_json(),
        **more}).encode()
    try:
        with open(fd, 'wb', closefd=False) as file:
            file.write(content)
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd


def become(options: Options, table: Mapping[str, int],
           counts: Counts, previous: Options | None,
           leaving: tuple[int, int] | None) -> None:
    """Run the code of `options` in place of this one.

    `leaving` is the daemon that waits for it.

    Raises an OSError, and leaves everything as it was, if that fails.
    """
    if not options.script:
        raise FileNotFoundError(
            errno.ENOENT, 'the code is not on its path any more',
            ':'.join(options.path[:1]))
    fd = write(options, table, {
        **counts, 'previous': previous and previous.to_json(),
        'back': previous and previous.command(), 'leaving': leaving})
    kept = [fd, *table.values(), *(leaving[1:] if leaving else ())]
    before = {each: os.get_inheritable(each) for each in kept}
    try:
        for each in kept:
            os.set_inheritable(each, True)
        command = options.command('--handover', str(fd), options.describe())
        os.execve(command[0], command, os.environ)
    except OSError:
        for each in kept:
            os.set_inheritable(each, before[each])
        raise
    finally:
        os.close(fd)


def take(content: Content, fd: int, back: bool,
         ) -> tuple[dict[str, int], Options, Counts]:
    """In the new code: the table, the options, and the counts.

    With `back`, in the code that was there before.
    """
    os.close(fd)
    table: dict[str, int] = content['table']
    leaving = content.get('leaving')
    for each in [*table.values(), *(leaving[1:] if leaving else ())]:
        os.set_inheritable(each, False)
    fields = content.get('previous') if back else content['options']
    options = Options.from_json(dict(fields or {}))
    return table, options, {
        'deaths': content.get('deaths', 0),
        'keeper_deaths': content.get('keeper_deaths', 0),
        'previous': None if back else content.get('previous'),
        'is_stopping': content.get('is_stopping', False),
        'failed_upgrades': content.get('failed_upgrades', 0) + back,
        'leaving': leaving}
