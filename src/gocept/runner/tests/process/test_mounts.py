"""Which paths lie on a file system that may not answer."""

import os
import pathlib
import tempfile
import unittest
from unittest import mock

from gocept.runner.process import mounts


class MountsTests(unittest.TestCase):

    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.here = pathlib.Path(os.path.realpath(directory.name))
        self.mounts = mounts.Mounts()
        self.addCleanup(self.mounts.close)

    def with_slow(self, *paths):
        patch = mock.patch.object(
            mounts, '_slow_in', lambda content: frozenset(
                os.fsencode(path) for path in paths))
        patch.start()
        self.addCleanup(patch.stop)

    def test_local_paths(self):
        for path in ('/', '/tmp', '/no/such/path', str(self.here), b'/proc'):
            self.assertFalse(self.mounts.may_hang(path), path)

    def test_what_is_mounted_and_below(self):
        self.with_slow(self.here / 'nfs')
        self.assertTrue(self.mounts.may_hang(self.here / 'nfs'))
        self.assertTrue(self.mounts.may_hang(self.here / 'nfs' / 'x' / 'y'))
        self.assertTrue(self.mounts.may_hang(f'{self.here}//./nfs/x'))
        self.assertTrue(self.mounts.may_hang(f'{self.here}/x/../nfs/x'))
        self.assertFalse(self.mounts.may_hang(self.here / 'nfs2'))
        self.assertFalse(self.mounts.may_hang(self.here))

    def test_links_are_followed(self):
        self.with_slow(self.here / 'nfs')
        (self.here / 'absolute').symlink_to(self.here / 'nfs')
        (self.here / 'relative').symlink_to('nfs/x')
        (self.here / 'local').symlink_to('.')
        (self.here / 'loop').symlink_to('loop')
        for name in ('absolute', 'relative', 'local/absolute/y'):
            self.assertTrue(self.mounts.may_hang(self.here / name), name)
        for name in ('local', 'loop', 'loop/x'):
            self.assertFalse(self.mounts.may_hang(self.here / name), name)

    def test_the_list(self):
        self.assertEqual(
            frozenset((b'/mnt/a b', b'/sshfs')),
            mounts._slow_in(
                b'1 0 8:1 / / rw - ext4 /dev/sda1 rw\n'
                b'2 1 0:5 / /mnt/a\\040b rw shared:1 - nfs4 host:/x rw\n'
                b'3 1 0:6 / /sshfs rw - fuse.sshfs x rw\n'
                b'4 1 0:7 / /over rw - nfs host:/x rw\n'
                b'5 1 0:8 / /over rw - tmpfs tmpfs rw\n'
                b'6 1 0:9 / /proc rw - proc proc rw\n'))

    def test_the_kind_of_the_root_never_counts(self):
        self.assertEqual(frozenset(), mounts._slow_in(
            b'1 0 8:1 / / rw - 9p root rw\n2 1 0:5 / /x rw - 9p x rw\n'))
