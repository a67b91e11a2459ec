"""Counters, gauges and histograms that cost the hot path next to nothing.

prometheus_client's own take a lock for each number and search the buckets one by one:
2 us an observation, of which a request makes several. These belong to one thread, the
event loop's, and become prometheus_client's families when they are scraped.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from time import time
from typing import ClassVar, Final, Generic, NamedTuple, Protocol, TypeVar

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar, Sample

NO_LABELS: Final[Mapping[str, str]] = {}
# In how many parts a bucket is counted that is exposed as one.
PARTS: Final = 4

# The values of a family's labels, in the order of their names.
Labels = tuple[str, ...]
# What a series has counted: a counter its value, a histogram its parts and the sum.
Numbers = tuple[float, ...]


class Reading(NamedTuple):
    """A number of a series: the end of its name, more labels, and the value."""

    suffix: str
    labels: Mapping[str, str]
    value: float
    exemplar: Exemplar | None = None


class Series(Protocol):
    """What a family is made of."""

    kind: ClassVar[str]

    @property
    def numbers(self) -> Numbers:
        """What it has counted."""

    def readings(self) -> Iterator[Reading]:
        """What is exposed."""


class Gauge:
    """A number that rises and falls."""

    __slots__ = ("value",)
    kind: ClassVar[str] = "gauge"

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self) -> None:
        """Count one more."""
        self.value += 1

    def dec(self) -> None:
        """Count one less."""
        self.value -= 1

    @property
    def numbers(self) -> Numbers:
        """See `Series`."""
        return (self.value,)

    def readings(self) -> Iterator[Reading]:
        """See `Series`."""
        yield Reading("", NO_LABELS, self.value)


class Counter:
    """A number that grows."""

    __slots__ = ("value",)
    kind: ClassVar[str] = "counter"

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, by: float = 1) -> None:
        """Count one, or several."""
        self.value += by

    @property
    def numbers(self) -> Numbers:
        """See `Series`."""
        return (self.value,)

    def readings(self) -> Iterator[Reading]:
        """See `Series`."""
        yield Reading("_total", NO_LABELS, self.value)


class Buckets:
    """The buckets of a histogram, and the finer ones that it counts in.

    Args:
        bounds: The upper ends, each included; one more is without end.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.fine_bounds = [
            low + (high - low) * part / PARTS
            for low, high in pairwise((0.0, *bounds))
            for part in range(1, PARTS + 1)
        ]

    def quantile(self, share: float, counts: Sequence[float]) -> float:
        """The value that a share of the observations does not exceed, nearly.

        Args:
            share: From 0 to 1.
            counts: Observations in each of the finer buckets; at least one.
        """
        wanted = share * sum(counts)
        low, below = 0.0, 0.0
        for high, count in zip(self.fine_bounds, counts, strict=False):
            if below + count >= wanted and count:
                return low + (high - low) * (wanted - below) / count
            low, below = high, below + count
        return low


class Histogram:
    """How many observations lie in each bucket, and their sum.

    Attributes:
        sum: Of the values.
    """

    __slots__ = ("_buckets", "_counts", "_exemplars", "_fine_bounds", "sum")
    kind: ClassVar[str] = "histogram"

    def __init__(self, buckets: Buckets) -> None:
        self._buckets = buckets
        self._fine_bounds = buckets.fine_bounds
        self._counts = [0] * (len(buckets.fine_bounds) + 1)
        self._exemplars: dict[int, Exemplar] = {}  # the latest, by bucket
        self.sum = 0.0

    def observe(self, value: float, trace_id: str | None = None) -> None:
        """Count a value, and point to the trace that has it, if there is one."""
        fine = bisect_left(self._fine_bounds, value)
        self._counts[fine] += 1
        self.sum += value
        if trace_id is not None:
            self._exemplars[fine // PARTS] = Exemplar(
                {"trace_id": trace_id}, value, time()
            )

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self._counts)

    @property
    def numbers(self) -> Numbers:
        """See `Series`."""
        return (*self._counts, self.sum)

    def readings(self) -> Iterator[Reading]:
        """See `Series`."""
        ends = (*(str(float(bound)) for bound in self._buckets.bounds), "+Inf")
        up_to = list(accumulate(self._counts))
        counts = (*up_to[PARTS - 1 :: PARTS], up_to[-1])
        for bucket, (end, count) in enumerate(zip(ends, counts, strict=True)):
            exemplar = self._exemplars.get(bucket)
            yield Reading("_bucket", {"le": end}, count, exemplar)
        yield Reading("_count", NO_LABELS, self.count)
        yield Reading("_sum", NO_LABELS, self.sum)


S = TypeVar("S", bound=Series)


class Family(Collector, Generic[S]):
    """Series of one name, told apart by their labels.

    Args:
        name: As Prometheus knows it, without `_total`.
        documentation: What it counts.
        labels: Names of the labels.
        new: Makes a series.
        registry: What is asked when Prometheus scrapes.
    """

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str],
        *,
        new: Callable[[], S],
        registry: CollectorRegistry,
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._labels = labels
        self._new = new
        self._kind = new().kind
        self._series: dict[tuple[str, ...], S] = {}
        registry.register(self)

    def labels(self, *values: str) -> S:
        """The series with these values of the labels, made if there is none."""
        series = self._series.get(values)
        if series is None:
            series = self._series[values] = self._new()
        return series

    def numbers(self) -> dict[Labels, Numbers]:
        """What each series has counted."""
        return {labels: series.numbers for labels, series in self._series.items()}

    def remove(self, labels: Mapping[str, str]) -> None:
        """Drop the series that have these labels, whatever others they have."""
        self._series = {
            values: series
            for values, series in self._series.items()
            if not labels.items()
            <= dict(zip(self._labels, values, strict=True)).items()
        }

    def describe(self) -> Iterator[Metric]:
        """The family without its series."""
        yield Metric(self._name, self._documentation, self._kind)

    def collect(self) -> Iterator[Metric]:
        """The family, as prometheus_client writes it."""
        family = Metric(self._name, self._documentation, self._kind)
        for values, series in self._series.items():
            labels = dict(zip(self._labels, values, strict=True))
            family.samples += [
                Sample(
                    self._name + one.suffix,
                    {**labels, **one.labels},
                    one.value,
                    exemplar=one.exemplar,
                )
                for one in series.readings()
            ]
        yield family
