"""One repetition: Locust runs the shape, and what it wrote becomes numbers."""

import math
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import psutil

from loadtest.bench.reference import reference_seconds
from loadtest.bench.results import Repetition, Second, StageResult
from loadtest.bench.samples import Course, Samples
from loadtest.bench.scraper import Reading, Scraper, generator_busy, numbers
from loadtest.bench.sent import Sent
from loadtest.harness.processes import end
from loadtest.shapes import Stage
from service.errors import BlockserveError

POLL_SECONDS: Final = 1.0
# Time at the beginning of a stage in which users come, and what was there goes.
SETTLE_SECONDS: Final = 1.0
END_SECONDS: Final = 20.0
# Beyond the shape's own time: to start, to ask about each image alone, and to wait for
# the last answers.
SPARE_SECONDS: Final = 90.0
TOLD_CHARACTERS: Final = 2000


class LoadFailed(BlockserveError):
    """Locust ended with an error, or sent nothing."""

    code = "load_failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """How a repetition goes at present.

    Attributes:
        stage: The one that runs, from 0; `None` after the last.
        elapsed_seconds: Since the shape began.
        recent: What was sent in the latest whole second that has most of its answers.
    """

    stage: int | None
    elapsed_seconds: float
    recent: Sent


# Writes files into the directory that it is given, and sends the load.
CommandFor = Callable[[Path], Sequence[str]]


def measure(
    command_for: CommandFor,
    plan: Sequence[Stage],
    *,
    url: str,
    model: str,
    token: str | None,
    on_moment: Callable[[Moment], None],
) -> Repetition:
    """Run the shape once.

    Args:
        command_for: Locust's command line, given where its recorders are to write.
        plan: The stages of the shape that it runs.
        url: The server's; a gateway's metrics are read meanwhile.
        model: The one whose metrics count.
        token: Bearer token, where the gateway asks for one.
        on_moment: Told each second how it goes.

    Raises:
        LoadFailed: Locust ended with an error, or sent nothing; says what it printed.
    """
    reference = reference_seconds()
    with tempfile.TemporaryDirectory(prefix="blockserve-bench-") as name:
        directory = Path(name)
        samples = Samples(directory)
        with (directory / "printed").open("w+b") as printed:
            process = subprocess.Popen(  # noqa: S603, our own program
                command_for(directory),
                # Not on the command line, where everybody on the machine reads it.
                env={**os.environ, **({"BLOCKSERVE_TOKEN": token} if token else {})},
                stdout=printed,
                stderr=subprocess.STDOUT,
            )
            try:
                with Scraper(
                    url,
                    model,
                    token=token,
                    generator_cpu_seconds=lambda: _cpu_seconds(process),
                ) as scraper:
                    _follow(process, directory, samples, plan, on_moment)
            finally:
                # Ended before its time, Locust ends its workers, if it is given time.
                end(process, patience_seconds=END_SECONDS)
            samples.poll()
            course = Course.read(directory)
            if process.returncode or course is None or course.end is None:
                raise LoadFailed(f"Locust failed:\n{_tail(printed)}")
            if not samples.by_second:
                raise LoadFailed(f"Locust has sent nothing:\n{_tail(printed)}")
    return Repetition(
        stages=stage_results(samples, scraper.readings, plan, course),
        series=series(samples, scraper.readings, plan, course),
        reference_seconds=reference,
    )


def stage_results(
    samples: Samples,
    readings: Sequence[Reading],
    plan: Sequence[Stage],
    course: Course,
) -> list[StageResult]:
    """Put what was sent, and what the gateway told, to the stages that were reached."""
    results = []
    for number, (start, until) in course.windows().items():
        since = start + SETTLE_SECONDS
        sent, seconds = samples.between(since, until)
        told = [one for one in readings if since <= one.at <= until]
        results.append(
            StageResult(
                number=number,
                asked_per_second=plan[number - 1].requests_per_second,
                seconds=seconds,
                protocols=sent,
                gateway=numbers(told),
                generator_busy=generator_busy(told),
            )
        )
    return results


def series(
    samples: Samples,
    readings: Sequence[Reading],
    plan: Sequence[Stage],
    course: Course,
) -> list[Second]:
    """The repetition second by second, for the plots over time."""
    found = []
    start = course.tries[0][1]
    for second in range(math.ceil(start), math.floor(course.end or start)):
        sent = samples.second(second)
        near = [one for one in readings if second - 1 <= one.at < second + 1]
        gateway = numbers(near)
        number, began = course.stage_at(second)
        found.append(
            Second(
                at_seconds=second - start,
                asked=plan[number - 1].rate_at(second - began),
                answered=sent.latencies.count,
                failed=sent.failed,
                p50_seconds=sent.latencies.percentile(50),
                p99_seconds=sent.latencies.percentile(99),
                batch_rows=gateway.batch_rows,
                queue_depth=gateway.queue_depth,
            )
        )
    return found


def _follow(
    process: subprocess.Popen[bytes],
    directory: Path,
    samples: Samples,
    plan: Sequence[Stage],
    on_moment: Callable[[Moment], None],
) -> None:
    # Each stage may be taken twice.
    shape_seconds = 2 * sum(one.duration_seconds for one in plan)
    give_up = time.monotonic() + shape_seconds + SPARE_SECONDS
    while True:
        with suppress(subprocess.TimeoutExpired):
            process.wait(POLL_SECONDS)
            return
        if time.monotonic() > give_up:
            raise LoadFailed("Locust did not end when its shape had ended")
        samples.poll()
        course = Course.read(directory)
        if course is not None and course.tries:
            on_moment(_moment(samples, course))


def _moment(samples: Samples, course: Course) -> Moment:
    now = time.time()
    # The recorders write once a second: the second before the last is complete.
    recent = samples.second(int(now) - 2)
    return Moment(
        stage=None if course.end else course.tries[-1][0] - 1,
        elapsed_seconds=now - course.tries[0][1],
        recent=recent,
    )


def _cpu_seconds(process: subprocess.Popen[bytes]) -> list[float]:
    """Of Locust's processes, in the order of their start."""
    used = []
    with suppress(psutil.NoSuchProcess):
        main = psutil.Process(process.pid)
        for one in (main, *main.children()):
            times = one.cpu_times()
            used.append(times.user + times.system)
    return used


def _tail(printed: IO[bytes]) -> str:
    printed.seek(0)
    return printed.read().decode(errors="replace")[-TOLD_CHARACTERS:]
