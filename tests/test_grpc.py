"""The gateway's own gRPC API, and what all services on its port share."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from proto.blockserve.v1.image_classifier_pb2 import (
    ClassifyRequest,
    ClassifyStreamRequest,
)
from proto.blockserve.v1.image_classifier_pb2_grpc import ImageClassifierStub
from service.batching import Batcher
from service.engines.stub import StubEngine
from service.grpc.image_classifier import ImageClassifierServicer
from service.grpc.streams import MAX_UNDER_WAY
from service.repository import Target
from tests.support import Served, image_of_class, only, serving, stub_version

SERVICES = {
    "blockserve.v1.ImageClassifier",
    "inference.GRPCInferenceService",
    "tensorflow.serving.ModelService",
    "tensorflow.serving.PredictionService",
}
OURS = "blockserve.v1.ImageClassifier"


@pytest.fixture(scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    root = tmp_path_factory.mktemp("repository")
    stub_version(root, version=3)
    async with serving(root, labels={"stub": {"stable": 3}}) as running:
        yield running


def channel_to(served: Served) -> grpc.aio.Channel:
    """A channel with a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    return grpc.aio.insecure_channel(f"127.0.0.1:{served.running.grpc_port}", options)


def stub_of(channel: grpc.aio.Channel) -> Any:
    return ImageClassifierStub(channel)  # type: ignore[no-untyped-call]  # generated


def parts_of(served: Served, name: str = "stub") -> tuple[StubEngine, Batcher]:
    with served.running.gateway.repository.lease(Target(name=name)) as version:
        engine = version.engine
    assert isinstance(engine, StubEngine)
    return engine, version.batchers["serving_default"]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0)


def asked(number: int, **request: Any) -> ClassifyStreamRequest:
    image = image_of_class(number % 10)
    return ClassifyStreamRequest(
        id=str(number), request=ClassifyRequest(images=[image], **request)
    )


def classes_of(answer: Any) -> list[int]:
    return [result.predictions[0].index for result in answer.results]


async def test_images_are_classified(served: Served) -> None:
    images = [image_of_class(4), image_of_class(9)]
    async with channel_to(served) as channel:
        answer = await stub_of(channel).Classify(ClassifyRequest(images=images))
    assert (answer.model, answer.version) == ("stub", 3)
    assert classes_of(answer) == [4, 9]
    best = answer.results[0].predictions[0]
    assert (best.label, best.probability) == ("e", pytest.approx(0.9))
    assert [len(result.predictions) for result in answer.results] == [5, 5]


@pytest.mark.parametrize(
    "which",
    [
        {"model": "stub", "version": 3},
        {"model": "stub", "version_label": "stable"},
        {"version": 3},
    ],
)
async def test_a_version_is_named_by_number_or_label(
    served: Served, which: Any
) -> None:
    request = ClassifyRequest(images=[image_of_class(4)], top_k=1, **which)
    async with channel_to(served) as channel:
        answer = await stub_of(channel).Classify(request)
    assert len(only(answer.results).predictions) == 1


@pytest.mark.parametrize(
    ("request_fields", "code", "details"),
    [
        ({}, "INVALID_ARGUMENT", "the request holds no image"),
        ({"images": [b"no image"]}, "INVALID_ARGUMENT", "image"),
        (
            {"images": [image_of_class(1)], "top_k": 0},
            "INVALID_ARGUMENT",
            "top_k must be at least 1, got 0",
        ),
        (
            {"images": [image_of_class(1)], "model": "other"},
            "NOT_FOUND",
            "there is no model 'other'",
        ),
        (
            {"images": [image_of_class(1)], "version": 9},
            "NOT_FOUND",
            "has no version 9",
        ),
        (
            {"images": [image_of_class(1)] * 65},
            "INVALID_ARGUMENT",
            "65 images; at most 64",
        ),
    ],
)
async def test_what_is_wrong_is_said(
    served: Served, request_fields: Any, code: str, details: str
) -> None:
    async with channel_to(served) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await stub_of(channel).Classify(ClassifyRequest(**request_fields))
    assert refusal.value.code().name == code
    assert details in (refusal.value.details() or "")


@pytest.mark.parametrize("letter", ["x", "é", "\n"])
async def test_a_long_error_still_comes_to_the_client(
    served: Served, letter: str
) -> None:
    """Of headers that are too long it would be told just that."""
    request = ClassifyRequest(images=[image_of_class(1)], model=letter * 20_000)
    async with channel_to(served) as channel:
        with pytest.raises(grpc.aio.AioRpcError, match="there is no model") as refusal:
            await stub_of(channel).Classify(request)
    assert refusal.value.code() == grpc.StatusCode.NOT_FOUND
    assert (refusal.value.details() or "").endswith("…")


async def test_a_stream_answers_what_is_ready_first(tmp_path: Path) -> None:
    for name in ("slow", "fast"):
        stub_version(tmp_path, name)
    async with serving(tmp_path) as served, channel_to(served) as channel:
        engine, batcher = parts_of(served, "slow")
        engine.gate.clear()
        call = stub_of(channel).ClassifyStream()
        await call.write(asked(1, model="slow"))
        await until(lambda: bool(batcher._running))
        await call.write(asked(2, model="fast"))
        first = await call.read()
        assert (first.id, first.response.model) == ("2", "fast")
        engine.gate.set()
        second = await call.read()
        assert (second.id, second.response.model) == ("1", "slow")
        await call.done_writing()
        assert await call.read() == grpc.aio.EOF


async def test_every_request_of_a_stream_has_its_answer(served: Served) -> None:
    async with channel_to(served) as channel:
        call = stub_of(channel).ClassifyStream(asked(number) for number in range(500))
        answers = {one.id: only(classes_of(one.response)) async for one in call}
    assert answers == {str(number): number % 10 for number in range(500)}


async def test_an_error_does_not_end_a_stream(served: Served) -> None:
    wrong = ClassifyRequest(images=[b"no image"])
    async with channel_to(served) as channel:
        call = stub_of(channel).ClassifyStream(
            [
                ClassifyStreamRequest(id="a", request=wrong),
                ClassifyStreamRequest(id="b"),
                ClassifyStreamRequest(id="c", timeout_seconds=-1),
                ClassifyStreamRequest(id="d", timeout_seconds=float("nan")),
                asked(7),
            ]
        )
        answers = {one.id: one async for one in call}
    error = answers["a"].error
    assert (error.code, error.reason) == (3, "invalid_image")
    assert not error.HasField("retry_after_seconds")
    assert answers["b"].error.reason == "no_image"
    for name in ("c", "d"):
        assert "timeout_seconds" in answers[name].error.message
    assert classes_of(answers["7"].response) == [7]


@pytest.mark.parametrize(
    "method",
    [
        "/blockserve.v1.ImageClassifier/ClassifyStream",
        "/inference.GRPCInferenceService/ModelStreamInfer",
    ],
)
async def test_a_message_that_cannot_be_read_costs_those_before_it_no_answer(
    served: Served, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with channel_to(served) as channel:
        call = channel.stream_stream(method)([b"", b"no message", b""])
        assert await call.read()
        with pytest.raises(grpc.aio.AioRpcError, match="a message cannot be read"):
            await call.read()
        assert await call.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "ERROR" not in caplog.text


async def test_what_nobody_foresaw_does_not_end_a_stream(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(served.running.gateway.classifier, "classify", fail)
    async with channel_to(served) as channel:
        call = stub_of(channel).ClassifyStream([asked(7)])
        answers = [one async for one in call]
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await stub_of(channel).Classify(asked(7).request)
    assert only(answers).error.code == 13
    assert only(answers).error.reason == "internal"
    assert refusal.value.code() == grpc.StatusCode.INTERNAL
    assert "secret" not in only(answers).error.message + (refusal.value.details() or "")
    assert "secret" in caplog.text


async def test_a_request_of_a_stream_has_its_own_time(tmp_path: Path) -> None:
    stub_version(tmp_path)
    async with serving(tmp_path) as served, channel_to(served) as channel:
        engine, _ = parts_of(served)
        engine.gate.clear()
        late = ClassifyStreamRequest(
            id="late", request=asked(1).request, timeout_seconds=0.02
        )
        call = stub_of(channel).ClassifyStream()
        await call.write(late)
        answer = await call.read()
        assert (answer.id, answer.error.reason) == ("late", "deadline_exceeded")
        engine.gate.set()
        await call.write(asked(2))
        assert classes_of((await call.read()).response) == [2]
        await call.done_writing()


class Late:
    """The context of a call whose time was up before it was looked at."""

    def time_remaining(self) -> float:
        return 0.0

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def trailing_metadata(self) -> tuple[()]:
        return ()

    def set_trailing_metadata(self, _: Any) -> None:
        """Nobody reads it."""

    async def abort(self, code: grpc.StatusCode, *_: Any) -> None:
        raise TimeoutError(code)


async def test_a_call_whose_time_is_up_gets_no_place_in_the_queue(
    tmp_path: Path,
) -> None:
    stub_version(tmp_path)
    async with serving(tmp_path) as served:
        engine, _ = parts_of(served)
        engine._record = True
        servicer: Any = ImageClassifierServicer(served.running.gateway)
        with pytest.raises(TimeoutError, match="DEADLINE_EXCEEDED"):
            await servicer.Classify(asked(1).request, Late())
        assert not engine.batches


async def test_a_stream_is_read_no_faster_than_it_is_answered(tmp_path: Path) -> None:
    stub_version(tmp_path)
    async with serving(tmp_path) as served, channel_to(served) as channel:
        engine, batcher = parts_of(served)
        engine.gate.clear()
        call = stub_of(channel).ClassifyStream(asked(n) for n in range(300))
        running = served.running.gateway.metrics.requests_in_flight["grpc"]
        await until(lambda: running.value == MAX_UNDER_WAY)
        # Whatever else could come has come by the time that another call is answered.
        with pytest.raises(grpc.aio.AioRpcError):
            await stub_of(channel).Classify(ClassifyRequest())
        assert running.value == MAX_UNDER_WAY
        assert batcher.queue_depth < MAX_UNDER_WAY
        engine.gate.set()
        assert len([one async for one in call]) == 300


async def test_a_cancelled_stream_leaves_the_queue(tmp_path: Path) -> None:
    stub_version(tmp_path)
    async with serving(tmp_path) as served, channel_to(served) as channel:
        engine, batcher = parts_of(served)
        engine.gate.clear()
        call = stub_of(channel).ClassifyStream(asked(n) for n in range(10))
        await until(lambda: batcher.queue_depth == 9)
        call.cancel()
        await until(lambda: batcher.queue_depth == 0)
        engine.gate.set()
        answer = await stub_of(channel).Classify(asked(3).request)
    assert classes_of(answer) == [3]


async def test_an_overloaded_stream_says_when_to_come_back(tmp_path: Path) -> None:
    stub_version(tmp_path)
    async with (
        serving(tmp_path, max_queue_depth=1) as served,
        channel_to(served) as channel,
    ):
        engine, _ = parts_of(served)
        engine.gate.clear()
        answers = aiter(stub_of(channel).ClassifyStream(asked(n) for n in range(3)))
        refused = await anext(answers)
        assert refused.error.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        assert refused.error.HasField("retry_after_seconds")
        engine.gate.set()
        rest = [one.WhichOneof("outcome") async for one in answers]
    assert rest == ["response"] * 2


async def test_a_drain_is_told_in_a_stream(tmp_path: Path) -> None:
    stub_version(tmp_path)
    async with serving(tmp_path) as served, channel_to(served) as channel:
        call = stub_of(channel).ClassifyStream()
        await call.write(asked(1))
        await call.read()
        served.running.gateway.begin_drain()
        await call.write(asked(2))
        assert (await call.read()).error.reason == "draining"
        await call.done_writing()


async def test_health_is_told_for_each_service(tmp_path: Path) -> None:
    stub_version(tmp_path)
    async with serving(tmp_path) as served, channel_to(served) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        statuses = health_pb2.HealthCheckResponse
        for name in ("", *SERVICES):
            request = health_pb2.HealthCheckRequest(service=name)
            assert (await health.Check(request)).status == statuses.SERVING
        watch = health.Watch(health_pb2.HealthCheckRequest(service=OURS))
        assert (await watch.read()).status == statuses.SERVING
        served.running.gateway.begin_drain()
        assert (await watch.read()).status == statuses.NOT_SERVING
        watch.cancel()
        with pytest.raises(grpc.aio.AioRpcError, match="NOT_FOUND"):
            await health.Check(health_pb2.HealthCheckRequest(service="other"))


async def test_reflection_tells_all_services_and_their_messages(
    served: Served,
) -> None:
    found = await asyncio.to_thread(reflected, served.running.grpc_port)
    assert found.pop("grpc.health.v1.Health") == ["Check", "List", "Watch"]
    assert "ServerReflectionInfo" in found.pop(
        "grpc.reflection.v1alpha.ServerReflection"
    )
    assert found.keys() == SERVICES
    assert found[OURS] == ["Classify", "ClassifyStream"]
    assert "ModelInfer" in found["inference.GRPCInferenceService"]
    assert "Predict" in found["tensorflow.serving.PredictionService"]


def reflected(port: int) -> dict[str, list[str]]:
    """The methods of each service, from descriptors that the server tells."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        pool = DescriptorPool(database)
        return {
            name: sorted(method.name for method in pool.FindServiceByName(name).methods)
            for name in database.get_services()
        }


async def test_a_message_that_cannot_be_read_is_the_client_s_mistake(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    async with channel_to(served) as channel:
        for method in (f"{OURS}/Classify", "inference.GRPCInferenceService/ModelInfer"):
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await channel.unary_unary(f"/{method}")(b"no message")
            assert refusal.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert "the message cannot be read" in (refusal.value.details() or "")
    assert not caplog.records


async def test_a_token_guards_streams_and_reflection(tmp_path: Path) -> None:
    stub_version(tmp_path)
    metadata = (("authorization", "Bearer secret"),)
    async with (
        serving(tmp_path, token="secret") as served,  # noqa: S106, a test's
        channel_to(served) as channel,
    ):
        stub = stub_of(channel)
        calls: list[Callable[[], Awaitable[Any]]] = [
            lambda: stub.Classify(asked(1).request),
            lambda: stub.ClassifyStream([asked(1)]).read(),
        ]
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError, match="UNAUTHENTICATED"):
                await call()
        with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
            await asyncio.to_thread(reflected, served.running.grpc_port)
        stream = stub.ClassifyStream([asked(1)], metadata=metadata)
        assert classes_of((await stream.read()).response) == [1]


async def test_a_connection_has_no_more_calls_under_way_than_allowed(
    tmp_path: Path,
) -> None:
    stub_version(tmp_path)
    async with (
        serving(tmp_path, max_calls_per_connection=2) as served,
        channel_to(served) as channel,
    ):
        engine, _ = parts_of(served)
        engine.gate.clear()
        running = served.running.gateway.metrics.requests_in_flight["grpc"]
        stub = stub_of(channel)
        # The client knows the limit once a call has been answered.
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Classify(ClassifyRequest())
        calls = [stub.Classify(asked(number).request) for number in range(4)]
        await until(lambda: running.value == 2)
        async with channel_to(served) as other:
            with pytest.raises(grpc.aio.AioRpcError):
                await stub_of(other).Classify(ClassifyRequest())
        assert running.value == 2
        engine.gate.set()
        first, second, *others = await asyncio.gather(*calls, return_exceptions=True)
    assert [only(classes_of(one)) for one in (first, second)] == [0, 1]
    # A place is free a moment later than its client knows; who is quicker than that is
    # told to come again.
    for one in others:
        if isinstance(one, grpc.aio.AioRpcError):
            assert one.code() == grpc.StatusCode.UNAVAILABLE
        else:
            assert only(classes_of(one)) in {2, 3}
