"""Which paths lie on a file system that may not answer.

The server of a network file system may be away, and so may the program behind
a FUSE file system. Then each call that looks at a path there waits, perhaps
for ever. So whoever must not wait asks here first.
"""

import os
import select

from gocept.runner.waits.deadline import Deadline, wait_for

_LOCAL = frozenset((
    b'bcachefs', b'bpf', b'btrfs', b'cgroup', b'cgroup2', b'configfs',
    b'debugfs', b'devpts', b'devtmpfs', b'efivarfs', b'erofs', b'exfat',
    b'ext2', b'ext3', b'ext4', b'f2fs', b'fusectl', b'hugetlbfs', b'iso9660',
    b'jfs', b'mqueue', b'msdos', b'nilfs2', b'ntfs3', b'overlay', b'proc',
    b'pstore', b'ramfs', b'reiserfs', b'rootfs', b'rpc_pipefs', b'securityfs',
    b'selinuxfs', b'squashfs', b'sysfs', b'tmpfs', b'tracefs', b'udf',
    b'ufs', b'vfat', b'xfs', b'zfs'))
"""What needs neither another machine nor a program to answer."""

_MOST_LINKS = 40  # as the system itself follows; see path_resolution(7)


class Mounts:
    """The mounts of this process, as they are now."""

    def __init__(self) -> None:
        self._fd = -1
        self._slow: frozenset[bytes] = frozenset()

    def may_hang(self, path: str | bytes) -> bool:
        """Whether a look at an absolute path may wait for somebody.

        Symbolic links are followed as long as they are local. The file system
        that has the root directory is never counted: without it nothing runs.
        """
        self._refresh()
        if not self._slow:
            return False
        rest = [part for part in reversed(os.fsencode(path).split(b'/'))
                if part not in (b'', b'.')]
        here, links = b'', 0
        while rest:
            part = rest.pop()
            if part == b'..':
                here = here.rpartition(b'/')[0]
                continue
            there = here + b'/' + part
            if there in self._slow:
                return True
            try:
                target = os.readlink(there)
            except OSError:  # not a link, or not there
                here = there
                continue
            links += 1
            if links > _MOST_LINKS:
                return False  # the system refuses it at once
            if target.startswith(b'/'):
                here = b''
            rest += [each for each in reversed(target.split(b'/'))
                     if each not in (b'', b'.')]
        return False

    def _refresh(self) -> None:
        """Read the list again if it has changed; see proc(5), mountinfo."""
        if self._fd < 0:
            try:
                self._fd = os.open(
                    '/proc/self/mountinfo', os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                return  # no /proc: nothing is known of any mount
        elif not wait_for(self._fd, select.POLLPRI, Deadline(0)):
            return
        content = b''
        os.lseek(self._fd, 0, os.SEEK_SET)
        while piece := os.read(self._fd, 65536):
            content += piece
        self._slow = _slow_in(content)

    def close(self) -> None:
        """Forget the list; it is read again when it is needed."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)
            self._slow = frozenset()


def _slow_in(mountinfo: bytes) -> frozenset[bytes]:
    """Where file systems are mounted that may not answer."""
    kinds: dict[bytes, bytes] = {}
    for line in mountinfo.splitlines():
        left, _, right = line.partition(b' - ')
        words, kind = left.split(), right.split()
        if len(words) > 4 and kind:
            # The last one on a directory hides those before it.
            kinds[_unescaped(words[4])] = kind[0]
    root = kinds.get(b'/')
    return frozenset(
        place for place, kind in kinds.items()
        if place != b'/' and kind not in _LOCAL and kind != root)


def _unescaped(path: bytes) -> bytes:
    """A path with its spaces, tabs, newlines and backslashes."""
    for code, character in ((b'\\040', b' '), (b'\\011', b'\t'),
                            (b'\\012', b'\n'), (b'\\134', b'\\')):
        path = path.replace(code, character)
    return path
