"""The first program of the README, and its commands, as a reader runs them."""

import re
import shlex
import signal
import textwrap

from gocept.runner.tests.support import Program, TestCase
from gocept.runner.tests.test_documents import CHECKOUT

README = (CHECKOUT / 'README.rst').read_text()

COMMANDS = re.findall(r'^    \$ expire(.*?) *# ', README, re.MULTILINE)

# What the reader adds, and the entry point.
REST = '''

def find_expired(site):
    site.seen = getattr(site, 'seen', 0) + 1
    return []

import sys
sys.exit(expire())
'''


def block(before: str, after: str) -> str:
    """The text between two lines of the README."""
    found = re.search(f'{before}\n\n(.*?)\n{after}', README, re.DOTALL)
    assert found is not None, before
    return textwrap.dedent(found[1])


class ReadmeTests(TestCase):

    level = 2

    def run_command(self, args: str) -> Program:
        return self.program(
            block('code-block:: python', 'Declare the') + REST,
            *shlex.split(args))

    def test_the_commands_in_this_order(self) -> None:
        self.assertEqual([' --once', ' --once --dry-run', ''], COMMANDS)
        self.write('zope.conf', block('write a ``zope.conf``::', 'and run'))
        once, dry_run, always = COMMANDS

        program = self.run_command(once)
        self.assertEqual(0, program.end(), program.output)
        self.assertIn(f'database: {self.dir}/Data.fs\n', program.output)

        for verbose in '', ' --verbose':
            program = self.run_command(dry_run + verbose)
            self.assertEqual(0, program.end(), program.output)
            self.assertIn('Dry run: would commit 1 zope.site.folder.Folder\n',
                          program.output)
            # The answer is not hidden among lines of libraries.
            for line in program.output.splitlines():
                self.assertIn(' gocept.runner', line)

        program = self.run_command(always)
        program.wait_for("Worker 'expire' starts: a tick every 60 s")
        program.send(signal.SIGTERM)
        self.assertEqual(0, program.end(), program.output)
