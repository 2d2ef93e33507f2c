"""The claim on a database file."""

import contextlib
import os
import pathlib
import socket
import stat
import subprocess
import sys
import tempfile
import unittest

from gocept.runner.boot.claim import (
    Access,
    Claim,
    Holder,
    claim_of,
    holder,
    socket_of,
)

US = Holder(os.getpid(), os.uname().nodename)


class ClaimTests(unittest.TestCase):

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)
        self.path = self.directory / 'Data.fs'

    def take(self) -> Claim:
        claim = Claim.take(str(self.path))
        assert claim is not None
        self.addCleanup(claim.close)
        return claim

    def holder(self) -> Holder | None:
        return holder(str(self.path))

    def test_a_file_that_nobody_has_claimed(self) -> None:
        self.assertIsNone(self.holder())
        self.assertEqual([], os.listdir(self.directory))

    def test_a_claim_names_its_holder(self) -> None:
        self.take()
        self.assertEqual(US, self.holder())
        self.assertEqual(f'process {os.getpid()}', str(self.holder()))

    def test_a_claim_belongs_to_one(self) -> None:
        claim = self.take()
        self.assertIsNone(Claim.take(str(self.path)))
        claim.give_up()
        self.take()

    def test_a_claim_that_is_given_up_leaves_no_file(self) -> None:
        self.take().give_up()
        self.assertIsNone(self.holder())
        self.assertEqual([], os.listdir(self.directory))

    def test_to_close_it_frees_it_and_leaves_the_file(self) -> None:
        claim = self.take()
        claim.close()
        claim.close()
        self.assertTrue(os.path.exists(claim_of(str(self.path))))
        self.assertIsNone(self.holder())
        self.take()

    def test_a_child_with_the_descriptor_holds_it_as_well(self) -> None:
        claim = self.take()
        with subprocess.Popen(
                [sys.executable, '-c', 'input()'], stdin=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=[claim.fileno()]) as child:
            claim.close()
            self.assertEqual(US, self.holder())
            child.kill()
            child.wait()
            self.assertIsNone(self.holder())

    def test_a_server_whose_up_has_died_is_named(self) -> None:
        claim = self.take()
        claim.note_server()
        self.assertEqual(US, self.holder())
        path = pathlib.Path(claim_of(str(self.path)))
        with subprocess.Popen(['true']) as child:
            pass
        _, server = path.read_text().splitlines()
        for start, expected in (
                (server.split()[1], Holder(os.getpid(), US.host, True)),
                # A process that has got the number later.
                ('1', Holder(child.pid, US.host))):
            path.write_text(f'{child.pid} {US.host}\n{os.getpid()} {start}\n')
            self.assertEqual(expected, self.holder())

    def test_a_claim_of_another_machine(self) -> None:
        self.take()
        path = pathlib.Path(claim_of(str(self.path)))
        path.write_text(f'1 elsewhere\n{os.getpid()} 1\n')
        self.assertEqual('process 1 on elsewhere', str(self.holder()))

    def test_a_child_that_is_forked_does_not_hold_it(self) -> None:
        claim = self.take()
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if not pid:
            theirs.send(b'.')
            ours.close()
            theirs.recv(1)  # until the test ends
            os._exit(0)
        try:
            theirs.close()
            ours.recv(1)
            claim.close()
            self.assertIsNone(self.holder())
        finally:
            ours.close()
            os.waitpid(pid, 0)

    def test_a_claim_that_is_being_written(self) -> None:
        self.take()
        pathlib.Path(claim_of(str(self.path))).write_text('')
        self.assertEqual(Holder(0, ''), self.holder())
        self.assertEqual('another process', str(self.holder()))

    def test_a_claim_that_was_removed_is_another_one(self) -> None:
        # As by one who takes all files of that kind for leftovers.
        claim = self.take()
        os.unlink(claim_of(str(self.path)))
        self.assertIsNone(self.holder())
        self.take()
        claim.give_up()
        self.assertEqual(US, self.holder())

    def test_the_way_to_the_file_does_not_matter(self) -> None:
        link = self.directory / 'link.fs'
        link.symlink_to(self.path)
        self.take()
        self.assertEqual(US, holder(str(link)))
        self.assertEqual(socket_of(str(self.path)), socket_of(str(link)))

    def test_who_may_read_the_file_may_read_the_claim(self) -> None:
        self.path.write_text('')
        for mode in 0o600, 0o640, 0o666:
            self.path.chmod(mode)
            with contextlib.closing(self.take()) as claim:
                self.assertEqual(
                    mode, stat.S_IMODE(os.fstat(claim.fileno()).st_mode))

    def test_a_directory_that_is_not_there(self) -> None:
        self.path = self.directory / 'missing' / 'Data.fs'
        self.assertIsNone(self.holder())
        with self.assertRaises(FileNotFoundError):
            Claim.take(str(self.path))


class AccessTests(unittest.TestCase):

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = pathlib.Path(directory.name) / 'file'

    def test_a_file_that_is_missing_has_none(self) -> None:
        self.assertIsNone(Access.of(str(self.path)))

    def test_a_socket_is_never_executable(self) -> None:
        self.path.write_text('')
        self.path.chmod(0o755)
        access = Access.of(str(self.path))
        assert access is not None
        self.assertEqual(0o644, access.mode)

    @unittest.skipIf(os.geteuid(), 'only root may give a file to others')
    def test_root_gives_it_to_the_owner(self) -> None:
        self.path.write_text('')
        os.chown(self.path, 65534, 65533)
        access = Access.of(str(self.path))
        assert access is not None
        other = self.path.with_name('other')
        other.write_text('')
        access.give(str(other))
        found = other.stat()
        self.assertEqual((65534, 65533), (found.st_uid, found.st_gid))
