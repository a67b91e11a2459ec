"""Prometheus metrics on an injected registry; see `docs/operations.md` for the table.

Label values come from loaded models and fixed sets, never from what a client sent, so
the number of time series is bounded.
"""

from asyncio import CancelledError
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from types import TracebackType
from typing import Final, Literal, Self, get_args

import prometheus_client
from prometheus_client import CollectorRegistry, disable_created_metrics
from prometheus_client.exposition import choose_encoder
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from service.errors import BlockserveError, ClientDisconnected
from service.series import Counter, Family, Gauge, Histogram, S
from service.statistics import VersionStatistics

Protocol = Literal[
    "http",
    "grpc",
    "tf_serving_http",
    "tf_serving_grpc",
    "open_inference_http",
    "open_inference_grpc",
]

# One creation time for every series would nearly double the exposition.
disable_created_metrics()  # type: ignore[no-untyped-call]

# 1 ms to 30 s, with room below for a tiny model on a fast machine.
DURATION_BUCKETS_SECONDS: Final = (
    *(0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1),
    *(0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
BATCH_SIZE_BUCKETS_ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# The model and version of requests that named no loaded model.
UNRESOLVED: Final = ("", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionMetrics:
    """The time series of one model version, looked up once and not at each request.

    Attributes:
        labels: The version's model and number, as the series have them.
        statistics: What clients are told of it.
    """

    labels: tuple[str, str]
    statistics: VersionStatistics
    decode_seconds: Histogram
    queue_seconds: Histogram
    inference_seconds: Histogram
    batch_size_rows: Histogram
    dispatcher_crashes: Counter


class RequestScope:
    """Counts and times one request as a context manager; see `Metrics.request`."""

    __slots__ = ("_metrics", "_protocol", "_started", "_version")

    def __init__(self, metrics: "Metrics", protocol: Protocol) -> None:
        self._metrics = metrics
        self._protocol = protocol
        self._version: VersionMetrics | None = None

    def resolved(self, version: VersionMetrics) -> None:
        """Say which loaded version answers."""
        self._version = version

    def refused(self, kind: str) -> None:
        """Count a request that is refused without being entered."""
        self._count(kind, seconds=0.0)

    def __enter__(self) -> Self:
        self._metrics.in_flight[self._protocol].inc()
        self._started = perf_counter()
        return self

    def __exit__(
        self,
        _: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._metrics.in_flight[self._protocol].dec()
        kind = None if error is None else _kind_of(error)
        self._count(kind, seconds=perf_counter() - self._started)

    def _count(self, error_kind: str | None, *, seconds: float) -> None:
        metrics, version = self._metrics, self._version
        labels = (self._protocol, *(UNRESOLVED if version is None else version.labels))
        if version is not None:
            statistics = version.statistics
            tally = statistics.success if error_kind is None else statistics.failure
            tally.add(seconds)
        if error_kind is not None:
            metrics.errors_total.labels(*labels, error_kind).inc()
        metrics.requests_total.labels(*labels).inc()
        metrics.request_duration_seconds.labels(*labels).observe(seconds)


def _kind_of(error: BaseException) -> str:
    if isinstance(error, BlockserveError):
        return error.kind
    return ClientDisconnected.code if isinstance(error, CancelledError) else "internal"


class Metrics:
    """All metrics of one gateway."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        version = ("model", "version")
        durations = partial(Histogram, DURATION_BUCKETS_SECONDS)
        self.requests_total = self._family(
            "blockserve_requests",
            "Requests answered, errors included.",
            ("protocol", *version),
            Counter,
        )
        self.errors_total = self._family(
            "blockserve_errors",
            "Requests answered with an error, by its code.",
            ("protocol", *version, "kind"),
            Counter,
        )
        self.request_duration_seconds = self._family(
            "blockserve_request_duration_seconds",
            "Time from a request's arrival to its answer.",
            ("protocol", *version),
            durations,
        )
        self.requests_in_flight = self._family(
            "blockserve_requests_in_flight",
            "Requests that have arrived and are not answered yet.",
            ("protocol",),
            Gauge,
        )
        self.stage_duration_seconds = self._family(
            "blockserve_stage_duration_seconds",
            "Time of one stage: decode and queue per request, inference per batch.",
            (*version, "stage"),
            durations,
        )
        self.batch_size_rows = self._family(
            "blockserve_batch_size_rows",
            "Rows in one engine call.",
            version,
            partial(Histogram, BATCH_SIZE_BUCKETS_ROWS),
        )
        self.queue_depth = prometheus_client.Gauge(
            "blockserve_queue_depth_requests",
            "Requests that wait for an engine slot or are being decoded.",
            version,
            registry=self.registry,
        )
        self.dispatcher_crashes_total = self._family(
            "blockserve_dispatcher_crashes",
            "Times that dispatching failed; the version refuses requests since.",
            version,
            Counter,
        )
        self.model_load_failures_total = self._family(
            "blockserve_model_load_failures",
            "Attempts to load a model version that failed.",
            (),
            Counter,
        ).labels()
        self.in_flight = {
            protocol: self.requests_in_flight.labels(protocol)
            for protocol in get_args(Protocol)
        }

    def version(
        self, model: str, version: int, *, queue_depth: Callable[[], float]
    ) -> VersionMetrics:
        """Time series of a version that is being loaded."""
        labels = (model, str(version))
        self.queue_depth.labels(*labels).set_function(queue_depth)
        return VersionMetrics(
            labels=labels,
            statistics=VersionStatistics(),
            decode_seconds=self.stage_duration_seconds.labels(*labels, "decode"),
            queue_seconds=self.stage_duration_seconds.labels(*labels, "queue"),
            inference_seconds=self.stage_duration_seconds.labels(*labels, "inference"),
            batch_size_rows=self.batch_size_rows.labels(*labels),
            dispatcher_crashes=self.dispatcher_crashes_total.labels(*labels),
        )

    def forget(self, model: str, version: int) -> None:
        """Drop the time series of an unloaded version, so that they stay bounded."""
        labels = {"model": model, "version": str(version)}
        for family in (
            self.requests_total,
            self.errors_total,
            self.request_duration_seconds,
            self.stage_duration_seconds,
            self.batch_size_rows,
            self.dispatcher_crashes_total,
        ):
            family.remove(labels)
        self.queue_depth.remove_by_labels(labels)

    def request(self, protocol: Protocol) -> RequestScope:
        """Count and time one request; errors that pass through are counted by code."""
        return RequestScope(self, protocol)

    def render(self, accept: str) -> tuple[bytes, str]:
        """The exposition of this process; see `render`."""
        return render(self.registry, accept)

    def _family(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str],
        new: Callable[[], S],
    ) -> Family[S]:
        return Family(name, documentation, labels, new=new, registry=self.registry)

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        """What `/metrics` answers: as `render`, or for all processes that serve."""
        return self.render(accept)


def render(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """The exposition for a scraper's `Accept` header, and its content type."""
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type
