"""A storage as a ZEO server serves it, and the clients of the server.

Where ZEO 6.2 itself leaves a commit in the way of all others, this does not:

* A client that is cut off has left: its transaction is aborted, and it holds
  the lock of the commits no more. ZEO closes the connection of a client whose
  commit takes too long, but keeps the lock for it.
* A commit whose conflicts are not resolved after as many votes as the client
  sends is a conflict. ZEO's client would go on to finish it.
"""

import asyncio
import os
import socket
import struct
from collections.abc import Callable, Sequence

from ZEO.asyncio.server import ServerProtocol
from ZEO.StorageServer import StorageServer, ZEOStorage
from ZODB.interfaces import IStorage
from ZODB.POSException import ConflictError

from gocept.runner.process import procfs

_VOTES = 9
"""How often a client votes at most, as it resolves conflicts; see `tpc_vote`
of ZEO.ClientStorage."""

_INVALIDATIONS = 1000
"""Transactions of which a client that connects again is told the changes. One
that has missed more forgets its cache."""

_CREDENTIALS = struct.Struct('3i')  # see SO_PEERCRED in unix(7)


class Client(ZEOStorage):  # type: ignore[misc]
    """What one client does with the storage."""

    server: 'ServedStorage'

    is_tenant = False
    """Whether `up`, which has started this server, has started it as well."""

    _votes = 0
    """How often it has voted for its transaction, and met conflicts."""

    def register(self, storage_id: str, read_only: bool) -> bytes:
        self.is_tenant = _descends(self.connection.pid, self.server.house)
        tid: bytes = super().register(storage_id, read_only)
        return tid

    def tpc_begin(self, *args: object, **keywords: object) -> None:
        self._votes = 0
        super().tpc_begin(*args, **keywords)

    def _vote(self, delay: object = None) -> Sequence[object] | None:
        answer: Sequence[object] | None = super()._vote(delay)
        if self.transaction is None or not self.conflicts:
            return answer
        self._votes += 1
        if self._votes < _VOTES:
            return answer
        conflict = next(iter(self.conflicts.values()))
        self._clear_transaction()
        self.stats.conflicts += 1
        raise ConflictError(oid=conflict['oid'], serials=conflict['serials'])

    def _clear_transaction(self) -> None:
        super()._clear_transaction()
        self.server.changed()

    def notify_disconnected(self) -> None:
        super().notify_disconnected()
        self.server.changed()


class Connection(ServerProtocol):  # type: ignore[misc]
    """The connection to a client."""

    zeo_storage: Client | None

    def close(self) -> None:
        """Close it; the client has left."""
        client = self.zeo_storage
        super().close()
        # Else ZEO tells the client's storage only what the client itself does.
        if client is not None and client.connected:
            client.notify_disconnected()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone, which is no error, however it has done so."""
        super().connection_lost(None)

    def cut(self) -> None:
        """Close it, and do not send what the client has not read yet."""
        transport = self.sm_protocol and self.sm_protocol.transport
        self.close()
        if transport is not None:
            transport.abort()

    @property
    def pid(self) -> int:
        """The process of the client; 0 if that cannot be known."""
        transport = self.sm_protocol and self.sm_protocol.transport
        sock = transport and transport.get_extra_info('socket')
        if sock is None:
            return 0
        pid, _, _ = _CREDENTIALS.unpack(sock.getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        return int(pid)


class ServedStorage(StorageServer):  # type: ignore[misc]
    """One storage, its clients, and the socket where these connect.

    All of it happens in the thread of the loop, but for packing.
    """

    def __init__(self, name: str, storage: IStorage, timeout: float,
                 loop: asyncio.AbstractEventLoop,
                 changed: Callable[[], object]) -> None:
        """`changed` is called when a client has left or ended a transaction.

        A client whose commit takes longer than `timeout` seconds is cut off.
        """
        self.name = name
        self.changed = changed
        self._loop = loop
        self.house = os.getppid()
        """The process of `up`."""
        self._listener: asyncio.Server | None = None
        super().__init__(
            None, {'1': storage}, invalidation_queue_size=_INVALIDATIONS,
            transaction_timeout=timeout, client_conflict_resolution=True)

    @property
    def storage(self) -> IStorage:
        """What is served."""
        return self.storages['1']

    @property
    def _clients(self) -> Sequence[Client]:
        return tuple(self.zeo_storages_by_storage_id['1'])

    @property
    def commits(self) -> bool:
        """Whether a client has voted for what it is about to finish."""
        return self.lock_managers['1'].locked is not None

    @property
    def has_tenants(self) -> bool:
        """Whether one of the clients is a worker of the house."""
        return any(client.is_tenant for client in self._clients)

    @property
    def is_packed(self) -> bool:
        """Whether a thread packs the storage now."""
        return bool(self.storage._pack_is_in_progress)

    def create_client_handler(self) -> Client:
        return Client(self, self.read_only)

    def listen(self, sock: socket.socket) -> None:
        """Let clients connect to a socket that is bound."""
        self._listener = self._loop.run_until_complete(
            self._loop.create_unix_server(
                lambda: Connection(self._loop, self.name,
                                   self.create_client_handler(), False),
                sock=sock))

    def refuse(self) -> None:
        """Let no more clients connect."""
        if self._listener is not None:
            self._listener.close()

    def close(self) -> None:
        """Cut the clients off, and close the storage."""
        self.refuse()
        for client in self._clients:
            client.connection.cut()
        self.storage.close()


def _descends(pid: int, ancestor: int) -> bool:
    """Whether a process descends from another one."""
    seen = {0, 1}
    while pid not in seen:
        if pid == ancestor:
            return True
        seen.add(pid)
        pid = procfs.look(pid).parent
    return False
