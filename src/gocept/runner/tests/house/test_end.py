import unittest

from gocept.runner.house.end import End
from gocept.runner.house.tenant import Tenant
from gocept.runner.tests.house.test_plan import declared


class FakeTemplates:

    def __init__(self):
        self.ended = self.killed = self.closed = False

    def close(self):
        self.closed = True

    def kill(self):
        self.killed = True


class FakePart:

    def __init__(self, name, calls):
        self.name, self.calls = name, calls
        self.ended = False

    def stop(self, deadline):
        self.calls.append(f'stop {self.name}')

    def kill(self):
        self.calls.append(f'kill {self.name}')


class FakeTenancy:

    def __init__(self, tenant, calls):
        self.tenant, self.calls = tenant, calls

    def signal(self, signum):
        self.calls.append(f'signal {self.tenant.name}')

    def kill(self):
        self.calls.append(f'kill {self.tenant.name}')


class EndTests(unittest.TestCase):

    def setUp(self):
        self.calls = []
        self.templates = FakeTemplates()
        self.parts = [FakePart(name, self.calls) for name in ('zeo', 'http')]

    def tenant(self, name):
        tenant = Tenant(declared(name))
        tenant.life.begin(1)
        tenant.life.note_start(4711)
        tenant.tenancy = FakeTenancy(tenant, self.calls)
        return tenant

    def test_in_reverse_order(self):
        a, b = tenants = self.tenant('a'), self.tenant('b')
        end = End(tenants, self.templates, self.parts, 60)
        self.assertTrue(self.templates.closed)
        self.assertEqual(['signal b', 'signal a'], self.calls)
        self.assertFalse(end.step())
        b.life.note_end(0)
        a.life.note_end(0)
        self.assertFalse(end.step())
        self.assertEqual(2, len(self.calls))
        self.templates.ended = True
        self.assertFalse(end.step())
        self.assertEqual(['stop http'], self.calls[2:])
        self.parts[1].ended = True
        self.assertFalse(end.step())
        self.assertFalse(end.step())
        self.assertEqual(['stop http', 'stop zeo'], self.calls[2:])
        self.parts[0].ended = True
        self.assertTrue(end.step())
        self.assertEqual(4, len(self.calls))

    def test_the_time_is_over(self):
        a = self.tenant('a')
        end = End([a], self.templates, self.parts, 0)
        with self.assertLogs('gocept.runner.house', 'WARNING') as logs:
            self.assertFalse(end.step())
            self.assertFalse(end.step())  # is said once
        self.assertIn('Killing workers that have not ended in 0 s: a',
                      logs.output[0])
        self.assertEqual(['signal a', 'kill a'], self.calls)
        self.assertTrue(self.templates.killed)
        self.assertLessEqual(end.left(), 5)
        a.life.note_end(-9)
        self.templates.ended = True
        with self.assertLogs('gocept.runner.house', 'WARNING') as logs:
            self.assertFalse(end.step())
        self.assertIn('Killing http', logs.output[0])
        self.assertEqual(['stop http', 'kill http'], self.calls[2:])

    def test_parts_have_a_part_of_the_time(self):
        end = End([self.tenant('a')], self.templates, self.parts, 30)
        self.assertTrue(20 < end.left() <= 25)
        end = End([self.tenant('a')], self.templates, self.parts, 10)
        self.assertTrue(7 < end.left() <= 8)

    def test_hurry(self):
        a = self.tenant('a')
        end = End([a], self.templates, self.parts, 60)
        end.hurry()
        self.assertEqual(['kill a', 'kill zeo', 'kill http'], self.calls[1:])
        self.assertTrue(self.templates.killed)
        self.assertFalse(end.step())

    def test_what_does_not_even_end_when_killed(self):
        end = End([self.tenant('a')], self.templates, self.parts[:1], 60)
        end.hurry()
        end._killed._end = 0
        with self.assertLogs('gocept.runner.house', 'ERROR') as logs:
            self.assertTrue(end.step())
        self.assertIn('These were killed, and have not ended: a (4711), zeo',
                      logs.output[0])
