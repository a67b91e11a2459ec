"""Runs the load test: measures, judges, compares, and writes the report."""

import signal
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from loadtest.bench.comparison import (
    CANNOT_TELL,
    FEWEST_REPETITIONS,
    Change,
    NotComparable,
    changes,
    check_comparable,
    machine_differences,
)
from loadtest.bench.locust_command import broken_seconds, locust_command
from loadtest.bench.measuring import measure
from loadtest.bench.progress import LiveProgress
from loadtest.bench.report import page
from loadtest.bench.results import Run, UnreadableRun
from loadtest.bench.slo import Verdict, judge, parse
from loadtest.bench.tables import (
    CHANGE_COLUMNS,
    FEW_PROTOCOL_COLUMNS,
    FEW_STAGE_COLUMNS,
    PROTOCOL_COLUMNS,
    STAGE_COLUMNS,
    change_rows,
    protocol_rows,
    stage_rows,
    verdict_lines,
    warnings,
    write_csv,
)
from loadtest.bench.target import NoTarget, Target, generator_processes, running
from loadtest.commands import Options
from loadtest.harness.machine import machine
from loadtest.shapes import SHAPES

PACKAGES: Final = ("blockserve", "locust", "openvino", "numpy", "uvicorn", "grpcio")
FILE_COLUMNS: Final = 140
SIGNALLED: Final = 128  # what shells add to the signal that has ended a program
MET, MISSED, WRONG_USE = 0, 1, 2


def run(options: Options) -> int:
    """Run the load test.

    Returns:
        The status that the program is to end with.

    Raises:
        BlockserveError: Nothing could be measured; says why.
    """
    # What was started ends with this program, as it does with Ctrl-C.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(SIGNALLED + number))
    try:
        return _run(options)
    except (UnreadableRun, NotComparable) as error:
        console = Console(stderr=True, soft_wrap=True)
        console.print("[red]blockserve:[/red]", end=" ")
        console.print(f"--compare: {error}", markup=False, highlight=False)
        return WRONG_USE


def tell(options: Options, run: Run, old: Run | None) -> int:
    """Print what was found, and write the files.

    Args:
        options: What was to be measured, to be reached, and where the files go.
        run: What was measured.
        old: An older run, to tell what changed since.

    Returns:
        The status that the program is to end with.
    """
    console = _console()
    terms = parse(options.slo) if options.slo else ()
    finds_capacity = SHAPES[options.shape].until_broken
    verdict = None
    if terms:
        verdict = judge(terms, run.stages, finds_capacity=finds_capacity)
    _print_fitting(console, STAGE_COLUMNS, FEW_STAGE_COLUMNS, stage_rows(run.stages))
    if run.parts:
        _print_protocols(console, run)
    for warning in warnings(run):
        console.print(f"[yellow]{warning}[/yellow]", highlight=False)
    changed = changes(old, run) if old else ()
    differences = machine_differences(old, run) if old else ()
    if changed:
        _print_comparison(console, run, changed, differences)
    options.output.mkdir(parents=True, exist_ok=True)
    html, data, lines = (
        options.output / f"report.{kind}" for kind in ("html", "json", "csv")
    )
    run.write(data)
    write_csv(run, lines)
    text = page(
        run, terms=terms, verdict=verdict, changes=changed, differences=differences
    )
    html.write_text(text, encoding="utf-8")
    console.print(f"written: {html}, {data}, {lines}", highlight=False, soft_wrap=True)
    return _judge(console, options.slo, run, verdict)


def _run(options: Options) -> int:
    old = Run.read(options.compare) if options.compare else None
    if old is not None:
        # As far as it is known before a gateway is started.
        model = options.model or old.settings["model"]
        check_comparable(old, _asked(options, model=model))
    with running(
        url=options.url,
        grpc=options.grpc,
        repository=options.repository,
        model=options.model,
        token=options.token,
    ) as target:
        if old is not None:
            check_comparable(old, _asked(options, model=target.model))
        if unknown := [one for one in options.protocol if one not in target.protocols]:
            raise NoTarget(
                f"--protocol: {target.url} answers {', '.join(target.protocols)}, and "
                f"not {', '.join(unknown)}"
            )
        measured = _measure(options, target)
    return tell(options, measured, old)


def _measure(options: Options, target: Target) -> Run:
    processes = options.processes or generator_processes()
    command_for = partial(locust_command, options, target, processes=processes)
    repetitions = []
    plan = SHAPES[options.shape].stretched(
        rate=options.rate or 0, duration_seconds=options.duration or 0
    )
    with LiveProgress(_console(), plan.stages, options.repetitions) as progress:
        for number in range(options.repetitions):
            progress.begin(number)
            repetition = measure(
                command_for,
                plan.stages,
                url=target.url,
                model=target.model,
                token=options.token,
                on_moment=progress.show,
            )
            repetitions.append(repetition)
    return Run(
        settings={
            **_asked(options, model=target.model),
            "repetitions": options.repetitions,
            "processes": processes,
            "server": target.description
            + (", started for this" if options.url is None else ""),
        },
        machine=machine(PACKAGES),
        plan=plan.stages,
        repetitions=repetitions,
    )


def _asked(options: Options, *, model: str) -> dict[str, Any]:
    """What makes runs comparable."""
    return {
        "shape": options.shape,
        "model": model,
        "protocols": list(dict.fromkeys(options.protocol)),
        "rate": options.rate,
        "duration_seconds": options.duration,
        "broken_seconds": broken_seconds(options),
        "slo": options.slo,
    }


def _judge(console: Console, slo: str | None, run: Run, verdict: Verdict | None) -> int:
    if verdict is None:
        return MET
    word = "[green]met[/green]" if verdict.is_met else "[red]missed[/red]"
    console.print(f"{slo}: {word}", highlight=False)
    for line in verdict_lines(verdict, run.stages):
        console.print(f"  {line}", highlight=False, soft_wrap=True)
    return MET if verdict.is_met else MISSED


def _print_comparison(
    console: Console, run: Run, changed: Sequence[Change], differences: Sequence[str]
) -> None:
    told = [one for one in changed if not one.stage or one.verdict != CANNOT_TELL]
    _print_table(console, CHANGE_COLUMNS, change_rows(told))
    if len(told) < len(changed):
        console.print(
            f"{len(changed) - len(told)} others, of single stages: cannot tell; the "
            "report has their intervals",
            highlight=False,
        )
    for difference in differences:
        console.print(
            f"[yellow]not the same machine: {difference}[/yellow]", highlight=False
        )
    if len(run.repetitions) < FEWEST_REPETITIONS:
        console.print(
            f"[yellow]fewer than {FEWEST_REPETITIONS} repetitions do not tell changes "
            "from noise[/yellow]",
            highlight=False,
        )


def _print_protocols(console: Console, run: Run) -> None:
    """At the highest load; all stages would be many lines."""
    usual = [one for one in run.stages if one.is_usual]
    highest = max(usual, key=lambda stage: stage.asked_per_second)
    console.print(f"Each protocol in stage {highest.number}:", highlight=False)
    rows = protocol_rows([highest], run.parts)
    _print_fitting(console, PROTOCOL_COLUMNS, FEW_PROTOCOL_COLUMNS, rows)


def _print_fitting(
    console: Console,
    columns: Sequence[str],
    few: Sequence[str],
    rows: Sequence[Sequence[str]],
) -> None:
    """All columns, or those few where a terminal has no room for all."""
    if console.width < FILE_COLUMNS:
        kept = [columns.index(column) for column in few]
        rows = [[row[index] for index in kept] for row in rows]
        columns = few
    _print_table(console, columns, rows)


def _print_table(
    console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _console() -> Console:
    """As wide as the terminal; a file or a pipe has room for every table."""
    console = Console()
    return console if console.is_terminal else Console(width=FILE_COLUMNS)
