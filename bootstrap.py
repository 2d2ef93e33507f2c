#!/usr/bin/env python3
"""Set up this checkout, and run one of its scripts.

    python3 bootstrap.py            set up, nothing more
    python3 bootstrap.py demo       the demo: a worker that indexes files
    python3 bootstrap.py test       all tests
    python3 bootstrap.py WORD ...   bin/WORD with its arguments

It makes a virtual environment in .venv, installs zc.buildout there, and lets
it install what buildout.cfg says. When nothing has changed since, it starts
the script at once.
"""

import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
VENV = HERE / '.venv'
STAMP = VENV / 'bootstrap.stamp'
# Not the one of a virtual environment, least of all of the one made here.
PYTHON = getattr(sys, '_base_executable', None) or sys.executable
INPUTS = ('bootstrap.py', 'buildout.cfg', 'setup.py')
TOOLS = ('pip', 'setuptools', 'wheel', 'zc.buildout')


def main(argv):
    if sys.version_info < (3, 11):
        sys.exit('bootstrap: Python 3.11 or later is needed, but this is '
                 f'{sys.version.split()[0]}')
    os.chdir(HERE)
    if argv and argv[0] in ('-h', '--help'):
        print(__doc__.strip())
        return
    stamp = fingerprint()
    if not (STAMP.exists() and STAMP.read_text() == stamp):
        set_up()
        STAMP.write_text(stamp)
    if argv:
        run(argv)
    else:
        say('ready: python3 bootstrap.py demo, python3 bootstrap.py test')


def say(message):
    print(f'bootstrap: {message}', file=sys.stderr, flush=True)


def fingerprint():
    """Changes whenever the set-up has to be done anew."""
    digest = hashlib.sha256(f'{sys.version} {sys.base_prefix} {HERE}'.encode())
    for name in INPUTS:
        digest.update((HERE / name).read_bytes())
    return digest.hexdigest()


def set_up():
    started = time.monotonic()
    STAMP.unlink(missing_ok=True)
    say(f'setting up with Python {sys.version.split()[0]}; '
        'the first time this takes a minute or two')
    say('1/3 making a virtual environment in .venv')
    make_venv()
    python = str(VENV / 'bin' / 'python')
    pinned = versions()
    tools = [f'{name}=={pinned[name]}' for name in TOOLS]
    say(f'2/3 installing {tools[-1]}')
    step([python, '-m', 'pip', 'install', '--quiet',
          '--disable-pip-version-check', *tools])
    say('3/3 running buildout, which installs the packages and the scripts')
    step([str(VENV / 'bin' / 'buildout'), '-N'])
    say(f'done after {time.monotonic() - started:.0f} s')


def make_venv():
    try:
        import ensurepip  # noqa: F401
    except ImportError:
        sys.exit('bootstrap: this Python cannot make virtual environments; '
                 'on Debian and Ubuntu: apt-get install python3-venv')
    shutil.rmtree(VENV, ignore_errors=True)
    step([PYTHON, '-m', 'venv', str(VENV)])


def versions():
    """The pinned versions; read by hand, as buildout is yet to come."""
    _, _, section = (HERE / 'buildout.cfg').read_text().partition(
        '[versions]\n')
    pairs = (line.split('=') for line in section.splitlines() if '=' in line)
    return {name.strip(): version.strip() for name, version in pairs}


def step(command):
    """Run a command; say what it got, and all its output if it fails."""
    environment = {name: value for name, value in os.environ.items()
                   if name not in ('PYTHONPATH', 'PYTHONHOME')}
    output = []
    with subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        for line in process.stdout:
            output.append(line)
            if line.startswith(b'Got '):
                say('    ' + line.decode(errors='replace').strip())
    if process.returncode:
        sys.stderr.buffer.write(b''.join(output))
        sys.exit(f'bootstrap: failed with status {process.returncode}: '
                 f'{" ".join(command)}')


def run(argv):
    script = HERE / 'bin' / argv[0]
    if not script.is_file():
        known = ', '.join(sorted(
            path.name for path in (HERE / 'bin').iterdir() if path.is_file()))
        say(f'there is no bin/{argv[0]}; there are: {known}')
        sys.exit(2)
    sys.stderr.flush()
    os.execv(script, [str(script), *argv[1:]])


if __name__ == '__main__':
    main(sys.argv[1:])
