"""Seconds for much data to a server and back, and those of authentication.

usage: large.py PEERS BGPY MEGABYTES ROUNDS

Three lines of samples: there and back, once more with TLS, and what it costs
to authenticate as much. The raw side is a socket; its server has received all
of the data before it sends the data back, as a server has to whose task gets
a value. With TLS, raw is without it. rpyc and bgpy are left out, as they take
minutes.
"""

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from benchmarks.scripts.servers import Client, Mismatch, ours, servers
from benchmarks.turns import in_turns


def timed(client: Client, data: bytes) -> float:
    before = perf_counter()
    answer = client.echo(data)
    seconds = perf_counter() - before
    if answer != data:
        raise Mismatch('other data')
    return seconds


def framed(data: bytes, key: bytes | None) -> float:
    """To make the frames of both directions, and to read them."""
    from gocept.runner.background.frames import EXEC, Opener, Sealer
    seconds = 0.0
    for _ in 'there', 'back':
        sealer, opener = Sealer(key), Opener(key, len(data) + 1000)
        before = perf_counter()
        pieces = sealer.pieces(EXEC, 0, 1, [data])
        messages = [message for piece in pieces
                    for message in opener.feed(piece)]
        seconds += perf_counter() - before
        if len(messages) != 1:
            raise Mismatch(f'{len(messages)} messages')
    return seconds


def authentication(data: bytes) -> float:
    return framed(data, bytes(32)) - framed(data, None)


def certificates(home: Path) -> Any:
    """One that signs itself, for both sides."""
    from gocept.runner.background.tls import TLS
    cert, key = home / 'cert.pem', home / 'key.pem'
    subprocess.run(
        ['openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt',
         'ec_paramgen_curve:prime256v1', '-nodes', '-days', '2',
         '-subj', '/CN=localhost', '-addext',
         'subjectAltName=IP:127.0.0.1,DNS:localhost',
         '-out', cert, '-keyout', key], check=True, capture_output=True)
    return TLS(os.fspath(cert), os.fspath(key), os.fspath(cert))


def main() -> None:
    data = os.urandom(int(sys.argv[3]) * 10**6)
    rounds = int(sys.argv[4])
    with ExitStack() as stack:
        home = Path(stack.enter_context(TemporaryDirectory(prefix='bench')))
        found = stack.enter_context(
            servers('whole', 'execnet', 'ours'))
        found['TLS'] = stack.enter_context(ours(certificates(home)))
        clients = {side: server.connect() for side, server in found.items()}
        samples = in_turns({
            side: partial(timed, client, data)
            for side, client in clients.items()}
            | {'authentication': partial(authentication, data)}, rounds)
        for client in clients.values():
            client.close()
    raw, tls, cost = map(samples.pop, ('whole', 'TLS', 'authentication'))
    print(json.dumps([samples | {'raw': raw}, {'raw': raw, 'ours': tls},
                      {'ours': cost}]))


if __name__ == '__main__':
    main()
