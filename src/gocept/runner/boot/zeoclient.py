"""The client of the ZEO server that serves a FileStorage."""

import contextlib
import logging
import os

from ZEO.ClientStorage import ClientStorage

from gocept.runner.boot import claim
from gocept.runner.logs import Log
from gocept.runner.waits.unixpath import short_address

log = Log('gocept.runner.environment')

_PATIENCE = 10
"""Seconds in which a server that was killed is to come again, or else what a
worker does fails, and is tried again later."""


class ServedStorage(ClientStorage):  # type: ignore[misc]
    """In the place of a FileStorage, which a server has open.

    The cache is a temporary file. Blobs are those of the server.
    """

    def __init__(self, path: str, blob_dir: str | None, read_only: bool,
                 ) -> None:
        """Raises ClientDisconnected if the server does not answer."""
        self.path = path
        with contextlib.ExitStack() as undo:
            _quieten(undo)
            address = undo.enter_context(
                short_address(claim.socket_of(path)))
            super().__init__(
                address, name=path, wait_timeout=_PATIENCE,
                read_only=read_only, blob_dir=blob_dir,
                shared_blob_dir=blob_dir is not None,
                client_label=f'process {os.getpid()}')
            # It connects again by the same address.
            self._undo = undo.pop_all()

    def getName(self) -> str:
        """The path of the file, as with a FileStorage."""
        return self.path

    def sortKey(self) -> str:
        """What tells it from the other storages of a transaction.

        All clients lock storages in the order of this key. Addresses that were
        shortened could be the same, or be sorted differently elsewhere.
        """
        super().sortKey()  # which raises ClientDisconnected
        return f'zeo:{self.path}'

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody serves the file any more.

        As long as there is a claim, the server comes again.
        """
        return not self.is_connected() and claim.holder(self.path) is None

    def notify_connected(self, conn: object, info: object) -> None:
        """Called by ZEO, in the thread of the network."""
        is_back = self._connection_generation > 0
        super().notify_connected(conn, info)
        if is_back:
            log.info('The ZEO server of %s is there again', self.path)

    def notify_disconnected(self) -> None:
        """Called by ZEO, in the thread of the network."""
        super().notify_disconnected()
        log.warning('The ZEO server of %s is gone: waiting for the next one',
                    self.path)

    def tpc_begin(self, txn: object, *args: object, **keywords: object,
                  ) -> None:
        """See `IStorage`; waits for a server that is started again."""
        if not self.is_connected():
            self._wait()
        super().tpc_begin(txn, *args, **keywords)

    def close(self) -> None:
        """See `IStorage`."""
        try:
            super().close()
        finally:
            self._undo.close()




def _quieten(undo: contextlib.ExitStack) -> None:
    """Have ZEO tell what is wrong, but not each step of each connection.

    Unless somebody has said what it is to tell.
    """
    logger = logging.getLogger('ZEO')
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.WARNING)
        undo.callback(logger.setLevel, logging.NOTSET)
