"""Gateways in front of replicas that a test is in charge of."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from service.repository import VersionState
from tests.replicas import (
    LONG_SECONDS,
    MODEL,
    FakeReplica,
)
from tests.support import (
    Served,
    image_of_class,
    serving,
)


@asynccontextmanager
async def in_front_of(
    *made: FakeReplica, repository: Path, **settings: Any
) -> AsyncIterator[Served]:
    """A gateway over real sockets, with the stub's model."""
    addresses = ",".join(one.address for one in made)
    async with serving(
        repository,
        **{
            "engine": "tfserving",
            "tfserving": addresses,
            "tfserving_models": MODEL,
            "request_timeout_seconds": LONG_SECONDS,
            **settings,
        },
    ) as served:
        yield served


async def classify(served: Served, value: int, *, labels: str = "0123456789") -> int:
    """Classify an image of a class over HTTP; answers which version did it."""
    answer = await served.client.post("/classify", content=image_of_class(value))
    assert answer.status_code == 200, answer.text
    body = answer.json()
    label = body["results"][0]["predictions"][0]["label"]
    assert label == labels[value % 10], body
    version: int = body["version"]
    return version


def classifying(served: Served, versions: set[int]) -> Callable[[int], Awaitable[None]]:
    """Requests for a `Load`; notes which versions have answered."""

    async def ask(number: int) -> None:
        versions.add(await classify(served, number % 10))

    return ask


def pixels(value: int) -> list[Any]:
    return [[[[value], [0], [0], [0]], *[[[0]] * 4] * 3]]


def states(served: Served) -> dict[int, VersionState]:
    model = served.running.gateway.repository.models[MODEL]
    return {number: version.state for number, version in model.versions.items()}


async def problem(served: Served) -> str | None:
    """What `/readyz` says, if all is not well."""
    answer = await served.client.get("/readyz")
    if answer.status_code == 200:
        return None
    assert answer.status_code == 503
    return str(answer.json()["error"]["message"])


async def predicted(served: Served, value: int) -> int:
    """Ask over gRPC, as the client of the real server's package does."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = MODEL
    request.inputs["images"].CopyFrom(
        tf.make_tensor_proto(np.array(pixels(value), np.uint8))
    )
    address = f"127.0.0.1:{served.running.grpc_port}"
    async with grpc.aio.insecure_channel(address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        answer = await stub.Predict(request)
    return int(tf.make_ndarray(answer.outputs["probabilities"])[0].argmax())


async def until_ready(served: Served) -> None:
    async with asyncio.timeout(LONG_SECONDS):
        while await problem(served):
            await asyncio.sleep(0.005)


async def until_not_ready(served: Served) -> None:
    async with asyncio.timeout(LONG_SECONDS):
        while not await problem(served):
            await asyncio.sleep(0.005)


def pool_versions(served: Served) -> dict[int, int]:
    """How many replicas serve each version, as far as the gateway knows."""
    source: Any = served.running.gateway.repository._source
    return {n: len(who) for n, who in source._pool.versions(MODEL).items()}
