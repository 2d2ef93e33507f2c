"""What is said to an echo, and what comes back."""

import random
import re
import signal
import time
from typing import Any

from gocept.runner.errors import EndpointClosedException, WriteBufferFull
from gocept.runner.poller import poller


class Talk:
    """One conversation with an echo."""

    def __init__(self, program: Any, actor: dict, process: Any,
                 channel: Any) -> None:
        self.program = program
        self.actor = actor
        self.process = process
        self.channel = channel
        self.randomly = random.Random(actor['seed'])
        self.payload = payload(self.randomly, actor)
        self.sent = 0
        self.writable = True
        self.over = False
        self.received: list = []
        killed = actor['killed']
        self.kill_at = None if killed is None else time.monotonic() + killed

    def run(self) -> None:
        """Talk until the end."""
        with poller.Poller() as polling:
            polling.register(self.channel)
            while not self.over and not self.program.stopping.is_set():
                if self.kill_at and time.monotonic() > self.kill_at:
                    self.kill()
                if self.writable:
                    self.write()
                for item, _ in polling.poll(0.001 if self.writable else 0.1):
                    self.take(item)
                if self.randomly.random() < self.actor['pausing']:
                    self.program.pause(self.randomly.uniform(0, 0.01))
        self.compare()

    def kill(self) -> None:
        """End the other side, without a word."""
        alias = self.actor['app']
        self.program.touched.add(alias)
        self.program.sent[alias].add(signal.SIGKILL)
        self.process.send_signal(signal.SIGKILL)
        self.kill_at = None

    def write(self) -> None:
        """Send a piece, or say that there are no more."""
        piece = self.payload[self.sent:][:self.randomly.choice(
            self.actor['sizes'])]
        try:
            if piece:
                self.channel.write(piece)
                self.sent += len(piece)
            else:
                self.writable = False
                self.channel.write_eof()
        except WriteBufferFull:
            pass
        except EndpointClosedException:
            # Whether some of the piece was sent is not known.
            self.sent += len(piece)
            self.writable = False

    def take(self, item: Any) -> None:
        """What comes back."""
        if not item:
            self.over = True
            return
        limit = self.program.app(self.actor['app']).get('limit')
        if self.received and limit and not (
                self.received[-1].endswith(b'\n')
                or len(self.received[-1]) == limit):
            self.program.fail(
                f'{self.actor}: {self.received[-1][-100:]} is no line')
        if limit and b'\n' in item[:-1]:
            self.program.fail(f'{self.actor}: {item[:100]} are several lines')
        self.received.append(item)

    def compare(self) -> None:
        """All that was received must have been sent."""
        sent = self.payload[:self.sent]
        received = sent[:0].join(self.received)
        alias = self.actor['app']
        if len(received) < len(sent):
            if self.over:
                self.program.must_be_touched(
                    alias, f'{len(received)} of {len(sent)} came back')
            if self.actor['kind'] == 'text':
                # The bytes of a character that has not come as a whole.
                received = re.sub(r'(\\x[0-9a-f]{2})+\Z', '', received)
        if not sent.startswith(received):
            self.program.fail(f'{self.actor}: {difference(sent, received)}')


def payload(randomly: random.Random, actor: dict) -> Any:
    """What is sent."""
    size = actor['size']
    if actor['kind'] == 'bytes':
        return randomly.randbytes(size)
    if actor['kind'] == 'line':
        return b''.join(
            randomly.randbytes(randomly.choice([0, 3, 20, 9, 10, 11, 5000]))
            .replace(b'\n', b' ') + b'\n' for _ in range(size // 700))
    return ''.join(randomly.choices('a\n\r\xe9\u20ac\U0001f600', k=size // 2))


def difference(sent: Any, received: Any) -> str:
    """Where two strings begin to differ."""
    at = next((number for number, (one, other)
               in enumerate(zip(sent, received, strict=False))
               if one != other), len(sent))
    return (f'{len(received)} received, {len(sent)} sent; at {at}: '
            f'{received[at:at + 50]!r} instead of {sent[at:at + 50]!r}')
