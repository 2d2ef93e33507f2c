import unittest

from gocept.runner.cli.mistakes import UserError
from gocept.runner.house.link import DeclaredChild, DeclaredWorker
from gocept.runner.house.plan import Plan, times
from gocept.runner.tests.house.faketemplate import OPTIONAL


def declared(name, **more):
    return DeclaredWorker(name, **{**OPTIONAL, **more})


def child(name, kind='app', start='eager'):
    return DeclaredChild(kind, name, start, (), '', False)


class PlanTests(unittest.TestCase):

    def setUp(self):
        self.workers = [declared(name) for name in ('b', 'a', 'c')]

    def test_all_in_the_order_of_zcml(self):
        self.assertEqual(['b', 'a', 'c'], [*Plan(self.workers).workers])

    def test_those_that_are_named_in_this_order(self):
        self.assertEqual(
            ['c', 'b'], [*Plan(self.workers, ['c', 'b']).workers])

    def assertMistake(self, text, *args):
        with self.assertRaises(UserError) as caught:
            Plan(*args)
        self.assertEqual((text, 2),
                         (str(caught.exception), caught.exception.status))

    def test_one_that_is_not_declared(self):
        self.assertMistake(
            "no worker 'nightli' is declared (did you mean nightly?); there "
            'are: nightly', [declared('nightly')], ['nightli'])
        self.assertMistake("no worker 'x' is declared; there are: none",
                           [], ['x'])

    def test_one_that_is_none(self):
        children = [child('redis', 'executor'), child('mail', 'server')]
        self.assertMistake("'redis' is no worker, but an executor",
                           self.workers, ['redis'], children)
        self.assertMistake("'mail' is no worker, but a server",
                           self.workers, ['mail'], children)

    def test_nothing_is_declared(self):
        self.assertMistake(
            'no worker is declared, so there is nothing to run: ZCML declares '
            'one with <runner:worker>', [])

    def test_how_long_the_end_may_take(self):
        self.assertEqual(90, Plan(self.workers).shutdown_timeout)
        self.assertEqual(310, Plan([
            declared('a', tick_timeout=300.0, shutdown_timeout=5.0),
            declared('b', tick_timeout=1.0, shutdown_timeout=10.0),
        ]).shutdown_timeout)

    def test_apps_that_nobody_uses(self):
        plan = Plan([declared('a', apps=('used',))], (), [
            child('used'), child('unused'), child('lazy', start='lazy'),
            child('redis', 'executor')])
        self.assertEqual(['unused'], plan.unused_apps())
        self.assertEqual([], Plan([declared('a')], (), [child('unused')],
                                  ).unused_apps())


class TimesTests(unittest.TestCase):

    def test_only_of_those_that_run_once(self):
        self.assertIsNone(times(declared('a', schedule='@daily')))
        self.assertIsNone(times(declared('a', once=True)))
        schedule = times(declared(
            'a', once=True, schedule='30 2 * * *', timezone='UTC'))
        self.assertEqual(2 * 3600 + 1800, schedule.after(0))
