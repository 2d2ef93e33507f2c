"""Servers that run Python tasks for clients, on this machine or another.

The names are handed out lazily: a client runs where a server cannot, and
imports no server.
"""

from typing import TYPE_CHECKING

from gocept.runner.waits.lazy import handing_out

if TYPE_CHECKING:
    from gocept.runner.background.calls import execute, initialize, terminate
    from gocept.runner.background.client import Client
    from gocept.runner.background.client_socket import ClientSocket, respond
    from gocept.runner.background.server import Server
    from gocept.runner.background.tokens import token_create
    from gocept.runner.errors import (
        BackgroundError,
        BackgroundTimeout,
        ConnectionLost,
        NobodyListens,
        NoResponse,
        NotDecoded,
        NotInitialized,
        ProtocolError,
        RemoteTaskError,
        ServerBusy,
        ServerInsecure,
        ServerNotRunning,
        ServerNotStarted,
        ServerOccupied,
        ServerRefused,
        VersionMismatch,
    )

__all__ = [
    'BackgroundError',
    'BackgroundTimeout',
    'Client',
    'ClientSocket',
    'ConnectionLost',
    'NoResponse',
    'NobodyListens',
    'NotDecoded',
    'NotInitialized',
    'ProtocolError',
    'RemoteTaskError',
    'Server',
    'ServerBusy',
    'ServerInsecure',
    'ServerNotRunning',
    'ServerNotStarted',
    'ServerOccupied',
    'ServerRefused',
    'VersionMismatch',
    'execute',
    'initialize',
    'respond',
    'terminate',
    'token_create',
]

__getattr__, __dir__ = handing_out(__name__, {
    **dict.fromkeys((
        'BackgroundError', 'BackgroundTimeout', 'ConnectionLost',
        'NoResponse', 'NobodyListens', 'NotDecoded', 'NotInitialized',
        'ProtocolError', 'RemoteTaskError', 'ServerBusy', 'ServerInsecure',
        'ServerNotRunning', 'ServerNotStarted', 'ServerOccupied',
        'ServerRefused', 'VersionMismatch'),
        'gocept.runner.errors'),
    'token_create': f'{__name__}.tokens',
    **dict.fromkeys(('execute', 'initialize', 'terminate'),
                    f'{__name__}.calls'),
    'Client': f'{__name__}.client',
    **dict.fromkeys(('ClientSocket', 'respond'), f'{__name__}.client_socket'),
    'Server': f'{__name__}.contracts',
})
