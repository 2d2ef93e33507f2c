"""What a kernel is started with."""

import os
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple, Self, cast


class Options(NamedTuple):
    """The settings of one kernel; they outlive its daemons and upgrades.

    As JSON, they pass from the command that starts a kernel to the keeper, and
    from there to other releases. So each field has a default, and a field that
    is not known is left out.
    """

    address: int | str = 20202
    """A port of 127.0.0.1, or the absolute path of a Unix socket."""

    python: str = ''
    """The interpreter."""

    path: tuple[str, ...] = ()
    """``sys.path`` of the code."""

    foreground: bool = False
    """Whether the process that was started stays, and becomes the keeper."""

    log: str = ''
    """The absolute path of a log file; '': none, or standard error in the
    foreground."""

    allow_users: tuple[int, ...] = ()
    """Other users who may talk to the daemon, by number: to ask for the number
    of a name may take long, so the command does that."""

    limits: Mapping[str, int] = {}
    """What differs from the defaults of `limits.Limits`, by name."""

    open_files: tuple[int, int] = (0, 0)
    """The soft and the hard limit of open files, as they were before the
    kernel has raised its own; children get them."""

    file_size: tuple[int, int] = (-1, -1)
    """The same of the size of files: buffers are files in memory."""

    @classmethod
    def from_json(cls, fields: Mapping[str, object]) -> Self:
        """What `to_json` of this release or another one returned."""
        known: Any = {name: tuple(value) if isinstance(value, list) else value
                 for name, value in fields.items() if name in cls._fields}
        return cls(**known)

    def to_json(self) -> dict[str, object]:
        """The fields by name."""
        return cast(dict[str, object], self._asdict())

    def describe(self) -> str:
        """The address, for messages."""
        return (self.address if isinstance(self.address, str)
                else f'port {self.address}')

    def command(self, *arguments: str) -> list[str]:
        """The command that runs `start.py` of this release.

        File names are UTF-8, whatever the locale says.
        """
        return [self.python or sys.executable, '-I', '-S', '-X', 'utf8',
                self.script, *arguments]

    @property
    def script(self) -> str:
        """Where `start.py` is, on this path; '' if nowhere."""
        for directory in self.path:
            file = os.path.join(
                directory, 'gocept', 'runner', 'kernel', 'start.py')
            if os.path.isfile(file):
                return file
        return ''
