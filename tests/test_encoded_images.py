"""Images as files, over protocols that are made for tensors."""

import base64
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from models.card import SAMPLE_FILE
from tests.support import only

PREDICT = "/v1/models/inception:predict"


@pytest.fixture(scope="module")
def sample(version_directory: Path) -> bytes:
    """A digit as a file."""
    return (version_directory / SAMPLE_FILE).read_bytes()


@pytest.fixture(scope="module")
def expected(gateway_url: str, sample: bytes) -> list[float]:
    """What the digit's classes are, by index, as `/classify` says."""
    answer = httpx.post(f"{gateway_url}/classify?top_k=10", content=sample).json()
    found = only(answer["results"])["predictions"]
    return [p["probability"] for p in sorted(found, key=lambda p: p["index"])]


def predicted(gateway_url: str, **document: Any) -> httpx.Response:
    return httpx.post(gateway_url + PREDICT, json=document)


def test_an_engine_that_decodes_no_images_serves_them_over_rest(
    gateway_url: str, sample: bytes, expected: list[float]
) -> None:
    row = {"b64": base64.b64encode(sample).decode()}
    document = {"signature_name": "serving_bytes", "instances": [row, row]}
    answer = predicted(gateway_url, **document).json()
    np.testing.assert_allclose(answer["predictions"], [expected] * 2, atol=1e-6)


def test_an_engine_that_decodes_no_images_serves_them_over_grpc(
    grpc_address: str, sample: bytes, expected: list[float]
) -> None:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "inception"
    request.model_spec.signature_name = "serving_bytes"
    request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto([sample]))
    with grpc.insecure_channel(grpc_address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        answer = stub.Predict(request)
    assert answer.model_spec.signature_name == "serving_bytes"
    found = tf.make_ndarray(answer.outputs["probabilities"])
    np.testing.assert_allclose(found, [expected], atol=1e-6)


def test_the_metadata_lists_the_signature_of_encoded_images(gateway_url: str) -> None:
    answer = httpx.get(f"{gateway_url}/v1/models/inception/metadata").json()
    signatures = answer["metadata"]["signature_def"]["signature_def"]
    assert signatures.keys() == {"serving_default", "serving_bytes"}
    assert signatures["serving_bytes"]["inputs"]["image_bytes"]["dtype"] == "DT_STRING"


def test_bytes_that_are_no_image_are_the_client_s_mistake(gateway_url: str) -> None:
    row = {"b64": base64.b64encode(b"no image").decode()}
    answer = predicted(gateway_url, signature_name="serving_bytes", instances=[row])
    assert answer.status_code == 400
    assert "image" in answer.json()["error"]


def test_images_come_as_a_list_and_not_as_a_grid(
    gateway_url: str, sample: bytes
) -> None:
    row = [{"b64": base64.b64encode(sample).decode()}] * 2
    answer = predicted(gateway_url, signature_name="serving_bytes", instances=[row])
    assert answer.status_code == 400
    assert answer.json()["error"] == (
        "expected encoded images as image_bytes string[batch], got string[1,2]"
    )


def test_a_number_is_no_image(gateway_url: str) -> None:
    answer = predicted(gateway_url, signature_name="serving_bytes", instances=[7])
    assert answer.status_code == 400
    assert "is not of expected type: string" in answer.json()["error"]
