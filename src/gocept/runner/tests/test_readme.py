"""The programs of the README, and its commands, as a reader runs them."""

import re
import shlex
import signal
import subprocess
import sys
import textwrap

from gocept.runner.tests.support import Program, TestCase
from gocept.runner.tests.test_documents import CHECKOUT

README = (CHECKOUT / 'README.rst').read_text()

COMMANDS = re.findall(
    r'^    \$ python3 clock.py (.*?) *(?:#|$)', README, re.MULTILINE)

# The child, as the README describes it.
FEED = '''
    import sys
    print('ready', flush=True)
    for number in range(int(sys.stdin.readline()) + 1, 11):
        print(number, 'order', flush=True)
    sys.stdin.read()
    '''

# The object of the application. Its service is away twice, for more ticks
# than a line has redeliveries by default: from the answer to "ready" on, and
# in the middle of the orders.
SHOP = '''

import logging
import os
import sys

calls = 0

class Shop:

    def __init__(self, site):
        self.site = site
        if 10 in self.stored:
            print('In the database:', *self.stored, flush=True)

    @property
    def stored(self):
        return getattr(self.site, 'stored', ())

    @property
    def last_order(self):
        global calls
        calls += 1
        if calls < 8 or 12 < calls < 20:
            raise ConnectionError
        return max(self.stored, default=0)

    def store(self, number, order):
        self.site.stored = (*self.stored, number)

get_site = getSite

def getSite():
    return Shop(get_site())

def end(record):
    if 'skipped' in record.getMessage():
        print(record.getMessage(), flush=True)
        os._exit(1)
    return True

logging.getLogger('gocept.runner.channel').addFilter(end)
sys.exit(store_orders())
'''


def block(before: str, after: str) -> str:
    """The text between two lines of the README."""
    found = re.search(
        f'{re.escape(before)}\n\n(.*?)\n{re.escape(after)}', README, re.DOTALL)
    assert found is not None, before
    return textwrap.dedent(found[1])


class ReadmeTests(TestCase):

    level = 2

    def start(self, args: str = '') -> Program:
        program = Program(
            self.dir / 'clock.py', *shlex.split(args), cwd=self.dir)
        self.addCleanup(program.close)
        return program

    def paste(self) -> None:
        """Write the two files, as a shell does."""
        files, command = block(
            'code-block:: sh', 'Each second').rstrip().rsplit('\n', 1)
        self.assertEqual('python3 clock.py', command)
        subprocess.run(['sh', '-c', files], cwd=self.dir, check=True)

    def test_what_is_pasted_goes_on_after_an_interruption(self) -> None:
        self.paste()
        count = 0
        for _ in range(2):
            program = self.start()
            for _ in range(2):
                count += 1
                while not re.search(
                        f'^{count} ', program.output, re.MULTILINE):
                    program.wait_for(' ')
            program.send(signal.SIGINT)
            self.assertEqual(0, program.end(), program.output)
            self.assertNotIn('ERROR', program.output)
            stored = re.findall(r'^(\d+) ', program.output, re.MULTILINE)
            count = max(map(int, stored))

    def test_the_commands(self) -> None:
        self.assertEqual(['--dry-run', '--help'], COMMANDS)
        dry_run, help_ = COMMANDS
        self.paste()
        self.assertEqual(0, self.start('--once').end())

        program = self.start(dry_run)
        program.wait_for('Dry run: would commit 1 zope.site.folder.Folder\n')
        program.send(signal.SIGTERM)
        self.assertEqual(0, program.end(), program.output)

        program = self.start(help_)
        self.assertEqual(0, program.end(), program.output)
        for text in 'Store what a child process says.', '--once', '--verbose':
            self.assertIn(text, program.output)

    def test_an_outage_loses_no_order(self) -> None:
        feed = self.write('feed.py', FEED)
        self.write('site.zcml', block('block:: xml', 'The site of').replace(
            'order-feed', f'{sys.executable} {feed}'))
        self.zope_conf(
            'site-definition $here/site.zcml\n<eventlog>\n</eventlog>')
        program = self.program(
            block('0 at first:\n\n.. code-block:: python', 'The app is')
            .replace('ticks=60', 'ticks=0.01, max_backoff=0.01') + SHOP)
        program.wait_for('In the database: 1 2 3 4 5 6 7 8 9 10\n')
        program.send(signal.SIGTERM)
        self.assertEqual(0, program.end(), program.output)
