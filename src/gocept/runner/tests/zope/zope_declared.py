"""What the ZCML of an instance declares, and the commands of this package."""

from gocept.runner.tests.zope.instances import InstanceTestCase

SHOP = '''\
    import gocept.runner
    import transaction
    import zope.component
    from AccessControl import getSecurityManager
    from ZODB.POSException import ConflictError
    from zope.globalrequest import getRequest
    from gocept.runner.background import respond
    from gocept.runner.interfaces import IPoller, IRunner

    attempts = 0

    @gocept.runner.appmain(ticks=60, principal='admin')
    def sell():
        """Sell what is left."""
        global attempts
        attempts += 1
        app = getRequest()['PARENTS'][-1]
        channel = zope.component.getUtility(IRunner).get_channel('echo')
        poller = zope.component.getUtility(IPoller)
        poller.register(channel)
        for line, _ in poller.poll(0):
            print('got', line.strip())
            return gocept.runner.Exit
        channel.write(f'attempt {attempts}\\n')
        if attempts == 1:
            raise ConflictError
        app.sold = getattr(app, 'sold', 0) + 1
        print('sold', app.sold, 'as', getSecurityManager().getUser().getId())

    @gocept.runner.once(principal='admin')
    def rename():
        getRequest()['PARENTS'][-1].title = 'renamed'

    def begin():
        return {}

    def count(client_socket, state, request):
        app = getRequest()['PARENTS'][-1]
        app.count = getattr(app, 'count', 0) + request['add']
        respond(client_socket, [
            app.count, getSecurityManager().getUser().getId(),
            app.absolute_url()])
        return state
    '''

COMMAND = '''\
    import sys
    from gocept.runner.cli import main
    sys.exit(main())
    '''


class DeclaredTests(InstanceTestCase):

    def setUp(self) -> None:
        super().setUp()
        self.write('shop.py', SHOP)
        self.declare("""
            <runner:app
                name="echo"
                command="cat"
                start="eager"
                buffering="line"
                encoding="utf-8"
                transactional="true" />
            <runner:worker name="sell" handler="shop.sell" />
            <runner:worker name="rename" handler="shop.rename" />
            """)

    def command(self, *args: str, status: int = 0) -> str:
        return self.run_program(COMMAND, *args, status=status)

    def test_a_worker_and_its_children(self) -> None:
        output = self.command('run', 'sell')
        # What an attempt has written that had a conflict is not sent.
        self.assertIn('sold 1 as admin\ngot attempt 2\n', output)
        self.assertIn('sold 2 as admin\ngot attempt 2\n', self.command(
            'run', 'sell', '--config', 'etc/zope.conf'))

    def test_a_dry_run_of_it(self) -> None:
        self.command('run', 'rename', '--once')
        for _ in range(2):
            self.assertIn(
                'Dry run: would commit 1 OFS.Application.Application\n',
                self.command('run', 'rename', '--dry-run'))

    def test_the_list_beside_an_instance_that_runs(self) -> None:
        holder = self.hold_database()
        output = self.command('list')
        self.assertRegex(output, r'app +echo +eager')
        self.assertIn('shop:sell, every 60 s, as admin: Sell what ', output)
        self.assertIn(f'the process {holder.pid} has the database ',
                      self.command('run', 'sell', status=69))

    def test_a_python_where_a_worker_would_run(self) -> None:
        output = self.command('shell', '--principal', 'admin', '-c', (
            'from AccessControl import getSecurityManager\n'
            'print(app is app.REQUEST["PARENTS"][-1])\n'
            'print(app.acl_users.absolute_url())\n'
            'print(site.title, getSecurityManager().getUser().getId())\n'
            'app.manage_addFolder("made")\n'
            'transaction.commit()\n'))
        self.assertIn('True\nhttp://nohost/acl_users\nZope admin\n', output)
        self.assertIn('made\nhttp://nohost/made\n', self.command(
            'shell', '--site', 'made', '-c',
            'print(site.getId())\nprint(site.absolute_url())'))

    def test_the_tasks_of_a_server(self) -> None:
        output = self.run_program("""\
            import sys
            from gocept.runner.background import Client, Server
            from gocept.runner.tests.kernels import free_port
            port = free_port()
            Server(port=port, tasks=['shop:begin', 'shop:count', None],
                   zope_conf='zope.conf', principal='admin',
                   log_file='server.log').run_background()
            with Client(port=port) as client:
                for number in 1, 2:
                    print(client.execute({'add': number},
                                         await_response=True))
                client.terminate()
            """)
        self.assertIn("[1, 'admin', 'http://nohost']\n"
                      "[3, 'admin', 'http://nohost']\n", output)


