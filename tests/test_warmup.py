from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf
from tensorflow_serving.apis.predict_pb2 import PredictRequest
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

from models.warmup import MAX_RECORDS, write_warmup_requests

Inputs = dict[str, npt.NDArray[Any]]


def _images(batch: int) -> Inputs:
    rng = np.random.default_rng(batch)
    return {"images": rng.integers(0, 256, (batch, 4, 4, 1), dtype=np.uint8)}


def _read(path: Path) -> list[PredictRequest]:
    """Read a file as TensorFlow Serving does."""
    records = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    logs = [PredictionLog.FromString(record) for record in records]
    assert all(log.WhichOneof("log_type") == "predict_log" for log in logs)
    return [log.predict_log.request for log in logs]


def test_tensorflow_reads_the_requests_in_their_order(tmp_path: Path) -> None:
    """Each record is a prediction with the arrays that were given."""
    path = tmp_path / "requests"
    given = [_images(batch) for batch in (1, 2, 4)]
    written = write_warmup_requests(
        path, model_name="digits", requests=[("serving_default", i) for i in given]
    )
    requests = _read(path)
    assert written == len(requests) == 3
    for request, inputs in zip(requests, given, strict=True):
        assert request.model_spec.name == "digits"
        assert request.model_spec.signature_name == "serving_default"
        assert not request.model_spec.HasField("version")
        assert request.inputs.keys() == inputs.keys()
        array = tf.make_ndarray(request.inputs["images"])
        assert array.dtype == np.uint8
        np.testing.assert_array_equal(array, inputs["images"])


def test_each_request_has_its_own_signature_and_inputs(tmp_path: Path) -> None:
    """Encoded images and several inputs are possible."""
    path = tmp_path / "requests"
    pair: Inputs = {
        "left": np.ones((1, 2), np.float32),
        "right": np.zeros((1, 3), np.int64),
    }
    encoded: Inputs = {"images": np.array([b"\x89PNG\0"], object)}
    write_warmup_requests(
        path, model_name="m", requests=[("pair", pair), ("serving_bytes", encoded)]
    )
    first, second = _read(path)
    assert first.model_spec.signature_name == "pair"
    assert sorted(first.inputs) == ["left", "right"]
    assert tf.make_ndarray(first.inputs["right"]).dtype == np.int64
    assert second.model_spec.signature_name == "serving_bytes"
    assert tf.make_ndarray(second.inputs["images"]).tolist() == [b"\x89PNG\0"]


def test_equal_requests_give_equal_files(tmp_path: Path) -> None:
    """Whatever order the inputs of a request come in."""
    one, two = tmp_path / "one", tmp_path / "two"
    inputs = {name: np.zeros(2, np.uint8) for name in "abcdefgh"}
    backwards = dict(reversed(inputs.items()))
    write_warmup_requests(one, model_name="m", requests=[("s", inputs)])
    write_warmup_requests(two, model_name="m", requests=[("s", backwards)])
    assert one.read_bytes() == two.read_bytes()


def test_the_directory_is_made_and_an_older_file_replaced(tmp_path: Path) -> None:
    """Writing twice leaves one request."""
    path = tmp_path / "assets.extra" / "requests"
    for _ in range(2):
        write_warmup_requests(path, model_name="m", requests=[("s", _images(1))])
    assert len(_read(path)) == 1


def test_no_requests_make_an_empty_file(tmp_path: Path) -> None:
    """TensorFlow Serving takes it."""
    path = tmp_path / "requests"
    assert write_warmup_requests(path, model_name="m", requests=[]) == 0
    assert _read(path) == []


def test_as_many_records_as_tensorflow_serving_reads(tmp_path: Path) -> None:
    """The limit itself is allowed."""
    path = tmp_path / "requests"
    requests = repeat(("s", _images(1)), MAX_RECORDS)
    assert write_warmup_requests(path, model_name="m", requests=requests) == 1000
    assert len(_read(path)) == 1000


def test_more_records_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    """Even when they never end."""
    path = tmp_path / "requests"
    with pytest.raises(ValueError, match="at most 1000 warm-up records"):
        write_warmup_requests(path, model_name="m", requests=repeat(("s", _images(1))))
    assert not path.exists()


def test_an_array_without_a_tensor_form_leaves_no_file(tmp_path: Path) -> None:
    """A half-written file would fail the whole version."""
    path = tmp_path / "requests"
    bad = {"images": np.zeros(1, "M8[s]")}
    with pytest.raises(TypeError):
        write_warmup_requests(
            path, model_name="m", requests=[("s", _images(1)), ("s", bad)]
        )
    assert not path.exists()
