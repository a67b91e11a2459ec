"""TensorFlow Serving's REST API, against what a real server answered."""

import base64
import json
import re
import shutil
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from service import tensors
from service.http.tf_serving import answers, documents
from tests.support import Served, only, serving

GOLDEN = Path(__file__).parent / "golden"
CASES = {path.stem: json.loads(path.read_text()) for path in GOLDEN.glob("rest/*.json")}
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]\d+)?")


@dataclass(frozen=True)
class Difference:
    """Where we depart from the real server: our status, and what our error says."""

    status: int
    message: str


# Each is a line of the table in docs/protocols.md.
DIFFERENCES = {
    # It takes what its signature excludes.
    "empty_signature_name": Difference(400, r"expected images uint8\[batch,96,96,3\]"),
    "extra_toplevel_key": Difference(400, r"expected images uint8\[batch,96,96,3\]"),
    "inputs_empty_list": Difference(400, r"expected images uint8\[batch,96,96,3\]"),
    "inputs_scalar": Difference(400, r"expected images uint8\[batch,96,96,3\]"),
    "wrong_shape_dims": Difference(400, r"expected images uint8\[batch,96,96,3\]"),
    "wrong_shape_rank": Difference(400, r"expected images uint8\[batch,96,96,3\]"),
    "scalar_in_row_format": Difference(400, r"expected scale float32\[\]"),
    "two_inputs_col_batch_mismatch": Difference(400, "the same number of rows"),
    "uint8_negative": Difference(400, "-1 does not fit uint8: expected 0 to 255"),
    "uint8_out_of_range_300": Difference(400, "300 does not fit uint8"),
    # Its error names a node of the graph.
    "bytes_not_jpeg": Difference(400, "Unknown image file format"),
    # It takes a query for a part of the model's name, and ignores labels.
    "predict_query_string": Difference(200, ""),
    "status_query_string": Difference(200, ""),
    "status_missing_label": Difference(400, "Unrecognized servable version label"),
    # It says nothing.
    "status_options": Difference(400, "Malformed request: OPTIONS"),
    "status_version_overflow": Difference(400, "Malformed request: GET"),
    # Other limits, other paths.
    "huge_body_not_json_64MB": Difference(413, "larger than"),
    "prometheus_disabled_or_enabled": Difference(404, "/docs lists what there is"),
    "prometheus_post": Difference(404, "/docs lists what there is"),
    "root": Difference(307, ""),
    "v1": Difference(404, "/docs lists what there is"),
    "v2_health": Difference(200, ""),
    # It reads gzip only.
    "deflate_request": Difference(200, ""),
}
HUGE = {
    "huge_body_20MB": b'{"signature_name":"echo","instances":["%b"]}'
    % (b"a" * (20_000_042 - 42)),
    "huge_body_not_json_64MB": b"[" + b"1," * 32_000_000,
}


@pytest.fixture(scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    repository = tmp_path_factory.mktemp("repository")
    shutil.copytree(GOLDEN / "model", repository, dirs_exist_ok=True)
    labels = {"inception": {"stable": 1}}
    async with serving(repository, engine="tensorflow", labels=labels) as served:
        yield served


async def asked(served: Served, case: str) -> httpx.Response:
    """The answer to a golden request, sent as it was recorded."""
    request = CASES[case]["request"]
    if case in HUGE:
        body = HUGE[case]
        assert len(body) == request["body_len"]
    elif "body_b64" in request:
        body = base64.b64decode(request["body_b64"])
    else:
        body = (request.get("body") or "").encode()
    content: Any = body or None
    if "chunked_body" in request:
        content = chunks(request["chunked_body"].encode())
    return await served.client.request(
        request["method"], request["path"], headers=request["headers"], content=content
    )


async def chunks(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 7):
        yield body[start : start + 7]


def assert_alike(ours: Any, theirs: Any) -> None:
    """The same documents, but for the last digits of what is computed."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert_alike(ours[key], value)
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_alike(one, other)
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6, nan_ok=True)
    else:
        assert ours == theirs


@pytest.mark.parametrize("case", sorted(CASES.keys() - DIFFERENCES.keys()))
async def test_a_request_is_answered_as_by_the_real_server(
    served: Served, case: str
) -> None:
    request, expected = CASES[case]["request"], CASES[case]["response"]
    answer = await asked(served, case)
    assert answer.status_code == expected["status"], answer.text
    headers = dict(expected["headers"])
    assert answer.headers["content-type"] == headers["Content-Type"]
    if case.startswith("huge"):
        assert len(answer.content) == expected["body_len"]
        return
    if request["path"].endswith("metadata") and answer.status_code == 200:
        theirs = json.loads(expected["body"])
        # Nobody can call it.
        definitions = theirs["metadata"]["signature_def"]["signature_def"]
        del definitions["__saved_model_init_op"]
        assert answer.json() == theirs
        return
    if answer.status_code == 200:
        assert_alike(answer.json(), json.loads(expected["body"]))
        if "multi" in case or "two_inputs" in case:
            return  # the order of outputs is anybody's
        assert NUMBER.sub("0", answer.text) == NUMBER.sub("0", expected["body"])
        return
    assert answer.text == expected["body"]


@pytest.mark.parametrize("case", sorted(DIFFERENCES))
async def test_where_we_answer_otherwise_we_say_what_is_wrong(
    served: Served, case: str
) -> None:
    different = DIFFERENCES[case]
    answer = await asked(served, case)
    assert answer.status_code == different.status, answer.text
    assert (answer.status_code, answer.text) != (
        CASES[case]["response"]["status"],
        CASES[case]["response"].get("body"),
    ), "there is no difference any more"
    if different.message:
        error = answer.json()["error"]
        text = error if isinstance(error, str) else error["message"]
        assert re.search(different.message, text)


@pytest.mark.parametrize(("rows", "elsewhere"), [(1, False), (10_000, True)])
async def test_a_large_body_is_read_beside_the_event_loop(
    served: Served, monkeypatch: pytest.MonkeyPatch, rows: int, elsewhere: bool
) -> None:
    """Walking through millions of values would hold everybody up."""
    threads = []
    read = documents.read

    def spied(text: bytes) -> Any:
        threads.append(threading.current_thread())
        return read(text)

    monkeypatch.setattr(documents, "read", spied)
    answer = await served.client.post(
        "/v1/models/inception:predict",
        json={"signature_name": "echo", "instances": ["a"] * rows},
    )
    assert len(answer.json()["predictions"]) == rows
    assert (only(threads) is not threading.current_thread()) == elsewhere


@pytest.mark.parametrize(
    ("padding_bytes", "many_elements", "elsewhere"),
    [(0, 1, True), (40_000, 2, False)],
)
async def test_a_long_answer_is_written_beside_the_event_loop(
    served: Served,
    monkeypatch: pytest.MonkeyPatch,
    padding_bytes: int,
    many_elements: int,
    elsewhere: bool,
) -> None:
    """Whatever the length of the question: an image may be answered with a million."""
    threads = []
    write = answers.predictions

    def spied(outputs: Any) -> bytes:
        threads.append(threading.current_thread())
        return write(outputs)

    monkeypatch.setattr(answers, "predictions", spied)
    monkeypatch.setattr(tensors, "MANY_ELEMENTS", many_elements)
    body = json.dumps({"signature_name": "echo", "instances": ["a", "b"]})
    answer = await served.client.post(
        "/v1/models/inception:predict", content=body + " " * padding_bytes
    )
    assert len(answer.json()["predictions"]) == 2
    assert (only(threads) is not threading.current_thread()) == elsewhere
