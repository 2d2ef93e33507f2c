"""Programs that keep a schedule, and are killed in the middle of a run."""

import signal

import ZODB.FileStorage
from BTrees.OOBTree import OOBTree
from persistent.mapping import PersistentMapping

from gocept.runner.schedule.runs import KEY
from gocept.runner.tests.cli.test_worker import ProgramTestCase

LEAP_DAYS = '0 0 29 2 *'

SCRIPT = f'''
    def kill():
        os.kill(os.getpid(), signal.SIGKILL)

    @gocept.runner.appmain(
        schedule='{LEAP_DAYS}', timezone='UTC', missed='once')
    def worker(step=''):
        acknowledge(count())
        if step == 'worker':
            kill()
        elif step == 'after':
            transaction.get().addAfterCommitHook(lambda committed: kill())
        elif step:
            Joined(step, kill)

    sys.exit(worker.main(None, 'zope.conf'))
    '''


class ProgramTests(ProgramTestCase):

    def setUp(self):
        super().setUp()
        self.create_database()

    def runs(self, change=None):
        """The last runs in the database, after a change of them."""
        database = ZODB.DB(
            ZODB.FileStorage.FileStorage(str(self.dir / 'Data.fs')))
        try:
            with database.transaction() as connection:
                if change is not None:
                    connection.root()[KEY] = OOBTree(
                        {'worker': PersistentMapping({'run': change})})
                return {key: mine['run'] for key, mine
                        in connection.root().get(KEY, {}).items()}
        finally:
            database.close()

    def test_it_is_killed_in_a_run(self):
        self.runs(change=1.0)
        for step in 'worker', 'tpc_begin', 'tpc_vote':
            program = self.start(SCRIPT, '--', step)
            self.assertEnded(-signal.SIGKILL, program)
            self.assertEqual(({'worker': 1.0}, 0),
                             (self.runs(), self.assertConsistent()))
        program = self.start(SCRIPT, '--', 'after')
        self.assertEnded(-signal.SIGKILL, program)
        self.assertEqual(1, self.assertConsistent())
        self.assertEqual(['worker'], [*self.runs()])
        self.assertGreater(self.runs()['worker'], 1.0)
        program = self.start(SCRIPT)
        program.wait_for('The next run of worker')
        program.send(signal.SIGTERM)
        self.assertTerminated(program, signal.SIGTERM)
        self.assertEqual(1, self.assertConsistent())

    def test_it_has_never_run(self):
        program = self.start(SCRIPT)
        program.wait_for("Worker 'worker' starts: a tick at each time of "
                         f'{LEAP_DAYS} (UTC), in the root folder')
        program.wait_for('The next run of worker')
        program.send(signal.SIGTERM)
        self.assertTerminated(program, signal.SIGTERM)
        self.assertEqual(({}, 0), (self.runs(), self.assertConsistent()))

    def test_a_run_by_hand(self):
        self.assertEnded(0, self.start(SCRIPT, '--once', '--dry-run'))
        self.assertEqual(({}, 0), (self.runs(), self.assertConsistent()))
        self.assertEnded(0, self.start(SCRIPT, '--once'))
        self.assertEqual(1, self.assertConsistent())
        self.assertEqual(['worker'], [*self.runs()])
