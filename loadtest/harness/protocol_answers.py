"""What an answer over each protocol says: the most probable class of the image."""

import json
from typing import Any, Final

import numpy as np
import orjson

from proto.blockserve.v1.image_classifier_pb2 import ClassifyResponse
from proto.inference.infer_pb2 import ModelInferResponse
from proto.tensorflow.serving.predict_pb2 import PredictResponse
from proto.tensors import from_tensor_proto

OUTPUT: Final = "probabilities"
FLOAT32: Final = np.dtype("<f4")
_JSON: Final = json.JSONDecoder()


def of_predictions(answer: bytes) -> int:
    """Of the gateway's own answer over HTTP."""
    index: int = orjson.loads(answer)["results"][0]["predictions"][0]["index"]
    return index


def of_tf_serving(answer: bytes) -> int:
    """Of rows, from TensorFlow Serving's REST API."""
    return _largest(orjson.loads(answer)["predictions"][0])


def of_open_inference(answer: bytes) -> int:
    """Of a flat list, from the Open Inference Protocol's REST API."""
    return _largest(orjson.loads(answer)["outputs"][0]["data"])


def of_open_inference_binary(answer: bytes) -> int:
    """Of bytes behind the JSON, from the same."""
    document, end = _JSON.raw_decode(answer.decode("latin-1"))
    size = document["outputs"][0]["parameters"]["binary_data_size"]
    return _of_floats(answer[end : end + size])


def of_predict(answer: bytes) -> int:
    """Of a `PredictResponse` of TensorFlow Serving."""
    outputs = PredictResponse.FromString(answer).outputs
    return _largest(from_tensor_proto(outputs[OUTPUT]))


def of_model_infer(answer: bytes) -> int:
    """Of a `ModelInferResponse` of the Open Inference Protocol."""
    return _of_floats(ModelInferResponse.FromString(answer).raw_output_contents[0])


def of_classify(answer: bytes) -> int:
    """Of a `ClassifyResponse` of the gateway's own."""
    return of_response(ClassifyResponse.FromString(answer))


def of_response(answer: ClassifyResponse) -> int:
    """Of the same, when it has been read."""
    return answer.results[0].predictions[0].index


def _largest(values: Any) -> int:
    return int(np.argmax(values))


def _of_floats(content: bytes) -> int:
    return _largest(np.frombuffer(content, FLOAT32))
