"""Every type of tensor, over every protocol."""

from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import grpc
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from service.open_inference.data_types import datatype_of
from tests.support import Served, serving

VALUES: dict[str, Any] = {
    "bool": [[True, False], [False, False]],
    "uint8": [[0, 255], [1, 2]],
    "uint16": [[0, 2**16 - 1], [1, 2]],
    "uint32": [[0, 2**32 - 1], [1, 2]],
    "uint64": [[0, 2**64 - 1], [1, 2]],
    "int8": [[-128, 127], [1, 2]],
    "int16": [[-(2**15), 2**15 - 1], [1, 2]],
    "int32": [[-(2**31), 2**31 - 1], [1, 2]],
    "int64": [[-(2**63), 2**63 - 1], [1, 2]],
    "half": [[0.1, -65504.0], [1.5, 2.0]],
    "bfloat16": [[0.1, -3e38], [1.5, 2.0]],
    "float32": [[0.1, -3e38], [1.5, 2.0]],
    "float64": [[0.1, -1e308], [1.5, 2.0]],
    "string": [["a", ""], ["é", "text"]],
}
MODEL = "echo"


@pytest.fixture(scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    """A model that answers what it is asked, with a signature for each type."""
    repository = tmp_path_factory.mktemp("repository")
    model = tf.Module()
    signatures = {}
    for name in VALUES:
        spec = tf.TensorSpec([None, 2], tf.as_dtype(name), name="x")
        echo = tf.function(lambda x: {"y": tf.identity(x)}, input_signature=[spec])
        signatures[name] = echo
        setattr(model, f"echo_{name}", echo)
    tf.saved_model.save(
        model,
        str(repository / MODEL / "1"),
        signatures={"serving_default": signatures["float32"], **signatures},
    )
    async with serving(repository, engine="tensorflow") as running:
        yield running


def array_of(name: str) -> Any:
    if name == "string":
        return np.array([[s.encode() for s in row] for row in VALUES[name]], object)
    return np.array(VALUES[name], tf.as_dtype(name).as_numpy_dtype)


async def tf_serving_grpc(served: Served, name: str, array: Any) -> Any:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = MODEL
    request.model_spec.signature_name = name
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(array))
    address = f"127.0.0.1:{served.running.grpc_port}"
    async with grpc.aio.insecure_channel(address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        answer = await stub.Predict(request)
    return tf.make_ndarray(answer.outputs["y"])


async def tf_serving_rest(served: Served, name: str, array: Any) -> Any:
    answer = await served.client.post(
        f"/v1/models/{MODEL}:predict",
        json={"signature_name": name, "instances": VALUES[name]},
    )
    assert answer.status_code == 200, answer.text
    return from_json(answer.json()["predictions"], array.dtype)


def from_json(values: Any, dtype: Any) -> Any:
    if dtype.hasobject:
        return np.array([[s.encode() for s in row] for row in values], object)
    return np.array(values, dtype)


async def open_inference_rest(served: Served, name: str, array: Any) -> Any:
    tensor = {
        "name": "x",
        "datatype": datatype_of(array.dtype),
        "shape": [2, 2],
        "data": VALUES[name],
    }
    answer = await served.client.post(
        f"/v2/models/{MODEL}/infer",
        json={"inputs": [tensor], "parameters": {"signature_name": name}},
    )
    assert answer.status_code == 200, answer.text
    (output,) = answer.json()["outputs"]
    assert output["datatype"] == tensor["datatype"]
    values = [output["data"][:2], output["data"][2:]]
    return from_json(values, array.dtype)


async def triton(package: Any, module: Any, address: str, name: str, array: Any) -> Any:
    tensor = package.InferInput("x", [2, 2], datatype_of(array.dtype))
    tensor.set_data_from_numpy(array)
    async with module.InferenceServerClient(address) as client:
        answer = await client.infer(
            MODEL, [tensor], parameters={"signature_name": name}
        )
    return answer.as_numpy("y")


async def triton_http(served: Served, name: str, array: Any) -> Any:
    address = f"127.0.0.1:{served.running.http_port}"
    return await triton(tritonclient.http, tritonclient.http.aio, address, name, array)


async def triton_grpc(served: Served, name: str, array: Any) -> Any:
    address = f"127.0.0.1:{served.running.grpc_port}"
    return await triton(tritonclient.grpc, tritonclient.grpc.aio, address, name, array)


WAYS: list[Callable[[Served, str, Any], Coroutine[Any, Any, Any]]] = [
    tf_serving_grpc,
    tf_serving_rest,
    open_inference_rest,
    triton_http,
    triton_grpc,
]


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_what_is_sent_comes_back(
    served: Served, way: Callable[..., Any], name: str
) -> None:
    array = array_of(name)
    answer = await way(served, name, array)
    assert answer.dtype == array.dtype or (
        # Triton's client knows no 16-bit type of its own for these.
        array.dtype == ml_dtypes.bfloat16 and answer.dtype == np.float32
    )
    np.testing.assert_array_equal(answer.astype(array.dtype), array)
