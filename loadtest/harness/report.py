"""What the benchmarks share: their options, their budgets, and where results go.

A benchmark leaves NAME.json (numbers, settings, machine) and NAME.png in the output
folder, and prints its tables and a mark for each budget.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import cyclopts
import matplotlib as mpl
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from loadtest.harness.machine import machine
from loadtest.harness.numbers import as_json

mpl.use("Agg")

PACKAGES: Final = ("blockserve", "openvino", "numpy", "uvicorn", "uvloop", "httptools")
QUICK_SECONDS: Final = 2.0
ROUNDS: Final = 3
QUICK_ROUNDS: Final = 1
PLOT_DOTS_PER_INCH: Final = 144
FILE_COLUMNS: Final = 120
MILLISECONDS: Final = 1000
MEGABYTE: Final = 1_000_000
Format = Literal[
    "ratio", "percent", "seconds", "milliseconds", "microseconds", "megabytes", "count"
]
# What a number is multiplied with, and the text around it.
FORMATS: Final[Mapping[Format, tuple[float, str]]] = {
    "ratio": (1, "{:.2f}"),
    "percent": (1, "{:.1%}"),
    "seconds": (1, "{:.2f} s"),
    "milliseconds": (MILLISECONDS, "{:.2f} ms"),
    "microseconds": (MILLISECONDS * MILLISECONDS, "{:.0f} µs"),
    "megabytes": (1 / MEGABYTE, "{:.0f} MB"),
    "count": (1, "{:,.0f}"),
}


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a benchmark runs."""

    repository: Path = Path("bench_results/models")
    """Directory of models; those that are missing are built, which takes minutes."""
    output: Path = Path("bench_results")
    """Folder for the numbers and the plot."""
    seconds: float = 10
    """Time of each point that is measured."""
    quick: Annotated[bool, cyclopts.Parameter(negative="")] = False
    """Take one short round: a first impression."""

    @property
    def point_seconds(self) -> float:
        """Time of each point, in each round."""
        return min(self.seconds, QUICK_SECONDS) if self.quick else self.seconds

    @property
    def rounds(self) -> int:
        """How often all subjects are measured in turn."""
        return QUICK_ROUNDS if self.quick else ROUNDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What was to be reached, and what was."""

    name: str
    measured: float
    limit: float
    bound: Literal["at most", "at least"]
    format: Format

    @property
    def met(self) -> bool:
        """Whether it was reached; what could not be measured was not."""
        if self.bound == "at most":
            return self.measured <= self.limit
        return self.measured >= self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The outcome of a benchmark, as it is written to its file.

    Attributes:
        name: The benchmark's, and the stem of its files.
        settings: What was chosen for this run.
        results: Numbers, in the benchmark's own form.
    """

    name: str
    settings: Mapping[str, Any]
    results: Any
    budgets: Sequence[Budget]

    def write(self, output: Path) -> Path:
        """Write NAME.json with a description of the machine; numbers only."""
        output.mkdir(parents=True, exist_ok=True)
        document = {"machine": machine(PACKAGES), **asdict(self)}
        path = output / f"{self.name}.json"
        text = json.dumps(as_json(document), indent=2, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8")
        return path

    @classmethod
    def read(cls, path: Path) -> "Report":
        """Read what `write` wrote; what was no number has become NaN."""
        document = json.loads(path.read_text(encoding="utf-8"))
        del document["machine"]
        budgets = [
            Budget(**{**one, "measured": _or_nan(one["measured"])})
            for one in document.pop("budgets")
        ]
        return cls(**document, budgets=budgets)


def finish(report: Report, figure: Any, tables: Sequence[Table], output: Path) -> None:
    """Print tables and budgets, and write the report and its plot."""
    console = wide_console()
    for table in tables:
        console.print(table)
    console.print(budget_table({report.name: report.budgets}))
    path = report.write(output)
    plot = path.with_suffix(".png")
    figure.savefig(plot, dpi=PLOT_DOTS_PER_INCH)
    console.print(f"written: {path}, {plot}")


def new_table(title: str, first: str, *columns: str) -> Table:
    """A table with a column of names and columns of numbers."""
    table = Table(title=title, box=SIMPLE_HEAD)
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def wide_console() -> Console:
    """A console that does not cut tables where the output goes to a file."""
    console = Console()
    return console if console.is_terminal else Console(width=FILE_COLUMNS)


def budget_table(budgets: Mapping[str, Sequence[Budget]]) -> Table:
    """A line with a mark for each budget of each benchmark."""
    table = new_table("budgets", "benchmark", "measured", "budget", "")
    for benchmark, lines in budgets.items():
        for one in lines:
            table.add_row(
                f"{benchmark}: {one.name}",
                shown(one.measured, one.format),
                f"{one.bound} {shown(one.limit, one.format)}",
                "[green]pass[/green]" if one.met else "[red]MISS[/red]",
            )
    return table


def shown(value: float, form: Format) -> str:
    """A number with its unit; times are given in seconds, memory in bytes."""
    if not math.isfinite(value):
        return "-"
    scale, text = FORMATS[form]
    return text.format(value * scale)


@contextmanager
def progress(points: int) -> Iterator["Steps"]:
    """A bar over the points to be measured, with the time that has gone by."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, transient=True) as bar:
        yield Steps(bar, points)


class Steps:
    """Names the point that is being measured."""

    def __init__(self, bar: Progress, points: int) -> None:
        self._bar = bar
        self._task = bar.add_task("", total=points)
        self._started = False

    def next(self, description: str) -> None:
        """The point before is done, and this one begins."""
        done = 1 if self._started else 0
        self._bar.update(self._task, description=description, advance=done)
        self._started = True


def processor_share(cpu_seconds: float, wall_seconds: float) -> float:
    """Share of all cores."""
    return cpu_seconds / (wall_seconds * (os.cpu_count() or 1))


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
