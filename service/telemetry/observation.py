"""What is noted of each request on its way, and told when it has its answer.

The edge that takes a request makes an `Observation` of it, and the core marks in it how
far the request has come. At its end the numbers go to Prometheus, to the version's
statistics, to the access log, and to its trace if it is recorded.
"""

from asyncio import CancelledError
from collections.abc import Callable, Iterator
from time import monotonic
from types import TracebackType
from typing import Protocol, Self

from service.errors import INTERNAL, BlockserveError, ClientDisconnected
from service.telemetry.access_log import AccessLog, Status
from service.telemetry.metrics import UNRESOLVED, Metrics, ProtocolName, VersionMetrics
from service.telemetry.request_ids import Identity
from service.telemetry.tracing import Operation, RequestSpan, Stage, Tracer


class Place(Protocol):
    """A place in a queue, and what became of it; see `batching.request.Request`."""

    rows: int
    taken: int
    queued_at: float
    queue_seconds: float
    inference_seconds: float


class Edge:
    """Where requests of one protocol come in.

    Args:
        protocol: The name that its requests are counted under.
        metrics: Where they are counted.
        access_log: Where they are written down.
        answered: The protocol's status of a good answer.
        status_of: Its status of an error.
        tracer: Where they are recorded, if they are.
    """

    def __init__(
        self,
        protocol: ProtocolName,
        *,
        metrics: Metrics,
        access_log: AccessLog,
        answered: Status,
        status_of: Callable[[BlockserveError], Status],
        tracer: Tracer | None = None,
    ) -> None:
        self.protocol = protocol
        self.metrics = metrics
        self.access_log = access_log
        self.answered = answered
        self.status_of = status_of
        self.tracer = tracer
        self.in_flight = metrics.requests_in_flight[protocol]

    def observe(
        self, identity: Identity, operation: Operation, *, path: str = ""
    ) -> "Observation":
        """Observe a request that arrives at this moment.

        Args:
            identity: What it is called.
            operation: What it asks for.
            path: As it was sent, where the protocol has such.
        """
        observation = Observation(self, identity)
        if self.tracer is not None:
            observation.span = self.tracer.request(
                operation, path=path, context=identity.context
            )
        return observation


class Observation:
    """One request, from its arrival to its answer, as a context manager.

    Errors that pass through are counted by their code.

    Args:
        edge: Where it came in.
        identity: What it is called.

    Attributes:
        span: Its span, if it is recorded.
        version: Which loaded version answers, once that is known.
        find_version: Tells which would have, should it be refused before that.
        place: Where it waits for the engine, once it does.
        decode_seconds: What it took to make tensors of what was sent.
    """

    __slots__ = (
        "_decoded_at",
        "_edge",
        "_identity",
        "_predicted_at",
        "_read_at",
        "_started_at",
        "decode_seconds",
        "find_version",
        "place",
        "span",
        "version",
    )

    def __init__(self, edge: Edge, identity: Identity) -> None:
        self.span: RequestSpan | None = None
        self.version: VersionMetrics | None = None
        self.find_version: Callable[[], VersionMetrics | None] | None = None
        self.place: Place | None = None
        self.decode_seconds = 0.0
        self._edge = edge
        self._identity = identity
        self._started_at = monotonic()
        self._read_at = self._decoded_at = self._predicted_at = 0.0

    def has_been_read(self) -> None:
        """All that the client has sent is there."""
        self._read_at = monotonic()

    def has_been_parsed(self) -> None:
        """It is known what is to be decoded, which is a part of the work."""
        self.decode_seconds += monotonic() - self._read_at

    def has_been_decoded(self, *, since: float) -> None:
        """Tensors are there, or some of them, of what was sent.

        Args:
            since: The moment of `time.monotonic` at which that began.
        """
        self._decoded_at = monotonic()
        self.decode_seconds += self._decoded_at - since

    def has_been_predicted(self) -> None:
        """The engine's outputs are there."""
        self._predicted_at = monotonic()

    def refused(self, error: BlockserveError) -> None:
        """Count a request that is refused without being entered."""
        self._end(error, self._started_at)

    def __enter__(self) -> Self:
        self._edge.in_flight.inc()
        return self

    def __exit__(
        self,
        _: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._edge.in_flight.dec()
        self._end(None if error is None else _told(error), monotonic())

    def _end(self, error: BlockserveError | None, now: float) -> None:
        if error is not None and self.version is None and self.find_version:
            self.version = self.find_version()
        self._count(error, now)
        if self._edge.access_log.takes(error):
            self._write_down(error, now)
        if self.span is not None:
            self._end_span(self.span, error, now)

    def _count(self, error: BlockserveError | None, now: float) -> None:
        edge, version = self._edge, self.version
        metrics = edge.metrics
        seconds = now - self._started_at
        labels = (edge.protocol, *metrics.labels_of(version))
        trace_id = self._recorded_trace_id
        if error is not None:
            metrics.errors_total.labels(*labels, error.code).inc()
        metrics.requests_total.labels(*labels).inc()
        metrics.request_duration_seconds.labels(*labels).observe(seconds, trace_id)
        if version is None:
            return
        statistics = version.statistics
        tally = statistics.success if error is None else statistics.failure
        tally.add(seconds)
        if self._read_at:
            version.read_seconds.observe(self._read_at - self._started_at, trace_id)
        if self._decoded_at:
            version.decode_seconds.observe(self.decode_seconds, trace_id)
        if self._predicted_at:
            version.encode_seconds.observe(now - self._predicted_at, trace_id)

    def _write_down(self, error: BlockserveError | None, now: float) -> None:
        edge, version, place = self._edge, self.version, self.place
        model, number = UNRESOLVED if version is None else version.labels
        edge.access_log.write(
            request_id=self._identity.request_id,
            trace_id=self._trace_id,
            protocol=edge.protocol,
            model=model,
            version=number,
            status=self._status(error),
            error=None if error is None else error.code,
            seconds=now - self._started_at,
            stages_seconds={
                "read": self._read_at and self._read_at - self._started_at,
                "decode": self.decode_seconds,
                "queue": place.queue_seconds if place else 0.0,
                "inference": place.inference_seconds if place else 0.0,
                "encode": self._predicted_at and now - self._predicted_at,
            },
        )

    def _end_span(
        self, span: RequestSpan, error: BlockserveError | None, now: float
    ) -> None:
        attributes: dict[str, str | int] = {
            "blockserve.protocol": self._edge.protocol,
            "blockserve.request_id": self._identity.request_id,
        }
        if self.version is not None:
            model, number = self.version.labels
            attributes |= {"blockserve.model": model, "blockserve.version": number}
        if self.place is not None:
            attributes["blockserve.rows"] = self.place.rows
        span.end(
            self._stages(now),
            attributes,
            seconds=now - self._started_at,
            status=self._status(error),
            error=error,
        )

    def _stages(self, now: float) -> Iterator[Stage]:
        """Those whose beginning and end nothing else tells."""
        start, place = self._started_at, self.place
        if self._decoded_at:
            decoded = self._decoded_at - start
            yield Stage("decode", decoded - self.decode_seconds, decoded)
        if place is not None and place.queued_at:
            queued = place.queued_at - start
            waited = place.queue_seconds if place.taken else now - place.queued_at
            yield Stage("queue", queued, queued + waited)

    def _status(self, error: BlockserveError | None) -> Status:
        edge = self._edge
        return edge.answered if error is None else edge.status_of(error)

    @property
    def _trace_id(self) -> str | None:
        """The trace that the request is in: ours, or else the client's."""
        context = self._identity.context
        if self.span is not None:
            return self.span.trace_id
        return None if context is None else context.trace_id

    @property
    def _recorded_trace_id(self) -> str | None:
        """The same, if there should be something to find."""
        context = self._identity.context
        if self.span is not None:
            return self.span.trace_id
        return context.trace_id if context is not None and context.is_sampled else None


def _told(error: BaseException) -> BlockserveError:
    """The error that a client is told of."""
    if isinstance(error, BlockserveError):
        return error
    if isinstance(error, CancelledError):
        return ClientDisconnected("the call was cancelled")
    return BlockserveError(INTERNAL)
