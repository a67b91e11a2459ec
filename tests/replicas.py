"""Replicas of TensorFlow Serving that a test is in charge of."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final, Self

import grpc
import numpy as np

from proto.google.protobuf.any_pb2 import Any as AnyMessage
from proto.google.protobuf.wrappers_pb2 import Int64Value
from proto.tensorflow.serving.get_model_metadata_pb2 import (
    GetModelMetadataRequest,
    GetModelMetadataResponse,
    SignatureDefMap,
)
from proto.tensorflow.serving.get_model_status_pb2 import (
    GetModelStatusRequest,
    GetModelStatusResponse,
    ModelVersionStatus,
)
from proto.tensorflow.serving.model_pb2 import ModelSpec
from proto.tensorflow.serving.predict_pb2 import PredictRequest, PredictResponse
from proto.tensors import from_tensor_proto, to_tensor_proto
from service.engines.stub import _probabilities
from service.engines.tfserving import ReplicaPool
from service.engines.tfserving.messages import predict_request
from service.saved_model import _defined
from service.tensors import Signature, TensorSpec

MODEL: Final = "stub"
STATES: Final = ModelVersionStatus
# What the real server says with RESOURCE_EXHAUSTED, from eight calls at once on if it
# has its default number of threads; and with UNAVAILABLE, where it makes batches.
THREADS_BUSY: Final = "Server Threadpool Exhausted"
QUEUE_FULL: Final = (
    "The batch scheduling queue to which this task was submitted is full; currently 2 "
    "batches enqueued and max_enqueued_batches is 2"
)
SERVER_OPTIONS: Final = (
    ("grpc.so_reuseport", 0),
    # As the real server has it.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)
HOST: Final = "127.0.0.1"
# What a test waits at most for what must happen; far more than it takes.
LONG_SECONDS: Final = 60.0


def images(dtype: str = "uint8", *sizes: int | None) -> Signature:
    """A signature as the stub engine has it: 4×4 grey images to ten classes."""
    shape = (None, *(sizes or (4, 4, 1)))
    return Signature(
        name="serving_default",
        inputs={
            "images": TensorSpec(name="images", dtype=np.dtype(dtype), shape=shape)
        },
        outputs={
            "probabilities": TensorSpec(
                name="probabilities", dtype=np.dtype("float32"), shape=(None, 10)
            )
        },
    )


@dataclass(eq=False)
class Asked:
    """A `Predict` that a replica got."""

    request: PredictRequest
    seconds_left: float
    metadata: Mapping[str, Any]
    cancelled: bool = False
    answered: bool = False


# What becomes of one `Predict`: bytes of the answer, or a status that it raises.
Method = Callable[[bytes, Any], Awaitable[bytes]]
Behaviour = Callable[[Asked, Any], Awaitable[bytes]]


class FakeReplica:
    """A server of TensorFlow Serving's API in this process.

    Attributes:
        versions: The states of its versions, by model.
        asked: What it was asked, in order.
        status_calls: How often it was asked for the state of a model.
        under_way: Calls of `Predict` that it is at.
        most_under_way: The most that it had at a time.
        next_answers: What becomes of the next calls; then they are answered.
        gate: Cleared, it holds every `Predict` until it is set again.
        status_gate: As much for questions of state.
        status_failure: What questions of state are answered with, if not the state.
        methods: What answers each of its methods.
        address: Where it listens.
    """

    def __init__(
        self,
        versions: Mapping[int, Any] | None = None,
        *,
        model: str = MODEL,
        signatures: Iterable[Signature] | None = None,
        credentials: grpc.ServerCredentials | None = None,
        address: str = f"{HOST}:0",
    ) -> None:
        self.versions: dict[str, dict[int, Any]] = {
            model: dict({1: STATES.AVAILABLE} if versions is None else versions)
        }
        self.asked: list[Asked] = []
        self.status_calls = 0
        self.under_way = 0
        self.most_under_way = 0
        self.next_answers: deque[Behaviour] = deque()
        self.behaviour: Behaviour = self._classify
        self.gate = asyncio.Event()
        self.gate.set()
        self.status_gate = asyncio.Event()
        self.status_gate.set()
        self.status_failure: tuple[grpc.StatusCode, str] | None = None
        self.methods: dict[str, Method] = {
            "Predict": self.predict,
            "GetModelStatus": self.status,
            "GetModelMetadata": self.metadata,
        }
        self.address = address
        self._signatures = tuple(signatures or (images(),))
        self._credentials = credentials
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Listen, at the same port each time."""
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        self._server.add_generic_rpc_handlers((_Handler(self),))
        if self._credentials is None:
            port = self._server.add_insecure_port(self.address)
        else:
            port = self._server.add_secure_port(self.address, self._credentials)
        self.address = self.address.replace(":0", f":{port}")
        await self._server.start()

    async def stop(self) -> None:
        """End at once, with what is under way."""
        if self._server is not None:
            await self._server.stop(None)

    @property
    def arrays(self) -> list[Any]:
        """The images that it was asked for, call by call."""
        return [from_tensor_proto(one.request.inputs["images"]) for one in self.asked]

    async def predict(self, request: bytes, context: Any) -> bytes:
        asked = Asked(
            PredictRequest.FromString(request),
            context.time_remaining(),
            dict(context.invocation_metadata()),
        )
        self.asked.append(asked)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            behaviour = (
                self.next_answers.popleft() if self.next_answers else self.behaviour
            )
            answer = await behaviour(asked, context)
        except asyncio.CancelledError:
            asked.cancelled = True
            raise
        else:
            asked.answered = True
            return answer
        finally:
            self.under_way -= 1

    async def status(self, request: bytes, context: Any) -> bytes:
        self.status_calls += 1
        await self.status_gate.wait()
        if self.status_failure is not None:
            await context.abort(*self.status_failure)
        name = GetModelStatusRequest.FromString(request).model_spec.name
        if not self.versions.get(name):
            await context.abort(
                grpc.StatusCode.NOT_FOUND,
                f"Could not find any versions of model {name}",
            )
        return GetModelStatusResponse(
            model_version_status=[
                ModelVersionStatus(version=number, state=state)
                for number, state in self.versions[name].items()
            ]
        ).SerializeToString()

    async def metadata(self, request: bytes, context: Any) -> bytes:
        spec = GetModelMetadataRequest.FromString(request).model_spec
        await self._find(spec, context)
        definitions = {one.name: _defined(one) for one in self._signatures}
        written = SignatureDefMap(signature_def=definitions).SerializeToString()
        return GetModelMetadataResponse(
            model_spec=spec, metadata={"signature_def": AnyMessage(value=written)}
        ).SerializeToString()

    async def _classify(self, asked: Asked, context: Any) -> bytes:
        await self.gate.wait()
        await self._find(asked.request.model_spec, context)
        rows = from_tensor_proto(asked.request.inputs["images"])
        answer = PredictResponse(model_spec=asked.request.model_spec)
        probabilities = _probabilities(rows, classes=10)
        answer.outputs["probabilities"].CopyFrom(
            to_tensor_proto(probabilities, typed=True)
        )
        return answer.SerializeToString()

    async def _find(self, spec: ModelSpec, context: Any) -> None:
        number = spec.version.value
        if self.versions.get(spec.name, {}).get(number) != STATES.AVAILABLE:
            await context.abort(
                grpc.StatusCode.NOT_FOUND,
                f"Servable not found for request: Specific({spec.name}, {number})",
            )


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, replica: FakeReplica) -> None:
        self._replica = replica

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        method = self._replica.methods.get(details.method.rpartition("/")[2])
        return method and grpc.unary_unary_rpc_method_handler(method)


def refusal(code: grpc.StatusCode, details: str) -> Behaviour:
    """A call that is answered with a status."""

    async def refuse(_: Asked, context: Any) -> bytes:
        await context.abort(code, details)
        raise AssertionError

    return refuse


async def silence(_: Asked, __: Any) -> bytes:
    """A call that is never answered."""
    await asyncio.Event().wait()
    raise AssertionError


@asynccontextmanager
async def replicas(
    count: int = 1, versions: Mapping[int, Any] | None = None, **options: Any
) -> AsyncIterator[list[FakeReplica]]:
    """Replicas that run until the block ends."""
    made = [FakeReplica(versions, **options) for _ in range(count)]
    try:
        for one in made:
            await one.start()
        yield made
    finally:
        for one in made:
            await one.stop()


@asynccontextmanager
async def pooled(
    *addresses: str | FakeReplica, calls_per_replica: int = 4, **options: Any
) -> AsyncIterator[ReplicaPool]:
    """A pool in front of replicas, which has asked each of them."""
    pool = ReplicaPool(
        [one.address if isinstance(one, FakeReplica) else one for one in addresses],
        models=lambda: [MODEL],
        calls_per_replica=calls_per_replica,
        **options,
    )
    await pool.start()
    try:
        yield pool
    finally:
        await pool.close()


def request_of(value: int = 0, version: int = 1) -> bytes:
    """A request of one image that the replicas give the class `value % 10`."""
    image = np.zeros((1, 4, 4, 1), np.uint8)
    image[0, 0, 0, 0] = value % 250  # what a byte holds, and the same class
    spec = ModelSpec(
        name=MODEL,
        version=Int64Value(value=version),
        signature_name="serving_default",
    )
    return predict_request(spec, {"images": image})


def class_of(answer: bytes) -> int:
    """The class in an answer to it."""
    outputs = PredictResponse.FromString(answer).outputs
    return int(from_tensor_proto(outputs["probabilities"])[0].argmax())


async def classified(
    pool: ReplicaPool,
    value: int = 0,
    *,
    version: int = 1,
    timeout_seconds: float = LONG_SECONDS,
) -> int:
    """Ask a pool for the class of one image."""
    deadline = monotonic() + timeout_seconds
    request = request_of(value, version)
    return class_of(await pool.predict(MODEL, version, request, deadline))


async def until(condition: Callable[[], Any]) -> None:
    """Wait for what must come true."""
    async with asyncio.timeout(LONG_SECONDS):
        while not condition():
            await asyncio.sleep(0.005)


class Proxy:
    """A TCP connection between a gateway and a replica that a test can cut.

    Attributes:
        address: Where the gateway finds it.
        passes: Set while bytes pass; cleared, they stay where they are.
    """

    def __init__(self, replica: str) -> None:
        self.address = ""
        self.passes = asyncio.Event()
        self.passes.set()
        self._replica = replica
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Take connections, at the same port each time."""
        host, _, port = (self.address or f"{HOST}:0").rpartition(":")
        self._server = await asyncio.start_server(self._accepted, host, int(port))
        self.address = f"{HOST}:{self._server.sockets[0].getsockname()[1]}"

    async def cut(self) -> None:
        """Drop all connections and refuse new ones, until it starts again."""
        assert self._server is not None
        self._server.close()
        for writer in self._connections:
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._connections.clear()

    async def _accepted(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        host, _, port = self._replica.rpartition(":")
        try:
            there = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()
            return
        self._connections |= {writer, there[1]}
        for source, sink in ((reader, there[1]), (there[0], writer)):
            task = asyncio.create_task(self._pass_on(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass_on(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter
    ) -> None:
        with suppress(OSError):
            while read := await source.read(65536):
                await self.passes.wait()
                sink.write(read)
                await sink.drain()
        sink.close()


@asynccontextmanager
async def proxied(replica: FakeReplica) -> AsyncIterator[Proxy]:
    """A proxy in front of a replica, until the block ends."""
    proxy = Proxy(replica.address)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.cut()


class Load:
    """Requests, so many at a time, until the block ends; all must have been right.

    Args:
        ask: Sends the request of a number, and checks the answer to it.
        at_a_time: How many are under way.
    """

    def __init__(
        self, ask: Callable[[int], Awaitable[object]], *, at_a_time: int = 4
    ) -> None:
        self.answered = 0
        self._ask = ask
        self._at_a_time = at_a_time
        self._is_over = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [
            asyncio.create_task(self._send(number)) for number in range(self._at_a_time)
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._is_over = True
        await asyncio.gather(*self._tasks)

    async def more(self, count: int = 20) -> None:
        """Wait until so many more were answered."""
        wanted = self.answered + count
        await until(lambda: self.answered >= wanted or self._has_failed)
        if self._has_failed:
            await asyncio.gather(*self._tasks)

    @property
    def _has_failed(self) -> bool:
        return any(task.done() for task in self._tasks)

    async def _send(self, number: int) -> None:
        while not self._is_over:
            await self._ask(number)
            self.answered += 1
            number += self._at_a_time


async def asked_again(replica: FakeReplica, times: int = 5) -> None:
    """Wait until it has been asked for its state some more times."""
    before = replica.status_calls
    await until(lambda: replica.status_calls >= before + times)
