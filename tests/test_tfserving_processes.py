"""Replicas that are real processes, killed, stopped and started again under load.

They are gateways themselves, with the stub engine: they speak TensorFlow Serving's API.
"""

import asyncio
import re
import signal
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from service.engines.tfserving import ReplicaPool
from tests.replicas import HOST, LONG_SECONDS, Load, classified, pooled, until
from tests.support import BLOCKSERVE, image_of_class, serving, stub_version

POOL = "service.engines.tfserving.pool"

pytestmark = pytest.mark.slow


class Process:
    """A gateway with the stub engine, at the same address each time it starts."""

    def __init__(self, repository: Path) -> None:
        self.address = f"{HOST}:0"
        self._repository = repository
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Run it; returns once it serves."""
        port = self.address.rpartition(":")[2]
        self._process = await asyncio.create_subprocess_exec(
            *(*BLOCKSERVE, "serve", "--engine", "stub", "--http-port", "0"),
            *("--repository", str(self._repository), "--grpc-port", port),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        assert self._process.stdout is not None
        said = ""
        async for line in self._process.stdout:
            said += line.decode()
            if found := re.search(r"gRPC at (\S+)", said):
                self.address = found[1]
                return
        raise AssertionError(said)

    async def end(self, how: signal.Signals = signal.SIGKILL) -> None:
        """Send it a signal that ends it."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(how)
            # What it says meanwhile would fill the pipe.
            await self._process.communicate()


@asynccontextmanager
async def processes(count: int, repository: Path) -> AsyncIterator[list[Process]]:
    """Processes that run until the block ends."""
    stub_version(repository)
    made = [Process(repository) for _ in range(count)]
    async with AsyncExitStack() as stack:
        for one in made:
            stack.push_async_callback(one.end)
        await asyncio.gather(*(one.start() for one in made))
        yield made


def in_front_of(made: list[Process]) -> AbstractAsyncContextManager[ReplicaPool]:
    return pooled(*(one.address for one in made))


async def asks(pool: ReplicaPool, number: int) -> None:
    assert await classified(pool, number) == number % 10


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_one_of_two_replicas_ends_and_starts_again_under_load(
    tmp_path: Path, how: signal.Signals
) -> None:
    async with (
        processes(2, tmp_path) as made,
        in_front_of(made) as pool,
        Load(lambda number: asks(pool, number), at_a_time=8) as load,
    ):
        for one in made:
            await load.more(50)
            await one.end(how)
            await load.more(50)
            assert pool.slots == 4
            await one.start()
            await until(lambda: pool.slots == 8)


async def test_three_replicas_are_killed_and_started_again_in_turn(
    tmp_path: Path,
) -> None:
    """At each moment at least one of them runs."""
    async with (
        processes(3, tmp_path) as (one, two, three),
        in_front_of([one, two, three]) as pool,
        Load(lambda number: asks(pool, number), at_a_time=12) as load,
    ):
        await load.more(50)
        await one.end()
        await load.more(50)
        await two.end()
        await load.more(50)
        await one.start()
        await until(lambda: pool.slots == 8)
        await three.end()
        await load.more(50)
        await asyncio.gather(two.start(), three.start())
        await until(lambda: pool.slots == 12)


async def test_a_replica_that_is_stopped_like_a_hung_one_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGSTOP: the kernel takes connections and bytes, and nobody answers."""
    monkeypatch.setattr(f"{POOL}.PROBE_TIMEOUT_SECONDS", 0.5)
    async with (
        processes(2, tmp_path) as (one, other),
        in_front_of([one, other]) as pool,
        Load(lambda number: asks(pool, number), at_a_time=8) as load,
    ):
        await load.more(50)
        assert one._process is not None
        one._process.send_signal(signal.SIGSTOP)
        await load.more(50)
        await until(lambda: pool.slots == 4)
        await load.more(50)
        one._process.send_signal(signal.SIGCONT)
        await until(lambda: pool.slots == 8)
        await load.more(50)


async def test_http_clients_notice_nothing_of_a_replica_that_is_killed(
    tmp_path: Path,
) -> None:
    async with (
        processes(2, tmp_path / "theirs") as made,
        serving(
            tmp_path / "ours",
            engine="tfserving",
            tfserving=",".join(one.address for one in made),
            tfserving_models="stub",
            request_timeout_seconds=LONG_SECONDS,
        ) as served,
    ):
        source: Any = served.running.gateway.repository._source

        async def ask(number: int) -> None:
            answer = await served.client.post(
                "/classify", content=image_of_class(number % 10)
            )
            assert answer.status_code == 200, answer.text
            label = answer.json()["results"][0]["predictions"][0]["label"]
            assert label == str(number % 10)

        async with Load(ask, at_a_time=8) as load:
            for one in made:
                await load.more(50)
                await one.end()
                await load.more(50)
                await one.start()
                await until(lambda: source.slots == 8)
