"""From the commit of another process to the tick, in milliseconds.

usage: watching.py zeo|relstorage|zope COUNT

With ``zope``, both processes are clients of ZEO in an instance of Zope.
"""

import contextlib
import json
import logging
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import transaction
from BTrees.Length import Length

from benchmarks.environments import HOME
from gocept.runner.boot.changes import Looker, source_of
from gocept.runner.runner import Exit, MainLoop, init

PAUSE = 60
INTERVAL = 0.02  # between two looks
LOOKS = 1000

CONFS = {
    'zeo': '''
        %import ZEO
        <zodb>
          <clientstorage>
            server {home}/socket
          </clientstorage>
        </zodb>
        ''',
    'zope': '''
        instancehome {home}
        %import ZEO
        <zodb_db main>
          mount-point /
          <clientstorage>
            server {home}/socket
          </clientstorage>
        </zodb_db>
        ''',
    'relstorage': '''
        %import relstorage
        <zodb>
          <relstorage>
            <sqlite3>
              data-dir {home}/data
            </sqlite3>
          </relstorage>
        </zodb>
        '''}

Found = list[tuple[int, int]]
"""When a tick began, in nanoseconds, and the counter that it has seen."""


def main() -> None:
    storage, count = sys.argv[1], int(sys.argv[2])
    logging.disable()
    HOME.mkdir(parents=True, exist_ok=True)
    with (tempfile.TemporaryDirectory(dir=HOME) as home,
          serving(storage, home)):
        conf = f'{home}/zope.conf'
        with open(conf, 'w') as file:
            file.write(CONFS[storage].format(home=home))
        with init(None, conf) as app:
            app.counter = Length()
            transaction.commit()
            samples: dict[str, list[float]] = {'ours': []}
            sides: dict[str, Callable[[Any, int], Found]] = {'ours': ours}
            if storage != 'relstorage':
                sides['raw'] = raw
            with changing(conf, count) as change:
                for name, wait in sides.items():
                    samples[name] = late(change, wait, app, count)
            rows = [samples]
            if storage == 'relstorage':
                rows.append({'ours': [look(app)]})
    print(json.dumps(rows))


@contextlib.contextmanager
def serving(storage: str, home: str) -> Iterator[None]:
    """With ZEO, a server."""
    if storage == 'relstorage':
        yield
        return
    server = subprocess.Popen(
        [sys.executable, '-m', 'ZEO.runzeo', '-a', f'{home}/socket',
         '-f', f'{home}/Data.fs'], stderr=subprocess.DEVNULL)
    try:
        while not answers(f'{home}/socket'):
            time.sleep(0.01)
        yield
    finally:
        server.terminate()
        server.wait()


def answers(path: str) -> bool:
    """Whether somebody listens."""
    with socket.socket(socket.AF_UNIX) as client:
        return not client.connect_ex(path)


@contextlib.contextmanager
def changing(conf: str, count: int,
             ) -> Iterator[Callable[[], Callable[[], Sequence[int]]]]:
    """Another process; what begins its changes returns what reads when they
    came."""
    with subprocess.Popen(
            [sys.executable, '-m', 'benchmarks.scripts.changing', conf,
             str(count)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True) as child:
        sink, faucet = child.stdin, child.stdout
        assert sink is not None and faucet is not None
        assert faucet.readline() == 'ready\n'

        def begin() -> Callable[[], Sequence[int]]:
            sink.write('\n')
            sink.flush()
            return lambda: [int(faucet.readline()) for _ in range(count)]
        yield begin
        sink.close()


def late(change: Callable[[], Callable[[], Sequence[int]]],
         wait: Callable[[Any, int], Found], app: Any, count: int,
         ) -> list[float]:
    """How late each change was seen, in milliseconds."""
    transaction.begin()
    before = app.counter()
    began = threading.Timer(0.2, lambda: read.append(change()))
    read: list[Callable[[], Sequence[int]]] = []
    began.start()
    found = wait(app, before + count)
    began.join()
    return [(next(when for when, seen in found if seen >= before + number)
             - committed) / 1e6
            for number, committed in enumerate(read[0](), 1)]


def ours(app: Any, last: int) -> Found:
    """A worker whose pause a change ends."""
    found: Found = []

    def work() -> object:
        found.append((time.monotonic_ns(), app.counter()))
        return Exit if found[-1][1] == last else None
    MainLoop(app, PAUSE, work, watch=lambda site: site.counter,
             watch_interval=INTERVAL)()
    return found


class Told:
    """What the MVCC adapter tells, among the storages of connections."""

    def __init__(self, oid: bytes) -> None:
        self.oid = oid
        self.event = threading.Event()

    def _invalidate(self, tid: bytes, oids: Sequence[bytes]) -> None:
        if self.oid in oids:
            self.event.set()

    def _invalidateCache(self) -> None:
        self.event.set()


def raw(app: Any, last: int) -> Found:
    """What ZODB makes possible."""
    told = Told(app.counter._p_oid)
    adapter = app._p_jar.db()._mvcc_storage
    with adapter._lock:
        adapter._instances.add(told)
    found: Found = []
    while not found or found[-1][1] < last:
        told.event.wait(PAUSE)
        told.event.clear()
        transaction.begin()
        found.append((time.monotonic_ns(), app.counter()))
        transaction.commit()
    with adapter._lock:
        adapter._instances.remove(told)
    return found


def look(app: Any) -> float:
    """How long it takes to look for a change."""
    source = source_of(app._p_jar, lambda: None)
    assert isinstance(source, Looker)
    with contextlib.closing(source):
        before = time.perf_counter()
        for _ in range(LOOKS):
            source.look()
        return (time.perf_counter() - before) / LOOKS * 1000


if __name__ == '__main__':
    main()
