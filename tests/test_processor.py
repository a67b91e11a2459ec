"""Whose turn it is when several models share a processor."""

import asyncio
from collections import Counter
from typing import Any

import numpy as np
import pytest

from service.batching import Batcher, BatchingOptions, Processor, ThroughputCurve
from service.settings import DURATION_BUCKETS_SECONDS
from service.telemetry.metrics import Metrics
from service.tensors import Tensors


class Shared:
    """A processor with a clock of its own: each model's batch takes a given time.

    `time` is the sum of what has run, `received` what each model had of it.
    """

    def __init__(self, *, slots: int = 1, **seconds: float) -> None:
        self.processor = Processor(slots)
        self.running = 0
        self.most_running = 0
        self.order: list[str] = []
        self.received: Counter[str] = Counter()
        self.batchers = {
            name: self._batcher(name, cost) for name, cost in seconds.items()
        }
        self._seconds = seconds

    def _batcher(self, name: str, seconds: float) -> Batcher:
        async def infer(tensors: Tensors, _: float) -> dict[str, Any]:
            self.order.append(name)
            self.received[name] += self._seconds[name]
            self.running += 1
            self.most_running = max(self.most_running, self.running)
            await asyncio.sleep(0)
            self.running -= 1
            return {"y": tensors["x"]}

        # That a batch takes no time in truth corrects the curve, which would spoil
        # the scenario.
        curve = ThroughputCurve({1: seconds})
        curve.observe = lambda _rows, _seconds: None  # type: ignore[method-assign]
        batcher = Batcher(
            infer,
            options=BatchingOptions(slots=1, max_queue_depth=500, max_batch_size=1),
            curve=curve,
            processor=self.processor,
            metrics=Metrics(DURATION_BUCKETS_SECONDS).version(name, 1),
        )
        finished = self.processor.finished
        self.processor.finished = (  # type: ignore[method-assign]
            lambda member, **_: finished(member, surplus_seconds=0.0)
        )
        return batcher

    def submit(self, name: str, count: int) -> list[asyncio.Future[Any]]:
        row = {"x": np.zeros((1, 1))}
        return [
            self.batchers[name].submit(row, rows=1, deadline=float("inf")).answer
            for _ in range(count)
        ]


async def test_models_under_load_get_equal_shares_of_time_not_of_batches() -> None:
    shared = Shared(small=1.0, large=10.0)
    requests = [*shared.submit("large", 50), *shared.submit("small", 200)]
    while len(shared.order) < 110:
        await asyncio.sleep(0)
    first = Counter(shared.order[:110])
    assert first["small"] == pytest.approx(100, abs=2)
    assert first["large"] == pytest.approx(10, abs=2)
    await asyncio.gather(*requests)


async def test_a_model_that_was_idle_is_next_but_has_saved_nothing_up() -> None:
    shared = Shared(busy=1.0, idle=1.0)
    requests = shared.submit("busy", 40)
    while len(shared.order) < 20:
        await asyncio.sleep(0)
    requests += shared.submit("idle", 10)
    await asyncio.gather(*requests)
    joined = shared.order.index("idle")
    assert joined <= 22
    assert Counter(shared.order[joined : joined + 10])["busy"] >= 4


async def test_no_more_batches_run_at_a_time_than_there_are_slots() -> None:
    shared = Shared(slots=2, a=1.0, b=1.0, c=1.0)
    requests = [r for name in "abc" for r in shared.submit(name, 5)]
    await asyncio.gather(*requests)
    assert shared.most_running == 2


async def test_a_model_that_has_left_keeps_no_slot() -> None:
    shared = Shared(left=1.0, stays=1.0)
    lost = shared.submit("left", 3)
    kept = shared.submit("stays", 3)
    shared.batchers["left"].close()
    await asyncio.gather(*kept)
    results = await asyncio.gather(*lost, return_exceptions=True)
    assert all(isinstance(result, Exception) for result in results)
    await asyncio.gather(*shared.submit("stays", 3))
