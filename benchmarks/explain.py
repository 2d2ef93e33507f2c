"""Where the time of a start goes: its steps, and the packages it imports.

The steps are those of ``children/phases.py``, which imports in an order that
tells the packages apart; so their sum is a start. The import times are those
of ``python -X importtime``, which itself makes imports slower.
"""

import json
import re
import subprocess
import time
from collections import Counter
from pathlib import Path
from statistics import median

from benchmarks.environments import clean_environ

_IMPORT = re.compile(r'import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)')

PACKAGES = 20
"""How many packages are shown."""


def explain(python: Path, children: Path, home: Path, runs: int) -> str:
    """A table of the steps, and one of the packages."""
    lines = []
    for title, conf in [('the built-in ZCML', home / 'builtin.conf'),
                        ('the ZCML that 3.0 needs', home / 'zope.conf')]:
        lines += ['', f'steps of a start with {title}, ms']
        lines += steps(python, children / 'phases.py', conf, runs)
    lines += ['', 'imports with the built-in ZCML, ms (all are slower here)']
    lines += imports(python, children / 'start.py', home / 'builtin.conf')
    return '\n'.join(lines)


def steps(python: Path, script: Path, conf: Path, runs: int) -> list[str]:
    """A line for each step: median, and least to most."""
    found: dict[str, list[float]] = {}
    for number in range(runs + 1):
        before = time.monotonic()
        output = subprocess.run(
            [python, script, conf, str(before)], env=clean_environ(),
            check=True, stdout=subprocess.PIPE, text=True).stdout
        if number:  # the first is to warm up
            for step, milliseconds in json.loads(output).items():
                found.setdefault(step, []).append(milliseconds)
    total = sum(map(median, found.values()))
    return [
        f'{median(values):8.1f} ({min(values):.1f}-{max(values):.1f})  {step}'
        for step, values in found.items()] + [f'{total:8.1f}  together']


def imports(python: Path, script: Path, conf: Path) -> list[str]:
    """A line for each package: its own time, and its number of modules."""
    stderr = subprocess.run(
        [python, '-X', 'importtime', script, conf], env=clean_environ(),
        check=True, capture_output=True, text=True).stderr
    spent: Counter[str] = Counter()
    modules: Counter[str] = Counter()
    for microseconds, name in _IMPORT.findall(stderr):
        package = _package(name)
        spent[package] += int(microseconds)
        modules[package] += 1
    return [
        f'{spent[package] / 1000:8.1f}  {package} ({modules[package]})'
        for package, _ in spent.most_common(PACKAGES)
    ] + [f'{spent.total() / 1000:8.1f}  together ({modules.total()})']


def _package(name: str) -> str:
    first, *others = name.split('.')
    if first in {'gocept', 'zope'} and others:
        return f'{first}.{others[0]}'
    return first
