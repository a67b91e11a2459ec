"""The Python client against what a real TensorFlow Serving answered."""

import base64
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import grpc
import numpy as np
import pytest

from proto.tensorflow.serving.get_model_metadata_pb2 import GetModelMetadataRequest
from proto.tensorflow.serving.get_model_status_pb2 import GetModelStatusRequest
from proto.tensorflow.serving.predict_pb2 import PredictRequest, PredictResponse
from proto.tensors import from_tensor_proto
from service.client import RequestFailed, Signature, TensorSpec, VersionStatus
from service.tensors import Array
from tests.support import asking

GOLDEN = Path(__file__).parent / "golden"
REST = {path.stem: json.loads(path.read_text()) for path in GOLDEN.glob("rest/*.json")}
GRPC = {path.stem: json.loads(path.read_text()) for path in GOLDEN.glob("grpc/*.json")}
KINDS = ("sync", "async")
# What is asked of the real server at paths that it does not have.
ELSEWHERE = REST["v2_health"]["response"]
MESSAGES: dict[str, Any] = {
    "Predict": PredictRequest,
    "GetModelMetadata": GetModelMetadataRequest,
    "GetModelStatus": GetModelStatusRequest,
}

UINT8, INT64, FLOAT, STRING = map(np.dtype, (np.uint8, np.int64, np.float32, object))


def asked_for(method: str, path: str, body: str) -> object:
    """What of a request counts: of numbers the shape and the floats they become."""
    if not body:
        return method, path
    document = json.loads(body)
    if not isinstance(document, dict) or "inputs" not in document:
        return method, path, body
    inputs = document.pop("inputs")
    if not isinstance(inputs, dict):
        inputs = {"images": inputs}  # the only one of its signatures
    frozen = {name: what_counts(value) for name, value in inputs.items()}
    return method, path, json.dumps(document), frozen


def what_counts(value: Any) -> object:
    try:
        array = np.asarray(value)
    except ValueError:
        return value
    if array.dtype.kind not in "iuf":
        return value
    with np.errstate(over="ignore"):
        return array.shape, array.astype(np.float32).tobytes()


@dataclass
class Recorded:
    """A server that answers what the real one did to the same request."""

    address: str = ""
    requests: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


@pytest.fixture(scope="module")
def rest() -> Iterator[Recorded]:
    recorded = Recorded()
    answers = []
    for case in REST.values():
        request = case["request"]
        if "body_b64" in request or "body" not in case["response"]:
            continue
        try:
            counts = asked_for(
                request["method"], request["path"], request.get("body") or ""
            )
        except ValueError:  # it is no JSON
            continue
        answers.append((counts, case["response"]))

    class Handler(BaseHTTPRequestHandler):
        protocol_version: ClassVar[str] = "HTTP/1.1"

        def answer(self) -> None:
            size = int(self.headers.get("content-length", 0))
            body = self.rfile.read(size)
            text = body.decode() if body[:1] == b"{" else ""
            counts = asked_for(self.command, self.path, text)
            response = next((one for key, one in answers if key == counts), ELSEWHERE)
            recorded.requests.append(f"{self.command} {self.path}")
            recorded.seconds.append(float(self.headers["x-request-timeout"]))
            self.send_response(response["status"])
            for name, value in response["headers"]:
                if name not in {"Date", "Content-Encoding", "Content-Length"}:
                    self.send_header(name, value)
            content = response["body"].encode()
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = answer  # noqa: N815, as the base class has them

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        recorded.address = f"http://127.0.0.1:{server.server_port}"
        yield recorded
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def calls() -> Iterator[Recorded]:
    recorded = Recorded()

    def answer(request: bytes, context: grpc.ServicerContext, method: str) -> bytes:
        recorded.requests.append(method)
        recorded.seconds.append(context.time_remaining())
        kind = MESSAGES.get(method.rpartition("/")[2])
        for case in GRPC.values():
            if case["method"] != method or kind is None:
                continue
            if "request_base64" not in case or case["case"] == "malformed_protobuf":
                continue
            theirs = kind.FromString(base64.b64decode(case["request_base64"]))
            if theirs == kind.FromString(request):
                if case["code"] != "OK":
                    context.abort(grpc.StatusCode[case["code"]], case["details"])
                return base64.b64decode(case["response_base64"])
        missing = GRPC["unimplemented_method"]
        context.abort(grpc.StatusCode[missing["code"]], missing["details"])
        raise AssertionError  # `abort` has raised

    class Handler(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> Any:
            return grpc.unary_unary_rpc_method_handler(
                lambda request, context: answer(request, context, details.method)
            )

    server = grpc.server(ThreadPoolExecutor(2), handlers=[Handler()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    recorded.address = f"grpc://127.0.0.1:{port}"
    yield recorded
    server.stop(None).wait()


def rest_inputs(case: str) -> dict[str, Any]:
    """The inputs of a recorded request as it has them: lists, scalars and strings."""
    inputs = json.loads(REST[case]["request"]["body"])["inputs"]
    if not isinstance(inputs, dict):
        inputs = {"images": inputs}
    for name, value in inputs.items():
        if isinstance(value, list) and isinstance(value[0], dict):
            inputs[name] = [base64.b64decode(one["b64"]) for one in value]
    return inputs


def rest_outputs(case: str) -> Any:
    return json.loads(REST[case]["response"]["body"])["outputs"]


def call_inputs(case: str) -> dict[str, Array]:
    """The inputs of a recorded call."""
    request = PredictRequest.FromString(base64.b64decode(GRPC[case]["request_base64"]))
    return {name: from_tensor_proto(tensor) for name, tensor in request.inputs.items()}


def call_outputs(case: str) -> dict[str, Array]:
    encoded = base64.b64decode(GRPC[case]["response_base64"])
    outputs = PredictResponse.FromString(encoded).outputs
    return {name: from_tensor_proto(tensor) for name, tensor in outputs.items()}


def assert_equal(
    found: dict[str, Array], expected: dict[str, Any], dtypes: dict[str, np.dtype[Any]]
) -> None:
    assert {name: array.dtype for name, array in found.items()} == dtypes
    assert found.keys() == expected.keys()
    for name, array in found.items():
        values = np.asarray(expected[name], dtypes[name])
        assert array.shape == values.shape
        np.testing.assert_array_equal(array, values)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("as_arrays", [False, True])
@pytest.mark.parametrize(
    ("case", "signature", "output", "dtype"),
    [
        ("predict_col_named", None, "probabilities", FLOAT),
        ("predict_col_bare", None, "probabilities", FLOAT),
        ("bytes_col_named", "serving_bytes", "probabilities", FLOAT),
        ("scalar_in_col_format", "scaled", "y", FLOAT),
        ("float_formats", "scaled", "y", FLOAT),
        ("float_inf_result", "scaled", "y", FLOAT),
        ("float_nan_result", "scaled", "y", FLOAT),
    ],
)
async def test_rest_answers_an_only_output(
    rest: Recorded,
    kind: str,
    as_arrays: bool,
    case: str,
    signature: str | None,
    output: str,
    dtype: np.dtype[Any],
) -> None:
    inputs = rest_inputs(case)
    async with asking(kind, rest.address) as ask:
        if as_arrays:
            known = await ask("metadata", "inception")
            specs = known.signatures[signature or "serving_default"].inputs
            inputs = {n: np.array(v, specs[n].dtype) for n, v in inputs.items()}
        found = await ask(
            "predict", inputs, model="inception", signature_name=signature
        )
    assert_equal(found, {output: rest_outputs(case)}, {output: dtype})


@pytest.mark.parametrize("kind", KINDS)
async def test_rest_answers_several_outputs(rest: Recorded, kind: str) -> None:
    async with asking(kind, rest.address) as ask:
        found = await ask(
            "predict",
            rest_inputs("two_inputs_col"),
            model="inception",
            signature_name="two_inputs",
        )
        expected = {
            "sum": [[4.0, 6.0]],
            "bytes_out": [[b"4.000000", b"6.000000"]],
        }
        assert_equal(found, expected, {"sum": FLOAT, "bytes_out": STRING})
        found = await ask(
            "predict",
            rest_inputs("multi_output_col"),
            model="inception",
            signature_name="serving_multi",
        )
        expected = rest_outputs("multi_output_col")
        expected["label"] = [text.encode() for text in expected["label"]]
        dtypes = {
            "class_id": INT64,
            "label": STRING,
            "logits": FLOAT,
            "probabilities": FLOAT,
        }
        assert_equal(found, expected, dtypes)
        one = await ask(
            "predict",
            rest_inputs("multi_output_col"),
            model="inception",
            signature_name="serving_multi",
            outputs=["logits"],
        )
    assert_equal(one, {"logits": expected["logits"]}, {"logits": FLOAT})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("case", "signature", "dtypes"),
    [
        ("predict_ok", "serving_default", {"probabilities": FLOAT}),
        ("predict_default_signature_empty", None, {"probabilities": FLOAT}),
        (
            "predict_multi",
            "serving_multi",
            {
                "class_id": INT64,
                "label": STRING,
                "logits": FLOAT,
                "probabilities": FLOAT,
            },
        ),
        ("predict_bytes", "echo", {"echo_bytes": STRING}),
    ],
)
@pytest.mark.parametrize("as_arrays", [False, True])
async def test_grpc_answers_outputs(
    calls: Recorded,
    kind: str,
    case: str,
    signature: str | None,
    dtypes: dict[str, np.dtype[Any]],
    as_arrays: bool,
) -> None:
    inputs: dict[str, Any] = call_inputs(case)
    if not as_arrays:
        inputs = {name: array.tolist() for name, array in inputs.items()}
    async with asking(kind, calls.address) as ask:
        found = await ask(
            "predict", inputs, model="inception", signature_name=signature
        )
    assert_equal(found, call_outputs(case), dtypes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("predict_version", {"version": 1, "signature_name": "serving_default"}),
        ("predict_label", {"label": "stable", "signature_name": "serving_default"}),
        (
            "predict_output_filter_one",
            {"outputs": ["logits"], "signature_name": "serving_multi"},
        ),
        ("predict_zero_batch", {"signature_name": "serving_default"}),
    ],
)
async def test_grpc_asks_for_a_version_a_label_an_output_and_no_rows(
    calls: Recorded, kind: str, case: str, options: Any
) -> None:
    async with asking(kind, calls.address) as ask:
        found = await ask("predict", call_inputs(case), model="inception", **options)
    expected = call_outputs(case)
    assert_equal(found, expected, dict.fromkeys(expected, FLOAT))


@pytest.fixture(params=[(way, kind) for way in ("rest", "calls") for kind in KINDS])
def way(request: pytest.FixtureRequest) -> tuple[Recorded, str]:
    name, kind = request.param
    return request.getfixturevalue(name), kind


def tensors(**specs: tuple[np.dtype[Any], tuple[int | None, ...]]) -> Any:
    return {
        name: TensorSpec(name=name, dtype=dtype, shape=shape)
        for name, (dtype, shape) in specs.items()
    }


async def test_metadata_tells_every_signature_that_can_be_called(
    way: tuple[Recorded, str],
) -> None:
    recorded, kind = way
    async with asking(kind, recorded.address) as ask:
        found = await ask("metadata", "inception")
    assert (found.name, found.version) == ("inception", 1)
    images = tensors(images=(UINT8, (None, 96, 96, 3)))
    probabilities = tensors(probabilities=(FLOAT, (None, 10)))
    assert found.signatures == {
        "serving_default": Signature(inputs=images, outputs=probabilities),
        "serving_bytes": Signature(
            inputs=tensors(image_bytes=(STRING, (None,))), outputs=probabilities
        ),
        "serving_multi": Signature(
            inputs=images,
            outputs=tensors(
                class_id=(INT64, (None,)),
                label=(STRING, (None,)),
                logits=(FLOAT, (None, 10)),
                probabilities=(FLOAT, (None, 10)),
            ),
        ),
        "echo": Signature(
            inputs=tensors(blob=(STRING, (None,))),
            outputs=tensors(echo_bytes=(STRING, (None,))),
        ),
        "scaled": Signature(
            inputs=tensors(x=(FLOAT, (None,)), scale=(FLOAT, ())),
            outputs=tensors(y=(FLOAT, (None,))),
        ),
        "two_inputs": Signature(
            inputs=tensors(x=(FLOAT, (None, 2)), y=(FLOAT, (None, 2))),
            outputs=tensors(sum=(FLOAT, (None, 2)), bytes_out=(STRING, (None, 2))),
        ),
    }


async def test_status_tells_the_states_of_versions(way: tuple[Recorded, str]) -> None:
    recorded, kind = way
    available = [VersionStatus(version=1, state="AVAILABLE", error_message="")]
    async with asking(kind, recorded.address) as ask:
        assert await ask("status", "inception") == available
        assert await ask("status", "inception", version=1) == available


async def test_a_server_without_health_is_ready_if_it_answers(
    way: tuple[Recorded, str],
) -> None:
    recorded, kind = way
    async with asking(kind, recorded.address) as ask:
        assert await ask("is_ready") is True


async def test_who_wants_classes_is_told_to_predict(way: tuple[Recorded, str]) -> None:
    recorded, kind = way
    async with asking(kind, recorded.address) as ask:
        for images in (b"an image", [b"an image", b"another"]):
            with pytest.raises(RequestFailed, match=r"use predict.*bytes") as failure:
                await ask("classify", images)
            assert failure.value.status == "UNIMPLEMENTED"


@pytest.mark.parametrize(
    ("method", "argument", "options", "told"),
    [
        ("status", "nope", {}, "Could not find any versions of model nope"),
        ("metadata", "nope", {}, "Servable not found for request: Latest(nope)"),
        (
            "predict",
            {"images": [1]},
            {"model": "nope"},
            "Servable not found for request: Latest(nope)",
        ),
    ],
)
async def test_its_errors_are_told_in_its_words(
    way: tuple[Recorded, str], method: str, argument: Any, options: Any, told: str
) -> None:
    recorded, kind = way
    async with asking(kind, recorded.address) as ask:
        with pytest.raises(RequestFailed) as failure:
            await ask(method, argument, **options)
    assert str(failure.value) == f"NOT_FOUND: {told}"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_call_s_errors_keep_their_status(calls: Recorded, kind: str) -> None:
    async with asking(kind, calls.address) as ask:
        for case, options in {
            "predict_unknown_label": {"label": "nolabel"},
            "predict_unknown_version": {"version": 99},
            "predict_unknown_signature": {"signature_name": "nosig"},
            "predict_two_inputs_batch_mismatch": {"signature_name": "two_inputs"},
        }.items():
            golden = GRPC[case]
            asked = {"signature_name": "serving_default", **options}
            with pytest.raises(RequestFailed) as failure:
                await ask("predict", call_inputs(case), model="inception", **asked)
            assert failure.value.status == golden["code"]
            assert failure.value.message == golden["details"]


@pytest.mark.parametrize("kind", KINDS)
async def test_what_a_server_speaks_is_asked_once(rest: Recorded, kind: str) -> None:
    rest.requests.clear()
    async with asking(kind, rest.address) as ask:
        for _ in range(2):
            await ask(
                "predict",
                {"x": np.array([1.0, 2.5], np.float32), "scale": np.float32(2)},
                model="inception",
                signature_name="scaled",
            )
    run = "POST /v1/models/inception:predict"
    metadata = "GET /v1/models/inception/metadata"
    assert rest.requests == ["GET /v2", metadata, run, run]


async def test_the_server_is_told_the_time_that_is_left(
    way: tuple[Recorded, str],
) -> None:
    recorded, kind = way
    async with asking(kind, recorded.address, timeout_seconds=50) as ask:
        recorded.seconds.clear()
        await ask("status", "inception")
        await ask("status", "inception", timeout_seconds=20)
    first, second = recorded.seconds
    # gRPC rounds up, by a hundredth at most.
    assert 25 < first < 51
    assert 0 < second < 21
