"""What Prometheus is told of replicas."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.engines.tfserving.pool import ReplicaPool


class ReplicaMetrics(Collector):
    """Tells of the replicas of a pool, as they are at the moment of the question."""

    def __init__(self, pool: ReplicaPool) -> None:
        self._pool = pool

    def collect(self) -> Iterator[Metric]:
        """See `Collector`."""
        up = GaugeMetricFamily(
            "blockserve_tfserving_replica_up",
            "Whether TensorFlow Serving at this address answers: 1 or 0.",
            labels=("replica",),
        )
        in_flight = GaugeMetricFamily(
            "blockserve_tfserving_calls_in_flight",
            "Calls that the replica has under way.",
            labels=("replica",),
        )
        calls = CounterMetricFamily(
            "blockserve_tfserving_calls",
            "Calls that the replica has ended, by what they ended with.",
            labels=("replica", "outcome"),
        )
        for replica in self._pool.replicas:
            up.add_metric((replica.target,), float(replica.is_up))
            in_flight.add_metric((replica.target,), replica.outstanding)
            for outcome, count in replica.calls_by_outcome.items():
                calls.add_metric((replica.target, outcome), count)
        yield from (up, in_flight, calls)
        yield CounterMetricFamily(
            "blockserve_tfserving_retries",
            "Calls that were made again, elsewhere or later.",
            self._pool.retries_total,
        )
        yield CounterMetricFamily(
            "blockserve_tfserving_hedges",
            "Calls that were made beside one that took long.",
            self._pool.hedges_total,
        )
