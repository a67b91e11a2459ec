"""TensorFlow Serving's gRPC API, against what a real server answered."""

import asyncio
import base64
import json
import re
import shutil
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from proto.tensorflow.serving.get_model_metadata_pb2 import (
    GetModelMetadataResponse,
    SignatureDefMap,
)
from proto.tensorflow.serving.get_model_status_pb2 import GetModelStatusResponse
from proto.tensorflow.serving.predict_pb2 import PredictResponse
from proto.tensors import from_tensor_proto
from service import tensors
from service.engines.stub import StubEngine
from service.grpc import tf_serving
from tests.support import Served, only, serving, stub_version

GOLDEN = Path(__file__).parent / "golden"
CASES = {path.stem: json.loads(path.read_text()) for path in GOLDEN.glob("grpc/*.json")}
RESPONSES: dict[str, Any] = {
    "Predict": PredictResponse,
    "GetModelMetadata": GetModelMetadataResponse,
    "GetModelStatus": GetModelStatusResponse,
}


MALFORMED = {"malformed_protobuf": b"\xff\xff\xff"}
# What gRPC itself says in Python, where the real server says nothing.
GRPC_S_OWN = "Method not found!"


@dataclass(frozen=True)
class Difference:
    """Where we depart from the real server: our code, and what our details say."""

    code: str
    details: str


# Each is a line of the table in docs/protocols.md.
DIFFERENCES = {
    "predict_wrong_dims": Difference(
        "INVALID_ARGUMENT", r"expected images uint8\[batch,96,96,3\]"
    ),
    "predict_wrong_channels": Difference(
        "INVALID_ARGUMENT", r"expected images uint8\[batch,96,96,3\]"
    ),
    "predict_wrong_rank": Difference(
        "INVALID_ARGUMENT", r"expected images uint8\[batch,96,96,3\]"
    ),
    "predict_zero_batch": Difference("INVALID_ARGUMENT", "at least one row"),
    "predict_two_inputs_batch_mismatch": Difference(
        "INVALID_ARGUMENT", "the same number of rows"
    ),
    # The gRPC library answers it, before it comes to us.
    "malformed_protobuf": Difference("INVALID_ARGUMENT", "cannot be read"),
    "status_unknown_label": Difference("INVALID_ARGUMENT", "version label: nolabel"),
}


@pytest.fixture(scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    repository = tmp_path_factory.mktemp("repository")
    shutil.copytree(GOLDEN / "model", repository, dirs_exist_ok=True)
    labels = {"inception": {"stable": 1}}
    async with serving(repository, engine="tensorflow", labels=labels) as served:
        yield served


async def asked(served: Served, case: str) -> tuple[str, str, bytes]:
    """Code, details and answer to a golden request, sent as it was recorded."""
    golden = CASES[case]
    compression = (
        grpc.Compression.Gzip
        if case == "gzip_compressed"
        else grpc.Compression.NoCompression
    )
    address = f"127.0.0.1:{served.running.grpc_port}"
    async with grpc.aio.insecure_channel(address, compression=compression) as channel:
        call = channel.unary_unary(golden["method"])
        try:
            answer = await call(MALFORMED.get(case) or _recorded(golden))
        except grpc.aio.AioRpcError as error:
            return error.code().name, error.details() or "", b""
    return "OK", "", answer


def _recorded(golden: Any) -> bytes:
    return base64.b64decode(golden["request_base64"])


@pytest.mark.parametrize("case", sorted(CASES.keys() - DIFFERENCES.keys()))
async def test_a_call_is_answered_as_by_the_real_server(
    served: Served, case: str
) -> None:
    golden = CASES[case]
    code, details, answer = await asked(served, case)
    assert (code, _known(details)) == (golden["code"], _known(golden["details"]))
    if code != "OK":
        return
    kind = RESPONSES[golden["method"].rpartition("/")[2]]
    ours = kind.FromString(answer)
    theirs = kind.FromString(base64.b64decode(golden["response_base64"]))
    if kind is PredictResponse:
        assert ours.model_spec == theirs.model_spec
        assert ours.outputs.keys() == theirs.outputs.keys()
        for name, tensor in theirs.outputs.items():
            fields = [field.name for field, _ in tensor.ListFields()]
            assert [
                field.name for field, _ in ours.outputs[name].ListFields()
            ] == fields
            found, expected = map(from_tensor_proto, (ours.outputs[name], tensor))
            if expected.dtype.kind == "f":
                np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
            else:
                np.testing.assert_array_equal(found, expected)
    elif kind is GetModelMetadataResponse:
        assert ours.model_spec == theirs.model_spec
        found, expected = (
            SignatureDefMap.FromString(one.metadata["signature_def"].value)
            for one in (ours, theirs)
        )
        del expected.signature_def["__saved_model_init_op"]  # nobody can call it
        assert found == expected
    else:
        assert ours == theirs


def _fields(message: Any) -> list[str]:
    return [field.name for field, _ in message.ListFields()]


def _known(details: str) -> str:
    """Details without what follows them here, and without the names of the graph."""
    details = re.sub(r"\(feed name: [^)]*\)", "", details)
    details = details.replace(GRPC_S_OWN, "")
    found = re.match(r"tensor parsing error: \w+", details)
    return found[0] if found else details


@pytest.mark.parametrize("case", sorted(DIFFERENCES))
async def test_where_we_answer_otherwise_we_say_what_is_wrong(
    served: Served, case: str
) -> None:
    code, details, _ = await asked(served, case)
    assert code == DIFFERENCES[case].code
    assert re.search(DIFFERENCES[case].details, details)
    assert (code, details) != (CASES[case]["code"], CASES[case]["details"])


def stub_request(index: int = 0) -> predict_pb2.PredictRequest:
    """One 4×4 image to which the stub engine gives the class `index`."""
    image = np.zeros((1, 4, 4, 1), np.uint8)
    image[0, 0, 0, 0] = index
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "stub"
    request.inputs["images"].CopyFrom(tf.make_tensor_proto(image))
    return request


def stub_of(channel: grpc.aio.Channel) -> Any:
    """The client that TensorFlow Serving's own package has."""
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


def engine_of(served: Served) -> StubEngine:
    model = only(served.running.gateway.repository.models.values())
    engine = model.available[0].engine
    assert isinstance(engine, StubEngine)
    return engine


def channel_to(served: Served) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(f"127.0.0.1:{served.running.grpc_port}")


async def test_the_client_of_the_real_server_s_package_works(tmp_path: Path) -> None:
    stub_version(tmp_path)
    async with serving(tmp_path) as served, channel_to(served) as channel:
        answers = await asyncio.gather(
            *(stub_of(channel).Predict(stub_request(index)) for index in range(10))
        )
        classes = [
            tf.make_ndarray(a.outputs["probabilities"]).argmax() for a in answers
        ]
        assert classes == list(range(10))
        text = (await served.client.get("/metrics")).text
        labels = '{model="stub",protocol="tf_serving_grpc",version="1"}'
        assert f"blockserve_requests_total{labels} 10.0" in text


async def test_a_full_queue_is_told_with_a_time_to_come_back(tmp_path: Path) -> None:
    stub_version(tmp_path)
    small = {"max_queue_depth": 1, "max_batch_size": 1}
    async with serving(tmp_path, **small) as served, channel_to(served) as channel:
        engine_of(served).gate.clear()
        calls = [stub_of(channel).Predict(stub_request()) for _ in range(3)]
        tasks = [asyncio.ensure_future(_finished(call)) for call in calls]
        done, waiting = await asyncio.wait(tasks, return_when="FIRST_COMPLETED")
        error = only(done).result()
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        pushback = dict(error.trailing_metadata())["grpc-retry-pushback-ms"]
        assert int(pushback) >= 0
        engine_of(served).gate.set()
        assert [await task for task in waiting] == [None, None]


async def _finished(call: Any) -> grpc.aio.AioRpcError | None:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error
    return None


async def test_a_cancelled_call_leaves_the_queue(tmp_path: Path) -> None:
    stub_version(tmp_path)
    async with (
        serving(tmp_path, max_batch_size=1) as served,
        channel_to(served) as channel,
    ):
        engine = engine_of(served)
        engine._record = True
        engine.gate.clear()
        model = only(served.running.gateway.repository.models.values())
        batcher = only(model.available[0].batchers.values())
        first = stub_of(channel).Predict(stub_request(1))
        while not batcher._running:
            await asyncio.sleep(0)
        second = stub_of(channel).Predict(stub_request(2))
        while not batcher.queue_depth:
            await asyncio.sleep(0)
        second.cancel()
        while batcher.queue_depth:
            await asyncio.sleep(0)
        engine.gate.set()
        await first
        assert [int(batch["images"].sum()) for batch in engine.batches] == [1]


async def test_a_call_out_of_time_is_told_so(tmp_path: Path) -> None:
    stub_version(tmp_path)
    async with serving(tmp_path) as served, channel_to(served) as channel:
        engine_of(served).gate.clear()
        error = await _finished(stub_of(channel).Predict(stub_request(), timeout=0.05))
        assert error is not None
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        engine_of(served).gate.set()


async def test_a_token_guards_the_calls_and_not_health(tmp_path: Path) -> None:
    stub_version(tmp_path)
    async with (
        serving(tmp_path, token="secret") as served,  # noqa: S106, a test's
        channel_to(served) as channel,
    ):
        error = await _finished(stub_of(channel).Predict(stub_request()))
        assert error is not None
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        assert "authorization: Bearer" in (error.details() or "")
        carried = (("authorization", "Bearer secret"),)
        call = stub_of(channel).Predict(stub_request(), metadata=carried)
        assert await _finished(call) is None
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert await check(b"") == b"\x08\x01"


async def test_an_unknown_priority_is_refused(tmp_path: Path) -> None:
    stub_version(tmp_path)
    async with serving(tmp_path) as served, channel_to(served) as channel:
        urgent = (("x-request-priority", "urgent"),)
        call = stub_of(channel).Predict(stub_request(), metadata=urgent)
        error = await _finished(call)
        assert error is not None
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        bulk = (("x-request-priority", "Batch"),)
        call = stub_of(channel).Predict(stub_request(), metadata=bulk)
        assert await _finished(call) is None


async def test_a_batch_of_large_images_passes(tmp_path: Path) -> None:
    """As large as 32 images of 299×299×3 floats: 34 MB."""
    stub_version(tmp_path)
    async with serving(tmp_path) as served, channel_to(served) as channel:
        request = stub_request()
        request.inputs["images"].tensor_content = b"x" * (32 * 299 * 299 * 3 * 4)
        error = await _finished(stub_of(channel).Predict(request))
        assert error is not None
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "tensor parsing error: images" in (error.details() or "")


@pytest.mark.parametrize(
    ("does", "limit"),
    [
        ("from_tensor_proto", (tf_serving, "LARGE_TENSOR_BYTES")),
        ("to_tensor_proto", (tensors, "MANY_ELEMENTS")),
    ],
)
@pytest.mark.parametrize("elsewhere", [True, False])
async def test_much_is_read_and_written_beside_the_event_loop(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    does: str,
    limit: tuple[Any, str],
    elsewhere: bool,
) -> None:
    threads = []
    work = getattr(tf_serving, does)

    def spied(*arguments: Any, **options: Any) -> Any:
        threads.append(threading.current_thread())
        return work(*arguments, **options)

    stub_version(tmp_path)
    async with serving(tmp_path) as served, channel_to(served) as channel:
        monkeypatch.setattr(tf_serving, does, spied)
        if elsewhere:
            monkeypatch.setattr(*limit, 9)  # an answer has ten elements
        answer = await stub_of(channel).Predict(stub_request(3))
    assert tf.make_ndarray(answer.outputs["probabilities"]).argmax() == 3
    assert (only(threads) is not threading.current_thread()) == elsewhere
