"""The tests. Their workers keep no state in the home of the user."""

import os

_PREFIX = 'gocept.runner.tests.'


def _have_state_home() -> None:
    """Have a state home of this run, for its children, too."""
    # This module is imported by programs of tests as well, which have the
    # environment of the run, and have to be quick.
    name = os.path.basename(os.environ.get('XDG_STATE_HOME', ''))
    if name.startswith(_PREFIX):
        return
    import atexit
    import shutil
    import tempfile
    directory = tempfile.mkdtemp(prefix=_PREFIX)
    os.environ['XDG_STATE_HOME'] = directory
    ours = os.getpid()

    def remove() -> None:
        if os.getpid() == ours:  # and not a fork of it
            shutil.rmtree(directory, ignore_errors=True)
    atexit.register(remove)


_have_state_home()
