"""Shapes of load, as tables of stages.

    SHAPES["spike"].stages
    (Stage(60, 20), Stage(15, 100), Stage(60, 20))

`--shape NAME` chooses one; `--rate` and `--duration` stretch its table. A stage's rate
is what is sent, whatever becomes of it (see `loadtest.users.pacing`): so many users
that each sends `--user-rate` requests a second. `capacity` is a table whose stages end
with the first that twice breaks the objective, or answers hardly more than the one
before: once may be the machine's fault.
Nothing here imports Locust, which changes the process that imports it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from loadtest.shapes.outcomes import Outcome, Totals, outcome_of

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
        until_broken: A stage that breaks the objective, or answers hardly more than the
            one before, is tried again; if it does so again, it is the last.
    """

    stages: Sequence[Stage]
    until_broken: bool = field(default=False, kw_only=True)

    def stretched(self, *, rate: float = 0, duration_seconds: float = 0) -> "Table":
        """The same with another highest rate, or of another length; 0 changes nothing.

        Raises:
            ValueError: One of them is below 0.
        """
        if min(rate, duration_seconds) < 0:
            raise ValueError(f"below 0: a rate of {rate}, {duration_seconds} s")
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


class Walk:
    """Goes through a table's stages as time goes by.

    Attributes:
        outcomes: Of the stages that are over, where there was time to measure.
        stage_number: Of the stage that runs, from 1; 0 before the first.
        begun: How many stages have begun; one that is taken once more counts again.
    """

    def __init__(self, table: Table, *, user_rate: float, slo_seconds: float) -> None:
        self.outcomes: list[Outcome] = []
        self.stage_number = self.begun = 0
        self._stages = iter(table.stages)
        self._until_broken = table.until_broken
        self._tried_again = False
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
        broken = self._until_broken and self._broken()
        if broken and self._tried_again:
            return None
        if broken:
            self._stages = iter((stage, *self._stages))
            self.stage_number -= 1
        self._tried_again = broken
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
        self.stage_number += 1
        self.begun += 1
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
        lower = [one for one in self.outcomes if one.requests_per_second < sent]
        if not lower or answered >= KEPT_UP * sent:
            return False
        more_sent = sent - lower[-1].requests_per_second
        return answered - lower[-1].answered_per_second < GAIN * more_sent
