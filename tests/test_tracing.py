"""Traces: what is recorded of requests, whose trace it joins, and where it goes."""

import asyncio
import logging
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any, Final

import grpc
import httpx
import pytest
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.semconv._incubating.attributes import rpc_attributes
from opentelemetry.semconv.attributes import (
    error_attributes,
    http_attributes,
    server_attributes,
    url_attributes,
)

from proto.blockserve.v1 import image_classifier_pb2_grpc
from proto.blockserve.v1.image_classifier_pb2 import (
    ClassifyRequest,
    ClassifyStreamRequest,
)
from proto.inference import grpc_inference_service_pb2_grpc
from proto.inference.infer_pb2 import ModelInferRequest
from proto.tensorflow.serving import prediction_service_pb2_grpc
from proto.tensorflow.serving.predict_pb2 import PredictRequest
from service.errors import InvalidSettings
from service.gateway import Gateway
from service.settings import Settings
from service.telemetry.logs import Lines
from service.telemetry.trace_context import TraceContext
from service.telemetry.tracing import load_tracer, otel
from tests.collectors import Collector, GrpcCollector, collecting
from tests.gateways import in_front_of, pixels
from tests.replicas import (
    refusal,
    replicas,
    request_of,
    silence,
    until,
)
from tests.support import (
    Served,
    image_of_class,
    only,
    serving,
    started,
    stub_version,
)

TRACE: Final = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN: Final = "00f067aa0ba902b7"
SAMPLED: Final = f"00-{TRACE}-{SPAN}-01"
UNSAMPLED: Final = f"00-{TRACE}-{SPAN}-00"
OPENMETRICS: Final = {"accept": "application/openmetrics-text; version=1.0.0"}
PREDICT: Final = "tensorflow.serving.PredictionService/Predict"
IN_A_REQUEST: Final = ("decode", "queue", "batch", "engine")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    stub_version(tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        yield collector


@asynccontextmanager
async def channel_to(served: Served) -> AsyncIterator[grpc.aio.Channel]:
    address = f"127.0.0.1:{served.running.grpc_port}"
    async with grpc.aio.insecure_channel(address) as channel:
        yield channel


async def classified(served: Served, **headers: str) -> httpx.Response:
    return await served.client.post(
        "/classify", content=image_of_class(3), headers=headers
    )


def ask_http(path: str, **body: Any) -> Callable[[Served], Awaitable[Any]]:
    async def ask(served: Served) -> None:
        answer = await served.client.post(
            path, headers={"traceparent": SAMPLED}, **body
        )
        assert answer.status_code == 200, answer.text

    return ask


def ask_grpc(
    stub: Any, method: str, request: Any
) -> Callable[[Served], Awaitable[Any]]:
    async def ask(served: Served) -> None:
        async with channel_to(served) as channel:
            call = getattr(stub(channel), method)
            await call(request, metadata=(("traceparent", SAMPLED),))

    return ask


def infer_request() -> ModelInferRequest:
    request = ModelInferRequest(model_name="stub", raw_input_contents=[bytes(16)])
    request.inputs.add(name="images", datatype="UINT8", shape=[1, 4, 4, 1])
    return request


PROTOCOLS: Final = {
    "http": (
        ask_http("/models/stub/classify", content=image_of_class(3)),
        "POST /models/{name}/classify",
        {
            "http.request.method": "POST",
            "http.route": "/models/{name}/classify",
            "http.response.status_code": 200,
            "url.path": "/models/stub/classify",
            "url.scheme": "http",
        },
    ),
    "tf_serving_http": (
        ask_http("/v1/models/stub/versions/1:predict", json={"instances": pixels(3)}),
        "POST /v1/models/{name}/versions/{version}:predict",
        {"http.response.status_code": 200},
    ),
    "open_inference_http": (
        ask_http(
            "/v2/models/stub/infer",
            json={
                "inputs": [
                    {
                        "name": "images",
                        "datatype": "UINT8",
                        "shape": [1, 4, 4, 1],
                        "data": [0] * 16,
                    }
                ]
            },
        ),
        "POST /v2/models/{name}/infer",
        {"http.response.status_code": 200},
    ),
    "grpc": (
        ask_grpc(
            image_classifier_pb2_grpc.ImageClassifierStub,
            "Classify",
            ClassifyRequest(images=[image_of_class(3)]),
        ),
        "blockserve.v1.ImageClassifier/Classify",
        {
            "rpc.system.name": "grpc",
            "rpc.method": "blockserve.v1.ImageClassifier/Classify",
            "rpc.response.status_code": "OK",
        },
    ),
    "tf_serving_grpc": (
        ask_grpc(
            prediction_service_pb2_grpc.PredictionServiceStub,
            "Predict",
            PredictRequest.FromString(request_of(3)),
        ),
        PREDICT,
        {"rpc.response.status_code": "OK"},
    ),
    "open_inference_grpc": (
        ask_grpc(
            grpc_inference_service_pb2_grpc.GRPCInferenceServiceStub,
            "ModelInfer",
            infer_request(),
        ),
        "inference.GRPCInferenceService/ModelInfer",
        {"rpc.response.status_code": "OK"},
    ),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_request_and_what_it_went_through_join_the_clients_trace(
    protocol: str, models: Path, collector: Collector
) -> None:
    ask, name, expected = PROTOCOLS[protocol]
    async with serving(models, tracing=True) as served:
        await ask(served)
    request = only(collector.named(name))
    assert (request.trace_id, request.parent_id) == (TRACE, SPAN)
    assert request.span.kind == trace_pb2.Span.SPAN_KIND_SERVER
    assert not request.is_error
    told = request.attributes
    assert told.items() >= expected.items()
    assert (told["blockserve.model"], told["blockserve.version"]) == ("stub", "1")
    assert (told["blockserve.rows"], told["blockserve.protocol"]) == (1, protocol)
    assert told["blockserve.request_id"]
    decode, queue, batch, engine = (
        only(collector.named(stage)) for stage in IN_A_REQUEST
    )
    assert {one.parent_id for one in (decode, queue, batch)} == {request.span_id}
    assert engine.parent_id == batch.span_id
    assert {one.trace_id for one in collector.spans} == {TRACE}
    assert len(collector.spans) == 5
    assert all(request.covers(one) for one in (decode, queue))
    assert batch.covers(engine)
    assert batch.attributes["blockserve.batch.rows"] == 1
    assert batch.linked == {request.place}


def test_attributes_have_the_names_that_the_conventions_give_them() -> None:
    names = {
        error_attributes.ERROR_TYPE,
        http_attributes.HTTP_REQUEST_METHOD,
        http_attributes.HTTP_RESPONSE_STATUS_CODE,
        http_attributes.HTTP_ROUTE,
        rpc_attributes.RPC_METHOD,
        rpc_attributes.RPC_RESPONSE_STATUS_CODE,
        rpc_attributes.RPC_SYSTEM_NAME,
        server_attributes.SERVER_ADDRESS,
        server_attributes.SERVER_PORT,
        url_attributes.URL_PATH,
        url_attributes.URL_SCHEME,
    }
    package = Path(otel.__file__).parent
    text = "".join(path.read_text("utf-8") for path in package.glob("*.py"))
    ours = set(re.findall(r'"((?:error|http|rpc|server|url)\.[a-z_.]+)"', text))
    assert ours == names


async def test_each_request_of_a_stream_is_a_span_of_its_own(
    models: Path, collector: Collector
) -> None:
    async def requests() -> AsyncIterator[ClassifyStreamRequest]:
        for number in (1, 2):
            image = [image_of_class(number)]
            yield ClassifyStreamRequest(
                id=str(number), request=ClassifyRequest(images=image)
            )

    async with serving(models, tracing=True) as served, channel_to(served) as channel:
        stub = image_classifier_pb2_grpc.ImageClassifierStub(channel)
        call = stub.ClassifyStream(requests(), metadata=(("traceparent", SAMPLED),))
        assert len([one async for one in call]) == 2
    found = collector.named("blockserve.v1.ImageClassifier/ClassifyStream")
    assert [one.parent_id for one in found] == [SPAN, SPAN]


async def test_a_request_of_no_trace_begins_one(
    models: Path, collector: Collector
) -> None:
    async with serving(models, tracing=True) as served:
        await classified(served, traceparent="00-nonsense-01")
    request = only(collector.named("POST /classify"))
    assert request.parent_id == ""
    assert request.trace_id not in {TRACE, "0" * 32}


async def test_a_batch_links_to_its_requests_and_they_to_it(
    tmp_path: Path, collector: Collector
) -> None:
    async with (
        replicas() as (replica,),
        in_front_of(
            replica, repository=tmp_path, tfserving_calls_per_replica=1, tracing=True
        ) as served,
    ):
        batcher = queue_of(served)
        replica.gate.clear()
        async with asyncio.TaskGroup() as group:
            group.create_task(classified(served))
            await until(lambda: replica.under_way)
            for flags in ("01", "01", "00"):  # the last is not recorded
                group.create_task(
                    classified(served, traceparent=f"00-{TRACE}-{SPAN}-{flags}")
                )
            await until(lambda: batcher.queue_depth == 3)
            replica.gate.set()
    _, first, second = collector.named("POST /classify")
    _, batch = collector.named("batch")
    assert batch.linked == {first.place, second.place}
    assert batch.attributes["blockserve.batch.requests"] == 3
    lead, other = (
        (first, second) if batch.parent_id == first.span_id else (second, first)
    )
    assert batch.parent_id == lead.span_id
    assert lead.linked == set()
    assert other.linked == {batch.place}


async def test_tensorflow_serving_is_told_the_call_that_it_is_a_part_of(
    tmp_path: Path, collector: Collector
) -> None:
    async with (
        replicas() as (replica,),
        in_front_of(replica, repository=tmp_path, tracing=True) as served,
    ):
        await classified(served, traceparent=SAMPLED, tracestate="a=1,b=2")
    call, engine = only(collector.named(PREDICT)), only(collector.named("engine"))
    assert call.parent_id == engine.span_id
    assert call.span.kind == trace_pb2.Span.SPAN_KIND_CLIENT
    metadata = replica.asked[-1].metadata
    assert metadata["traceparent"] == f"00-{TRACE}-{call.span_id}-01"
    assert metadata["tracestate"] == "a=1,b=2"
    host, port = replica.address.split(":")
    told = call.attributes
    assert (told["server.address"], told["server.port"]) == (host, int(port))
    assert told["rpc.response.status_code"] == "OK"


async def test_a_client_with_much_to_tell_spoils_no_call_to_tensorflow_serving(
    tmp_path: Path, collector: Collector
) -> None:
    """A server refuses headers of more than 8 KB: the whole batch with the call."""
    stub_version(tmp_path)
    state = ",".join(f"k{n:0>239}=" + "v" * 250 for n in range(32))
    async with (
        serving(tmp_path) as behind,
        serving(
            tmp_path,
            engine="tfserving",
            tfserving=f"127.0.0.1:{behind.running.grpc_port}",
            tracing=True,
        ) as served,
    ):
        answer = await classified(served, traceparent=SAMPLED, tracestate=state)
    assert answer.status_code == 200, answer.text
    assert only(collector.named(PREDICT)).trace_id == TRACE


async def test_each_attempt_is_a_span_that_tells_its_outcome(
    tmp_path: Path, collector: Collector
) -> None:
    refuse = refusal(grpc.StatusCode.UNAVAILABLE, "busy")
    async with (
        replicas(2) as both,
        in_front_of(*both, repository=tmp_path, tracing=True) as served,
    ):
        for replica in both:
            replica.next_answers.append(refuse)
        answer = await classified(served, traceparent=SAMPLED)
        assert answer.status_code == 200
    failed, refused, answered = collector.named(PREDICT)
    for one in (failed, refused):
        assert one.is_error
        assert one.attributes["error.type"] == "UNAVAILABLE"
    assert not answered.is_error
    ports = {one.attributes["server.port"] for one in (failed, refused)}
    assert ports == {int(one.address.split(":")[1]) for one in both}
    assert not only(collector.named("engine")).is_error


async def test_a_call_that_another_overtakes_is_cancelled_and_no_error(
    tmp_path: Path, collector: Collector
) -> None:
    async with (
        replicas(2) as both,
        in_front_of(
            *both, repository=tmp_path, tracing=True, tfserving_hedge_seconds=0.01
        ) as served,
    ):
        both[0].behaviour = silence
        # Which of the two is asked first is not said: it is the silent one in the end.
        while not any(one.cancelled for one in both[0].asked):
            answer = await classified(served, traceparent=SAMPLED)
            assert answer.status_code == 200
    outcomes = [
        one.attributes["rpc.response.status_code"] for one in collector.named(PREDICT)
    ]
    assert set(outcomes) == {"OK", "CANCELLED"}
    assert not any(one.is_error for one in collector.spans)


def queue_of(served: Served) -> Any:
    repository = served.running.gateway.repository
    (version,) = repository.models["stub"].available
    return version.for_images.batcher


async def test_what_the_server_is_to_blame_for_is_an_error(
    tmp_path: Path, collector: Collector
) -> None:
    failing = refusal(grpc.StatusCode.INTERNAL, "broken")
    async with (
        replicas() as (replica,),
        in_front_of(replica, repository=tmp_path, tracing=True) as served,
    ):
        replica.behaviour = failing
        assert (await classified(served)).status_code == 500
        async with channel_to(served) as channel:
            stub = image_classifier_pb2_grpc.ImageClassifierStub(channel)
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.Classify(ClassifyRequest(images=[image_of_class(1)]))
    for name, status in (
        ("POST /classify", 500),
        ("blockserve.v1.ImageClassifier/Classify", "INTERNAL"),
    ):
        request = only(collector.named(name))
        assert request.is_error
        assert request.attributes["error.type"] == "engine_failure"
        assert status in request.attributes.values()
    for one in collector.named("batch", "engine"):
        assert one.is_error
        assert one.attributes["error.type"] == "engine_failure"


async def test_what_the_client_is_to_blame_for_is_told_but_no_error(
    models: Path, collector: Collector
) -> None:
    async with serving(models, tracing=True) as served:
        assert (await served.client.post("/classify", content=b"?")).status_code == 422
        answer = await served.client.post("/models/no/classify", content=b"?")
        assert answer.status_code == 404
    invalid, unknown = collector.spans
    assert not invalid.is_error
    assert not unknown.is_error
    assert invalid.attributes["error.type"] == "invalid_image"
    assert unknown.attributes["error.type"] == "model_not_found"
    assert unknown.attributes["url.path"] == "/models/no/classify"
    assert "blockserve.model" not in unknown.attributes


async def test_who_waits_until_the_time_is_up_was_in_the_queue(
    tmp_path: Path, collector: Collector
) -> None:
    async with (
        replicas() as (replica,),
        in_front_of(
            replica, repository=tmp_path, tfserving_calls_per_replica=1, tracing=True
        ) as served,
    ):
        replica.gate.clear()
        async with asyncio.TaskGroup() as group:
            group.create_task(classified(served))
            await until(lambda: replica.under_way)
            answer = await classified(
                served, **{"x-request-timeout": "0.8", "traceparent": SAMPLED}
            )
            assert answer.status_code == 504
            replica.gate.set()
    late = next(one for one in collector.named("POST /classify") if one.is_error)
    queue = next(one for one in collector.named("queue") if one.trace_id == TRACE)
    assert queue.parent_id == late.span_id
    assert late.covers(queue)
    waited = queue.span.end_time_unix_nano - queue.span.start_time_unix_nano
    assert waited > 0.1e9


async def test_what_is_refused_at_the_door_is_recorded(
    tmp_path: Path, collector: Collector
) -> None:
    async with (
        replicas() as (replica,),
        in_front_of(
            replica,
            repository=tmp_path,
            tfserving_calls_per_replica=1,
            max_queue_depth=1,
            tracing=True,
        ) as served,
    ):
        batcher = queue_of(served)
        replica.gate.clear()
        async with asyncio.TaskGroup() as group:
            group.create_task(classified(served))
            await until(lambda: replica.under_way)
            group.create_task(classified(served))
            await until(lambda: batcher.queue_depth == 1)
            for _ in range(2):  # the second is refused on its headers
                answer = await classified(served, traceparent=SAMPLED)
                assert answer.status_code == 503
            replica.gate.set()
    refused = [one for one in collector.named("POST /classify") if one.is_error]
    assert [one.parent_id for one in refused] == [SPAN, SPAN]
    for one in refused:
        assert one.attributes["error.type"] == "overloaded"
        assert one.attributes["http.response.status_code"] == 503


@pytest.mark.parametrize("tracing", [True, False])
async def test_the_log_and_exemplars_name_the_clients_trace(
    tracing: bool, models: Path, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "blockserve.access")
    async with serving(models, tracing=tracing, access_log_share=1) as served:
        await classified(served, traceparent=SAMPLED)
        async with channel_to(served) as channel:
            stub = image_classifier_pb2_grpc.ImageClassifierStub(channel)
            request = ClassifyRequest(images=[image_of_class(1)])
            await stub.Classify(request, metadata=(("traceparent", SAMPLED),))
        exposed = (await served.client.get("/metrics", headers=OPENMETRICS)).text
    assert [line["trace_id"] for line in lines(caplog)] == [TRACE, TRACE]
    exemplar = f'# {{trace_id="{TRACE}"}}'
    for protocol in ("http", "grpc"):
        assert any(
            exemplar in line
            for line in exposed.splitlines()
            if line.startswith("blockserve_request_duration_seconds_bucket")
            and f'protocol="{protocol}"' in line
        )
    with_exemplars = {
        found[1]
        for line in exposed.splitlines()
        if exemplar in line and (found := re.search(r'stage="(\w+)"', line))
    }
    batch = {"queue", "inference"} if tracing else set()
    assert with_exemplars == {"read", "decode", "encode"} | batch
    assert bool(collector.spans) is tracing


def lines(caplog: pytest.LogCaptureFixture) -> list[Mapping[str, Any]]:
    return [
        line.fields
        for record in caplog.records
        if isinstance(record.msg, Lines)
        for line in record.msg
    ]


async def test_who_has_no_trace_has_none_in_the_log(
    models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "blockserve.access")
    async with serving(models, access_log_share=1) as served:
        await classified(served)
        await classified(served, traceparent="nonsense")
        exposed = (await served.client.get("/metrics", headers=OPENMETRICS)).text
    assert len(lines(caplog)) == 2
    assert not any("trace_id" in line for line in lines(caplog))
    assert "trace_id" not in exposed


async def test_what_the_client_does_not_record_is_not_recorded(
    tmp_path: Path, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "blockserve.access")
    async with (
        replicas() as (replica,),
        in_front_of(
            replica, repository=tmp_path, tracing=True, access_log_share=1
        ) as served,
    ):
        await classified(served, traceparent=UNSAMPLED)
        exposed = (await served.client.get("/metrics", headers=OPENMETRICS)).text
    assert collector.spans == []
    assert not any("traceparent" in one.metadata for one in replica.asked)
    assert only(lines(caplog))["trace_id"] == TRACE
    assert "trace_id" not in exposed


async def test_the_sampler_is_the_one_that_the_environment_names(
    models: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0")
    async with serving(models, tracing=True) as served:
        await classified(served)
        await classified(served, traceparent=SAMPLED)
    assert {one.trace_id for one in collector.spans} == {TRACE}
    assert len(collector.spans) == 5


async def test_the_resource_is_what_the_environment_says(
    models: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(models, tracing=True) as served:
        await classified(served)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "cats")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    async with serving(models, tracing=True) as served:
        await classified(served)
    resources = [one.resource for one in collector.named("POST /classify")]
    assert [one["service.name"] for one in resources] == ["blockserve", "cats"]
    assert resources[1]["deployment.environment.name"] == "test"
    assert resources[1]["service.instance.id"]


async def test_spans_go_over_grpc_where_the_environment_says_so(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = GrpcCollector()
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((collector,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    try:
        async with serving(models, tracing=True) as served:
            await classified(served, traceparent=SAMPLED)
    finally:
        await server.stop(None)
    assert len(collector.spans) == 5


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("OTEL_TRACES_EXPORTER", "pigeon", "there is no exporter 'pigeon'"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "morse", "expected grpc or http/protobuf"),
        ("OTEL_BSP_SCHEDULE_DELAY", "0", "schedule_delay_millis must be positive"),
    ],
)
def test_a_variable_that_makes_no_sense_is_told(
    variable: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidSettings, match=message):
        load_tracer(scheme="http")


async def test_no_exporter_is_a_choice(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    async with serving(models, tracing=True) as served:
        assert (await classified(served)).status_code == 200


async def test_without_the_extra_a_gateway_serves_but_does_not_trace(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "service.telemetry.tracing.otel")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    async with serving(models) as served:
        assert (await classified(served)).status_code == 200
    with pytest.raises(InvalidSettings, match=r"pip install 'blockserve\[tracing\]'"):
        Gateway(Settings(tracing=True))


def test_tracing_that_is_off_loads_nothing() -> None:
    code = (
        "import asyncio, sys; "
        "from service.gateway import Gateway; from service.settings import Settings\n"
        "async def make(): Gateway(Settings(engine='stub'))\n"
        "asyncio.run(make()); print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    # The API alone comes with the web framework.
    assert not [
        name
        for name in done.stdout.split()
        if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))
        or name == "service.telemetry.tracing.otel"
    ]


async def test_a_collector_that_is_away_costs_neither_requests_nor_the_exit(
    models: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen
        port = closed.getsockname()[1]
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
        monkeypatch.setattr(otel, "FLUSH_SECONDS", 0.2)
        async with serving(models, tracing=True) as served:
            for _ in range(20):
                assert (await classified(served)).status_code == 200
            await until(lambda: told_of_the_collector(caplog))
            stopped_at = monotonic()
        assert monotonic() - stopped_at < 5
    told = [record.msg for record in told_of_the_collector(caplog)]
    assert len(told) == len(set(told)) <= 5


async def test_a_collector_that_does_not_answer_does_not_delay_the_exit(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        monkeypatch.setattr(otel, "FLUSH_SECONDS", 0.2)
        async with serving(models, tracing=True) as served:
            assert (await classified(served)).status_code == 200
            stopped_at = monotonic()
        assert monotonic() - stopped_at < 5


def told_of_the_collector(caplog: pytest.LogCaptureFixture) -> list[Any]:
    return [one for one in caplog.records if one.name.startswith("opentelemetry")]


def test_each_worker_exports_its_own_spans_up_to_the_last(
    models: Path, collector: Collector
) -> None:
    connections = 32  # the kernel deals them out; all to one worker is no chance
    with started(
        *("--repository", str(models), "--engine", "stub"),
        *("--workers", "2", "--tracing"),
    ) as (process, url, _):
        for _ in range(connections):
            answer = httpx.post(f"{url}/classify", content=image_of_class(3))
            assert answer.status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
    requests = collector.named("POST /classify")
    assert len(requests) == connections
    assert len({one.resource["service.instance.id"] for one in requests}) == 2


@pytest.mark.parametrize(
    ("header", "flags"),
    [
        (SAMPLED, 1),
        (UNSAMPLED, 0),
        (f" {SAMPLED}\t", 1),
        (f"00-{TRACE}-{SPAN}-03", 3),
        (f"01-{TRACE}-{SPAN}-01", 1),
        (f"cc-{TRACE}-{SPAN}-01-what-is-to-come", 1),
    ],
)
def test_a_traceparent_is_read(header: str, flags: int) -> None:
    context = TraceContext.read(header, "a=1")
    assert context == (TRACE, SPAN, flags, "a=1")
    assert context.is_sampled is bool(flags & 1)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "00",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01 ",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"cc-{TRACE}-{SPAN}-01.",
        f"0-{TRACE}-{SPAN}-01",
        "é" * 55,
    ],
)
def test_what_is_no_traceparent_is_ignored(header: str) -> None:
    # Blanks around it are the header's, and these are cut off.
    header = header + "x" if header.endswith(" ") else header
    assert TraceContext.read(header) is None
