"""Settings for tests with hypothesis that have the same result each time."""

from typing import Any

from hypothesis import HealthCheck, settings


def steady(**options: Any) -> settings:
    """The same examples in each run, however long a busy machine takes."""
    return settings(deadline=None, derandomize=True, **{
        'suppress_health_check': [HealthCheck.too_slow], **options})
