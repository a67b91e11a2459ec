"""The shapes as Locust wants them: a class for each, that tells how many users."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

from locust import LoadTestShape

from loadtest.harness.numbers import as_json
from loadtest.shapes import SHAPES, Walk
from loadtest.shapes.outcomes import Outcome, Totals, capacity_per_second

log = logging.getLogger(__name__)


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

    @property
    def place(self) -> tuple[int, int]:
        """The number of the stage that runs, from 1, and how many have begun so far.

        Before the first and after the last both are 0.
        """
        walk = self._walk
        return (walk.stage_number, walk.begun) if walk else (0, 0)

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
                "stages": [as_json(asdict(outcome)) for outcome in outcomes],
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


def _told(outcome: Outcome) -> str:
    return (
        f"{outcome.requests_per_second:.1f}/s sent, "
        f"{outcome.answered_per_second:.1f}/s answered, "
        f"{outcome.refused} refused, {outcome.failed} failed, "
        f"p50 {outcome.p50_seconds:.3f} s, p99 {outcome.p99_seconds:.3f} s, "
        f"{'within' if outcome.within_slo else 'not within'} the objective"
    )
