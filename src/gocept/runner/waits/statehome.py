"""Where programs of a user keep what they have to find again."""

import os.path


def state_home() -> str:
    """The directory for the state of this user's programs.

    It need not exist. ValueError if the user has no home directory, and
    ``$XDG_STATE_HOME`` names none; see the XDG Base Directory Specification.
    """
    path = os.environ.get('XDG_STATE_HOME', '')
    if not os.path.isabs(path):  # then it is to be ignored
        path = os.path.expanduser('~/.local/state')
    if not os.path.isabs(path):
        raise ValueError('this user has no home directory: set '
                         '$XDG_STATE_HOME to an absolute path')
    return os.path.join(path, 'gocept.runner')
