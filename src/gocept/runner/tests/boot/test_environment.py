import contextlib
import types

import persistent
import transaction
import zope.component
import zope.component.hooks
import zope.configuration.exceptions
import zope.event
import zope.interface
import zope.processlifetime
import zope.security.management
from zope.site.folder import Folder

from gocept.runner.boot import (
    environment,
)
from gocept.runner.errors import ConfigurationError
from gocept.runner.interfaces import ISupervisor
from gocept.runner.runner import init
from gocept.runner.tests.boot.test_toolkit import Case
from gocept.runner.tests.support import replaced_modules


class ScriptTests(Case):

    def test_a_class_of_a_script(self):
        script = types.ModuleType('__main__')
        order = type('Order', (persistent.Persistent,),
                     {'__module__': '__main__'})
        vars(script).update(Order=order, Folder=Folder, number=1)
        with replaced_modules({'__main__': script}):
            with self.assertLogs('gocept.runner.environment') as logs:
                environment.tell_classes_of_script()
            [line] = logs.output
            self.assertIn('cannot find the class Order of this script', line)
            with init(None, self.zope_conf()) as root:
                root['shop'] = order()
                transaction.commit()
        with self.assertRaisesRegex(
                ConfigurationError, "'shop' in the root folder is a "
                '__main__.Order, which only the script can find that has '
                'stored it; move the class to a module'):
            with init('shop', self.zope_conf()):
                pass


class SupervisedTests(Case):

    def test_where_zcml_includes_none(self):
        with environment.supervised(30) as supervisor:
            self.assertIsNone(supervisor)

    def test_the_utility(self):
        @zope.interface.implementer(ISupervisor)
        class Recording:
            @contextlib.contextmanager
            def running(self, timeout):
                log.append(timeout)
                try:
                    yield
                finally:
                    log.append('stopped')
        log = []
        mine = Recording()
        zope.component.provideUtility(mine)
        for error in (RuntimeError, KeyboardInterrupt):
            with self.assertRaises(error), environment.supervised(7) as it:
                self.assertEqual([7], log[-1:])
                self.assertIs(mine, it)
                raise error
            self.assertEqual('stopped', log[-1])
