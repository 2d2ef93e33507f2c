"""How a client and a server prove to each other that they know the token.

Three messages of a fixed size, before anything else is looked at:

- the server sends a challenge of 48 bytes: `MAGIC` (8), the major and minor
  version of its Python, 1 if there is TLS and else 0, 0, the number of the
  server's life (4, random for each, or zeros), and 32 random bytes;
- the client sends a proof of 80 bytes: `MAGIC` (8), the major and minor
  version of its Python, the number of the key, 0, four zero bytes, 32 random
  bytes, and the HMAC-SHA256 of ``client``, the challenge and these 48 bytes;
- the server sends an answer of 40 bytes: `WELCOME`, `REFUSED` or `FULL` (8),
  and the HMAC-SHA256 of ``server``, the challenge and the proof, or 32 zero
  bytes if the client may not come in.

The key is the token, in UTF-8, and never sent. What is sent later is
authenticated by a session key for each direction: see
`gocept.runner.background.frames`.
"""

import hmac
import os
import sys
from collections.abc import Mapping
from typing import NamedTuple

from gocept.runner.errors import ProtocolError, ServerBusy, ServerRefused

MAGIC = b'GRunBg1\n'
CHALLENGE_SIZE = 48
PROOF_SIZE = 80
ANSWER_SIZE = 40

TOKEN = 0
"""The number of the key that is the token."""
STATUS_KEY = 1
"""The number of the key that allows `STATUS` and `PING` only."""

ANOTHER_TOKEN = 'the server knows another token'

WELCOME = b'welcome\n'
REFUSED = b'refused\n'
FULL = b'full....'
"""There are too many clients."""

NO_LIFE = bytes(4)

_NONCE_SIZE = 32
_MAC_SIZE = 32
_MAC_START = PROOF_SIZE - _MAC_SIZE
_NO_MAC = bytes(_MAC_SIZE)


class Agreed(NamedTuple):
    """What both sides know once each has proved itself."""

    send: bytes | None
    """The session key for what this side sends; None with TLS."""
    receive: bytes | None
    """The session key for what this side receives; None with TLS."""
    python: tuple[int, int]
    """The version of the other side's Python: major, minor."""
    key_number: int
    answer: bytes
    """What the server sends when the client may come in."""


def _mac(key: bytes, *parts: bytes) -> bytes:
    return hmac.digest(key, b''.join(parts), 'sha256')


def _hello(third: int, life: bytes = NO_LIFE) -> bytes:
    """What a challenge and a proof begin with."""
    return (MAGIC + bytes((*sys.version_info[:2], third, 0)) + life
            + os.urandom(_NONCE_SIZE))


def _agree(key: bytes, number: int, challenge: bytes, proof: bytes,
           python: bytes, is_server: bool) -> Agreed:
    seen = challenge + proof
    to_client = to_server = None
    if not challenge[10]:
        to_client = _mac(key, b'to client', seen)
        to_server = _mac(key, b'to server', seen)
    send, receive = (
        (to_client, to_server) if is_server else (to_server, to_client))
    return Agreed(send, receive, (python[0], python[1]), number,
                  WELCOME + _mac(key, b'server', seen))


class Challenge:
    """The server's side, for one client."""

    def __init__(self, *, tls: bool = False, life: bytes = NO_LIFE) -> None:
        """`tls`: whether the connection is encrypted already. `life`: four
        bytes that are others when the server was started again, so that a
        client notices this; `NO_LIFE` does not say."""
        if len(life) != len(NO_LIFE):
            raise ValueError(f'no life of {len(NO_LIFE)} bytes: {life!r}')
        self.data = _hello(tls, life)
        """What the server sends first."""

    def check(self, proof: bytes, keys: Mapping[int, bytes]) -> Agreed | None:
        """What is agreed, or None if the client does not know the key.

        `proof` are the `PROOF_SIZE` bytes from the client. `keys` are the keys
        by their number. Send the `answer` of what is returned, or `refuse()`.
        """
        number = proof[10] if len(proof) == PROOF_SIZE else -1
        key = keys.get(number, b'')
        # An unknown key takes as long as a wrong one.
        expected = _mac(key, b'client', self.data, proof[:_MAC_START])
        if (not hmac.compare_digest(expected, proof[_MAC_START:])
                or not key or proof[:8] != MAGIC):
            return None
        return _agree(key, number, self.data, proof, proof[8:10], True)


def refuse(reason: bytes = REFUSED) -> bytes:
    """The answer to a client that may not come in: `REFUSED` or `FULL`."""
    return reason + _NO_MAC


class Proof:
    """The client's side of one connection. Made by `prove`."""

    def __init__(self, challenge: bytes, key_number: int, key: bytes) -> None:
        hello = _hello(key_number)
        self.data = hello + _mac(key, b'client', challenge, hello)
        """What the client sends."""
        self._challenge = challenge
        self._key_number = key_number
        self._key = key

    def check(self, answer: bytes) -> Agreed:
        """What is agreed, after an `answer` of `ANSWER_SIZE` bytes.

        `ServerRefused` if the server does not know the key either, or says
        that ours is wrong, `ServerBusy` if it has too many clients.
        """
        agreed = _agree(self._key, self._key_number, self._challenge,
                        self.data, self._challenge[8:10], False)
        if hmac.compare_digest(agreed.answer, answer):
            return agreed
        if answer == refuse(REFUSED):
            raise ServerRefused(ANOTHER_TOKEN)
        if answer == refuse(FULL):
            raise ServerBusy(
                'the server has too many clients: try again later')
        raise ServerRefused(
            'what listens there does not know the token: look who listens, '
            'and trust nothing that it says')


def prove(challenge: bytes, key_number: int, key: bytes, *,
          tls: bool = False) -> Proof:
    """The client's answer to the `CHALLENGE_SIZE` bytes of a server.

    `ProtocolError` if this is no challenge, or one of a server that does not
    agree whether the connection is encrypted (`tls`).
    """
    if len(challenge) != CHALLENGE_SIZE or challenge[:8] != MAGIC:
        raise ProtocolError(
            'what listens there is no background server, or one of another '
            'version')
    if challenge[10] != tls:
        raise ProtocolError(
            'the server speaks TLS and this client does not: give it the '
            'certificates' if challenge[10] else
            'this client speaks TLS and the server does not: start the '
            'server with certificates')
    return Proof(challenge, key_number, key)
