"""Which contracts the classes of servers fulfil.

It is said here instead of by decorators, since a server that starts in the
background does not import zope.interface, which takes several milliseconds.
"""

import zope.interface

from gocept.runner.background.client_socket import ClientSocket
from gocept.runner.background.server import Server
from gocept.runner.interfaces import IClientSocket, IServer

__all__ = ['ClientSocket', 'Server']

zope.interface.classImplements(ClientSocket, IClientSocket)
zope.interface.classImplements(Server, IServer)
