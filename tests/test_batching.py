"""What the batcher promises, on an engine that waits at a gate."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from time import monotonic
from typing import Any, Final, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.batching import (
    Batcher,
    BatchingOptions,
    Priority,
    Processor,
    ThroughputCurve,
)
from service.engines.stub import StubEngine
from service.errors import (
    DeadlineExceeded,
    Draining,
    EngineFailure,
    InvalidTensor,
    Overloaded,
)
from service.served_version import ServedVersion, infer_card
from service.settings import DURATION_BUCKETS_SECONDS, Settings
from service.telemetry.metrics import Metrics, VersionMetrics
from service.tensors import Signature, Tensors, TensorSpec

FAR = 60.0
POISON = 255
MOMENT = 1e-6  # what a batch costs where costs do not matter
BULK = Priority.BATCH


class Engine:
    """Doubles its rows, batch by batch, once the gate is open.

    A batch with a row of `POISON` fails.
    """

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.batches: list[list[int]] = []
        self.deadlines: list[float] = []
        self.failure: Exception | None = None

    async def __call__(self, tensors: Tensors, deadline: float) -> dict[str, Any]:
        rows = tensors["x"]
        self.batches.append(rows[:, 0].tolist())
        self.deadlines.append(deadline)
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        if POISON in rows:
            raise ValueError("poison")
        return {"y": rows * 2}


@asynccontextmanager
async def batching(
    *,
    processor: Processor | None = None,
    metrics: VersionMetrics | None = None,
    **options: Any,
) -> AsyncIterator[tuple[Batcher, Engine]]:
    """A batcher of four rows, or what its curve prefers, over one slot."""
    engine = Engine()
    chosen = {"slots": 1, "max_batch_size": 4, "max_queue_depth": 100, **options}
    curve = chosen.pop("curve", None) or ThroughputCurve({1: MOMENT})
    batcher = Batcher(
        engine,
        options=BatchingOptions(**chosen),
        curve=curve,
        processor=processor or Processor(chosen["slots"]),
        metrics=metrics or Metrics(DURATION_BUCKETS_SECONDS).version("m", 1),
    )
    yield batcher, engine
    engine.gate.set()


def rows_of(*values: int) -> dict[str, Any]:
    return {"x": np.array(values, np.int64).reshape(-1, 1)}


def submit(
    batcher: Batcher,
    *values: int,
    timeout: float = FAR,
    priority: Priority = Priority.INTERACTIVE,
) -> asyncio.Future[dict[str, Any]]:
    return batcher.submit(
        rows_of(*values),
        rows=len(values),
        deadline=monotonic() + timeout,
        priority=priority,
    ).answer


async def answers(*futures: asyncio.Future[dict[str, Any]]) -> list[list[int]]:
    results = await asyncio.gather(*futures)
    return [result["y"][:, 0].tolist() for result in results]


async def occupy(batcher: Batcher, engine: Engine) -> asyncio.Future[dict[str, Any]]:
    """Keep the slot busy with a request of the row 0 until the gate is opened."""
    engine.gate.clear()
    head = submit(batcher, 0)
    await settle()
    return head


async def settle() -> None:
    """Let everything that can run without a gate run."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_request_runs_at_once_while_a_slot_is_free() -> None:
    async with batching(slots=2) as (batcher, engine):
        engine.gate.clear()
        requests = [submit(batcher, 1)]
        await settle()
        requests.append(submit(batcher, 2))
        await settle()
        assert engine.batches == [[1], [2]]
        engine.gate.set()
        assert await answers(*requests) == [[2], [4]]


async def test_requests_that_come_together_spread_over_the_free_slots() -> None:
    async with batching(slots=2) as (batcher, engine):
        requests = [submit(batcher, value) for value in (1, 2, 3)]
        assert await answers(*requests) == [[2], [4], [6]]
        assert engine.batches == [[1, 2], [3]]


async def test_slots_may_grow_and_shrink_while_batches_run() -> None:
    processor = Processor(1)
    async with batching(processor=processor, max_batch_size=1) as (batcher, engine):
        engine.gate.clear()
        requests = [submit(batcher, value) for value in range(4)]
        await settle()
        assert engine.batches == [[0]]
        for slots in (3, 1):
            processor.resize(slots)
            batcher.resize(slots)
            await settle()
            assert engine.batches == [[0], [1], [2]]
        assert batcher.state.slots == 1
        requests.append(submit(batcher, 4))
        engine.gate.set()
        assert await answers(*requests) == [[0], [2], [4], [6], [8]]
        engine.gate.clear()
        requests = [submit(batcher, value) for value in (5, 6)]
        await settle()
        assert engine.batches[-1] == [5]
        engine.gate.set()
        await answers(*requests)


async def test_requests_gather_while_all_slots_are_busy() -> None:
    async with batching() as (batcher, engine):
        head = await occupy(batcher, engine)
        requests = [submit(batcher, value) for value in (1, 2, 3, 4, 5)]
        await settle()
        assert engine.batches == [[0]]
        engine.gate.set()
        assert await answers(head, *requests) == [[0], [2], [4], [6], [8], [10]]
        assert engine.batches == [[0], [1, 2, 3, 4], [5]]


async def test_a_batch_is_as_large_as_the_curve_prefers() -> None:
    curve = ThroughputCurve({1: 1.0, 2: 1.0, 4: 2.0})
    async with batching(max_batch_size=None, curve=curve) as (batcher, engine):
        head = await occupy(batcher, engine)
        requests = [submit(batcher, value) for value in (1, 2, 3)]
        engine.gate.set()
        await answers(head, *requests)
        assert engine.batches == [[0], [1, 2], [3]]
        assert batcher.state.batch_size_limit_rows == 2
        assert batcher.state.batch_size_is_learned


async def test_under_lasting_load_a_larger_size_is_tried_and_found_to_be_better() -> (
    None
):
    """Each batch costs the same here, whatever its size; warm-up thought otherwise."""
    curve = ThroughputCurve({1: 0.001, 2: 0.001, 4: 0.004})
    async with batching(max_batch_size=None, max_queue_depth=10_000, curve=curve) as (
        batcher,
        engine,
    ):
        requests = [submit(batcher, value % POISON) for value in range(2_000)]
        await answers(*requests)
        assert [len(batch) for batch in engine.batches[:17]] == [2] * 15 + [4, 2]
        assert batcher.state.batch_size_limit_rows == 4
        assert len(engine.batches[-2]) == 4


async def test_batches_are_padded_to_allowed_sizes_and_answers_are_not() -> None:
    async with batching(max_batch_size=None, allowed_batch_sizes=(2, 4)) as (
        batcher,
        engine,
    ):
        curve = ThroughputCurve({2: 1.0, 4: 1.0})
        batcher._curve = curve
        head = await occupy(batcher, engine)
        requests = [submit(batcher, 1, 2), submit(batcher, 3)]
        engine.gate.set()
        assert await answers(head, *requests) == [[0], [2, 4], [6]]
        assert engine.batches == [[0, 0], [1, 2, 3, 0]]


async def test_a_slot_waits_for_company_only_where_a_delay_is_set() -> None:
    async with batching(max_queue_delay_seconds=FAR) as (batcher, engine):
        requests = [submit(batcher, value) for value in (1, 2, 3)]
        await settle()
        assert engine.batches == []
        requests.append(submit(batcher, 4))
        assert await answers(*requests) == [[2], [4], [6], [8]]


async def test_the_wait_for_company_ends_by_itself() -> None:
    async with batching(max_queue_delay_seconds=0.001) as (batcher, engine):
        requests = [submit(batcher, value) for value in (1, 2, 3)]
        assert await answers(*requests) == [[2], [4], [6]]
        assert engine.batches == [[1, 2, 3]]


async def test_a_request_of_several_rows_is_not_split_if_a_batch_can_hold_it() -> None:
    async with batching() as (batcher, engine):
        head = await occupy(batcher, engine)
        requests = [
            submit(batcher, 9),
            submit(batcher, 1, 2, 3, 4),
            submit(batcher, 5),
        ]
        engine.gate.set()
        assert await answers(head, *requests) == [[0], [18], [2, 4, 6, 8], [10]]
        assert engine.batches == [[0], [9], [1, 2, 3, 4], [5]]


async def test_a_request_larger_than_any_batch_is_split_and_put_together() -> None:
    async with batching(slots=2) as (batcher, engine):
        large = submit(batcher, *range(10))
        small = submit(batcher, 20)
        assert await answers(large, small) == [[2 * n for n in range(10)], [40]]
        assert engine.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 20]]


async def test_a_split_request_whose_outputs_do_not_join_fails_alone() -> None:
    async def as_wide_as_the_first_row_says(
        tensors: Tensors, _: float
    ) -> dict[str, Any]:
        rows = tensors["x"]
        return {"y": np.repeat(rows, rows[0, 0], axis=1)}

    async with batching() as (batcher, _):
        batcher._infer = as_wide_as_the_first_row_says
        large, neighbour = submit(batcher, 2, 2, 2, 2, 3), submit(batcher, 4)
        with pytest.raises(EngineFailure, match="send at most 4 rows at a time"):
            await large
        assert await answers(neighbour, submit(batcher, 5, 5, 5, 5)) == [[4], [5] * 4]
        assert not batcher.crashed


async def test_requests_whose_rows_differ_in_shape_share_no_batch(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with batching(free_inputs=("x",)) as (batcher, engine):
        head = await occupy(batcher, engine)
        requests = [
            batcher.submit(
                {"x": np.full((1, width), value)},
                rows=1,
                deadline=float("inf"),
                priority=priority,
            ).answer
            for value, width, priority in (
                (1, 2, Priority.INTERACTIVE),
                (2, 2, Priority.INTERACTIVE),
                (3, 3, Priority.INTERACTIVE),
                (4, 2, BULK),
                (5, 2, BULK),
            )
        ]
        engine.gate.set()
        assert await answers(head, *requests) == [[0], [2], [4], [6], [8], [10]]
        assert engine.batches == [[0], [1, 2], [3], [4, 5]]
    assert caplog.text == ""


async def test_images_share_a_batch_by_size_where_the_signature_leaves_it_open() -> (
    None
):
    image = TensorSpec(name="x", dtype=np.dtype("uint8"), shape=(None, None, None, 3))
    answer = TensorSpec(name="y", dtype=np.dtype("float32"), shape=(None, 10))
    signature = Signature(name="serve", inputs={"x": image}, outputs={"y": answer})
    engine = StubEngine(signature, record=True)
    served = ServedVersion(
        card=infer_card(engine.signatures),
        engine=engine,
        signature_defs={},
        curves={"serve": ThroughputCurve.unmeasured(4)},
        processor=Processor(1),
        metrics=Metrics(DURATION_BUCKETS_SECONDS),
        settings=Settings(),
        on_crash=lambda: None,
    )
    requests = [
        served.batchers["serve"].submit(
            {"x": np.zeros((1, side, side, 3), np.uint8)},
            rows=1,
            deadline=float("inf"),
        )
        for side in (8, 8, 9)
    ]
    await asyncio.gather(*(one.answer for one in requests))
    assert [len(batch["x"]) for batch in engine.batches] == [2, 1]


async def test_requests_go_as_they_are_where_the_engine_makes_its_own_batches() -> None:
    async with batching(gathers=False, max_batch_size=None, slots=3) as (
        batcher,
        engine,
    ):
        engine.gate.clear()
        large = submit(batcher, *range(10))
        small = [submit(batcher, value) for value in (1, 2, 3)]
        await settle()
        assert engine.batches == [[*range(10)], [1], [2]]
        engine.gate.set()
        assert await answers(large, *small) == [
            [2 * n for n in range(10)],
            *([2], [4], [6]),
        ]
        assert engine.batches[3:] == [[3]]


async def test_what_goes_as_it_is_waits_for_requests_and_not_for_batches() -> None:
    curve = ThroughputCurve({1: 1.0, 8: 2.0})
    async with batching(gathers=False, max_batch_size=None, curve=curve) as (
        batcher,
        engine,
    ):
        head = await occupy(batcher, engine)
        waiting = [submit(batcher, value) for value in (1, 2)]
        wait, own = batcher._expected_wait(BULK, 8)
        assert wait == pytest.approx(3, abs=0.5)
        assert own == pytest.approx(2, rel=0.1)
        with pytest.raises(Overloaded, match="2 requests wait"):
            submit(batcher, 3, timeout=2)
        engine.gate.set()
        await answers(head, *waiting)


async def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    curve = ThroughputCurve({1: 2.0, 4: 8.0})
    async with batching(max_queue_depth=2, curve=curve) as (batcher, engine):
        head = await occupy(batcher, engine)
        accepted = [submit(batcher, value) for value in (1, 2)]
        with pytest.raises(Overloaded, match="2 requests wait") as refusal:
            submit(batcher, 4)
        # Two seconds for what runs, and the batch of three would take six.
        assert refusal.value.retry_after_seconds == pytest.approx(2, abs=0.5)
        engine.gate.set()
        assert await answers(head, *accepted) == [[0], [2], [4]]


async def test_places_of_requests_that_are_being_decoded_count() -> None:
    async with batching(max_queue_depth=1) as (batcher, _):
        with batcher.admit(rows=1, deadline=float("inf")) as place:
            assert batcher.queue_depth == 1
            with pytest.raises(Overloaded):
                submit(batcher, 2)
            assert await answers(place.submit(rows_of(1))) == [[2]]
            assert batcher.queue_depth == 0


async def test_a_request_that_cannot_be_decoded_gives_its_place_back() -> None:
    async with batching(max_queue_depth=1) as (batcher, _):
        with pytest.raises(ZeroDivisionError):  # noqa: SIM117, the block is the subject
            with batcher.admit(rows=5, deadline=float("inf")):
                raise ZeroDivisionError
        assert await answers(submit(batcher, 1)) == [[2]]
        assert batcher._expected_wait(BULK) == (0, pytest.approx(MOMENT, rel=10))


async def test_a_deadline_that_cannot_be_met_is_refused_as_the_request_comes() -> None:
    curve = ThroughputCurve({1: 1.0, 4: 4.0})
    async with batching(curve=curve) as (batcher, engine):
        head = await occupy(batcher, engine)
        waiting = submit(batcher, 1)  # will be there in about two seconds
        with pytest.raises(Overloaded, match=r"2\.\d* s|3 s") as refusal:
            submit(batcher, 2, timeout=1.5)
        assert refusal.value.code == "deadline_unreachable"
        assert 0 < refusal.value.retry_after_seconds < 2
        patient = submit(batcher, 3, timeout=4)
        engine.gate.set()
        assert await answers(head, waiting, patient) == [[0], [2], [6]]


async def test_an_idle_engine_tries_whatever_the_deadline() -> None:
    """A forecast that is too dark must not refuse what alone would correct it."""
    curve = ThroughputCurve({1: 10.0})
    async with batching(curve=curve) as (batcher, _):
        assert await answers(submit(batcher, 1, timeout=5)) == [[2]]
        assert curve.seconds(1) < 10


async def test_of_those_announced_at_a_time_no_more_come_in_than_have_a_place() -> None:
    async with batching(max_queue_depth=2) as (batcher, _):
        for _ in range(2):
            batcher.announce(deadline=float("inf"), priority=Priority.INTERACTIVE)
        with pytest.raises(Overloaded, match="queue is full"):
            batcher.announce(deadline=float("inf"), priority=Priority.INTERACTIVE)
        await settle()
        batcher.announce(deadline=float("inf"), priority=Priority.INTERACTIVE)


async def test_of_those_announced_at_a_time_no_more_come_in_than_time_allows() -> None:
    curve = ThroughputCurve({1: 10.0})
    async with batching(max_batch_size=1, curve=curve) as (batcher, _):
        deadline = monotonic() + 25
        for _ in range(2):
            batcher.announce(deadline=deadline, priority=Priority.INTERACTIVE)
        with pytest.raises(Overloaded) as refusal:
            batcher.announce(deadline=deadline, priority=Priority.INTERACTIVE)
        assert refusal.value.code == "deadline_unreachable"


async def test_an_announced_batch_request_takes_nothing_from_people() -> None:
    async with batching(max_queue_depth=4) as (batcher, _):
        for _ in range(2):
            batcher.announce(deadline=float("inf"), priority=BULK)
        with pytest.raises(Overloaded, match="batch priority"):
            batcher.announce(deadline=float("inf"), priority=BULK)
        batcher.announce(deadline=float("inf"), priority=Priority.INTERACTIVE)


async def test_forecasts_that_were_too_bright_are_held_against_the_next() -> None:
    async with batching() as (batcher, engine):
        for _ in range(40):
            head = await occupy(batcher, engine)
            batcher._loop.call_later(0.003, engine.gate.set)
            await head
        assert 0.003 < batcher.state.lateness_seconds < 1


async def test_a_late_batch_request_darkens_no_forecast_for_people() -> None:
    """It may have been overtaken, which happens to no interactive request."""
    async with batching() as (batcher, _):
        with batcher.admit(rows=1, deadline=float("inf"), priority=BULK) as place:
            place.expected_at -= 50
            await place.submit(rows_of(1))
        people, bulk = (line.forecasts.margin_seconds for line in batcher._lines)
        assert people == 0
        assert bulk > 1


async def test_interactive_requests_go_before_batch_requests() -> None:
    async with batching(max_batch_size=2) as (batcher, engine):
        head = await occupy(batcher, engine)
        bulk = [submit(batcher, value, priority=BULK) for value in (1, 2, 3)]
        people = [submit(batcher, value) for value in (4, 5, 6)]
        engine.gate.set()
        await answers(head, *bulk, *people)
        assert engine.batches == [[0], [4, 5], [6, 1], [2, 3]]


async def test_an_interactive_request_goes_between_the_parts_of_a_large_one() -> None:
    async with batching(max_batch_size=2) as (batcher, engine):
        engine.gate.clear()
        bulk = submit(batcher, 1, 2, 3, 4, 5, priority=BULK)
        await settle()
        person = submit(batcher, 6)
        engine.gate.set()
        assert await answers(bulk, person) == [[2, 4, 6, 8, 10], [12]]
        assert engine.batches == [[1, 2], [6], [3, 4], [5]]


async def test_batch_requests_leave_places_in_the_queue_to_people() -> None:
    async with batching(max_queue_depth=4) as (batcher, engine):
        head = await occupy(batcher, engine)
        bulk = [submit(batcher, value, priority=BULK) for value in (1, 2)]
        with pytest.raises(Overloaded, match="2 requests of batch priority"):
            submit(batcher, 3, priority=BULK)
        people = [submit(batcher, value) for value in (4, 5)]
        engine.gate.set()
        await answers(head, *bulk, *people)


async def test_batch_requests_ahead_do_not_count_against_a_person_s_deadline() -> None:
    curve = ThroughputCurve({1: 1.0, 4: 4.0})
    async with batching(curve=curve) as (batcher, engine):
        head = await occupy(batcher, engine)
        bulk = [submit(batcher, value, priority=BULK) for value in (1, 2, 3)]
        with pytest.raises(Overloaded):
            submit(batcher, 4, timeout=3, priority=BULK)
        person = submit(batcher, 4, timeout=3)
        engine.gate.set()
        await answers(head, *bulk, person)


async def test_a_cancelled_request_costs_no_compute_and_others_are_answered() -> None:
    async with batching() as (batcher, engine):
        head = await occupy(batcher, engine)
        gone, neighbour = submit(batcher, 1), submit(batcher, 2)
        gone.cancel()
        engine.gate.set()
        assert await answers(head, neighbour) == [[0], [4]]
        assert engine.batches == [[0], [2]]


async def test_a_cancelled_request_gives_its_place_back() -> None:
    async with batching(max_queue_depth=1) as (batcher, engine):
        head = await occupy(batcher, engine)
        for value in range(5):
            submit(batcher, value).cancel()
            await settle()
        assert batcher.queue_depth == 0
        last = submit(batcher, 1)
        engine.gate.set()
        assert await answers(head, last) == [[0], [2]]


async def test_a_request_cancelled_inside_a_batch_leaves_the_others_answered() -> None:
    async with batching() as (batcher, engine):
        head = await occupy(batcher, engine)
        together = [submit(batcher, value) for value in (1, 2, 3)]
        engine.gate.set()
        await head
        engine.gate.clear()
        await settle()
        together[0].cancel()
        engine.gate.set()
        assert await answers(*together[1:]) == [[4], [6]]


async def test_a_batch_that_nobody_waits_for_is_cancelled_where_the_engine_can() -> (
    None
):
    async with batching(cancels=True) as (batcher, engine):
        head = await occupy(batcher, engine)
        together = [submit(batcher, value) for value in (1, 2)]
        head.cancel()
        await settle()
        assert engine.batches == [[0], [1, 2]]
        together[0].cancel()
        await settle()
        assert batcher._running
        together[1].cancel()
        await settle()
        assert not batcher._running
        engine.gate.set()
        assert await answers(submit(batcher, 3)) == [[6]]


async def test_a_large_request_is_cancelled_where_it_runs_though_a_part_waits() -> None:
    async with batching(cancels=True, slots=2, max_batch_size=2) as (batcher, engine):
        engine.gate.clear()
        large = submit(batcher, 1, 2, 3, 4, 5)
        await settle()
        small = submit(batcher, 6)
        assert engine.batches == [[1, 2], [3, 4]]
        large.cancel()
        await settle()
        assert engine.batches == [[1, 2], [3, 4], [6]]
        assert batcher.calls_in_flight == 1
        engine.gate.set()
        assert await answers(small) == [[12]]


async def test_what_waits_of_a_cancelled_request_costs_its_neighbours_nothing() -> None:
    async with batching(cancels=True, slots=2, max_batch_size=2) as (batcher, engine):
        engine.gate.clear()
        neighbour = submit(batcher, 1)
        await settle()
        large = submit(batcher, 2, 3, 4)
        await settle()
        assert engine.batches == [[1], [2, 3]]
        large.cancel()
        await settle()
        assert batcher.calls_in_flight == 1
        engine.gate.set()
        assert await answers(neighbour) == [[2]]
        assert engine.batches == [[1], [2, 3]]


async def test_a_batch_that_nobody_waits_for_keeps_its_slot_where_it_runs_on() -> None:
    async with batching() as (batcher, engine):
        head = await occupy(batcher, engine)
        last = submit(batcher, 1)
        head.cancel()
        await settle()
        assert engine.batches == [[0]]
        engine.gate.set()
        assert await answers(last) == [[2]]


async def test_an_expired_request_fails_at_its_deadline_and_costs_no_compute() -> None:
    async with batching() as (batcher, engine):
        head = await occupy(batcher, engine)
        with pytest.raises(DeadlineExceeded):
            await submit(batcher, 2, timeout=0.001)
        last = submit(batcher, 3)
        engine.gate.set()
        assert await answers(head, last) == [[0], [6]]
        assert engine.batches == [[0], [3]]


async def test_a_request_whose_time_ran_out_in_the_queue_has_waited_there() -> None:
    metrics = Metrics(DURATION_BUCKETS_SECONDS).version("m", 1)
    async with batching(metrics=metrics) as (batcher, engine):
        await occupy(batcher, engine)
        assert metrics.queue_seconds.count == 1
        timeout = 0.01
        place = batcher.submit(rows_of(2), rows=1, deadline=monotonic() + timeout)
        with pytest.raises(DeadlineExceeded):
            await place.answer
        assert metrics.queue_seconds.count == 2
        assert place.queue_seconds > 0.9 * timeout


async def test_a_request_whose_timer_is_late_still_costs_no_compute() -> None:
    async with batching() as (batcher, engine):
        head = await occupy(batcher, engine)
        with batcher.admit(rows=1, deadline=float("inf")) as place:
            late = place.submit(rows_of(1))
            place.deadline = 0
            engine.gate.set()
            assert await answers(head) == [[0]]
            with pytest.raises(DeadlineExceeded):
                await late
        assert engine.batches == [[0]]


async def test_a_request_that_is_let_go_before_its_answer_is_withdrawn() -> None:
    async with batching() as (batcher, engine):
        head = await occupy(batcher, engine)
        with batcher.admit(rows=1, deadline=float("inf")) as place:
            answer = place.submit(rows_of(1))
        assert answer.cancelled()
        engine.gate.set()
        assert await answers(head) == [[0]]
        assert engine.batches == [[0]]


async def test_each_request_fails_at_its_own_deadline_in_whatever_order_they_come() -> (
    None
):
    async with batching() as (batcher, engine):
        head = await occupy(batcher, engine)
        endless = batcher.submit(rows_of(1), rows=1, deadline=float("inf")).answer
        early: list[float] = []
        doomed = []
        for timeout in (0.03, 0.01, 0.05, 0.02):
            deadline = monotonic() + timeout
            request = batcher.submit(rows_of(2), rows=1, deadline=deadline).answer
            request.add_done_callback(
                lambda _, it=deadline: early.append(it) if monotonic() < it else None
            )
            doomed.append(request)
        results = await asyncio.gather(*doomed, return_exceptions=True)
        assert all(isinstance(result, DeadlineExceeded) for result in results)
        assert early == []
        engine.gate.set()
        assert await answers(head, endless) == [[0], [2]]
        assert engine.batches == [[0], [1]]


async def test_a_deadline_that_passes_while_decoding_is_told_at_once() -> None:
    async with batching() as (batcher, engine):
        with batcher.admit(rows=1, deadline=float("inf")) as place:
            place.deadline = 0
            with pytest.raises(DeadlineExceeded):
                place.submit(rows_of(1))
        assert batcher.queue_depth == 0
        assert engine.batches == []


async def test_a_deadline_in_the_past_is_refused() -> None:
    async with batching() as (batcher, _):
        with pytest.raises(DeadlineExceeded):
            submit(batcher, 1, timeout=-1)


async def test_a_request_that_breaks_a_batch_fails_alone() -> None:
    async with batching() as (batcher, engine):
        head = await occupy(batcher, engine)
        requests = [submit(batcher, value) for value in (1, 2, POISON, 3)]
        engine.gate.set()
        results = await asyncio.gather(head, *requests, return_exceptions=True)
        assert isinstance(results.pop(3), EngineFailure)
        assert [r["y"].tolist() for r in results] == [[[0]], [[2]], [[4]], [[6]]]  # type: ignore[index]


async def test_an_engine_that_answers_too_few_rows_fails_the_request() -> None:
    async def short(tensors: Tensors, _: float) -> dict[str, Any]:
        return {"y": tensors["x"][:-1]}

    async with batching() as (batcher, _):
        batcher._infer = short
        with pytest.raises(EngineFailure, match="2 rows"):
            await submit(batcher, 1, 2)


async def test_errors_of_our_own_reach_the_caller_as_they_are() -> None:
    async def refuse(_: Tensors, __: float) -> dict[str, Any]:
        raise InvalidTensor("wrong")

    async with batching() as (batcher, _):
        batcher._infer = refuse
        with pytest.raises(InvalidTensor, match="wrong"):
            await submit(batcher, 1)


async def test_a_signature_without_rows_is_run_one_request_at_a_time() -> None:
    async def total(tensors: Tensors, _: float) -> dict[str, Any]:
        return {"y": tensors["x"].sum()}

    async with batching(batched=False) as (batcher, _):
        batcher._infer = total
        futures = [
            batcher.submit({"x": np.arange(n)}, rows=1, deadline=float("inf")).answer
            for n in (3, 4)
        ]
        assert [int((await f)["y"]) for f in futures] == [3, 6]


async def test_a_signature_without_rows_is_never_padded() -> None:
    async def shape(tensors: Tensors, _: float) -> dict[str, Any]:
        return {"y": np.array(tensors["x"].shape)}

    async with batching(
        batched=False, max_batch_size=None, allowed_batch_sizes=(4, 8)
    ) as (batcher, _):
        batcher._infer = shape
        request = batcher.submit({"x": np.ones((3, 2))}, rows=1, deadline=float("inf"))
        assert (await request.answer)["y"].tolist() == [3, 2]


async def test_a_closed_batcher_refuses_and_fails_what_waits() -> None:
    async with batching() as (batcher, engine):
        waiting = await occupy(batcher, engine)
        with batcher.admit(rows=1, deadline=float("inf")) as decoding:
            batcher.close()
            with pytest.raises(Draining):
                decoding.submit(rows_of(1))
        with pytest.raises(Draining):
            submit(batcher, 2)
        with pytest.raises(Draining):
            await waiting
        engine.gate.set()
        await settle()


async def test_a_crashed_dispatcher_fails_its_requests_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics = Metrics(DURATION_BUCKETS_SECONDS)
    async with batching() as (batcher, engine):
        batcher._metrics = metrics.version("m", 1)
        head = await occupy(batcher, engine)
        waiting = submit(batcher, 2)
        batcher._take = lambda: 1 / 0  # type: ignore[method-assign,assignment,return-value]
        engine.gate.set()
        with pytest.raises(EngineFailure, match="has failed"):
            await waiting
        assert head.done()
        assert batcher.crashed
        with pytest.raises(EngineFailure, match="has failed"):
            submit(batcher, 4)
    assert "dispatching failed" in caplog.text
    crashes = "blockserve_dispatcher_crashes_total"
    labels = {"model": "m", "version": "1"}
    assert metrics.registry.get_sample_value(crashes, labels) == 1


async def test_a_crash_leaves_other_models_their_slots() -> None:
    processor = Processor(1)
    async with (
        batching(processor=processor) as (broken, _),
        batching(processor=processor) as (sound, _),
    ):
        broken._take = lambda: 1 / 0  # type: ignore[method-assign,assignment,return-value]
        lost, answered = submit(broken, 1), submit(sound, 2)
        with pytest.raises(EngineFailure):
            await lost
        assert await answers(answered) == [[4]]


async def test_a_crash_as_a_batch_ends_leaves_other_models_their_slots() -> None:
    processor = Processor(1)
    async with (
        batching(processor=processor) as (broken, _),
        batching(processor=processor) as (sound, _),
    ):
        broken._curve.observe = lambda _rows, _seconds: 1 / 0  # type: ignore[method-assign,assignment,return-value]
        lost, answered = submit(broken, 1), submit(sound, 2)
        await settle()
        assert answered.done()
        assert await answers(answered) == [[4]]
        with pytest.raises(EngineFailure, match="has failed"):
            await lost


async def test_a_crash_as_a_batch_ends_lets_no_other_batch_start() -> None:
    async with batching() as (batcher, engine):
        head = await occupy(batcher, engine)
        waiting = submit(batcher, 1)
        batcher._curve.observe = lambda _rows, _seconds: 1 / 0  # type: ignore[method-assign,assignment,return-value]
        engine.gate.set()
        for lost in (head, waiting):
            with pytest.raises(EngineFailure, match="has failed"):
                await lost
        await settle()
        assert engine.batches == [[0]]


async def test_queue_depth_counts_the_requests_that_wait() -> None:
    async with batching() as (batcher, engine):
        head = await occupy(batcher, engine)
        requests = [submit(batcher, value) for value in (1, 2)]
        assert batcher.queue_depth == 2
        engine.gate.set()
        await answers(head, *requests)
        assert batcher.queue_depth == 0


class Plan(NamedTuple):
    """What one of the generated callers does."""

    rows: int
    fate: str
    priority: Priority
    steps: int  # of the loop before the next one arrives


PLANS: Final = st.lists(
    st.builds(
        Plan,
        rows=st.integers(1, 9),
        fate=st.sampled_from(["wait", "cancel", "poison", "expire", "abandon"]),
        priority=st.sampled_from(Priority),
        steps=st.integers(0, 3),
    ),
    min_size=1,
    max_size=30,
)


@given(
    plans=PLANS,
    slots=st.integers(1, 3),
    shared_slots=st.integers(1, 3),
    max_batch_size=st.sampled_from([None, 1, 2, 3, 8]),
    allowed=st.sampled_from([None, (8,), (2, 4, 8)]),
    delay=st.sampled_from([0.0, 0.0001]),
    cancels=st.booleans(),
    gathers=st.booleans(),
)
@settings(deadline=None, max_examples=200)
def test_every_request_is_answered_once_with_its_own_rows(
    plans: list[Plan],
    slots: int,
    shared_slots: int,
    max_batch_size: int | None,
    allowed: tuple[int, ...] | None,
    delay: float,
    cancels: bool,
    gathers: bool,
) -> None:
    async def scenario() -> None:
        async with batching(
            slots=slots,
            processor=Processor(shared_slots),
            curve=ThroughputCurve({1: MOMENT, 4: MOMENT, 8: 3 * MOMENT}),
            max_batch_size=max_batch_size if gathers else None,
            allowed_batch_sizes=allowed if gathers else None,
            max_queue_delay_seconds=delay if gathers else 0.0,
            cancels=cancels,
            gathers=gathers,
        ) as (batcher, engine):
            requests = []
            value = 1000
            for rows, fate, priority, steps in plans:
                values = list(range(value, value + rows))
                value += rows
                if fate == "poison":
                    values[-1] = POISON
                engine.gate.clear() if steps % 2 else engine.gate.set()
                if fate == "abandon":
                    with batcher.admit(
                        rows=rows, deadline=float("inf"), priority=priority
                    ):
                        await asyncio.sleep(0)
                    continue
                timeout = 0.002 if fate == "expire" else FAR
                too_late = (Overloaded, DeadlineExceeded)
                with suppress(*too_late if fate == "expire" else ()):
                    request = submit(
                        batcher, *values, timeout=timeout, priority=priority
                    )
                    requests.append((request, values, fate))
                for _ in range(steps):
                    await asyncio.sleep(0)
                if fate == "cancel":
                    request.cancel()
            engine.gate.set()
            futures = [request for request, _, _ in requests]
            results = await asyncio.gather(*futures, return_exceptions=True)
            for result, (_, values, fate) in zip(results, requests, strict=True):
                if isinstance(result, BaseException):
                    expected = {
                        "poison": EngineFailure,
                        "cancel": asyncio.CancelledError,
                        "expire": DeadlineExceeded,
                    }
                    assert isinstance(result, expected[fate])
                else:
                    assert fate != "poison"
                    assert result["y"][:, 0].tolist() == [2 * v for v in values]
            await settle()
            assert batcher.queue_depth == 0
            assert batcher._waiting_rows == 0
            assert [line.rows for line in batcher._lines] == [0, 0]
            assert batcher._free_slots == slots
            assert not batcher._unanswered
            assert not batcher._running
            largest = max(allowed or (batcher.batch_size_limit_rows,))
            most = max(largest, 8) if gathers else max(plan.rows for plan in plans)
            assert all(len(batch) <= most for batch in engine.batches)

    asyncio.run(scenario())


async def test_the_engine_is_told_until_when_somebody_waits() -> None:
    async with batching() as (batcher, engine):
        head = await occupy(batcher, engine)
        soon, late = submit(batcher, 1, timeout=5), submit(batcher, 2, timeout=50)
        latest = monotonic() + 50
        engine.gate.set()
        await asyncio.gather(head, soon, late)
    assert engine.batches[1] == [1, 2]
    assert engine.deadlines[1] == pytest.approx(latest, abs=1)


async def test_what_no_request_is_to_blame_for_is_not_tried_one_by_one() -> None:
    async with batching() as (batcher, engine):
        head = await occupy(batcher, engine)
        waiting = [submit(batcher, 1), submit(batcher, 2)]
        await settle()
        engine.failure = Overloaded("elsewhere", retry_after_seconds=3)
        engine.gate.set()
        results = await asyncio.gather(head, *waiting, return_exceptions=True)
    assert engine.batches == [[0], [1, 2]]
    assert all(isinstance(one, Overloaded) for one in results)
    assert len({id(one) for one in results[1:]}) == 2
    assert results[2].retry_after_seconds == 3  # type: ignore[union-attr]  # see above
