"""What is sent for an image over each protocol: the file, its pixels, or numbers."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final

import numpy as np
from PIL import Image

from loadtest.harness.client import Request
from loadtest.harness.image_requests import JSON_HEADERS, raw
from loadtest.harness.workloads import DIGIT_SHAPE
from proto.blockserve.v1.image_classifier_pb2 import (
    ClassifyRequest,
    ClassifyStreamRequest,
)
from proto.inference.infer_pb2 import ModelInferRequest
from proto.tensorflow.serving.model_pb2 import ModelSpec
from proto.tensorflow.serving.predict_pb2 import PredictRequest
from proto.tensors import to_tensor_proto

INPUT: Final = "images"


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Who is asked, and the shape `(height, width, channels)` of its images."""

    name: str
    shape: tuple[int, int, int]

    @property
    def infer_path(self) -> str:
        """Where the Open Inference Protocol has it."""
        return f"/v2/models/{self.name}/infer"


DEMO: Final = Model(name="inception", shape=(*DIGIT_SHAPE, 1))


def pixels(image: bytes, model: Model = DEMO) -> Any:
    """A batch of one, in the model's size: `uint8[1, height, width, channels]`."""
    height, width, channels = model.shape
    read = Image.open(BytesIO(image)).convert("L" if channels == 1 else "RGB")
    if read.size != (width, height):
        read = read.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(read).reshape(1, *model.shape)


def image_file(image: bytes, model: Model = DEMO) -> Request:
    """The JPEG itself, to the gateway's own `/classify`."""
    return raw(f"/models/{model.name}/classify")(image)


def tf_serving(image: bytes, model: Model = DEMO) -> Request:
    """Numbers in rows, to TensorFlow Serving's REST API."""
    document = {"instances": pixels(image, model).tolist()}
    path = f"/v1/models/{model.name}:predict"
    return Request(path, JSON_HEADERS, json.dumps(document).encode())


def open_inference(image: bytes, model: Model = DEMO) -> Request:
    """Numbers in a flat list, to the Open Inference Protocol's REST API."""
    values = pixels(image, model)
    tensor = {"name": INPUT, "datatype": "UINT8", "shape": values.shape}
    document = {"inputs": [{**tensor, "data": values.ravel().tolist()}]}
    return Request(model.infer_path, JSON_HEADERS, json.dumps(document).encode())


def open_inference_binary(image: bytes, model: Model = DEMO) -> Request:
    """Bytes behind the JSON, to the same; the outputs come so too."""
    values = pixels(image, model)
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
    return Request(model.infer_path, headers, text + content)


def predict(image: bytes, model: Model = DEMO) -> bytes:
    """Bytes in a `PredictRequest` of TensorFlow Serving."""
    return PredictRequest(
        model_spec=ModelSpec(name=model.name),
        inputs={INPUT: to_tensor_proto(pixels(image, model))},
    ).SerializeToString()


def model_infer(image: bytes, model: Model = DEMO) -> bytes:
    """Bytes in a `ModelInferRequest` of the Open Inference Protocol."""
    values = pixels(image, model)
    return _raw_infer(model, "UINT8", values.shape, values.tobytes())


def model_infer_file(image: bytes, model: Model = DEMO) -> bytes:
    """A JPEG in the same."""
    content = len(image).to_bytes(4, "little") + image
    return _raw_infer(model, "BYTES", (1,), content)


def _raw_infer(
    model: Model, datatype: str, shape: Sequence[int], content: bytes
) -> bytes:
    tensor = ModelInferRequest.InferInputTensor(
        name=INPUT, datatype=datatype, shape=shape
    )
    return ModelInferRequest(
        model_name=model.name, inputs=[tensor], raw_input_contents=[content]
    ).SerializeToString()


def classify(image: bytes, model: Model = DEMO) -> bytes:
    """A JPEG in a `ClassifyRequest` of the gateway's own."""
    return ClassifyRequest(model=model.name, images=[image]).SerializeToString()


def classify_in_stream(image: bytes) -> bytes:
    """A JPEG in a `ClassifyStreamRequest`, without the id."""
    request = ClassifyRequest(model=DEMO.name, images=[image])
    return ClassifyStreamRequest(request=request).SerializeToString()
