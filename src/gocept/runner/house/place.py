"""The directory of a house, in which there is one `up` at a time."""

import contextlib
import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator

from gocept.runner import errors
from gocept.runner.cli.mistakes import UserError
from gocept.runner.house import record
from gocept.runner.operation.directory import VARIABLE
from gocept.runner.waits.statehome import state_home

_LOCK = 'lock'


def directory_of(config: str) -> str:
    """The directory for files of the house of this zope.conf, for this user.

    It is below ``$GOCEPT_RUNNER_RUN_DIR``, or with the user. It need not
    exist. UserError if the user has no home directory.
    """
    path = os.path.realpath(config)
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
    try:
        base = os.environ.get(VARIABLE) or state_home()
    except ValueError as error:
        raise UserError(str(error), errors.CANNOT_LOCK) from error
    return os.path.join(os.path.abspath(base), 'houses', digest)


@contextlib.contextmanager
def occupied(directory: str, config: str) -> Iterator[None]:
    """Be the only `up` in this directory, which is made if need be.

    UserError if there is another one, or if that cannot be known.
    """
    try:
        os.makedirs(os.path.dirname(directory), 0o755, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, 0o700)
        fd = os.open(os.path.join(directory, _LOCK),
                     os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UserError(
            f'the lock in {directory} cannot be made: {error.strerror}; name '
            f'another directory with ${VARIABLE}', errors.CANNOT_LOCK,
        ) from error
    try:
        _lock(fd, directory, config)
        yield
    finally:
        os.close(fd)


def _lock(fd: int, directory: str, config: str) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise UserError(
                f'the lock in {directory} cannot be taken: {error.strerror}',
                errors.CANNOT_LOCK) from error
        found = record.read(directory)
        pid = '' if found is None else f' {found["pid"]}'
        raise UserError(
            f'process{pid} runs the workers of {config} already: "kill{pid}" '
            'ends it, and "gocept-runner reload" has it take new code',
            errors.ALREADY_RUNNING) from error
