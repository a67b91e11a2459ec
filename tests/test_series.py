"""Our counters against prometheus_client's own: the same numbers, the same text."""

import numpy as np
import prometheus_client
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics

from service.settings import DURATION_BUCKETS_SECONDS
from service.telemetry.series import Buckets, Counter, Family, Gauge, Histogram

BOUNDS = (0.001, 0.5, 1, 10)
OBSERVED = (0.0, 0.001, 0.0011, 0.5, 1.0, 3.25, 10.0, 10.1, 1e9)


def ours() -> CollectorRegistry:
    registry = CollectorRegistry()
    durations = Family(
        "wait_seconds",
        "Time.",
        ("model", "stage"),
        new=lambda: Histogram(Buckets(BOUNDS)),
        registry=registry,
    )
    for value in OBSERVED:
        durations.labels("m", "queue").observe(value)
    durations.labels("m", "decode").observe(2)
    requests = Family("requests", "Asked.", ("model",), new=Counter, registry=registry)
    for _ in range(3):
        requests.labels('a "quoted"\nname').inc()
    running = Family("running", "Now.", (), new=Gauge, registry=registry)
    running.labels().inc()
    running.labels().inc()
    running.labels().dec()
    return registry


def theirs() -> CollectorRegistry:
    registry = CollectorRegistry()
    durations = prometheus_client.Histogram(
        "wait_seconds", "Time.", ("model", "stage"), buckets=BOUNDS, registry=registry
    )
    for value in OBSERVED:
        durations.labels("m", "queue").observe(value)
    durations.labels("m", "decode").observe(2)
    requests = prometheus_client.Counter(
        "requests", "Asked.", ("model",), registry=registry
    )
    requests.labels('a "quoted"\nname').inc(3)
    prometheus_client.Gauge("running", "Now.", registry=registry).inc()
    return registry


def test_the_exposition_is_prometheus_clients_own() -> None:
    assert generate_latest(ours()) == generate_latest(theirs())


def test_openmetrics_is_prometheus_clients_own() -> None:
    assert openmetrics.generate_latest(ours()) == openmetrics.generate_latest(theirs())


def test_the_series_of_a_model_are_removed_and_no_others() -> None:
    registry = CollectorRegistry()
    labels = ("protocol", "model", "version")
    family = Family("requests", "Asked.", labels, new=Counter, registry=registry)
    for model, version in (("a", "1"), ("a", "2"), ("b", "1")):
        for protocol in ("http", "grpc"):
            family.labels(protocol, model, version).inc()
    family.remove({"model": "a", "version": "1"})
    left = {tuple(s.labels.values()) for f in registry.collect() for s in f.samples}
    assert left == {
        (protocol, model, version)
        for model, version in (("a", "2"), ("b", "1"))
        for protocol in ("http", "grpc")
    }
    wanted = {"protocol": "http", "model": "b", "version": "1"}
    assert registry.get_sample_value("requests_total", wanted) == 1


def test_two_families_of_one_name_are_refused() -> None:
    registry = CollectorRegistry()
    Family("requests", "Asked.", (), new=Counter, registry=registry)
    with pytest.raises(ValueError, match="requests"):
        Family("requests", "Asked.", (), new=Counter, registry=registry)


def test_quantiles_come_from_finer_buckets_than_are_exposed() -> None:
    buckets = Buckets(DURATION_BUCKETS_SECONDS)
    histogram = Histogram(buckets)
    values = np.random.default_rng(0).lognormal(mean=-4, sigma=0.7, size=10_000)
    for value in values:
        histogram.observe(value)
    *counts, total = histogram.numbers
    assert total == pytest.approx(values.sum())
    for share in (0.5, 0.9, 0.99):
        expected = np.quantile(values, share)
        assert buckets.quantile(share, counts) == pytest.approx(expected, rel=0.1)


def test_a_quantile_beyond_the_last_bucket_is_its_end() -> None:
    buckets = Buckets((1, 2))
    histogram = Histogram(buckets)
    histogram.observe(5)
    *counts, _ = histogram.numbers
    assert buckets.quantile(0.5, counts) == 2
