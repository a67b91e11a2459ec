"""What is sent for an image over each protocol: the file, its pixels, or numbers."""

import json
from collections.abc import Sequence
from io import BytesIO
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from PIL import Image

from loadtest.client import Request
from loadtest.overhead import MODEL
from proto.blockserve.v1.image_classifier_pb2 import (
    ClassifyRequest,
    ClassifyStreamRequest,
)
from proto.inference.infer_pb2 import ModelInferRequest
from proto.tensorflow.serving.model_pb2 import ModelSpec
from proto.tensorflow.serving.predict_pb2 import PredictRequest
from proto.tensors import to_tensor_proto

INPUT: Final = "images"
JSON: Final = MappingProxyType({"content-type": "application/json"})
OPEN_INFERENCE: Final = f"/v2/models/{MODEL}/infer"


def pixels(image: bytes) -> Any:
    """A batch of one: `uint8[1, 28, 28, 1]`."""
    return np.asarray(Image.open(BytesIO(image)))[None, :, :, None]


def tf_serving(image: bytes) -> Request:
    """Numbers in rows, to TensorFlow Serving's REST API."""
    document = {"instances": pixels(image).tolist()}
    return Request(f"/v1/models/{MODEL}:predict", JSON, json.dumps(document).encode())


def open_inference(image: bytes) -> Request:
    """Numbers in a flat list, to the Open Inference Protocol's REST API."""
    values = pixels(image)
    tensor = {"name": INPUT, "datatype": "UINT8", "shape": values.shape}
    document = {"inputs": [{**tensor, "data": values.ravel().tolist()}]}
    return Request(OPEN_INFERENCE, JSON, json.dumps(document).encode())


def open_inference_binary(image: bytes) -> Request:
    """Bytes behind the JSON, to the same; the outputs come so too."""
    values = pixels(image)
    content = values.tobytes()
    tensor = {"name": INPUT, "datatype": "UINT8", "shape": values.shape}
    document = {
        "inputs": [{**tensor, "parameters": {"binary_data_size": len(content)}}],
        "parameters": {"binary_data_output": True},
    }
    text = json.dumps(document).encode()
    headers = {
        "content-type": "application/octet-stream",
        "inference-header-content-length": str(len(text)),
    }
    return Request(OPEN_INFERENCE, headers, text + content)


def predict(image: bytes) -> bytes:
    """Bytes in a `PredictRequest` of TensorFlow Serving."""
    return PredictRequest(
        model_spec=ModelSpec(name=MODEL),
        inputs={INPUT: to_tensor_proto(pixels(image))},
    ).SerializeToString()


def model_infer(image: bytes) -> bytes:
    """Bytes in a `ModelInferRequest` of the Open Inference Protocol."""
    values = pixels(image)
    return _raw_infer("UINT8", values.shape, values.tobytes())


def model_infer_file(image: bytes) -> bytes:
    """A JPEG in the same."""
    return _raw_infer("BYTES", (1,), len(image).to_bytes(4, "little") + image)


def _raw_infer(datatype: str, shape: Sequence[int], content: bytes) -> bytes:
    tensor = ModelInferRequest.InferInputTensor(
        name=INPUT, datatype=datatype, shape=shape
    )
    return ModelInferRequest(
        model_name=MODEL, inputs=[tensor], raw_input_contents=[content]
    ).SerializeToString()


def classify(image: bytes) -> bytes:
    """A JPEG in a `ClassifyRequest` of the gateway's own."""
    return ClassifyRequest(model=MODEL, images=[image]).SerializeToString()


def classify_in_stream(image: bytes) -> bytes:
    """A JPEG in a `ClassifyStreamRequest`, without the id."""
    request = ClassifyRequest(model=MODEL, images=[image])
    return ClassifyStreamRequest(request=request).SerializeToString()
