"""Shapes of load, as tables of stages, and what is measured in each stage.

    SHAPES["spike"].stages
    (Stage(60, 20), Stage(15, 100), Stage(60, 20))

`--shape NAME` chooses one; `--rate` and `--duration` stretch its table. A stage's rate
is what is sent, whatever becomes of it (see `loadtest.users.pacing`): so many users
that each sends `--user-rate` requests a second. `capacity` is a table whose stages end
with the first that breaks the objective, or answers hardly more than the one before.
"""

import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import perf_counter
from types import MappingProxyType
from typing import Any, ClassVar, Final, Self

from locust import LoadTestShape

from loadtest.users.base import REFUSED

log = logging.getLogger(__name__)

# What may be refused or fail where the objective is met, and the percentile it is for.
ERROR_BUDGET: Final = 0.01
PERCENTILE: Final = 0.99
# Locust looks at a shape once a second: a stage ends with the nearest look.
HALF_TICK_SECONDS: Final = 0.5
# The stages of `capacity` end where less than this share of what is sent is answered,
# and of what is sent more than before less than this share is answered more.
KEPT_UP, GAIN = 0.95, 0.5
FIRST_RATE, GROWTH, MOST_STAGES = 20.0, 1.25, 28


@dataclass(frozen=True, slots=True)
class Stage:
    """A time, and how much is sent in it.

    Attributes:
        requests_per_second: At its end; and all the time, without the next.
        from_requests_per_second: At its beginning; in between it changes evenly.
    """

    duration_seconds: float
    requests_per_second: float
    from_requests_per_second: float | None = None

    @property
    def highest(self) -> float:
        """The most that is sent a second."""
        return max(self.requests_per_second, self.from_requests_per_second or 0)

    def rate_at(self, elapsed_seconds: float) -> float:
        """Requests a second when so much of it has gone by."""
        begin, end = self.from_requests_per_second, self.requests_per_second
        if begin is None:
            return end
        return begin + (end - begin) * min(1.0, elapsed_seconds / self.duration_seconds)

    def stretched(self, *, time: float, rate: float) -> "Stage":
        """One that takes `time` times as long and sends `rate` times as much."""
        begin = self.from_requests_per_second
        return Stage(
            self.duration_seconds * time,
            self.requests_per_second * rate,
            None if begin is None else begin * rate,
        )


@dataclass(frozen=True, slots=True)
class Table:
    """Stages, one after the other.

    Attributes:
        until_broken: No stage follows one that broke the objective, or answered hardly
            more than the one before it.
    """

    stages: Sequence[Stage]
    until_broken: bool = field(default=False, kw_only=True)

    def stretched(self, *, rate: float = 0, duration_seconds: float = 0) -> "Table":
        """The same with another highest rate, or of another length; 0 changes nothing.

        Raises:
            ValueError: One of them is below 0.
        """
        if min(rate, duration_seconds) < 0:
            raise ValueError(
                f"expected a rate and a time, not {rate, duration_seconds}"
            )
        highest = max(stage.highest for stage in self.stages)
        whole = sum(stage.duration_seconds for stage in self.stages)
        scale = {
            "rate": rate / highest if rate else 1,
            "time": duration_seconds / whole if duration_seconds else 1,
        }
        return replace(self, stages=tuple(s.stretched(**scale) for s in self.stages))


SHAPES: Final[Mapping[str, Table]] = MappingProxyType(
    {
        "ramp": Table((Stage(60, 100, 1), Stage(60, 100), Stage(30, 1, 100))),
        "step": Table(tuple(Stage(30, rate) for rate in (20, 40, 60, 80, 100))),
        "spike": Table((Stage(60, 20), Stage(15, 100), Stage(60, 20))),
        "soak": Table((Stage(60, 50, 1), Stage(3600, 50))),
        "capacity": Table(
            tuple(Stage(10, FIRST_RATE * GROWTH**n) for n in range(MOST_STAGES)),
            until_broken=True,
        ),
    }
)


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


class Walk:
    """Goes through a table's stages as time goes by.

    Attributes:
        outcomes: Of the stages that are over, where there was time to measure.
    """

    def __init__(self, table: Table, *, user_rate: float, slo_seconds: float) -> None:
        self.outcomes: list[Outcome] = []
        self._stages = iter(table.stages)
        self._until_broken = table.until_broken
        self._user_rate = user_rate
        self._slo_seconds = slo_seconds
        self._stage: Stage | None = None
        self._began_seconds = -math.inf
        self._window: tuple[float, Totals] | None = None

    def users(self, now_seconds: float, counted: Totals) -> int | None:
        """How many there are to be from now on; `None` at the end.

        Args:
            now_seconds: By a clock that goes on evenly.
            counted: Until now.
        """
        stage = self._stage
        if stage is None:
            return self._begin(now_seconds)
        elapsed = now_seconds - self._began_seconds
        if elapsed < stage.duration_seconds - HALF_TICK_SECONDS:
            # What it starts with, and what is left of the stage before, do not count.
            self._window = self._window or (now_seconds, counted)
            return self._users_for(stage.rate_at(elapsed))
        self.close(now_seconds, counted)
        if self._until_broken and self._broken():
            return None
        return self._begin(now_seconds)

    def close(self, now_seconds: float, counted: Totals) -> None:
        """The stage is over: note what was measured in it, if there was time for it."""
        if self._stage and self._window:
            since_seconds, before = self._window
            outcome = outcome_of(
                counted.since(before),
                requests_per_second=self._user_rate
                * self._users_for(self._stage.requests_per_second),
                seconds=now_seconds - since_seconds,
                slo_seconds=self._slo_seconds,
            )
            self.outcomes.append(outcome)
        self._stage = self._window = None

    def _begin(self, now_seconds: float) -> int | None:
        self._stage = next(self._stages, None)
        self._began_seconds = now_seconds
        return self._users_for(self._stage.rate_at(0)) if self._stage else None

    def _users_for(self, rate: float) -> int:
        return max(1, round(rate / self._user_rate))

    def _broken(self) -> bool:
        if not self.outcomes:
            return False
        last = self.outcomes[-1]
        if not last.within_slo:
            return True
        sent, answered = last.requests_per_second, last.answered_per_second
        if len(self.outcomes) == 1 or answered >= KEPT_UP * sent:
            return False
        before = self.outcomes[-2]
        more_sent = sent - before.requests_per_second
        return answered - before.answered_per_second < GAIN * more_sent


class StagedShape(LoadTestShape):
    """Tells Locust how many users send what a table's stage has to be sent.

    Attributes:
        name: Of the table.
    """

    abstract = True
    # `--run-time` ends a shape, too; and Locust's web UI keeps its fields for users.
    use_common_options = True
    name: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self._walk: Walk | None = None

    def reset_time(self) -> None:
        """A run starts: begin with the first stage."""
        super().reset_time()
        options = self._options()
        table = SHAPES[self.name].stretched(
            rate=options.rate, duration_seconds=options.duration
        )
        self._walk = Walk(table, user_rate=options.user_rate, slo_seconds=options.slo)

    def tick(self) -> tuple[int, float] | None:
        """Users, and how many of them come in a second; `None` ends the run."""
        if self._walk is None:
            self.reset_time()
        walk: Any = self._walk
        options = self._options()
        now, counted, known = perf_counter(), self._counted(), len(walk.outcomes)
        if options.run_time and self.get_run_time() >= options.run_time:
            walk.close(now, counted)
            users = None
        else:
            users = walk.users(now, counted)
        for outcome in walk.outcomes[known:]:
            log.info("%s: %s", self.name, _told(outcome))
        if users is None:
            self._finish(walk.outcomes, options)
            return None
        # All at once: a stage starts with its rate.
        return users, float(users)

    def _finish(self, outcomes: Sequence[Outcome], options: Any) -> None:
        self._walk = None
        capacity = capacity_per_second(outcomes)
        log.info("%s: %.1f answers/s within the objective", self.name, capacity)
        if options.stages_file:
            document = {
                "shape": self.name,
                "slo_seconds": options.slo,
                "capacity_per_second": capacity,
                "stages": [_json(outcome) for outcome in outcomes],
            }
            text = json.dumps(document, indent=2, allow_nan=False)
            Path(options.stages_file).write_text(text + "\n", encoding="utf-8")

    def _options(self) -> Any:
        return self.runner.environment.parsed_options  # type: ignore[union-attr]

    def _counted(self) -> Totals:
        stats = self.runner.stats  # type: ignore[union-attr]
        return Totals.of(list(stats.entries.values()))


class Ramp(StagedShape):
    """More and more, a while at the top, and back."""

    name = "ramp"


class Step(StagedShape):
    """More, step by step."""

    name = "step"


class Spike(StagedShape):
    """Five times as much, for a short time."""

    name = "spike"


class Soak(StagedShape):
    """The same for an hour: what leaks, shows."""

    name = "soak"


class Capacity(StagedShape):
    """More, step by step, until the objective breaks or no more is answered."""

    name = "capacity"


def _percentile(milliseconds: Mapping[float, int], share: float) -> float:
    """Seconds that so many take at most."""
    left = math.ceil(share * sum(milliseconds.values()))
    for time, count in sorted(milliseconds.items()):
        left -= count
        if left <= 0:
            return time / 1000
    return math.nan


def _json(outcome: Outcome) -> Mapping[str, Any]:
    """JSON knows no NaN."""
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in asdict(outcome).items()
    }


def _told(outcome: Outcome) -> str:
    return (
        f"{outcome.requests_per_second:.1f}/s sent, "
        f"{outcome.answered_per_second:.1f}/s answered, "
        f"{outcome.refused} refused, {outcome.failed} failed, "
        f"p50 {outcome.p50_seconds:.3f} s, p99 {outcome.p99_seconds:.3f} s, "
        f"{'within' if outcome.within_slo else 'not within'} the objective"
    )
