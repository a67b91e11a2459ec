"""How fast the gateway starts, and how much memory it takes.

    python -m loadtest.startup [--repository DIR] [--repetitions N] [--json FILE]

Starts the real program several times and measures the time until `/readyz` answers 200
and the resident memory then, beside a bare interpreter in the same run.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Final
from urllib.error import URLError
from urllib.request import urlopen

import cyclopts
import psutil
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

POLL_SECONDS: Final = 0.005
GIVE_UP_SECONDS: Final = 60
MEBIBYTE: Final = 1024 * 1024
HTTP_PORT: Final = 18010
GRPC_PORT: Final = 18011
# What DESIGN.md allows with the embedded engine and the demo model built.
BUDGET_READY_SECONDS: Final = 2.0
BUDGET_MEMORY_MEBIBYTES: Final = 250.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Startup:
    """Medians over the repetitions."""

    subject: str
    ready_seconds: float
    memory_mebibytes: float


def main(
    *,
    repository: Path = Path("model_repository"),
    repetitions: int = 5,
    json_file: Path | None = None,
) -> None:
    """Measure and print a table.

    Args:
        repository: Directory of models, with the demo model built.
        repetitions: Starts of each subject; the median is reported.
        json_file: Where to write the numbers, too.
    """
    results = [
        _bare_interpreter(repetitions),
        *(_gateway(engine, repository, repetitions) for engine in ("stub", "openvino")),
    ]
    table = Table(title=f"start to ready, median of {repetitions}", box=SIMPLE_HEAD)
    table.add_column("subject")
    table.add_column("ready", justify="right")
    table.add_column("resident memory", justify="right")
    for result in results:
        table.add_row(
            result.subject,
            f"{result.ready_seconds:.2f} s",
            f"{result.memory_mebibytes:.0f} MiB",
        )
    table.add_row(
        "budget with openvino",
        f"{BUDGET_READY_SECONDS:.2f} s",
        f"{BUDGET_MEMORY_MEBIBYTES:.0f} MiB",
    )
    Console().print(table)
    if json_file is not None:
        numbers = [asdict(result) for result in results]
        json_file.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")


def _bare_interpreter(repetitions: int) -> Startup:
    """The floor: what Python itself costs on this machine at this moment."""
    code = "import psutil; print(psutil.Process().memory_info().rss)"
    seconds, memory = [], []
    for _ in track(range(repetitions), "bare interpreter", transient=True):
        started = time.perf_counter()
        done = subprocess.run(  # noqa: S603, our own interpreter
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        seconds.append(time.perf_counter() - started)
        memory.append(int(done.stdout))
    return _median("bare interpreter", seconds, memory)


def _gateway(engine: str, repository: Path, repetitions: int) -> Startup:
    subject = f"gateway, {engine} engine"
    command = [sys.executable, "-m", "service", "serve"]
    command += ["--engine", engine, "--repository", str(repository)]
    command += ["--http-port", str(HTTP_PORT), "--grpc-port", str(GRPC_PORT)]
    command += ["--log-level", "warning"]
    seconds, memory = [], []
    for _ in track(range(repetitions), subject, transient=True):
        started = time.perf_counter()
        with _running(command) as process:
            _wait_until_ready(process)
            seconds.append(time.perf_counter() - started)
            memory.append(psutil.Process(process.pid).memory_info().rss)
    return _median(subject, seconds, memory)


@contextmanager
def _running(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)  # noqa: S603, ours
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes]) -> None:
    give_up = time.monotonic() + GIVE_UP_SECONDS
    while time.monotonic() < give_up and process.poll() is None:
        try:
            with urlopen(f"http://127.0.0.1:{HTTP_PORT}/readyz"):
                return
        except URLError:
            time.sleep(POLL_SECONDS)
    message = (
        f"the gateway was not ready after {GIVE_UP_SECONDS} s, or has ended; run "
        "`blockserve serve` with the same repository to see why"
    )
    raise SystemExit(message)


def _median(
    subject: str, seconds: Sequence[float], memory_bytes: Sequence[int]
) -> Startup:
    return Startup(
        subject=subject,
        ready_seconds=median(seconds),
        memory_mebibytes=median(memory_bytes) / MEBIBYTE,
    )


if __name__ == "__main__":
    cyclopts.run(main)
