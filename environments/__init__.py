"""Virtual environments with Zope, and the tests that run in them.

Zope 5, Zope 6 and Plone do not go together, nor with what ``buildout.cfg``
pins. Each has an environment of its own: an extra of ``setup.py`` with the
versions of ``constraints/NAME.txt``. It lies in ``.venv-NAME-PYTHON`` of the
checkout, is made when it is first asked for, and is kept until what it is made
from has changed.
"""

import argparse
import fcntl
import hashlib
import os
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parent.parent

PATTERNS = {
    'zope5': '^zope_',
    'zope6': '^zope_',
    'plone': '^plone_',
}
"""The modules with the tests of each environment."""

EXTRAS = {
    'zope5': 'example,test-zope',
    'zope6': 'example,test-zope',
    'plone': 'example,test-zope,test-plone',
}
"""What each environment has beside the extra with its name."""


class EnvironmentFailed(Exception):
    """Raised when an environment cannot be made; holds the output of pip."""


def interpreter(name: str, python: str = sys.executable) -> Path:
    """The Python of the environment `name`, which is made if need be.

    It finds this checkout as it is at any time. `python` is the interpreter
    to make the environment with. Raises EnvironmentFailed.
    """
    version = run(python, '-c', 'import platform as p; '
                   'print(p.python_version(), p.machine())').strip()
    home = CHECKOUT / f'.venv-{name}-{".".join(version.split(".")[:2])}'
    stamp = home / 'environment.stamp'
    setup = CHECKOUT / 'setup.py'
    constraints = CHECKOUT / 'constraints' / f'{name}.txt'
    digest = hashlib.sha256(b'\0'.join([
        version.encode(), os.fsencode(home), setup.read_bytes(),
        constraints.read_bytes()])).hexdigest()
    with setup.open() as lock:
        # Builds of the checkout at one time would share its egg-info.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (stamp.is_file() and stamp.read_text() == digest):
            print(f'making the environment {home.name} ...', file=sys.stderr)
            run(python, '-m', 'venv', '--clear', home)
            run(home / 'bin' / 'python', '-m', 'pip', 'install',
                 '--disable-pip-version-check', '--constraint', constraints,
                 '--editable', f'{CHECKOUT}[{name},{EXTRAS[name]}]')
            stamp.write_text(digest)
    return home / 'bin' / 'python'


def main() -> None:
    """Run the tests of an environment, in place of this process."""
    parser = argparse.ArgumentParser(
        usage='%(prog)s [--python PYTHON] NAME [testrunner option ...]',
        description='Run the tests that need Zope or Plone.')
    parser.add_argument(
        '--python', default=sys.executable,
        help='the Python to make the environment with (default: this one)')
    parser.add_argument('name', metavar='NAME', choices=PATTERNS,
                        help=f'one of {", ".join(PATTERNS)}')
    parser.add_argument('options', nargs=argparse.REMAINDER,
                        help=argparse.SUPPRESS)
    options = parser.parse_args()
    try:
        python = interpreter(options.name, options.python)
    except EnvironmentFailed as error:
        sys.exit(f'{parser.prog}: {error}')
    os.chdir(CHECKOUT)
    os.execve(python, [
        python, '-m', 'zope.testrunner', '--auto-color', '--auto-progress',
        '--all', '--test-path=src',
        f'--tests-pattern={PATTERNS[options.name]}', *options.options],
        clean_environ())


def clean_environ() -> dict[str, str]:
    """The environment for children, without what changes how Python works.

    PYTHONDONTWRITEBYTECODE, for one, would have each start compile anew.
    """
    return {name: value for name, value in os.environ.items()
            if not name.startswith('PYTHON')}


def run(*argv: str | Path) -> str:
    """Run a command; returns what it prints. Raises EnvironmentFailed."""
    done = subprocess.run(
        argv, env=clean_environ(), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        command = ' '.join(map(str, argv))
        raise EnvironmentFailed(
            f'status {done.returncode} of {command}:\n{done.stdout}')
    return done.stdout
