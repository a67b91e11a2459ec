"""How the engine `tfserving` follows which replicas there are and what they serve."""

import asyncio
import logging
from typing import Any

import grpc
import pytest

from service.engines.tfserving import ReplicaPool
from service.errors import Unavailable
from tests.replicas import (
    LONG_SECONDS,
    MODEL,
    STATES,
    Load,
    asked_again,
    classified,
    pooled,
    refusal,
    replicas,
    silence,
    until,
)
from tests.support import only

POOL = "service.engines.tfserving.pool"
pytestmark = pytest.mark.usefixtures("quick_probes")


def numbers(pool: ReplicaPool) -> list[int]:
    """The versions that the replicas serve."""
    return sorted(pool.versions(MODEL))


def log_of(caplog: pytest.LogCaptureFixture, *addresses: str) -> list[str]:
    """What was logged of replicas, without why."""
    return [
        record.getMessage().removeprefix("TensorFlow Serving at ").partition(":")[2]
        for record in caplog.records
        if record.name.startswith("service.engines.tfserving")
        and any(address in record.getMessage() for address in addresses)
    ]


async def test_without_a_replica_the_pool_starts_and_says_what_is_wrong() -> None:
    async with replicas() as (one,):
        await one.stop()
        async with pooled(one) as pool:
            assert pool.problem is not None
            assert f"no TensorFlow Serving is ready ({one.address}: " in pool.problem
            assert "UNAVAILABLE" in pool.problem
            with pytest.raises(Unavailable, match="no TensorFlow Serving is ready"):
                await classified(pool)
            assert pool.slots == 4
            await one.start()
            await until(lambda: pool.problem is None)
            assert await classified(pool, 3) == 3


async def test_a_call_waits_for_a_replica_that_is_away_for_a_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(f"{POOL}.RECOVERY_SECONDS", LONG_SECONDS)
    async with replicas() as (one,), pooled(one) as pool:
        await one.stop()
        call = asyncio.create_task(classified(pool, 3))
        await until(lambda: pool.problem is not None)
        assert not call.done()
        await one.start()
        assert await call == 3


async def test_once_all_have_been_away_for_longer_calls_fail_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(f"{POOL}.RECOVERY_SECONDS", LONG_SECONDS)
    async with replicas() as (one,), pooled(one) as pool:
        await one.stop()
        await until(lambda: pool.problem is not None)
        pool._down_since -= LONG_SECONDS
        async with asyncio.timeout(LONG_SECONDS / 2):
            with pytest.raises(Unavailable, match="no TensorFlow Serving is ready"):
                await classified(pool)


async def test_replicas_that_are_all_gone_and_come_back_are_used_again() -> None:
    async with replicas(2) as made, pooled(*made) as pool:
        for one in made:
            await one.stop()
        await until(lambda: pool.problem is not None)
        assert numbers(pool) == []
        for one in made:
            await one.start()
            await until(lambda: pool.problem is None)
        await until(lambda: pool.slots == 8)
        assert await classified(pool, 3) == 3


async def test_slots_are_those_of_the_replicas_that_are_up() -> None:
    async with replicas(3) as made, pooled(*made, calls_per_replica=5) as pool:
        assert pool.slots == 15
        await made[0].stop()
        await until(lambda: pool.slots == 10)


async def test_each_change_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with replicas(2) as (one, other), pooled(one, other) as pool:
        port = one.address.rpartition(":")[2]
        await one.stop()
        await until(lambda: pool.slots == 4)
        await asked_again(other, times=20)
        await one.start()
        await until(lambda: pool.slots == 8)
        await asked_again(one)
        told = [line.removeprefix(port) for line in log_of(caplog, one.address)]
        assert [line[:8].strip(" :") for line in told] == ["is up", "is out", "is up"]


async def test_a_replica_whose_threads_are_all_busy_stays() -> None:
    """With its default thread count the real server refuses questions of state, too."""
    async with replicas() as (one,), pooled(one) as pool:
        one.status_failure = (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "Server Threadpool Exhausted",
        )
        await asked_again(one)
        assert pool.problem is None
        assert await classified(pool, 3) == 3


@pytest.mark.usefixtures("impatient")
async def test_a_replica_that_answers_nothing_is_taken_out_and_loses_nothing() -> None:
    async with replicas(2) as (bad, good), pooled(bad, good) as pool:
        bad.behaviour = silence
        bad.status_gate.clear()
        calls = [asyncio.create_task(classified(pool, value)) for value in range(8)]
        await until(lambda: pool.slots == 4)
        assert await asyncio.gather(*calls) == list(range(8))
        assert "DEADLINE_EXCEEDED" in str(
            [one.problem for one in pool.replicas if not one.is_up]
        )
        bad.behaviour = bad._classify
        bad.status_gate.set()
        await until(lambda: pool.slots == 8)


@pytest.mark.usefixtures("impatient")
async def test_what_a_replica_is_at_when_it_is_taken_out_may_still_be_answered() -> (
    None
):
    async with replicas() as (one,), pooled(one) as pool:
        one.gate.clear()
        call = asyncio.create_task(classified(pool, 3))
        await until(lambda: one.under_way)
        one.status_gate.clear()
        await until(lambda: pool.problem is not None)
        assert not call.done()
        one.gate.set()
        assert await call == 3
        one.status_gate.set()


@pytest.mark.usefixtures("impatient")
async def test_one_late_answer_takes_nobody_out() -> None:
    async with replicas() as (one,), pooled(one) as pool:
        replica = only(pool.replicas)
        for _ in range(3):
            one.status_gate.clear()
            await until(lambda: replica._misses == 1)
            one.status_gate.set()
            await until(lambda: replica._misses == 0)
        assert replica.times_up == 1


async def test_an_answer_that_cannot_be_read_takes_out_and_asking_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with replicas() as (one,), pooled(one) as pool:
        as_it_was = one.status

        async def rubbish(*_: Any) -> bytes:
            one.status_calls += 1
            return b"\xff\xff"

        one.methods["GetModelStatus"] = rubbish
        await until(lambda: pool.problem is not None)
        assert "cannot be read" in str(pool.problem)
        await asked_again(one)
        one.methods["GetModelStatus"] = as_it_was
        await until(lambda: pool.problem is None)
        assert sum("is out" in text for text in caplog.messages) == 1


async def test_only_what_is_available_counts() -> None:
    """A corrupt version stays LOADING in the real server, as long as that runs."""
    states = {
        1: STATES.AVAILABLE,
        2: STATES.LOADING,
        3: STATES.START,
        4: STATES.UNLOADING,
        5: STATES.END,
    }
    async with replicas(versions=states) as (one,), pooled(one) as pool:
        assert numbers(pool) == [1]
        one.versions[MODEL][2] = STATES.AVAILABLE
        await until(lambda: numbers(pool) == [1, 2])


async def test_a_version_that_one_replica_has_is_asked_of_that_one_only() -> None:
    async with replicas(2) as (one, other):
        other.versions[MODEL] = {1: STATES.AVAILABLE, 2: STATES.AVAILABLE}
        async with pooled(one, other) as pool:
            assert numbers(pool) == [1, 2]
            for value in range(4):
                assert await classified(pool, value, version=2) == value
            assert (len(one.asked), len(other.asked)) == (0, 4)


async def test_metadata_comes_from_whichever_replica_answers() -> None:
    async with replicas(2) as made, pooled(*made) as pool:
        for one in made:
            one.methods["GetModelMetadata"] = one.metadata
        made[0].methods["GetModelMetadata"] = _unavailable
        assert (await pool.metadata(MODEL, 1)).metadata.keys() == {"signature_def"}
        made[1].methods["GetModelMetadata"] = _unavailable
        with pytest.raises(Unavailable, match="later"):
            await pool.metadata(MODEL, 1)
        with pytest.raises(Unavailable, match="serves stub version 9"):
            await pool.metadata(MODEL, 9)


async def _unavailable(_: bytes, context: Any) -> bytes:
    await context.abort(grpc.StatusCode.UNAVAILABLE, "later")
    raise AssertionError


async def asks(pool: ReplicaPool, number: int) -> None:
    assert await classified(pool, number) == number % 10


async def test_a_replica_that_refuses_a_while_is_asked_again() -> None:
    async with (
        replicas(2) as (bad, good),
        pooled(bad, good) as pool,
        Load(lambda number: asks(pool, number)) as load,
    ):
        bad.behaviour = refusal(grpc.StatusCode.UNAVAILABLE, "not now")
        await load.more(100)
        bad.behaviour = bad._classify
        await until(lambda: bad.asked[-1].answered)
