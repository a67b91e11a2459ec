"""The benchmarks that need nothing else, one after the other, and a summary.

    python -m loadtest [--repository DIR] [--output DIR] [--seconds S] [--quick]

Each runs as a command of its own, so that one that fails takes no other with it.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import cyclopts

from loadtest.harness.report import Budget, Options, Report, budget_table, wide_console

BENCHMARKS: Final = (
    "overhead",
    "observability",
    "protocols",
    "saturation",
    "latency_under_load",
    "overload",
    "decode",
    "startup",
)


def main(options: Options = Options()) -> None:  # noqa: B008, it is immutable
    """Run them all; the status tells of benchmarks that broke off, not of budgets."""
    failed = [name for name in BENCHMARKS if not _run(name, options)]
    console = wide_console()
    console.print(budget_table(budgets_in(options.output, BENCHMARKS, without=failed)))
    if failed:
        console.print(f"[red]failed[/red]: {', '.join(failed)}")
        sys.exit(1)


def budgets_in(
    output: Path, benchmarks: Sequence[str], *, without: Sequence[str] = ()
) -> dict[str, Sequence[Budget]]:
    """The budgets in the reports of a folder.

    Args:
        output: Where the benchmarks have written.
        benchmarks: Their names.
        without: Those whose reports, if there are any, are of another run.
    """
    return {
        name: Report.read(output / f"{name}.json").budgets
        for name in benchmarks
        if name not in without
    }


def _run(name: str, options: Options) -> bool:
    command = [sys.executable, "-m", f"loadtest.{name}"]
    command += ["--repository", str(options.repository)]
    command += ["--output", str(options.output), "--seconds", str(options.seconds)]
    if options.quick:
        command.append("--quick")
    return subprocess.run(command, check=False).returncode == 0  # noqa: S603, ourselves


if __name__ == "__main__":
    cyclopts.run(main)
