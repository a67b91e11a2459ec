"""Triton's own client, over HTTP and gRPC, against the running program."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from queue import SimpleQueue
from typing import Any, cast

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from models.card import SAMPLE_FILE
from tests.support import only, started

MODEL = "inception"


@pytest.fixture(scope="module")
def sample(version_directory: Path) -> bytes:
    """A digit as a file."""
    return (version_directory / SAMPLE_FILE).read_bytes()


@pytest.fixture(scope="module")
def pixels() -> Any:
    """Two pictures of noise."""
    return np.random.default_rng(0).integers(0, 256, (2, 28, 28, 1), np.uint8)


@pytest.fixture(scope="module")
def expected(gateway_url: str, pixels: Any) -> Any:
    """What TensorFlow Serving's API says of them."""
    answer = httpx.post(
        f"{gateway_url}/v1/models/{MODEL}:predict", json={"instances": pixels.tolist()}
    )
    return np.array(answer.json()["predictions"], np.float32)


@pytest.fixture(params=["http", "grpc"])
def transport(request: pytest.FixtureRequest) -> str:
    return cast("str", request.param)


@pytest.fixture
def package(transport: str) -> Any:
    return {"http": tritonclient.http, "grpc": tritonclient.grpc}[transport]


@pytest.fixture
def client(
    package: Any, transport: str, gateway_url: str, grpc_address: str
) -> Iterator[Any]:
    address = {"http": gateway_url.removeprefix("http://"), "grpc": grpc_address}
    with closing(package.InferenceServerClient(address[transport])) as one:
        yield one


def images(package: Any, pixels: Any, **options: Any) -> Any:
    tensor = package.InferInput("images", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels, **options)
    return tensor


def test_health_is_told(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL)
    assert client.is_model_ready(MODEL, "1")
    assert not client.is_model_ready("other")


def as_json(client: Any, transport: str, method: str, *about: str) -> Any:
    """What both clients give as a document."""
    options = {"as_json": True} if transport == "grpc" else {}
    return getattr(client, method)(*about, **options)


def test_the_server_says_what_it_is(client: Any, transport: str) -> None:
    answer = as_json(client, transport, "get_server_metadata")
    assert answer["name"] == "blockserve"
    assert "binary_tensor_data" in answer["extensions"]


def test_a_model_says_what_it_takes(client: Any, transport: str) -> None:
    answer = as_json(client, transport, "get_model_metadata", MODEL)
    tensor = only(answer["inputs"])
    assert (tensor["name"], tensor["datatype"]) == ("images", "UINT8")
    assert list(map(int, tensor["shape"])) == [-1, 28, 28, 1]
    assert answer["versions"] == ["1"]


def test_the_configuration_is_told(client: Any, transport: str) -> None:
    answer = as_json(client, transport, "get_model_config", MODEL)
    config = answer if transport == "http" else answer["config"]
    assert config["backend"] == "openvino"
    assert config["max_batch_size"] > 1
    assert only(config["input"])["data_type"] == "TYPE_UINT8"


def test_the_index_is_told(client: Any, transport: str) -> None:
    answer = as_json(client, transport, "get_model_repository_index")
    models = answer if transport == "http" else answer["models"]
    assert only(models)["state"] == "READY"


def test_a_request_is_answered(
    client: Any, package: Any, pixels: Any, expected: Any
) -> None:
    result = client.infer(MODEL, [images(package, pixels)], request_id="seven")
    np.testing.assert_allclose(
        result.as_numpy("probabilities"), expected, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("of_request", [True, False])
@pytest.mark.parametrize("of_answer", [True, False])
def test_values_travel_as_bytes_or_json_either_way(
    gateway_url: str, pixels: Any, expected: Any, of_request: bool, of_answer: bool
) -> None:
    package = tritonclient.http
    address = gateway_url.removeprefix("http://")
    with closing(package.InferenceServerClient(address)) as client:
        result = client.infer(
            MODEL,
            [images(package, pixels, binary_data=of_request)],
            outputs=[
                package.InferRequestedOutput("probabilities", binary_data=of_answer)
            ],
        )
        np.testing.assert_allclose(
            result.as_numpy("probabilities"), expected, rtol=1e-4, atol=1e-6
        )


def test_numbers_in_typed_fields_are_answered_so(
    grpc_address: str, pixels: Any, expected: Any
) -> None:
    """As clients send them that do not know raw contents."""
    request = service_pb2.ModelInferRequest(model_name=MODEL)
    tensor = request.inputs.add(name="images", datatype="UINT8", shape=pixels.shape)
    tensor.contents.uint_contents.extend(pixels.ravel().tolist())
    with grpc.insecure_channel(grpc_address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        answer = stub.ModelInfer(request)
    assert not answer.raw_output_contents
    output = only(answer.outputs)
    found = np.reshape(output.contents.fp32_contents, output.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["images", "image_bytes"])
def test_an_image_file_may_stand_for_its_pixels(
    client: Any, package: Any, gateway_url: str, sample: bytes, name: str
) -> None:
    classified = httpx.post(f"{gateway_url}/classify?top_k=1", content=sample).json()
    best = only(only(classified["results"])["predictions"])
    tensor = package.InferInput(name, [1], "BYTES")
    tensor.set_data_from_numpy(np.array([sample], object))
    result = client.infer(MODEL, [tensor])
    found = result.as_numpy("probabilities")
    assert found.argmax() == best["index"]
    assert found.max() == pytest.approx(best["probability"], rel=1e-4)


def test_classes_come_with_their_labels(
    client: Any, package: Any, pixels: Any, expected: Any
) -> None:
    wanted = package.InferRequestedOutput("probabilities", class_count=3)
    result = client.infer(MODEL, [images(package, pixels)], outputs=[wanted])
    classes = result.as_numpy("probabilities")
    assert classes.shape == (2, 3)
    value, index, label = classes[1, 0].decode().split(":")
    assert int(index) == expected[1].argmax()
    assert label == index
    assert float(value) == pytest.approx(expected[1].max(), abs=1e-5)


def test_a_request_need_not_be_waited_for(
    client: Any, package: Any, transport: str, pixels: Any, expected: Any
) -> None:
    if transport == "http":
        result = client.async_infer(MODEL, [images(package, pixels)]).get_result()
    else:
        answers: SimpleQueue[Any] = SimpleQueue()
        client.async_infer(
            MODEL,
            [images(package, pixels)],
            callback=lambda result, error: answers.put(error or result),
        )
        result = answers.get(timeout=30)
    np.testing.assert_allclose(
        result.as_numpy("probabilities"), expected, rtol=1e-4, atol=1e-6
    )


def test_an_error_says_what_is_wrong(client: Any, package: Any, pixels: Any) -> None:
    with pytest.raises(InferenceServerException, match="there is no model 'other'"):
        client.infer("other", [images(package, pixels)])
    with pytest.raises(InferenceServerException, match=r"expected images uint8"):
        client.infer(MODEL, [images(package, pixels[:, :14])])


def test_compressed_requests_are_read(
    client: Any, package: Any, transport: str, pixels: Any, expected: Any
) -> None:
    algorithm = (
        "request_compression_algorithm"
        if transport == "http"
        else ("compression_algorithm")
    )
    result = client.infer(MODEL, [images(package, pixels)], **{algorithm: "gzip"})
    np.testing.assert_allclose(
        result.as_numpy("probabilities"), expected, rtol=1e-4, atol=1e-6
    )


def test_statistics_grow_with_requests(
    client: Any, package: Any, transport: str, pixels: Any
) -> None:
    def inferences() -> int:
        answer = as_json(client, transport, "get_inference_statistics", MODEL, "1")
        return int(only(answer["model_stats"])["inference_count"])

    before = inferences()
    client.infer(MODEL, [images(package, pixels)])
    assert inferences() == before + 2


def test_a_stream_answers_every_request_and_names_it(
    grpc_address: str, pixels: Any, expected: Any
) -> None:
    package = tritonclient.grpc
    answers: SimpleQueue[Any] = SimpleQueue()
    with closing(package.InferenceServerClient(grpc_address)) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for number in range(200):
            client.async_stream_infer(
                MODEL,
                [images(package, pixels[number % 2, None])],
                request_id=str(number),
            )
        client.async_stream_infer("other", [images(package, pixels)])
        client.async_stream_infer(
            MODEL,
            [images(package, pixels)],
            request_id="last",
            enable_empty_final_response=True,
        )
        found: dict[str, Any] = {}
        errors = []
        for _ in range(202):
            result, error = answers.get(timeout=30)
            if error:
                errors.append(error)
            else:
                found[result.get_response().id] = result
        client.stop_stream()
    assert "there is no model 'other'" in str(only(errors))
    assert len(found) == 201
    for number in range(200):
        np.testing.assert_allclose(
            found[str(number)].as_numpy("probabilities")[0],
            expected[number % 2],
            rtol=1e-4,
            atol=1e-6,
        )
    last = found["last"].get_response()
    assert last.parameters["triton_final_response"].bool_param


async def test_the_asynchronous_clients_work(
    gateway_url: str, grpc_address: str, pixels: Any, expected: Any
) -> None:
    for package, module, address in (
        (tritonclient.http, tritonclient.http.aio, gateway_url.removeprefix("http://")),
        (tritonclient.grpc, tritonclient.grpc.aio, grpc_address),
    ):
        async with module.InferenceServerClient(address) as client:
            assert await client.is_server_ready()
            result = await client.infer(MODEL, [images(package, pixels)])
            np.testing.assert_allclose(
                result.as_numpy("probabilities"), expected, rtol=1e-4, atol=1e-6
            )


def test_a_model_is_unloaded_and_loaded(
    repository: Path, transport: str, package: Any
) -> None:
    arguments = ("--repository", str(repository), "--model-control")
    with started(*arguments) as (_, url, lines):
        grpc_address = "".join(lines).partition("gRPC at ")[2].split()[0]
        address = {"http": url.removeprefix("http://"), "grpc": grpc_address}
        with closing(package.InferenceServerClient(address[transport])) as client:
            client.unload_model(MODEL)
            assert not client.is_model_ready(MODEL)
            assert not client.is_server_ready()
            client.load_model(MODEL)
            assert client.is_model_ready(MODEL)
            with pytest.raises(InferenceServerException, match="send no parameters"):
                client.load_model(MODEL, config="{}")
