"""What the tests of declarations in ZCML need."""

import os
import shlex
import sys
import textwrap
from typing import Any
from xml.sax.saxutils import quoteattr

import zope.component
import zope.configuration.xmlconfig

from gocept.runner.interfaces import IRunner, ISupervisor
from gocept.runner.tests.executors import SERVER, ExecutorTestCase
from gocept.runner.tests.support import reset_process
from gocept.runner.tests.victims import VICTIM

SITE = '<include package="gocept.runner" file="site.zcml" />'

INCLUDE = '<include package="gocept.runner" />'


def zcml(body: str, include: str = INCLUDE) -> str:
    """A file with these directives; `body` begins in the line after that."""
    return ('<configure xmlns="http://namespaces.zope.org/zope" '
            'xmlns:runner="http://namespaces.gocept.com/runner">'
            f'{include}\n{textwrap.dedent(body).strip()}\n</configure>\n')


def attributes(**values: str) -> str:
    """Attributes as ZCML writes them."""
    return ' '.join(f'{name.rstrip("_")}={quoteattr(value)}'
                    for name, value in values.items())


NOTING = '''\
def note(*what):
    """Write a line that tests find in `DeclaringTestCase.notes`."""
    append(NOTES, NAME, *what)

def append(path, *what):
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, (' '.join(map(str, what)) + '\\n').encode())
    os.close(fd)

def wait():
    """Wait until the test calls `DeclaringTestCase.let_child_go`."""
    wait_at(GO)

def end(signum=None, frame=None):
    note('ended')
    os._exit(0)

signal.signal(signal.SIGTERM, end)
append(PIDS, NAME, os.getpid())
note('started')
'''


class DeclaringTestCase(ExecutorTestCase):
    """Loads ZCML, and forgets it before it is looked what is left."""

    def setUp(self) -> None:
        super().setUp()
        self.addCleanup(reset_process)
        os.mkfifo(self.dir / 'child-go')
        # Open for reading as well, so that no write waits for a reader.
        self._child_go = os.open(self.dir / 'child-go', os.O_RDWR)
        self.addCleanup(os.close, self._child_go)

    def load(self, body: str, include: str = INCLUDE) -> Any:
        """Run directives; returns the supervisor, if there is one."""
        path = self.write('site.zcml', '')
        path.write_text(zcml(body, include))
        zope.configuration.xmlconfig.file(str(path))
        return zope.component.queryUtility(ISupervisor)

    def conf(self, body: str, more: str = '<eventlog>\n</eventlog>',
             include: str = INCLUDE) -> str:
        """Write a zope.conf that names these directives; returns its path."""
        self.write('site.zcml', '').write_text(zcml(body, SITE + include))
        return self.zope_conf(
            f'site-definition {self.dir}/site.zcml\n{textwrap.dedent(more)}')

    @property
    def runner(self) -> Any:
        return zope.component.getUtility(IRunner)

    def script(self, name: str, body: str) -> str:
        """The command of a victim that can listen, in a file."""
        path = self.write(name, '')
        path.write_text(VICTIM + SERVER + textwrap.dedent(body))
        return shlex.join([sys.executable, '-I', '-S', str(path)])

    def noting(self, name: str, body: str) -> str:
        """The command of one that notes when it is started, and ended."""
        names = {'NAME': name, 'NOTES': str(self.dir / 'notes'),
                 'PIDS': str(self.dir / 'pids'),
                 'GO': str(self.dir / 'child-go')}
        return self.script(f'{name}.py', ''.join(
            f'{key} = {value!r}\n' for key, value in names.items())
            + NOTING + textwrap.dedent(body))

    @property
    def notes(self) -> list[str]:
        """What the children have noted, in this order."""
        path = self.dir / 'notes'
        return path.read_text().splitlines() if path.exists() else []

    def noted_pids(self, name: str | None = None) -> list[int]:
        """The numbers of those that have noted that they were started."""
        path = self.dir / 'pids'
        lines = path.read_text().splitlines() if path.exists() else []
        return [int(pid) for owner, _, pid in (
            line.rpartition(' ') for line in lines) if name in (None, owner)]

    def let_child_go(self) -> None:
        """End a `wait` of a child; or else the next one."""
        os.write(self._child_go, b'.')

    def an_executor(self, name: str, body: str = '', **more: str) -> str:
        """Declare one that is ready when it says so, after `body`."""
        return '<runner:executor ' + attributes(**{
            'name': name, 'type': 'output', 'banner': '^ready$',
            'command': self.noting(name, textwrap.dedent(body)
                                   + "\nsay('ready')\npause()\n"),
            **more}) + ' />\n'

    def an_app(self, name: str, body: str = '', **more: str) -> str:
        """Declare one that is ready when it listens, after `body`."""
        path = str(self.dir / f'{name}.sock')
        return '<runner:app ' + attributes(**{
            'name': name, 'type': 'socket', 'socket': path,
            'command': self.noting(name, textwrap.dedent(body)
                                   + f'\nsock = listen({path!r})\npause()\n'),
            **more}) + ' />\n'
