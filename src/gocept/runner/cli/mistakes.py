"""The mistake of a user: it ends a command with one line and a status."""

import sys
from collections.abc import Callable, Iterable

from gocept.runner import errors


class UserError(Exception):
    """Ends the program with one line and a status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def meant(word: str, names: Iterable[str]) -> str:
    """A question for the name that was misspelled, or ''."""
    import difflib  # no need for it where all is well
    found = difflib.get_close_matches(word, [*names], 1, 0.7)
    return f'did you mean {found[0]}?' if found else ''


def guarded(prog: str, call: Callable[[], int]) -> int:
    """Call it; a mistake of the user becomes one line and a status."""
    try:
        return call()
    except UserError as error:
        print(f'{prog}: error: {error}', file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print(f'{prog}: interrupted', file=sys.stderr)
        return errors.INTERRUPTED
