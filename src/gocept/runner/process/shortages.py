"""What the system has too little of for a child: no fault of the child."""

import contextlib
import errno
from collections.abc import Iterator

from gocept.runner.errors import ShortageError

SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM}


@contextlib.contextmanager
def shortages() -> Iterator[None]:
    """Raise a ShortageError for what is not the fault of the child.

    What the child reports has a file name, such as that of its program.
    """
    try:
        yield
    except OSError as error:
        if error.errno in SHORTAGES and error.filename is None and (
                not isinstance(error, ShortageError)):
            raise ShortageError(error.errno, error.strerror) from error
        raise
