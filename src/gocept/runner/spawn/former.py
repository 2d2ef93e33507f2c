"""The channels of processes that ran before under an alias.

They are closed with the next restart, but for those from which somebody is
still to fetch.
"""

from collections.abc import Collection

from gocept.runner.channel import (
    Channel,
    SocketChannel,
    TransactionalChannel,
)


class Former:
    """Channels as users have them, with the lock of the instance held."""

    def __init__(self) -> None:
        self._all: list[Channel] = []
        # Of these, those that belong to the types of the applications.
        self._main: list[Channel] = []
        # Of these, those that lived in a kernel: their rest was not read yet.
        self._unread: list[Channel] = []

    def add(self, channels: Collection[Channel], main: Channel | None,
            in_kernel: bool = False) -> None:
        """Another process has taken the place of theirs."""
        self._all += channels
        if main is not None:
            self._main.append(main)
            if in_kernel:
                self._unread.append(main)

    def take_done(self) -> list[Channel]:
        """Forget those that nobody needs; returns them."""
        self._unread = [each for each in self._unread if is_unread(each)]
        done = [each for each in self._all
                if each not in self._unread and not is_held(each)]
        self._all = [each for each in self._all if each not in done]
        self._main = [each for each in self._main if each in self._all]
        return done

    def take_read(self) -> list[Channel]:
        """Forget those of a kernel that are read, with their ends.

        Nobody fetches the end of one that no poller has: users get the next
        channel as soon as nothing is left to read.
        """
        done = [each for each in self._unread if not (
            each.is_watched or is_held(each) or is_unread(each)
            or is_connection(each))]
        self._unread, self._main, self._all = (
            [each for each in channels if each not in done]
            for channels in (self._unread, self._main, self._all))
        return done

    def take_all(self) -> list[Channel]:
        """Forget all; returns them."""
        channels, self._all = self._all, []
        self._main, self._unread = [], []
        return channels

    def keep_replaced(self, channel: Channel) -> bool:
        """A connection that was replaced; False if nobody needs it."""
        if is_held(channel):
            self._all.append(channel)
            return True
        self._main = [each for each in self._main if each is not channel]
        return False

    def write_to(self, channel: Channel | None) -> None:
        """Have what is written to those of a kernel go to this one."""
        if channel is not None:
            for each in self._unread:
                each.take_sink(channel)

    def find_unread(self) -> Channel | None:
        """The first from which somebody has to fetch, and no poller will."""
        return next((each for each in self._main if (
            isinstance(each, TransactionalChannel) and each.is_forgotten) or (
                each in self._unread and not each.is_watched
                and each.has_more)), None)


def is_unread(channel: Channel) -> bool:
    """Whether it has something that was not read, or not committed."""
    return channel.is_undecided or channel.has_more


def is_connection(channel: Channel) -> bool:
    """Whether it is no stream of a process, so that no kernel keeps it."""
    return any(isinstance(each, SocketChannel) for each in channel.layers())


def is_held(channel: Channel) -> bool:
    """Whether its lines are still to come, for a worker that counts on it."""
    return isinstance(channel, TransactionalChannel) and channel.is_held
