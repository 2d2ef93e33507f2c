"""How much a server keeps for its clients, and for those who are none yet."""

from typing import NamedTuple

from gocept.runner.logs import Log
from gocept.runner.waits.deadline import Deadline
from gocept.runner.waits.forks import Lock

GIB = 2 ** 30

_SILENCE = 60.0


class Limits(NamedTuple):
    """Whoever passes one of them is refused; the others are served."""

    max_message: int = GIB
    """Bytes of a request or of an answer."""
    queue_size: int = 1000
    """Requests that wait for their turn."""
    queue_bytes: int = 2 * GIB
    """Bytes of all requests that wait or are half received, and of all answers
    that were not sent yet."""
    connections: int = 1000
    """Clients that are connected at once."""
    strangers: int = 64
    """Peers at once that have not proved yet that they know the token."""
    patience: float = 5.0
    """Seconds that a stranger has to prove it."""


class Account:
    """The bytes that are kept for all clients. Any thread may count."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.total = 0
        self._lock = Lock()

    def add(self, size: int) -> None:
        """So many bytes more are kept, or less if `size` is negative."""
        with self._lock:
            self.total += size

    def has_room(self, size: int = 0) -> bool:
        """Whether so many bytes more may be kept."""
        return self.total + size <= self.limit


class Complaints:
    """Lines in the log on peers, who must not be able to fill it.

    Of each kind there is one line a minute at most. It says how many there
    were.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._kinds: dict[str, tuple[Deadline, int]] = {}

    def warn(self, kind: str, *args: object) -> None:
        """Log `kind`, in which `args` are filled in as `logging` does it."""
        next_word, count = self._kinds.get(kind, (Deadline(0), 0))
        count += 1
        if next_word.passed:
            next_word = Deadline(_SILENCE)
            self._log.warning(f'{kind} (%d since the start)', *args, count)
        self._kinds[kind] = next_word, count
