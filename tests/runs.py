"""Runs of the load test, made up."""

from collections.abc import Sequence

import numpy as np

from loadtest.bench.results import (
    GatewayNumbers,
    Repetition,
    Run,
    Second,
    StageResult,
    StageSummary,
)
from loadtest.bench.sent import Sent
from loadtest.shapes import Stage

SECONDS = 10


def stage(
    number: int = 1,
    *,
    load: float = 100,
    milliseconds: float = 5,
    failures: int = 0,
    seed: int = 0,
    protocols: Sequence[str] = ("http",),
) -> StageResult:
    """A stage whose latencies lie around a median; protocols share it evenly.

    The second protocol takes twice as long as the first, and so on; all that fails is
    sent over the first.
    """
    random = np.random.default_rng(seed)
    sent = {protocol: Sent() for protocol in protocols}
    if failures:
        sent[protocols[0]].fail("<refused> & worse", failures)
    seconds = random.lognormal(np.log(milliseconds / 1000), 0.3, int(load * SECONDS))
    for number_sent, one in enumerate(seconds):
        turn = number_sent % len(protocols)
        sent[protocols[turn]].latencies.add(float(one) * (turn + 1))
    return StageResult(
        number=number,
        asked_per_second=load,
        seconds=SECONDS,
        protocols=sent,
        gateway=GatewayNumbers(batch_rows=2.0, queue_depth=1.5, engine_busy=0.4),
        generator_busy=0.2,
    )


def summaries(*stages: StageResult) -> list[StageSummary]:
    """Stages of a shape that ran once."""
    return [StageSummary(results=[one], repetitions=1) for one in stages]


def repetition(stages: Sequence[StageResult], *, speed: float = 1) -> Repetition:
    """One that took a second for the reference, and has a short series."""
    second = Second(
        at_seconds=0.5,
        asked=100,
        answered=100,
        failed=0,
        p50_seconds=0.005,
        p99_seconds=0.01,
        batch_rows=2.0,
        queue_depth=float("nan"),
    )
    return Repetition(
        stages=stages, series=[second] * 3, reference_seconds=0.01 / speed
    )


def run(
    *,
    slower: float = 1,
    repetitions: int = 3,
    loads: Sequence[float] = (50, 100, 200),
    seed: int = 0,
    noise: float = 0.02,
    failures: int = 0,
    shape: str = "step",
    processor: str = "made up",
    protocols: Sequence[str] = ("http",),
) -> Run:
    """Repetitions that differ by noise; `slower` times the latency."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(repetitions):
        factor = slower * float(random.lognormal(0, noise))
        stages = [
            stage(
                number,
                load=load,
                milliseconds=factor * 4 * number,
                failures=failures,
                seed=int(random.integers(1000)),
                protocols=protocols,
            )
            for number, load in enumerate(loads, 1)
        ]
        speed = float(random.lognormal(0, noise))
        found.append(repetition(stages, speed=speed))
    return Run(
        settings={
            "shape": shape,
            "model": "digits",
            "protocols": list(protocols),
            "rate": None,
            "duration_seconds": None,
            "broken_seconds": 2.0,
            "slo": "p99<50ms",
        },
        machine={"processor": processor, "cores": 2, "date": "2026-01-01T00:00:00"},
        plan=[Stage(SECONDS, one) for one in loads],
        repetitions=found,
    )
