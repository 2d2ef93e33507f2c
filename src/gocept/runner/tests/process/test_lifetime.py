"""What ends a daemon that is not a unit of its own."""

from gocept.runner.process import lifetime
from gocept.runner.tests.support import TestCase


class ThreatTests(TestCase):

    def threat(self, cgroup):
        return lifetime.threat(cgroup, str(self.dir))

    def test_nothing_is_known(self):
        for cgroup in ('', '/', '/docker/123', '/system.slice',
                       '/user.slice/user-0.slice/session-3.scope'):
            self.assertEqual('', self.threat(cgroup))
        lifetime.threat()  # our own

    def test_a_unit(self):
        self.assertIn('belongs to the unit worker.service, and ends with it',
                      self.threat('/system.slice/worker.service'))

    def test_a_session_that_ends_its_processes(self):
        (self.dir / 'etc/systemd/logind.conf.d').mkdir(parents=True)
        self.write('etc/systemd/logind.conf', '''
            [Login]
            #KillUserProcesses=no
            KillUserProcesses=yes
            ''')
        session = '/user.slice/user-0.slice/session-3.scope'
        self.assertIn('ends with this login session', self.threat(session))
        self.write('etc/systemd/logind.conf.d/local.conf', '''
            [Login]
            KillUserProcesses = no
            ''')
        self.assertEqual('', self.threat(session))

    def test_a_user_who_logs_out(self):
        group = ('/user.slice/user-0.slice/user@0.service/app.slice/'
                 'terminal.scope')
        self.assertIn('ends when user 0 logs out', self.threat(group))
        (self.dir / 'var/lib/systemd/linger').mkdir(parents=True)
        self.write('var/lib/systemd/linger/root', '')
        self.assertEqual('', self.threat(group))
