"""Where this program finds its modules."""

import os
import sys

_OURS = os.path.abspath(os.path.join(__file__, *[os.pardir] * 4))
"""The directory that has this package."""


def module_path() -> list[str]:
    """Our ``sys.path`` for another process, whose directory may be another.

    What is no text in it finds no module, so it is left out.
    """
    known = [path for path in sys.path if isinstance(path, str)]
    # What was installed in editable mode may be found by a hook alone.
    if _OURS not in known:
        known.append(_OURS)
    try:
        here = os.getcwd()
    except FileNotFoundError:  # and what was in it
        return [path for path in known if os.path.isabs(path)]
    return [os.path.normpath(os.path.join(here, path)) for path in known]


def interpreter_flags() -> list[str]:
    """The options of this interpreter, for another process of the program."""
    flags = [f'-X{name}' if value is True else f'-X{name}={value}'
             for name, value in sys._xoptions.items()]
    flags += [f'-W{each}' for each in sys.warnoptions]
    for option, count in (
            ('-B', sys.flags.dont_write_bytecode), ('-O', sys.flags.optimize),
            ('-E', sys.flags.ignore_environment), ('-I', sys.flags.isolated),
            ('-s', sys.flags.no_user_site), ('-b', sys.flags.bytes_warning)):
        flags += [option] * int(count)
    return flags
