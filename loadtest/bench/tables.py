"""The numbers of a run as rows of text, for the terminal, the page and the CSV file."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from loadtest.bench.comparison import Change
from loadtest.bench.results import LATENCIES, MEASURES, PERCENTILES, Run, StageSummary
from loadtest.bench.slo import Verdict

MILLISECONDS: Final = 1000
NOTHING: Final = "–"  # noqa: RUF001, a dash for people
# More than this of a core, and Locust itself may be what is slow.
GENERATOR_LIMIT: Final = 0.85
STAGE_COLUMNS: Final = (
    *("stage", "asked/s", "answered/s", "errors"),
    *(*PERCENTILES, "p99 of each"),
    *("batch", "queue", "engine", "Locust"),
)
# Those for which a terminal of 80 columns has room.
FEW_STAGE_COLUMNS: Final = (
    *("stage", "asked/s", "answered/s", "errors", "p50", "p99", "queue", "engine"),
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
            shown_measure("rps", one.measure("rps")),
            shown_measure("errors", one.measure("errors")),
            *(shown_measure(name, one.measure(name)) for name in PERCENTILES),
            _range(one.measures("p99")),
            _number(one.gateway("batch_rows")),
            _number(one.gateway("queue_depth")),
            _share(one.gateway("engine_busy")),
            _share(one.generator_busy),
        ]
        for one in stages
    ]


def change_rows(changes: Sequence[Change]) -> list[list[str]]:
    """What changed, as `CHANGE_COLUMNS`; what cannot be told is there as well."""
    return [
        [
            str(one.stage) if one.stage else "all",
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
    """One line for each stage of each repetition; seconds, and shares of 1."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        gateway = ("batch_rows", "queue_depth", "engine_busy", "refused_per_second")
        writer.writerow(
            [
                *("repetition", "stage", "asked_per_second", "seconds", "requests"),
                *(f"{one}_seconds" for one in LATENCIES),
                *("errors_share", "answers_per_second"),
                *gateway,
                "generator_busy",
            ]
        )
        for number, repetition in enumerate(run.repetitions, 1):
            for one in repetition.stages:
                values = (
                    *(one.measure(name) for name in MEASURES),
                    *(getattr(one.gateway, name) for name in gateway),
                    one.generator_busy,
                )
                writer.writerow(
                    [
                        *(number, one.number, one.asked_per_second),
                        *(one.seconds, one.requests),
                        *(
                            "" if math.isnan(value) else f"{value:.6g}"
                            for value in values
                        ),
                    ]
                )


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
