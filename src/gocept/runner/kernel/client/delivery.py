"""What a transaction has read from a watcher, as its journal knows it."""

from gocept.runner.channel.journal import Delivery
from gocept.runner.kernel.client.reading import Reading


class ReadDelivery(Delivery):
    """One read; at a commit the journal calls `consume_end` for each."""

    __slots__ = ('reading',)

    def __init__(self, reading: Reading) -> None:
        super().__init__(b'', is_end=True)
        self.reading = reading
