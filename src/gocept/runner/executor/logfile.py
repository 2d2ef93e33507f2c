"""The file that the output of a child is appended to.

It is written by threads that others rely on. So nothing here waits, and what
cannot be written is counted and given up.
"""

import contextlib
import os

from gocept.runner.process.launch import open_stream


class LogFile:
    """Appends to the file of that name, also when another one gets the name.

    OSError if it cannot be opened at first. Later it is opened again by each
    `write` that finds it closed, moved or removed. One thread writes at a
    time.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.abspath(path)
        self.lost = 0
        """The number of bytes since the last one that was written."""
        self._fd = open_stream(self.path)

    def write(self, data: bytes) -> str:
        """Append `data`; returns what is to be logged, mostly ''."""
        lost = self.lost
        notice = b'\n[%d bytes were not written]\n' % lost if lost else b''
        rest = memoryview(notice + data)
        try:
            self._reopen()
            while rest:
                rest = rest[os.write(self._fd, rest):]
        except OSError as error:
            self._close()
            self.lost = (len(rest) if len(rest) <= len(data)
                         else lost + len(data))
            return '' if lost else (
                f'The output is not written to {self.path} any more: {error}; '
                'trying again with each piece of it')
        self.lost = 0
        return (f'The output is written to {self.path} again; {lost} bytes '
                'are lost' if lost else '')

    def close(self) -> str:
        """Close it; returns what is to be logged, mostly ''."""
        self._close()
        lost, self.lost = self.lost, 0
        return (f'{lost} bytes of the output could not be written to '
                f'{self.path}' if lost else '')

    def _reopen(self) -> None:
        """Open what has the name now."""
        if self._fd >= 0:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(self.path), os.fstat(self._fd)):
                    return
            self._close()
        self._fd = open_stream(self.path)

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
