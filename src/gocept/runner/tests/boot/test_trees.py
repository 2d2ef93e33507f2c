from unittest import mock

import persistent
import transaction
import zope.container.btree
from BTrees import LOBTree, OOBTree
from BTrees.Length import Length
from ZODB.DB import DB
from ZODB.POSException import POSKeyError

from gocept.runner.boot.trees import Nodes, with_parts
from gocept.runner.tests.support import TestCase


class Queue(persistent.Persistent):
    """What it holds is kept in its attributes."""

    def __init__(self):
        self.items = OOBTree.OOBTree()
        self.count = Length()
        self.other = Other()
        self.name = 'queue'


class Other(persistent.Persistent):
    pass


class PartsTests(TestCase):

    def test_an_object_is_watched_with_its_trees_and_counters(self):
        queue = Queue()
        self.assertEqual([queue, queue.items, queue.count],
                         [*with_parts(queue)])

    def test_a_container(self):
        container = zope.container.btree.BTreeContainer()
        it, *parts = with_parts(container)
        self.assertIs(container, it)
        self.assertEqual({OOBTree.OOBTree, Length}, {*map(type, parts)})

    def test_a_tree(self):
        tree = OOBTree.OOBTree(one=Length())
        self.assertEqual([id(tree)], [*map(id, with_parts(tree))])


class NodesTests(TestCase):

    def setUp(self):
        super().setUp()
        self.db = DB(None)
        self.addCleanup(self.db.close)
        self.connection = self.db.open()
        self.addCleanup(self.connection.close)
        self.addCleanup(transaction.abort)
        self.root = self.connection.root()
        self.nodes = Nodes(self.connection)

    def add(self, tree):
        self.root['tree'] = tree
        transaction.commit()
        return tree

    def changed_by(self, change):
        """The oids that `change` stores in a transaction."""
        before = self.db.lastTransaction()
        change()
        transaction.commit()
        (record,) = self.db.storage.iterator(
            (int.from_bytes(before, 'big') + 1).to_bytes(8, 'big'))
        return {each.oid for each in record}

    def all_oids(self):
        """All of the tree; its values are not persistent."""
        found, pending = set(), [self.root['tree']]
        while pending:
            node = pending.pop()
            if node._p_oid not in found:
                found.add(node._p_oid)
                pending += [each for part in node.__getstate__() or ()
                            for each in (part if isinstance(part, tuple)
                                         else [part])
                            if isinstance(each, persistent.Persistent)]
        return found

    def test_a_tree_of_each_size(self):
        for kind in OOBTree.OOBTree, OOBTree.OOTreeSet, LOBTree.LOBTree:
            for size in 0, 1, 10, 1000, 20000:
                with self.subTest(kind=kind, size=size):
                    tree = kind()
                    for number in range(size):
                        tree.update({number: number} if hasattr(tree, 'get')
                                    else [number])
                    self.add(tree)
                    self.assertEqual(
                        self.all_oids(), Nodes(self.connection).find([tree]))

    def test_a_change_of_a_tree_is_one_of_its_oids(self):
        tree = self.add(LOBTree.LOBTree())
        for number in range(0, 30000, 300):
            self.nodes.forget_all()
            oids = self.nodes.find([tree])
            changed = self.changed_by(lambda number=number: tree.update(
                dict.fromkeys(range(number, number + 300), 0)))
            self.assertTrue(changed & oids, (number, changed))

    def test_values_do_not_belong_to_it(self):
        tree = self.add(OOBTree.OOBTree(a=OOBTree.OOBTree(), b=Length()))
        self.assertEqual({tree._p_oid}, self.nodes.find([tree]))
        for number in range(100):
            tree[str(number)] = OOBTree.OOBTree()
        transaction.commit()
        self.nodes.forget_all()
        oids = self.nodes.find([tree])
        self.assertIn(tree._p_oid, oids)
        self.assertFalse({each._p_oid for each in tree.values()} & oids)

    def test_an_inner_node_that_has_changed_is_read_again(self):
        tree = self.add(LOBTree.LOBTree({
            number: number for number in range(0, 100000, 2)}))
        before = self.nodes.find([tree])
        for number in range(1, 1000, 2):
            tree[number] = number
        transaction.commit()
        self.assertEqual(before, self.nodes.find([tree]))  # nobody told
        self.nodes.forget(before)
        self.assertEqual(self.all_oids(), self.nodes.find([tree]))

    def test_after_an_error_no_change_is_missed(self):
        tree = self.add(LOBTree.LOBTree(dict.fromkeys(range(100))))
        self.root['other'] = other = LOBTree.LOBTree(
            dict.fromkeys(range(100)))
        transaction.commit()
        before = self.nodes.find([tree])
        with mock.patch.object(self.nodes, '_load', side_effect=OSError):
            with self.assertRaises(OSError):
                self.nodes.find([other, tree])
        tree.update(dict.fromkeys(range(100, 200)))
        transaction.commit()
        self.nodes.forget(before)
        self.assertEqual(self.all_oids(), self.nodes.find([tree]))

    def test_only_what_is_forgotten_is_read_again(self):
        tree = self.add(LOBTree.LOBTree({
            number: number for number in range(100000)}))
        self.nodes.find([tree])
        self.connection.cacheMinimize()
        loads = self.connection.getTransferCounts(clear=True)
        leaf = tree.__getstate__()[0][0]
        self.nodes.forget([leaf._p_oid])
        self.nodes.find([tree])
        loads, _ = self.connection.getTransferCounts()
        self.assertLessEqual(loads, 3)  # the tree, and the node twice

    def test_no_bucket_is_loaded(self):
        tree = self.add(LOBTree.LOBTree({
            number: number for number in range(100000)}))
        self.connection.cacheMinimize()
        self.nodes.find([tree])
        self.assertTrue(tree.__getstate__()[1]._p_changed is None)
        self.assertLess(
            self.connection._cache.cache_non_ghost_count, 3)

    def test_what_the_worker_has_loaded_stays(self):
        tree = self.add(LOBTree.LOBTree({
            number: number for number in range(10000)}))
        tree.minKey()
        self.nodes.find([tree])
        self.assertIsNotNone(tree._p_changed)

    def test_other_objects_than_before(self):
        tree = self.add(OOBTree.OOBTree(a=1))
        self.assertEqual({tree._p_oid}, self.nodes.find([tree]))
        self.nodes.forget_all()
        self.assertEqual(frozenset(), self.nodes.find([]))
        self.assertEqual({tree._p_oid}, self.nodes.find([tree]))

    def test_a_tree_that_is_gone(self):
        tree = self.add(LOBTree.LOBTree({
            number: number for number in range(100)}))
        self.connection.cacheMinimize()
        with self.assertRaises(POSKeyError):
            gone = self.connection.get(tree._p_oid)
            gone._p_invalidate()
            self.db.storage._data.pop(tree._p_oid, None)
            self.nodes.find([gone])
