"""Somebody between a client and a server of background/, and what it sends.

Each run gives 5000 inputs to one of the places where bytes of strangers
arrive, so 200 runs are a million.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator

from gocept.runner.background.frames import (
    ANSWERS,
    AWAIT,
    EXEC,
    EXIT,
    HASHED,
    HEADER,
    INIT,
    MORE,
    PIECE,
    PING,
    REQUESTS,
    Message,
    Opener,
    Sealer,
)
from gocept.runner.background.handshake import (
    CHALLENGE_SIZE,
    MAGIC,
    STATUS_KEY,
    TOKEN,
    Challenge,
    prove,
    refuse,
)
from gocept.runner.errors import ProtocolError, ServerBusy, ServerRefused

INPUTS = 5000

LONGEST = 200
"""How many bytes a message may have where somebody has the token."""

KEYS = {TOKEN: b'the token', STATUS_KEY: b'the status key'}

WORDS = (b'', b'\0', b'\xff', MAGIC, b'\x80\x05', b'GET / HTTP/1.1\r\n\r\n',
         HEADER.pack(1, EXEC, 0, 0, 1), HEADER.pack(PIECE, EXEC, MORE, 0, 1),
         HEADER.pack(2 ** 32 - 1, PING, 255, 65535, 2 ** 64 - 1))


def check(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def run(randomly: random.Random, runs: int) -> Iterator[str]:
    """Give each place its turn."""
    places: tuple[Callable[[random.Random], str], ...] = (
        authenticated, encrypted, challenges)
    for number in range(runs):
        place = places[number % len(places)]
        outcomes = Counter(place(randomly) for _ in range(INPUTS))
        yield f'{place.__name__}: ' + ', '.join(
            f'{count} {outcome}' for outcome, count in outcomes.most_common())


def changed(data: bytes, randomly: random.Random) -> bytes:
    """The same, with a change or a few."""
    for _ in range(randomly.choice((1, 1, 1, 2, 5))):
        start = randomly.randrange(len(data) + 1)
        end = min(start + randomly.choice((0, 1, 4, 16, 32, 100)), len(data))
        part = data[start:end]
        new = randomly.choice((
            b'', part[::-1], part + part, randomly.randbytes(end - start),
            randomly.randbytes(randomly.randrange(60)),
            randomly.choice(WORDS),
            bytes(byte ^ 1 << randomly.randrange(8) for byte in part)))
        data = data[:start] + new + data[end:]
    return data


def read(opener: Opener, data: bytes, randomly: random.Random,
         ) -> tuple[list[Message], bool]:
    """What arrives, and whether the data was refused in the end."""
    messages: list[Message] = []
    start = 0
    try:
        while start < len(data):
            end = start + randomly.choice((1, 16, 17, 100, len(data)))
            messages += opener.feed(data[start:end])
            check(opener.kept <= opener.longest, f'{opener.kept} bytes kept')
            start = end
    except ProtocolError:
        try:
            opener.feed(b'x')
        except ProtocolError:
            return messages, True
        raise AssertionError('it goes on after an error') from None
    return messages, False


def contents(messages: list[Message]) -> list[tuple[int, int, int, bytes]]:
    return [(each.kind, each.flags, each.id, b''.join(each.pieces))
            for each in messages]


def authenticated(randomly: random.Random) -> str:
    """Frames with tags are changed: what arrives is how the stream began."""
    key = randomly.randbytes(32)
    sealer = Sealer(key)
    frames: list[bytes] = []
    for number in range(1, randomly.randrange(2, 7)):
        payload = randomly.randbytes(
            randomly.choice((0, 1, 50, 50, HASHED + 1)))
        kind = randomly.choice((INIT, EXEC, EXIT))
        parts = [payload[:20], payload[20:]] if payload[20:] else [payload]
        for part in parts:
            more = MORE if part is not parts[-1] else 0
            frames.append(sealer.seal(kind, AWAIT | more, number, part))
        frames.append(sealer.seal(PING, 0, number))
    sent = contents(Opener(key).feed(b''.join(frames)))
    how = randomly.randrange(4)
    if how == 0:  # replay and reorder
        frames.insert(randomly.randrange(len(frames) + 1),
                      frames.pop(randomly.randrange(len(frames))))
        frames.insert(randomly.randrange(len(frames) + 1),
                      randomly.choice(frames))
    data = b''.join(frames)
    if how == 1:  # reflect
        opener = Opener(key, kinds=ANSWERS)
        messages, refused = read(opener, data, randomly)
        check(refused and not messages, 'its own frames were taken')
        return 'reflected'
    if how > 1:
        data = changed(data, randomly)
    opener = Opener(key, kinds=REQUESTS)
    messages, refused = read(opener, data, randomly)
    arrived = contents(messages)
    check(arrived == sent[:len(arrived)], f'{arrived} of {sent}')
    return 'refused' if refused else 'cut off or unchanged'


def encrypted(randomly: random.Random) -> str:
    """Frames without tags: the other side has the token, but is out of order.

    Whatever arrives is within its bounds.
    """
    data = bytearray()
    for _ in range(randomly.randrange(1, 6)):
        payload = randomly.randbytes(randomly.choice((0, 1, 30, 30, 201)))
        fields = [len(payload), randomly.choice((INIT, EXEC, EXEC, EXIT)),
                  randomly.choice((0, AWAIT, MORE)), 0,
                  randomly.choice((1, 1, 1, 2))]
        if randomly.randrange(10) == 0:
            which = randomly.randrange(5)
            fields[which] = randomly.randrange(
                2 ** (8 * (4, 1, 1, 2, 8)[which]))
        data += HEADER.pack(*fields) + payload
    if randomly.randrange(3) == 0:
        data[:] = changed(bytes(data), randomly)
    opener = Opener(None, LONGEST, REQUESTS)
    messages, refused = read(opener, bytes(data), randomly)
    for message in messages:
        size = sum(map(len, message.pieces))
        check(message.kind in REQUESTS and not message.flags & MORE,
              f'{message} is no request')
        check(size == (message.size if message.size <= LONGEST else 0),
              f'{message} has {size} bytes')
    return 'refused' if refused else 'taken'


def challenges(randomly: random.Random) -> str:
    """Handshakes are changed: nobody comes in, and nobody is trusted."""
    key = randomly.choice((TOKEN, STATUS_KEY))
    challenge = Challenge(tls=randomly.random() < 0.2)
    tls = bool(challenge.data[10])
    proof = prove(challenge.data, key, KEYS[key], tls=tls)
    agreed = challenge.check(proof.data, KEYS)
    assert agreed is not None
    place = randomly.randrange(3)
    original = (challenge.data, proof.data, agreed.answer)[place]
    data = randomly.choice((
        changed(original, randomly), randomly.randbytes(len(original)),
        MAGIC + randomly.randbytes(len(original) - len(MAGIC)),
        original[8:] + original[:8]))
    if data == original:
        return 'unchanged'
    if place == 0:
        return changed_challenge(challenge, data, key, tls)
    if place == 1:
        check(challenge.check(data, KEYS) is None, f'{data!r} came in')
        return 'clients refused'
    try:
        proof.check(data)
    except ServerRefused:
        return 'servers refused'
    except ServerBusy:
        check(data == refuse(b'full....'), f'{data!r} is busy')
        return 'servers busy'
    raise AssertionError(f'{data!r} is trusted')


def changed_challenge(challenge: Challenge, data: bytes, key: int,
                      tls: bool) -> str:
    """The client answers another challenge than the server has sent."""
    try:
        proof = prove(data, key, KEYS[key], tls=tls)
    except ProtocolError:
        return 'challenges refused'
    check(len(data) == CHALLENGE_SIZE, f'{data!r} is taken')
    check(challenge.check(proof.data, KEYS) is None, f'{data!r} came in')
    return 'clients refused'
