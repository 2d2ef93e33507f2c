"""The libraries that have channels, in one process, and a child to talk to.

The first argument of each script that uses this is the directory that has the
peer. What was received is compared with what was sent, on each side, outside
of the time that is taken.
"""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

from gocept.runner.channel import PipeChannel
from gocept.runner.poller import Poller
from gocept.runner.process import Process

PATIENCE = 10.0
"""Seconds in which something has to come."""


class Mismatch(Exception):
    """Raised when a side did not deliver what was sent."""


def expect(found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """What a wait returned; an error if that is nothing."""
    if not found:
        raise Mismatch(f'nothing for {PATIENCE} s')
    return found


class Library(NamedTuple):
    """What both are called alike."""

    make_poller: Callable[[], Any]
    make_channel: Callable[..., Any]
    cat: Callable[[], Any]
    """A context of a poller and a channel to a child that sends it back."""

    @contextmanager
    def polled(self, faucet: int, **options: Any) -> Iterator[Any]:
        """A poller, and the channel in it; the channel owns `faucet`."""
        poller = self.make_poller()
        with closing(self.make_channel(faucet, **options)) as channel:
            poller.register(channel)
            try:
                yield poller, channel
            finally:
                if isinstance(poller, Poller):  # the peer's has no end
                    poller.close()


def libraries() -> dict[str, Library]:
    """The peer and ours."""
    sys.path.append(sys.argv[1])
    channels = importlib.import_module('channels')
    poller = importlib.import_module('channels.poller')

    @contextmanager
    def peer_cat() -> Iterator[tuple[Any, Any]]:
        with (raw_cat() as (sink, faucet),
              closing(channels.PipeChannel(
                  os.dup(faucet), os.dup(sink))) as channel):
            peer = poller.Poller()
            peer.register(channel)
            yield peer, channel

    return {
        'peer': Library(poller.Poller, channels.PipeChannel, peer_cat),
        'ours': Library(Poller, PipeChannel, our_cat)}


@contextmanager
def our_cat() -> Iterator[tuple[Any, Any]]:
    with (Poller() as poller,
          Process(['cat'], stdin='pipe', stdout='pipe',
                  poller=poller) as process):
        channel: Any = process.channel
        poller.register(channel)
        yield poller, channel
        channel.close()
        if process.wait(PATIENCE):
            raise Mismatch(f'cat ended with {process.returncode}')


@contextmanager
def raw_cat() -> Iterator[tuple[int, int]]:
    """The descriptors to write to a child and to read it back."""
    with subprocess.Popen(
            ['cat'], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            bufsize=0) as child:
        assert child.stdin is not None and child.stdout is not None
        try:
            yield child.stdin.fileno(), child.stdout.fileno()
        except BaseException:
            child.kill()
            raise
