"""Programs of ``gocept-runner up`` with workers in a module of their own."""

import itertools
import os
from collections.abc import Sequence
from unittest import mock

from gocept.runner.tests import leftovers
from gocept.runner.tests.support import Program, TestCase

CONF = '''
    site-definition {0}/site.zcml
    <zodb>
      <mappingstorage>
      </mappingstorage>
    </zodb>
    <eventlog>
      level info
      <logfile>
        path STDERR
        format %(levelname)s %(message)s
      </logfile>
    </eventlog>
    '''

ZCML = '''
    <configure xmlns="http://namespaces.zope.org/zope"
               xmlns:runner="http://namespaces.gocept.com/runner">
      <include package="gocept.runner" />
      <include package="gocept.runner" file="site.zcml" />
      {}
    </configure>
    '''

MODULE = '''
    import logging
    import os

    log = logging.getLogger('shop')

    def work():
        log.info('version %s runs as %d', {version}, os.getpid())

    def fail():
        raise SystemExit(3)
    '''


class UpTestCase(TestCase):
    """Has a zope.conf with the module ``shop``."""

    _sizes = itertools.count()

    def setUp(self) -> None:
        super().setUp()
        self.addCleanup(leftovers.check_processes, self.dir)
        self.enterContext(mock.patch.dict(
            os.environ, XDG_STATE_HOME=str(self.dir / 'state')))
        os.environ.pop('GOCEPT_RUNNER_RUN_DIR', None)
        self.write('zope.conf', CONF.format(self.dir))
        self.declare('<runner:worker name="a" handler="shop:work" '
                     'ticks="3600" />')
        self.version(1)

    def declare(self, *workers: str) -> None:
        """Write the ZCML."""
        self.write('site.zcml', ZCML.format('\n'.join(workers)))

    def version(self, version: object) -> None:
        """Write the module.

        Python takes what it has compiled for a file of the same size that was
        written in the same second.
        """
        self.write('shop.py', MODULE.format(version=version)
                   + '#' * next(self._sizes) + '\n')

    def command(self, *argv: str) -> Program:
        """Start a command in the directory, which has the module."""
        return self.program(f'''
            import sys
            sys.dont_write_bytecode = True
            sys.path.insert(0, {str(self.dir)!r})
            from gocept.runner.cli import main
            sys.exit(main())
            ''', *argv)

    def up(self, *argv: str) -> Program:
        """Start ``gocept-runner up``."""
        return self.command('up', *argv)

    def ended(self, argv: Sequence[str]) -> tuple[int, str]:
        """The status of a command, and its output."""
        program = self.command(*argv)
        return program.end(), program.output
