"""Directories of the user, below which programs keep what is theirs.

Imports neither Zope nor the ZODB.
"""

import os.path

from gocept.runner.waits.statehome import state_home

VARIABLE = 'GOCEPT_RUNNER_RUN_DIR'
"""The environment variable with the directory of states."""

_REGISTERED = 'workers'


def register(path: str) -> None:
    """Have `registered` return `path`: a directory of states, or a state.

    OSError if that fails, and ValueError as for `state_home`.
    """
    import hashlib  # programs do this, and commands that start fast do not
    directory = os.path.join(state_home(), _REGISTERED)
    link = os.path.join(
        directory, hashlib.sha256(os.fsencode(path)).hexdigest()[:16])
    if not os.path.islink(link):
        os.makedirs(directory, 0o700, exist_ok=True)
        forget_missing()
        # Whole or not at all, unlike a file with text.
        os.symlink(path, link)


def registered() -> list[str]:
    """What programs of this user have registered, and what is there."""
    return sorted(path for _, path in _links() if os.path.exists(path))


def forget_missing() -> None:
    """Remove what is registered and not there any more."""
    import contextlib  # as above
    for link, path in _links():
        if not os.path.lexists(path):
            with contextlib.suppress(OSError):
                os.unlink(link)


def _links() -> list[tuple[str, str]]:
    try:
        directory = os.path.join(state_home(), _REGISTERED)
        return [(entry.path, os.readlink(entry.path))
                for entry in os.scandir(directory) if entry.is_symlink()]
    except (OSError, ValueError):
        return []
