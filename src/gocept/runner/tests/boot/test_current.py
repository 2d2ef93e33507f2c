"""What a thread says about the tick that runs in it."""

import threading

import transaction
import zope.event
from persistent.mapping import PersistentMapping
from ZODB.POSException import ConflictError
from ZODB.utils import tid_repr
from zope.site.folder import Folder

from gocept.runner import Exit, transaction_per_item
from gocept.runner.boot.current import Tick, current_tick
from gocept.runner.boot.dryrun import dry_run
from gocept.runner.interfaces import ITickCommitted
from gocept.runner.runner import MainLoop
from gocept.runner.tests.test_mainloop import LoopCase


class CurrentTickTests(LoopCase):

    def test_nothing_runs(self):
        self.assertIsNone(current_tick())

    def test_a_tick(self):
        ticks = []

        def crawl():
            ticks.append(current_tick())
            return 0 if len(ticks) < 2 else Exit
        MainLoop(self.app, 0, crawl)()
        self.assertEqual([Tick('crawl', 1, 1, None),
                          Tick('crawl', 2, 1, None)], ticks)
        self.assertIsNone(current_tick())

    def test_the_name_principal_and_attempt(self):
        self.define_principal()
        ticks = []

        def crawl():
            ticks.append(current_tick())
            if len(ticks) < 2:
                raise ConflictError
        loop = MainLoop(self.app, 0, crawl, lambda: 'zope.mgr', once=True)
        loop.name = 'crawler'
        loop()
        self.assertEqual([Tick('crawler', 1, 1, 'zope.mgr'),
                          Tick('crawler', 1, 2, 'zope.mgr')], ticks)

    def test_loops_in_loops_and_other_threads(self):
        ticks = []

        def inner():
            ticks.append(current_tick().worker)

        def outer():
            MainLoop(self.app, 0, inner, once=True)()
            ticks.append(current_tick().worker)
            thread = threading.Thread(
                target=lambda: ticks.append(current_tick()))
            thread.start()
            thread.join()
        MainLoop(self.app, 0, outer, once=True)()
        self.assertEqual(['inner', 'outer', None], ticks)

    def committed(self, *steps, **kwargs):
        """What a loop whose ticks make these steps has committed: pairs of
        what `current_tick` tells after each one, and of the database."""
        seen = []

        def hear(event):
            if ITickCommitted.providedBy(event):
                told = current_tick().transaction
                seen.append((told, tid_repr(self.app._p_serial))
                            if told else None)
        zope.event.subscribers.append(hear)
        self.addCleanup(zope.event.subscribers.remove, hear)
        self.loop(*steps, **kwargs)()
        return seen

    def change(self):
        self.assertIsNone(current_tick().transaction)
        self.app.changed = PersistentMapping()
        return 0

    def test_the_transaction_that_was_committed(self):
        def flush():
            self.change()
            transaction.savepoint()
            return 0
        told = self.committed(self.change, lambda: 0, flush)
        self.assertEqual([True, False, True, False], [*map(bool, told)])
        for ours, stored in filter(None, told):
            self.assertEqual(stored, ours)
        self.assertNotEqual(told[0], told[2])

    def test_nothing_is_committed(self):
        def doom():
            self.change()
            transaction.doom()
            return 0
        self.assertEqual([None], self.committed(doom))
        with dry_run():
            self.assertEqual([None, None],
                             self.committed(self.change))

    def test_transactions_of_items(self):
        told = []

        @transaction_per_item
        def items():
            for _ in range(2):
                yield lambda: self.app.__setitem__(str(len(told)), Folder())
                told.append((tid_repr(self.app.data._p_serial),
                             current_tick().transaction))
        MainLoop(self.app, 0, items, once=True)()
        for stored, ours in told:
            self.assertEqual(stored, ours)
        self.assertEqual(2, len(set(told)))

    def test_a_call_of_a_subclass(self):
        ticks = []

        class Loop(MainLoop):
            def __call__(self):
                for _ in range(2):
                    self.begin()
                    self.worker()
                    self.commit()
                    ticks.append(current_tick())

        loop = Loop(self.app, 0, lambda: ticks.append(current_tick().tick))
        loop()
        self.assertEqual([1, None, 2, None], ticks)
        self.assertIsNone(loop.tick_started)
