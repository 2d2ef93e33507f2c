"""What ends a daemon though its starter has left it alone.

See logind.conf(5), loginctl(1) and systemd.kill(5).
"""

import contextlib
import os


def threat(cgroup: str | None = None, root: str = '/') -> str:
    """What ends a daemon that this process starts; '' if nothing is known.

    A daemon belongs to the control group of who has started it. `cgroup` is
    the path of that, by default our own; `root` is where the system's files
    are.
    """
    path = _own_group() if cgroup is None else cgroup
    unit = os.path.basename(path)
    if path.startswith('/user.slice/'):
        if unit.startswith('session-'):
            return (
                'ends with this login session, as KillUserProcesses=yes in '
                'logind.conf: run it as a service' if _kills(root) else '')
        user = path.partition('/user@')[2].partition('.service')[0]
        if not user or _lingers(user, root):
            return ''
        return (f'ends when user {user} logs out: "loginctl enable-linger" '
                'keeps it, or run it as a service of the system')
    if unit.endswith('.service'):
        return (f'belongs to the unit {unit}, and ends with it, unless that '
                'has KillMode=process: run it as a unit of its own')
    return ''


def _own_group() -> str:
    with contextlib.suppress(OSError), open('/proc/self/cgroup') as file:
        for line in file:
            _, controllers, path = line.rstrip('\n').split(':', 2)
            if controllers in ('', 'name=systemd'):
                return path
    return ''


def _kills(root: str) -> bool:
    """Whether logind ends what a session leaves."""
    import glob  # few need it
    found = False
    for file in (f'{root}/etc/systemd/logind.conf', *sorted(glob.glob(
            f'{root}/etc/systemd/logind.conf.d/*.conf'))):
        with contextlib.suppress(OSError), open(file) as lines:
            for line in lines:
                name, _, value = line.partition('=')
                if name.strip() == 'KillUserProcesses':
                    found = value.strip().lower() in (
                        'yes', 'true', 'on', '1')
    return found


def _lingers(user: str, root: str) -> bool:
    import pwd
    with contextlib.suppress(KeyError, ValueError):
        user = pwd.getpwuid(int(user)).pw_name
    return os.path.exists(f'{root}/var/lib/systemd/linger/{user}')
