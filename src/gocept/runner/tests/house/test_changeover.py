import unittest

from gocept.runner.house.changeover import PATIENCE, Changeover
from gocept.runner.house.tenant import Tenant
from gocept.runner.tests.house.test_plan import declared
from gocept.runner.tests.house.test_workerprocess import FakeClock


class ChangeoverTests(unittest.TestCase):

    def setUp(self):
        self.clock = FakeClock()

    def tenant(self, name, *, runs=True, **more):
        tenant = Tenant(declared(name, **more), clock=self.clock)
        if runs:
            self.start(tenant, 1)
        return tenant

    def start(self, tenant, generation):
        tenant.life.begin(generation)
        tenant.life.note_start(4711)
        tenant.life.note_running()

    def changeover(self, *tenants):
        changeover = Changeover(tenants, 2, self.clock.monotonic)
        changeover.step()
        return changeover

    def assertPhases(self, expected, *tenants):
        self.assertEqual(expected.split(), [
            tenant.life.phase for tenant in tenants])

    def test_one_by_one(self):
        a, b = self.tenant('a'), self.tenant('b')
        changeover = self.changeover(a, b)
        self.assertPhases('ending running', a, b)
        a.life.note_end(0)
        changeover.step()
        self.assertPhases('waiting running', a, b)
        a.life.begin(2)
        changeover.step()
        self.assertPhases('starting running', a, b)
        a.life.note_running()
        changeover.step()
        self.assertPhases('running ending', a, b)
        b.life.note_end(0)
        self.start(b, 2)
        self.assertFalse(changeover.over)
        changeover.step()
        self.assertTrue(changeover.over)

    def test_a_new_one_that_fails_does_not_hold_up_the_others(self):
        a, b = self.tenant('a'), self.tenant('b')
        changeover = self.changeover(a, b)
        a.life.note_end(0)
        a.life.begin(2)
        a.life.note_end(1)
        changeover.step()
        self.assertPhases('pausing ending', a, b)

    def test_neither_does_a_long_tick(self):
        a, b = self.tenant('a'), self.tenant('b')
        changeover = self.changeover(a, b)
        self.assertEqual(('monotonic', 1000 + PATIENCE),
                         changeover.next_step)
        self.clock.passed = PATIENCE
        changeover.step()
        self.assertPhases('ending ending', a, b)
        self.assertIsNone(changeover.next_step)
        self.clock.passed = 100 * PATIENCE
        changeover.step()
        self.assertFalse(changeover.over)

    def test_who_has_no_process_of_the_old_code_is_left_alone(self):
        waiting, new = self.tenant('a', runs=False), self.tenant(
            'b', runs=False)
        once = self.tenant('c', once=True)
        self.start(new, 2)
        self.assertTrue(self.changeover(waiting, new, once).over)
        self.assertPhases('waiting running running', waiting, new, once)

    def test_one_that_has_ended_before_its_turn(self):
        a, b = self.tenant('a'), self.tenant('b')
        changeover = self.changeover(a, b)
        b.life.note_end(0)
        a.life.note_end(0)
        self.start(a, 2)
        changeover.step()
        self.assertPhases('running done', a, b)
        self.assertTrue(changeover.over)
