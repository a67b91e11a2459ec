"""What became of requests: how long their right answers took, and what failed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from loadtest.bench.histogram import Latencies


@dataclass(slots=True)
class Sent:
    """What became of the requests of some time, or over some protocol.

    Attributes:
        failures: How many failed, by what went wrong.
    """

    latencies: Latencies = field(default_factory=Latencies)
    failures: dict[str, int] = field(default_factory=dict)

    @classmethod
    def together(cls, parts: Iterable["Sent"]) -> "Sent":
        """All of them."""
        whole = cls()
        for part in parts:
            whole.merge(part)
        return whole

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> "Sent":
        """What `dataclasses.asdict` made of one, and JSON of that."""
        kept = document["latencies"]
        # JSON has no whole numbers as keys.
        counts = {int(bucket): many for bucket, many in kept["counts"].items()}
        latencies = Latencies(counts=counts, sum_seconds=kept["sum_seconds"])
        return cls(latencies, dict(document["failures"]))

    @property
    def failed(self) -> int:
        """How many failed."""
        return sum(self.failures.values())

    @property
    def requests(self) -> int:
        """How many there were."""
        return self.latencies.count + self.failed

    def fail(self, reason: str, times: int = 1) -> None:
        """Count one that failed, or more."""
        self.failures[reason] = self.failures.get(reason, 0) + times

    def merge(self, other: "Sent") -> None:
        """Add others."""
        self.latencies.merge(other.latencies.counts, other.latencies.sum_seconds)
        for reason, times in other.failures.items():
            self.fail(reason, times)
