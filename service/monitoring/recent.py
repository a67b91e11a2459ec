"""What was done in the last minute, for people who have no Prometheus.

Nothing is counted for it. The series that Prometheus reads are noted every few seconds,
and what grew between two notes is what was done.
"""

import asyncio
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Final, NoReturn

from service.repository import Repository
from service.served_version import Load
from service.telemetry.metrics import Metrics
from service.telemetry.series import Labels, Numbers

WINDOW_SECONDS: Final = 60.0
INTERVAL_SECONDS: Final = 5.0

# By family, and by the values of its labels.
Counts = Mapping[tuple[str, Labels], Numbers]

# The families that are noted.
REQUESTS: Final = "requests"  # durations, by protocol, model and version
ERRORS: Final = "errors"  # by protocol, model, version and code
STAGES: Final = "stages"  # durations, by model, version and stage
BATCHES: Final = "batches"  # rows, by model and version
PADDING: Final = "padding"  # rows, by model and version
BUSY: Final = "busy"  # seconds of engine slots, by model and version


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What was done in some seconds up to now, by one process or by several.

    Attributes:
        seconds: How long that was.
        counts: What was done.
        loads: How each version that serves is now, by model and version.
    """

    seconds: float
    counts: Counts
    loads: Mapping[Labels, Load]

    def of(self, family: str) -> Iterator[tuple[Labels, Numbers]]:
        """The series of a family in which something was done."""
        for (name, labels), numbers in self.counts.items():
            if name == family and any(numbers):
                yield labels, numbers

    def __add__(self, other: "Window") -> "Window":
        """Two processes as one."""
        counts = dict(self.counts)
        for key, numbers in other.counts.items():
            if key in counts:
                both = zip(numbers, counts[key], strict=True)
                counts[key] = tuple(map(sum, both))
            else:
                counts[key] = numbers
        loads = dict(self.loads)
        for labels, load in other.loads.items():
            loads[labels] = load + loads[labels] if labels in loads else load
        return Window(
            seconds=max(self.seconds, other.seconds), counts=counts, loads=loads
        )


class Recent:
    """Notes what a process does.

    Args:
        metrics: What it counts.
        repository: What serves.
    """

    def __init__(self, metrics: Metrics, repository: Repository) -> None:
        self._metrics = metrics
        self._repository = repository
        notes = int(WINDOW_SECONDS / INTERVAL_SECONDS) + 1
        self._notes: deque[tuple[float, Counts]] = deque(maxlen=notes)
        self._note()

    async def follow(self) -> NoReturn:
        """Note every few seconds what there is."""
        while True:
            await asyncio.sleep(INTERVAL_SECONDS)
            self._note()

    def window(self) -> Window:
        """What was done since the oldest note: in a minute, or since the start."""
        began_at, before = self._notes[0]
        loads = self._loads()
        return Window(
            seconds=monotonic() - began_at,
            counts={
                key: _growth(numbers, before.get(key))
                for key, numbers in self._counts(loads).items()
            },
            loads=loads,
        )

    def _note(self) -> None:
        self._notes.append((monotonic(), self._counts(self._loads())))

    def _loads(self) -> Mapping[Labels, Load]:
        return {
            served.metrics.labels: served.load
            for model in self._repository.models.values()
            for served in model.available
        }

    def _counts(self, loads: Mapping[Labels, Load]) -> Counts:
        metrics = self._metrics
        busy = {labels: (load.busy_seconds,) for labels, load in loads.items()}
        families: Mapping[str, Mapping[Labels, Numbers]] = {
            REQUESTS: metrics.request_duration_seconds.numbers(),
            ERRORS: metrics.errors_total.numbers(),
            STAGES: metrics.stage_duration_seconds.numbers(),
            BATCHES: metrics.batch_size_rows.numbers(),
            PADDING: metrics.padding_rows_total.numbers(),
            BUSY: busy,
        }
        return {
            (name, labels): numbers
            for name, family in families.items()
            for labels, numbers in family.items()
        }


def _growth(now: Numbers, before: Numbers | None) -> Numbers:
    if before is None or any(a < b for a, b in zip(now, before, strict=True)):
        return now  # the version is new, or was loaded anew
    return tuple(a - b for a, b in zip(now, before, strict=True))
