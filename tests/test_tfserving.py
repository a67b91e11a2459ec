"""A gateway in front of TensorFlow Serving, whatever becomes of that."""

import asyncio
import logging
import shutil
from pathlib import Path
from time import monotonic
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tensorflow as tf

from tests.gateways import (
    classify,
    classifying,
    in_front_of,
    pixels,
    pool_versions,
    predicted,
    problem,
    until_not_ready,
    until_ready,
)
from tests.replicas import (
    LONG_SECONDS,
    MODEL,
    STATES,
    Load,
    images,
    refusal,
    replicas,
    silence,
    until,
)
from tests.support import (
    encode,
    image_of_class,
    only,
    started,
    stub_version,
)

pytestmark = pytest.mark.usefixtures("quick_probes")
# Labels of the card that `stub_version` writes; without it they are numbers.
LETTERS = "abcdefghij"


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


async def test_a_model_whose_directory_is_gone_is_forgotten(tmp_path: Path) -> None:
    """But not one that the settings name, nor any while no directory can be read."""
    repository = tmp_path / "repository"
    stub_version(repository, MODEL)
    stub_version(repository, "other")
    async with (
        replicas() as (one,),
        in_front_of(one, repository=repository) as served,
    ):
        one.versions["other"] = {1: STATES.AVAILABLE}
        followed = served.running.gateway.repository
        source: Any = followed._source
        replica = only(source._pool.replicas)
        await until(lambda: replica.available.get("other"))
        await followed.reconcile()

        def serving() -> set[str]:
            return {name for name, one in followed.models.items() if one.available}

        assert serving() == {MODEL, "other"}
        repository.rename(tmp_path / "away")
        await followed.reconcile()
        assert serving() == {MODEL, "other"}
        (tmp_path / "away").rename(repository)
        for name in (MODEL, "other"):
            shutil.rmtree(repository / name)
        await followed.reconcile()
        await until(lambda: followed.models.keys() == {MODEL})
        assert serving() == {MODEL}
        await until(lambda: replica.available.keys() == {MODEL})


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


def posted(url: str, content: bytes) -> httpx.Response:
    """The answer of a gateway that may just have started: once it is ready."""
    give_up_at = monotonic() + LONG_SECONDS
    while True:
        answer = httpx.post(url, content=content)
        if answer.status_code != 503 or monotonic() > give_up_at:
            assert answer.status_code == 200, answer.text
            return answer


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

        def run() -> str:
            with started(*arguments) as (process, url, lines):
                for value in range(8):
                    answer = posted(f"{url}/classify", image_of_class(value))
                    label = answer.json()["results"][0]["predictions"][0]["label"]
                    assert label == LETTERS[value]
                # A worker's log may come later than the word that it has started.
                process.terminate()
                rest, _ = process.communicate(timeout=LONG_SECONDS)
                return "".join(lines) + rest

        printed = await asyncio.to_thread(run)
        assert printed.count("stub version 1 is available") == int(workers)


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
        about = f"TensorFlow Serving at {made[0].address} is "
        told = [text for text in caplog.messages if text.startswith(about)]
        changes = [text.removeprefix(about)[:3].strip() for text in told]
        assert changes == ["up", *["out", "up"] * (len(changes) // 2)]
        assert len(changes) < 10
