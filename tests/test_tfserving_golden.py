"""The engine `tfserving` on what a real server was asked, and what it answered."""

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2

from proto.google.protobuf.any_pb2 import Any as AnyMessage
from proto.tensorflow.serving.get_model_metadata_pb2 import GetModelMetadataResponse
from proto.tensorflow.serving.predict_pb2 import PredictRequest
from proto.tensors import from_tensor_proto
from service.engines import Engine
from service.errors import (
    BlockserveError,
    EngineFailure,
    InvalidTensor,
    Overloaded,
    Unavailable,
    UnsupportedModel,
    VersionGone,
)
from service.settings import Settings
from service.sources import Loaded
from service.sources.tfserving import TfServingSource
from tests.replicas import (
    QUEUE_FULL,
    STATES,
    THREADS_BUSY,
    FakeReplica,
    refusal,
)

GOLDEN = Path(__file__).parent / "golden/grpc"
MODEL = "inception"


def golden(case: str) -> Any:
    return json.loads((GOLDEN / f"{case}.json").read_text())


def response(case: str) -> bytes:
    return base64.b64decode(golden(case)["response_base64"])


def request(case: str) -> PredictRequest:
    return PredictRequest.FromString(base64.b64decode(golden(case)["request_base64"]))


class RecordedReplica(FakeReplica):
    """Answers with the bytes of the real server."""

    def __init__(self) -> None:
        super().__init__({1: STATES.AVAILABLE}, model=MODEL)
        self.methods["GetModelStatus"] = _answers(response("status_ok"))
        self.methods["GetModelMetadata"] = _answers(response("metadata_ok"))

    def answers_with(self, case: str) -> None:
        """Let it answer a `Predict` with what the real one said."""
        self.behaviour = _answers(response(case))


@asynccontextmanager
async def loaded(replica: FakeReplica, tmp_path: Path) -> AsyncIterator[Loaded]:
    """The version that a replica has, as the gateway loads it."""
    await replica.start()
    source = TfServingSource(
        Settings(
            engine="tfserving",
            tfserving=replica.address,
            tfserving_models=MODEL,
            repository=tmp_path,
        )
    )
    try:
        assert set((await source.scan())[MODEL]) == {1}
        yield await source.load(MODEL, 1, tmp_path / MODEL / "1")
    finally:
        await source.close()
        await replica.stop()


@pytest.fixture(name="replica")
def _replica() -> RecordedReplica:
    return RecordedReplica()


@pytest.fixture(name="engine")
async def _engine(replica: RecordedReplica, tmp_path: Path) -> AsyncIterator[Engine]:
    async with loaded(replica, tmp_path) as version:
        yield version.engine


async def test_signatures_and_card_come_from_the_metadata(
    replica: RecordedReplica, tmp_path: Path
) -> None:
    async with loaded(replica, tmp_path) as version:
        assert version.engine.signatures.keys() == {
            *("serving_default", "serving_multi", "serving_bytes"),
            *("two_inputs", "scaled", "echo"),
        }
        assert version.signature_defs.keys() == version.engine.signatures.keys()
        image = version.card.image_input
        assert image is not None
        assert (image.tensor, image.height, image.width) == ("images", 96, 96)
        assert (image.channels, image.dtype) == (3, "uint8")
        assert version.card.labels == tuple(map(str, range(10)))


@pytest.mark.parametrize(
    "case",
    [
        *("predict_ok", "predict_version", "predict_label", "predict_multi"),
        *("predict_bytes", "predict_int_val_splat", "predict_no_values"),
    ],
)
async def test_answers_are_read_as_tensorflow_reads_them(
    replica: RecordedReplica, engine: Engine, case: str
) -> None:
    """Typed fields: floats, strings, and several outputs of several types."""
    replica.answers_with(case)
    asked = request(case)
    inputs = {name: from_tensor_proto(one) for name, one in asked.inputs.items()}
    signature = asked.model_spec.signature_name or "serving_default"
    outputs = await engine.infer(signature, inputs)
    expected = predict_pb2.PredictResponse.FromString(response(case)).outputs
    assert outputs.keys() == expected.keys()
    for name, one in expected.items():
        array = tf.make_ndarray(one)
        assert (outputs[name].dtype, outputs[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(outputs[name], array)


@pytest.mark.parametrize("case", ["predict_version", "predict_ok", "predict_multi"])
async def test_requests_are_what_the_recorded_client_sent(
    replica: RecordedReplica, engine: Engine, case: str
) -> None:
    replica.answers_with(case)
    recorded = request(case)
    (name, tensor), *others = recorded.inputs.items()
    assert tensor.tensor_content
    assert not others
    signature = recorded.model_spec.signature_name
    await engine.infer(signature, {name: from_tensor_proto(tensor)})
    (asked,) = replica.asked
    recorded.model_spec.version.value = 1  # ours always says which
    assert asked.request == recorded


# What the real server says, and what we make of it.
REFUSALS: list[tuple[str, type[BlockserveError], str]] = [
    ("predict_unknown_version", VersionGone, "serves inception version 1"),
    ("predict_unknown_model", VersionGone, "serves inception version 1"),
    ("predict_unknown_signature", EngineFailure, 'key "nosig" not found'),
    ("predict_wrong_dtype_float", InvalidTensor, "to be uint8 but float is provided"),
    ("predict_missing_input", InvalidTensor, "input size does not match signature"),
    ("predict_corrupt_tensor_content", InvalidTensor, "tensor parsing error: images"),
    ("predict_no_model_spec", InvalidTensor, "Missing ModelSpec"),
    ("unimplemented_method", EngineFailure, "UNIMPLEMENTED"),
    ("malformed_protobuf", EngineFailure, "the server's log says why"),
]


@pytest.mark.parametrize(("case", "error", "words"), REFUSALS)
async def test_refusals_become_errors_that_say_what_is_wrong(
    replica: RecordedReplica,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    case: str,
    error: type[BlockserveError],
    words: str,
) -> None:
    monkeypatch.setattr("service.engines.tfserving.pool.RECOVERY_SECONDS", 0.1)
    said = golden(case)
    replica.behaviour = refusal(grpc.StatusCode[said["code"]], said["details"])
    if said["code"] == "NOT_FOUND":  # and so it does not tell of it any more

        async def no_version(_: bytes, context: Any) -> bytes:
            await context.abort(grpc.StatusCode.NOT_FOUND, "Could not find any")
            raise AssertionError

        replica.methods["GetModelStatus"] = no_version
    with pytest.raises(error, match=words):
        await engine.infer("serving_default", images())


@pytest.mark.parametrize(
    ("code", "details"),
    [("RESOURCE_EXHAUSTED", THREADS_BUSY), ("UNAVAILABLE", QUEUE_FULL)],
)
async def test_a_server_that_has_too_much_to_do_is_asked_again_and_told_to_be_busy(
    replica: RecordedReplica,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    details: str,
) -> None:
    replica.next_answers.append(refusal(grpc.StatusCode[code], details))
    replica.answers_with("predict_ok")
    assert (await engine.infer("serving_default", images())).keys() == {"probabilities"}
    monkeypatch.setattr("service.engines.tfserving.call.PERSISTENCE_SECONDS", 0.1)
    replica.behaviour = refusal(grpc.StatusCode[code], details)
    with pytest.raises(Overloaded, match="TensorFlow Serving is busy"):
        await engine.infer("serving_default", images())


async def test_an_answer_without_an_output_is_a_failure(
    replica: RecordedReplica, engine: Engine
) -> None:
    replica.answers_with("predict_output_filter_one")
    with pytest.raises(EngineFailure, match="without probabilities"):
        await engine.infer("serving_default", images())


async def test_an_answer_that_cannot_be_read_is_a_failure(
    replica: RecordedReplica, engine: Engine
) -> None:
    replica.behaviour = _answers(b"\xff\xff\xff")
    with pytest.raises(EngineFailure, match="cannot be read"):
        await engine.infer("serving_default", images())


async def test_metadata_that_cannot_be_read_may_be_better_later(
    replica: RecordedReplica, tmp_path: Path
) -> None:
    replica.methods["GetModelMetadata"] = _answers(b"\xff\xff\xff")
    with pytest.raises(Unavailable, match="cannot be read"):
        async with loaded(replica, tmp_path):
            pass


@pytest.mark.parametrize("written", [b"", b"\xff\xff\xff"])
async def test_metadata_without_a_signature_is_no_model(
    replica: RecordedReplica, tmp_path: Path, written: bytes
) -> None:
    metadata = GetModelMetadataResponse(
        metadata={"signature_def": AnyMessage(value=written)}
    )
    replica.methods["GetModelMetadata"] = _answers(metadata.SerializeToString())
    with pytest.raises(UnsupportedModel, match="no signature"):
        async with loaded(replica, tmp_path):
            pass


def _answers(content: bytes) -> Any:
    async def answer(*_: Any) -> bytes:
        return content

    return answer


def images() -> dict[str, Any]:
    return {"images": np.zeros((1, 96, 96, 3), np.uint8)}
