"""What a watcher has got of processes, and how far it has come with each."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, NotRequired, TypedDict

from gocept.runner.kernel.client.transport import Batch
from gocept.runner.kernel.wire.frames import OutRecord

Position = Sequence[str | int]
"""See `Place`; of a JSON file it is a list, and may lack the third item."""


class ProcessOutput(NamedTuple):
    """What a process has written, or its end."""

    name: str
    timestamp: float
    """When the kernel has read it; seconds since 1970."""
    data: bytes | int | None
    """The bytes; or the status, None if nobody knows."""


Output = tuple[list[ProcessOutput], list[ProcessOutput], list[ProcessOutput]]
"""What was written to standard output, to standard error, and the ends."""


class Place(NamedTuple):
    """How far something has come with a process."""

    life: str
    offset: int = 0
    ended: bool = False


Places = dict[str, Place]


class Begun(TypedDict):
    """The answer to the request of a watch."""

    processes: dict[str, str]
    """Their lives by their names; empty if an old kernel has answered."""
    count: NotRequired[int]
    """How many there are, if an old kernel has answered."""


class Reading(NamedTuple):
    """What one read has returned."""

    output: Output
    missing: dict[str, int]
    before: Places
    after: Places


def records_of(batch: Batch, received: Places, missing: dict[str, int],
               is_exact: bool) -> Iterator[OutRecord]:
    """The records, or parts of them, that did not come before.

    They are added to `received`, and what was dropped to `missing`. A batch
    that `is_exact` has processes that are known only.
    """
    for name, count in batch.missing.items():
        missing[name] = missing.get(name, 0) + count
    for record in batch.records:
        name = record.name
        place = received.get(name)
        if place is None:
            if is_exact:
                continue
            place = Place(record.life)
        if place.life != record.life or place.ended:
            continue
        if record.kind == 'closed':
            received[name] = place._replace(ended=True)
            yield record
            continue
        size = len(record.data)
        new = size if record.offset < 0 else record.offset - place.offset
        if new <= 0:
            continue
        if new < size:
            record = record._replace(data=record.data[-new:])
        received[name] = Place(place.life, place.offset + new)
        yield record
