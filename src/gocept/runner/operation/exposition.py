"""Metrics of workers as Prometheus reads them, over HTTP.

The background thread accepts clients, and each of them gets a thread of its
own for a moment. So neither a tick nor the end of a loop waits for a client.
"""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from http import HTTPStatus
from itertools import accumulate
from typing import NamedTuple
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, MetricsHandler
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.process_collector import ProcessCollector

from gocept.runner.errors import CannotStart
from gocept.runner.logs import Log
from gocept.runner.operation.numbers import BUCKETS, Numbers
from gocept.runner.poller import background
from gocept.runner.poller.server import Server
from gocept.runner.poller.thread import hand_over, settle
from gocept.runner.waits.forks import Lock, tell_forks
from gocept.runner.waits.names import listening, place, reason_of

log = Log('gocept.runner.operation')

PREFIX = 'gocept_runner_'

_MOST_CLIENTS = 16

_TIMEOUT = 10.0  # seconds that a client may be silent

_CLOSING = 5.0  # seconds that the end waits for the background thread

Read = Callable[[], Iterable[Numbers]]
"""Returns what there is now of each worker. From any thread."""


class Family(NamedTuple):
    """Metrics of one name."""

    kind: type[CounterMetricFamily] | type[GaugeMetricFamily]
    text: str
    value: Callable[[Numbers], float | None]
    """None: there is no such metric now."""


class FamilyByKey(NamedTuple):
    """Counters of one name that have a further label."""

    label: str
    text: str
    values: Callable[[Numbers], dict[str, int]]


FAMILIES: dict[str, Family | FamilyByKey] = {
    'start_time_seconds': Family(
        GaugeMetricFamily, 'When the loop has started, since the epoch.',
        lambda of: of.started),
    'ticks': FamilyByKey(
        'outcome', 'Ticks that have ended.', lambda of: of.ticks),
    'ticks_timed_out': Family(
        CounterMetricFamily, 'Ticks, or items of them, that took longer '
        'than tick_timeout.',
        lambda of: of.timed_out),
    'last_tick_duration_seconds': Family(
        GaugeMetricFamily, 'How long the last tick took, with all attempts.',
        lambda of: of.last_duration),
    'last_success_timestamp_seconds': Family(
        GaugeMetricFamily, 'When a tick was committed last, or its run '
        'was found done, since the epoch.',
        lambda of: of.last_success),
    'tick_start_timestamp_seconds': Family(
        GaugeMetricFamily, 'When the tick in progress has started, since the '
        'epoch; missing in a pause.', lambda of: of.tick_started),
    'next_tick_timestamp_seconds': Family(
        GaugeMetricFamily, 'When the next tick is due, since the epoch; '
        'missing in a tick.', lambda of: of.next_tick),
    'conflicts': Family(
        CounterMetricFamily, 'Attempts that a conflict in the database has '
        'undone.', lambda of: of.conflicts),
    'retries': Family(
        CounterMetricFamily, 'Attempts that were followed by another one in '
        'the same tick.', lambda of: of.retries),
    'items': FamilyByKey(
        'outcome', 'Items of transaction_per_item.', lambda of: of.items),
    'children': Family(
        GaugeMetricFamily, 'Child processes that run.',
        lambda of: of.children),
    'child_starts': Family(
        CounterMetricFamily, 'Starts of child processes.',
        lambda of: of.child_starts),
    'child_restarts': Family(
        CounterMetricFamily, 'Starts of child processes under a name that one '
        'had before.', lambda of: of.child_restarts),
}
"""By name, without the prefix, and without the suffix of counters."""

DURATIONS = 'tick_duration_seconds'

_LABELS = ('worker', 'site')


class Collector:
    """A collector of prometheus_client for any number of workers.

    What it shows is read anew each time. So a process that has many workers
    can add up what they report, and what their predecessors had counted.
    """

    def __init__(self, read: Read) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """See `prometheus_client.registry.Collector`."""
        workers = [((of.worker, of.site), of) for of in self._read()]
        info = GaugeMetricFamily(
            f'{PREFIX}info', 'The version of gocept.runner.',
            labels=(*_LABELS, 'version'))
        durations = HistogramMetricFamily(
            PREFIX + DURATIONS, 'How long ticks took, with all attempts.',
            labels=_LABELS)
        for labels, of in workers:
            info.add_metric((*labels, of.version), 1)
            durations.add_metric(
                labels, _buckets(of.durations.counts), of.durations.sum)
        yield info
        yield durations
        for name, family in FAMILIES.items():
            yield _metric(PREFIX + name, family, workers)


def _metric(name: str, family: Family | FamilyByKey,
            workers: Sequence[tuple[Sequence[str], Numbers]]) -> Metric:
    if isinstance(family, FamilyByKey):
        counters = CounterMetricFamily(
            name, family.text, labels=(*_LABELS, family.label))
        for labels, of in workers:
            for key, number in family.values(of).items():
                counters.add_metric((*labels, key), number)
        return counters
    metric = family.kind(name, family.text, labels=_LABELS)
    for labels, of in workers:
        value = family.value(of)
        if value is not None:
            metric.add_metric(labels, value)
    return metric


def _buckets(counts: Sequence[int]) -> list[tuple[str, float]]:
    return list(zip([*map(str, BUCKETS), '+Inf'], accumulate(counts),
                    strict=True))


@contextlib.contextmanager
def serving(read: Read, host: str, port: int) -> Iterator['MetricsServer']:
    """Serve the metrics of `read`, and of the process, in this block.

    Port 0 is one that is free. CannotStart if the port cannot be listened on.
    """
    registry = CollectorRegistry()
    registry.register(Collector(read))
    ProcessCollector(registry=registry)
    server = MetricsServer(_listening(host, port), registry)
    try:
        background().register(server)
        log.info('Metrics are served at http://%s/metrics', server)
        yield server
    finally:
        background().unregister(server)
        # There, as that thread may just accept a client.
        hand_over(server.socket.close)
        settle(_CLOSING)  # so that the port is free


def _listening(host: str, port: int) -> socket.socket:
    try:
        return listening(host, port)
    except OSError as error:
        raise CannotStart(
            f'metrics cannot be served at {place(host, port)}: '
            f'{reason_of(error)}; name another place with --metrics '
            '[HOST:]PORT') from error


class MetricsServer(Server):
    """A socket that clients ask for metrics.

    A forked child closes its copies, as the port would stay in use.
    """

    def __init__(self, sock: socket.socket, registry: CollectorRegistry,
                 ) -> None:
        super().__init__(sock, self._greet)
        self._handler = type('_Handler', (_Handler,), {'registry': registry})
        self._clients: dict[socket.socket, None] = {}  # the oldest first
        self._lock = Lock()
        tell_forks(self)

    def __str__(self) -> str:
        return place(*self.socket.getsockname()[:2])

    def _greet(self, client: socket.socket) -> None:
        with self._lock:
            if len(self._clients) >= _MOST_CLIENTS:
                # One that says nothing, or little by little, takes no place.
                oldest = next(iter(self._clients))
                del self._clients[oldest]
                with contextlib.suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)
            self._clients[client] = None
        try:
            threading.Thread(target=self._answer, args=(client,), daemon=True,
                             name='gocept.runner.metrics').start()
        except RuntimeError as error:  # too many threads
            log.warning('A client of the metrics gets no answer: %s', error)
            self._forget(client)

    def _answer(self, client: socket.socket) -> None:
        try:
            self._handler(client, client.getpeername(), None)
            client.shutdown(socket.SHUT_RDWR)
        except OSError as error:  # the client is gone, or silent
            log.debug('A client of the metrics got no answer: %s', error)
        except Exception:
            log.exception('A client of the metrics got no answer')
        finally:
            self._forget(client)

    def _forget(self, client: socket.socket) -> None:
        client.close()
        with self._lock:
            self._clients.pop(client, None)

    def after_fork(self) -> None:
        """See `Forked`."""
        for each in (self.socket, *self._clients):
            with contextlib.suppress(OSError):
                each.close()


class _Handler(MetricsHandler):
    """Answers one request."""

    timeout = _TIMEOUT

    def do_GET(self) -> None:
        """The numbers."""
        try:
            urlsplit(self.path)
        except ValueError:
            self.send_error(HTTPStatus.BAD_REQUEST)
        else:
            super().do_GET()

    def version_string(self) -> str:
        """The name of the server, without its version."""
        return 'gocept.runner'
