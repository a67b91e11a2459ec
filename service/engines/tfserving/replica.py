"""One TensorFlow Serving: its channel, what is known of it, and how it has fared."""

import logging
import math
from asyncio import Event
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from time import monotonic
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

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
from service.telemetry.tracing import ENGINE_SPAN, CallSpan, Operation

M = TypeVar("M", bound=Message)

PREDICT: Final = "/tensorflow.serving.PredictionService/Predict"
PREDICT_OPERATION: Final = Operation.of_grpc(PREDICT.removeprefix("/"))
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
# How long one that has refused a call, or not answered it, is asked only if there is no
# other: twice as long with each that follows, up to the longest.
REST_SECONDS: Final = 0.05
LONGEST_REST_SECONDS: Final = 8.0
# What a call ends with whose connection is lost.
LOST: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    }
)

OK: Final = "ok"
CANCELLED: Final = grpc.StatusCode.CANCELLED.name.lower()

logger = logging.getLogger(__name__)


class ReplicaFailed(Exception):
    """A call got no answer from this replica; another may give one.

    `is_lost` says that there is no connection any more: nobody has refused anything.
    """

    def __init__(
        self, code: grpc.StatusCode, details: str, *, is_lost: bool = False
    ) -> None:
        super().__init__(details)
        self.code = code
        self.details = details
        self.is_lost = is_lost


class Attempt:
    """A `Predict` under way at one replica.

    Attributes:
        replica: Who is asked.
        began_at: Since when.
        overdue_at: From when on its silence means that something is wrong.
    """

    def __init__(
        self, replica: "Replica", call: Any, span: CallSpan | None = None
    ) -> None:
        self.replica = replica
        self.began_at = monotonic()
        self.overdue_at = math.inf
        self._call = call
        self._span = span

    @property
    def is_done(self) -> bool:
        """Whether there is an answer, or will be none."""
        done: bool = self._call.done()
        return done

    async def answer(self) -> bytes:
        """The `PredictResponse`, once it is done.

        Raises:
            ReplicaFailed: There is none; says why.
        """
        if self._call.cancelled():
            raise self._failure(grpc.StatusCode.CANCELLED, "it was cancelled")
        try:
            answer: bytes = await self._call
        except grpc.aio.AioRpcError as error:
            raise self._failure(error.code(), error.details()) from error
        self.replica.calls_by_outcome[OK] += 1
        if self._span is not None:
            self._span.end(grpc.StatusCode.OK.name, is_error=False)
        self.replica.has_answered()
        return answer

    def cancel(self) -> None:
        """Tell the replica that nobody waits any more."""
        self.replica.calls_by_outcome[CANCELLED] += 1
        if self._span is not None:
            self._span.end(grpc.StatusCode.CANCELLED.name, is_error=False)
        self._call.cancel()

    def _failure(self, code: grpc.StatusCode, details: str | None) -> ReplicaFailed:
        self.replica.calls_by_outcome[code.name.lower()] += 1
        if self._span is not None:
            self._span.end(code.name, is_error=True)
        return self.replica.failure(code, details)


class Replica:
    """A TensorFlow Serving that is up, or not.

    Args:
        target: As gRPC names it: `HOST:PORT`, `unix:PATH`.
        credentials: Of TLS, where it speaks that.
        server_name: What its certificate is of, where that is not its address.
        on_change: Called when it went up or down, or serves other versions.

    Attributes:
        outstanding: Calls under way.
        calls_by_outcome: How many have ended with `ok`, or with which gRPC status.
        problem: Why nothing is asked of it now; `None` if it is up.
        available: The versions that it serves, by model, as it said when last asked.
        times_up: How often it has come up.
        probed: Set once it has been asked for the first time.
        doubted: Set where it should be asked at once what it serves.
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
        self.calls_by_outcome: Counter[str] = Counter()
        self.problem: str | None = NOT_ASKED_YET
        self.available: Mapping[str, frozenset[int]] = {}
        self._missing: set[tuple[str, int]] = set()
        self.times_up = 0
        self.probed = Event()
        self.doubted = Event()
        self._on_change = on_change
        self._misses = 0
        self._is_doubtful = False
        self._rests_until = 0.0
        self._rest_seconds = REST_SECONDS
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
        """Whether it is up and has a version, by all that is known."""
        return (
            self.is_up
            and version in self.available.get(model, ())
            and (model, version) not in self._missing
        )

    def is_trusted(self, now: float) -> bool:
        """Whether it is asked like any other.

        After a failure it rests, and then has one call at a time until it answers.
        """
        return now >= self._rests_until and not (self._is_doubtful and self.outstanding)

    def rest(self) -> None:
        """It has refused a call, or not answered in time: ask others for a while."""
        self._is_doubtful = True
        self._rest_seconds = min(2 * self._rest_seconds, LONGEST_REST_SECONDS)
        self._rests_until = monotonic() + self._rest_seconds

    def has_answered(self) -> None:
        """It works."""
        self._is_doubtful = False
        self._rest_seconds = REST_SECONDS
        self._misses = 0

    def ask(
        self, request: bytes, timeout_seconds: float, on_end: Callable[[], None]
    ) -> Attempt:
        """Send a `PredictRequest`.

        Args:
            request: Its bytes.
            timeout_seconds: How long anybody waits for the answer.
            on_end: Called when it is done, or cancelled.
        """
        engine = ENGINE_SPAN.get()
        span = None if engine is None else engine.call(PREDICT_OPERATION, self.target)
        metadata = None if span is None else span.headers
        call = self._predict(request, timeout=timeout_seconds, metadata=metadata)
        self.outstanding += 1

        def ended(_: Any) -> None:
            self.outstanding -= 1
            on_end()

        call.add_done_callback(ended)
        return Attempt(self, call, span)

    def failure(self, code: grpc.StatusCode, details: str | None) -> ReplicaFailed:
        """What a call's end with a status other than OK means."""
        is_ready = self._channel.get_state() is grpc.ChannelConnectivity.READY
        is_lost = code in LOST and not is_ready
        return ReplicaFailed(code, details or "", is_lost=is_lost)

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
        answer = await self._ask(self._metadata, request, timeout_seconds)
        return _read(GetModelMetadataResponse, answer)

    async def probe(self, models: Iterable[str], timeout_seconds: float) -> None:
        """Ask which versions it serves, and so whether it is up."""
        available = {}
        try:
            for model in models:
                available[model] = await self._versions(model, timeout_seconds)
        except ReplicaFailed as failure:
            self._learn(failure)
            return
        self._misses = 0
        had_missed, self._missing = self._missing, set()
        if available == self.available and self.is_up and not had_missed:
            return
        self.available = available
        if not self.is_up:
            self.problem = None
            self.times_up += 1
            logger.info("TensorFlow Serving at %s is up", self.target)
        self._on_change()

    def take_out(self, problem: str) -> None:
        """Ask nothing more of it; what it has not answered is asked elsewhere."""
        was_up = self.is_up
        if was_up or self.problem == NOT_ASKED_YET:
            logger.warning("TensorFlow Serving at %s is out: %s", self.target, problem)
        self.problem = problem
        if was_up:
            self._on_change()

    def miss(self, model: str, version: int) -> None:
        """Ask no more for a version that was not there, until it says what it serves.

        It is not known to be gone: what has come in its place is not known either.
        """
        self._missing.add((model, version))

    async def close(self, grace_seconds: float | None = None) -> None:
        """End its connection, with what is under way after a while."""
        await self._channel.close(grace_seconds)

    def _learn(self, failure: ReplicaFailed) -> None:
        """What a probe that failed says of it."""
        match failure.code:
            case grpc.StatusCode.RESOURCE_EXHAUSTED if self.is_up:
                return  # its threads are all busy: it lives
            case grpc.StatusCode.DEADLINE_EXCEEDED if self.is_up:
                # One late answer may mean that somebody was busy, perhaps this process.
                self._misses += 1
                if self._misses < MISSES:
                    return
        self.take_out(f"{failure.code.name}: {failure.details}")

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
            for one in _read(GetModelStatusResponse, answer).model_version_status
            if one.state == ModelVersionStatus.AVAILABLE
        )

    async def _ask(self, method: Any, request: Any, timeout_seconds: float) -> bytes:
        try:
            answer: bytes = await method(
                request.SerializeToString(), timeout=timeout_seconds
            )
        except grpc.aio.AioRpcError as error:
            raise self.failure(error.code(), error.details()) from error
        return answer


def _read(kind: type[M], answer: bytes) -> M:
    """An answer as a message.

    Raises:
        ReplicaFailed: It is none.
    """
    try:
        return kind.FromString(answer)
    except DecodeError as error:
        details = f"it answers what cannot be read: {error}"
        raise ReplicaFailed(grpc.StatusCode.INTERNAL, details) from error
