"""The metrics of several workers, put together as those of one service.

Most are added up. What all workers tell of the same thing is told once: that there is a
version is no less true for one of them, and ready is who has all of them ready.
"""

from collections.abc import Iterable
from itertools import chain
from typing import Final

from prometheus_client import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar, Sample

PER_PROCESS: Final = ("process_", "python_")
LARGEST: Final = frozenset(
    {
        "blockserve_batch_size_limit_rows",
        "blockserve_build_info",
        "blockserve_model_load_duration_seconds",
        "blockserve_model_version_state",
        "blockserve_queue_oldest_age_seconds",
    }
)
SMALLEST: Final = frozenset({"blockserve_ready", "blockserve_tfserving_replica_up"})
CUMULATIVE: Final = frozenset({"counter", "histogram"})

SeriesKey = tuple[str, frozenset[tuple[str, str]]]


class Totals(Collector):
    """All workers as one; what a process is by itself is kept apart by `worker`.

    A worker that has ended stays in the sums of counters and histograms with what it
    reported last, and so does one that does not answer. If a sum fell, Prometheus
    would take it for a restart from zero and count all other workers' past again.
    """

    def __init__(self) -> None:
        self._latest: dict[int, list[Metric]] = {}
        self._ended: list[Metric] = []

    def update(self, worker: int, families: Iterable[Metric]) -> None:
        """Take what a worker's registry holds now."""
        self._latest[worker] = [
            _marked(family, worker) if _is_per_process(family) else family
            for family in families
        ]

    def end(self, worker: int) -> None:
        """Keep the counts of a worker that has ended, and nothing else of it."""
        counts = [
            family
            for family in self._latest.pop(worker, ())
            if family.type in CUMULATIVE and not _is_per_process(family)
        ]
        self._ended = _sum(self._ended, counts)

    def collect(self) -> Iterable[Metric]:
        """The families of all workers.

        A series that no running worker has is gone, so that those of models that are
        no longer served do not pile up.
        """
        reported = _sum(*self._latest.values())
        present = {_key(sample) for family in reported for sample in family.samples}
        self._ended = [
            _family(like, (s for s in like.samples if _key(s) in present))
            for like in self._ended
        ]
        return _sum(reported, self._ended)


def _is_per_process(family: Metric) -> bool:
    return family.name.startswith(PER_PROCESS)


def _marked(family: Metric, worker: int) -> Metric:
    label = {"worker": str(worker)}
    return _family(
        family, (s._replace(labels={**s.labels, **label}) for s in family.samples)
    )


def _sum(*sources: Iterable[Metric]) -> list[Metric]:
    families: dict[str, Metric] = {}
    samples: dict[str, dict[SeriesKey, Sample]] = {}
    for family in chain.from_iterable(sources):
        families.setdefault(family.name, family)
        sums = samples.setdefault(family.name, {})
        for sample in family.samples:
            key = _key(sample)
            sums[key] = _together(sums[key], sample) if key in sums else sample
    return [_family(families[name], sums.values()) for name, sums in samples.items()]


def _key(sample: Sample) -> SeriesKey:
    return sample.name, frozenset(sample.labels.items())


def _together(one: Sample, other: Sample) -> Sample:
    if one.name in LARGEST:
        value = max(one.value, other.value)
    elif one.name in SMALLEST:
        value = min(one.value, other.value)
    else:
        value = one.value + other.value
    return one._replace(value=value, exemplar=_newest(one.exemplar, other.exemplar))


def _newest(one: Exemplar | None, other: Exemplar | None) -> Exemplar | None:
    exemplars = [exemplar for exemplar in (one, other) if exemplar is not None]
    return max(exemplars, key=lambda it: float(it.timestamp or 0), default=None)


def _family(like: Metric, samples: Iterable[Sample]) -> Metric:
    family = Metric(like.name, like.documentation, like.type, like.unit)
    family.samples = list(samples)
    return family
