"""Requests as the guides of TensorFlow Serving and KServe show them, with curl."""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.support import Served, serving


@pytest.fixture(scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    repository = tmp_path_factory.mktemp("repository")
    _save(
        repository / "half_plus_two" / "1",
        lambda x: {"y": x * 0.5 + 2.0},
        tf.TensorSpec([None], tf.float32, "x"),
    )
    _save(
        repository / "sensors" / "1",
        lambda tag, signal, sensor: {
            "tags": tag,
            "sums": tf.reduce_sum(signal, 1) + tf.reduce_sum(sensor, [1, 2]),
        },
        tf.TensorSpec([None], tf.string, "tag"),
        tf.TensorSpec([None, 5], tf.int64, "signal"),
        tf.TensorSpec([None, 2, 2], tf.int64, "sensor"),
    )
    # The guide has a hyphen in these names, which TensorFlow does not allow.
    weights = tf.constant(np.eye(4, 3), tf.float32)
    _save(
        repository / "sklearn-iris" / "1",
        lambda x: {"output_0": tf.argmax(x @ weights, 1)},
        tf.TensorSpec([None, 4], tf.float32, "input_0"),
    )
    async with serving(repository, engine="tensorflow") as running:
        yield running


def _save(directory: Path, compute: Any, *inputs: Any) -> None:
    model = tf.Module()
    function = tf.function(compute, input_signature=inputs)
    model.function = function
    tf.saved_model.save(model, str(directory), {"serving_default": function})


async def curl(served: Served, path: str, *arguments: str) -> str:
    """What curl prints, without another word about the content type."""
    url = f"http://127.0.0.1:{served.running.http_port}{path}"
    done = await asyncio.to_thread(
        subprocess.run,
        ["curl", "--silent", "--show-error", *arguments, url],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


async def test_half_plus_two_is_answered_as_in_the_guide(served: Served) -> None:
    body = '{"instances": [1.0, 2.0, 5.0]}'
    answer = await curl(
        served, "/v1/models/half_plus_two:predict", "-d", body, "-X", "POST"
    )
    assert json.loads(answer) == {"predictions": [2.5, 3.0, 4.5]}


async def test_the_status_is_told_as_in_the_guide(served: Served) -> None:
    answer = json.loads(await curl(served, "/v1/models/half_plus_two"))
    assert answer == {
        "model_version_status": [
            {
                "version": "1",
                "state": "AVAILABLE",
                "status": {"error_code": "OK", "error_message": ""},
            }
        ]
    }


async def test_named_inputs_come_row_by_row(served: Served) -> None:
    body = """{
     "instances": [
       {"tag": "foo", "signal": [1, 2, 3, 4, 5], "sensor": [[1, 2], [3, 4]]},
       {"tag": "bar", "signal": [3, 4, 1, 2, 5], "sensor": [[4, 5], [6, 8]]}
     ]
    }"""
    answer = json.loads(await curl(served, "/v1/models/sensors:predict", "-d", body))
    assert answer == {
        "predictions": [{"tags": "foo", "sums": 25}, {"tags": "bar", "sums": 38}]
    }


async def test_named_inputs_come_column_by_column(served: Served) -> None:
    body = """{
     "inputs": {
       "tag": ["foo", "bar"],
       "signal": [[1, 2, 3, 4, 5], [3, 4, 1, 2, 5]],
       "sensor": [[[1, 2], [3, 4]], [[4, 5], [6, 8]]]
     }
    }"""
    answer = json.loads(await curl(served, "/v1/models/sensors:predict", "-d", body))
    assert answer == {"outputs": {"tags": ["foo", "bar"], "sums": [25, 38]}}


async def test_irises_are_told_apart_as_in_kserve_s_guide(
    served: Served, tmp_path: Path
) -> None:
    file = tmp_path / "iris-input-v2.json"
    file.write_text(
        """{
      "inputs": [
        {
          "name": "input_0",
          "shape": [2, 4],
          "datatype": "FP32",
          "data": [[6.8, 2.8, 4.8, 1.4], [6.0, 3.4, 4.5, 1.6]]
        }
      ]
    }"""
    )
    answer = json.loads(
        await curl(
            served,
            "/v2/models/sklearn-iris/infer",
            *("-H", "Host: sklearn-iris.kserve-test.example.com"),
            *("-H", "Content-Type: application/json"),
            *("-d", f"@{file}"),
        )
    )
    assert answer == {
        "model_name": "sklearn-iris",
        "model_version": "1",
        "outputs": [
            {"name": "output_0", "datatype": "INT64", "shape": [2], "data": [0, 0]}
        ],
    }


async def test_a_request_of_the_protocol_s_document_is_answered(served: Served) -> None:
    document = {
        "id": "42",
        "inputs": [
            {"name": "tag", "shape": [2], "datatype": "BYTES", "data": ["foo", "bar"]},
            {
                "name": "signal",
                "shape": [2, 5],
                "datatype": "INT64",
                "data": [1, 2, 3, 4, 5, 3, 4, 1, 2, 5],
            },
            {
                "name": "sensor",
                "shape": [2, 2, 2],
                "datatype": "INT64",
                "data": [1, 2, 3, 4, 4, 5, 6, 8],
            },
        ],
        "outputs": [{"name": "sums"}],
    }
    path = "/v2/models/sensors/infer"
    answer = json.loads(await curl(served, path, "-d", json.dumps(document)))
    assert answer == {
        "model_name": "sensors",
        "model_version": "1",
        "id": "42",
        "outputs": [
            {"name": "sums", "datatype": "INT64", "shape": [2], "data": [25, 38]}
        ],
    }
