"""The HTTP interface, over real sockets, on the stub engine."""

import asyncio
import base64
import struct
import threading
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.app import create_app
from service.batching import Batcher, ThroughputCurve
from service.client import AsyncClient, RequestFailed
from service.engines.stub import StubEngine
from service.errors import VersionGone
from service.http import classify
from service.http.classify import ClassifyEndpoint
from service.served_version import ServedVersion
from tests.support import (
    LABELS,
    Served,
    encode,
    image_of_class,
    only,
    serving,
    stub_version,
)

PNG = {"content-type": "image/png"}
BULK = {"x-request-priority": "batch"}


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    stub_version(tmp_path)
    async with serving(tmp_path, max_body_bytes=100_000) as served:
        yield served


@pytest.fixture
def client(served: Served) -> httpx.AsyncClient:
    return served.client


@pytest.fixture(scope="module")
async def lasting(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    """One gateway for the tests that only send it bad input."""
    root = tmp_path_factory.mktemp("lasting")
    stub_version(root)
    async with serving(root, max_body_bytes=100_000) as served:
        yield served


def version_of(served: Served) -> ServedVersion:
    return only(served.running.gateway.repository.models.values()).available[0]


def engine_of(served: Served) -> StubEngine:
    engine = version_of(served).engine
    assert isinstance(engine, StubEngine)
    return engine


def batcher_of(served: Served) -> Batcher:
    return only(version_of(served).batchers.values())


def top_labels(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [r["predictions"][0]["label"] for r in answer.json()["results"]]


def error_of(answer: httpx.Response, status: int) -> tuple[str, str]:
    """The code and the message of an error in the one shape that errors have."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.json().keys() == {"error"}
    error = answer.json()["error"]
    assert error.keys() == {"code", "message"}
    return error["code"], error["message"]


async def test_a_raw_image_is_classified(client: httpx.AsyncClient) -> None:
    answer = await client.post("/classify", content=image_of_class(3), headers=PNG)
    assert top_labels(answer) == ["d"]
    body = answer.json()
    assert body.keys() == {"model", "version", "results"}
    assert (body["model"], body["version"]) == ("stub", 1)
    best, *others = only(body["results"])["predictions"]
    assert best == {"label": "d", "index": 3, "probability": pytest.approx(0.9)}
    assert len(others) == 4


@pytest.mark.parametrize(
    ("form", "large", "elsewhere"),
    [
        ("json", True, True),
        ("multipart", True, True),
        ("raw", True, False),  # there is nothing to unpack
        ("json", False, False),
        ("multipart", False, False),
    ],
)
async def test_a_large_body_is_unpacked_beside_the_event_loop(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    form: str,
    large: bool,
    elsewhere: bool,
) -> None:
    threads = []
    unpack = classify.images_of

    def spied(*arguments: Any, **options: Any) -> Any:
        threads.append(threading.current_thread())
        return unpack(*arguments, **options)

    monkeypatch.setattr(classify, "images_of", spied)
    image = image_of_class(3) + bytes(classify.LARGE_BODY_BYTES * large)
    sent: dict[str, Any] = {
        "json": {"json": {"images": [{"b64": base64.b64encode(image).decode()}]}},
        "multipart": {"files": {"image": image}},
        "raw": {"content": image, "headers": PNG},
    }
    stub_version(tmp_path)
    async with serving(tmp_path) as served:
        answer = await served.client.post("/classify", **sent[form])
    assert top_labels(answer) == ["d"]
    assert (only(threads) is not threading.current_thread()) == elsewhere


@pytest.mark.parametrize("content_type", ["application/octet-stream", None])
async def test_bytes_without_an_image_type_are_tried_as_an_image(
    client: httpx.AsyncClient, content_type: str | None
) -> None:
    headers = {"content-type": content_type} if content_type else {}
    answer = await client.post("/classify", content=image_of_class(1), headers=headers)
    assert top_labels(answer) == ["b"]


async def test_multipart_images_are_answered_in_order(
    client: httpx.AsyncClient,
) -> None:
    files = [("image", (f"{n}.png", image_of_class(n), "image/png")) for n in (5, 0, 9)]
    answer = await client.post("/classify", files=files)
    assert top_labels(answer) == ["f", "a", "j"]


async def test_json_images_are_answered_in_order(client: httpx.AsyncClient) -> None:
    images = [{"b64": base64.b64encode(image_of_class(n)).decode()} for n in (2, 7)]
    answer = await client.post("/classify", json={"images": images})
    assert top_labels(answer) == ["c", "h"]


async def test_top_k_chooses_how_many_predictions_there_are(
    client: httpx.AsyncClient,
) -> None:
    for top_k, expected in ((1, 1), (3, 3), (50, len(LABELS))):
        answer = await client.post(
            "/classify",
            params={"top_k": top_k},
            content=image_of_class(3),
            headers=PNG,
        )
        predictions = only(answer.json()["results"])["predictions"]
        assert len(predictions) == expected
        probabilities = [p["probability"] for p in predictions]
        assert probabilities == sorted(probabilities, reverse=True)


async def test_a_model_version_or_label_can_be_named(tmp_path: Path) -> None:
    stub_version(tmp_path, version=1)
    stub_version(tmp_path, version=2)
    labels = {"stub": {"stable": 1}}
    async with serving(tmp_path, labels=labels) as served:
        for path, version in {
            "/classify": 2,
            "/models/stub/classify": 2,
            "/models/stub/versions/1/classify": 1,
            "/models/stub/versions/2/classify": 2,
            "/models/stub/labels/stable/classify": 1,
        }.items():
            answer = await served.client.post(
                path, content=image_of_class(0), headers=PNG
            )
            assert answer.json()["version"] == version, path


async def test_a_model_must_be_named_where_there_are_several(tmp_path: Path) -> None:
    stub_version(tmp_path, "first")
    stub_version(tmp_path, "second")
    async with serving(tmp_path) as served:
        answer = await served.client.post(
            "/classify", content=image_of_class(0), headers=PNG
        )
        code, message = error_of(answer, 400)
        assert code == "model_required"
        assert "first, second" in message
    async with serving(tmp_path, default_model="second") as served:
        answer = await served.client.post(
            "/classify", content=image_of_class(0), headers=PNG
        )
        assert answer.json()["model"] == "second"


@pytest.mark.parametrize("version", ["0", "-1", "x", "1.0", "²", "9" * 5000])
async def test_a_version_is_a_positive_integer(lasting: Served, version: str) -> None:
    answer = await lasting.client.post(
        f"/models/stub/versions/{version}/classify", content=image_of_class(0)
    )
    assert error_of(answer, 400)[0] == "invalid_version"


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/models/nope/classify", "model_not_found"),
        ("/models/stub/versions/7/classify", "version_not_found"),
        ("/models/stub/labels/nope/classify", "label_not_found"),
        ("/nope", "not_found"),
    ],
)
async def test_what_does_not_exist_is_answered_with_404(
    lasting: Served, path: str, code: str
) -> None:
    answer = await lasting.client.post(path, content=image_of_class(0), headers=PNG)
    assert error_of(answer, 404)[0] == code


def huge_png() -> bytes:
    """A PNG of some dozen bytes that declares 30000×30000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b"")


def truncated_png() -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    return encode(noise)[:3000]


BAD_REQUESTS: list[tuple[str, bytes, dict[str, str], int, str]] = [
    ("", b"this is no image", PNG, 422, "invalid_image"),
    ("", truncated_png(), PNG, 422, "invalid_image"),
    ("", b"", PNG, 400, "empty_body"),
    ("", b"", {}, 400, "empty_body"),
    ("", b"a=b", {"content-type": "text/plain"}, 415, "unsupported_media_type"),
    ("", huge_png(), PNG, 413, "image_too_large"),
    ("", bytes(100_001), PNG, 413, "body_too_large"),
    ("", b"{", {"content-type": "application/json"}, 400, "invalid_json"),
    ("", b"[]", {"content-type": "application/json"}, 400, "invalid_json"),
    ("", b'{"images":[{}]}', {"content-type": "application/json"}, 400, "invalid_json"),
    ("", b'{"images":[]}', {"content-type": "application/json"}, 400, "no_image"),
    (
        "",
        b'{"images":[{"b64":"*"}]}',
        {"content-type": "application/json"},
        400,
        "invalid_base64",
    ),
    ("", b"x", {"content-type": "multipart/form-data"}, 400, "invalid_multipart"),
    (
        "",
        b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n1\r\n--b--\r\n',
        {"content-type": "multipart/form-data; boundary=b"},
        400,
        "no_image",
    ),
    ("?top_k=0", image_of_class(0), PNG, 400, "invalid_request"),
    ("?top_k=many", image_of_class(0), PNG, 400, "invalid_request"),
    (f"?top_k={'9' * 5000}", image_of_class(0), PNG, 400, "invalid_request"),
    ("", image_of_class(0), {**PNG, "x-request-timeout": "-1"}, 400, "invalid_request"),
    (
        "",
        image_of_class(0),
        {**PNG, "x-request-timeout": "soon"},
        400,
        "invalid_request",
    ),
]


@pytest.mark.parametrize(("query", "body", "headers", "status", "code"), BAD_REQUESTS)
async def test_bad_input_is_refused_and_the_server_goes_on(
    lasting: Served,
    query: str,
    body: bytes,
    headers: dict[str, str],
    status: int,
    code: str,
) -> None:
    client = lasting.client
    answer = await client.post(f"/classify{query}", content=body, headers=headers)
    assert error_of(answer, status)[0] == code
    again = await client.post("/classify", content=image_of_class(3), headers=PNG)
    assert top_labels(again) == ["d"]


async def test_a_body_over_the_limit_is_refused_without_its_length_being_declared(
    client: httpx.AsyncClient,
) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield bytes(10_000)

    answer = await client.post("/classify", content=chunks(), headers=PNG)
    assert error_of(answer, 413)[0] == "body_too_large"


async def test_too_many_images_are_refused(tmp_path: Path) -> None:
    stub_version(tmp_path)
    async with serving(tmp_path, max_images_per_request=2) as served:
        files = [("image", ("a.png", image_of_class(0), "image/png"))] * 3
        answer = await served.client.post("/classify", files=files)
        assert error_of(answer, 413)[0] == "too_many_images"


async def test_half_a_million_empty_parts_are_refused_at_the_first_too_many(
    tmp_path: Path,
) -> None:
    stub_version(tmp_path)
    part = b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\n\r\n'
    async with serving(tmp_path) as served:
        answer = await served.client.post(
            "/classify",
            content=part * 500_000 + b"--b--\r\n",
            headers={"content-type": "multipart/form-data; boundary=b"},
        )
        assert error_of(answer, 413)[0] == "too_many_images"


async def test_time_that_runs_out_while_decoding_is_answered_in_time(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()

    def decode(*_: Any, **__: Any) -> Any:
        gate.wait()
        return np.zeros((4, 4, 1), np.uint8)

    monkeypatch.setattr("service.imaging.decode", decode)
    files = [("image", ("a.png", image_of_class(0)))] * 8
    headers = {"x-request-timeout": "0.05"}
    answer = await served.client.post("/classify", files=files, headers=headers)
    gate.set()
    assert error_of(answer, 504)[0] == "deadline_exceeded"


async def test_a_broken_second_model_does_not_make_the_good_one_ambiguous(
    tmp_path: Path,
) -> None:
    stub_version(tmp_path)
    (tmp_path / "other" / "1").mkdir(parents=True)
    async with serving(tmp_path) as served:
        answer = await served.client.post("/classify", content=image_of_class(1))
        assert top_labels(answer) == ["b"]


async def test_the_error_of_one_image_among_several_says_which(
    client: httpx.AsyncClient,
) -> None:
    files = [("image", ("a.png", data)) for data in (image_of_class(0), b"no image")]
    answer = await client.post("/classify", files=files)
    code, message = error_of(answer, 422)
    assert code == "invalid_image"
    assert message.startswith("image 1: ")


async def test_a_wrong_method_is_answered_with_405(client: httpx.AsyncClient) -> None:
    assert error_of(await client.get("/classify"), 405)[0] == "method_not_allowed"


async def test_a_request_out_of_time_is_answered_with_504(served: Served) -> None:
    engine_of(served).gate.clear()
    answer = await served.client.post(
        "/classify",
        content=image_of_class(0),
        headers={**PNG, "x-request-timeout": "0.05"},
    )
    engine_of(served).gate.set()
    assert error_of(answer, 504)[0] == "deadline_exceeded"


async def test_a_full_queue_is_answered_with_503_and_when_to_try_again(
    tmp_path: Path,
) -> None:
    stub_version(tmp_path)
    async with serving(tmp_path, max_queue_depth=1, max_batch_size=1) as served:
        engine = engine_of(served)
        engine.gate.clear()
        requests = [
            asyncio.create_task(
                served.client.post("/classify", content=image_of_class(0), headers=PNG)
            )
            for _ in range(3)
        ]
        done, waiting = await asyncio.wait(
            requests, return_when=asyncio.FIRST_COMPLETED
        )
        refused = only(done).result()
        assert error_of(refused, 503)[0] == "overloaded"
        assert int(refused.headers["retry-after"]) >= 1
        engine.gate.set()
        assert [top_labels(await request) for request in waiting] == [["a"], ["a"]]


async def test_a_deadline_that_the_queue_excludes_is_answered_with_503_at_once(
    served: Served,
) -> None:
    engine = engine_of(served)
    batcher = batcher_of(served)
    batcher._curve = ThroughputCurve({1: 5.0})
    engine.gate.clear()
    patient = asyncio.create_task(
        served.client.post("/classify", content=image_of_class(0), headers=PNG)
    )
    while not batcher._running:
        await asyncio.sleep(0)
    refused = await served.client.post(
        "/classify",
        content=image_of_class(0),
        headers={**PNG, "x-request-timeout": "6"},
    )
    engine.gate.set()
    assert error_of(refused, 503)[0] == "deadline_unreachable"
    assert int(refused.headers["retry-after"]) >= 1
    assert top_labels(await patient) == ["a"]


async def test_the_rest_of_a_body_is_not_awaited_where_there_is_no_place(
    tmp_path: Path,
) -> None:
    """A large upload is refused as it begins, and not when it is complete."""
    stub_version(tmp_path)
    async with serving(tmp_path, max_queue_depth=1, max_batch_size=1) as served:
        engine = engine_of(served)
        engine.gate.clear()
        waiting = [
            asyncio.create_task(
                served.client.post("/classify", content=image_of_class(0), headers=PNG)
            )
            for _ in range(2)
        ]
        batcher = batcher_of(served)
        while not (batcher._running and batcher.queue_depth):
            await asyncio.sleep(0)
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", served.running.http_port
        )
        writer.write(
            b"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-type: image/jpeg\r\n"
            b"content-length: 1000000\r\n\r\nbeginning"
        )
        assert b" 503 " in await reader.readline()
        writer.close()
        engine.gate.set()
        assert [top_labels(await request) for request in waiting] == [["a"], ["a"]]


async def test_a_request_says_how_urgent_it_is(tmp_path: Path) -> None:
    stub_version(tmp_path)
    async with serving(tmp_path, max_batch_size=1) as served:
        engine, batcher = engine_of(served), batcher_of(served)
        engine._record = True
        engine.gate.clear()
        requests = []
        urgencies = ({}, BULK, BULK, {"x-request-priority": "Interactive"})
        for index, urgency in enumerate(urgencies):
            request = served.client.post(
                "/classify", content=image_of_class(index), headers={**PNG, **urgency}
            )
            requests.append(asyncio.create_task(request))
            while not (batcher._running and batcher.queue_depth == index):
                await asyncio.sleep(0)
        engine.gate.set()
        assert [top_labels(await request) for request in requests] == [
            ["a"],
            ["b"],
            ["c"],
            ["d"],
        ]
        order = [int(batch["images"].sum()) for batch in engine.batches]
        assert order == [0, 3, 1, 2]


async def test_an_unknown_priority_is_refused(client: httpx.AsyncClient) -> None:
    answer = await client.post(
        "/classify",
        content=image_of_class(0),
        headers={**PNG, "x-request-priority": "urgent"},
    )
    code, message = error_of(answer, 400)
    assert code == "invalid_request"
    assert "'interactive' or 'batch', got 'urgent'" in message


async def test_other_methods_and_paths_beside_the_hot_ones_are_the_framework_s(
    client: httpx.AsyncClient,
) -> None:
    assert error_of(await client.get("/classify"), 405)[0] == "method_not_allowed"
    for path in ("/models//classify", "/models/stub/versions/classify", "/classify/x"):
        assert error_of(await client.post(path), 404)[0] == "not_found"


async def test_a_failing_engine_is_a_500_without_its_inner_workings(
    served: Served,
) -> None:
    engine_of(served).failure = RuntimeError("secret address 0xdeadbeef")
    answer = await served.client.post(
        "/classify", content=image_of_class(0), headers=PNG
    )
    code, message = error_of(answer, 500)
    assert code == "engine_failure"
    assert "secret" not in message
    engine_of(served).failure = None
    again = await served.client.post(
        "/classify", content=image_of_class(0), headers=PNG
    )
    assert top_labels(again) == ["a"]


@pytest.mark.parametrize("padding_bytes", [0, 90_000])
async def test_a_client_that_goes_away_withdraws_its_request(
    served: Served, padding_bytes: int
) -> None:
    """After a large body the connection is not read, unless somebody sees to it."""
    engine = engine_of(served)
    engine.gate.clear()
    port = served.running.http_port
    image = image_of_class(0) + bytes(padding_bytes)
    head = (
        f"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\n"
        f"content-length: {len(image)}\r\n\r\n"
    )
    batcher = batcher_of(served)
    writers = []
    for _ in range(2):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.encode())
        await writer.drain()
        writer.write(image)
        await writer.drain()
        writers.append(writer)
        while not batcher._running:  # the second one waits behind the first
            await asyncio.sleep(0)
    while not batcher._waiting_rows:
        await asyncio.sleep(0)
    for writer in writers:
        writer.close()
        await writer.wait_closed()
    while batcher.queue_depth:
        await asyncio.sleep(0)
    engine.gate.set()
    kind = 'kind="cancelled",model="stub",protocol="http",version="1"} 2.0'
    async with asyncio.timeout(10):
        while kind not in (await served.client.get("/metrics")).text:
            await asyncio.sleep(0)


@dataclass(frozen=True)
class Looks:
    """Looks at the repository that a test holds.

    Attributes:
        begun: Set when a look has begun.
        gate: Holds every look until it is set.
        ended: Set when a look has come to its end.
    """

    begun: asyncio.Event = field(default_factory=asyncio.Event)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)


@pytest.fixture
async def looks(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Looks]:
    """Those of a gateway whose engine says that another has its version's place."""
    looks = Looks()
    source = served.running.gateway.repository._source
    scan = source.scan

    async def look() -> Any:
        looks.begun.set()
        await looks.gate.wait()
        found = await scan()
        looks.ended.set()
        return found

    monkeypatch.setattr(source, "scan", look)
    engine_of(served).failure = VersionGone("replaced")
    yield looks
    looks.gate.set()  # or the gateway would not end


async def test_time_that_runs_out_while_a_successor_is_looked_for_is_told_in_time(
    served: Served, looks: Looks
) -> None:
    """And the look goes on, for those who have more."""

    async def ask(seconds: float) -> httpx.Response:
        headers = {**PNG, "x-request-timeout": str(seconds)}
        return await served.client.post(
            "/classify", content=image_of_class(1), headers=headers
        )

    async with asyncio.timeout(10):
        patient = asyncio.create_task(ask(30))
        await looks.begun.wait()
        assert error_of(await ask(0.2), 504)[0] == "deadline_exceeded"
        engine_of(served).failure = None
        looks.gate.set()
        assert top_labels(await patient) == ["b"]


async def test_a_client_may_go_away_while_a_successor_is_looked_for(
    served: Served, looks: Looks
) -> None:
    """And the look goes on, for what it loads must not be lost."""
    port = served.running.http_port
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(posted(image_of_class(1)))
    kind = 'kind="cancelled",model="stub",protocol="http",version="1"} 1.0'
    async with asyncio.timeout(10):
        await looks.begun.wait()
        writer.close()
        await writer.wait_closed()
        while kind not in (await served.client.get("/metrics")).text:
            await asyncio.sleep(0)
        assert not looks.ended.is_set()
        looks.gate.set()
        await looks.ended.wait()


async def asked_over_asgi(
    served: Served, receive: Callable[[], Awaitable[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """Ask the application as another server would, which knows ASGI and no more."""
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(dict(message))

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/classify",
        "raw_path": b"/classify",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"image/png")],
    }
    await create_app(gateway=served.running.gateway)(scope, receive, send)
    return sent


async def test_another_asgi_server_can_run_the_application(served: Served) -> None:
    messages = [{"type": "http.request", "body": image_of_class(4), "more_body": False}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        return await asyncio.get_running_loop().create_future()

    start, body = await asked_over_asgi(served, receive)
    assert start["status"] == 200
    assert b'"predictions":[{"label":"e"' in body["body"]


async def test_a_client_of_another_asgi_server_may_go_away(served: Served) -> None:
    engine = engine_of(served)
    engine.gate.clear()
    messages = [
        {"type": "http.disconnect"},
        {"type": "http.request", "body": image_of_class(4), "more_body": False},
    ]

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0)
        return messages.pop()

    assert await asked_over_asgi(served, receive) == []
    engine.gate.set()
    assert batcher_of(served).queue_depth == 0


def posted(*images: bytes) -> bytes:
    """Requests as they go over the wire, one behind the other."""
    return b"".join(
        b"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(image)
        + image
        for image in images
    )


async def test_an_answer_comes_in_one_piece(served: Served) -> None:
    port = served.running.http_port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(posted(image_of_class(1)))
    answer = await reader.read(65536)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b'"predictions":[{"label":"b"' in answer
    writer.close()
    await writer.wait_closed()


async def test_requests_that_come_at_once_are_answered_in_their_order(
    served: Served,
) -> None:
    port = served.running.http_port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(posted(*(image_of_class(index) for index in (3, 1, 2))))
    for label in (b"d", b"b", b"c"):
        answer = await reader.readuntil(b"]}]}")
        assert b'"predictions":[{"label":"%s"' % label in answer
    writer.close()
    await writer.wait_closed()


async def test_a_refusal_before_the_body_counts_for_the_model(served: Served) -> None:
    """One request computes, one waits, and the third is told so from its head alone."""
    engine = engine_of(served)
    engine.gate.clear()
    batcher = batcher_of(served)
    waiting = []
    for index in range(2):
        request = served.client.post(
            "/classify", content=image_of_class(index), headers=PNG
        )
        waiting.append(asyncio.create_task(request))
        while not batcher._running:  # the second one waits behind the first
            await asyncio.sleep(0)
    while not batcher._waiting_rows:
        await asyncio.sleep(0)
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", served.running.http_port
    )
    head = "POST /classify HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n"
    writer.write(f"{head}x-request-timeout: 1e-6\r\n\r\n".encode())
    answer = await reader.readuntil(b"}}")
    assert answer.startswith((b"HTTP/1.1 503", b"HTTP/1.1 504"))
    writer.close()
    engine.gate.set()
    for request in waiting:
        assert (await request).status_code == 200
    text = (await served.client.get("/metrics")).text
    counted = 'blockserve_requests_total{model="stub",protocol="http",version="1"} 3.0'
    assert counted in text


@asynccontextmanager
async def overloaded(
    repository: Path, **settings: Any
) -> AsyncIterator[tuple[Served, int]]:
    """A gateway that refuses requests, and how many it has had; all end with it."""
    stub_version(repository)
    small = {"max_queue_depth": 1, "max_batch_size": 1}
    async with serving(repository, **small, **settings) as served:
        engine_of(served).gate.clear()
        if token := settings.get("token"):
            served.client.headers["authorization"] = f"Bearer {token}"
        requests = [
            asyncio.create_task(
                served.client.post("/classify", content=image_of_class(0), headers=PNG)
            )
            for _ in range(3)
        ]
        done, waiting = await asyncio.wait(
            requests, return_when=asyncio.FIRST_COMPLETED
        )
        error_of(only(done).result(), 503)
        yield served, len(requests)
        engine_of(served).gate.set()
        await asyncio.gather(*waiting)


async def test_under_overload_a_refusal_takes_no_more_than_the_headers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The body comes later, and the connection is good for another request."""
    async with overloaded(tmp_path) as (served, before):
        started = []
        monkeypatch.setattr(ClassifyEndpoint, "_classify", lambda *_: started.append(1))
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", served.running.http_port
        )
        image = image_of_class(4)
        head = b"POST /classify?top_k=1 HTTP/1.1\r\nhost: x\r\n"
        head += b"content-length: %d\r\n\r\n" % len(image)
        for _ in range(2):
            writer.write(head)
            answer = await reader.readuntil(b"}}")
            assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
            assert b"\r\nretry-after: 1\r\n" in answer
            assert b'"code":"overloaded"' in answer
            writer.write(image[:9])
            await writer.drain()
            writer.write(image[9:])
        assert not started
        monkeypatch.undo()
        text = (await served.client.get("/metrics")).text
        labels = '{model="stub",protocol="http",version="1"}'
        # Two of those before compute or wait, and are not counted yet.
        assert f"blockserve_requests_total{labels} {before - 2 + 2}.0" in text
        engine_of(served).gate.set()
        while batcher_of(served).queue_depth:
            await asyncio.sleep(0)
        writer.write(head + image)
        answer = await reader.readuntil(b"]}]}")
        assert b'"predictions":[{"label":"e"' in answer
        writer.close()


async def test_a_refusal_waits_for_the_answers_before_it(tmp_path: Path) -> None:
    async with overloaded(tmp_path) as (served, _):
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", served.running.http_port
        )
        writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n" + posted(b"image"))
        statuses = [await reader.readuntil(b"\r\n")]
        await reader.readuntil(b"}")
        statuses.append(await reader.readuntil(b"\r\n"))
        assert [status.split()[1] for status in statuses] == [b"200", b"503"]
        writer.close()


async def test_under_overload_a_connection_that_is_to_close_closes(
    tmp_path: Path,
) -> None:
    async with overloaded(tmp_path) as (served, _):
        answer = await served.client.post(
            "/classify", content=b"image", headers={"connection": "close"}
        )
        error_of(answer, 503)
        assert answer.headers["connection"] == "close"


async def test_under_overload_other_errors_are_still_told(tmp_path: Path) -> None:
    async with overloaded(tmp_path, token="secret") as (served, _):  # noqa: S106
        client = served.client
        missing = await client.post("/models/nope/classify", content=b"x")
        assert error_of(missing, 404)[0] == "model_not_found"
        impatient = await client.post(
            "/classify", content=b"x", headers={"x-request-timeout": "soon"}
        )
        assert error_of(impatient, 400)[0] == "invalid_request"
        assert (await client.get("/classify")).status_code == 405
        del client.headers["authorization"]
        stranger = await client.post("/classify", content=b"x", headers=PNG)
        assert error_of(stranger, 401)[0] == "unauthorized"


async def test_models_are_described(client: httpx.AsyncClient) -> None:
    model = only((await client.get("/models")).json()["models"])
    assert model == (await client.get("/models/stub")).json()
    assert model["name"] == "stub"
    version = only(model["versions"])
    assert (version["version"], version["state"]) == (1, "AVAILABLE")
    assert version["engine"] == "stub"
    batching = version["batching"]["serving_default"]
    assert batching["batch_size_is_learned"]
    sizes = [point["batch_size_rows"] for point in batching["curve"]]
    assert batching["batch_size_limit_rows"] in sizes
    assert all(point["rows_per_second"] > 0 for point in batching["curve"])
    assert version["card"]["labels"] == list(LABELS)
    answer = await client.get("/models/nope")
    assert error_of(answer, 404)[0] == "model_not_found"


async def test_graph_and_summary_are_served_as_they_were_exported(
    tmp_path: Path,
) -> None:
    directory = stub_version(tmp_path)
    (directory / "assets.extra/graph.svg").write_text("<svg/>")
    (directory / "assets.extra/summary.txt").write_text("layers")
    async with serving(tmp_path) as served:
        graph = await served.client.get("/models/stub/graph.svg")
        assert (graph.headers["content-type"], graph.text) == (
            "image/svg+xml",
            "<svg/>",
        )
        summary = await served.client.get("/models/stub/summary?version=1")
        assert summary.text == "layers"
        answer = await served.client.get("/models/stub/summary?version=9")
        assert error_of(answer, 404)[0] == "version_not_found"
        answer = await served.client.get("/models/stub/summary?version=x")
        assert error_of(answer, 422)[0] == "invalid_request"


async def test_a_model_without_a_graph_says_so(client: httpx.AsyncClient) -> None:
    answer = await client.get("/models/stub/graph.svg")
    assert error_of(answer, 404)[0] == "asset_not_found"


async def test_health_and_readiness(client: httpx.AsyncClient) -> None:
    assert (await client.get("/healthz")).json() == {"status": "alive"}
    assert (await client.get("/readyz")).json() == {"status": "ready"}


async def test_an_empty_repository_is_alive_but_not_ready(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        assert (await served.client.get("/healthz")).status_code == 200
        code, message = error_of(await served.client.get("/readyz"), 503)
        assert code == "not_ready"
        assert "holds no model" in message
        answer = await served.client.post(
            "/classify", content=image_of_class(0), headers=PNG
        )
        assert error_of(answer, 503)[0] == "model_not_ready"


async def test_a_draining_gateway_refuses_new_work(served: Served) -> None:
    served.running.gateway.begin_drain()
    answer = await served.client.post(
        "/classify", content=image_of_class(0), headers=PNG
    )
    assert error_of(answer, 503)[0] == "draining"
    assert error_of(await served.client.get("/readyz"), 503)[0] == "not_ready"


async def test_who_waits_when_the_drain_ends_is_told_over_either_protocol(
    tmp_path: Path,
) -> None:
    stub_version(tmp_path)
    async with serving(tmp_path, drain_timeout_seconds=0.05) as served:
        engine = engine_of(served)
        engine.gate.clear()
        address = f"127.0.0.1:{served.running.grpc_port}"
        async with AsyncClient(f"grpc://{address}") as over_grpc:
            http = asyncio.create_task(
                served.client.post("/classify", content=image_of_class(3), headers=PNG)
            )
            grpc = asyncio.create_task(over_grpc.classify(image_of_class(3)))
            for protocol in ("http", "grpc"):
                line = f'requests_in_flight{{protocol="{protocol}"}} 1.0'
                while line not in (await served.client.get("/metrics")).text:
                    await asyncio.sleep(0)
            served.running.stop()
            assert error_of(await http, 503)[0] == "draining"
            with pytest.raises(RequestFailed, match="is being unloaded") as told:
                await grpc
            assert told.value.status == "UNAVAILABLE"
        engine.gate.set()


async def test_accepted_requests_finish_when_the_server_stops(served: Served) -> None:
    engine = engine_of(served)
    engine.gate.clear()
    request = asyncio.create_task(
        served.client.post("/classify", content=image_of_class(3), headers=PNG)
    )
    in_flight = 'blockserve_requests_in_flight{protocol="http"}'
    while f"{in_flight} 1.0" not in (await served.client.get("/metrics")).text:
        await asyncio.sleep(0)
    served.running.stop()
    engine.gate.set()
    assert top_labels(await request) == ["d"]


async def test_metrics_count_requests_stages_and_errors(served: Served) -> None:
    client = served.client
    for _ in range(3):
        await client.post("/classify", content=image_of_class(0), headers=PNG)
    await client.post("/classify", content=b"no image", headers=PNG)
    await client.post("/models/nope/classify", content=b"x", headers=PNG)
    text = (await client.get("/metrics")).text
    samples: dict[tuple[str, ...], float] = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "le" not in sample.labels
    }
    assert samples["blockserve_requests_total", "1", "http", "stub"] == 4
    assert (
        samples["blockserve_request_duration_seconds_count", "1", "http", "stub"] == 4
    )
    assert samples["blockserve_errors_total", "1", "http", "invalid_image", "stub"] == 1
    assert samples["blockserve_errors_total", "", "", "http", "model_not_found"] == 1
    for stage in ("decode", "queue", "assembly", "inference", "encode"):
        key = sorted(("1", stage, "stub"))
        count = samples["blockserve_stage_duration_seconds_count", *key]
        assert count == 3, stage
    assert samples["blockserve_batch_size_rows_sum", "1", "stub"] == 3
    assert samples["blockserve_queue_depth_requests", "1", "stub"] == 0
    assert samples["blockserve_requests_in_flight", "http"] == 0


async def test_what_clients_send_never_becomes_a_metric_label(
    client: httpx.AsyncClient,
) -> None:
    for n in range(5):
        await client.post(f"/models/evil{n}/classify", content=b"x", headers=PNG)
    assert "evil" not in (await client.get("/metrics")).text


async def test_openmetrics_is_answered_to_who_asks_for_it(
    client: httpx.AsyncClient,
) -> None:
    accept = {"accept": "application/openmetrics-text; version=1.0.0"}
    answer = await client.get("/metrics", headers=accept)
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


async def test_the_documentation_needs_no_other_host(client: httpx.AsyncClient) -> None:
    page = (await client.get("/docs")).text
    assert "http://" not in page
    assert "https://" not in page
    for path in ("/static-offline-docs/swagger-ui-bundle.js", "/openapi.json"):
        assert path in page
        assert (await client.get(path)).status_code == 200


async def test_a_token_guards_everything_but_health(tmp_path: Path) -> None:
    stub_version(tmp_path)
    async with serving(tmp_path, token="secret") as served:  # noqa: S106, a test's
        client = served.client
        answer = await client.post("/classify", content=image_of_class(0), headers=PNG)
        assert error_of(answer, 401)[0] == "unauthorized"
        assert answer.headers["www-authenticate"] == "Bearer"
        assert error_of(await client.get("/models"), 401)[0] == "unauthorized"
        assert (await client.get("/readyz")).status_code == 200
        client.headers["authorization"] = "Bearer secret"
        answer = await client.post("/classify", content=image_of_class(0), headers=PNG)
        assert top_labels(answer) == ["a"]


async def test_concurrent_requests_get_their_own_answers(served: Served) -> None:
    classes = [n % 10 for n in range(100)]
    answers = await asyncio.gather(
        *(
            served.client.post("/classify", content=image_of_class(n), headers=PNG)
            for n in classes
        )
    )
    assert [only(top_labels(a)) for a in answers] == [LABELS[n] for n in classes]
