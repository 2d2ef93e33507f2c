"""Workers in Zope that keep a schedule."""

import signal

from gocept.runner.tests.zope.instances import InstanceTestCase

SCRIPT = """\
    import sys
    import gocept.runner
    from zope.globalrequest import getRequest

    @gocept.runner.appmain(
        schedule='0 0 29 2 *', timezone='UTC', missed='once')
    def work():
        site = getRequest()['PARENTS'][0]
        site.title += 'x'
        print('run in', site.absolute_url_path(), flush=True)

    @gocept.runner.once()
    def look():
        root = getRequest()['PARENTS'][-1]
        if 'news' not in root.objectIds():
            root.manage_addFolder('news')
        if sys.argv[1] == 'old':
            root._p_jar.root()['gocept.runner.runs']['work@news']['run'] = 1.0
        runs = root._p_jar.root().get('gocept.runner.runs', {})
        print('runs', {key: mine['run'] > 1 for key, mine in runs.items()},
              repr(root.news.title))

    if __name__ == '__main__':
        if sys.argv[1] == 'work':
            del sys.argv[1]
            sys.exit(work.main())
        look(None, 'zope.conf')
    """


class ScheduleTests(InstanceTestCase):

    def test_a_worker_in_a_folder(self) -> None:
        self.assertIn("runs {} ''", self.run_program(SCRIPT, 'look'))
        self.assertIn('run in /news', self.run_program(
            SCRIPT, 'work', '--site', 'news', '--once', '--dry-run'))
        self.assertIn("runs {} ''", self.run_program(SCRIPT, 'look'))
        self.assertIn('run in /news', self.run_program(
            SCRIPT, 'work', '--site', 'news', '--once'))
        self.assertIn("runs {'work@news': True} 'x'",
                      self.run_program(SCRIPT, 'look'))
        # As if the last leap day had been missed.
        self.assertIn("runs {'work@news': False}",
                      self.run_program(SCRIPT, 'old'))
        program = self.program(SCRIPT, 'work', '--site', 'news', '-v')
        program.wait_for('The next run of worker')
        program.send(signal.SIGTERM)
        self.assertEqual(0, program.end(), program.output)
        self.assertIn('was missed, and is done now', program.output)
        self.assertIn("runs {'work@news': True} 'xx'",
                      self.run_program(SCRIPT, 'look'))
