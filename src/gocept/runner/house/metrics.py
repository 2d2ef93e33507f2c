"""What Prometheus is told of a house and its workers.

This needs the package prometheus_client.
"""

from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector

from gocept.runner.house.census import Resident, key_of
from gocept.runner.operation.exposition import PREFIX, Collector

_LABELS = ('worker', 'site')


class Residents:
    """A collector of what a house knows of its workers."""

    def __init__(self, residents: Sequence[Resident]) -> None:
        self._residents = residents

    def collect(self) -> Iterator[Metric]:
        """See `prometheus_client.registry.Collector`."""
        starts = CounterMetricFamily(
            f'{PREFIX}worker_starts', 'Starts of the process of the worker.',
            labels=_LABELS)
        running = GaugeMetricFamily(
            f'{PREFIX}worker_running', '1 if the process of the worker runs.',
            labels=_LABELS)
        failures = GaugeMetricFamily(
            f'{PREFIX}worker_failures', 'Processes of the worker that have '
            'failed, one after another.', labels=_LABELS)
        healthy = GaugeMetricFamily(
            f'{PREFIX}worker_healthy', '0 if the worker is not healthy, as '
            '/healthz says it.', labels=_LABELS)
        for resident in self._residents:
            name, site = key_of(resident.told)
            labels = name, site or '/'
            starts.add_metric(labels, resident.told['starts'])
            running.add_metric(labels, resident.told['pid'] is not None)
            failures.add_metric(labels, resident.told['failures'])
            healthy.add_metric(labels, resident.healthy)
        yield from (starts, running, failures, healthy)


def metrics(residents: Sequence[Resident], accept: str) -> tuple[bytes, str]:
    """The metrics, and their type: one of those that a client accepts."""
    registry = CollectorRegistry()
    registry.register(Residents(residents))
    numbers = [each.numbers for each in residents]
    registry.register(Collector(
        lambda: [each for each in numbers if each is not None]))
    ProcessCollector(registry=registry)
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type
