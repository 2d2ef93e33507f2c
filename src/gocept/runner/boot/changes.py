"""The changes in a database that end the pause between two ticks.

ZODB's MVCC adapter tells the storage of each connection what others commit:
with ZEO in the thread of the network, otherwise in the thread that commits.
It does not tell the storage of the connection that commits. So a `Listener`
hears at the storage of the loop's own connection what others change.

A storage with an MVCC of its own, such as RelStorage, tells nobody. A `Looker`
asks it, in the thread of the loop: at an interval in a pause, and before and
after a tick.
"""

import contextlib
import math
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Protocol

from persistent import Persistent
from ZODB.Connection import Connection
from ZODB.interfaces import IMVCCStorage
from ZODB.mvccadapter import MVCCAdapterInstance
from ZODB.POSException import POSKeyError
from zope.component.interfaces import ISite
from zope.security.proxy import removeSecurityProxy

from gocept.runner.boot.attempts import abort
from gocept.runner.boot.program import Watch
from gocept.runner.boot.texts import described, name_of, text
from gocept.runner.boot.trees import Nodes, with_parts
from gocept.runner.logs import DEBUG, ERROR, WARNING, Log
from gocept.runner.poller import Poller
from gocept.runner.signals import Shutdown
from gocept.runner.waits.deadline import Deadline
from gocept.runner.waits.forks import Lock, OneProcess

log = Log('gocept.runner.runner')

MOST_RECORDED = 100_000
"""Oids of one tick; more of them are taken for a change of what is watched."""

AWAY = 10.0
"""Seconds between two looks, at least, as long as a database is away.

RelStorage logs each attempt to connect again.
"""


class Source:
    """What is watched of one connection, and whether others have changed it.

    `tell` and `lose` are called by any thread, all others by that of the loop.
    This class serves a connection whose view of the database never changes.
    """

    def __init__(self, connection: Connection, wake: Callable[[], object],
                 ) -> None:
        self.connection = connection
        self.changed = False
        """Whether what is watched has changed since the tick began."""
        self.moved = True
        """Whether anything has changed since it was asked what to watch."""
        self._wake = wake
        self._lock = Lock()
        self._nodes = Nodes(connection)
        self._watched: frozenset[bytes] = frozenset()
        # What others have changed since the tick began: it may turn out to be
        # watched. None in a pause.
        self._recorded: set[bytes] | None = set()
        self._all_recorded = False
        # What has changed since `_nodes` has read it.
        self._stale: set[bytes] = set()
        self._all_stale = False
        self._storage = connection._normal_storage
        self._undo = contextlib.ExitStack()
        self._stored = self._replace('store', self._store)

    def _replace(self, name: str, method: Callable[..., object],
                 ) -> Callable[..., Any]:
        """Let the storage have `method` as its own; returns what it had."""
        attributes = vars(self._storage)
        original: Callable[..., Any] = getattr(self._storage, name)
        if name in attributes:
            self._undo.callback(attributes.__setitem__, name, original)
        else:
            self._undo.callback(attributes.pop, name, None)
        attributes[name] = method
        return original

    def close(self) -> None:
        """Leave the storage as it was."""
        self._undo.close()

    def tell(self, oids: Collection[bytes]) -> None:
        """Others have committed these objects."""
        with self._lock:
            self.moved = True
            if self._recorded is not None:
                self._recorded.update(oids)
                if len(self._recorded) > MOST_RECORDED:
                    self._recorded.clear()
                    self._all_recorded = self._all_stale = True
            hits = self._watched.intersection(oids)
            self._stale |= hits
            is_news = bool(hits) and not self.changed
            self.changed |= is_news
        if is_news:
            self._wake()

    def lose(self) -> None:
        """Others may have committed any objects."""
        with self._lock:
            self.moved = self._all_recorded = self._all_stale = True
            is_news = bool(self._watched) and not self.changed
            self.changed |= is_news
        if is_news:
            self._wake()

    def look(self) -> None:
        """Ask what others have committed, if nobody tells."""

    def begin_tick(self) -> None:
        """The tick that begins after this call sees what has changed."""
        with self._lock:
            self._recorded = set()
            self._all_recorded = self.changed = False

    def prepare(self) -> None:
        """Call this before the transaction for `watch`."""
        with self._lock:
            stale, self._stale = self._stale, set()
            all_stale, self._all_stale = self._all_stale, False
            self.moved = False
        if all_stale:
            self._nodes.forget_all()
        else:
            self._nodes.forget(stale)

    def watch(self, objects: Iterable[Persistent]) -> None:
        """Watch these objects of the connection from now on."""
        watched = self._nodes.find(objects)
        with self._lock:
            self._watched = watched  # from now on, `tell` looks for these
            hits = watched.intersection(self._recorded or ())
            self._recorded = None
        hits = self._of_others(hits)
        with self._lock:
            self._stale |= hits
            self.moved |= bool(hits)
            self.changed |= bool(hits or (watched and self._all_recorded))

    def _of_others(self, oids: frozenset[bytes]) -> frozenset[bytes]:
        """Those that others have changed."""
        return oids

    def _store(self, oid: bytes, *args: object) -> object:
        with self._lock:
            self.moved = True
            if oid in self._watched:
                self._stale.add(oid)
        return self._stored(oid, *args)


class Listener(Source):
    """Of a storage that ZODB's MVCC adapter tells what others commit."""

    def __init__(self, connection: Connection, wake: Callable[[], object],
                 ) -> None:
        super().__init__(connection, wake)
        # Before the storage has the methods, which any thread may call then.
        self._invalidated = self._storage._invalidate
        self._cache_invalidated = self._storage._invalidateCache
        self._replace('_invalidate', self._invalidate)
        self._replace('_invalidateCache', self._invalidate_cache)

    def _invalidate(self, tid: bytes, oids: Collection[bytes]) -> None:
        self._invalidated(tid, oids)  # first, so that the next tick sees it
        self.tell(oids)

    def _invalidate_cache(self) -> None:
        self._cache_invalidated()
        self.lose()


class Looker(Source):
    """Of a storage with an MVCC of its own, which has to be asked."""

    failures = 0
    """The number of looks that have failed since one has succeeded."""

    def __init__(self, connection: Connection, wake: Callable[[], object],
                 ) -> None:
        self._view = connection.db().storage.new_instance()
        try:
            self._view.poll_invalidations()  # the first one knows no changes
            # What was committed last when the tick began; since then, what the
            # loop has committed, and what others have changed before it did.
            self._seen: bytes = self._view.lastTransaction()
        except BaseException:
            self._view.release()
            raise
        self._own: set[bytes] = set()
        self._shared: set[bytes] = set()
        super().__init__(connection, wake)
        self._voted = self._replace('tpc_vote', self._vote)
        self._finished = self._replace('tpc_finish', self._finish)

    def close(self) -> None:
        """See `Source`."""
        super().close()
        self._view.release()

    def look(self) -> None:
        """See `Source`."""
        try:
            with self._current_view():
                oids = self._view.poll_invalidations()
            if oids is None:
                self.lose()
            elif oids:
                known = self._watched.intersection(oids)
                own = known - self._of_others(known)
                self.tell([oid for oid in oids if oid not in own])
        except Exception as error:  # the next look finds the changes
            log.log(DEBUG if self.failures else WARNING,
                    'Cannot look for changes in the database %r: %s',
                    self.connection.db().database_name, described(error))
            self.failures += 1
        else:
            self.failures = 0

    def begin_tick(self) -> None:
        """See `Source`."""
        self.look()
        super().begin_tick()
        self._seen = self._view.lastTransaction()
        self._own.clear()
        self._shared.clear()

    @contextlib.contextmanager
    def _current_view(self) -> Iterator[None]:
        self._view.sync(True)
        try:
            yield
        finally:
            self._view.sync(True)  # ends its transaction

    def _of_others(self, oids: frozenset[bytes]) -> frozenset[bytes]:
        if not self._own:
            return oids
        try:
            with self._current_view():
                return frozenset(oid for oid in oids if oid in self._shared
                                 or self._last(oid) not in self._own)
        except Exception:  # it told them once: rather a tick in vain
            log.debug('Cannot tell who has changed objects', exc_info=True)
            return oids

    def _last(self, oid: bytes) -> bytes | None:
        """The last transaction that has changed the object."""
        try:
            tid: bytes = self._view.load(oid)[1]
        except POSKeyError:
            return None
        return tid

    # Of an object that others have changed, and then the loop, the database
    # tells the last transaction only. But the loop has read the other change,
    # or the storage has merged the two.

    def _store(self, oid: bytes, *args: Any) -> object:
        serial = args[0]
        if serial and serial > self._seen and serial not in self._own:
            self._shared.add(oid)
        return super()._store(oid, *args)

    def _vote(self, *args: object) -> object:
        merged = self._voted(*args)
        if not merged:
            return merged
        oids = [*merged]
        self._shared.update(oids)
        return oids

    def _finish(self, *args: object, **keywords: object) -> bytes:
        tid: bytes = self._finished(*args, **keywords)
        self._own.add(tid)
        return tid


def source_of(connection: Connection, wake: Callable[[], object]) -> Source:
    """The source of the kind that serves a connection."""
    # Not by the names of attributes: RelStorage has some of the same names,
    # with another meaning.
    if isinstance(connection._normal_storage, MVCCAdapterInstance):
        return Listener(connection, wake)
    if connection.before is None and IMVCCStorage.providedBy(
            connection.db().storage):
        return Looker(connection, wake)
    return Source(connection, wake)


class Attempt(Protocol):
    """What is used of `ICurrentSite`."""

    app: ISite

    def end(self) -> None: ...


class Changes:
    """What a loop watches, in all databases that its connection knows.

    `interval` is the number of seconds between two looks in a pause, where a
    storage has to be asked. A context manager, for the thread of the loop.
    """

    def __init__(self, app: ISite, watch: Watch, interval: float,
                 shutdown: Shutdown) -> None:
        self._connection = getattr(app, '_p_jar', None)
        self._ask = watch
        self._interval = interval
        self._shutdown = shutdown
        self._sources: dict[int, Source] = {}  # by the id of the connection
        self._pausing = False
        self._fails = False

    def __enter__(self) -> 'Changes':
        with contextlib.ExitStack() as undo:
            undo.push(self.__exit__)
            self._join()
            undo.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        while self._sources:
            _, source = self._sources.popitem()
            try:
                source.close()
            except Exception:  # of a database that is away
                log.debug('A database is watched no more', exc_info=True)

    def _join(self) -> None:
        """Begin with the connections that are new."""
        connections = ({} if self._connection is None
                       else self._connection.connections)
        for each in connections.values():
            if id(each) not in self._sources:
                source = self._sources[id(each)] = source_of(each, self._wake)
                source.lose()  # what has changed before, it was not told

    def _wake(self) -> None:
        if self._pausing:
            self._shutdown.wakeup()

    def begin_tick(self) -> None:
        """What has changed by now is seen by the tick that begins."""
        for source in self._sources.values():
            source.begin_tick()

    def watch(self, begin: Callable[[], object], attempt: Attempt) -> None:
        """Ask what to watch, unless nothing has changed since.

        An error is logged, unless the call before has failed, too. SystemExit
        and KeyboardInterrupt are raised.
        """
        sources = self._sources.values()
        for source in sources:
            source.look()
        if not (self._fails or any(each.moved for each in sources)):
            return
        for source in sources:
            source.prepare()
        failed, self._fails = self._fails, True
        try:
            with OneProcess():
                begin()
                self._watch(self._ask(attempt.app))
            self._fails = False
        except Exception as error:
            log.log(DEBUG if failed else ERROR,
                    'Error in %r, which tells what to watch; as long as it '
                    'fails, only a change of what it told before ends a '
                    'pause: %s', name_of(self._ask), described(error),
                    exc_info=error)
        finally:
            abort()
            attempt.end()

    def _watch(self, answer: object) -> None:
        objects = [each for it in _objects(answer) for each in with_parts(it)]
        self._join()
        connections = {id(each._p_jar) for each in objects}
        if not connections <= self._sources.keys():
            raise ValueError(
                'an object to watch belongs to another connection than that '
                'of the site')
        for key, source in self._sources.items():
            source.watch([it for it in objects if id(it._p_jar) == key])

    def pause(self, seconds: float, poller: Poller) -> None:
        """Pause as `IShutdown.pause` does, but at most until a change."""
        deadline = Deadline(seconds)
        while not self._rest(min(deadline.left(), self._until_look()), poller):
            if deadline.passed:
                return
            for source in self._sources.values():
                source.look()
        if self._changed():
            log.debug('A change in the database has ended the pause')

    def _until_look(self) -> float:
        failures = [each.failures for each in self._sources.values()
                    if isinstance(each, Looker)]
        if not failures:
            return math.inf
        is_away = max(failures) > 1
        return max(self._interval, AWAY) if is_away else self._interval

    def _rest(self, seconds: float, poller: Poller) -> bool:
        """Whether a change or something else has ended it before its time."""
        self._pausing = True  # first, as a change may just come
        try:
            return self._changed() or self._shutdown.rest(seconds, poller)
        finally:
            self._pausing = False

    def _changed(self) -> bool:
        return any(each.changed for each in self._sources.values())


def _objects(answer: object) -> Iterator[Persistent]:
    """The persistent objects that a callable wants to be watched."""
    answer = _unwrapped(answer)
    if answer is None:
        return
    many = ((answer,) if isinstance(answer, Persistent)
            or not isinstance(answer, Iterable) else answer)
    for each in map(_unwrapped, many):
        if each is None:
            continue
        if not isinstance(each, Persistent):
            raise TypeError('expected a persistent object, several of them or '
                            f'None, not {text(each, repr)}')
        if each._p_jar is None or each._p_oid is None:
            raise ValueError(
                f'{text(each, repr)} is not stored in the database: return '
                'None, or what is to hold it, as long as it is not there')
        yield each


def _unwrapped(it: Any) -> Any:
    """Without a security proxy or an acquisition wrapper."""
    it = removeSecurityProxy(it)
    return getattr(it, 'aq_base', it)
