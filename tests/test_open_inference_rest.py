"""The Open Inference Protocol's REST API, as its documents have it."""

import asyncio
import base64
import gzip
import json
import threading
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.engines.stub import StubEngine
from service.http.open_inference import answers, requests
from service.open_inference import inference
from service.repository import Target
from service.telemetry.statistics import VersionStatistics
from tests.support import LABELS, Served, image_of_class, only, serving, stub_version

INFER = "/v2/models/stub/infer"
HEADER = "Inference-Header-Content-Length"


@pytest.fixture(scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    root = tmp_path_factory.mktemp("repository")
    stub_version(root, version=3)
    async with serving(root, labels={"stub": {"stable": 3}}) as running:
        yield running


def pixels_of_class(*classes: int) -> Any:
    pixels = np.zeros((len(classes), 4, 4, 1), np.uint8)
    pixels[:, 0, 0, 0] = classes
    return pixels


def tensor(array: Any, datatype: str = "UINT8", **changes: Any) -> dict[str, Any]:
    data = array.ravel().tolist()
    shape = list(array.shape)
    return {
        "name": "images",
        "datatype": datatype,
        "shape": shape,
        "data": data,
        **changes,
    }


def request_of(*classes: int, **changes: Any) -> dict[str, Any]:
    return {"inputs": [tensor(pixels_of_class(*classes))], **changes}


async def inferred(served: Served, document: Any, path: str = INFER) -> Any:
    answer = await served.client.post(path, json=document)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def refused(served: Served, document: Any, status: int = 400) -> str:
    answer = await served.client.post(INFER, json=document)
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert body.keys() == {"error"}
    error: str = body["error"]
    return error


def classes_of(answer: Any) -> list[int]:
    output = only(answer["outputs"])
    data = np.array(output["data"]).reshape(output["shape"])
    found: list[int] = data.argmax(axis=1).tolist()
    return found


async def binary(
    served: Served, document: Any, behind: bytes = b"", **headers: str
) -> httpx.Response:
    text = json.dumps(document).encode()
    return await served.client.post(
        INFER, content=text + behind, headers={HEADER: str(len(text)), **headers}
    )


async def test_flat_values_are_answered_with_flat_values(served: Served) -> None:
    answer = await inferred(served, request_of(2, 7, id="one"))
    assert answer["model_name"] == "stub"
    assert answer["model_version"] == "3"
    assert answer["id"] == "one"
    output = only(answer["outputs"])
    assert output["name"] == "probabilities"
    assert output["datatype"] == "FP32"
    assert output["shape"] == [2, 10]
    assert len(output["data"]) == 20
    assert classes_of(answer) == [2, 7]


async def test_without_an_id_the_answer_has_none(served: Served) -> None:
    assert "id" not in await inferred(served, request_of(1))


async def test_values_may_be_nested_as_the_shape_is(served: Served) -> None:
    pixels = pixels_of_class(4)
    nested = tensor(pixels, data=pixels.tolist())
    assert classes_of(await inferred(served, {"inputs": [nested]})) == [4]


@pytest.mark.parametrize("version", ["3", "stable"])
async def test_a_version_is_named_by_number_or_label(
    served: Served, version: str
) -> None:
    path = f"/v2/models/stub/versions/{version}/infer"
    assert classes_of(await inferred(served, request_of(5), path)) == [5]


async def test_an_output_can_be_asked_for_by_name(served: Served) -> None:
    document = request_of(5, outputs=[{"name": "probabilities"}])
    assert classes_of(await inferred(served, document)) == [5]


async def test_classes_come_with_value_index_and_label(served: Served) -> None:
    wanted = {"name": "probabilities", "parameters": {"classification": 2}}
    answer = await inferred(served, request_of(5, 0, outputs=[wanted]))
    output = only(answer["outputs"])
    assert output["datatype"] == "BYTES"
    assert output["shape"] == [2, 2]
    assert output["data"] == [
        *("0.900000:5:f", "0.011111:0:a"),
        *("0.900000:0:a", "0.011111:1:b"),
    ]


async def test_more_classes_than_there_are_means_all(served: Served) -> None:
    wanted = {"name": "probabilities", "parameters": {"classification": 99}}
    answer = await inferred(served, request_of(5, outputs=[wanted]))
    assert only(answer["outputs"])["shape"] == [1, len(LABELS)]


async def test_bytes_travel_behind_the_json_both_ways(served: Served) -> None:
    pixels = pixels_of_class(2, 8)
    size = {"binary_data_size": pixels.nbytes}
    shown = {"name": "images", "datatype": "UINT8", "shape": list(pixels.shape)}
    document = {
        "inputs": [{**shown, "parameters": size}],
        "outputs": [{"name": "probabilities", "parameters": {"binary_data": True}}],
    }
    answer = await binary(served, document, pixels.tobytes())
    assert answer.headers["content-type"] == "application/octet-stream"
    length = int(answer.headers[HEADER])
    output = only(json.loads(answer.content[:length])["outputs"])
    assert "data" not in output
    behind = answer.content[length:]
    assert output["parameters"] == {"binary_data_size": len(behind)}
    values = np.frombuffer(behind, "<f4").reshape(output["shape"])
    assert values.argmax(axis=1).tolist() == [2, 8]


async def test_all_outputs_are_bytes_where_the_request_says_so(served: Served) -> None:
    document = request_of(3, parameters={"binary_data_output": True})
    answer = await served.client.post(INFER, json=document)
    length = int(answer.headers[HEADER])
    values = np.frombuffer(answer.content[length:], "<f4")
    assert values.argmax() == 3


async def test_an_output_may_differ_from_the_rest(served: Served) -> None:
    wanted = {"name": "probabilities", "parameters": {"binary_data": False}}
    document = request_of(3, parameters={"binary_data_output": True}, outputs=[wanted])
    answer = await served.client.post(INFER, json=document)
    assert HEADER not in answer.headers
    assert classes_of(answer.json()) == [3]


async def test_a_body_may_be_nothing_but_the_values(served: Served) -> None:
    pixels = pixels_of_class(2, 8)
    answer = await served.client.post(
        INFER, content=pixels.tobytes(), headers={HEADER: "0"}
    )
    length = int(answer.headers[HEADER])
    assert only(json.loads(answer.content[:length])["outputs"])["shape"] == [2, 10]


async def test_an_encoded_image_may_stand_for_its_pixels(served: Served) -> None:
    """In bytes behind the JSON."""
    image = image_of_class(6)
    content = len(image).to_bytes(4, "little") + image
    shown = {"name": "images", "datatype": "BYTES", "shape": [1]}
    size = {"binary_data_size": len(content)}
    answer = await binary(served, {"inputs": [{**shown, "parameters": size}]}, content)
    assert classes_of(answer.json()) == [6]


async def test_an_encoded_image_may_be_base64(served: Served) -> None:
    data = [base64.b64encode(image_of_class(index)).decode() for index in (6, 1)]
    image = {
        "name": "images",
        "datatype": "BYTES",
        "shape": [2, 1],
        "data": data,
        "parameters": {"content_type": "base64"},
    }
    assert classes_of(await inferred(served, {"inputs": [image]})) == [6, 1]


@pytest.mark.parametrize(
    ("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
async def test_a_compressed_body_is_read(
    served: Served, encoding: str, compress: Any
) -> None:
    answer = await served.client.post(
        INFER,
        content=compress(json.dumps(request_of(9)).encode()),
        headers={"content-encoding": encoding},
    )
    assert classes_of(answer.json()) == [9]


@pytest.mark.parametrize(
    ("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
async def test_half_a_compressed_body_is_refused(
    served: Served, encoding: str, compress: Any
) -> None:
    whole = compress(pixels_of_class(2, 8).tobytes())
    for length in (len(whole) - 1, len(whole) // 2):
        answer = await served.client.post(
            INFER,
            content=whole[:length],
            headers={"content-encoding": encoding, HEADER: "0"},
        )
        assert answer.status_code == 400
        assert f"the body ends before its {encoding} does" in answer.json()["error"]


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br"])
async def test_a_body_that_is_not_compressed_as_said_is_refused(
    served: Served, encoding: str
) -> None:
    answer = await served.client.post(
        INFER,
        content=json.dumps(request_of(9)).encode(),
        headers={"content-encoding": encoding},
    )
    assert answer.status_code == 400
    assert "gzip" in answer.json()["error"] or "deflate" in answer.json()["error"]


async def test_a_body_is_unpacked_in_a_thread(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short one may become as long as the limit; the loop is free meanwhile."""
    threads: list[threading.Thread] = []
    make = zlib.decompressobj

    def watched(bits: int) -> Any:
        threads.append(threading.current_thread())
        return make(bits)

    monkeypatch.setattr(zlib, "decompressobj", watched)
    answer = await served.client.post(
        INFER,
        content=gzip.compress(json.dumps(request_of(9)).encode()),
        headers={"content-encoding": "gzip"},
    )
    assert classes_of(answer.json()) == [9]
    assert only(threads) is not threading.current_thread()


NOT_UINT8 = (
    "images: data: expected a list of UINT8, nested evenly if at all, of integers from "
    "0 to 255"
)
WRONG: dict[str, tuple[Any, str]] = {
    "no inputs": ({}, "missing required field `inputs`"),
    "inputs of another kind": ({"inputs": {}}, r"Expected `array`, got `object`"),
    "a shape of another kind": (
        {"inputs": [tensor(pixels_of_class(1), shape=[1, -4])]},
        r"Expected `int` >= 0 - at `\$.inputs\[0\].shape\[1\]`",
    ),
    "no such input": (
        {"inputs": [tensor(pixels_of_class(1), name="pictures")]},
        "takes the inputs 'images'; got 'pictures'",
    ),
    "an input twice": (
        {"inputs": [tensor(pixels_of_class(1))] * 2},
        "the input 'images' comes twice",
    ),
    "more inputs than models have": (
        {"inputs": [tensor(pixels_of_class(1), name=str(n)) for n in range(1001)]},
        "expected at most 1000 inputs, got 1001",
    ),
    "more outputs than models have": (
        request_of(1, outputs=[{"name": str(number)} for number in range(1001)]),
        "expected at most 1000 outputs, got 1001",
    ),
    "no such datatype": (
        {"inputs": [tensor(pixels_of_class(1), "INT4")]},
        "images: there is no datatype 'INT4'; there is BOOL, UINT8",
    ),
    "another datatype": (
        {"inputs": [tensor(pixels_of_class(1), "FP32")]},
        r"expected images uint8\[batch,4,4,1\], got float32\[1,4,4,1\]",
    ),
    "another shape": (
        {"inputs": [tensor(pixels_of_class(1), shape=[1, 16])]},
        r"expected images uint8\[batch,4,4,1\], got uint8\[1,16\]",
    ),
    "more dimensions than arrays have": (
        {"inputs": [tensor(pixels_of_class(1), shape=[1] * 61 + [4, 4, 1, 1])]},
        "images: expected at most 64 dimensions, got 65",
    ),
    "sizes whose product nobody would read": (
        {"inputs": [tensor(pixels_of_class(1), shape=[2**63 - 1] * 300)]},
        "images: expected at most 64 dimensions, got 300",
    ),
    "a size beyond 63 bits": (
        {"inputs": [tensor(pixels_of_class(1), shape=[2**63])]},
        r"Expected `int` <= 9223372036854775807 - at `\$.inputs\[0\].shape\[0\]`",
    ),
    "a size beyond all memory beside a 0": (
        {
            "inputs": [
                tensor(pixels_of_class(1), "BYTES", shape=[0, 2**63 - 1], data=[])
            ]
        },
        r"images: shape \[0, 9223372036854775807\]: array is too big",
    ),
    "too few values": (
        {"inputs": [tensor(pixels_of_class(1), data=[1, 2])]},
        r"images: UINT8 of shape \[1, 4, 4, 1\] has 16 elements; got 2",
    ),
    "values that do not fit": (
        {"inputs": [tensor(pixels_of_class(1), data=[300] + [0] * 15)]},
        NOT_UINT8,
    ),
    "a negative value": (
        {"inputs": [tensor(pixels_of_class(1), data=[-1] + [0] * 15)]},
        NOT_UINT8,
    ),
    "fractions": (
        {"inputs": [tensor(pixels_of_class(1), data=[1.5] + [0] * 15)]},
        NOT_UINT8,
    ),
    "a boolean": (
        {"inputs": [tensor(pixels_of_class(1), data=[True] + [0] * 15)]},
        NOT_UINT8,
    ),
    "strings": (
        {"inputs": [tensor(pixels_of_class(1), data=["1"] * 16)]},
        NOT_UINT8,
    ),
    "ragged lists": (
        {"inputs": [tensor(pixels_of_class(1), data=[[1], [1, 2]])]},
        NOT_UINT8,
    ),
    "no values": (
        {"inputs": [tensor(pixels_of_class(1), data=None)]},
        "images: has neither data nor binary_data_size",
    ),
    "a value in place of a list": (
        {"inputs": [tensor(pixels_of_class(1), data=7)]},
        "images: data: expected a list",
    ),
    "no rows": (
        {"inputs": [tensor(np.zeros((0, 4, 4, 1), np.uint8))]},
        "expected at least one row",
    ),
    "text that is no image": (
        {"inputs": [tensor(np.array(["a"]), "BYTES")]},
        "image",
    ),
    "text that is not base64": (
        {
            "inputs": [
                tensor(np.array(["é"]), "BYTES", parameters={"content_type": "base64"})
            ]
        },
        "images: data: it is not base64",
    ),
    "a number among strings": (
        {"inputs": [tensor(np.array([7]), "BYTES")]},
        "images: data: BYTES are strings in JSON",
    ),
    "no such output": (
        request_of(1, outputs=[{"name": "logits"}]),
        "there is no output 'logits'; there is 'probabilities'",
    ),
    "an output twice": (
        request_of(1, outputs=[{"name": "probabilities"}] * 2),
        "the output 'probabilities' is asked for twice",
    ),
    "a count that is none": (
        request_of(
            1,
            outputs=[{"name": "probabilities", "parameters": {"classification": -1}}],
        ),
        "the parameter classification: expected a whole number from 0 to .*, got -1",
    ),
    "a time beyond all numbers": (
        request_of(1, parameters={"timeout": 10**400}),
        r"the parameter timeout: expected .* got 1000000000",
    ),
    "a time of thousands of digits": (
        request_of(1, parameters={"timeout": "9" * 5000}),
        r"the parameter timeout: expected .* got '9+\.\.\.9+'$",
    ),
    "shared memory": (
        {
            "inputs": [
                tensor(pixels_of_class(1), parameters={"shared_memory_region": "a"})
            ]
        },
        "images: shared memory is not offered",
    ),
    "no such signature": (
        request_of(1, parameters={"signature_name": "other"}),
        "has no signature 'other'",
    ),
    "a signature that is no name": (
        request_of(1, parameters={"signature_name": 7}),
        "the parameter signature_name: expected a string, got 7",
    ),
    "a size that is none": (
        {"inputs": [tensor(pixels_of_class(1), parameters={"binary_data_size": True})]},
        "images: binary_data_size is True; 0 bytes are left in the body",
    ),
    "neither bytes nor JSON": (
        request_of(
            1,
            outputs=[{"name": "probabilities", "parameters": {"binary_data": 1}}],
        ),
        "the parameter binary_data: expected true or false, got 1",
    ),
    "neither bytes nor JSON by default": (
        request_of(1, parameters={"binary_data_output": "yes"}),
        "the parameter binary_data_output: expected true or false, got 'yes'",
    ),
    "bytes that are not there": (
        {"inputs": [tensor(pixels_of_class(1), parameters={"binary_data_size": 16})]},
        "images: binary_data_size is 16; 0 bytes are left in the body",
    ),
}
STATUSES = {"no such signature": 404, "text that is no image": 422}


@pytest.mark.parametrize("case", WRONG)
async def test_what_is_wrong_is_said(served: Served, case: str) -> None:
    document, message = WRONG[case]
    answer = await served.client.post(INFER, json=document)
    assert answer.status_code == STATUSES.get(case, 400), answer.text
    with pytest.raises(ValueError, match=message):
        raise ValueError(answer.json()["error"])


async def test_long_lists_are_read_and_refused_as_short_ones(served: Served) -> None:
    many = pixels_of_class(*range(10)).repeat(50, axis=0)
    assert classes_of(await inferred(served, {"inputs": [tensor(many)]})) == [
        number for number in range(10) for _ in range(50)
    ]
    for wrong in (300, 1.5, True, "1", None):
        values = [*many.ravel().tolist()[:-1], wrong]
        message = await refused(served, {"inputs": [tensor(many, data=values)]})
        assert message == NOT_UINT8


@pytest.mark.parametrize("parameter", ["classification", "binary_data"])
async def test_what_is_wrong_with_an_output_is_said_before_the_model_runs(
    served: Served, parameter: str
) -> None:
    async def executions() -> int:
        answer = (await served.client.get("/v2/models/stub/stats")).json()
        count: int = only(answer["model_stats"])["execution_count"]
        return count

    before = await executions()
    wanted = {"name": "probabilities", "parameters": {parameter: "some"}}
    await refused(served, request_of(1, outputs=[wanted]))
    assert await executions() == before


async def test_what_is_not_json_is_refused(served: Served) -> None:
    answer = await served.client.post(INFER, content=b"{")
    assert answer.status_code == 400
    assert "not JSON" in answer.json()["error"]


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (b'"id": "\xff"', "the body is not JSON: 'utf-8' codec"),
        (b'"data": ["\xff"]', "images: data: str is not valid UTF-8"),
        (b'"data": ["\xed\xa0\x80"]', "images: data: str is not valid UTF-8"),
        (b'"data": [1e400]', "images: data: number is infinity"),
    ],
)
async def test_what_readers_of_json_may_skip_is_refused(
    served: Served, member: bytes, message: str
) -> None:
    body = (
        b'{"inputs": [{"name": "images", "datatype": "BYTES", "shape": [1], %b}], %b}'
    )
    members = (member, b'"id": ""') if b"data" in member else (b'"data": []', member)
    answer = await served.client.post(INFER, content=body % members)
    assert answer.status_code == 400
    assert message in answer.json()["error"]


async def test_a_body_that_is_missing_is_no_empty_batch(served: Served) -> None:
    answer = await served.client.post(INFER)
    assert answer.status_code == 400
    assert "the body is not JSON" in answer.json()["error"]


async def test_deep_nesting_is_refused(served: Served) -> None:
    deep = b'{"parameters":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b'},"inputs":[]}'
    assert (await served.client.post(INFER, content=deep)).status_code == 400
    data = b"[" * 1000 + b"]" * 1000
    text = json.dumps({"inputs": [tensor(pixels_of_class(1), data="@")]}).encode()
    answer = await served.client.post(INFER, content=text.replace(b'"@"', data))
    assert answer.status_code == 400


@pytest.mark.parametrize(
    "length", ["-1", "x", "999999", pytest.param("9" * 5000, id="digits")]
)
async def test_a_length_beyond_the_body_is_refused(served: Served, length: str) -> None:
    answer = await served.client.post(
        INFER, json=request_of(1), headers={HEADER: length}
    )
    assert answer.status_code == 400
    assert HEADER in answer.json()["error"]


async def test_more_strings_than_the_shape_has_are_refused(served: Served) -> None:
    document = {"inputs": [tensor(pixels_of_class(1), "BYTES", shape=[2])]}
    del document["inputs"][0]["data"]
    document["inputs"][0]["parameters"] = {"binary_data_size": 16}
    answer = await binary(served, document, bytes(16))
    assert answer.status_code == 400
    assert "images: 8 bytes are left behind the last of 2" in answer.json()["error"]


@pytest.mark.parametrize("rows", [1, 10_000])
async def test_many_elements_are_read_and_named_in_a_thread(
    served: Served, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event loop is free for others meanwhile; few elements are not worth it."""
    threads: dict[str, threading.Thread] = {}

    def watch(module: Any, name: str) -> None:
        watched = getattr(module, name)

        def called(*arguments: Any) -> Any:
            threads[name] = threading.current_thread()
            return watched(*arguments)

        monkeypatch.setattr(module, name, called)

    watch(requests, "from_raw")
    watch(inference, "most_probable")
    watch(answers, "to_raw")
    empty = tensor(np.zeros(rows), "BYTES", parameters={"binary_data_size": rows * 4})
    del empty["data"]
    await binary(served, {"inputs": [empty]}, bytes(rows * 4))
    wanted = {"name": "probabilities", "parameters": {"classification": 1}}
    document = {"parameters": {"binary_data_output": True}, "outputs": [wanted]}
    await binary(served, request_of(*[1] * rows, **document))
    here = threading.current_thread()
    assert [name for name, thread in threads.items() if thread is not here] == (
        [] if rows == 1 else ["from_raw", "most_probable", "to_raw"]
    )


async def test_bytes_that_belong_to_nothing_are_refused(served: Served) -> None:
    answer = await binary(served, request_of(1), b"more")
    assert answer.status_code == 400
    assert "4 bytes that belong to no input" in answer.json()["error"]


async def test_strings_that_end_early_are_refused(served: Served) -> None:
    shown = {"name": "images", "datatype": "BYTES", "shape": [1]}
    for content in (b"\x01", b"\xff\0\0\0a"):
        size = {"binary_data_size": len(content)}
        document = {"inputs": [{**shown, "parameters": size}]}
        answer = await binary(served, document, content)
        assert answer.status_code == 400
        assert "BYTES end" in answer.json()["error"]


async def test_time_is_a_parameter_in_microseconds(served: Served) -> None:
    lease = served.running.gateway.repository.lease(Target(name="stub"))
    with lease as version:
        engine = version.engine
    assert isinstance(engine, StubEngine)
    engine.gate.clear()
    try:
        document = request_of(1, parameters={"timeout": 20_000})
        assert "time ran out" in await refused(served, document, 504)
    finally:
        engine.gate.set()


async def test_a_second_priority_waits_for_the_first(served: Served) -> None:
    with served.running.gateway.repository.lease(Target(name="stub")) as version:
        engine = version.engine
    assert isinstance(engine, StubEngine)
    engine.gate.clear()

    async def ask(priority: int) -> None:
        await inferred(served, request_of(1, parameters={"priority": priority}))

    first = asyncio.create_task(ask(0))
    batcher = version.batchers["serving_default"]
    while not batcher._running:
        await asyncio.sleep(0)
    tasks = [first]
    for waiting, priority in enumerate((2, 1), start=1):
        tasks.append(asyncio.create_task(ask(priority)))
        while batcher._waiting_rows < waiting:
            await asyncio.sleep(0)
    interactive, batch = batcher._lines
    assert (interactive.waiting_rows, batch.waiting_rows) == (1, 1)
    engine.gate.set()
    await asyncio.gather(*tasks)


async def test_the_server_says_what_it_is(served: Served) -> None:
    answer = (await served.client.get("/v2")).json()
    assert answer["name"] == "blockserve"
    assert {"binary_tensor_data", "classification"} < set(answer["extensions"])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        ("/v2/models/stub/ready", {"name": "stub", "ready": True}),
        ("/v2/models/stub/versions/3/ready", {"name": "stub", "ready": True}),
    ],
)
async def test_health_is_told(served: Served, path: str, body: Any) -> None:
    answer = await served.client.get(path)
    assert (answer.status_code, answer.json()) == (200, body)


@pytest.mark.parametrize("path", ["", "/versions/3", "/versions/stable"])
async def test_a_model_says_what_it_takes(served: Served, path: str) -> None:
    answer = await served.client.get(f"/v2/models/stub{path}")
    assert answer.json() == {
        "name": "stub",
        "versions": ["3"],
        "platform": "tensorflow_savedmodel",
        "inputs": [{"name": "images", "datatype": "UINT8", "shape": [-1, 4, 4, 1]}],
        "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]}],
    }


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/other",
        "/v2/models/other/ready",
        "/v2/models/other/stats",
        "/v2/models/stub/versions/9",
        "/v2/models/stub/versions/canary/config",
        "/v2/models/stub/nothing",
        "/v2/nothing",
    ],
)
async def test_what_there_is_not_is_404(served: Served, path: str) -> None:
    answer = await served.client.get(path)
    assert answer.status_code == 404
    assert answer.json()["error"]


async def test_the_configuration_says_how_a_model_is_run(served: Served) -> None:
    answer = (await served.client.get("/v2/models/stub/config")).json()
    assert answer["backend"] == "stub"
    assert answer["max_batch_size"] >= 1
    assert answer["input"] == [
        {"name": "images", "data_type": "TYPE_UINT8", "dims": [4, 4, 1]}
    ]


async def test_statistics_count_what_was_done(tmp_path: Path) -> None:
    stub_version(tmp_path)
    async with serving(tmp_path) as served:
        before = await served.client.get("/v2/models/stub/stats")
        for classes in ((1,), (1, 2, 3), (4,)):
            await inferred(served, request_of(*classes))
        await served.client.post("/classify", content=image_of_class(1))
        await refused(served, {"inputs": [tensor(pixels_of_class(1), "INT4")]})
        after = await served.client.get("/v2/models/stats")
    assert only(before.json()["model_stats"])["inference_count"] == 0
    stats = only(after.json()["model_stats"])
    assert (stats["name"], stats["version"]) == ("stub", "1")
    assert stats["inference_count"] == 6
    assert stats["execution_count"] == 4
    counted = {kind: one["count"] for kind, one in stats["inference_stats"].items()}
    assert counted == {
        "success": 4,
        "fail": 1,
        "queue": 4,
        "compute_input": 4,
        "compute_infer": 4,
        "compute_output": 4,
        "cache_hit": 0,
        "cache_miss": 0,
    }
    assert stats["inference_stats"]["success"]["ns"] > 0
    sizes = {
        one["batch_size"]: one["compute_infer"]["count"] for one in stats["batch_stats"]
    }
    assert sizes == {1: 3, 3: 1}
    assert stats["last_inference"] > 1.7e12


def test_statistics_stay_short_whatever_sizes_clients_choose() -> None:
    """Where the server makes the batches, each request is a call of its own size."""
    numbers = VersionStatistics()
    sizes = range(1, 100_001)
    for rows in sizes:
        numbers.executed(rows=rows, requests=1, seconds=0.001)
    assert len(numbers.batches) == 256 + 9
    assert numbers.rows == sum(sizes)
    assert sum(tally.count for tally in numbers.batches.values()) == len(sizes)
    counts = [numbers.batches[rows].count for rows in (1, 256, 512, 2**17)]
    assert counts == [1, 1, 256, 100_000 - 2**16]


async def test_the_index_lists_versions_with_their_states(tmp_path: Path) -> None:
    stub_version(tmp_path)
    broken = stub_version(tmp_path, "broken")
    (broken / "assets.extra/model_card.json").write_text("{")
    async with serving(tmp_path) as served:
        everything = (await served.client.post("/v2/repository/index")).json()
        ready = await served.client.post("/v2/repository/index", json={"ready": True})
    by_name = {one["name"]: one for one in everything}
    assert by_name["stub"]["state"] == "READY"
    assert by_name["broken"]["state"] == "UNAVAILABLE"
    assert "not a model card" in by_name["broken"]["reason"]
    assert [one["name"] for one in ready.json()] == ["stub"]


async def test_a_model_can_be_unloaded_and_loaded_again(tmp_path: Path) -> None:
    stub_version(tmp_path)
    async with serving(tmp_path, model_control=True) as served:
        unloaded = await served.client.post("/v2/repository/models/stub/unload")
        assert unloaded.status_code == 200
        assert "unloaded by a client" in await refused(served, request_of(1), 503)
        assert (await served.client.get("/v2/health/ready")).status_code == 503
        index = (await served.client.post("/v2/repository/index")).json()
        assert only(index)["reason"] == "unloaded"
        loaded = await served.client.post("/v2/repository/models/stub/load")
        assert loaded.status_code == 200
        assert classes_of(await inferred(served, request_of(3))) == [3]


@pytest.mark.parametrize("action", ["load", "unload"])
async def test_models_are_not_controlled_while_the_gateway_shuts_down(
    tmp_path: Path, action: str
) -> None:
    stub_version(tmp_path)
    async with serving(tmp_path, model_control=True) as served:
        served.running.gateway.begin_drain()
        path = f"/v2/repository/models/stub/{action}"
        answer = await served.client.post(path, content=b"{}")
        assert answer.status_code == 503
        assert "shutting down" in answer.json()["error"]


async def test_a_load_waits_for_what_an_unload_has_left(tmp_path: Path) -> None:
    stub_version(tmp_path)
    async with serving(tmp_path, model_control=True) as served:
        with served.running.gateway.repository.lease(Target(name="stub")):
            await served.client.post("/v2/repository/models/stub/unload")
            load = asyncio.create_task(
                served.client.post("/v2/repository/models/stub/load")
            )
            index = (await served.client.post("/v2/repository/index")).json()
            assert only(index)["state"] == "UNLOADING"
        assert (await load).status_code == 200
        assert classes_of(await inferred(served, request_of(3))) == [3]


async def test_a_load_says_why_a_model_cannot_serve(tmp_path: Path) -> None:
    stub_version(tmp_path)
    async with serving(tmp_path, model_control=True) as served:
        card = tmp_path / "stub/1/assets.extra/model_card.json"
        whole = card.read_text()
        card.write_text("{")
        await served.client.post("/v2/repository/models/stub/unload")
        failed = await served.client.post("/v2/repository/models/stub/load")
        assert failed.status_code == 503
        assert "not a model card" in failed.json()["error"]
        card.write_text(whole)
        loaded = await served.client.post("/v2/repository/models/stub/load")
        assert loaded.status_code == 200, loaded.text
        missing = await served.client.post("/v2/repository/models/other/load")
        assert missing.status_code == 404


async def test_no_request_brings_a_model_of_its_own(tmp_path: Path) -> None:
    stub_version(tmp_path)
    async with serving(tmp_path, model_control=True) as served:
        answer = await served.client.post(
            "/v2/repository/models/stub/load",
            json={"parameters": {"config": "{}", "file:1/model.pb": "AA=="}},
        )
    assert answer.status_code == 400
    assert "config, file:1/model.pb" in answer.json()["error"]


@pytest.mark.parametrize("action", ["load", "unload"])
async def test_clients_control_models_only_where_they_may(
    served: Served, action: str
) -> None:
    answer = await served.client.post(f"/v2/repository/models/stub/{action}")
    assert answer.status_code == 400
    assert "model_control" in answer.json()["error"]


async def test_a_token_guards_all_but_health(tmp_path: Path) -> None:
    stub_version(tmp_path)
    async with serving(tmp_path, token="secret") as served:  # noqa: S106, a test's
        assert (await served.client.get("/v2/health/ready")).status_code == 200
        assert (await served.client.get("/v2/health/live")).status_code == 200
        assert (await served.client.get("/v2/models/stub/ready")).status_code == 401
        served.client.headers["authorization"] = "Bearer secret"
        assert (await served.client.get("/v2/health/ready")).status_code == 200
        assert classes_of(await inferred(served, request_of(3))) == [3]
