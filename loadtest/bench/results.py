"""What a load test has measured, and the file that keeps it.

A stage is a part of the shape with a load of its own, a repetition the whole shape
once, a run all repetitions with what they depend on.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Final

from loadtest.bench.sent import Sent
from loadtest.harness.numbers import as_json
from loadtest.shapes import Stage

FORMAT: Final = 2
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
        errors_per_second: Requests that it answered with an error, refusals included.
    """

    batch_rows: float = math.nan
    queue_depth: float = math.nan
    engine_busy: float = math.nan
    errors_per_second: float = math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult:
    """What became of a stage.

    Attributes:
        number: From 1.
        asked_per_second: The load that was planned.
        seconds: Time that was counted; where the load changes some is left out.
        protocols: What was sent, by the tags of the users that sent it.
        generator_busy: Share of a core that the busiest process of Locust took.
    """

    number: int
    asked_per_second: float
    seconds: float
    protocols: Mapping[str, Sent]
    gateway: GatewayNumbers
    generator_busy: float = math.nan

    @property
    def sent(self) -> Sent:
        """What was sent over all protocols."""
        return Sent.together(self.protocols.values())

    def over(self, protocol: str) -> "StageResult":
        """What became of that part that was sent over a protocol."""
        sent = self.protocols.get(protocol, Sent())
        return replace(self, protocols={protocol: sent})

    def measure(self, name: str) -> float:
        """One of `MEASURES`: in seconds, as a share of 1, or right answers a second."""
        sent = self.sent
        if name in PERCENTILES:
            return sent.latencies.percentile(PERCENTILES[name])
        if name == "mean":
            return sent.latencies.mean_seconds
        if name == "rps":
            return sent.latencies.count / self.seconds if self.seconds else math.nan
        return sent.failed / sent.requests if sent.requests else math.nan


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
        return Sent.together(one.sent for one in self.results).failures

    def over(self, protocol: str) -> "StageSummary":
        """That part of it that was sent over a protocol."""
        return replace(self, results=[one.over(protocol) for one in self.results])

    def measure(self, name: str) -> float:
        """The median of the repetitions' `StageResult.measure`.

        So that what the machine did beside one of them does not count. One in which
        nothing was measured counts as the worst.
        """
        worst = 0.0 if name == "rps" else math.inf
        values = [worst if math.isnan(one) else one for one in self.measures(name)]
        found = statistics.median(values)
        return found if math.isfinite(found) else math.nan

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
        """The most that a repetition had; NaN where nothing is known."""
        shares = (one.generator_busy for one in self.results)
        known = [one for one in shares if not math.isnan(one)]
        return max(known, default=math.nan)


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
        settings: What was chosen; `comparison` tells what of it has to be alike.
        machine: What `harness.machine` tells.
    """

    settings: Mapping[str, Any]
    machine: Mapping[str, Any]
    plan: Sequence[Stage]
    repetitions: Sequence[Repetition]

    @property
    def protocols(self) -> Sequence[str]:
        """Tags of the users that sent the load."""
        chosen: Sequence[str] = self.settings["protocols"]
        return chosen

    @property
    def parts(self) -> Sequence[str]:
        """The same, where several shared the load; else none."""
        return self.protocols if len(self.protocols) > 1 else ()

    @property
    def knows_gateway(self) -> bool:
        """Whether a gateway told of itself; TensorFlow Serving alone does not."""
        # A stage that was short may have none, where single seconds have some.
        seconds = chain.from_iterable(one.series for one in self.repetitions)
        stages = chain.from_iterable(one.stages for one in self.repetitions)
        depths = [
            *(one.queue_depth for one in seconds),
            *(one.gateway.queue_depth for one in stages),
        ]
        return not all(map(math.isnan, depths))

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
        """Write it as JSON, with the measures of each stage and protocol as well."""
        document = {"format": FORMAT, **asdict(self)}
        for kept, told in zip(self.repetitions, document["repetitions"], strict=True):
            for stage, entry in zip(kept.stages, told["stages"], strict=True):
                entry["measures"] = _measures(stage)
                for protocol, part in entry["protocols"].items():
                    part["measures"] = _measures(stage.over(protocol))
        text = json.dumps(as_json(document), allow_nan=False, indent=1)
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


def _measures(stage: StageResult) -> dict[str, float]:
    return {name: stage.measure(name) for name in MEASURES}


def _repetition(document: Mapping[str, Any]) -> Repetition:
    return Repetition(
        stages=[_stage(one) for one in document["stages"]],
        series=[Second(**_numbers(one)) for one in document["series"]],
        reference_seconds=document["reference_seconds"],
    )


def _stage(document: Mapping[str, Any]) -> StageResult:
    fields = {name: one for name, one in document.items() if name != "measures"}
    fields["protocols"] = {
        protocol: Sent.read(one) for protocol, one in fields["protocols"].items()
    }
    fields["gateway"] = GatewayNumbers(**_numbers(fields["gateway"]))
    return StageResult(**_numbers(fields))


def _numbers(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What was no number has become null, as JSON has no NaN."""
    return {name: math.nan if one is None else one for name, one in fields.items()}
