"""Children that code of a program forks, and the database of the program."""

import textwrap

from gocept.runner.tests.cli.test_worker import (
    LOG_TO_STDOUT,
    ProgramTestCase,
    ZEOServer,
)
from gocept.runner.tests.support import sqlite_conf

FORK = '''
    def fork(status, in_child):
        pid = os.fork()
        if not pid:
            return in_child()
        got = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if got != status:
            say(f'the child ended with {got}')
            os._exit(99)
        return None

    def fail():
        raise ImportError('no such module')

    def commit():
        getSite().stolen = True
        transaction.commit()
    '''


class ForkTests(ProgramTestCase):

    def run_program(self, body, expected=0):
        program = self.start(
            textwrap.dedent(FORK) + textwrap.dedent(body), conf=LOG_TO_STDOUT)
        self.assertEqual(expected, program.end(), program.output)
        return program.output

    def check_worker(self, status, in_child, when='fork(status, in_child)'):
        """Run ten ticks; the worker forks in the third."""
        output = self.run_program(f'''
            import atexit
            atexit.register(lambda: say(f'exit of {{os.getpid() == pid}}'))
            pid, status, in_child = os.getpid(), {status}, {in_child}
            @gocept.runner.appmain(ticks=0)
            def worker():
                number = count()
                acknowledge(number)
                if number == 3:
                    {when}
                if number == 10:
                    return gocept.runner.Exit
            worker(None, 'zope.conf')
            ''')
        self.assertEqual(list(range(1, 11)), self.acknowledged())
        self.assertEqual(10, self.assertConsistent())
        self.assertIsNone(self.stored('stolen'))
        self.assertEqual(1, output.count('exit of True'), output)
        self.assertNotIn('exit of False', output)
        self.assertNotIn('closed by', output)
        return output

    def test_a_child_that_comes_back_to_the_loop(self):
        output = self.check_worker(0, 'lambda: None')
        self.assertIn('WARNING gocept.runner.process Process ', output)

    def test_one_that_fails(self):
        output = self.check_worker(1, 'fail')
        self.assertIn('ImportError: no such module', output)

    def test_one_that_exits(self):
        self.check_worker(5, 'lambda: sys.exit(5)')

    def test_one_that_commits(self):
        output = self.check_worker(1, 'commit')
        self.assertIn('only that process can write to it', output)

    def test_one_that_closes_the_database(self):
        self.check_worker(0, 'lambda: getSite()._p_jar.db().close()')

    def test_one_of_a_hook_before_the_commit(self):
        self.check_worker(1, 'lambda: None', (
            'transaction.get().addBeforeCommitHook('
            'lambda: fork(status, in_child))'))

    def test_one_that_reads_beside_the_parent(self):
        self.run_program('''
            def read(times):
                site = getSite()
                for number in range(times):
                    site._p_jar.cacheMinimize()
                    assert [*site.numbers] == [1], site.numbers
                    assert [*site.texts] == ['x' * 3000] * 100

            @gocept.runner.once()
            def worker():
                count()
                getSite().texts = persistent.list.PersistentList(
                    ['x' * 3000] * 100)
                transaction.commit()
                pid = os.fork()
                read(500)
                if not pid:
                    os._exit(0)
                assert os.waitpid(pid, 0)[1] == 0
                count()

            import persistent.list
            sys.exit(worker(None, 'zope.conf'))
            ''')
        self.assertEqual(2, self.assertConsistent())

    def test_one_whose_parent_has_locked_everything_in_a_thread(self):
        self.run_program('''
            def read():
                signal.alarm(20)  # the worker would wait for ever
                db.open(transaction.TransactionManager()).close()
                site = getSite()
                site._p_jar.cacheMinimize()
                site._p_jar.sync()
                os._exit([*site.numbers] != [1])

            def hold(storage):
                with (db._lock, db.storage._lock, db._mvcc_storage._lock,
                      storage._lock, db.getActivityMonitor().trim_lock):
                    held.set()
                    released.wait()

            @gocept.runner.once()
            def worker():
                global db
                count()
                transaction.commit()
                db = getSite()._p_jar.db()
                thread = threading.Thread(
                    target=hold, args=(getSite()._p_jar._storage,))
                thread.start()
                held.wait()
                fork(0, read)
                released.set()
                thread.join()
                with db._lock:  # as in a callback of the collector
                    fork(0, read)
                count()

            import signal, threading
            held, released = threading.Event(), threading.Event()
            sys.exit(worker(None, 'zope.conf'))
            ''')
        self.assertEqual(2, self.assertConsistent())

    def test_one_of_a_storage_around_another_one(self):
        self.run_program('''
            from ZODB.DemoStorage import DemoStorage
            from gocept.runner.boot.inherited import Inherited
            from gocept.runner.waits.forks import tell_forks
            import ZODB
            db = ZODB.DB(DemoStorage(base=ZODB.FileStorage.FileStorage(
                'Other.fs')))
            files = db.storage.base._files
            inherited = Inherited([db])
            tell_forks(inherited)
            fork(0, lambda: os._exit(db.storage.base._files is files))
            db.close()
            ''')

    def test_one_of_a_zeo_client(self):
        server = ZEOServer(self.dir)
        self.addCleanup(server.kill)
        self.write('zope.conf', server.zope_conf())
        program = self.start(FORK + '''
    def begin():
        transaction.begin()
        os._exit([*getSite().numbers] != [1])

    def read():
        getSite()._p_jar.cacheMinimize()
        return [*getSite().numbers]

    @gocept.runner.once()
    def worker():
        count()
        transaction.commit()
        fork(0, begin)
        fork(1, read)
        assert read() == [1]

    sys.exit(worker(None, 'zope.conf'))
    ''', conf=None)
        self.assertEqual(0, program.end(), program.output)
        self.assertIn('only that process can ask the ZEO server',
                      program.output)

    def test_one_of_a_relstorage(self):
        self.write('zope.conf', sqlite_conf(self.dir))
        program = self.start(FORK + '''
    def read():
        transaction.begin()
        getSite()._p_jar.cacheMinimize()
        os._exit([*getSite().numbers] != [1]
                 or load.connection is inherited)

    @gocept.runner.once()
    def worker():
        global load, inherited
        count()
        transaction.commit()
        count()
        load = getSite()._p_jar._storage._load_connection
        inherited = load.connection
        fork(0, read)
        fork(1, commit)
        assert load.connection is inherited
        assert [*getSite().numbers] == [1, 2]

    sys.exit(worker(None, 'zope.conf'))
    ''', conf=None)
        self.assertEqual(0, program.end(), program.output)

    def test_the_lock_stays(self):
        self.check_worker(1, 'fail', '''fork(status, in_child)
                    import zc.lockfile
                    try:
                        zc.lockfile.LockFile('Data.fs.lock')
                    except zc.lockfile.LockError:
                        pass
                    else:
                        os._exit(98)''')

    def check_event(self, name, in_child, status, *works):
        self.run_program(f'''
            import zope.event
            def subscriber(event):
                if type(event).__name__ == {name!r}:
                    zope.event.subscribers.remove(subscriber)
                    fork({status}, {in_child})
            zope.event.subscribers.append(subscriber)
            works = [{', '.join(works)}]
            @gocept.runner.appmain(ticks=0)
            def worker():
                acknowledge(count())
                if not works:
                    return gocept.runner.Exit
                works.pop(0)()
            worker(None, 'zope.conf')
            ''')
        self.assertIsNone(self.stored('stolen'))
        self.assertEqual(self.assertConsistent(), len(self.acknowledged()))

    def test_those_of_subscribers(self):
        for name, in_child, status, *works in [
                ('LoopStarted', 'int', 0), ('TickStarted', 'fail', 1),
                ('TickCommitted', 'int', 0), ('LoopStopped', 'fail', 1),
                ('TickAborted', 'int', 0, 'fail', 'int'),
                ('DatabaseOpened', 'int', 0), ('DatabaseOpened', 'fail', 1)]:
            with self.subTest(name, in_child=in_child):
                for path in self.dir.glob('Data.fs*'):
                    path.unlink()
                (self.dir / 'acknowledged').unlink(missing_ok=True)
                self.check_event(name, in_child, status, *works)

    def test_one_of_the_principal(self):
        self.run_program('''
            @gocept.runner.once(
                principal=lambda: fork(0, int) or 'zope.mgr')
            def worker():
                count()
            worker(None, 'zope.conf')
            ''')
        self.assertEqual(1, self.assertConsistent())

    def test_one_in_a_body(self):
        # A child that comes back to the body cannot commit there either.
        for in_child, status, last in [
                ('lambda: None', 1, 0), ('fail', 1, 1),
                ('lambda: sys.exit(4)', 4, 4)]:
            with self.subTest(in_child):
                for path in self.dir.glob('Data.fs*'):
                    path.unlink()
                output = self.run_program(f'''
                    from gocept.runner.runner import init
                    with init(None, 'zope.conf') as site:
                        site.number = 1
                        fork({status}, {in_child})
                        site.number = 2
                        transaction.commit()
                        site.number = 3
                        fork({last}, {in_child})
                    say('behind it')
                    ''')
                self.assertEqual(1, output.count('behind it'))
                self.assertEqual(2, self.stored('number'))

    def test_one_in_a_body_that_commits(self):
        self.run_program('''
            from gocept.runner.runner import init
            with init(None, 'zope.conf') as site:
                site.number = 1
                fork(1, transaction.commit)
                transaction.abort()
            ''')
        self.assertIsNone(self.stored('number'))

    def test_a_child_that_ends_itself_is_left_alone(self):
        output = self.check_worker(7, 'lambda: os._exit(7)')
        self.assertNotIn('gocept.runner.process', output)

    def test_a_child_with_a_database_of_its_own(self):
        self.check_worker(0, "os._exit", """
                    import ZODB
                    def commit_elsewhere():
                        with ZODB.DB('Other.fs').transaction() as connection:
                            connection.root()['number'] = 1
                        os._exit(0)
                    fork(0, commit_elsewhere)""")
