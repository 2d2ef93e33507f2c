"""Virtual environments for the sides of a benchmark.

The sides share Python and the versions pinned in ``buildout.cfg``; pip chooses
only what is not pinned there. They live below ``var/bench`` of the checkout
and are built when they are missing or out of date, from the package index that
pip is set up for. A side starts with the plain interpreter of its environment,
as the long path of a buildout script would be part of every start.
"""

import configparser
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from environments import EnvironmentFailed, clean_environ, run

__all__ = ['EnvironmentFailed', 'clean_environ']

CHECKOUT = Path(__file__).parent.parent
HOME = CHECKOUT / 'var' / 'bench'

# What it takes to build the checkout.
_SOURCES = ('setup.py', 'README.rst', 'CHANGES.rst', 'src')

# They build and install; which ones they are is the side's own business.
_BUILD_TOOLS = frozenset({'pip', 'setuptools', 'wheel'})

_VERSIONS = '''\
import importlib.metadata, json
print(json.dumps({d.name: d.version
                  for d in importlib.metadata.distributions()}))
'''

_PACKAGES = 'import sysconfig; print(sysconfig.get_path("purelib"))'


def released(name: str, *requirements: str,
             unpinned: Collection[str] = ()) -> Path:
    """The interpreter that has what `requirements` asks the index for.

    `name` is that of the side; `unpinned` are distributions of which it needs
    another version than the one in ``buildout.cfg``.
    """
    return _environment(
        name, list(requirements), _digest(map(str.encode, requirements)),
        unpinned)


def ours(*more: str) -> Path:
    """The interpreter that has a copy of this checkout, as it is now.

    With `more` distributions, it is another one.
    """
    files = sorted(
        path for name in _SOURCES
        for path in [CHECKOUT / name, *(CHECKOUT / name).rglob('*')]
        if path.is_file() and '__pycache__' not in path.parts)
    digest = _digest(path.read_bytes() for path in files)
    copy = HOME / 'checkout'  # as a build leaves its traces beside setup.py
    shutil.rmtree(copy, ignore_errors=True)
    for path in files:
        target = copy / path.relative_to(CHECKOUT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return _environment('-'.join(('ours', *more)),
                        [os.fspath(copy), *more], digest)


def packages(python: Path) -> Path:
    """The directory that has the packages of an interpreter."""
    return Path(subprocess.run(
        [python, '-c', _PACKAGES], env=clean_environ(), check=True,
        capture_output=True, text=True).stdout.strip())


def versions(python: Path) -> Mapping[str, str]:
    """The distributions that an interpreter finds, and their versions."""
    output = subprocess.run(
        [python, '-c', _VERSIONS], env=clean_environ(), check=True,
        capture_output=True, text=True).stdout
    found: dict[str, str] = json.loads(output)
    return found


def differences(one: Path, other: Path) -> list[str]:
    """What both have in different versions, but for the project itself."""
    first, second = versions(one), versions(other)
    return [f'{name} {first[name]} and {second[name]}'
            for name in sorted(first.keys() & second.keys())
            if first[name] != second[name]
            and name not in {'gocept.runner', *_BUILD_TOOLS}]


def heading(one: Path, *others: Path, names: Iterable[str]) -> str:
    """What the figures depend on; `names` is of distributions that do."""
    found: dict[str, str] = {}
    for python in (one, *others):
        found |= versions(python)
    lines = [
        f'Python {platform.python_version()}, '
        + ''.join(f'{name} {found[name]}, ' for name in names) +
        f'{platform.system()} {platform.machine()}, '
        f'{os.cpu_count()} processors',
        'median (least-most) [measured earlier, on another machine];',
        'a ratio is the median of the ratios of the rounds']
    lines += [f'Beware, not the same on all sides: {difference}'
              for other in others for difference in differences(one, other)]
    return '\n'.join([*lines, ''])


def _environment(name: str, wanted: list[str], digest: str,
                 unpinned: Collection[str] = ()) -> Path:
    home = HOME / name
    python = home / 'bin' / 'python'
    stamp = home / 'bench-digest'
    pins = _pins(unpinned)
    digest = _digest([digest.encode(), pins.encode(), sys.version.encode()])
    if stamp.is_file() and stamp.read_text() == digest:
        return python
    print(f'building the environment {name} ...', file=sys.stderr)
    home.mkdir(parents=True, exist_ok=True)
    constraints = home / 'constraints.txt'
    constraints.write_text(pins)
    stamp.unlink(missing_ok=True)
    if not python.is_file():
        run(sys.executable, '-m', 'venv', home)
    run(python, '-m', 'pip', 'install', '--upgrade', '--upgrade-strategy',
         'only-if-needed', '--constraint', constraints, *wanted)
    stamp.write_text(digest)
    return python


def _pins(unpinned: Collection[str]) -> str:
    parser = configparser.RawConfigParser()
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(CHECKOUT / 'buildout.cfg')
    return ''.join(
        f'{name}=={version}\n'
        for name, version in sorted(parser['versions'].items())
        if name not in _BUILD_TOOLS and name not in unpinned)


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()
