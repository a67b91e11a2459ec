"""What a load test has measured, and the file that keeps it.

A stage is a part of the shape with a load of its own, a repetition the whole shape
once, a run all repetitions with what they depend on.
"""

import json
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

from loadtest.bench.histogram import Latencies
from loadtest.shapes import Stage

FORMAT: Final = 1
PERCENTILES: Final = {"p50": 50, "p90": 90, "p95": 95, "p99": 99}
LATENCIES: Final = (*PERCENTILES, "mean")
MEASURES: Final = (*LATENCIES, "errors", "rps")


class UnreadableRun(ValueError):
    """A file that holds no run of this program; says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayNumbers:
    """What the gateway told of a stretch of time; NaN where it told nothing.

    Attributes:
        batch_rows: Mean rows of an engine call.
        queue_depth: Requests that wait, as seen each second.
        engine_busy: Share of the time that the engine's slots were taken.
        refused_per_second: Requests that it answered with an error.
    """

    batch_rows: float = math.nan
    queue_depth: float = math.nan
    engine_busy: float = math.nan
    refused_per_second: float = math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult:
    """What became of a stage.

    Attributes:
        number: From 1.
        asked_per_second: The load that was planned.
        seconds: Time that was counted; where the load changes some is left out.
        failures: How many, by what went wrong.
        generator_busy: Share of a core that the busiest process of Locust took.
    """

    number: int
    asked_per_second: float
    seconds: float
    latencies: Latencies
    failures: Mapping[str, int]
    gateway: GatewayNumbers
    generator_busy: float = math.nan

    @property
    def requests(self) -> int:
        """How many were sent, failures included."""
        return self.latencies.count + sum(self.failures.values())

    def measure(self, name: str) -> float:
        """One of `MEASURES`: in seconds, as a share of 1, or right answers a second."""
        if name in PERCENTILES:
            return self.latencies.percentile(PERCENTILES[name])
        if name == "mean":
            return self.latencies.mean_seconds
        if name == "rps":
            return self.latencies.count / self.seconds if self.seconds else math.nan
        return (
            sum(self.failures.values()) / self.requests if self.requests else math.nan
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSummary:
    """A stage in all repetitions that came to it.

    Attributes:
        results: Of these repetitions; at least one.
        repetitions: How many there were of the shape.
    """

    results: Sequence[StageResult]
    repetitions: int

    @property
    def number(self) -> int:
        """From 1."""
        return self.results[0].number

    @property
    def asked_per_second(self) -> float:
        """The load that was planned."""
        return self.results[0].asked_per_second

    @property
    def is_usual(self) -> bool:
        """Whether more than half of the repetitions came to it."""
        return 2 * len(self.results) > self.repetitions

    @property
    def failures(self) -> Mapping[str, int]:
        """How many there were, by what went wrong."""
        together = Counter[str]()
        for one in self.results:
            together.update(one.failures)
        return together

    def measure(self, name: str) -> float:
        """The median of the repetitions' `StageResult.measure`.

        So that what the machine did beside one of them does not count.
        """
        return statistics.median(self.measures(name))

    def measures(self, name: str) -> Sequence[float]:
        """One for each repetition."""
        return [one.measure(name) for one in self.results]

    def gateway(self, name: str) -> float:
        """The median of one of the `GatewayNumbers`; NaN where nothing is known."""
        values = [getattr(one.gateway, name) for one in self.results]
        known = [one for one in values if not math.isnan(one)]
        return statistics.median(known) if known else math.nan

    @property
    def generator_busy(self) -> float:
        """The most that a repetition had."""
        return max(one.generator_busy for one in self.results)


@dataclass(frozen=True, slots=True, kw_only=True)
class Second:
    """A second of a repetition, for the plots over time; NaN where nothing is known."""

    at_seconds: float
    asked: float
    answered: int
    failed: int
    p50_seconds: float
    p99_seconds: float
    batch_rows: float
    queue_depth: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Repetition:
    """The whole shape once.

    Attributes:
        reference_seconds: How long a fixed computation took before it, which tells how
            fast the machine was then.
    """

    stages: Sequence[StageResult]
    series: Sequence[Second]
    reference_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """All repetitions.

    Attributes:
        settings: What was chosen; runs that differ in it cannot be compared.
        machine: What `harness.machine` tells.
    """

    settings: Mapping[str, Any]
    machine: Mapping[str, Any]
    plan: Sequence[Stage]
    repetitions: Sequence[Repetition]

    @property
    def stages(self) -> Sequence[StageSummary]:
        """Each stage in all repetitions.

        One that looks for the capacity ends when it has found it, so that the last
        stages may be those of some repetitions only.
        """
        many = len(self.repetitions)
        same = zip_longest(*(one.stages for one in self.repetitions))
        return [
            StageSummary(results=[one for one in stage if one], repetitions=many)
            for stage in same
        ]

    def write(self, path: Path) -> None:
        """Write it as JSON, with the measures of each stage as well."""
        document = {"format": FORMAT, **asdict(self)}
        for kept, told in zip(self.repetitions, document["repetitions"], strict=True):
            for stage, entry in zip(kept.stages, told["stages"], strict=True):
                entry["measures"] = {name: stage.measure(name) for name in MEASURES}
        text = json.dumps(_json(document), allow_nan=False, indent=1)
        path.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Run":
        """Read what `write` wrote.

        Raises:
            UnreadableRun: It is something else, or cannot be read.
        """
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UnreadableRun(f"{path}: {error.strerror}") from error
        except ValueError as error:
            raise UnreadableRun(f"{path}: not JSON ({error})") from error
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise UnreadableRun(f"{path}: not written by this `blockserve bench`")
        try:
            return cls(
                settings=document["settings"],
                machine=document["machine"],
                plan=[Stage(**one) for one in document["plan"]],
                repetitions=[_repetition(one) for one in document["repetitions"]],
            )
        except (KeyError, TypeError) as error:
            raise UnreadableRun(f"{path}: incomplete ({error!r})") from error


def _repetition(document: Mapping[str, Any]) -> Repetition:
    return Repetition(
        stages=[_stage(one) for one in document["stages"]],
        series=[Second(**_numbers(one)) for one in document["series"]],
        reference_seconds=document["reference_seconds"],
    )


def _stage(document: Mapping[str, Any]) -> StageResult:
    fields = {name: one for name, one in document.items() if name != "measures"}
    kept = fields["latencies"]
    counts = {int(bucket): many for bucket, many in kept["counts"].items()}
    fields["latencies"] = Latencies(counts=counts, sum_seconds=kept["sum_seconds"])
    fields["gateway"] = GatewayNumbers(**_numbers(fields["gateway"]))
    return StageResult(**_numbers(fields))


def _numbers(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What was no number has become null, as JSON has no NaN."""
    return {name: math.nan if one is None else one for name, one in fields.items()}


def _json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _json(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_json(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
