"""What runs in a process of its own: one case, or a look at what there is.

    python3 -m loadtest.gpu.worker probe|measure JSON

Each answer is a line of JSON. Libraries print what they want to standard output; that
goes to standard error here.
"""

import asyncio
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import keras
import numpy as np

from loadtest.gpu.cost import multiply_adds
from loadtest.gpu.results import Batching, Case, Failure, Point, Timing, to_line
from loadtest.gpu.runtimes import Images, Runtime, load
from models.architectures import Architecture, UnknownArchitecture, named

SEED: Final = 0
# Besides the first call; runtimes go on trying kernels for a while.
WARM_UP_CALLS: Final = 2
LEAST_CALLS: Final = 3
MOST_CALLS: Final = 1000
FLOPS_PER_MULTIPLY_ADD: Final = 2
TERA: Final = 1e12
# How far the probabilities of an image may be from adding up to 1.
SUM_TOLERANCE: Final = 0.02
# What a gateway measures by itself (`service.warm_up.LARGEST_SIZE`, which needs more
# packages than this does).
GATEWAYS_LARGEST_SIZE: Final = 32
OUT_OF_MEMORY: Final = (
    "out of memory",
    "oom when",
    "resource_exhausted",
    "can't alloc",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What to measure.

    Attributes:
        batch_sizes: Growing.
        seconds: For each batch size, with and without copies.
        batcher_seconds: For the batcher; 0 leaves it out.
        peak_tflops: The chip's in this precision, if known.
    """

    case: Case
    batch_sizes: Sequence[int]
    seconds: float
    batcher_seconds: float
    peak_tflops: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A network in a runtime."""

    runtime: Runtime
    compute: Callable[[Any], Any]
    multiply_adds: int
    classes: int

    def predict(self, images: Images) -> Any:
        """From images in the host's memory to probabilities there."""
        answer = self.compute(self.runtime.to_device(images))
        return self.runtime.to_host(answer)


def main(command: str, argument: str) -> None:
    """Answer one command."""
    lines = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    document = json.loads(argument)
    if command == "probe":
        lines.write(json.dumps(probe(**document)) + "\n")
        return
    task = Task(**{**document, "case": Case(**document["case"])})
    for one in measure(task):
        lines.write(to_line(one) + "\n")


def probe(runtime: str, models: Sequence[str]) -> dict[str, Any]:
    """What GPU a runtime sees, and what the models are; `error` if one is none."""
    gpu = load(runtime).gpu_name()
    try:
        found = {name: measurable(name) for name in models}
    except UnknownArchitecture as error:
        return {"gpu": gpu, "error": str(error)}
    return {
        "gpu": gpu,
        "models": {
            name: {
                "image_shape": one.defaults.image_shape,
                "multiply_adds": multiply_adds(one.outline(one.defaults)),
            }
            for name, one in found.items()
        },
    }


def measure(task: Task) -> Iterator[Point | Batching | Failure]:
    """Measure size after size, and the batcher, until something fails."""
    case, architecture = task.case, measurable(task.case.model)
    size: int | None = None
    points: list[Point] = []
    try:
        subject = _subject(case, architecture)
        images = random_images(max(task.batch_sizes), architecture)
        for size in task.batch_sizes:
            points.append(_point(task, subject, images[:size]))
            yield points[-1]
    except Exception as error:  # runtimes raise what they like
        yield Failure(case=case, batch_size=size, reason=reason(error))
    if points and task.batcher_seconds:
        try:
            yield from _batching(task, subject, images, points)
        except Exception as error:
            yield Failure(case=case, batch_size=None, reason=f"batcher: {error!r}")


def measurable(name: str) -> Architecture:
    """The architecture of this name.

    Raises:
        UnknownArchitecture: There is none, or it takes several images.
    """
    architecture = named(name)
    if architecture.inputs != ("images",):
        raise UnknownArchitecture(f"{name} takes several images at a time")
    return architecture


def random_images(rows: int, architecture: Architecture) -> Images:
    """Noise, uint8 `[rows, H, W, C]`."""
    shape = (rows, *architecture.defaults.image_shape)
    return np.random.default_rng(SEED).integers(0, 256, shape, np.uint8)


def timed(call: Callable[[], object], *, rows: int, seconds: float) -> Timing:
    """Call again and again, for a time that the slowest exceed to be called thrice."""
    times: list[float] = []
    stop = time.perf_counter() + seconds
    while len(times) < LEAST_CALLS or (
        len(times) < MOST_CALLS and time.perf_counter() < stop
    ):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return timing(times, rows=rows)


def timing(times: Sequence[float], *, rows: int) -> Timing:
    """What calls took together.

    Args:
        times: Seconds of each.
        rows: Images in each.
    """
    median = float(np.median(times))
    return Timing(
        calls=len(times),
        images_per_second=rows / median,
        median_seconds=median,
        p90_seconds=_tail(times, one_in=10),
        p99_seconds=_tail(times, one_in=100),
    )


def reason(error: Exception) -> str:
    """Why a batch could not be run, in a line."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or any(
        sign in text.lower() for sign in OUT_OF_MEMORY
    ):
        return "out of memory"
    return text.partition("\n")[0]


def _tail(times: Sequence[float], *, one_in: int) -> float | None:
    """What one call in so many exceeds; too few calls do not tell."""
    return float(np.quantile(times, 1 - 1 / one_in)) if len(times) >= one_in else None


def _subject(case: Case, architecture: Architecture) -> Subject:
    runtime = load(case.runtime)
    runtime.allow_tf32(case.precision != "float32")
    keras.utils.set_random_seed(SEED)
    precision = "float32" if case.precision == "tf32" else case.precision
    network = architecture.build(architecture.defaults, precision=precision)
    return Subject(
        runtime=runtime,
        compute=runtime.compute(network),
        multiply_adds=multiply_adds(network),
        classes=architecture.defaults.classes,
    )


def _point(task: Task, subject: Subject, images: Images) -> Point:
    runtime, rows = subject.runtime, len(images)
    started = time.perf_counter()
    answer = subject.predict(images)
    first_call_seconds = time.perf_counter() - started
    _check(answer, rows, subject.classes)
    for _ in range(WARM_UP_CALLS):
        subject.predict(images)
    there = runtime.to_device(images)
    on_device = timed(
        lambda: runtime.wait(subject.compute(there)), rows=rows, seconds=task.seconds
    )
    with_copy = timed(lambda: subject.predict(images), rows=rows, seconds=task.seconds)
    flops = FLOPS_PER_MULTIPLY_ADD * subject.multiply_adds * on_device.images_per_second
    tflops, peak = flops / TERA, task.peak_tflops
    return Point(
        case=task.case,
        batch_size=rows,
        first_call_seconds=first_call_seconds,
        on_device=on_device,
        with_copy=with_copy,
        tflops=tflops,
        share_of_peak=None if peak is None else tflops / peak,
    )


def _check(answer: Any, rows: int, classes: int) -> None:
    """Fast nonsense is not to be measured."""
    if answer.shape != (rows, classes) or not np.allclose(
        answer.sum(axis=1), 1, atol=SUM_TOLERANCE
    ):
        raise ValueError("the answers are no probabilities")


def _batching(
    task: Task, subject: Subject, images: Images, points: Sequence[Point]
) -> Iterator[Batching]:
    """With batches up to what a gateway tries by itself, and to the largest."""
    batching = importlib.import_module("loadtest.gpu.batching")
    seconds = {one.batch_size: one.with_copy.median_seconds for one in points}
    best = max(one.with_copy.images_per_second for one in points)
    for largest in sorted({min(max(seconds), GATEWAYS_LARGEST_SIZE), max(seconds)}):
        yield asyncio.run(
            batching.measure(
                task.case,
                subject.predict,
                images,
                {size: one for size, one in seconds.items() if size <= largest},
                engine_images_per_second=best,
                seconds=task.batcher_seconds,
            )
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
