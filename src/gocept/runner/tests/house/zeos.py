"""A ZEO server as `up` starts it, for tests; the test is `up`."""

import contextlib
import json
import logging
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import ZEO.ClientStorage
from ZODB import DB
from ZODB.Connection import TransactionMetaData
from ZODB.utils import z64

import gocept.runner.house
from gocept.runner.boot.claim import Claim, socket_of
from gocept.runner.boot.zeoclient import ServedStorage
from gocept.runner.executor.conditions.inotify import Directory
from gocept.runner.poller import Poller
from gocept.runner.tests.support import DEADLINE, child_environment

START = os.path.join(os.path.dirname(gocept.runner.house.__file__),
                     'zeostart.py')

DEFAULTS: Mapping[str, Any] = {
    'create': None, 'read_only': None, 'quota': None, 'packer': None,
    'pack_gc': True, 'pack_keep_old': True, 'blob_dir': None}


class Server:
    """The server of some files, which are claimed."""

    def __init__(self, *paths: pathlib.Path, wait: float = 0,
                 timeout: float = DEADLINE, grace: float = DEADLINE,
                 is_first: bool = True, may_create: bool = True,
                 claims: Sequence[Claim] = (),
                 **options: object) -> None:
        """`options` are those of each ``<filestorage>``."""
        self.claims = claims or [self._claim(path) for path in paths]
        self.errors = ''
        self._news = threading.Condition()
        self._options = {
            'modules': sys.path,
            'files': [{'path': str(path), 'options': {
                **DEFAULTS, 'path': str(path), **options}} for path in paths],
            'claims': [claim.fileno() for claim in self.claims],
            'is_first': is_first, 'create': may_create, 'wait': wait,
            'timeout': timeout, 'grace': grace}
        self.start()

    @staticmethod
    def _claim(path: pathlib.Path) -> Claim:
        claim = Claim.take(str(path))
        assert claim is not None, path
        return claim

    def start(self) -> None:
        """Start the program, also again."""
        self.process = subprocess.Popen(
            [sys.executable, '-I', START, 'zeoserver'],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, pass_fds=self._options['claims'],
            process_group=0)
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(self._options).encode() + b'\n')
        self.process.stdin.flush()
        self._log = threading.Thread(target=self._read_log)
        self._log.start()

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stream:
            for line in stream:
                with self._news:
                    self.errors += line.decode()
                    self._news.notify_all()

    def wait_for(self, text: str) -> None:
        """Wait until the log has this text."""
        with self._news:
            assert self._news.wait_for(
                lambda: text in self.errors, DEADLINE), self.errors

    def word(self) -> dict[str, Any]:
        """What it says next; {} at its end."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else {}

    def ready(self) -> Self:
        """Wait until it is."""
        word = self.word()
        assert word == {'what': 'ready'}, (word, self.errors)
        return self

    def kill(self) -> None:
        """Kill it; the claims are held."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """End it in order; returns the status."""
        return self._end(signal.SIGTERM)

    def abandon(self) -> None:
        """Be dead: hold no claim, and let it see the end of its input."""
        for claim in self.claims:
            claim.close()
        assert self.process.stdin is not None
        self.process.stdin.close()

    def wait(self) -> int:
        """Wait for its end; returns the status."""
        status = self.process.wait(DEADLINE)
        self._log.join()
        for stream in self.process.stdin, self.process.stdout:
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        return status

    def _end(self, signum: int) -> int:
        self.process.send_signal(signum)
        self.process.send_signal(signal.SIGCONT)
        return self.wait()

    def close(self) -> None:
        """End it, and give up the claims."""
        if self.process.returncode is None:
            self.kill()
        for claim in self.claims:
            claim.give_up()


def connected(path: pathlib.Path, **options: Any) -> DB:
    """A database that asks the server of the file."""
    return DB(ServedStorage(str(path), options.pop('blob_dir', None),
                            options.pop('read_only', False)))


def plain(path: pathlib.Path, **options: Any) -> DB:
    """A database as another program would open it, by a ``<zeoclient>``."""
    return DB(ZEO.ClientStorage.ClientStorage(
        socket_of(str(path)), wait_timeout=DEADLINE, **options))


def catch_up(database: DB) -> None:
    """See what others have committed, of which the server tells clients."""
    ping = getattr(database.storage, 'ping', None)
    if ping is not None:
        ping()


def commit(database: DB, **values: object) -> None:
    """Set values in the root."""
    catch_up(database)
    with database.transaction() as connection:
        connection.root().update(values)


def root_of(database: DB) -> dict[str, object]:
    """What is in the root now."""
    catch_up(database)
    with database.transaction() as connection:
        return dict(connection.root())


def voted(storage: ZEO.ClientStorage.ClientStorage) -> TransactionMetaData:
    """A commit that the server has accepted: it is to be finished."""
    txn = TransactionMetaData()
    storage.tpc_begin(txn)
    storage.store(storage.new_oid(), z64, b'cdatetime\ndate\n.N.', '', txn)
    storage.tpc_vote(txn)
    return txn


def packer(storage: Any, referencesf: object, stop: bytes, gc: bool) -> None:
    """A packer that goes on as long as the server does.

    There is a file ``packing`` from the moment on that it has begun.
    """
    path = pathlib.Path(storage.getName())
    path.with_name('packing').touch()
    threading.Event().wait()


@contextlib.contextmanager
def news_in(directory: pathlib.Path) -> Iterator[Callable[[], object]]:
    """Waits for something new in a directory, by what this hands out."""
    with Poller() as poller:
        source = Directory(str(directory))
        poller.register(source)
        try:
            yield lambda: poller.poll(DEADLINE)
        finally:
            source.close()


def client(path: pathlib.Path, script: str) -> subprocess.Popen[str]:
    """A process with `storage`, which runs the script."""
    return subprocess.Popen(
        [sys.executable, '-c', textwrap.dedent('''
            import contextlib, sys
            from gocept.runner.boot.zeoclient import ServedStorage
            from gocept.runner.tests.house.zeos import voted
            storage = ServedStorage(sys.argv[1], None, False)
            ''') + textwrap.dedent(script), str(path)],
        env=child_environment(), stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True)


# A client that tells of a server which is gone, also after the test, is not to
# write to the terminal.
logging.getLogger('gocept.runner.environment').addHandler(
    logging.NullHandler())
