"""How fast the gateway starts, and how much memory it takes.

    python -m loadtest.startup [--repository DIR] [--output DIR] [--repetitions N]

Starts the real program several times and measures the time until `/readyz` answers 200
and the resident memory then, beside a bare interpreter in the same run; medians.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Final

import cyclopts
import httpx
import matplotlib.pyplot as plt
import psutil

from loadtest.harness.gateway import gateway_command, repository_of
from loadtest.harness.ports import free_port
from loadtest.harness.processes import server
from loadtest.harness.report import (
    MEGABYTE,
    Budget,
    Options,
    Report,
    finish,
    new_table,
    progress,
    shown,
)
from loadtest.harness.workloads import version_directory

MODEL: Final = "inception"
REPETITIONS: Final = 5
EMBEDDED: Final = "gateway, openvino engine"
BUDGET_READY_SECONDS: Final = 2.0
BUDGET_MEMORY_BYTES: Final = 250 * MEGABYTE


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a start took until it was ready, and the resident memory then."""

    ready_seconds: float
    memory_bytes: float


def main(
    options: Options = Options(),  # noqa: B008, it is immutable
    *,
    repetitions: int = REPETITIONS,
) -> None:
    """Measure, print a table, and write the report.

    Args:
        options: How to run; a start takes as long as it takes, whatever `seconds` says.
        repetitions: Starts of each subject.
    """
    version_directory(options.repository, MODEL)
    repetitions = 1 if options.quick else repetitions
    starts = _measure(options, repetitions)
    embedded = starts[EMBEDDED]
    report = Report(
        name="startup",
        settings={**asdict(options), "repetitions": repetitions},
        results={name: asdict(start) for name, start in starts.items()},
        budgets=[
            Budget(
                name="start to ready, embedded engine",
                measured=embedded.ready_seconds,
                limit=BUDGET_READY_SECONDS,
                bound="at most",
                format="seconds",
            ),
            Budget(
                name="memory when ready, embedded engine",
                measured=embedded.memory_bytes,
                limit=BUDGET_MEMORY_BYTES,
                bound="at most",
                format="megabytes",
            ),
        ],
    )
    finish(report, _plot(starts), [_table(starts)], options.output)


def _measure(options: Options, repetitions: int) -> dict[str, Start]:
    with repository_of(options.repository, MODEL) as repository:
        subjects: Mapping[str, Callable[[], Start]] = {
            "bare interpreter": _start_interpreter,
            "gateway, stub engine": lambda: _start_gateway(
                gateway_command(repository, "--engine", "stub")
            ),
            EMBEDDED: lambda: _start_gateway(
                gateway_command(repository, "--engine", "openvino")
            ),
        }
        starts: dict[str, list[Start]] = {name: [] for name in subjects}
        with progress(repetitions * len(subjects)) as steps:
            for _ in range(repetitions):
                for name, start in subjects.items():
                    steps.next(name)
                    starts[name].append(start())
    return {
        name: Start(
            ready_seconds=median(one.ready_seconds for one in several),
            memory_bytes=median(one.memory_bytes for one in several),
        )
        for name, several in starts.items()
    }


def _start_interpreter() -> Start:
    """The floor: what Python itself costs on this machine at this moment."""
    code = "import psutil; print(psutil.Process().memory_info().rss)"
    started = time.perf_counter()
    done = subprocess.run(  # noqa: S603, our own interpreter
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return Start(
        ready_seconds=time.perf_counter() - started, memory_bytes=int(done.stdout)
    )


def _start_gateway(command: Sequence[str]) -> Start:
    port = free_port()
    address = f"http://127.0.0.1:{port}"

    # A client for each question would compute longer than the gateway's warm-up does.
    with httpx.Client() as client:

        def ready(_: str) -> str | None:
            with suppress(httpx.TransportError):
                if client.get(f"{address}/readyz").is_success:
                    return address
            return None

        started = time.perf_counter()
        with server([*command, "--http-port", str(port)], ready=ready) as running:
            return Start(
                ready_seconds=time.perf_counter() - started,
                memory_bytes=psutil.Process(running.pid).memory_info().rss,
            )


def _table(starts: Mapping[str, Start]) -> Any:
    table = new_table("start to ready", "subject", "ready", "resident memory")
    for name, start in starts.items():
        table.add_row(
            name,
            shown(start.ready_seconds, "seconds"),
            shown(start.memory_bytes, "megabytes"),
        )
    return table


def _plot(starts: Mapping[str, Start]) -> Any:
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(9, 2.5), layout="constrained", sharey=True
    )
    names = list(starts)
    seconds = [start.ready_seconds for start in starts.values()]
    megabytes = [start.memory_bytes / MEGABYTE for start in starts.values()]
    for axes, values, limit, label, form in (
        (left, seconds, BUDGET_READY_SECONDS, "start to ready, s", "%.2f"),
        (
            right,
            megabytes,
            BUDGET_MEMORY_BYTES / MEGABYTE,
            "resident memory, MB",
            "%.0f",
        ),
    ):
        axes.bar_label(axes.barh(names, values), fmt=form, padding=3)
        axes.axvline(limit, color="C3", linestyle="--", label="budget, openvino")
        axes.margins(x=0.12)
        axes.set_xlabel(label)
    left.invert_yaxis()
    right.legend()
    return figure


if __name__ == "__main__":
    cyclopts.run(main)
