"""What the workers of a house do: say when they do it."""

import time


def tick() -> None:
    """The clock on the wall, as the instant when one is due is by it."""
    print(time.time(), flush=True)
