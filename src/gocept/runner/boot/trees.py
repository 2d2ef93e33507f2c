"""The objects that a tree of the package BTrees consists of, by their oids.

A tree is stored as inner nodes and buckets. An insert changes the bucket that
takes the item, and the inner node above it if the bucket is split; the tree
itself is the topmost inner node.
"""

from collections.abc import Collection, Iterable, Iterator
from typing import Any, NamedTuple

from BTrees.Interfaces import IBTree, ITreeSet
from BTrees.Length import Length
from persistent import Persistent
from persistent.list import PersistentList
from persistent.mapping import PersistentMapping
from ZODB.Connection import Connection

_SIMPLE = Length, PersistentList, PersistentMapping


def is_tree(it: object) -> bool:
    """Whether it is a tree or an inner node of one, and no bucket."""
    # Not `providedBy`, which would load the object.
    return bool(IBTree.implementedBy(type(it))
                or ITreeSet.implementedBy(type(it)))


def with_parts(it: Persistent) -> Iterator[Persistent]:
    """A persistent object, and what its content is kept in.

    These are the trees, lengths, lists and mappings among its attributes. So
    it may be a container, which does not change itself when an item is added.
    """
    yield it
    if not is_tree(it):
        it._p_activate()
        for value in getattr(it, '__dict__', {}).values():
            if isinstance(value, _SIMPLE) or is_tree(value):
                yield value


class _Children(NamedTuple):
    """The oids of what is directly below an inner node."""

    inner: Collection[bytes]
    buckets: Collection[bytes]


class Nodes:
    """The oids of objects and of all that their trees consist of.

    A bucket is never loaded. An inner node is loaded once, and again after
    `forget`. All objects are of one connection.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._children: dict[bytes, _Children] = {}
        self._roots: frozenset[bytes] | None = None  # of what is known
        self._oids: frozenset[bytes] = frozenset()

    def forget(self, oids: Iterable[bytes]) -> None:
        """Load these inner nodes anew, as they may have changed."""
        for oid in oids:
            if self._children.pop(oid, None) is not None:
                self._roots = None

    def forget_all(self) -> None:
        """Load all inner nodes anew."""
        self.forget([*self._children])

    def find(self, objects: Iterable[Persistent]) -> frozenset[bytes]:
        """The oids as they are in the transaction that has begun."""
        roots = {it._p_oid: it for it in objects}
        if roots.keys() != self._roots:
            known, self._children = self._children, {}
            self._roots = None  # if this fails
            found = set(roots)
            for oid, it in roots.items():
                if is_tree(it):
                    self._walk(oid, it, known, found)
            self._roots, self._oids = frozenset(roots), frozenset(found)
        return self._oids

    def _walk(self, oid: bytes, tree: Any, known: dict[bytes, _Children],
              found: set[bytes]) -> None:
        pending = [(oid, tree)]
        while pending:
            oid, node = pending.pop()
            children = known.get(oid)
            inner: dict[bytes, Any] = {}
            if children is None:
                children, inner = self._load(oid, node)
            self._children[oid] = children
            found.update(children.inner, children.buckets)
            pending += [(each, inner.get(each)) for each in children.inner]

    def _load(self, oid: bytes, node: Any,
              ) -> tuple[_Children, dict[bytes, Any]]:
        if node is None:  # not that of a node which was loaded just now
            node = self._connection.get(oid)
        was_ghost = node._p_changed is None
        state = node.__getstate__()
        # A tree without buckets, or with its only bucket within itself, has a
        # shorter state. Else: children and keys in turn, and the first bucket.
        below = state[0][::2] if state is not None and len(state) > 1 else ()
        inner = {each._p_oid: each for each in below
                 if type(each) is type(node)}
        buckets = [each._p_oid for each in below if each._p_oid not in inner]
        if was_ghost:  # the cache is for what the worker needs
            node._p_deactivate()
        return _Children([*inner], buckets), inner
