"""Prometheus metrics on an injected registry; see `docs/operations.md` for the table.

Label values come from loaded models and fixed sets, never from what a client sent, so
the number of time series is bounded.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal, get_args

from prometheus_client import CollectorRegistry, Metric, disable_created_metrics
from prometheus_client.exposition import choose_encoder
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from service.telemetry.series import Buckets, Counter, Family, Gauge, Histogram, S
from service.telemetry.statistics import VersionStatistics

ProtocolName = Literal[
    "http",
    "grpc",
    "tf_serving_http",
    "tf_serving_grpc",
    "open_inference_http",
    "open_inference_grpc",
]

# One creation time for every series would nearly double the exposition.
disable_created_metrics()  # type: ignore[no-untyped-call]

BATCH_SIZE_BUCKETS_ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# A model and a version, as series have them.
VersionLabels = tuple[str, str]
# Those of requests that named no loaded model.
UNRESOLVED: Final[VersionLabels] = ("", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionMetrics:
    """The time series of one model version, looked up once and not at each request.

    Attributes:
        labels: The version's model and number, as the series have them.
        statistics: What clients are told of it.
    """

    labels: VersionLabels
    statistics: VersionStatistics
    read_seconds: Histogram
    decode_seconds: Histogram
    queue_seconds: Histogram
    assembly_seconds: Histogram
    inference_seconds: Histogram
    encode_seconds: Histogram
    batch_size_rows: Histogram
    padding_rows: Counter
    dispatcher_crashes: Counter


class Metrics:
    """What one gateway counts.

    What is not counted but looked up when Prometheus asks is in `monitoring`.

    Args:
        duration_buckets_seconds: Upper ends of the buckets of durations.

    Attributes:
        registry: Where they register.
        duration_buckets: What durations are counted in.
    """

    def __init__(self, duration_buckets_seconds: Sequence[float]) -> None:
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self._versions: dict[VersionLabels, VersionMetrics] = {}
        model_version = ("model", "version")
        self.duration_buckets = Buckets(duration_buckets_seconds)
        durations = partial(Histogram, self.duration_buckets)
        self.requests_total = self._family(
            "blockserve_requests",
            "Requests answered, errors included.",
            ("protocol", *model_version),
            Counter,
        )
        self.errors_total = self._family(
            "blockserve_errors",
            "Requests answered with an error, by its code.",
            ("protocol", *model_version, "kind"),
            Counter,
        )
        self.request_duration_seconds = self._family(
            "blockserve_request_duration_seconds",
            "Time from a request's arrival to its answer.",
            ("protocol", *model_version),
            durations,
        )
        requests_in_flight = self._family(
            "blockserve_requests_in_flight",
            "Requests that have arrived and are not answered yet.",
            ("protocol",),
            Gauge,
        )
        self.requests_in_flight = {
            protocol: requests_in_flight.labels(protocol)
            for protocol in get_args(ProtocolName)
        }
        self.stage_duration_seconds = self._family(
            "blockserve_stage_duration_seconds",
            "Time of one stage: read, decode, queue and encode are observed for each "
            "request, assembly and inference for each batch.",
            (*model_version, "stage"),
            durations,
        )
        self.batch_size_rows = self._family(
            "blockserve_batch_size_rows",
            "Rows in one engine call, without padding.",
            model_version,
            partial(Histogram, Buckets(BATCH_SIZE_BUCKETS_ROWS)),
        )
        self.padding_rows_total = self._family(
            "blockserve_padding_rows",
            "Rows that engine calls ran only to have an allowed batch size.",
            model_version,
            Counter,
        )
        self.dispatcher_crashes_total = self._family(
            "blockserve_dispatcher_crashes",
            "Times that dispatching failed; the version refuses requests since.",
            model_version,
            Counter,
        )
        self.model_load_failures_total = self._family(
            "blockserve_model_load_failures",
            "Attempts to load a version of the model that failed.",
            ("model",),
            Counter,
        )
        self.event_loop_lag_seconds = self._family(
            "blockserve_event_loop_lag_seconds",
            "How much later than due a timer runs: how long the process hears nobody.",
            (),
            durations,
        ).labels()

    def version(self, model: str, number: int) -> VersionMetrics:
        """Time series of a version that is being loaded."""
        labels = (model, str(number))
        stage = partial(self.stage_duration_seconds.labels, *labels)
        self._versions[labels] = version = VersionMetrics(
            labels=labels,
            statistics=VersionStatistics(),
            read_seconds=stage("read"),
            decode_seconds=stage("decode"),
            queue_seconds=stage("queue"),
            assembly_seconds=stage("assembly"),
            inference_seconds=stage("inference"),
            encode_seconds=stage("encode"),
            batch_size_rows=self.batch_size_rows.labels(*labels),
            padding_rows=self.padding_rows_total.labels(*labels),
            dispatcher_crashes=self.dispatcher_crashes_total.labels(*labels),
        )
        return version

    def labels_of(self, version: VersionMetrics | None) -> VersionLabels:
        """What a request that ends now is counted under.

        Args:
            version: What was to answer it. It may be forgotten by now, and must not
                come back with series that nobody would remove.
        """
        if version is None or self._versions.get(version.labels) is not version:
            return UNRESOLVED
        return version.labels

    def forget(self, model: str, number: int) -> None:
        """Drop the time series of an unloaded version, so that they stay bounded."""
        self._versions.pop((model, str(number)), None)
        labels = {"model": model, "version": str(number)}
        for family in (
            self.requests_total,
            self.errors_total,
            self.request_duration_seconds,
            self.stage_duration_seconds,
            self.batch_size_rows,
            self.padding_rows_total,
            self.dispatcher_crashes_total,
        ):
            family.remove(labels)

    def _family(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str],
        new: Callable[[], S],
    ) -> Family[S]:
        return Family(name, documentation, labels, new=new, registry=self.registry)


class _Collected(Collector):
    """What has been collected already."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def snapshot(registry: CollectorRegistry) -> CollectorRegistry:
    """What a registry tells at this moment, for a thread to write down.

    To collect has to be done where is counted, and is the lesser part.
    """
    collected = CollectorRegistry()
    collected.register(_Collected(list(registry.collect())))
    return collected


def render(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """The exposition for a scraper's `Accept` header, and its content type."""
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type
