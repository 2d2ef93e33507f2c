"""The last run of each worker, in the database of its site.

The root of the database has an `OOBTree` under `KEY`. Its keys name a worker
and the path of a site; see `key_of`. Each value is a mapping of its own, so
that workers are in no conflict with each other once they are in the tree;
``run`` is the time of the run in seconds since the epoch. Programs without
this package can read all of it.
"""

from BTrees.OOBTree import OOBTree
from persistent.mapping import PersistentMapping
from zope.component.interfaces import ISite

from gocept.runner.errors import UsageError
from gocept.runner.operation.place import key_of
from gocept.runner.schedule.agenda import NEVER

KEY = 'gocept.runner.runs'
"""The name in the root of the database."""


class LastRun:
    """The last run of a worker for a site.

    `path` is that of the site; None for a site that is found at no path. Call
    the methods in a transaction.
    """

    def __init__(self, site: ISite, worker: str, path: str | None) -> None:
        connection = getattr(site, '_p_jar', None)
        if connection is None or site._p_oid is None:
            raise UsageError(f'{worker} has a schedule, and its last run is '
                             'stored in the database of the site; but this '
                             'site is in no database')
        self._connection = connection
        self._key = (key_of(worker, path) if path is not None
                     else f'{key_of(worker, None)}@@{site._p_oid.hex()}')

    def read(self) -> float:
        """The time of the run; `NEVER` if there was none."""
        runs = self._connection.root().get(KEY)
        mine = None if runs is None else runs.get(self._key)
        return NEVER if mine is None else float(mine['run'])

    def write(self, run: float) -> None:
        """Store that this run is done, unless a later one is."""
        if run <= self.read():
            return
        root = self._connection.root()
        runs = root.get(KEY)
        if runs is None:
            runs = root[KEY] = OOBTree()
        mine = runs.get(self._key)
        if mine is None:
            runs[self._key] = PersistentMapping({'run': run})
        else:
            mine['run'] = run
