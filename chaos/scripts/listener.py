"""A child of a kernel that tells its number to all who connect.

usage: listener.py FILENO...
"""

import os
import select
import socket
import sys


def main() -> None:
    servers = [socket.socket(fileno=int(each)) for each in sys.argv[1:]]
    while True:
        for server in select.select(servers, [], [])[0]:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b'%d' % os.getpid())


if __name__ == '__main__':
    main()
