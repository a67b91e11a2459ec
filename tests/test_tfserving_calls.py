"""How the engine `tfserving` gets an answer out of replicas that may fail."""

import asyncio
import threading
from time import monotonic
from typing import Any

import grpc
import numpy as np
import pytest

from service.engines.tfserving import ReplicaPool, TfServingEngine, messages
from service.engines.tfserving.pool import LEAST_RETRY_BURST
from service.errors import (
    DeadlineExceeded,
    EngineFailure,
    InvalidTensor,
    Overloaded,
    TooLarge,
    Unavailable,
    VersionGone,
)
from tests.replicas import (
    LONG_SECONDS,
    MODEL,
    QUEUE_FULL,
    STATES,
    THREADS_BUSY,
    FakeReplica,
    classified,
    images,
    pooled,
    refusal,
    replicas,
    request_of,
    silence,
    until,
)
from tests.support import only

UNAVAILABLE = refusal(grpc.StatusCode.UNAVAILABLE, "not now")
BUSY = refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, THREADS_BUSY)
FULL = refusal(grpc.StatusCode.UNAVAILABLE, QUEUE_FULL)
POOL = "service.engines.tfserving.pool"


def answered(*asked: FakeReplica) -> list[int]:
    """How many calls each has answered."""
    return [sum(call.answered for call in one.asked) for one in asked]


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A silence of a second means nothing on a machine that has other things to do."""
    monkeypatch.setattr(f"{POOL}.LEAST_PATIENCE_SECONDS", LONG_SECONDS)
    monkeypatch.setattr(f"{POOL}.PROBE_TIMEOUT_SECONDS", LONG_SECONDS)


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A silence is one too many soon, and what fails is given up soon."""
    monkeypatch.setattr(f"{POOL}.LEAST_PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(f"{POOL}.UNKNOWN_ANSWER_SECONDS", 0.01)
    monkeypatch.setattr(f"{POOL}.RECOVERY_SECONDS", 0.1)
    monkeypatch.setattr("service.engines.tfserving.call.PERSISTENCE_SECONDS", 0.3)


async def test_calls_spread_over_the_replicas() -> None:
    async with replicas(3) as made, pooled(*made) as pool:
        for value in range(9):
            assert await classified(pool, value) == value
        assert answered(*made) == [3, 3, 3]


async def test_the_replica_with_the_fewest_calls_is_next() -> None:
    async with replicas(2) as (slow, quick), pooled(slow, quick) as pool:
        slow.gate.clear()
        held = [asyncio.create_task(classified(pool, value)) for value in (1, 2)]
        await until(lambda: slow.under_way)
        for value in range(8):
            assert await classified(pool, value) == value
        assert len(slow.asked) == 1
        slow.gate.set()
        assert await asyncio.gather(*held) == [1, 2]


async def test_no_replica_has_more_calls_than_it_may_even_if_all_come_at_once() -> None:
    async with replicas(2) as made, pooled(*made, calls_per_replica=3) as pool:
        for one in made:
            one.gate.clear()
        calls = [asyncio.create_task(classified(pool, value)) for value in range(20)]
        await until(lambda: all(one.under_way == 3 for one in made))
        for one in made:
            one.gate.set()
        assert await asyncio.gather(*calls) == [value % 10 for value in range(20)]
        assert [one.most_under_way for one in made] == [3, 3]


async def test_calls_that_wait_for_room_go_in_their_order() -> None:
    async with replicas() as (one,), pooled(one, calls_per_replica=1) as pool:
        one.gate.clear()
        calls = [asyncio.create_task(classified(pool, value)) for value in range(5)]
        await until(lambda: one.under_way)
        one.gate.set()
        await asyncio.gather(*calls)
        bodies = [call.request.SerializeToString() for call in one.asked]
        assert bodies == [request_of(value) for value in range(5)]


async def test_a_call_that_waits_for_room_ends_with_its_time() -> None:
    async with replicas() as (one,), pooled(one, calls_per_replica=1) as pool:
        one.gate.clear()
        held = asyncio.create_task(classified(pool, 1))
        await until(lambda: one.under_way)
        with pytest.raises(DeadlineExceeded):
            await classified(pool, 2, timeout_seconds=0.05)
        one.gate.set()
        assert await held == 1
        assert len(one.asked) == 1


@pytest.mark.parametrize("refusing", [UNAVAILABLE, BUSY, FULL])
async def test_what_one_replica_refuses_another_answers(refusing: Any) -> None:
    async with replicas(2) as made, pooled(*made) as pool:
        for one in made:
            one.next_answers.append(refusing)
        made[1].next_answers.clear()
        for value in range(4):
            assert await classified(pool, value) == value
        assert answered(*made)[1] >= 1


@pytest.mark.parametrize("refusing", [UNAVAILABLE, BUSY, FULL])
async def test_a_replica_that_says_no_is_not_taken_out(refusing: Any) -> None:
    """It is there and has said so: nothing is known to be wrong with it."""
    async with replicas() as (one,), pooled(one) as pool:
        one.next_answers.append(refusing)
        assert await classified(pool, 3) == 3
        assert pool.problem is None
        assert pool.replicas[0].times_up == 1


async def test_a_replica_that_refuses_quickly_does_not_draw_all_calls() -> None:
    """It always has the fewest calls under way; the budget would soon be spent."""
    async with replicas(2) as (bad, good), pooled(bad, good) as pool:
        bad.behaviour = BUSY
        for value in range(100):
            assert await classified(pool, value) == value % 10
        assert answered(bad, good) == [0, 100]
        assert len(bad.asked) < 20
        bad.behaviour = bad._classify
        await until_asked_again(pool, bad)


async def until_asked_again(pool: ReplicaPool, replica: FakeReplica) -> None:
    """Call until a replica that rests has had its turn again."""

    async def calls() -> None:
        before = answered(replica)
        while answered(replica) == before:
            await classified(pool)

    await asyncio.wait_for(calls(), LONG_SECONDS)


@pytest.mark.usefixtures("_impatient")
async def test_a_server_in_trouble_gets_no_storm_of_retries() -> None:
    async with replicas(2) as made, pooled(*made, calls_per_replica=8) as pool:
        for one in made:
            one.behaviour = UNAVAILABLE
        outcomes = await asyncio.gather(
            *(classified(pool) for _ in range(200)), return_exceptions=True
        )
        assert {type(one) for one in outcomes} == {Unavailable}
        assert "not now" in str(outcomes[0])
        retries = sum(len(one.asked) for one in made) - 200
        # One call in five earns one, and what is saved up is as many as may be under
        # way at a time, or a few.
        assert LEAST_RETRY_BURST - 1 <= retries <= LEAST_RETRY_BURST + 200 / 5


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("refusing", [BUSY, FULL])
async def test_where_all_are_busy_that_is_told(refusing: Any) -> None:
    async with replicas(2) as made, pooled(*made) as pool:
        for one in made:
            one.behaviour = refusing
        with pytest.raises(Overloaded, match="is busy"):
            await classified(pool)


@pytest.mark.parametrize(
    ("code", "details", "error", "told"),
    [
        ("INVALID_ARGUMENT", "Expects arg[0] to be uint8", InvalidTensor, "arg\\[0\\]"),
        ("FAILED_PRECONDITION", "no such key", EngineFailure, "refused.*no such key"),
        ("UNIMPLEMENTED", "", EngineFailure, "refused it"),
        (
            "RESOURCE_EXHAUSTED",
            "Received message larger than max (9 vs. 4)",
            TooLarge,
            "9 vs. 4",
        ),
    ],
)
async def test_what_would_fail_elsewhere_too_is_not_tried_there(
    code: str, details: str, error: type[Exception], told: str
) -> None:
    async with replicas(2) as made, pooled(*made) as pool:
        for one in made:
            one.behaviour = refusal(grpc.StatusCode[code], details)
        with pytest.raises(error, match=told):
            await classified(pool)
        assert sum(len(one.asked) for one in made) == 1


SICK = refusal(grpc.StatusCode.INTERNAL, "CUDNN_STATUS_EXECUTION_FAILED")


async def test_a_replica_that_is_sick_loses_nothing_and_does_not_draw_all_calls() -> (
    None
):
    """Its processor fails at each call, at once, and it says that all is well."""
    async with replicas(2) as (bad, good), pooled(bad, good) as pool:
        bad.behaviour = SICK
        for value in range(100):
            assert await classified(pool, value) == value % 10
        assert answered(bad, good) == [0, 100]
        assert len(bad.asked) < 20


async def test_a_call_that_is_given_up_on_the_way_is_tried_elsewhere() -> None:
    """As a proxy does it whose own limit is shorter."""
    async with replicas(2) as made, pooled(*made) as pool:
        for one in made:
            one.next_answers.append(refusal(grpc.StatusCode.DEADLINE_EXCEEDED, ""))
        made[1].next_answers.clear()
        for value in range(2):
            assert await classified(pool, value) == value
        for one in made:
            one.behaviour = refusal(grpc.StatusCode.DEADLINE_EXCEEDED, "")
        with pytest.raises(DeadlineExceeded):
            await classified(pool)


@pytest.mark.parametrize(("count", "asked"), [(1, 1), (3, 2)])
async def test_a_request_at_which_each_fails_is_asked_of_two_at_most(
    count: int, asked: int
) -> None:
    async with replicas(count) as made, pooled(*made) as pool:
        for one in made:
            one.behaviour = SICK
        with pytest.raises(EngineFailure, match="server's log says why"):
            await classified(pool)
        assert sum(len(one.asked) for one in made) == asked


async def test_the_time_that_is_left_is_passed_down() -> None:
    async with replicas(2) as (bad, good), pooled(bad, good) as pool:
        for one in (bad, good):
            one.next_answers.append(UNAVAILABLE)
        await classified(pool, timeout_seconds=20)
        left = [call.seconds_left for one in (bad, good) for call in one.asked]
        assert len(left) == 3
        # On the wire it is rounded up a little.
        assert all(10 < seconds < 21 for seconds in left)


async def test_without_a_deadline_a_call_still_ends_some_day() -> None:
    async with replicas() as (one,), pooled(one) as pool:
        await pool.predict(MODEL, 1, request_of(), float("inf"))
        assert 0 < one.asked[0].seconds_left < 610


async def test_a_deadline_that_passes_is_told_and_ends_the_call_there() -> None:
    async with replicas(2) as made, pooled(*made) as pool:
        for one in made:
            one.behaviour = silence
        with pytest.raises(DeadlineExceeded):
            await classified(pool, timeout_seconds=0.2)
        await until(lambda: not any(one.under_way for one in made))


async def test_a_call_that_is_cancelled_is_cancelled_at_the_replica() -> None:
    async with replicas() as (one,), pooled(one) as pool:
        one.behaviour = silence
        call = asyncio.create_task(classified(pool))
        await until(lambda: one.under_way)
        call.cancel()
        await until(lambda: one.asked[0].cancelled)
        assert pool.replicas[0].outstanding == 0


@pytest.mark.usefixtures("_impatient")
async def test_a_replica_that_hangs_delays_few_calls_and_loses_none() -> None:
    """It takes calls, answers none, and says that all is well."""
    async with replicas(2) as (bad, good), pooled(bad, good) as pool:
        bad.behaviour = silence
        for value in range(50):
            assert await classified(pool, value) == value % 10
        assert answered(bad, good) == [0, 50]
        assert 1 <= len(bad.asked) < 15
        assert pool.problem is None
        await until(lambda: all(call.cancelled for call in bad.asked))
        bad.behaviour = bad._classify
        await until_asked_again(pool, bad)


@pytest.mark.usefixtures("_impatient")
async def test_many_calls_at_once_outlive_a_replica_that_hangs() -> None:
    async with (
        replicas(3) as (bad, *good),
        pooled(bad, *good, calls_per_replica=2) as pool,
    ):
        bad.behaviour = silence
        answers = await asyncio.gather(*(classified(pool, v) for v in range(60)))
        assert answers == [value % 10 for value in range(60)]
        assert all(one.most_under_way <= 2 for one in (bad, *good))


async def test_a_replica_that_answers_slowly_gets_less_and_loses_nothing() -> None:
    """Slowly means here: only once the other has answered ten calls."""
    async with replicas(2) as (slow, quick), pooled(slow, quick) as pool:
        slow.gate.clear()
        calls = [asyncio.create_task(classified(pool, value)) for value in range(14)]
        await until(lambda: sum(answered(quick)) >= 10)
        slow.gate.set()
        assert await asyncio.gather(*calls) == [value % 10 for value in range(14)]
        assert answered(slow, quick) == [4, 10]


async def test_a_hedge_takes_the_first_answer_and_cancels_the_other_call() -> None:
    async with (
        replicas(2) as made,
        pooled(*made, hedge_seconds=0.02) as pool,
    ):
        for one in made:
            one.next_answers.append(silence)
        made[1].next_answers.clear()
        for value in range(2):  # one of them comes to the silent one first
            assert await classified(pool, value) == value
        (hung,) = [call for call in made[0].asked if not call.answered]
        await until(lambda: hung.cancelled)
        # A hedge is no sign that something is wrong.
        assert all(one.is_trusted(monotonic()) for one in pool.replicas)


async def test_hedges_come_out_of_the_budget() -> None:
    async with (
        replicas(2) as made,
        pooled(*made, hedge_seconds=0.001, calls_per_replica=100) as pool,
    ):
        for one in made:
            one.gate.clear()
        calls = [asyncio.create_task(classified(pool)) for _ in range(100)]
        await until(lambda: not pool.may_try_again())
        assert sum(one.under_way for one in made) <= 100 + 200
        for one in made:
            one.gate.set()
        assert await asyncio.gather(*calls) == [0] * 100


async def test_a_version_that_one_replica_has_lost_is_answered_by_another() -> None:
    async with replicas(2) as made, pooled(*made) as pool:
        made[0].versions[MODEL] = {2: STATES.AVAILABLE}
        for value in range(6):
            assert await classified(pool, value) == value
        assert answered(*made) == [0, 6]
        assert len(made[0].asked) <= 1
        await until(lambda: set(pool.versions(MODEL)) == {1, 2})


async def test_a_version_that_no_replica_has_any_more_is_gone_at_once() -> None:
    async with replicas(2) as made, pooled(*made) as pool:
        for one in made:
            one.versions[MODEL] = {2: STATES.AVAILABLE}
        with pytest.raises(VersionGone, match="stub version 1"):
            await classified(pool)
        assert set(pool.versions(MODEL)) == {2}
        assert sum(len(one.asked) for one in made) <= 2


@pytest.mark.usefixtures("_impatient")
async def test_a_model_that_no_replica_has_any_more_is_gone_after_a_while() -> None:
    async with replicas() as (one,), pooled(one) as pool:
        one.versions[MODEL] = {}
        with pytest.raises(VersionGone, match="stub version 1"):
            await classified(pool)


async def test_closing_ends_the_calls_that_are_left() -> None:
    async with replicas() as (one,):
        one.behaviour = silence
        async with pooled(one) as pool:
            call = asyncio.create_task(classified(pool))
            await until(lambda: one.under_way)
        with pytest.raises(Unavailable, match="shutting down"):
            await call
        with pytest.raises(Unavailable, match="shutting down"):
            await classified(pool)


@pytest.mark.parametrize(
    ("string_bytes", "elsewhere"), [(1000, False), (2_000_000, True)]
)
async def test_a_request_of_long_strings_is_written_beside_the_event_loop(
    monkeypatch: pytest.MonkeyPatch, string_bytes: int, elsewhere: bool
) -> None:
    """However short the array that refers to them is."""
    threads = []

    def spied(*_: Any) -> bytes:
        threads.append(threading.current_thread())
        return request_of(3)

    monkeypatch.setattr(messages, "predict_request", spied)
    signature = images()
    strings = np.array([b"x" * string_bytes], object)
    async with replicas() as (one,), pooled(one) as pool:
        engine = TfServingEngine(
            pool, MODEL, 1, {signature.name: signature}, slots=lambda: 1
        )
        outputs = await engine.infer(signature.name, {"images": strings})
    assert outputs["probabilities"].argmax() == 3
    assert (only(threads) is not threading.current_thread()) == elsewhere
