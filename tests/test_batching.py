"""What the batcher promises, on an engine that waits at a gate."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.batching import Batcher
from service.errors import (
    DeadlineExceeded,
    Draining,
    EngineFailure,
    InvalidTensor,
    Overloaded,
)
from service.metrics import Metrics
from service.tensors import Tensors

FAR = 60.0
POISON = 255


class Engine:
    """Doubles its rows, batch by batch, once the gate is open.

    A batch with a row of `POISON` fails.
    """

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.batches: list[list[int]] = []

    async def __call__(self, tensors: Tensors) -> dict[str, Any]:
        rows = tensors["x"]
        self.batches.append(rows[:, 0].tolist())
        await self.gate.wait()
        if POISON in rows:
            raise ValueError("poison")
        return {"y": rows * 2}


@asynccontextmanager
async def batching(**options: Any) -> AsyncIterator[tuple[Batcher, Engine]]:
    engine = Engine()
    metrics = Metrics().version("m", 1, queue_depth=lambda: 0)
    batcher = Batcher(
        engine,
        **{"slots": 1, "max_batch_size": 4, "max_queue_depth": 100, **options},
        metrics=metrics,
    )
    yield batcher, engine
    engine.gate.set()


def submit(
    batcher: Batcher, *values: int, timeout: float = FAR
) -> asyncio.Future[dict[str, Any]]:
    rows = np.array(values, np.int64).reshape(-1, 1)
    deadline = asyncio.get_running_loop().time() + timeout
    return batcher.submit({"x": rows}, rows=len(rows), deadline=deadline)


async def answers(*futures: asyncio.Future[dict[str, Any]]) -> list[list[int]]:
    results = await asyncio.gather(*futures)
    return [result["y"][:, 0].tolist() for result in results]


async def settle() -> None:
    """Let everything that can run without a gate run."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_request_runs_at_once_while_a_slot_is_free() -> None:
    async with batching(slots=2) as (batcher, engine):
        engine.gate.clear()
        first, second = submit(batcher, 1), submit(batcher, 2)
        await settle()
        assert engine.batches == [[1], [2]]
        engine.gate.set()
        assert await answers(first, second) == [[2], [4]]


async def test_requests_gather_while_all_slots_are_busy() -> None:
    async with batching() as (batcher, engine):
        engine.gate.clear()
        requests = [submit(batcher, value) for value in (1, 2, 3, 4, 5, 6)]
        await settle()
        engine.gate.set()
        assert await answers(*requests) == [[2], [4], [6], [8], [10], [12]]
        assert engine.batches == [[1], [2, 3, 4, 5], [6]]


async def test_a_request_of_several_rows_is_not_split_if_a_batch_can_hold_it() -> None:
    async with batching() as (batcher, engine):
        engine.gate.clear()
        requests = [
            submit(batcher, 0),
            submit(batcher, 1, 2, 3),
            submit(batcher, 4, 5),
        ]
        await settle()
        engine.gate.set()
        assert await answers(*requests) == [[0], [2, 4, 6], [8, 10]]
        assert engine.batches == [[0], [1, 2, 3], [4, 5]]


async def test_a_request_larger_than_any_batch_is_split_and_put_together() -> None:
    async with batching(slots=2) as (batcher, engine):
        large = submit(batcher, *range(10))
        small = submit(batcher, 20)
        assert await answers(large, small) == [[2 * n for n in range(10)], [40]]
        assert engine.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 20]]


async def test_a_full_queue_refuses_at_once() -> None:
    async with batching(max_queue_depth=2) as (batcher, engine):
        engine.gate.clear()
        accepted = [submit(batcher, value) for value in (1, 2, 3)]
        with pytest.raises(Overloaded, match="2 requests wait"):
            submit(batcher, 4)
        engine.gate.set()
        assert await answers(*accepted) == [[2], [4], [6]]


async def test_a_cancelled_request_costs_no_compute_and_others_are_answered() -> None:
    async with batching() as (batcher, engine):
        engine.gate.clear()
        running, gone, neighbour = (submit(batcher, value) for value in (1, 2, 3))
        await settle()
        gone.cancel()
        engine.gate.set()
        assert await answers(running, neighbour) == [[2], [6]]
        assert engine.batches == [[1], [3]]


async def test_a_request_cancelled_inside_a_batch_leaves_the_others_answered() -> None:
    async with batching() as (batcher, engine):
        engine.gate.clear()
        head = submit(batcher, 0)
        together = [submit(batcher, value) for value in (1, 2, 3)]
        await settle()
        engine.gate.set()
        await head
        engine.gate.clear()
        await settle()
        together[0].cancel()
        engine.gate.set()
        assert await answers(*together[1:]) == [[4], [6]]


async def test_an_expired_request_fails_at_its_deadline_and_costs_no_compute() -> None:
    async with batching() as (batcher, engine):
        engine.gate.clear()
        running = submit(batcher, 1)
        hurried = submit(batcher, 2, timeout=0.001)
        with pytest.raises(DeadlineExceeded):
            await hurried
        engine.gate.set()
        assert await answers(running, submit(batcher, 3)) == [[2], [6]]
        assert engine.batches == [[1], [3]]


async def test_a_request_whose_timer_is_late_still_costs_no_compute() -> None:
    async with batching() as (batcher, engine):
        engine.gate.clear()
        running, late = submit(batcher, 1), submit(batcher, 2)
        await settle()
        batcher._queue[0].deadline = 0
        engine.gate.set()
        assert await answers(running) == [[2]]
        with pytest.raises(DeadlineExceeded):
            await late
        assert engine.batches == [[1]]


async def test_a_deadline_in_the_past_is_refused() -> None:
    async with batching() as (batcher, _):
        with pytest.raises(DeadlineExceeded):
            submit(batcher, 1, timeout=-1)


async def test_a_request_that_breaks_a_batch_fails_alone() -> None:
    async with batching() as (batcher, engine):
        engine.gate.clear()
        requests = [submit(batcher, value) for value in (1, 2, POISON, 3)]
        await settle()
        engine.gate.set()
        results = await asyncio.gather(*requests, return_exceptions=True)
        assert isinstance(results.pop(2), EngineFailure)
        assert [r["y"].tolist() for r in results] == [[[2]], [[4]], [[6]]]  # type: ignore[index]


async def test_an_engine_that_answers_too_few_rows_fails_the_request() -> None:
    async def short(tensors: Tensors) -> dict[str, Any]:
        return {"y": tensors["x"][:-1]}

    async with batching() as (batcher, _):
        batcher._infer = short
        with pytest.raises(EngineFailure, match="2 rows"):
            await submit(batcher, 1, 2)


async def test_errors_of_our_own_reach_the_caller_as_they_are() -> None:
    async def refuse(_: Tensors) -> dict[str, Any]:
        raise InvalidTensor("wrong")

    async with batching() as (batcher, _):
        batcher._infer = refuse
        with pytest.raises(InvalidTensor, match="wrong"):
            await submit(batcher, 1)


async def test_a_signature_without_rows_is_run_one_request_at_a_time() -> None:
    async def total(tensors: Tensors) -> dict[str, Any]:
        return {"y": tensors["x"].sum()}

    async with batching(batched=False) as (batcher, _):
        batcher._infer = total
        futures = [
            batcher.submit({"x": np.arange(n)}, rows=1, deadline=float("inf"))
            for n in (3, 4)
        ]
        assert [int((await f)["y"]) for f in futures] == [3, 6]


async def test_a_closed_batcher_refuses_and_fails_what_waits() -> None:
    async with batching() as (batcher, engine):
        engine.gate.clear()
        waiting = submit(batcher, 1)
        batcher.close()
        with pytest.raises(Draining):
            submit(batcher, 2)
        with pytest.raises(Draining):
            await waiting


async def test_a_crashed_dispatcher_fails_its_requests_and_says_so() -> None:
    async with batching() as (batcher, engine):
        engine.gate.clear()
        running, waiting = submit(batcher, 1), submit(batcher, 2)
        await settle()
        batcher._take = lambda: 1 / 0  # type: ignore[method-assign,assignment,return-value]
        engine.gate.set()
        assert await answers(running) == [[2]]
        with pytest.raises(EngineFailure, match="has failed"):
            await waiting
        assert batcher.crashed
        with pytest.raises(EngineFailure, match="has failed"):
            submit(batcher, 4)


async def test_queue_depth_counts_the_requests_that_wait() -> None:
    async with batching() as (batcher, engine):
        engine.gate.clear()
        requests = [submit(batcher, value) for value in (1, 2, 3)]
        assert batcher.queue_depth == 2
        engine.gate.set()
        await answers(*requests)
        assert batcher.queue_depth == 0


@given(
    plan=st.lists(
        st.tuples(
            st.integers(1, 9),  # rows
            st.sampled_from(["wait", "cancel", "poison"]),
            st.integers(0, 3),  # steps of the loop before the next one arrives
        ),
        min_size=1,
        max_size=30,
    ),
    slots=st.integers(1, 3),
    max_batch_size=st.integers(1, 8),
)
@settings(deadline=None, max_examples=100)
def test_every_request_is_answered_once_with_its_own_rows(
    plan: list[tuple[int, str, int]], slots: int, max_batch_size: int
) -> None:
    async def scenario() -> None:
        options = {"slots": slots, "max_batch_size": max_batch_size}
        async with batching(**options) as (batcher, engine):
            requests = []
            value = 1000
            for rows, fate, steps in plan:
                values = list(range(value, value + rows))
                value += rows
                if fate == "poison":
                    values[-1] = POISON
                engine.gate.clear() if steps % 2 else engine.gate.set()
                request = submit(batcher, *values)
                requests.append((request, values, fate))
                for _ in range(steps):
                    await asyncio.sleep(0)
                if fate == "cancel":
                    request.cancel()
            engine.gate.set()
            futures = [request for request, _, _ in requests]
            results = await asyncio.gather(*futures, return_exceptions=True)
            for result, (_, values, fate) in zip(results, requests, strict=True):
                if fate == "poison":
                    assert isinstance(result, EngineFailure)
                elif not isinstance(result, BaseException):
                    assert result["y"][:, 0].tolist() == [2 * v for v in values]
                else:
                    assert fate == "cancel"
            await settle()
            assert batcher.queue_depth == 0
            assert not batcher._unanswered
            assert not batcher._running

    asyncio.run(scenario())
