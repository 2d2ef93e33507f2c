"""A descriptor that is readable when another one is, or when we say so."""

import contextlib
import os
import select

from gocept.runner.waits.standard import fill_standard


class Readable:
    """Its own descriptor stays the same when the other one is replaced.

    So several sources can wait for one connection, and for the next one when
    that is lost. Linux only.
    """

    def __init__(self) -> None:
        fill_standard()
        self._epoll = select.epoll()
        self._event = -1
        self._is_raised = False

    def fileno(self) -> int:
        """The descriptor; -1 when it is closed."""
        return -1 if self._epoll.closed else self._epoll.fileno()

    def follow(self, fd: int) -> None:
        """Be readable when `fd` is. One that is followed may come again."""
        with contextlib.suppress(FileExistsError):
            self._epoll.register(fd, select.EPOLLIN)

    def say(self, is_readable: bool) -> None:
        """Be readable, whatever the other one is; or only when that is."""
        if is_readable == self._is_raised or self._epoll.closed:
            return
        self._is_raised = is_readable
        if self._event < 0:
            self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self._epoll.register(self._event, select.EPOLLIN)
        if is_readable:
            os.eventfd_write(self._event, 1)
        else:
            os.eventfd_read(self._event)

    def close(self) -> None:
        """Close it. Again does nothing."""
        self._epoll.close()
        if self._event >= 0:
            event, self._event = self._event, -1
            os.close(event)
