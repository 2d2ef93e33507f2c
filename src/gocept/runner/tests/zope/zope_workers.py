"""Workers as programs that run in an instance of Zope."""

import json
import signal

from gocept.runner.tests.support import Program
from gocept.runner.tests.zope.instances import InstanceTestCase

SCRIPT = '''\
    import sys

    import transaction
    from AccessControl import getSecurityManager
    from ZODB.POSException import ConflictError
    from zope.component.hooks import getSite
    from zope.globalrequest import getRequest

    import gocept.runner

    attempts = 0

    {}

    if __name__ == '__main__':
        sys.exit(work.main())
    '''


class WorkerTests(InstanceTestCase):

    def work(self, body: str, *args: str, status: int = 0) -> str:
        """Run a script that decorates `work`; returns what it writes."""
        return self.run_program(self.script(body), *args, status=status)

    def script(self, body: str) -> str:
        return SCRIPT.format(body.strip().replace('\n        ', '\n    '))

    def start(self, body: str, *args: str) -> Program:
        return self.program(self.script(body), *args)

    def test_each_attempt_has_a_request_of_its_own(self) -> None:
        output = self.work("""
        @gocept.runner.once(principal='admin')
        def work():
            global attempts
            attempts += 1
            request = getRequest()
            app = request['PARENTS'][-1]
            print('attempt', attempts, request.get('left'), app.title,
                  getSecurityManager().getUser().getId())
            request['left'] = 1
            app.title = 'changed'
            if attempts < 3:
                raise ConflictError
        """)
        for number in range(1, 4):
            self.assertIn(f'attempt {number} None Zope admin\n', output)
        self.assertIn("Worker 'work' starts: one tick", output)
        self.assertIn('attempt 1 None changed admin\n', self.work("""
        @gocept.runner.once(principal='admin')
        def work():
            app = getRequest()['PARENTS'][0]
            print('attempt 1', getRequest().get('left'), app.title,
                  getSecurityManager().getUser().getId())
        """))

    def test_a_path_without_names_is_the_root(self) -> None:
        output = self.work("""
        @gocept.runner.once()
        def work():
            print('at', getRequest()['PARENTS'][0].getPhysicalPath())
        """, '--site', '/')
        self.assertIn(': one tick, in the root folder of ', output)
        self.assertIn("at ('',)\n", output)

    def test_a_signal_ends_the_loop_after_its_tick(self) -> None:
        program = self.start("""
        @gocept.runner.appmain(ticks=0.01)
        def work():
            app = getRequest()['PARENTS'][-1]
            app.ticks = getattr(app, 'ticks', 0) + 1
            print('tick', app.ticks, flush=True)
        """)
        program.wait_for('tick 3')
        program.send(signal.SIGTERM)
        self.assertEqual(0, program.end(), program.output)
        self.assertIn('Received signal 15, terminating.', program.output)
        last = max(int(line.split()[1]) for line in program.output.splitlines()
                   if line.startswith('tick '))
        self.assertIn(f'tick {last + 1}\n', self.work("""
        @gocept.runner.once()
        def work():
            print('tick', getRequest()['PARENTS'][-1].ticks + 1)
        """))

    def test_items_have_transactions_and_requests_of_their_own(self) -> None:
        self.work("""
        @gocept.runner.once(principal='admin')
        def work():
            app = getRequest()['PARENTS'][-1]
            app.manage_addFolder('one')
            app.manage_addFolder('two')
        """)
        output = self.work("""
        def index(title):
            print('commit', title, getRequest()['title'],
                  getSecurityManager().getUser().getId())

        @gocept.runner.once(principal='admin')
        @gocept.runner.transaction_per_item(attempts=2)
        def work():
            app = getRequest()['PARENTS'][-1]
            for name in 'one', 'two':
                yield lambda: item(app[name], name)

        def item(folder, title):
            global attempts
            attempts += 1
            print(title, 'has', getRequest().get('title'), 'at',
                  folder.absolute_url())
            getRequest()['title'] = title
            transaction.get().addBeforeCommitHook(index, [title])
            folder.title = title
            if attempts == 1:
                raise ConflictError
        """, '--server-url', 'https://www.example.org/portal')
        url = 'https://www.example.org/portal'
        self.assertIn(f'one has None at {url}/one\n', output)
        self.assertIn(f'two has None at {url}/two\n', output)
        self.assertIn('commit one one admin\n', output)
        self.assertIn('commit two two admin\n', output)

    def test_a_dry_run_leaves_all_as_it_is(self) -> None:
        worker = """
        @gocept.runner.once(principal='system')
        def work():
            app = getRequest()['PARENTS'][-1]
            print('there are', *sorted(app.objectIds()))
            if 'new' not in app.objectIds():
                app.manage_addFolder('new')
        """
        output = self.work(worker, '--dry-run', status=69)
        [line] = output.splitlines()
        self.assertIn('Data.fs, and a dry run creates none', line)
        self.assertFalse((self.dir / 'var' / 'Data.fs').exists())
        self.make_empty_application()
        data = (self.dir / 'var' / 'Data.fs').read_bytes()
        output = self.work(worker, '--dry-run')
        self.assertIn('there are acl_users\n', output)
        self.assertIn('Dry run: would commit', output)
        self.assertEqual(data, (self.dir / 'var' / 'Data.fs').read_bytes())
        self.assertTrue((self.dir / 'inituser').exists())
        self.work(worker)
        self.assertFalse((self.dir / 'inituser').exists())
        self.assertIn('there are acl_users index_html new virtual_hosting\n',
                      self.work(worker, '--dry-run'))

    def test_a_start_that_fails_leaves_the_first_user(self) -> None:
        content = (self.dir / 'inituser').read_text()
        output = self.work("""
        import OFS.Application
        commit = OFS.Application.AppInitializer.commit
        def fail(self, note):
            if 'user' in note:
                raise OSError(28, 'No space left on device')
            commit(self, note)
        OFS.Application.AppInitializer.commit = fail

        @gocept.runner.once(principal='system')
        def work():
            print('never')
        """, status=1)
        self.assertIn('No space left on device', output)
        self.assertNotIn('never\n', output)
        self.assertEqual(content, (self.dir / 'inituser').read_text())

    def test_a_dry_run_on_other_storages(self) -> None:
        text = self.conf.read_text()
        before, _, rest = text.partition('   <filestorage>')
        _, _, after = rest.partition('   </filestorage>')
        worker = """
        @gocept.runner.once(principal='system')
        def work():
            getRequest()['PARENTS'][-1].manage_addFolder('new')
        """
        self.conf.write_text(f'{before}<mappingstorage/>{after}')
        self.assertIn('Dry run: would commit 1 OFS.Application.Application, '
                      '1 OFS.Folder.Folder\n', self.work(worker, '--dry-run'))
        data = self.dir / 'var' / 'sqlite'
        self.conf.write_text(
            f'{before}%import relstorage\n<relstorage>\n<sqlite3>\n'
            f'data-dir {data}\n</sqlite3>\n</relstorage>{after}')
        [line] = self.work(worker, '--dry-run', status=69).splitlines()
        self.assertIn(f'there is no database {data}, and a dry run', line)
        self.assertFalse(data.exists())
        self.assertTrue((self.dir / 'inituser').exists())

    def test_a_conflict_on_sqlite(self) -> None:
        text = self.conf.read_text()
        before, _, rest = text.partition('   <filestorage>')
        _, _, after = rest.partition('   </filestorage>')
        storage = (f'<relstorage>\n<sqlite3>\ndata-dir {self.dir}/var/sqlite\n'
                   '</sqlite3>\n</relstorage>')
        self.conf.write_text(f'{before}%import relstorage\n{storage}{after}')
        other = self.write('other.conf', '%import relstorage\n'
                           f'<zodb>\n{storage}\n</zodb>\n')
        worker = f"""
        import ZODB.config

        def change():
            database = ZODB.config.databaseFromURL({str(other)!r})
            with database.transaction() as connection:
                connection.root()['Application'].title = 'changed'
            database.close()

        @gocept.runner.once(principal='system')
        def work():
            global attempts
            attempts += 1
            app = getRequest()['PARENTS'][-1]
            root = app._p_jar.root()
            print(app.title, 'attempt', attempts, 'aborted' in root)
            if attempts == 1 and app.title != 'changed':
                change()
                app._p_jar.readCurrent(app)
                root['aborted'] = 1
            else:
                app.acl_users.title = f'attempt {{attempts}}'
        """
        self.assertIn('changed attempt 2 False\n', self.work(worker))
        self.assertIn('changed attempt 1 False\n', self.work(worker))

    def test_a_database_of_the_toolkit(self) -> None:
        self.zope_conf(name='toolkit.conf')
        (self.dir / 'var' / 'Data.fs').symlink_to(self.dir / 'Data.fs')
        self.run_program("""\
            import gocept.runner
            with gocept.runner.runner.init(None, 'toolkit.conf'):
                pass
            """)
        [line] = self.work("""
        @gocept.runner.once()
        def work():
            print('runs')
        """, status=78).splitlines()
        self.assertIn('is a zope.site.folder.Folder, so the database belongs '
                      'to another application, and not to Zope', line)

    def test_another_process_may_start_at_the_same_time(self) -> None:
        output = self.work("""
        from OFS.Application import AppInitializer

        commit = AppInitializer.commit
        refused = set()

        def refuse(self, note):
            if note not in refused:
                refused.add(note)
                raise ConflictError(note)
            commit(self, note)

        AppInitializer.commit = refuse

        @gocept.runner.once(principal='admin')
        def work():
            print(sorted(refused))
            print(*sorted(getRequest()['PARENTS'][-1].objectIds()))
        """)
        self.assertIn("'Added virtual_hosting', 'Created initial user']\n"
                      'acl_users index_html virtual_hosting\n', output)

    def test_an_error_in_zcml_can_be_mended(self) -> None:
        output = self.run_program("""\
            import os
            import pathlib
            import gocept.runner
            from zope.configuration.exceptions import ConfigurationError

            site = pathlib.Path('etc/site.zcml')
            right = site.read_text()
            site.write_text(right.replace('</configure>', '<a/></configure>'))
            from App.config import getConfiguration
            getConfiguration()  # sets variables when it is first called
            before = dict(os.environ)
            try:
                with gocept.runner.runner.init(None, 'zope.conf'):
                    pass
            except ConfigurationError as error:
                print(error, before == dict(os.environ))
            site.write_text(right)
            with gocept.runner.runner.init(None, 'zope.conf') as app:
                print(app.absolute_url())
            """)
        self.assertRegex(output, r'(?s)site\.zcml.* True\n.*http://nohost\n$')

    def make_empty_application(self) -> None:
        """Make a database with a root that Zope's start has not seen."""
        self.run_program("""\
            import transaction
            from Zope2.Startup.run import configure_wsgi
            configure_wsgi('zope.conf')
            from App.config import getConfiguration
            from OFS.Application import Application
            database = getConfiguration().dbtab.getDatabase('/', is_root=1)
            root = database.open().root()
            root['Application'] = Application()
            transaction.commit()
            database.close()
            """)

    def test_a_mistake_is_one_line(self) -> None:
        worker = """
        @gocept.runner.once()
        def work():
            print('runs')
        """
        self.assertIn('runs\n', self.work(worker))
        for args, status, expected in (
                (['--site', 'nothing'], 66, "the root has no object 'nothin"),
                (['--server-url', 'www.example.org'], 2, 'not the URL of a'),
                (['--application', 'toolkit'], 78, 'zope.conf, line '),
                (['--config', 'nowhere.conf'], 78, 'no such file: nowhere.c')):
            with self.subTest(args=args):
                output = self.work(worker, *args, status=status)
                self.assertIn(expected, output.splitlines()[-1])
                self.assertNotIn('Traceback', output)
        self.assertIn('nobody-there', self.work("""
        @gocept.runner.once(principal='nobody-there')
        def work():
            print('runs')
        """, status=67))

    def test_a_file_that_is_wrong(self) -> None:
        conf = self.conf.read_text()
        worker = """
        @gocept.runner.once()
        def work():
            print('runs')
        """
        for change, expected in (
                ('nonsense on', "'nonsense' is not a known key name"),
                ('eventlog x', "'eventlog' (toolkit)")):
            with self.subTest(change=change):
                self.conf.write_text(f'{conf}\n{change}\n')
                [line] = self.work(worker, status=78).splitlines()
                self.assertIn(expected, line)
                self.assertIn('zope.conf', line)
        self.conf.write_text(conf)
        self.declare('<nonsense />')
        [line] = self.work(worker, status=78).splitlines()
        self.assertIn('test-configure.zcml', line)

    def test_a_database_that_is_in_use(self) -> None:
        worker = """
        @gocept.runner.once()
        def work():
            print('runs', flush=True)
            sys.stdin.readline()
        """
        holder = self.hold_database()
        [line] = self.work(worker, status=69).splitlines()
        self.assertIn(f'the process {holder.pid} has the database ', line)
        self.assertIn("'<zeoclient>', 'server localhost:8100', "
                      "'</zeoclient>'", line)

    def test_product_configuration(self) -> None:
        with self.conf.open('a') as file:
            file.write('<product-config shop>\ncolour red\n</product-config>')
        self.assertIn('red red\n', self.work("""
        from App.config import getConfiguration

        @gocept.runner.once()
        def work():
            print(gocept.runner.from_config('shop', 'colour')(),
                  getConfiguration().product_config['shop']['colour'])
        """))

    def test_the_environment_of_zope_conf(self) -> None:
        text = self.conf.read_text()
        self.conf.write_text(text.replace(
            '\n<environment>', '\n<environment>\n  COLOUR red'))
        self.assertIn('red True\n', self.work("""
        import os

        @gocept.runner.once()
        def work():
            print(os.environ['COLOUR'],
                  os.environ['INSTANCE_HOME'] == os.getcwd())
        """))

    def test_the_loggers_of_the_web_server(self) -> None:
        worker = """
        import logging

        @gocept.runner.once()
        def work():
            logging.getLogger('mine').info('the worker logs')
        """
        self.assertIn('mine the worker logs\n', self.work(worker))
        log = self.dir / 'var' / 'log' / 'event.log'
        self.assertFalse(log.exists())
        output = self.work(worker, '--log-config', 'etc/zope.ini')
        self.assertIn('the worker logs\n', output)
        self.assertIn('[mine:', log.read_text())
        output = self.work(worker, '--log-config', 'etc/zope.ini',
                           '--log-format', 'json')
        for text in output, log.read_text():
            [line] = [json.loads(line) for line in text.splitlines()
                      if '"the worker logs"' in line]
            self.assertEqual(('mine', 'work', 1), (
                line['logger'], line['worker'], line['tick']))
        self.assertIn('nowhere.ini', self.work(
            worker, '--log-config', 'nowhere.ini', status=78))

    def test_subscribers_and_mounts(self) -> None:
        (self.dir / 'subscribers.py').write_text(
            'def opened(event):\n'
            '    print("heard", type(event).__name__, flush=True)\n')
        with self.conf.open('a') as file:
            file.write(
                '<zodb_db second>\n  <filestorage>\n'
                f'    path {self.dir}/var/second.fs\n'
                '  </filestorage>\n  mount-point /second\n</zodb_db>\n')
        self.declare("""
            <subscriber for="zope.processlifetime.IDatabaseOpened"
                        handler="subscribers.opened" />
            <subscriber for="zope.processlifetime.IDatabaseOpenedWithRoot"
                        handler="subscribers.opened" />
            """)
        output = self.work("""
        from Products.ZODBMountPoint.MountedObject import (
            manage_addMounts)

        @gocept.runner.once(principal='admin')
        def work():
            app = getRequest()['PARENTS'][-1]
            manage_addMounts(app, ['/second'])
            app.second.title = 'mounted'
        """)
        self.assertIn('heard DatabaseOpened\nheard DatabaseOpenedWithRoot\n',
                      output)
        self.assertIn('mounted in 2\n', self.work("""
        @gocept.runner.once(principal='admin')
        def work():
            site = getRequest()['PARENTS'][0]
            print(site.title, 'in', len(site._p_jar.db().databases))
        """, '--site', 'second'))

    def test_the_process_can_run_workers_of_one_instance(self) -> None:
        output = self.run_program("""\
            import gocept.runner
            import zope.event
            from zope.globalrequest import getRequest
            from gocept.runner.errors import ConfigurationError

            @gocept.runner.once(principal='admin')
            def work():
                app = getRequest()['PARENTS'][-1]
                app.count = getattr(app, 'count', 0) + 1
                print('count', app.count)

            events = []
            zope.event.subscribers.append(
                lambda event: events.append(type(event).__name__))
            for _ in range(2):
                work(None, 'zope.conf')
            with gocept.runner.runner.init(None, 'zope.conf') as app:
                print('then', app.count, app.REQUEST is getRequest())
            print(events.count('DatabaseOpened'),
                  events.count('DatabaseOpenedWithRoot'))
            try:
                work(None, 'other.conf')
            except ConfigurationError as error:
                print(error)
            """.replace('other.conf', str(self.copy_conf())))
        self.assertIn('count 1\n', output)
        self.assertIn('count 2\nthen 2 True\n3 3\n', output)
        self.assertIn('run the other worker in a process of its own', output)

    def copy_conf(self) -> object:
        path = self.dir / 'etc' / 'other.conf'
        path.write_text(self.conf.read_text())
        return path

    def test_the_roles_of_a_worker_may_be_its_own(self) -> None:
        output = self.work("""
        from AccessControl.users import UnrestrictedUser

        def robot():
            return UnrestrictedUser('robot', '', ['Editor'], [])

        @gocept.runner.once(principal=robot)
        def work():
            app = getRequest()['PARENTS'][-1]
            app.title = 'changed'
            print(getSecurityManager().getUser().getRoles())
        """)
        self.assertIn("('Editor', 'Authenticated')\n", output)
        self.assertIn("'work' ' robot'\n", self.work("""
        @gocept.runner.once()
        def work():
            app = getRequest()['PARENTS'][-1]
            log = app._p_jar.db().undoInfo(0, 1)
            print(repr(log[0]['description']), repr(log[0]['user_name']))
        """))

    def test_a_debugger(self) -> None:
        output = self.work("""
        @gocept.runner.once(principal='admin')
        def work():
            seen = getRequest()['PARENTS'][-1]
            raise ValueError(seen.absolute_url())
        """, '--debug', status=1)
        self.assertIn("Debugging ValueError('http://nohost')", output)

    def test_a_forked_child_cannot_spoil_the_database(self) -> None:
        self.assertIn('the parent: 1\n', self.work("""
        import os

        @gocept.runner.once()
        def work():
            app = getRequest()['PARENTS'][-1]
            if not (pid := os.fork()):
                try:
                    app.title = 'child'
                    transaction.commit()
                except RuntimeError:
                    os._exit(1)
                os._exit(0)
            print('the parent:', os.waitstatus_to_exitcode(
                os.waitpid(pid, 0)[1]))
        """))


class ToolkitTests(InstanceTestCase):

    def test_workers_of_the_toolkit_do_not_import_zope(self) -> None:
        self.zope_conf(name='toolkit.conf')
        self.assertIn('modules: []\n', self.run_program("""\
            import sys
            import gocept.runner

            @gocept.runner.once()
            def work():
                print('modules:', [name for name in (
                    'Zope2', 'ZPublisher', 'AccessControl', 'Acquisition',
                    'OFS', 'App') if name in sys.modules])

            work(None, 'toolkit.conf')
            """))
