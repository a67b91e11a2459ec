"""What lies between a gateway and its replicas: names, sockets, certificates, cuts."""

import asyncio
from pathlib import Path
from time import monotonic
from typing import Any

import grpc
import pytest

from service.engines.tfserving import ReplicaPool
from tests.replicas import (
    HOST,
    LONG_SECONDS,
    MODEL,
    Load,
    asked_again,
    classified,
    pooled,
    proxied,
    replicas,
    until,
)
from tests.support import make_certificate

pytestmark = pytest.mark.usefixtures("quick_probes")
CHAIN = "tls_certificate"


async def test_a_unix_socket_leads_to_a_replica(tmp_path: Path) -> None:
    socket = f"unix:{tmp_path}/socket"
    async with replicas(address=socket) as (one,), pooled(socket) as pool:
        assert await classified(pool, 3) == 3
        assert len(one.asked) == 1


async def test_large_batches_and_answers_pass() -> None:
    """As large as 32 images of 299×299×3 floats: 34 MB, each way."""
    large = b"x" * (32 * 299 * 299 * 3 * 4)
    async with replicas() as (one,), pooled(one) as pool:

        async def echo(request: bytes, _: Any) -> bytes:
            return request

        one.methods["Predict"] = echo
        deadline = monotonic() + LONG_SECONDS
        assert await pool.predict(MODEL, 1, large, deadline) == large


async def test_a_name_stands_for_all_its_addresses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known: dict[str, set[str]] = {}

    async def resolve(name: str) -> frozenset[str]:
        if name not in known:
            raise OSError("nobody knows it")
        return frozenset(known[name])

    monkeypatch.setattr("service.engines.tfserving.names.resolve", resolve)
    names = ("dns:///one:8500", "dns:///other:8500")
    async with replicas(3) as made, pooled(*names) as pool:
        assert "dns:///one:8500: it cannot be resolved: nobody" in str(pool.problem)
        first, second, third = (one.address for one in made)
        known[names[0]] = {first, second}
        await until(lambda: pool.slots == 8)
        known[names[1]] = {second, third}
        await until(lambda: pool.slots == 12)
        known[names[0]] = {first}  # the other name still leads to the second
        known[names[1]] = {second}
        await until(lambda: pool.slots == 8)
        assert {one.target for one in pool.replicas} == {first, second}
        del known[names[0]]  # what it stood for stays
        await asked_again(made[0])
        assert pool.slots == 8


async def test_what_is_under_way_where_a_name_leads_no_more_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    targets: set[str] = set()

    async def resolve(_: str) -> frozenset[str]:
        return frozenset(targets)

    monkeypatch.setattr("service.engines.tfserving.names.resolve", resolve)
    async with replicas(2) as (old, new):
        targets.add(old.address)
        async with pooled("dns:///name:8500") as pool:
            old.gate.clear()
            call = asyncio.create_task(classified(pool, 3))
            await until(lambda: old.under_way)
            targets.clear()
            await until(lambda: not pool.replicas)
            assert not call.done()
            targets.add(new.address)
            assert await call == 3
            assert len(new.asked) == 1
            old.gate.set()


async def test_localhost_can_be_looked_up() -> None:
    async with replicas() as (one,):
        port = one.address.rpartition(":")[2]
        async with pooled(f"dns:///localhost:{port}") as pool:
            assert [replica.target for replica in pool.replicas] == [f"{HOST}:{port}"]
            assert await classified(pool, 3) == 3


async def test_a_cut_network_loses_no_request() -> None:
    async with (
        replicas(2) as (far, near),
        proxied(far) as proxy,
        pooled(proxy.address, near) as pool,
        Load(lambda number: asks(pool, number)) as load,
    ):
        await load.more()
        await proxy.cut()
        await load.more()
        await proxy.start()
        await until(lambda: pool.slots == 8)
        before = len(far.asked)
        await until(lambda: len(far.asked) > before)


@pytest.mark.usefixtures("impatient")
async def test_a_network_that_swallows_everything_loses_no_request() -> None:
    async with (
        replicas(2) as (far, near),
        proxied(far) as proxy,
        pooled(proxy.address, near) as pool,
        Load(lambda number: asks(pool, number)) as load,
    ):
        await load.more()
        proxy.passes.clear()
        await until(lambda: pool.slots == 4)
        await load.more()
        proxy.passes.set()
        await until(lambda: pool.slots == 8)
        before = len(far.asked)
        await until(lambda: len(far.asked) > before)


async def test_tls_is_spoken_where_there_are_certificates(
    certificate: dict[str, Path],
) -> None:
    pair = tuple(certificate[name].read_bytes() for name in ("tls_key", CHAIN))
    credentials = grpc.ssl_server_credentials([pair])
    trusted = pair[1]
    async with replicas(credentials=credentials) as (one,):
        port = one.address.rpartition(":")[2]
        addresses = (one.address, f"localhost:{port}", f"dns:///localhost:{port}")
        for address in addresses:
            async with pooled(address, root_certificates=trusted) as pool:
                assert await classified(pool, 3) == 3
        async with pooled(one) as pool:
            assert "UNAVAILABLE" in str(pool.problem)


async def test_who_is_not_in_the_certificate_is_not_trusted(
    certificate: dict[str, Path], tmp_path: Path
) -> None:
    trusted = certificate[CHAIN].read_bytes()
    key, chain = make_certificate(tmp_path, "another")
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), chain.read_bytes())])
    async with (
        replicas(credentials=credentials) as (one,),
        pooled(one, root_certificates=trusted) as pool,
    ):
        assert "UNAVAILABLE" in str(pool.problem)


async def asks(pool: ReplicaPool, number: int) -> None:
    assert await classified(pool, number) == number % 10
