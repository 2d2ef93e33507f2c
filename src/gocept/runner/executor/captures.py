"""What one child says, on both of its streams."""

import os
from collections.abc import Callable, Iterator

from gocept.runner.executor.capture import Capture, Reader
from gocept.runner.poller import background
from gocept.runner.process import Process


class Captures(dict[str, Capture]):
    """The captures of a child, by the names of its streams; with readers.

    `encoding` and `errors` are those of the readers.
    """

    def __init__(self, encoding: str | None = None,
                 errors: str | None = None) -> None:
        super().__init__()
        self._encoding = encoding
        self._errors = errors
        self.readers: dict[str, Reader] = {}

    def take(self, process: Process, size: int,
             log_file: str | os.PathLike[str] | None) -> None:
        """Capture what is a pipe; see `Capture`."""
        for name, channel in (('stdout', process.channel),
                              ('stderr', process.stderr)):
            if channel is not None and channel.is_readable:
                capture = self[name] = Capture(channel, size, log_file)
                self.readers[name] = Reader(
                    capture, self._encoding, self._errors)

    def begin(self) -> None:
        """Have them read in the background, with all who listen by now."""
        for capture in self.values():
            background().register(capture)

    def read_rest(self) -> None:
        """Read what there is now."""
        for capture in self.values():
            capture.read_rest()

    def skip_to(self, place: Callable[[Capture], tuple[int, bool]]) -> None:
        """Have each reader begin at its place; see `Reader.skip_to`."""
        for name, reader in self.readers.items():
            reader.skip_to(*place(self[name]))

    @property
    def dropped(self) -> int:
        """See `IExecutor`."""
        return sum(each.dropped for each in self.values())

    def tails(self) -> Iterator[str]:
        """How each ends, for a message."""
        self.read_rest()
        for name, capture in self.items():
            tail = capture.tail
            yield (f'its {name} ends with:\n{tail}' if tail
                   else f'its {name} is empty')

    def close(self) -> None:
        """Read what is left, and end it for the readers."""
        for capture in self.values():
            capture.close()
