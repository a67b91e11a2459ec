"""What Locust's statistics tell of a stage: answers, refusals, failures, times."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

# Ends the name of an entry of the statistics: the server was full, and said so at once.
REFUSED: Final = " (refused)"
# What may be refused or fail where the objective is met, and the percentile it is for.
ERROR_BUDGET: Final = 0.01
PERCENTILE: Final = 0.99
MILLISECONDS: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What Locust's statistics have counted so far.

    Attributes:
        milliseconds: How many requests took so long, refused ones left out.
    """

    requests: int = 0
    refused: int = 0
    failed: int = 0
    milliseconds: Mapping[float, int] = field(default_factory=dict)

    @classmethod
    def of(cls, entries: Iterable[Any]) -> Self:
        """Add the entries of Locust's statistics."""
        requests = refused = failed = 0
        milliseconds: Counter[float] = Counter()
        for entry in entries:
            requests += entry.num_requests
            failed += entry.num_failures
            if entry.name.endswith(REFUSED):
                refused += entry.num_requests
            else:
                milliseconds.update(entry.response_times)
        return cls(
            requests=requests,
            refused=refused,
            failed=failed,
            milliseconds=milliseconds,
        )

    def since(self, before: "Totals") -> "Totals":
        """What has been counted besides."""
        gone = before.milliseconds
        return Totals(
            requests=self.requests - before.requests,
            refused=self.refused - before.refused,
            failed=self.failed - before.failed,
            milliseconds={
                time: more
                for time, count in self.milliseconds.items()
                if (more := count - gone.get(time, 0)) > 0
            },
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was measured in a stage, but for its first second.

    Attributes:
        requests_per_second: What was to be sent, at its end.
        seconds: How long it was measured.
        p50_seconds: Of answers and failures, from the moment at which a request was to
            be sent; NaN without any.
        within_slo: Whether 99 of 100 took no longer than the objective, and no more
            than one in 100 was refused or failed.
    """

    requests_per_second: float
    seconds: float
    answered: int
    refused: int
    failed: int
    answered_per_second: float
    p50_seconds: float
    p99_seconds: float
    within_slo: bool


def outcome_of(
    counted: Totals, *, requests_per_second: float, seconds: float, slo_seconds: float
) -> Outcome:
    """Turn counts into rates and percentiles."""
    answered = counted.requests - counted.refused - counted.failed
    p99 = _percentile(counted.milliseconds, PERCENTILE)
    lost = counted.refused + counted.failed
    return Outcome(
        requests_per_second=requests_per_second,
        seconds=seconds,
        answered=answered,
        refused=counted.refused,
        failed=counted.failed,
        answered_per_second=answered / seconds if seconds > 0 else 0.0,
        p50_seconds=_percentile(counted.milliseconds, 0.5),
        p99_seconds=p99,
        # Not so where there is no answer at all: NaN is not below anything.
        within_slo=p99 <= slo_seconds and lost <= ERROR_BUDGET * counted.requests,
    )


def capacity_per_second(outcomes: Sequence[Outcome]) -> float:
    """The most that was answered a second in a stage within the objective; else 0."""
    within = (one.answered_per_second for one in outcomes if one.within_slo)
    return max(within, default=0.0)


def _percentile(milliseconds: Mapping[float, int], share: float) -> float:
    """Seconds that so many take at most."""
    left = math.ceil(share * sum(milliseconds.values()))
    for time, count in sorted(milliseconds.items()):
        left -= count
        if left <= 0:
            return time / MILLISECONDS
    return math.nan
