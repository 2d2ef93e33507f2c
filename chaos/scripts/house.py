"""The worker of a house, see `chaos.house`, and who it works with.

A tick fetches what the converter has answered, stores it, talks to the two
servers now and then, and sends the converter more lines. Who is not there is
started again, and asked for in the next tick.
"""

import faulthandler
import http.client
import itertools
import logging
import os
import pathlib
import signal
import subprocess
import zlib
from collections.abc import Mapping
from typing import Any

import transaction
from BTrees.LOBTree import LOBTree
from zope.app.appsetup.product import getProductConfiguration
from zope.component import getUtility
from zope.component.hooks import getSite

from gocept.runner.errors import (
    EndpointClosedException,
    RunnerError,
    WriteBufferFull,
)
from gocept.runner.interfaces import (
    IChildEnded,
    IExecutor,
    IPoller,
    IRunner,
)

log = logging.getLogger(__name__)

# Where all threads are, when the program hangs.
faulthandler.register(signal.SIGUSR1)

MOST_IN_FLIGHT = 40
"""How many lines the converter has got and not answered, at most."""

TIMEOUT = 2
"""How long to wait for the answer of one of the servers, in seconds. On a busy
machine it may take longer, and then a later tick asks again."""

MOST_TIMEOUTS = 15
"""How often this may happen until one answers."""

SOON = 0.05
"""How long to wait for those who are being started again, in seconds."""

# Ticks from one visit to the next.
WEB, POSTGRES = 7, 19

MESSAGE = b'Nobody but us is at home.\n'
"""What the web server has to say."""

# What PostgreSQL says while it is not ready yet, or not any more.
BUSY = ('starting up', 'in recovery', 'shutting down', 'not yet accepting')


def tell(event: Any) -> None:
    """Log what happens to a child; its end is news for the worker."""
    log.info('%s %s', type(event).__name__, event.name)
    if IChildEnded.providedBy(event):
        getUtility(IPoller).wakeup()


def begin(event: Any) -> None:
    """Log that the loop begins."""
    log.info('%s', type(event).__name__)


def line_of(number: int) -> bytes:
    """What the converter is sent; some are longer than a pipe."""
    size = 200_000 if number % 64 == 0 else number * 7919 % 997
    return b'%d %s\n' % (number, b'x' * size)


def sum_of(number: int) -> int:
    """What is stored of its answer."""
    return zlib.crc32(line_of(number).upper())


class House:
    """What the worker remembers from one tick to the next."""

    def __init__(self) -> None:
        self.channel: Any = None
        self.sent = 0
        """The number of the last line that `channel` was sent."""
        self.answers: dict[int, int] = {}
        """Of which it is not known that they are stored."""
        self.ticks = itertools.count(1)
        self.timeouts = 0

    def tick(self) -> float | None:
        """Do a piece of work; how soon to do the next, if it is urgent."""
        site = getSite()
        if not hasattr(site, 'answers'):
            site.count, site.answers = 0, LOBTree()
        stored = site.count
        self.answers = {number: answer
                        for number, answer in self.answers.items()
                        if number > stored}
        self.fetch()
        self.store(site)
        try:
            self.visit(next(self.ticks), stored)
            return self.send(site.count)
        except NotReady as error:
            log.info('%s', error)
        except (OSError, http.client.HTTPException, RunnerError,
                subprocess.SubprocessError) as error:
            log.warning('%s: %s', type(error).__name__, error)
        return SOON

    def fetch(self) -> None:
        """Take what the converter has answered."""
        for item, source in getUtility(IPoller).poll(0):
            if item.endswith(b'\n'):
                number, _, _ = item.partition(b' ')
                self.answers[int(number)] = zlib.crc32(item)
            elif not item and source is self.channel:
                self.channel = None
            # The rest is what the converter was killed while it said it.

    def store(self, site: Any) -> None:
        """Have two objects change in one transaction."""
        before = site.count
        while (number := site.count + 1) in self.answers:
            site.answers[number] = self.answers[number]
            site.count = number
        if site.count > before:
            transaction.get().addAfterCommitHook(
                acknowledge, (b'acknowledged', site.count))

    def send(self, count: int) -> float | None:
        """Send lines; all again that another converter has not answered."""
        runner = getUtility(IRunner)
        channel = runner.get_channel('converter')
        if channel is None:
            if not runner.running('converter'):
                log.info('There is no converter')
            return SOON
        if channel is not self.channel:
            getUtility(IPoller).register(channel)
            self.channel, self.sent = channel, count
        try:
            while self.sent < count + MOST_IN_FLIGHT:
                channel.write(line_of(self.sent + 1))
                self.sent += 1
        except WriteBufferFull:
            pass
        except EndpointClosedException:
            return SOON  # the end is still to be fetched
        return None

    def visit(self, tick: int, stored: int) -> None:
        """Talk to the servers, if it is time; they have to be up anyway."""
        web, postgres = (getUtility(IExecutor, name)
                         for name in ('web', 'postgres'))
        web.ensure_running()
        postgres.ensure_running()
        try:
            if tick % WEB == 1:
                visit_web(web)
                self.timeouts = 0
            if tick % POSTGRES == 1:
                visit_postgres(stored)
                self.timeouts = 0
        except (TimeoutError, subprocess.TimeoutExpired) as error:
            self.timeouts += 1
            if self.timeouts > MOST_TIMEOUTS:
                raise
            raise NotReady(f'{type(error).__name__}: {error}') from error


class NotReady(Exception):
    """Raised when a server that runs cannot be talked to yet."""


def visit_web(executor: Any) -> None:
    """Read a file."""
    connection = http.client.HTTPConnection(
        executor.host, executor.port, timeout=TIMEOUT)
    try:
        connection.request('GET', '/message')
        answer = connection.getresponse().read()
    finally:
        connection.close()
    if answer != MESSAGE:
        log.error('The web server says %r', answer)


def visit_postgres(stored: int) -> None:
    """Add a row, and see that what was added before is still there."""
    config = getProductConfiguration('house')
    added = last(pathlib.Path('added'))
    number = query(config, 'create table if not exists added (number bigint)',
                   'select coalesce(max(number), 0) from added',
                   f'insert into added values ({stored})')
    if not added <= number <= stored:
        log.error('PostgreSQL knows of %d; it was told of %d, and may know of '
                  '%d', number, added, stored)
    acknowledge(True, b'added', stored)


def query(config: Mapping[str, str], *statements: str) -> int:
    """Have psql carry them out; the number that it prints."""
    options = [each for text in statements for each in ('-c', text)]
    done = subprocess.run(
        [config['psql'], '-X', '-A', '-t', '-q', '-v', 'ON_ERROR_STOP=1',
         '-h', config['home'], '-U', 'postgres', *options],
        env={**os.environ, 'PGOPTIONS': '-c client_min_messages=warning'},
        capture_output=True, text=True, timeout=TIMEOUT)
    if any(words in done.stderr for words in BUSY):
        raise NotReady(done.stderr.strip())
    if done.returncode:
        raise OSError(f'psql: {done.returncode} {done.stderr.strip()}')
    return int(done.stdout)


def acknowledge(committed: bool, name: bytes, number: int) -> None:
    """Write down that a number is stored."""
    if committed:
        # At once, so that not even SIGKILL keeps half of it back.
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(fd, b'%d\n' % number)
        os.close(fd)


def last(path: pathlib.Path) -> int:
    """The number that was written down last."""
    # It may have just been made.
    text = path.read_text() if path.exists() else ''
    return int(text.split()[-1]) if text else 0


worker = House().tick
