"""How long requests took, in buckets that each are 2 % wider than the one before.

Processes and repetitions are put together by adding counts, which percentiles do not
allow; a percentile is wrong by 2 % at most.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

GROWTH: Final = 1.02
LOWEST_SECONDS: Final = 1e-5
LOG_GROWTH: Final = math.log(GROWTH)


def bucket_of(seconds: float) -> int:
    """The bucket that a latency falls in; the first has all below 10 µs."""
    if seconds <= LOWEST_SECONDS:
        return 0
    return int(math.log(seconds / LOWEST_SECONDS) / LOG_GROWTH)


@dataclass(slots=True, kw_only=True)
class Latencies:
    """Latencies of many requests.

    Attributes:
        counts: How many fell in each bucket.
        sum_seconds: Of all of them, so that their mean is exact.
    """

    counts: dict[int, int] = field(default_factory=dict)
    sum_seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self.merge({bucket_of(seconds): 1}, seconds)

    def merge(self, counts: Mapping[int, int], sum_seconds: float) -> None:
        """Count those that were counted elsewhere."""
        for bucket, many in counts.items():
            self.counts[bucket] = self.counts.get(bucket, 0) + many
        self.sum_seconds += sum_seconds

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(self.counts.values())

    @property
    def mean_seconds(self) -> float:
        """Their mean; NaN if there are none."""
        return self.sum_seconds / self.count if self.count else math.nan

    def percentile(self, percent: float) -> float:
        """What so many percent of them do not exceed, in seconds; NaN without any.

        Within a bucket they are taken to lie at even ratios.
        """
        wanted = percent / 100 * self.count
        below = 0
        for bucket, many in sorted(self.counts.items()):
            if below + many >= wanted:
                place = bucket + (wanted - below) / many
                return float(LOWEST_SECONDS * GROWTH**place)
            below += many
        return math.nan
