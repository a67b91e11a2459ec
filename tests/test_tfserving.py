"""A gateway in front of TensorFlow Serving, whatever becomes of that."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from models.card import CARD_FILE
from service.repository import VersionState
from tests.replicas import (
    LONG_SECONDS,
    MODEL,
    STATES,
    FakeReplica,
    Load,
    images,
    refusal,
    replicas,
    silence,
    until,
)
from tests.support import (
    Served,
    encode,
    image_of_class,
    only,
    serving,
    started,
    stub_version,
)

POOL = "service.engines.tfserving.pool"
# Labels of the card that `stub_version` writes; without it they are numbers.
LETTERS = "abcdefghij"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicas are asked more often than once a second."""
    monkeypatch.setattr(f"{POOL}.PROBE_SECONDS", 0.02)
    monkeypatch.setattr(f"{POOL}.SHORTEST_PROBE_SECONDS", 0.01)


@asynccontextmanager
async def in_front_of(
    *made: FakeReplica, repository: Path, **settings: Any
) -> AsyncIterator[Served]:
    """A gateway over real sockets, with the stub's model."""
    addresses = ",".join(one.address for one in made)
    async with serving(
        repository,
        **{
            "engine": "tfserving",
            "tfserving": addresses,
            "tfserving_models": MODEL,
            "request_timeout_seconds": LONG_SECONDS,
            **settings,
        },
    ) as served:
        yield served


async def classify(served: Served, value: int, *, labels: str = "0123456789") -> int:
    """Classify an image of a class over HTTP; answers which version did it."""
    answer = await served.client.post("/classify", content=image_of_class(value))
    assert answer.status_code == 200, answer.text
    body = answer.json()
    label = body["results"][0]["predictions"][0]["label"]
    assert label == labels[value % 10], body
    version: int = body["version"]
    return version


def classifying(served: Served, versions: set[int]) -> Callable[[int], Awaitable[None]]:
    """Requests for a `Load`; notes which versions have answered."""

    async def ask(number: int) -> None:
        versions.add(await classify(served, number % 10))

    return ask


def pixels(value: int) -> list[Any]:
    return [[[[value], [0], [0], [0]], *[[[0]] * 4] * 3]]


def states(served: Served) -> dict[int, VersionState]:
    model = served.running.gateway.repository.models[MODEL]
    return {number: version.state for number, version in model.versions.items()}


async def problem(served: Served) -> str | None:
    """What `/readyz` says, if all is not well."""
    answer = await served.client.get("/readyz")
    if answer.status_code == 200:
        return None
    assert answer.status_code == 503
    return str(answer.json()["error"]["message"])


async def test_every_protocol_is_answered_by_the_replica(tmp_path: Path) -> None:
    stub_version(tmp_path)
    async with replicas() as (one,), in_front_of(one, repository=tmp_path) as served:
        assert await classify(served, 3, labels=LETTERS) == 1
        path = f"/v1/models/{MODEL}"
        answer = await served.client.post(
            f"{path}:predict", json={"instances": pixels(4)}
        )
        assert np.argmax(answer.json()["predictions"]) == 4
        metadata = (await served.client.get(f"{path}/metadata")).json()
        signature = metadata["metadata"]["signature_def"]["signature_def"]
        assert signature.keys() == {"serving_default"}
        status = (await served.client.get(path)).json()["model_version_status"]
        assert [one["state"] for one in status] == ["AVAILABLE"]
        tensor = {"name": "images", "datatype": "UINT8", "shape": [1, 4, 4, 1]}
        answer = await served.client.post(
            f"/v2/models/{MODEL}/infer",
            json={"inputs": [{**tensor, "data": pixels(5)}]},
        )
        assert np.argmax(only(answer.json()["outputs"])["data"]) == 5
        assert await predicted(served, 6) == 6
        shown = (await served.client.get(f"/models/{MODEL}")).json()
        version = only(shown["versions"])
        assert version["engine"] == "tfserving"
        assert version["card"]["labels"] == list(LETTERS)
        assert version["batching"]["serving_default"]["slots"] == 4


async def predicted(served: Served, value: int) -> int:
    """Ask over gRPC, as the client of the real server's package does."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = MODEL
    request.inputs["images"].CopyFrom(
        tf.make_tensor_proto(np.array(pixels(value), np.uint8))
    )
    address = f"127.0.0.1:{served.running.grpc_port}"
    async with grpc.aio.insecure_channel(address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        answer = await stub.Predict(request)
    return int(tf.make_ndarray(answer.outputs["probabilities"])[0].argmax())


async def test_without_a_card_labels_are_numbered_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        replicas() as (one,),
        in_front_of(one, repository=tmp_path / "absent") as served,
    ):
        assert await classify(served, 3) == 1
        assert any(
            "stub version 1 has no model card" in text and "numbered labels" in text
            for text in caplog.messages
        )


async def test_a_model_is_named_by_a_setting_or_by_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.sources.tfserving.RESCAN_SECONDS", 0.02)
    async with (
        replicas() as (one,),
        in_front_of(one, repository=tmp_path, tfserving_models="") as served,
    ):
        told = await problem(served)
        assert "holds no model and tfserving_models names none" in str(told)
        stub_version(tmp_path)
        await until_ready(served)
        assert await classify(served, 3, labels=LETTERS) == 1


@pytest.mark.parametrize(("dtype", "white"), [("float32", 255.0), ("uint8", 255)])
async def test_images_are_sent_as_the_signature_wants_them(
    tmp_path: Path, dtype: str, white: float
) -> None:
    signature = images(dtype, 6, 5, 3)
    async with (
        replicas(signatures=[signature]) as (one,),
        in_front_of(one, repository=tmp_path) as served,
    ):
        one.asked.clear()
        body = encode(np.full((9, 9, 3), 255, np.uint8))
        answer = await served.client.post("/classify", content=body)
        assert answer.status_code == 200
        sent = tf.make_ndarray(
            tf.make_tensor_proto(one.arrays[-1])
        )  # as TensorFlow has it
        assert (sent.dtype.name, sent.shape) == (dtype, (1, 6, 5, 3))
        assert (sent == white).all()


async def test_the_wrong_dtype_or_size_does_not_come_to_the_replica(
    tmp_path: Path,
) -> None:
    """There it would fail all requests that share its batch, or be accepted."""
    async with replicas() as (one,), in_front_of(one, repository=tmp_path) as served:
        one.asked.clear()
        for shape in ([1, 4, 5, 1], [1, 4, 4, 3], [4, 4, 1]):
            answer = await served.client.post(
                f"/v1/models/{MODEL}:predict",
                json={"inputs": np.zeros(shape, int).tolist()},
            )
            assert answer.status_code == 400
        assert not one.asked


async def test_a_cancelled_request_is_cancelled_at_the_replica(tmp_path: Path) -> None:
    async with replicas() as (one,), in_front_of(one, repository=tmp_path) as served:
        one.behaviour = silence
        one.asked.clear()
        request = asyncio.create_task(classify(served, 3))
        await until(lambda: one.under_way)
        request.cancel()
        await until(lambda: only(one.asked).cancelled)


async def test_the_client_s_deadline_comes_to_the_replica(tmp_path: Path) -> None:
    async with replicas() as (one,), in_front_of(one, repository=tmp_path) as served:
        one.behaviour = silence
        one.asked.clear()
        answer = await served.client.post(
            "/classify",
            content=image_of_class(3),
            headers={"X-Request-Timeout": "0.5"},
        )
        assert answer.status_code == 504
        assert only(one.asked).seconds_left < 0.6
        await until(lambda: not one.under_way)


async def test_with_no_replica_the_gateway_starts_and_recovers_by_itself(
    tmp_path: Path,
) -> None:
    stub_version(tmp_path)
    async with replicas(2) as made:
        for one in made:
            await one.stop()
        async with in_front_of(*made, repository=tmp_path) as served:
            told = await problem(served)
            assert all(one.address in str(told) for one in made)
            answer = await served.client.post("/classify", content=image_of_class(3))
            assert answer.status_code == 503
            assert "Retry-After" in answer.headers
            assert (await served.client.get("/healthz")).status_code == 200
            await made[1].start()
            await until_ready(served)
            assert await classify(served, 3, labels=LETTERS) == 1
            # All gone, and back.
            await made[1].stop()
            await until_not_ready(served)
            answer = await served.client.post("/classify", content=image_of_class(3))
            assert answer.status_code == 503
            assert "no TensorFlow Serving is ready" in answer.text
            await made[0].start()
            await until_ready(served)
            assert await classify(served, 3, labels=LETTERS) == 1


async def until_ready(served: Served) -> None:
    async with asyncio.timeout(LONG_SECONDS):
        while await problem(served):
            await asyncio.sleep(0.005)


async def until_not_ready(served: Served) -> None:
    async with asyncio.timeout(LONG_SECONDS):
        while not await problem(served):
            await asyncio.sleep(0.005)


async def test_a_model_that_no_replica_has_is_not_ready(tmp_path: Path) -> None:
    async with (
        replicas(versions={}) as (one,),
        in_front_of(one, repository=tmp_path) as served,
    ):
        assert "no TensorFlow Serving serves one" in str(await problem(served))
        path = f"/models/{MODEL}/classify"
        answer = await served.client.post(path, content=image_of_class(3))
        assert (answer.status_code, answer.json()["error"]["code"]) == (
            503,
            "model_not_ready",
        )
        one.versions[MODEL] = {7: STATES.AVAILABLE}
        await until_ready(served)
        assert await classify(served, 3) == 7


async def test_a_version_change_loses_no_request(tmp_path: Path) -> None:
    """Version 2 comes and 1 goes, at a moment of its own at each replica."""
    versions: set[int] = set()
    async with (
        replicas(3) as made,
        in_front_of(*made, repository=tmp_path) as served,
        Load(classifying(served, versions), at_a_time=6) as load,
    ):
        await load.more()
        for one in made:
            # As the real server does it: loaded, then the old one unloaded.
            one.versions[MODEL] = {1: STATES.AVAILABLE, 2: STATES.LOADING}
            await load.more()
            one.versions[MODEL] = {1: STATES.END, 2: STATES.AVAILABLE}
            await load.more()
        await until(lambda: states(served).get(2) is VersionState.AVAILABLE)
        versions.clear()
        await load.more(40)
        assert 2 in versions
        await until(lambda: states(served) == {2: VersionState.AVAILABLE})
        # And back, as after a bad release; all at once this time.
        for one in made:
            one.versions[MODEL] = {1: STATES.AVAILABLE, 2: STATES.END}
        await load.more(40)
        await until(lambda: states(served) == {1: VersionState.AVAILABLE})


async def test_a_version_change_loses_no_request_over_any_protocol(
    tmp_path: Path,
) -> None:
    async def rows(number: int) -> None:
        answer = await served.client.post(
            f"/v1/models/{MODEL}:predict", json={"instances": pixels(number % 10)}
        )
        assert answer.status_code == 200, answer.text
        assert np.argmax(answer.json()["predictions"]) == number % 10

    async def inference(number: int) -> None:
        tensor = {"name": "images", "datatype": "UINT8", "shape": [1, 4, 4, 1]}
        answer = await served.client.post(
            f"/v2/models/{MODEL}/infer",
            json={"inputs": [{**tensor, "data": pixels(number % 10)}]},
        )
        assert answer.status_code == 200, answer.text

    async def called(number: int) -> None:
        assert await predicted(served, number % 10) == number % 10

    async with (
        replicas(2) as made,
        in_front_of(*made, repository=tmp_path) as served,
        Load(rows, at_a_time=2) as load,
        Load(inference, at_a_time=2),
        Load(called, at_a_time=2) as calls,
    ):
        for version in (2, 3, 4):
            for one in made:
                one.versions[MODEL] = {version: STATES.AVAILABLE}
            await load.more()
            await calls.more(5)
        await until(lambda: states(served) == {4: VersionState.AVAILABLE})


async def test_a_version_takes_over_once_half_of_the_replicas_have_it(
    tmp_path: Path,
) -> None:
    async with (
        replicas(3) as made,
        in_front_of(*made, repository=tmp_path) as served,
    ):
        made[0].versions[MODEL] = {2: STATES.AVAILABLE}
        await until(lambda: pool_versions(served) == {1: 2, 2: 1})
        await served.running.gateway.repository.reconcile()
        assert states(served) == {1: VersionState.AVAILABLE}
        assert await classify(served, 3) == 1
        made[1].versions[MODEL] = {2: STATES.AVAILABLE}
        await until(lambda: states(served).get(2) is VersionState.AVAILABLE)
        assert await classify(served, 3) == 2
        # Once it serves, it stays: nobody wants to go back and forth.
        await made[1].stop()
        await until(lambda: pool_versions(served) == {1: 1, 2: 1})
        await made[0].stop()
        await until(lambda: pool_versions(served) == {1: 1})
        assert await classify(served, 3) == 1


def pool_versions(served: Served) -> dict[int, int]:
    """How many replicas serve each version, as far as the gateway knows."""
    source: Any = served.running.gateway.repository._source
    return {n: len(who) for n, who in source._pool.versions(MODEL).items()}


async def test_a_corrupt_version_never_serves(tmp_path: Path) -> None:
    """In the real server it stays LOADING."""
    async with replicas() as (one,), in_front_of(one, repository=tmp_path) as served:
        one.versions[MODEL][7] = STATES.LOADING
        before = one.status_calls
        await until(lambda: one.status_calls > before + 3)
        await served.running.gateway.repository.reconcile()
        assert states(served) == {1: VersionState.AVAILABLE}
        assert await classify(served, 3) == 1


async def test_labels_pin_versions(tmp_path: Path) -> None:
    both = {1: STATES.AVAILABLE, 2: STATES.AVAILABLE}
    labels = {MODEL: {"stable": 1, "canary": 2, "gone": 9}}

    async def version_of(label: str) -> tuple[int, Any]:
        path = f"/models/{MODEL}/labels/{label}/classify"
        answer = await served.client.post(path, content=image_of_class(3))
        body = answer.json()
        return answer.status_code, body.get("version") or body["error"]["code"]

    async with (
        replicas(2, versions=both) as made,
        in_front_of(*made, repository=tmp_path, labels=labels) as served,
    ):
        assert await classify(served, 3) == 2
        assert await version_of("stable") == (200, 1)
        assert await version_of("canary") == (200, 2)
        assert await version_of("gone") == (404, "version_not_found")
        for one in made:
            del one.versions[MODEL][1]
        # At first that it is being unloaded, then as the real server says it.
        assert (await version_of("stable"))[0] in {404, 503}
        await until(lambda: 1 not in states(served))
        assert await version_of("stable") == (404, "version_not_found")
        assert await version_of("canary") == (200, 2)


async def test_a_version_that_cannot_be_loaded_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    card = stub_version(tmp_path) / CARD_FILE
    text = card.read_text()
    card.write_text("{}")
    async with replicas() as (one,), in_front_of(one, repository=tmp_path) as served:
        repository = served.running.gateway.repository
        for _ in range(3):
            await repository.reconcile()
        assert sum("cannot be served" in told for told in caplog.messages) == 1
        card.write_text(text)
        await repository.reconcile()
        assert await classify(served, 3, labels=LETTERS) == 1


async def test_a_version_that_could_not_be_asked_for_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(_: bytes, context: Any) -> bytes:
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy")
        raise AssertionError

    async with replicas() as (one,):
        one.methods["GetModelMetadata"] = fail
        async with in_front_of(one, repository=tmp_path) as served:
            repository = served.running.gateway.repository
            for _ in range(3):
                await repository.reconcile()
            assert sum("cannot be served" in told for told in caplog.messages) == 1
            one.methods["GetModelMetadata"] = one.metadata
            await repository.reconcile()
            assert await classify(served, 3) == 1


async def test_a_gateway_may_start_while_the_replicas_have_much_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.engines.tfserving.call.PERSISTENCE_SECONDS", 0.05)
    async with replicas() as (one,):
        one.behaviour = refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy")
        async with in_front_of(one, repository=tmp_path) as served:
            assert await problem(served) is None
            answer = await served.client.post("/classify", content=image_of_class(3))
            assert answer.json()["error"]["code"] == "overloaded"
            one.behaviour = one._classify
            assert await classify(served, 3) == 1


async def test_batches_are_formed_here_or_left_to_the_server(tmp_path: Path) -> None:
    async def rows_of_calls(**settings: Any) -> list[int]:
        async with (
            replicas() as (one,),
            in_front_of(
                one, repository=tmp_path, tfserving_calls_per_replica=2, **settings
            ) as served,
        ):
            one.asked.clear()
            one.gate.clear()
            work = [asyncio.create_task(classify(served, value)) for value in range(8)]
            batcher = only(
                served.running.gateway.repository.models[MODEL].available
            ).batchers["serving_default"]
            await until(lambda: batcher.queue_depth + sum(map(len, one.arrays)) == 8)
            one.gate.set()
            await asyncio.gather(*work)
            assert one.most_under_way <= 2
            return [len(array) for array in one.arrays]

    assert await rows_of_calls(batching="server") == [1] * 8
    gathered = await rows_of_calls()
    assert sum(gathered) == 8
    assert max(gathered) > 1


async def test_hedging_is_a_setting(tmp_path: Path) -> None:
    async with (
        replicas(2) as made,
        in_front_of(*made, repository=tmp_path, tfserving_hedge_seconds=0.01) as served,
    ):
        for one in made:
            one.next_answers.append(silence)
        made[1].next_answers.clear()
        for value in range(4):
            assert await classify(served, value) == 1
        await until(lambda: [call.cancelled for call in made[0].asked].count(True) == 1)


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_the_program_serves_in_front_of_replicas(
    tmp_path: Path, workers: str
) -> None:
    stub_version(tmp_path)
    async with replicas(2) as made:
        arguments = (
            *("--engine", "tfserving", "--repository", str(tmp_path)),
            *("--tfserving", ",".join(one.address for one in made)),
            *("--workers", workers),
        )

        def run() -> list[str]:
            with started(*arguments) as (_, url, lines):
                for value in range(8):
                    answer = httpx.post(
                        f"{url}/classify", content=image_of_class(value)
                    )
                    label = answer.json()["results"][0]["predictions"][0]["label"]
                    assert label == LETTERS[value]
                return lines

        lines = await asyncio.to_thread(run)
        assert sum("stub version 1 is available" in line for line in lines) == int(
            workers
        )


async def test_the_log_has_a_line_for_each_change(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "service")
    async with (
        replicas(2) as made,
        in_front_of(*made, repository=tmp_path) as served,
        Load(classifying(served, set())) as load,
    ):
        await load.more()
        await made[0].stop()
        await load.more(50)
        await made[0].start()
        await until(lambda: pool_versions(served) == {1: 2})
        told = [
            text
            for text in caplog.messages
            if text.startswith(f"TensorFlow Serving at {made[0].address} is")
        ]
        assert len(told) == 3
