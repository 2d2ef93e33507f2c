"""The tests. Their workers keep no state in the home of the user."""

import os

_MARKER = 'GOCEPT_RUNNER_TESTS'
"""A variable that programs of tests have: a test may have given them a state
home of its own."""


def _have_state_home() -> None:
    """Have a state home of this run, for its children, too."""
    # This module is imported by programs of tests as well, which have the
    # environment of the run, and have to be quick.
    if _MARKER in os.environ:
        return
    import atexit
    import shutil
    import tempfile
    directory = tempfile.mkdtemp(prefix='gocept.runner.tests.')
    os.environ[_MARKER], os.environ['XDG_STATE_HOME'] = 'true', directory
    ours = os.getpid()

    def remove() -> None:
        if os.getpid() == ours:  # and not a fork of it
            shutil.rmtree(directory, ignore_errors=True)
    atexit.register(remove)


_have_state_home()
