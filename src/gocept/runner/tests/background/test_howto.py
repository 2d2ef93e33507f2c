"""The scripts and commands that the documents show, as a reader uses them."""

import ast
import re
import shlex
import subprocess
import sys
import textwrap

from gocept.runner.tests.kernels import free_port
from gocept.runner.tests.services import need
from gocept.runner.tests.support import DEADLINE, TestCase, child_environment
from gocept.runner.tests.test_documents import CHECKOUT, PACKAGE

COMMAND = re.compile(  # and the lines up to the next one or to the next text
    r'^    \$ (.*)\n((?:    [^$].*\n)*)', re.MULTILINE)

FILE = re.compile(  # begins with its name
    r'^\.\. code-block:: python\n\n    # (\w+\.py)\n((?:    .*\n|\n)+)',
    re.MULTILINE)

RUNNER = [sys.executable, '-c', 'import sys; from gocept.runner.cli import '
          'main; sys.exit(main())']


class DocumentCase(TestCase):

    def read(self, text: str) -> list[tuple[str, str]]:
        """Write the files of the text; return its commands, and what each of
        them is to print."""
        text = text.replace('54321', str(free_port()))
        for name, code in FILE.findall(text):
            self.write(name, textwrap.dedent(code))
        commands = COMMAND.findall(text)
        self.addCleanup(self.run_command, commands[-1][0])  # if one fails
        return commands

    def run_command(self, line: str) -> subprocess.CompletedProcess[str]:
        line = re.sub('^python3 ', shlex.quote(sys.executable) + ' ', line)
        line = re.sub('^gocept-runner ', shlex.join(RUNNER) + ' ', line)
        return subprocess.run(
            f'umask 077; {line}', shell=True, cwd=self.dir, text=True,
            timeout=DEADLINE,
            env=child_environment(XDG_STATE_HOME=str(self.dir / 'state')),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT)


class ScriptTests(DocumentCase):
    """The scripts to copy: the commands print what the document shows."""

    def check(self, text: str) -> None:
        for command, printed in self.read(text):
            self.assertEqual(
                textwrap.dedent(printed), self.run_command(command).stdout,
                command)

    def test_first_steps(self) -> None:
        text = (PACKAGE / 'background/background.rst').read_text()
        _, _, text = text.partition('\nFirst steps\n')
        self.check(text.partition('\nTasks\n')[0])

    def test_readme(self) -> None:
        text = (CHECKOUT / 'README.rst').read_text()
        _, _, text = text.partition('*background server*')
        self.check(text.partition('\nInstall\n')[0])


class HowToTests(DocumentCase):
    """docs/servers.rst on this machine, whose address takes the place of the
    other one's."""

    level = 2

    def test_each_step(self) -> None:
        need(self, 'openssl')
        output = []
        for command, _ in self.read(
                (CHECKOUT / 'docs/servers.rst').read_text()
                .replace('10.0.0.7', '127.0.0.1')):
            done = self.run_command(command)
            self.assertEqual(0, done.returncode, f'{command}\n{done.stdout}')
            output.append(done.stdout)
        self.assertEqual("{'sold': 3}\n", output[-2])

    def test_the_messages_that_it_explains(self) -> None:
        text = (CHECKOUT / 'docs/servers.rst').read_text()
        said = re.findall(r'^``(.*)``$', text, re.MULTILINE)
        self.assertEqual(8, len(said))
        texts = sorted({
            node.value for path in (PACKAGE / 'background').glob('*.py')
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)})
        for message in said:
            for part in message.split('...'):
                with self.subTest(message=message, part=part):
                    self.assertTrue(
                        any(part.strip() in each for each in texts))
