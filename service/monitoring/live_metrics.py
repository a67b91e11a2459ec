"""What nobody counts: the state of things at the moment when Prometheus asks.

Queues, slots and versions know how they are; a number kept beside them would cost each
request something, and could be wrong.
"""

import platform
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.repository import Repository, Version, VersionState
from service.served_version import ServedVersion

FAILED: Final = "failed"
STATES: Final = (*(state.lower() for state in VersionState), FAILED)


class LiveMetrics(Collector):
    """Tells of readiness, of the versions, and of their queues and slots.

    Args:
        repository: What serves.
        is_ready: Whether requests can be answered.
        engine: What the settings say runs the models; which of two `auto` took is a
            version's affair, and `/models/NAME` tells it.
    """

    def __init__(
        self, repository: Repository, *, is_ready: Callable[[], bool], engine: str
    ) -> None:
        self._repository = repository
        self._is_ready = is_ready
        self._build = (
            metadata.version("blockserve"),
            engine,
            platform.python_version(),
        )

    def collect(self) -> Iterator[Metric]:
        """See `Collector`."""
        ready = "Whether requests can be answered, as /readyz says: 1 or 0."
        yield GaugeMetricFamily("blockserve_ready", ready, float(self._is_ready()))
        build_info = GaugeMetricFamily(
            "blockserve_build_info",
            "Always 1; the labels tell what runs.",
            labels=("version", "engine", "python"),
        )
        build_info.add_metric(self._build, 1)
        yield build_info
        versions = [
            (name, version)
            for name, model in self._repository.models.items()
            for version in model.versions.values()
        ]
        yield _states(versions)
        yield _load_seconds(versions)
        served = [one.served for _, one in versions if one.served is not None]
        yield from _of_served(served)


def _states(versions: Sequence[tuple[str, Version]]) -> Metric:
    family = _gauge(
        "blockserve_model_version_state",
        "1 for the state that the version is in, 0 for the others; failed: it cannot "
        "be loaded.",
        "state",
    )
    for name, version in versions:
        current = version.state.lower() if version.error is None else FAILED
        for state in STATES:
            labels = (name, str(version.number), state)
            family.add_metric(labels, float(state == current))
    return family


def _load_seconds(versions: Sequence[tuple[str, Version]]) -> Metric:
    family = _gauge(
        "blockserve_model_load_duration_seconds",
        "How long the version took to load and to warm up.",
    )
    for name, version in versions:
        if version.load_seconds:
            family.add_metric((name, str(version.number)), version.load_seconds)
    return family


def _of_served(versions: Sequence[ServedVersion]) -> Iterator[Metric]:
    depth = _gauge(
        "blockserve_queue_depth_requests",
        "Requests that wait for an engine slot or are being decoded.",
    )
    limit = _gauge(
        "blockserve_queue_limit_requests", "Requests of a signature that wait at most."
    )
    age = _gauge(
        "blockserve_queue_oldest_age_seconds",
        "How long the request waits that waits longest for an engine slot.",
    )
    slots = _gauge("blockserve_engine_slots", "Engine calls that may run at a time.")
    calls = _gauge("blockserve_engine_calls_in_flight", "Engine calls that run.")
    busy = CounterMetricFamily(
        "blockserve_engine_busy_seconds",
        "Time that engine slots have been taken, all together.",
        labels=("model", "version"),
    )
    batch_size = _gauge(
        "blockserve_batch_size_limit_rows",
        "Most rows in one engine call, learned from what calls take or set.",
        "signature",
    )
    for served in versions:
        labels, load = served.metrics.labels, served.load
        depth.add_metric(labels, load.queue_depth)
        limit.add_metric(labels, load.queue_limit)
        age.add_metric(labels, load.oldest_age_seconds)
        slots.add_metric(labels, load.slots)
        calls.add_metric(labels, load.calls_in_flight)
        busy.add_metric(labels, load.busy_seconds)
        for name, batcher in served.batchers.items():
            batch_size.add_metric((*labels, name), batcher.batch_size_limit_rows)
    yield from (depth, limit, age, slots, calls, busy, batch_size)


def _gauge(name: str, documentation: str, *more_labels: str) -> GaugeMetricFamily:
    labels = ("model", "version", *more_labels)
    return GaugeMetricFamily(name, documentation, labels=labels)
