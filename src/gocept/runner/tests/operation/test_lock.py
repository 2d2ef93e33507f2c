import contextlib
import errno
import fcntl
import os
import resource
import signal
import unittest
from collections.abc import Iterator
from contextlib import AbstractContextManager
from unittest import mock

from gocept.runner import errors
from gocept.runner.boot.toolkit import Toolkit
from gocept.runner.operation.lock import locked
from gocept.runner.tests.cli.test_worker import ProgramTestCase
from gocept.runner.tests.support import Program, TestCase, open_descriptors

HOST = os.uname().nodename

MAPPING = '''
    <zodb>
      <mappingstorage>
      </mappingstorage>
    </zodb>
    '''


class LockTestCase(TestCase):

    def setUp(self) -> None:
        super().setUp()
        self.enterContext(mock.patch.dict(
            os.environ, XDG_STATE_HOME=str(self.dir / 'state')))
        self.options = Toolkit().load(self.zope_conf())
        self.path = self.dir / 'Data.fs.w.lock'

    def lock(self, worker: str = 'w', site: str | None = None,
             ) -> AbstractContextManager[None]:
        return locked(worker, site, self.options)

    def assertRefused(self, error: type[errors.RunnerError], status: int,
                      pattern: str, site: str | None = None,
                      ) -> errors.RunnerError:
        before = open_descriptors()
        with self.assertRaisesRegex(error, pattern) as caught:
            with self.lock(site=site):
                pass
        self.assertEqual(status, caught.exception.status)
        self.assertNotIn('\n', str(caught.exception))
        self.assertEqual(before, open_descriptors())
        return caught.exception

    def assertHeld(self, pattern: str) -> errors.RunnerError:
        return self.assertRefused(errors.WorkerLocked, 75, pattern)

    def assertCannot(self, pattern: str) -> None:
        self.assertRefused(errors.CannotLock, 73, pattern)


class LockTests(LockTestCase):

    def test_the_second_is_refused(self) -> None:
        with self.lock():
            error = self.assertHeld(
                f"another instance of the worker 'w' runs already, as process "
                f'{os.getpid()}, and holds the lock {self.path}: end it with '
                f'"kill {os.getpid()}", or with "kill -9 {os.getpid()}" if it')
            self.assertEqual((os.getpid(), str(self.path)),
                             (error.pid, error.path))
        with self.lock():
            pass

    def test_each_worker_and_site_has_its_own(self) -> None:
        with self.lock(), self.lock('other'), self.lock(site='a/b'):
            self.assertRefused(errors.WorkerLocked, 75, r'w@a%2Fb\.lock',
                               '/a/b/')
        self.assertEqual(
            {'Data.fs.w.lock', 'Data.fs.other.lock', 'Data.fs.w@a%2Fb.lock'},
            {path.name for path in self.dir.glob('*.lock')})

    def test_other_storages_have_it_with_the_user(self) -> None:
        self.options = Toolkit().load(self.write('zope.conf', MAPPING))
        for _ in range(2):  # the directory is new, and is there
            with self.lock():
                self.assertHeld(f'{self.dir}/state/gocept.runner/zope-')
        directory, = (self.dir / 'state/gocept.runner').iterdir()
        self.assertEqual(0o700, directory.stat().st_mode & 0o777)

    def test_a_file_that_a_crash_has_left(self) -> None:
        for text in '', ' 99999999 elsewhere and more\n', '\0' * 10000:
            self.path.write_text(text)
            with self.lock():
                self.assertEqual(f' {os.getpid()} {HOST}\n',
                                 self.path.read_text())
            self.assertEqual('', self.path.read_text())

    def test_a_holder_that_is_not_known(self) -> None:
        child = os.fork()
        if not child:
            os._exit(0)
        os.waitpid(child, 0)
        with self.lock():
            # Of one that has crashed, and of one that has not yet written.
            for text in f' {child} {HOST}\n', '', ' what is this', '\xe4':
                self.path.write_text(text)
                error = self.assertHeld('runs already, and holds the lock .*: '
                                        f'"fuser -v {self.path}" shows the ')
                self.assertEqual(0, error.pid)

    def test_a_holder_in_another_container(self) -> None:
        with self.lock():
            self.path.write_text(' 7 otherhost\n')
            error = self.assertHeld('as process 7 on otherhost, and holds')
            self.assertEqual(0, error.pid)


class InheritanceTests(LockTestCase):
    """What a process leaves behind does not hold its lock."""

    @contextlib.contextmanager
    def child(self) -> Iterator[None]:
        """A forked child that lives during the block."""
        child = os.fork()
        if not child:
            signal.pause()
            os._exit(1)
        try:
            yield
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)

    def test_a_fork_that_outlives_the_worker(self) -> None:
        reader, writer = os.pipe()
        holder = os.fork()
        if not holder:
            try:
                os.setpgid(0, 0)
                with self.lock():
                    if not os.fork():
                        os.write(writer, b'.')
                    signal.pause()
            finally:
                os._exit(1)
        self.addCleanup(os.close, reader)
        self.addCleanup(os.killpg, holder, signal.SIGKILL)
        os.close(writer)
        os.read(reader, 1)
        self.assertHeld(f'as process {holder}, ')
        os.kill(holder, signal.SIGKILL)
        os.waitid(os.P_PID, holder, os.WEXITED | os.WNOWAIT)
        with self.lock():
            pass
        self.addCleanup(os.waitpid, holder, 0)

    def test_a_fork_does_not_free_it(self) -> None:
        with self.lock():
            child = os.fork()
            if not child:
                os._exit(str(self.path) in open_descriptors().values())
            self.assertEqual(0, os.waitpid(child, 0)[1])
            self.assertHeld('runs already')

    def test_a_fork_that_leaves_the_block(self) -> None:
        with self.lock():
            child = os.fork()
            if not child:
                status = 1
                try:
                    with self.lock():
                        pass
                except errors.WorkerLocked:
                    status = 0
                finally:
                    os._exit(status)
            self.assertEqual(0, os.waitpid(child, 0)[1])
        pid = -1
        try:
            with self.lock():
                if not (pid := os.fork()):
                    raise ZeroDivisionError
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
                self.assertHeld('runs already')
        except BaseException as error:
            if not pid:
                os._exit(not isinstance(error, ZeroDivisionError))
            raise
        self.assertEqual(0, os.waitpid(pid, 0)[1])

    def test_a_fork_that_goes_on(self) -> None:
        with contextlib.ExitStack() as stack:
            with self.lock():
                stack.enter_context(self.child())
            with self.lock():
                pass

    def test_an_exec_closes_it(self) -> None:
        with self.lock():
            fd, = (fd for fd, target in open_descriptors().items()
                   if target == str(self.path))
            self.assertFalse(os.get_inheritable(int(fd)))


class ErrorTests(LockTestCase):

    @contextlib.contextmanager
    def as_nobody(self) -> Iterator[None]:
        if os.geteuid():
            raise unittest.SkipTest('only root can become another user')
        self.dir.chmod(0o755)
        if self.path.exists():
            self.path.chmod(0o644)
        os.seteuid(65534)
        try:
            if not os.path.exists(self.options.configfile):
                raise unittest.SkipTest('others may not look into $TMPDIR')
            yield
        finally:
            os.seteuid(0)

    def failing(self, number: int) -> AbstractContextManager[object]:
        return mock.patch.object(
            fcntl, 'flock', side_effect=OSError(number, os.strerror(number)))

    def test_a_directory_that_may_not_be_written(self) -> None:
        with self.as_nobody():
            self.assertCannot(
                f"the lock {self.path} of the worker 'w' cannot be taken: "
                'Permission denied; this user may not write in '
                f'{self.dir}$')

    def test_a_file_of_another_user(self) -> None:
        with self.lock():
            pass
        with self.as_nobody():
            self.assertCannot('Permission denied; the file belongs to the '
                              'user root: run the worker as this user, or')

    def test_a_lock_that_another_user_holds(self) -> None:
        with self.lock(), self.as_nobody():
            self.assertHeld(f'as process {os.getpid()}, ')

    def test_a_directory_that_is_missing(self) -> None:
        self.options.databases[0].config.storage.config.path = (
            f'{self.dir}/var/Data.fs')
        self.assertCannot('/var/Data.fs.w.lock .* cannot be taken: No such')

    def test_something_else_in_its_place(self) -> None:
        self.path.mkdir()
        self.assertCannot('cannot be taken: Is a directory$')
        self.path.rmdir()
        os.mkfifo(self.path)
        self.assertCannot('cannot be taken: .*not seekable')

    def test_a_full_disk(self) -> None:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_FSIZE, limits)
        with self.lock():
            pass
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
        try:
            self.assertCannot('cannot be taken: File too large$')
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        with self.lock():
            pass

    def test_a_file_system_without_locks(self) -> None:
        for number in errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS:
            with self.failing(number):
                self.assertCannot(
                    rf'its file system has no locks \({os.strerror(number)}\)'
                    ': run the worker without a lock')

    def test_one_that_cannot_be_written(self) -> None:
        with mock.patch('builtins.open', side_effect=OSError(
                errno.EROFS, os.strerror(errno.EROFS))):
            with self.assertRaisesRegex(
                    errors.CannotLock, 'Read-only file system; a worker with '
                    'a lock needs a directory that it can write'):
                with self.lock():
                    pass

    def test_a_user_without_a_home(self) -> None:
        self.options = Toolkit().load(self.write('zope.conf', MAPPING))
        with (mock.patch.dict(os.environ, XDG_STATE_HOME=''),
              mock.patch('os.path.expanduser', lambda path: path)):
            self.assertCannot("the worker 'w' cannot be locked: this user has "
                              'no home directory')


class ProgramTests(ProgramTestCase):
    """A worker with a lock, as a program."""

    def worker(self, *args: str, options: str = 'lock=True',
               site: str | None = None) -> Program:
        program: Program = self.start(f'''
            @gocept.runner.appmain(ticks=3600, {options})
            def worker():
                count()
                say('ticks')
            try:
                worker({site!r}, 'zope.conf')
            except gocept.runner.errors.RunnerError as error:
                say(f'{{type(error).__name__}} {{error.status}} {{error}}')
            ''', *args)
        return program

    def first(self, *args: str, **options: str) -> Program:
        program = self.worker(*args, **options)
        program.wait_for('Sleeping 3600 seconds')
        return program

    def assertFree(self) -> None:
        program = self.worker('--once')
        self.assertEqual(0, program.end(), program.output)

    def test_the_second_ends_before_it_opens_the_database(self) -> None:
        first = self.first()
        second = self.worker('--once')
        self.assertEqual(75, second.end())
        self.assertNotIn('ticks', second.output)
        first.send(signal.SIGTERM)
        self.assertEqual(0, first.end())
        self.assertFree()

    def test_a_call_in_python(self) -> None:
        first = self.first()
        second = self.worker()
        self.assertEqual(0, second.end())
        self.assertIn("WorkerLocked 75 another instance of the worker 'worker'"
                      f' runs already, as process {first.pid}, and holds the '
                      f'lock {self.dir}/Data.fs.worker.lock', second.output)

    def test_it_is_free_however_the_first_ends(self) -> None:
        first = self.first()
        first.send(signal.SIGKILL)
        self.assertEqual(-signal.SIGKILL, first.end())
        self.assertFree()

    def test_the_command_line_decides(self) -> None:
        first = self.first('--lock', options='lock=False')
        self.assertEqual(75, self.worker('--once').end())
        first.close()
        first = self.first('--no-lock')
        # This is the lock of the database itself.
        self.assertEqual(69, self.worker('--once').end())
