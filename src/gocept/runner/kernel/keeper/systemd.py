"""What systemd and a service tell each other.

See sd_notify(3) and sd_listen_fds(3).
"""

import contextlib
import os
import stat
from collections.abc import MutableMapping

from gocept.runner.logs import Log
from gocept.runner.signals.systemd import ServiceManager

log = Log('gocept.runner.kernel')

_FIRST = 3  # the number of the first descriptor

_LISTENING = ('LISTEN_PID', 'LISTEN_PIDFDID', 'LISTEN_FDS', 'LISTEN_FDNAMES')


def notify(text: str) -> None:
    """Tell the service manager, if there is one that wants to know."""
    address = os.environ.get('NOTIFY_SOCKET', '')
    if not address:
        return
    try:
        with contextlib.closing(ServiceManager(address)) as manager:
            manager.send(text)
    except (OSError, ValueError) as error:
        log.warning('The service manager cannot be told %r: %s', text, error)


def take_sockets(environ: MutableMapping[str, str]) -> dict[str, int]:
    """The sockets that this process was started with, by name.

    The names are ``systemd:NAME``; of several with one name, the further ones
    are ``systemd:NAME.1`` and so on. The variables are removed.
    """
    pid, _, count, names = (
        environ.pop(name, '') for name in _LISTENING)
    if pid != str(os.getpid()) or not count.isdecimal():
        return {}
    sockets: dict[str, int] = {}
    given = names.split(':') if names else []
    for number in range(int(count)):
        fd = _FIRST + number
        name = given[number] if number < len(given) else f'socket.{number}'
        with contextlib.suppress(OSError):
            os.set_inheritable(fd, False)
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                log.warning('%s of LISTEN_FDNAMES is no socket', name)
                continue
            sockets[_unused(f'systemd:{name}', sockets)] = fd
    return sockets


def _unused(key: str, taken: dict[str, int]) -> str:
    number, found = 0, key
    while found in taken:
        number += 1
        found = f'{key}.{number}'
    return found
