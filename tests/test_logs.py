"""What the log says of requests, in both of its forms, and how requests are named."""

import asyncio
import json
import logging
import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from proto.blockserve.v1.image_classifier_pb2 import (
    ClassifyRequest,
    ClassifyStreamRequest,
)
from proto.blockserve.v1.image_classifier_pb2_grpc import ImageClassifierStub
from service.engines.stub import StubEngine
from service.errors import (
    BlockserveError,
    DeadlineExceeded,
    EngineFailure,
    InvalidImage,
    Overloaded,
)
from service.settings import LogFormat
from service.telemetry import logs
from service.telemetry.access_log import AccessLog
from service.telemetry.request_ids import new_request_id
from tests.support import Served, image_of_class, only, serving, started, stub_version

PNG = {"content-type": "image/png"}


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    stub_version(tmp_path)
    async with serving(tmp_path, access_log_share=1) as served:
        yield served


@contextmanager
def written(form: LogFormat, *, worker: int | None = None) -> Iterator[StringIO]:
    """What the program's log holds, in one of its forms."""
    handler = logging.StreamHandler(StringIO())
    handler.setFormatter(logs.formatter(form, worker))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield handler.stream
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


def requests_in(stream: StringIO, served: Served) -> list[dict[str, Any]]:
    served.running.gateway.access_log.flush()
    lines = map(json.loads, stream.getvalue().splitlines())
    return [line for line in lines if line["message"] == "request"]


async def test_a_request_is_one_json_object_with_its_stages(served: Served) -> None:
    with written("json") as stream:
        answer = await served.client.post(
            "/classify",
            content=image_of_class(1),
            headers={**PNG, "x-request-id": "mine-1"},
        )
        line = only(requests_in(stream, served))
    assert answer.headers["x-request-id"] == "mine-1"
    seconds = {key: line.pop(key) for key in [*line] if key.endswith("seconds")}
    assert re.fullmatch(r"2\d{3}-\d\d-\d\dT[\d:.]+(\+00:00|Z)", line.pop("time"))
    assert line == {
        "level": "INFO",
        "logger": "blockserve.access",
        "message": "request",
        "protocol": "http",
        "model": "stub",
        "version": "1",
        "status": 200,
        "request_id": "mine-1",
    }
    total = seconds.pop("seconds")
    assert seconds.keys() == {
        f"{stage}_seconds"
        for stage in ("read", "decode", "queue", "inference", "encode")
    }
    assert 0 < sum(seconds.values()) <= total


async def test_a_request_is_a_line_of_text_for_people(served: Served) -> None:
    with written("text") as stream:
        await served.client.post(
            "/models/nope/classify", content=b"x", headers={"x-request-id": "a b"}
        )
        served.running.gateway.access_log.flush()
    line = only(
        one for one in stream.getvalue().splitlines() if "blockserve.access" in one
    )
    assert re.search(
        r"INFO +blockserve\.access  request protocol=http model= version= status=404 "
        r"error=model_not_found seconds=\S+ .* request_id=[0-9a-f-]+$",
        line,
    )


async def test_a_call_over_grpc_is_written_with_its_status_and_name(
    served: Served,
) -> None:
    target = f"127.0.0.1:{served.running.grpc_port}"
    with written("json") as stream:
        async with grpc.aio.insecure_channel(target) as channel:
            classify = ImageClassifierStub(channel).Classify
            call = classify(
                ClassifyRequest(images=[image_of_class(1)]),
                metadata=[("x-request-id", "mine-2")],
            )
            await call
            assert dict(await call.trailing_metadata())["x-request-id"] == "mine-2"
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await classify(ClassifyRequest(images=[b"no image"]))
        good, bad = requests_in(stream, served)
    assert (good["status"], good["request_id"]) == ("OK", "mine-2")
    assert (bad["status"], bad["error"]) == ("INVALID_ARGUMENT", "invalid_image")
    told = dict(caught.value.trailing_metadata() or ())
    assert told["x-request-id"] == bad["request_id"]


async def test_the_requests_of_a_stream_are_called_what_the_client_is_told(
    served: Served,
) -> None:
    async def asked() -> AsyncIterator[ClassifyStreamRequest]:
        for number in range(3):
            image = ClassifyRequest(images=[image_of_class(number)])
            yield ClassifyStreamRequest(id=str(number), request=image)

    target = f"127.0.0.1:{served.running.grpc_port}"
    with written("json") as stream:
        async with grpc.aio.insecure_channel(target) as channel:
            call = ImageClassifierStub(channel).ClassifyStream(asked())
            assert len([answer async for answer in call]) == 3
            told = dict(await call.trailing_metadata())["x-request-id"]
        lines = requests_in(stream, served)
    assert [line["request_id"] for line in lines] == [told] * 3


@pytest.mark.parametrize(
    "path", ["/classify", "/v1/models/stub", "/v2/health/live", "/models", "/nowhere"]
)
async def test_every_answer_names_its_request(served: Served, path: str) -> None:
    for name in ("mine", None):
        headers = {"x-request-id": name} if name else {}
        answer = await served.client.get(path, headers=headers)
        (told,) = answer.headers.get_list("x-request-id")
        assert told == name or (name is None and re.fullmatch(r"[0-9a-f-]+", told))


@pytest.mark.parametrize("unusable", ["", "with a space", "ö", "x" * 129])
async def test_a_name_that_cannot_be_written_down_is_replaced(
    served: Served, unusable: str
) -> None:
    headers = [(b"x-request-id", unusable.encode("latin-1"))]
    answer = await served.client.get("/healthz", headers=headers)
    assert re.fullmatch(r"[0-9a-f]+-[0-9a-f]+", answer.headers["x-request-id"])


def test_no_two_requests_get_the_same_name() -> None:
    assert len({new_request_id() for _ in range(100)}) == 100


async def test_requests_that_are_refused_at_the_door_have_names_and_lines(
    tmp_path: Path,
) -> None:
    """Under overload, requests are refused before the application sees them."""
    stub_version(tmp_path)
    async with serving(
        tmp_path, access_log_share=1, max_queue_depth=1, max_batch_size=1
    ) as served:
        model = only(served.running.gateway.repository.models.values()).available[0]
        batcher = only(model.batchers.values())
        assert isinstance(model.engine, StubEngine)
        model.engine.gate.clear()

        def ask() -> asyncio.Task[httpx.Response]:
            request = served.client.post("/classify", content=image_of_class(0))
            return asyncio.create_task(request)

        with written("json") as stream:
            waiting = [ask(), ask()]
            while not (batcher.calls_in_flight and batcher.queue_depth):
                await asyncio.sleep(0)
            refused = [await ask() for _ in range(3)]
            model.engine.gate.set()
            await asyncio.gather(*waiting)
            found = requests_in(stream, served)
    assert {answer.status_code for answer in refused} == {503}
    names = {answer.headers["x-request-id"] for answer in refused}
    assert len(names) == 3
    lines = [line for line in found if line["status"] == 503]
    assert {line["request_id"] for line in lines} == names
    assert {line["error"] for line in lines} == {"overloaded"}


def test_a_log_of_warnings_has_no_lines_of_requests(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nor is any made, only for the log to leave it out."""
    caplog.set_level(logging.WARNING, logger="blockserve.access")
    access_log = AccessLog(1)
    assert not access_log.takes(None)
    assert not access_log.takes(EngineFailure("x"))


@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_a_share_of_the_requests_is_written(
    share: float, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="blockserve.access")
    access_log = AccessLog(share)
    taken = sum(access_log.takes(None) for _ in range(1000)) / 1000
    assert taken == pytest.approx(share, abs=0.1)
    everyday = (InvalidImage("x"), Overloaded("x"), DeadlineExceeded("x")) * 20
    assert all(access_log.takes(error) for error in everyday) is (share == 1)


def test_the_servers_faults_are_always_written(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="blockserve.access")
    access_log = AccessLog(0)
    assert access_log.takes(EngineFailure("x"))
    assert access_log.takes(BlockserveError("x"))


def test_a_record_with_arguments_and_a_traceback_is_one_object() -> None:
    with written("json", worker=2) as stream:
        try:
            int("odd")
        except ValueError:
            logging.getLogger("other").exception("it is %s", "broken")
    line = json.loads(only(stream.getvalue().splitlines()))
    assert (line["message"], line["level"], line["worker"]) == (
        "it is broken",
        "ERROR",
        2,
    )
    assert "ValueError: invalid literal" in line["exc_info"]


async def test_lines_are_written_together_soon(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="blockserve.access")
    access_log = AccessLog(1)
    for number in range(3):
        access_log.write(
            request_id=f"r{number}",
            trace_id=None,
            protocol="http",
            model="m",
            version="1",
            status=200,
            error=None,
            seconds=0.5,
            stages_seconds={"read": 0.25},
        )
    while not caplog.records:
        await asyncio.sleep(0)
    text = logs.formatter("json", worker=3).format(only(caplog.records))
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["request_id"] for line in lines] == ["r0", "r1", "r2"]
    assert {line["worker"] for line in lines} == {3}
    times = [line["time"] for line in lines]
    assert times == sorted(times)


def test_a_log_that_nobody_reads_stops_nobody(tmp_path: Path) -> None:
    """A full pipe would hold the event loop up, probes and SIGTERM with it."""
    stub_version(tmp_path)
    arguments = ("--engine", "stub", "--repository", str(tmp_path))
    with started(*arguments, "--access-log-share", "1") as (process, url, _):
        with httpx.Client(base_url=url, timeout=10) as client:
            for _ in range(500):  # of some 300 characters; the pipe takes 65,536
                answer = client.post("/classify", content=image_of_class(1))
                assert answer.status_code == 200
            assert client.get("/healthz").status_code == 200
        process.terminate()
        assert process.wait(timeout=20) == 0


def test_what_a_slow_reader_has_no_place_for_is_left_out_and_told() -> None:
    reader, writer = os.pipe()
    handler = logs.PatientHandler(writer, max_waiting=300_000)
    handler.setFormatter(logs.formatter("text"))
    text = "x" * 100_000
    for _ in range(5):
        handler.handle(logging.makeLogRecord({"msg": text}))
    found = b""
    while b"lines are left out" not in found:
        found += os.read(reader, 65_536)
    handler.flush()
    os.close(reader)
    assert found.count(text.encode()) == 2
    assert re.search(rb"WARNING service\.telemetry\.logs  3 lines are left out", found)
    handler.handle(logging.makeLogRecord({"msg": "nobody is there any more"}))
    handler.flush()
    handler.close()
    os.close(writer)


def test_a_worker_is_named_in_text() -> None:
    with written("text", worker=2) as stream:
        logging.getLogger("other").warning("it is %s", "late")
    assert re.search(r"WARNING \[worker 2\] other  it is late$", stream.getvalue())


def test_the_program_logs_as_its_setting_says(tmp_path: Path) -> None:
    stub_version(tmp_path)
    arguments = ("--engine", "stub", "--repository", str(tmp_path))
    with started(*arguments, "--log-format", "json") as (_, _, lines):
        logged = [json.loads(line) for line in lines if line.startswith("{")]
    assert "stub version 1 is available (stub)" in {one["message"] for one in logged}
