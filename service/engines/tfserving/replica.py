"""One TensorFlow Serving: its channel, and what is known of it."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import grpc

from proto.tensorflow.serving.get_model_metadata_pb2 import (
    GetModelMetadataRequest,
    GetModelMetadataResponse,
)
from proto.tensorflow.serving.get_model_status_pb2 import (
    GetModelStatusRequest,
    GetModelStatusResponse,
    ModelVersionStatus,
)
from proto.tensorflow.serving.model_pb2 import ModelSpec

PREDICT: Final = "/tensorflow.serving.PredictionService/Predict"
METADATA: Final = "/tensorflow.serving.PredictionService/GetModelMetadata"
STATUS: Final = "/tensorflow.serving.ModelService/GetModelStatus"
OPTIONS: Final = (
    # A batch of large images, in floats, is beyond the default of 4 MB.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A connection that a network has swallowed is noticed, idle or not.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # Whoever comes back is found soon: probes ask every second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Two replicas of one gateway are two, though their names lead to one address.
    ("grpc.use_local_subchannel_pool", 1),
    # Calls are tried again here, where it is known what else there is.
    ("grpc.enable_retries", 0),
)
NOT_ASKED_YET: Final = "it has not been asked yet"
# Probes in a row that find it too slow before it is taken out.
MISSES: Final = 2

logger = logging.getLogger(__name__)


class ReplicaFailed(Exception):
    """A call got no answer from this replica; another may give one."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code
        self.details = details


class Replica:
    """A TensorFlow Serving that is up, or not.

    Args:
        target: As gRPC names it: `HOST:PORT`, `unix:PATH`.
        credentials: Of TLS, where it speaks that.
        server_name: What its certificate is of, where that is not its address.
        on_change: Called when it went up or down, or serves other versions.

    Attributes:
        outstanding: Calls under way.
        problem: Why nothing is asked of it now; `None` if it is up.
        available: The versions that it serves, by model.
    """

    def __init__(
        self,
        target: str,
        *,
        credentials: grpc.ChannelCredentials | None,
        server_name: str | None = None,
        on_change: Callable[[], None],
    ) -> None:
        self.target = target
        self.outstanding = 0
        self.problem: str | None = NOT_ASKED_YET
        self.available: Mapping[str, frozenset[int]] = {}
        self._on_change = on_change
        self._calls: set[Any] = set()
        self._misses = 0
        options: list[tuple[str, Any]] = [*OPTIONS]
        if server_name is not None:
            options.append(("grpc.ssl_target_name_override", server_name))
        self._channel = (
            grpc.aio.insecure_channel(target, options)
            if credentials is None
            else grpc.aio.secure_channel(target, credentials, options)
        )
        # Bytes in and out: a request is written once, however often it is sent.
        self._predict: Any = self._channel.unary_unary(PREDICT)
        self._metadata: Any = self._channel.unary_unary(METADATA)
        self._status: Any = self._channel.unary_unary(STATUS)

    @property
    def is_up(self) -> bool:
        """Whether it may be asked."""
        return self.problem is None

    def serves(self, model: str, version: int) -> bool:
        """Whether it is up and has a version."""
        return self.is_up and version in self.available.get(model, ())

    async def predict(self, request: bytes, timeout_seconds: float) -> bytes:
        """Run a `PredictRequest`, and answer with a `PredictResponse`, both as bytes.

        Raises:
            ReplicaFailed: There is no answer; says why.
        """
        self.outstanding += 1
        call = self._predict(request, timeout=timeout_seconds)
        self._calls.add(call)
        try:
            answer: bytes = await call
        except grpc.aio.AioRpcError as error:
            raise ReplicaFailed(error.code(), error.details() or "") from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise ReplicaFailed(
                grpc.StatusCode.UNAVAILABLE, self.problem or "the call was cancelled"
            ) from None
        finally:
            self._calls.discard(call)
            self.outstanding -= 1
        return answer

    async def metadata(
        self, model: str, version: int, timeout_seconds: float
    ) -> GetModelMetadataResponse:
        """The signatures of a version.

        Raises:
            ReplicaFailed: There is no answer; says why.
        """
        request = GetModelMetadataRequest(
            model_spec=ModelSpec(name=model), metadata_field=["signature_def"]
        )
        request.model_spec.version.value = version
        return GetModelMetadataResponse.FromString(
            await self._ask(self._metadata, request, timeout_seconds)
        )

    async def probe(self, models: Iterable[str], timeout_seconds: float) -> None:
        """Ask which versions it serves, and so whether it is up."""
        available = {}
        try:
            for model in models:
                available[model] = await self._versions(model, timeout_seconds)
        except ReplicaFailed as failure:
            self._misses += 1
            # One late answer may mean that somebody was busy, perhaps this process.
            is_late = failure.code is grpc.StatusCode.DEADLINE_EXCEEDED
            if not is_late or self._misses >= MISSES:
                self.take_out(f"{failure.code.name}: {failure.details}")
            return
        self._misses = 0
        if self.problem is not None:
            logger.info("TensorFlow Serving at %s is up", self.target)
        if self.problem is not None or available != self.available:
            self.problem = None
            self.available = available
            self._on_change()

    def take_out(self, problem: str) -> None:
        """Ask nothing more of it, and give up what it has not answered."""
        was_up = self.is_up
        if self.problem != problem and (was_up or self.problem == NOT_ASKED_YET):
            logger.warning("TensorFlow Serving at %s is out: %s", self.target, problem)
        self.problem = problem
        if was_up:
            for call in tuple(self._calls):
                call.cancel()
            self._on_change()

    def forget(self, model: str, version: int) -> None:
        """Take note that it does not serve a version any more."""
        left = self.available.get(model, frozenset()) - {version}
        self.available = {**self.available, model: left}
        self._on_change()

    async def close(self) -> None:
        """End its connection."""
        await self._channel.close()

    async def _versions(self, model: str, timeout_seconds: float) -> frozenset[int]:
        request = GetModelStatusRequest(model_spec=ModelSpec(name=model))
        try:
            answer = await self._ask(self._status, request, timeout_seconds)
        except ReplicaFailed as failure:
            if failure.code is grpc.StatusCode.NOT_FOUND:
                return frozenset()
            raise
        return frozenset(
            one.version
            for one in GetModelStatusResponse.FromString(answer).model_version_status
            if one.state == ModelVersionStatus.AVAILABLE
        )

    async def _ask(self, method: Any, request: Any, timeout_seconds: float) -> bytes:
        try:
            answer: bytes = await method(
                request.SerializeToString(), timeout=timeout_seconds
            )
        except grpc.aio.AioRpcError as error:
            raise ReplicaFailed(error.code(), error.details() or "") from error
        return answer
