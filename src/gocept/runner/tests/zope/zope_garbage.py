"""What the garbage collector does in a start of Zope, and after it."""

from gocept.runner.tests.zope.instances import InstanceTestCase


class GarbageTests(InstanceTestCase):

    def test_it_works_after_a_start_and_leaves_out_what_that_made(
            self) -> None:
        self.assertIn('True True\nTrue True\n', self.run_program('''\
            import gc

            import gocept.runner.runner

            found = []
            for number in range(2):
                with gocept.runner.runner.init(None, 'zope.conf'):
                    found.append(gc.get_freeze_count())
                    print(gc.isenabled(), found[0] >= found[-1] > 10_000)
            '''))

    def test_it_is_left_off_where_it_is_off(self) -> None:
        self.assertIn('False 0\n', self.run_program('''\
            import gc

            import gocept.runner.runner

            gc.disable()
            with gocept.runner.runner.init(None, 'zope.conf'):
                print(gc.isenabled(), gc.get_freeze_count())
            '''))

    def test_it_stays_off_where_an_add_on_turns_it_off(self) -> None:
        self.write('quiet.py', '''\
            import gc

            def work():
                pass

            gc.disable()
            ''')
        self.declare('<runner:worker name="quiet" handler="quiet.work" />')
        self.assertIn('False True\n', self.run_program('''\
            import gc

            import gocept.runner.runner

            before = gc.get_threshold()
            with gocept.runner.runner.init(None, 'zope.conf'):
                print(gc.isenabled(), gc.get_threshold() == before)
            '''))
