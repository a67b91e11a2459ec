"""The raw engine: how many images it classifies a second, fed without a pause.

    python -m loadtest.engine VERSION_DIRECTORY [--engine NAME] [--seconds S]

It is the ceiling for a gateway: arrays that are already decoded go straight into the
engine, batch after batch, with always one more waiting. Batch sizes are measured in
turn, round by round; each size's rate is the median of its rounds.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import cyclopts
import numpy as np

from service.engines import Engine, load
from service.settings import EngineChoice

BATCH_SIZES: Final = (1, 2, 4, 8, 16, 32)
ROUNDS: Final = 5
SIGNATURE: Final = "serving_default"
# Calls under way for each of the engine's slots: while one runs, the next one waits.
CALLS_PER_SLOT: Final = 2
SEED: Final = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpeed:
    """What an engine does with nothing in front of it."""

    images_per_second: Mapping[int, float]
    """By batch size."""
    single_seconds: float
    """Median time of one image alone."""

    @property
    def best_images_per_second(self) -> float:
        """The rate of the best batch size."""
        return max(self.images_per_second.values())


def measure(
    version_directory: Path, *, engine: EngineChoice = "auto", seconds: float
) -> EngineSpeed:
    """Measure in a process of its own, for as many seconds at each batch size."""
    command = [sys.executable, "-m", "loadtest.engine", str(version_directory)]
    command += ["--engine", engine, "--seconds", str(seconds)]
    done = subprocess.run(  # noqa: S603, ourselves
        command, stdout=subprocess.PIPE, check=True
    )
    numbers = json.loads(done.stdout)
    rates = {int(size): rate for size, rate in numbers["images_per_second"].items()}
    return EngineSpeed(
        images_per_second=rates, single_seconds=numbers["single_seconds"]
    )


def mean(speeds: Sequence[EngineSpeed]) -> EngineSpeed:
    """The mean of several measurements."""
    return EngineSpeed(
        images_per_second={
            size: float(np.mean([one.images_per_second[size] for one in speeds]))
            for size in speeds[0].images_per_second
        },
        single_seconds=float(np.mean([one.single_seconds for one in speeds])),
    )


def main(
    version_directory: Path,
    /,
    *,
    engine: EngineChoice = "auto",
    seconds: float = 10,
) -> None:
    """Measure and print JSON.

    Args:
        version_directory: As in REPOSITORY/NAME/VERSION.
        engine: What runs the model.
        seconds: Time at each batch size.
    """
    speed = asyncio.run(_measure(load(engine, version_directory, slots=None), seconds))
    print(json.dumps(asdict(speed), indent=2))  # noqa: T201, it is the answer


async def _measure(engine: Engine, seconds: float) -> EngineSpeed:
    batches = {size: _random_batch(engine, size) for size in BATCH_SIZES}
    for batch in batches.values():
        await engine.infer(SIGNATURE, batch)
    rates: dict[int, list[float]] = {size: [] for size in BATCH_SIZES}
    singles: list[float] = []
    for _ in range(ROUNDS):
        singles += await _times_alone(engine, batches[1], seconds / ROUNDS)
        for size, batch in batches.items():
            calls = await _calls_per_second(engine, batch, seconds / ROUNDS)
            rates[size].append(size * calls)
    return EngineSpeed(
        images_per_second={size: median(rates[size]) for size in BATCH_SIZES},
        single_seconds=median(singles),
    )


async def _calls_per_second(
    engine: Engine, batch: Mapping[str, Any], seconds: float
) -> float:
    """From a call's end to a call's end, so that none is counted by half."""
    ends: list[float] = []
    stop = time.perf_counter() + seconds

    async def call_again_and_again() -> None:
        while time.perf_counter() < stop or len(ends) <= engine.slots:
            await engine.infer(SIGNATURE, batch)
            ends.append(time.perf_counter())

    async with asyncio.TaskGroup() as tasks:
        for _ in range(engine.slots * CALLS_PER_SLOT):
            tasks.create_task(call_again_and_again())
    # The last calls of all run in slots that empty.
    ends = ends[: len(ends) - engine.slots + 1]
    return (len(ends) - 1) / (ends[-1] - ends[0])


async def _times_alone(
    engine: Engine, batch: Mapping[str, Any], seconds: float
) -> list[float]:
    times: list[float] = []
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or not times:
        started = time.perf_counter()
        await engine.infer(SIGNATURE, batch)
        times.append(time.perf_counter() - started)
    return times


def _random_batch(engine: Engine, rows: int) -> dict[str, Any]:
    random = np.random.default_rng(SEED)
    batch = {}
    for spec in engine.signatures[SIGNATURE].inputs.values():
        row_shape = [size or 1 for size in spec.shape[1:]]
        batch[spec.name] = random.integers(0, 256, (rows, *row_shape), spec.dtype)
    return batch


if __name__ == "__main__":
    cyclopts.run(main)
