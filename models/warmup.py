"""Requests that TensorFlow Serving sends itself before a version answers others."""

from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt
import tensorflow as tf

from proto.tensorflow.serving.model_pb2 import ModelSpec
from proto.tensorflow.serving.predict_pb2 import PredictRequest
from proto.tensorflow.serving.prediction_log_pb2 import PredictionLog, PredictLog
from proto.tensors import to_tensor_proto

# TensorFlow Serving refuses a version that has more.
MAX_RECORDS: Final = 1000

Inputs = Mapping[str, npt.NDArray[Any]]


def write_warmup_requests(
    path: Path, *, model_name: str, requests: Iterable[tuple[str, Inputs]]
) -> int:
    """Write a warm-up file: TFRecords of `PredictionLog`, one per request.

    Equal requests give equal files.

    Args:
        path: The file; its directory is made, and an older file replaced.
        model_name: What the requests call the model.
        requests: Signature names with their inputs, at most `MAX_RECORDS`; arrays as
            `proto.tensors.to_tensor_proto` takes them.

    Returns:
        The number of records.

    Raises:
        ValueError: There are more than `MAX_RECORDS` requests; nothing is written.
        TypeError: An array has no tensor form; nothing is written.
    """
    records = [
        _record(model_name, signature, inputs)
        for signature, inputs in islice(requests, MAX_RECORDS + 1)
    ]
    if len(records) > MAX_RECORDS:
        raise ValueError(
            f"TensorFlow Serving reads at most {MAX_RECORDS} warm-up records"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    return len(records)


def _record(model_name: str, signature: str, inputs: Inputs) -> bytes:
    request = PredictRequest(
        model_spec=ModelSpec(name=model_name, signature_name=signature),
        inputs={name: to_tensor_proto(array) for name, array in inputs.items()},
    )
    log = PredictionLog(predict_log=PredictLog(request=request))
    return log.SerializeToString(deterministic=True)
