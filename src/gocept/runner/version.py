"""The version of this package."""

import os
from collections.abc import Iterator


def version() -> str:
    """The version of the installed distribution."""
    for path in _metadata():
        with open(path, encoding='utf-8') as file:
            for line in file:
                if line.startswith('Version: '):
                    return line.removeprefix('Version: ').strip()
    # Elsewhere on the path; to import this, and to look, takes its time.
    import importlib.metadata
    try:
        return importlib.metadata.version('gocept.runner')
    except importlib.metadata.PackageNotFoundError:  # run from a checkout
        return 'of no installed distribution'


def _metadata() -> Iterator[str]:
    """The files with the version, as far as they are beside the package."""
    beside = os.path.abspath(os.path.join(__file__, *[os.pardir] * 3))
    names = os.listdir(beside) if os.path.isdir(beside) else ()
    for name in names:
        if name == 'EGG-INFO' or (
                name.replace('.', '_').startswith('gocept_runner')
                and name.endswith(('.dist-info', '.egg-info'))):
            for file in 'METADATA', 'PKG-INFO':
                path = os.path.join(beside, name, file)
                if os.path.isfile(path):
                    yield path
