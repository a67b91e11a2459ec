"""What Prometheus is told, over every protocol and of all that has a state."""

import asyncio
import operator
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from proto.blockserve.v1.image_classifier_pb2 import ClassifyRequest
from proto.blockserve.v1.image_classifier_pb2_grpc import ImageClassifierStub
from proto.inference.grpc_inference_service_pb2_grpc import GRPCInferenceServiceStub
from proto.inference.infer_pb2 import ModelInferRequest
from proto.tensorflow.serving.get_model_metadata_pb2 import GetModelMetadataRequest
from proto.tensorflow.serving.get_model_status_pb2 import GetModelStatusRequest
from proto.tensorflow.serving.model_pb2 import ModelSpec
from proto.tensorflow.serving.model_service_pb2_grpc import ModelServiceStub
from proto.tensorflow.serving.predict_pb2 import PredictRequest
from proto.tensorflow.serving.prediction_service_pb2_grpc import PredictionServiceStub
from proto.tensors import to_tensor_proto
from service.engines.stub import StubEngine
from service.errors import InvalidRequest
from service.http import classify
from service.http.open_inference import endpoint as open_inference
from service.http.tf_serving import endpoint as tf_serving
from service.telemetry.series import Buckets, Family, Histogram
from tests.replicas import FakeReplica, refusal
from tests.support import Served, image_of_class, only, serving, stub_version

PIXELS = np.zeros((1, 4, 4, 1), np.uint8)
PNG = {"content-type": "image/png"}


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    stub_version(tmp_path)
    async with serving(tmp_path) as served:
        yield served


async def samples(served: Served) -> dict[tuple[str, ...], float]:
    """Values by the name and the values of the labels, in the order of their names."""
    text = (await served.client.get("/metrics")).text
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "le" not in sample.labels
    }


def engine_of(served: Served) -> StubEngine:
    model = only(served.running.gateway.repository.models.values())
    engine = model.available[0].engine
    assert isinstance(engine, StubEngine)
    return engine


async def over_http(served: Served) -> None:
    await served.client.post("/classify", content=image_of_class(1), headers=PNG)


async def over_tf_serving_http(served: Served) -> None:
    body = {"instances": PIXELS.tolist()}
    await served.client.post("/v1/models/stub:predict", json=body)


async def over_open_inference_http(served: Served) -> None:
    tensor = {"name": "images", "datatype": "UINT8", "shape": PIXELS.shape}
    body = {"inputs": [{**tensor, "data": PIXELS.ravel().tolist()}]}
    await served.client.post("/v2/models/stub/infer", json=body)


async def over_grpc(served: Served) -> None:
    async with grpc.aio.insecure_channel(target(served)) as channel:
        request = ClassifyRequest(images=[image_of_class(1)])
        await ImageClassifierStub(channel).Classify(request)


async def over_tf_serving_grpc(served: Served) -> None:
    request = PredictRequest(inputs={"images": to_tensor_proto(PIXELS)})
    request.model_spec.name = "stub"
    async with grpc.aio.insecure_channel(target(served)) as channel:
        await PredictionServiceStub(channel).Predict(request)


async def over_open_inference_grpc(served: Served) -> None:
    request = ModelInferRequest(
        model_name="stub", raw_input_contents=[PIXELS.tobytes()]
    )
    request.inputs.add(name="images", datatype="UINT8", shape=PIXELS.shape)
    async with grpc.aio.insecure_channel(target(served)) as channel:
        await GRPCInferenceServiceStub(channel).ModelInfer(request)


def target(served: Served) -> str:
    return f"127.0.0.1:{served.running.grpc_port}"


@pytest.mark.parametrize(
    ("protocol", "ask"),
    [
        ("http", over_http),
        ("tf_serving_http", over_tf_serving_http),
        ("open_inference_http", over_open_inference_http),
        ("grpc", over_grpc),
        ("tf_serving_grpc", over_tf_serving_grpc),
        ("open_inference_grpc", over_open_inference_grpc),
    ],
)
async def test_every_stage_of_a_request_is_timed_over_every_protocol(
    served: Served, protocol: str, ask: Any
) -> None:
    await ask(served)
    found = await samples(served)
    labels = (protocol, "1")
    assert found["blockserve_requests_total", "stub", *labels] == 1
    duration = found["blockserve_request_duration_seconds_sum", "stub", *labels]
    stages = {
        stage: found["blockserve_stage_duration_seconds_sum", "stub", stage, "1"]
        for stage in ("read", "decode", "queue", "assembly", "inference", "encode")
    }
    assert all(seconds > 0 for seconds in stages.values()), stages
    assert sum(stages.values()) <= duration


@pytest.mark.parametrize(
    ("ask", "module", "name"),
    [
        (over_http, classify, "images_of"),
        (over_tf_serving_http, tf_serving, "PredictRequest.read"),
        (over_open_inference_http, open_inference.requests, "read"),
    ],
)
async def test_to_make_sense_of_a_body_is_no_part_of_reading_it(
    served: Served, monkeypatch: pytest.MonkeyPatch, ask: Any, module: Any, name: str
) -> None:
    seconds = 0.05
    parse = operator.attrgetter(name)(module)

    def slowly(*arguments: Any, **options: Any) -> Any:
        time.sleep(seconds)
        return parse(*arguments, **options)

    monkeypatch.setattr(f"{module.__name__}.{name}", slowly)
    await ask(served)
    found = await samples(served)
    stage = "blockserve_stage_duration_seconds_sum", "stub"
    assert found[*stage, "decode", "1"] >= seconds
    assert found[*stage, "read", "1"] < seconds


async def test_what_a_busy_engine_does_and_what_waits_for_it_shows(
    tmp_path: Path,
) -> None:
    stub_version(tmp_path)
    async with serving(
        tmp_path, engine_slots=1, max_batch_size=2, max_queue_depth=7
    ) as served:
        engine_of(served).gate.clear()
        first = asyncio.create_task(over_http(served))
        while (await samples(served))[
            "blockserve_engine_calls_in_flight", "stub", "1"
        ] < 1:
            pass
        second = asyncio.create_task(over_http(served))
        while (await samples(served))[
            "blockserve_queue_depth_requests", "stub", "1"
        ] < 1:
            pass
        before, after = await samples(served), await samples(served)
        for growing in (
            "blockserve_engine_busy_seconds_total",
            "blockserve_queue_oldest_age_seconds",
        ):
            assert 0 < before[growing, "stub", "1"] < after[growing, "stub", "1"]
        assert after["blockserve_engine_slots", "stub", "1"] == 1
        assert after["blockserve_queue_limit_requests", "stub", "1"] == 7
        limit = ("blockserve_batch_size_limit_rows", "stub", "serving_default", "1")
        assert after[limit] == 2
        engine_of(served).gate.set()
        await asyncio.gather(first, second)
        idle = await samples(served)
        assert idle["blockserve_engine_calls_in_flight", "stub", "1"] == 0
        assert idle["blockserve_queue_oldest_age_seconds", "stub", "1"] == 0


async def test_padding_is_counted(tmp_path: Path) -> None:
    stub_version(tmp_path)
    async with serving(tmp_path, allowed_batch_sizes=[4]) as served:
        await over_http(served)
        found = await samples(served)
    assert found["blockserve_padding_rows_total", "stub", "1"] == 3
    assert found["blockserve_batch_size_rows_sum", "stub", "1"] == 1


async def test_the_states_of_versions_and_their_load_times_show(
    tmp_path: Path,
) -> None:
    stub_version(tmp_path, version=1)
    broken = stub_version(tmp_path, version=2)
    (broken / "saved_model.pb").unlink()
    async with serving(tmp_path) as served:
        found = await samples(served)
    states = {
        (version, state): value
        for (name, *labels), value in found.items()
        if name == "blockserve_model_version_state"
        for _, state, version in [labels]
    }
    current = {key for key, value in states.items() if value}
    assert current == {("1", "available"), ("2", "failed")}
    assert len(states) == 12
    assert found["blockserve_model_load_duration_seconds", "stub", "1"] > 0
    assert found["blockserve_model_load_failures_total", "stub"] == 1
    assert found["blockserve_ready",] == 1


@pytest.mark.parametrize(
    ("path", "protocol"),
    [
        ("/classify?top_k=none", "http"),
        ("/models/stub/classify", "http"),
        ("/v1/models/stub:predict", "tf_serving_http"),
        ("/v2/models/stub/infer", "open_inference_http"),
    ],
)
async def test_a_body_of_which_nothing_can_be_made_was_for_its_model_all_the_same(
    served: Served, path: str, protocol: str
) -> None:
    json = {"content-type": "application/json"}
    answer = await served.client.post(path, content=b"{", headers=json)
    assert answer.status_code == 400
    found = await samples(served)
    assert found["blockserve_requests_total", "stub", protocol, "1"] == 1


@pytest.mark.parametrize(
    ("ask", "protocol"),
    [
        (over_grpc, "grpc"),
        (over_tf_serving_grpc, "tf_serving_grpc"),
        (over_open_inference_grpc, "open_inference_grpc"),
    ],
)
async def test_a_call_with_odd_metadata_was_for_its_model_all_the_same(
    served: Served, monkeypatch: pytest.MonkeyPatch, ask: Any, protocol: str
) -> None:
    def refuse(_: object) -> None:
        raise InvalidRequest("an odd priority")

    monkeypatch.setattr("service.grpc.calls._priority", refuse)
    with pytest.raises(grpc.aio.AioRpcError, match="an odd priority"):
        await ask(served)
    found = await samples(served)
    assert found["blockserve_requests_total", "stub", protocol, "1"] == 1


async def test_who_only_asks_what_is_served_is_no_request(served: Served) -> None:
    """Probes, as a gateway in front of this one sends each second, are no traffic."""
    for path in ("/v1/models/stub", "/v1/models/stub/metadata", "/v2/models/stub"):
        assert (await served.client.get(path)).status_code == 200
    async with grpc.aio.insecure_channel(target(served)) as channel:
        spec = ModelSpec(name="stub")
        await ModelServiceStub(channel).GetModelStatus(
            GetModelStatusRequest(model_spec=spec)
        )
        await PredictionServiceStub(channel).GetModelMetadata(
            GetModelMetadataRequest(model_spec=spec, metadata_field=["signature_def"])
        )
    assert "blockserve_requests_total" not in {
        name for name, *_ in await samples(served)
    }


async def test_who_ends_after_its_version_brings_no_series_back(tmp_path: Path) -> None:
    """Nobody would remove them, and each roll-out would leave some for ever."""
    stub_version(tmp_path, version=1)
    async with serving(tmp_path) as served:
        _, slow = await asyncio.open_connection("127.0.0.1", served.running.http_port)
        head = b"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n1"
        slow.write(head)
        while not (await samples(served))["blockserve_requests_in_flight", "http"]:
            await asyncio.sleep(0)
        stub_version(tmp_path, version=2)
        model = only(served.running.gateway.repository.models.values())
        while model.versions[1].state != "END":
            await asyncio.sleep(0.01)
        slow.close()
        while (await samples(served))["blockserve_requests_in_flight", "http"]:
            await asyncio.sleep(0)
        found = await samples(served)
    counted = {key[1:] for key in found if key[0] == "blockserve_requests_total"}
    assert counted == {("", "http", "")}
    assert ("blockserve_errors_total", "cancelled", "", "http", "") in found


async def test_a_gateway_that_is_not_ready_says_so(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        assert (await samples(served))["blockserve_ready",] == 0


async def test_the_build_and_the_lag_of_the_loop_show(served: Served) -> None:
    found = await samples(served)
    (build,) = [key for key in found if key[0] == "blockserve_build_info"]
    assert build[1] == "stub"
    lag = "blockserve_event_loop_lag_seconds_count"
    while (await samples(served))[lag,] == 0:
        pass


async def test_replicas_show_with_what_they_answer(tmp_path: Path) -> None:
    good, bad = FakeReplica(), FakeReplica()
    bad.behaviour = refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy")
    await good.start()
    await bad.start()
    try:
        async with serving(
            tmp_path,
            engine="tfserving",
            tfserving=f"{good.address},{bad.address}",
            tfserving_models="stub",
        ) as served:
            while not bad.asked:
                await over_http(served)
            found = await samples(served)
            for replica in (good, bad):
                address = replica.address
                assert found["blockserve_tfserving_replica_up", address] == 1
                assert found["blockserve_tfserving_calls_in_flight", address] == 0
            calls = "blockserve_tfserving_calls_total"
            assert found[calls, "ok", good.address] >= 1
            assert found[calls, "resource_exhausted", bad.address] >= 1
            assert found["blockserve_tfserving_retries_total",] >= 1
            assert found["blockserve_tfserving_hedges_total",] == 0
            await bad.stop()
            up = ("blockserve_tfserving_replica_up", bad.address)
            while (await samples(served))[up] == 1:
                await asyncio.sleep(0)
    finally:
        await good.stop()
        await bad.stop()


async def test_requests_are_answered_while_a_scrape_is_written(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_begun, may_end = threading.Event(), threading.Event()

    def encode(_: CollectorRegistry) -> bytes:
        has_begun.set()
        assert may_end.wait(10)
        return b"text"

    monkeypatch.setattr(
        "service.telemetry.metrics.choose_encoder", lambda _: (encode, "text")
    )
    scraping = asyncio.create_task(served.client.get("/metrics"))
    await asyncio.to_thread(has_begun.wait, 10)
    assert (await served.client.get("/healthz")).status_code == 200
    may_end.set()
    assert (await scraping).text == "text"


async def test_buckets_are_a_setting(tmp_path: Path) -> None:
    stub_version(tmp_path)
    async with serving(tmp_path, duration_buckets_seconds=(0.5, 2)) as served:
        await over_http(served)
        text = (await served.client.get("/metrics")).text
    ends = {
        sample.labels["le"]
        for family in text_string_to_metric_families(text)
        if family.name == "blockserve_request_duration_seconds"
        for sample in family.samples
        if "le" in sample.labels
    }
    assert ends == {"0.5", "2.0", "+Inf"}


def test_an_exemplar_points_to_the_latest_trace_of_its_bucket() -> None:
    registry = CollectorRegistry()
    family = Family(
        "wait_seconds",
        "Time.",
        (),
        new=lambda: Histogram(Buckets((1, 2))),
        registry=registry,
    )
    histogram = family.labels()
    for value, trace_id in ((0.5, "a"), (0.7, "b"), (1.5, "c"), (1.6, None)):
        histogram.observe(value, trace_id)
    text = openmetrics.generate_latest(registry).decode()
    first, second, last = [line for line in text.splitlines() if "_bucket" in line]
    assert '# {trace_id="b"} 0.7 ' in first
    assert '# {trace_id="c"} 1.5 ' in second
    assert "#" not in last
    assert b"trace_id" not in generate_latest(registry)
