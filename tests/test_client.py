"""The Python client: both kinds of it, over both protocols, against real gateways."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import ml_dtypes
import numpy as np
import pytest

from proto.tensorflow.serving.predict_pb2 import PredictRequest
from proto.tensors import from_tensor_proto
from service.batching import Batcher
from service.client import (
    Client,
    Prediction,
    RequestFailed,
    ServerUnreachable,
    Signature,
    TensorSpec,
    VersionStatus,
    open_inference,
    tf_serving_rest,
)
from service.client.answers import ModelChoice
from service.client.conversations import hold
from service.client.grpc import GrpcOperations
from service.client.http import HttpOperations
from service.client.http_requests import HttpRequest
from service.engines.stub import StubEngine
from service.http.open_inference import requests
from service.repository import Target
from service.tensors import Array
from tests.support import (
    Asked,
    Served,
    address_of,
    asking,
    image_of_class,
    only,
    serving,
    stub_version,
)

SCHEMES = ("http", "grpc")
KINDS = ("sync", "async")
NOBODY_S_PORT = 9

each_way = [
    pytest.mark.parametrize("scheme", SCHEMES),
    pytest.mark.parametrize("kind", KINDS),
]


def every_way(test: Any) -> Any:
    """Run a test with both clients over both protocols."""
    for mark in each_way:
        test = mark(test)
    return test


@pytest.fixture(scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    root = tmp_path_factory.mktemp("repository")
    stub_version(root, version=3)
    async with serving(root, labels={"stub": {"stable": 3}}) as running:
        yield running


@pytest.fixture(params=[(scheme, kind) for scheme in SCHEMES for kind in KINDS])
async def ask(served: Served, request: pytest.FixtureRequest) -> AsyncIterator[Asked]:
    scheme, kind = request.param
    async with asking(kind, address_of(served, scheme)) as asked:
        yield asked


def parts_of(served: Served) -> tuple[StubEngine, Batcher]:
    with served.running.gateway.repository.lease(Target(name="stub")) as version:
        engine = version.engine
    assert isinstance(engine, StubEngine)
    return engine, only(version.batchers.values())


def pixels(*classes: int) -> Array:
    """4×4 images to which the stub engine gives these classes."""
    images = np.zeros((len(classes), 4, 4, 1), np.uint8)
    images[:, 0, 0, 0] = classes
    return images


async def test_an_image_is_classified(ask: Asked) -> None:
    answer = await ask("classify", image_of_class(4), top_k=2)
    assert (answer.model, answer.version) == ("stub", 3)
    first, second = only(answer.results)
    assert first == Prediction(label="e", index=4, probability=float(np.float32(0.9)))
    assert second.probability < 0.1


async def test_files_and_bytes_go_as_one_batch(ask: Asked, tmp_path: Path) -> None:
    for index in (1, 2):
        (tmp_path / f"{index}.png").write_bytes(image_of_class(index))
    images = [tmp_path / "1.png", str(tmp_path / "2.png"), image_of_class(3)]
    answer = await ask("classify", images, top_k=1)
    assert [only(found).label for found in answer.results] == ["b", "c", "d"]
    alone = await ask("classify", tmp_path / "1.png")
    assert only(alone.results)[0].label == "b"
    assert len(only(alone.results)) == 5, "as many as the server's settings say"


async def test_a_file_that_is_not_there_is_told_as_ever(ask: Asked) -> None:
    with pytest.raises(FileNotFoundError):
        await ask("classify", "absent.png")


@pytest.mark.parametrize("which", [{}, {"version": 3}, {"label": "stable"}])
async def test_a_version_is_named_by_number_or_label(ask: Asked, which: Any) -> None:
    answer = await ask("classify", image_of_class(4), model="stub", **which)
    assert answer.version == 3
    outputs = await ask("predict", {"images": pixels(4)}, model="stub", **which)
    assert outputs["probabilities"].argmax() == 4
    assert (await ask("metadata", "stub", **which)).version == 3


async def test_a_version_needs_its_model_and_a_label_stands_for_one(ask: Asked) -> None:
    with pytest.raises(ValueError, match="needs its model"):
        await ask("classify", image_of_class(4), version=3)
    with pytest.raises(ValueError, match="not both"):
        await ask("metadata", "stub", version=3, label="stable")


async def test_arrays_are_run(ask: Asked) -> None:
    outputs = await ask("predict", {"images": pixels(7, 2)}, model="stub")
    array = only(outputs.values())
    assert (array.dtype, array.shape) == (np.float32, (2, 10))
    assert array.argmax(axis=1).tolist() == [7, 2]
    same = await ask(
        "predict",
        {"images": pixels(7, 2)},
        model="stub",
        signature_name="serving_default",
        outputs=["probabilities"],
    )
    np.testing.assert_array_equal(same["probabilities"], array)


async def test_lists_get_the_dtype_of_the_input(ask: Asked) -> None:
    """NumPy would make int64 of them, which no image model takes."""
    outputs = await ask("predict", {"images": pixels(7).tolist()}, model="stub")
    assert outputs["probabilities"].argmax() == 7


async def test_metadata_tells_names_dtypes_and_shapes(ask: Asked) -> None:
    found = await ask("metadata", "stub")
    assert (found.name, found.version) == ("stub", 3)
    assert found.signatures == {
        "serving_default": Signature(
            inputs={
                "images": TensorSpec(
                    name="images", dtype=np.dtype(np.uint8), shape=(None, 4, 4, 1)
                )
            },
            outputs={
                "probabilities": TensorSpec(
                    name="probabilities", dtype=np.dtype(np.float32), shape=(None, 10)
                )
            },
        )
    }


@every_way
async def test_status_tells_the_latest_version_first(
    tmp_path: Path, scheme: str, kind: str
) -> None:
    for version in (1, 2):
        stub_version(tmp_path, version=version)
    async with (
        serving(tmp_path, versions_to_serve=2) as served,
        asking(kind, address_of(served, scheme)) as ask,
    ):
        both = await ask("status", "stub")
        assert both == [
            VersionStatus(version=number, state="AVAILABLE", error_message="")
            for number in (2, 1)
        ]
        assert await ask("status", "stub", version=1) == both[1:]


@pytest.mark.parametrize(
    ("method", "arguments", "options", "status", "message"),
    [
        ("classify", [b"no image"], {}, "INVALID_ARGUMENT", "not an image"),
        ("classify", [image_of_class(1)], {"top_k": 0}, "INVALID_ARGUMENT", "top_k"),
        ("classify", [image_of_class(1)], {"model": "x"}, "NOT_FOUND", "no model 'x'"),
        ("classify", [[image_of_class(1)] * 65], {}, "INVALID_ARGUMENT", "64"),
        ("metadata", ["x"], {}, "NOT_FOUND", "x"),
        ("status", ["x"], {}, "NOT_FOUND", "x"),
        ("status", ["stub"], {"version": 8}, "NOT_FOUND", "version 8"),
        (
            "predict",
            [{"images": pixels(1)}],
            {"model": "x"},
            "NOT_FOUND",
            "Servable not found|no model",
        ),
        (
            "predict",
            [{"images": pixels(1).astype(np.int64)}],
            {"model": "stub"},
            "INVALID_ARGUMENT",
            "int64",
        ),
        (
            "predict",
            [{"images": pixels(1)}],
            {"model": "stub", "outputs": ["x"]},
            "INVALID_ARGUMENT",
            "x",
        ),
        (
            "predict",
            [{"images": [1]}],
            {"model": "stub", "signature_name": "x"},
            "NOT_FOUND",
            "no signature 'x'; it has 'serving_default'",
        ),
        (
            "predict",
            [{"x": [1]}],
            {"model": "stub"},
            "INVALID_ARGUMENT",
            "no input 'x'; the signature takes 'images'",
        ),
        (
            "predict",
            [{"images": [300]}],
            {"model": "stub"},
            "INVALID_ARGUMENT",
            "images: uint8 holds 0 to 255",
        ),
        (
            "predict",
            [{"images": [0.5]}],
            {"model": "stub"},
            "INVALID_ARGUMENT",
            "images: not all values are uint8",
        ),
        (
            "predict",
            [{"images": ["a"]}],
            {"model": "stub"},
            "INVALID_ARGUMENT",
            "images: not all values are uint8",
        ),
        (
            "predict",
            [{"images": [[1], [1, 2]]}],
            {"model": "stub"},
            "INVALID_ARGUMENT",
            "images: .*inhomogeneous",
        ),
        (
            "predict",
            [{"images": np.zeros(1, complex)}],
            {"model": "stub"},
            "INVALID_ARGUMENT",
            "images: complex128 arrays cannot be sent",
        ),
        (
            "predict",
            [{"images": np.array([None])}],
            {"model": "stub"},
            "INVALID_ARGUMENT",
            "images: a string is bytes or str, not NoneType",
        ),
    ],
)
async def test_what_is_wrong_is_told(
    ask: Asked, method: str, arguments: Any, options: Any, status: str, message: str
) -> None:
    with pytest.raises(RequestFailed, match=message) as failure:
        await ask(method, *arguments, **options)
    assert failure.value.status == status
    assert failure.value.retry_after_seconds is None
    assert not isinstance(failure.value, ServerUnreachable)


@every_way
async def test_nobody_at_the_address_is_told(scheme: str, kind: str) -> None:
    address = f"{scheme}://127.0.0.1:{NOBODY_S_PORT}"
    async with asking(kind, address) as ask:
        with pytest.raises(ServerUnreachable, match=address) as failure:
            await ask("classify", image_of_class(1))
        assert failure.value.status == "UNAVAILABLE"
        assert await ask("is_ready") is False


@every_way
async def test_readiness_is_false_once_the_server_drains(
    tmp_path: Path, scheme: str, kind: str
) -> None:
    stub_version(tmp_path)
    async with (
        serving(tmp_path) as served,
        asking(kind, address_of(served, scheme)) as ask,
    ):
        assert await ask("is_ready") is True
        served.running.gateway.begin_drain()
        assert await ask("is_ready") is False
        with pytest.raises(RequestFailed) as failure:
            await ask("classify", image_of_class(1))
        assert failure.value.status == "UNAVAILABLE"
        assert not isinstance(failure.value, ServerUnreachable)


@every_way
async def test_a_full_queue_says_when_to_come_back(
    tmp_path: Path, scheme: str, kind: str
) -> None:
    stub_version(tmp_path)
    async with (
        serving(tmp_path, max_queue_depth=1, max_batch_size=1) as served,
        asking(kind, address_of(served, scheme)) as ask,
    ):
        engine, _ = parts_of(served)
        engine.gate.clear()
        tasks = [
            asyncio.ensure_future(ask("classify", image_of_class(1))) for _ in range(3)
        ]
        done, waiting = await asyncio.wait(tasks, return_when="FIRST_COMPLETED")
        failure = only(done).exception()
        assert isinstance(failure, RequestFailed)
        expected = "UNAVAILABLE" if scheme == "http" else "RESOURCE_EXHAUSTED"
        assert failure.status == expected
        assert failure.retry_after_seconds is not None
        assert failure.retry_after_seconds > 0
        assert re.fullmatch(r"[0-9a-f]+-[0-9a-f]+", failure.request_id or "")
        engine.gate.set()
        assert [(await task).model for task in waiting] == ["stub"] * 2


@every_way
async def test_time_runs_out_at_both_ends(
    tmp_path: Path, scheme: str, kind: str
) -> None:
    stub_version(tmp_path)
    async with (
        serving(tmp_path) as served,
        asking(kind, address_of(served, scheme)) as ask,
    ):
        engine, batcher = parts_of(served)
        engine.gate.clear()
        for method, argument in (
            ("classify", image_of_class(1)),
            ("predict", {"images": pixels(1)}),
        ):
            model = {"model": "stub"}
            with pytest.raises(RequestFailed, match=r"time|Deadline") as failure:
                await ask(method, argument, timeout_seconds=0.1, **model)
            assert failure.value.status == "DEADLINE_EXCEEDED"
            while batcher.queue_depth:
                await asyncio.sleep(0)
        engine.gate.set()


@every_way
async def test_a_token_and_an_authority_are_given_once(
    tmp_path: Path, certificate: dict[str, Path], scheme: str, kind: str
) -> None:
    stub_version(tmp_path / "repository")
    secret = {"token": "secret"}
    async with serving(tmp_path / "repository", **certificate, **secret) as served:
        address = address_of(served, f"{scheme}s")
        trusted = {"certificates": certificate["tls_certificate"]}
        async with asking(kind, address, **trusted, **secret) as ask:
            answer = await ask("classify", image_of_class(3), top_k=1)
            assert only(only(answer.results)).label == "d"
            outputs = await ask("predict", {"images": pixels(3)}, model="stub")
            assert outputs["probabilities"].argmax() == 3
        async with asking(kind, address, **trusted) as ask:
            assert await ask("is_ready") is True, "health needs no token"
            with pytest.raises(RequestFailed, match="Bearer") as failure:
                await ask("status", "stub")
            assert failure.value.status == "UNAUTHENTICATED"
        async with asking(kind, address, **secret) as ask:
            with pytest.raises(ServerUnreachable):
                await ask("status", "stub")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:8000",
        "ftp://host",
        "http://",
        "grpc://host",
        "grpc://host:1/path",
        "",
    ],
)
def test_an_address_that_is_none_is_told(address: str) -> None:
    with pytest.raises(ValueError, match=r"grpc://\S+; got '|grpcs://…; got '"):
        Client(address)


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan")])
def test_a_timeout_is_a_positive_number(seconds: float) -> None:
    with pytest.raises(ValueError, match="positive number"):
        Client("http://host", timeout_seconds=seconds)
    with (
        Client("http://host") as client,
        pytest.raises(ValueError, match="positive number"),
    ):
        client.is_ready(timeout_seconds=seconds)


async def test_the_gateway_with_a_real_model_answers_over_both_protocols(
    gateway_url: str, grpc_address: str, version_directory: Path
) -> None:
    sample = version_directory / "assets.extra/sample.png"
    classes = []
    for address in (gateway_url, f"grpc://{grpc_address}"):
        for kind in KINDS:
            async with asking(kind, address) as ask:
                assert await ask("is_ready")
                answer = await ask("classify", sample, top_k=1)
                best = only(only(answer.results))
                outputs = await ask(
                    "predict",
                    {"image_bytes": [sample.read_bytes()]},
                    model="inception",
                    signature_name="serving_bytes",
                )
                probabilities = outputs["probabilities"]
                assert probabilities.dtype == np.float32
                assert probabilities.argmax() == best.index
                assert probabilities.max() == pytest.approx(best.probability, abs=1e-5)
                classes.append(best)
    assert len(set(classes)) == 1


async def test_json_answers_what_binary_tensors_answer(gateway_url: str) -> None:
    """To the last bit: what is written in JSON is the same float again."""
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), np.uint8)
    async with asking("async", gateway_url) as ask:
        binary = await ask("predict", {"images": images}, model="inception")
        ask.client._operations._takes_binary = False  # type: ignore[union-attr]
        text = await ask("predict", {"images": images}, model="inception")
    assert binary.keys() == text.keys()
    for name, array in binary.items():
        assert array.dtype == text[name].dtype
        np.testing.assert_array_equal(array, text[name])


# What follows needs no server: conversations are generators.

MODEL = ModelChoice(name="m")
ARRAYS = {
    **{
        dtype: np.array([[0, 1, 2], [3, 4, 120]]).astype(dtype)
        for dtype in (
            *("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
            *("float16", "float32", "float64", "bool"),
        )
    },
    "bfloat16": np.array([1.5, -2], ml_dtypes.bfloat16),
    "big-endian": np.array([1, 2], ">i4"),
    "not contiguous": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "scalar": np.float32(0.1),
    "empty": np.zeros((0, 2), np.int32),
    "largest": np.array([2**64 - 1], np.uint64),
    "str": np.array(["é", ""]),
    "bytes": np.array([[b"\xff\x00a"], [b""]], object),
    "fixed bytes": np.array([b"a", b"bc"]),
}


def first_request(operations: Any, inputs: Mapping[str, Any]) -> Any:
    operations._takes_binary = True
    return next(operations.predict(inputs, MODEL, "s", ["y"]))


def read_binary(inputs: Mapping[str, Any]) -> Array:
    request = first_request(HttpOperations(), inputs)
    length = int(request.headers[open_inference.JSON_LENGTH])
    _, asked = requests.read(request.content, length)
    assert asked.parameters["signature_name"] == "s"
    assert [output.name for output in asked.outputs] == ["y"]
    return only(asked.inputs).read()


def read_call(inputs: Mapping[str, Any]) -> Array:
    request = PredictRequest.FromString(first_request(GrpcOperations(), inputs).message)
    assert request.model_spec.signature_name == "s"
    assert list(request.output_filter) == ["y"]
    return from_tensor_proto(request.inputs["x"])


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("read", [read_binary, read_call])
def test_an_array_arrives_as_it_is(
    read: Callable[[Mapping[str, Any]], Array], name: str
) -> None:
    sent = np.asarray(ARRAYS[name])
    got = read({"x": ARRAYS[name]})
    if sent.dtype.kind in "US":
        texts = sent.ravel().tolist()
        sent = np.array([t.encode() if isinstance(t, str) else t for t in texts], "O")
    assert got.dtype == sent.dtype.newbyteorder("=")
    np.testing.assert_array_equal(got, sent)


@pytest.mark.parametrize("name", ARRAYS.keys() - {"empty"})
def test_an_array_written_as_json_is_read_as_it_was(name: str) -> None:
    """Its answer is read as its request was written: both are the same JSON."""
    sent = read_call({"x": ARRAYS[name]})
    request = tf_serving_rest.request("/p", {"x": sent}, "s")
    document = httpx.Response(200, content=request.content).json()
    assert document["signature_name"] == "s"
    answer = httpx.Response(200, json={"outputs": document["inputs"]["x"]})
    spec = TensorSpec(name="y", dtype=sent.dtype, shape=None)
    signature = Signature(inputs={}, outputs={"y": spec})
    got = tf_serving_rest.outputs(answer, signature, None)["y"]
    assert got.dtype == sent.dtype
    np.testing.assert_array_equal(got, sent)


def test_numbers_that_are_none_and_bytes_that_are_no_text_pass_through_json() -> None:
    sent = {"x": np.array([np.nan, np.inf, -np.inf], np.float32)}
    request = tf_serving_rest.request("/p", sent, None)
    assert request.content == b'{"inputs":{"x":[NaN, Infinity, -Infinity]}}'
    specs = {
        "x": TensorSpec(name="x", dtype=np.dtype(np.float32), shape=(None,)),
        "s": TensorSpec(name="s", dtype=np.dtype(object), shape=(None,)),
    }
    content = b'{"outputs": {"x": [NaN, -Infinity], "s": ["\xff", {"b64": "/wA="}]}}'
    signature = Signature(inputs={}, outputs=specs)
    got = tf_serving_rest.outputs(
        httpx.Response(200, content=content), signature, ["s", "x"]
    )
    assert list(got) == ["s", "x"]
    assert got["s"].tolist() == [b"\xff", b"\xff\x00"]
    np.testing.assert_array_equal(got["x"], np.array([np.nan, -np.inf], np.float32))
    with pytest.raises(RequestFailed, match="no output 'z'; there is 's', 'x'"):
        tf_serving_rest.outputs(httpx.Response(200, content=content), signature, ["z"])


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (400, "INVALID_ARGUMENT"),
        (401, "UNAUTHENTICATED"),
        (404, "NOT_FOUND"),
        (413, "INVALID_ARGUMENT"),
        (415, "INVALID_ARGUMENT"),
        (422, "INVALID_ARGUMENT"),
        (429, "RESOURCE_EXHAUSTED"),
        (500, "INTERNAL"),
        (503, "UNAVAILABLE"),
        (504, "DEADLINE_EXCEEDED"),
        (302, "UNKNOWN"),
        (418, "UNKNOWN"),
    ],
)
def test_a_status_of_http_has_its_name(code: int, status: str) -> None:
    assert failure_of(httpx.Response(code)).status == status


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"error": {"code": "c", "message": "ours"}}', "ours"),
        ('{"error": "theirs"}', "theirs"),
        ('{"error": 5}', "HTTP status 500"),
        ('{"detail": "other"}', "HTTP status 500"),
        ("[]", "HTTP status 500"),
        ("<HTML>", "HTTP status 500"),
        ("", "HTTP status 500"),
    ],
)
def test_an_error_is_told_in_any_shape(body: str, message: str) -> None:
    failure = failure_of(httpx.Response(500, text=body))
    assert failure.message == message
    assert str(failure) == f"INTERNAL: {message}"


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("3", 3),
        ("0.5", 0.5),
        ("Fri, 31 Dec 1999 23:59:59 GMT", None),
        ("nan", None),
        ("-1", None),
    ],
)
def test_the_time_to_come_back_is_read(header: str, seconds: float | None) -> None:
    failure = failure_of(httpx.Response(503, headers={"retry-after": header}))
    assert failure.retry_after_seconds == seconds


def failure_of(answer: httpx.Response) -> RequestFailed:
    """What a conversation makes of an answer."""
    conversation = HttpOperations().status(MODEL)
    next(conversation)
    with pytest.raises(RequestFailed) as failure:
        conversation.send(answer)
    return failure.value


@pytest.mark.parametrize(
    "body", ["", "<html>", "[]", '{"model_version_status": [{"version": "x"}]}']
)
def test_an_answer_that_cannot_be_read_is_told(body: str) -> None:
    failure = failure_of(httpx.Response(200, text=body))
    assert failure.status == "UNKNOWN"
    assert "cannot be read" in failure.message


def test_signatures_are_asked_for_once_and_again_after_a_failure() -> None:
    """A new version of a model may have others."""
    asked = []
    status = 200

    def answer(request: HttpRequest, _: float) -> httpx.Response:
        asked.append(request.path)
        if request.path == "/v2":
            return httpx.Response(404)
        if request.path.endswith(":predict"):
            return httpx.Response(status, json={"outputs": [1]})
        tensor = {"dtype": "DT_INT32", "tensor_shape": {"unknown_rank": True}}
        definition = {"inputs": {"x": tensor}, "outputs": {"y": tensor}}
        definitions = {"signature_def": {"serving_default": definition}}
        document = {
            "model_spec": {"name": "m", "version": "1"},
            "metadata": {"signature_def": definitions},
        }
        return httpx.Response(200, json=document)

    operations = HttpOperations()

    def predict() -> Array:
        conversation = operations.predict({"x": [1]}, MODEL, None, None)
        return hold(conversation, answer, timeout_seconds=30)["y"]

    assert predict().dtype == np.int32
    assert predict().tolist() == [1]
    status = 400
    with pytest.raises(RequestFailed):
        predict()
    status = 200
    assert predict().tolist() == [1]
    metadata, run = "/v1/models/m/metadata", "/v1/models/m:predict"
    assert asked == [metadata, "/v2", run, run, run, metadata, run]
