"""The numbers of a run as rows of text, for the terminal, the page and the CSV file."""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Final

from loadtest.bench.comparison import Change
from loadtest.bench.results import (
    LATENCIES,
    PERCENTILES,
    GatewayNumbers,
    Run,
    StageResult,
    StageSummary,
)
from loadtest.bench.slo import Verdict

MILLISECONDS: Final = 1000
NOTHING: Final = "–"  # noqa: RUF001, a dash for people
ALL: Final = "all"
# More than this of a core, and Locust itself may be what is slow.
GENERATOR_LIMIT: Final = 0.85
STAGE_COLUMNS: Final = (
    *("stage", "asked/s", "answered/s", "errors"),
    *(*PERCENTILES, "p99 of each"),
    *("batch", "queue", "engine", "Locust"),
)
PROTOCOL_COLUMNS: Final = (
    *("stage", "asked/s", "protocol", "answered/s", "errors"),
    *(*PERCENTILES, "p99 of each"),
)
# Those for which a terminal of 80 columns has room.
FEW_STAGE_COLUMNS: Final = (
    *("stage", "asked/s", "answered/s", "errors", "p50", "p99", "queue", "engine"),
)
FEW_PROTOCOL_COLUMNS: Final = ("protocol", "answered/s", "errors", "p50", "p99")
CSV_MEASURES: Final = {
    **{name: f"{name}_seconds" for name in LATENCIES},
    "errors": "errors_share",
    "rps": "answers_per_second",
}
CSV_COLUMNS: Final = (
    *("repetition", "stage", "protocol", "asked_per_second", "seconds", "requests"),
    *CSV_MEASURES.values(),
    *(one.name for one in fields(GatewayNumbers)),
    "generator_busy",
)
NAMES: Final = {"reference": "machine's own time", "peak": "most answered/s"}
CHANGE_COLUMNS: Final = (
    "stage",
    "measure",
    "before",
    "now",
    "change",
    "95 % interval",
    "",
)


def stage_rows(stages: Sequence[StageSummary]) -> list[list[str]]:
    """The median repetition of each stage, as `STAGE_COLUMNS`."""
    return [
        [
            _stage(one),
            shown_rate(one.asked_per_second),
            *_measures(one),
            _number(one.gateway("batch_rows")),
            _number(one.gateway("queue_depth")),
            _share(one.gateway("engine_busy")),
            _share(one.generator_busy),
        ]
        for one in stages
    ]


def protocol_rows(
    stages: Sequence[StageSummary], protocols: Sequence[str]
) -> list[list[str]]:
    """What became of each protocol's part of each stage, as `PROTOCOL_COLUMNS`.

    All that was asked for is asked over all protocols together.
    """
    return [
        [
            _stage(one),
            shown_rate(one.asked_per_second),
            protocol,
            *_measures(one.over(protocol)),
        ]
        for one in stages
        for protocol in protocols
    ]


def change_rows(changes: Sequence[Change]) -> list[list[str]]:
    """What changed, as `CHANGE_COLUMNS`; what cannot be told is there as well."""
    return [
        [
            str(one.stage) if one.stage else ALL,
            NAMES.get(one.measure, one.measure),
            shown_measure(one.measure, one.old),
            shown_measure(one.measure, one.new),
            _change(one.measure, one.change),
            f"{_change(one.measure, one.low)} to {_change(one.measure, one.high)}"
            if math.isfinite(one.low)
            else NOTHING,
            one.verdict,
        ]
        for one in changes
    ]


def verdict_lines(verdict: Verdict, stages: Sequence[StageSummary]) -> list[str]:
    """What was missed, or what was carried, in words."""
    lines = []
    if verdict.highest is not None:
        best = next(one for one in stages if one.number == verdict.highest)
        lines.append(
            f"The highest load that meets it is {shown_rate(best.measure('rps'))} "
            f"answers a second (stage {best.number})."
        )
    lines += [
        f"{one.term.text} was missed: {shown_measure(one.term.measure, one.value)}"
        + (
            f" in stage {one.stage}"
            if one.stage is not None
            else " at the highest load that meets the rest"
        )
        for one in verdict.misses
    ]
    return lines


def warnings(run: Run) -> list[str]:
    """What makes the numbers less than they seem."""
    short = [
        str(one.number)
        for one in run.stages
        if not all(result.seconds for result in one.results)
    ]
    busy = [
        str(one.number) for one in run.stages if one.generator_busy > GENERATOR_LIMIT
    ]
    found = []
    if short:
        found.append(
            f"Stage {', '.join(short)} was too short to be measured each time: "
            "--duration makes it longer."
        )
    if busy:
        found.append(
            f"In stage {', '.join(busy)} a process of Locust took nearly a whole core: "
            "latencies there are Locust's as well. --processes adds processes."
        )
    return found


def write_csv(run: Run, path: Path) -> None:
    """One line for each stage of each repetition; seconds, and shares of 1.

    Where several protocols share the load, each has a line of its own besides, without
    what is known of all of them together only.
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, CSV_COLUMNS)
        writer.writeheader()
        for number, repetition in enumerate(run.repetitions, 1):
            for stage in repetition.stages:
                writer.writerows(_csv_lines(number, stage, run.parts))


def _csv_lines(
    repetition: int, stage: StageResult, parts: Sequence[str]
) -> Iterator[Mapping[str, object]]:
    place = {"repetition": repetition, "stage": stage.number, "seconds": stage.seconds}
    yield {
        **place,
        "protocol": ALL,
        "asked_per_second": stage.asked_per_second,
        **_csv_measures(stage),
        **{name: _csv(value) for name, value in asdict(stage.gateway).items()},
        "generator_busy": _csv(stage.generator_busy),
    }
    for protocol in parts:
        yield {**place, "protocol": protocol, **_csv_measures(stage.over(protocol))}


def _csv_measures(stage: StageResult) -> Mapping[str, object]:
    return {
        "requests": stage.sent.requests,
        **{one: _csv(stage.measure(name)) for name, one in CSV_MEASURES.items()},
    }


def _csv(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


def shown_measure(name: str, value: float) -> str:
    """A measure with its unit; a latency is given in seconds."""
    if math.isnan(value):
        return NOTHING
    if name in {"rps", "peak"}:
        return shown_rate(value)
    if name == "errors":
        return f"{value:.2%}" if value else "0 %"
    milliseconds = value * MILLISECONDS
    return f"{milliseconds:.{1 if milliseconds < 100 else 0}f} ms"  # noqa: PLR2004


def shown_rate(value: float) -> str:
    """A number of requests a second."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"  # noqa: PLR2004


def _measures(stage: StageSummary) -> list[str]:
    """What was answered, what failed, and how long it took."""
    names = ("rps", "errors", *PERCENTILES)
    return [
        *(shown_measure(name, stage.measure(name)) for name in names),
        _range(stage.measures("p99")),
    ]


def _stage(stage: StageSummary) -> str:
    """Its number, and how many repetitions came so far, if not all did."""
    reached = len(stage.results)
    if reached == stage.repetitions:
        return str(stage.number)
    return f"{stage.number} ({reached} of {stage.repetitions})"


def _range(seconds: Sequence[float]) -> str:
    """The least and the most of some latencies."""
    low, high = min(seconds) * MILLISECONDS, max(seconds) * MILLISECONDS
    if math.isnan(low) or math.isnan(high):
        return NOTHING
    return f"{low:.0f} to {high:.0f} ms"


def _change(measure: str, value: float) -> str:
    if math.isnan(value):
        return NOTHING
    if measure == "errors":
        return f"{value * 100:+.2f} points"
    return f"{value:+.1%}"


def _number(value: float) -> str:
    return NOTHING if math.isnan(value) else f"{value:.1f}"


def _share(value: float) -> str:
    return NOTHING if math.isnan(value) else f"{value:.0%}"
