"""What is noted of each request on its way, and told when it has its answer.

The edge that takes a request makes an `Observation` of it, and the core marks in it how
far the request has come. At its end the numbers go to Prometheus, to the version's
statistics, and to the access log.
"""

from asyncio import CancelledError
from collections.abc import Callable
from time import perf_counter
from types import TracebackType
from typing import Protocol, Self

from service.access_log import AccessLog, Status
from service.errors import INTERNAL, BlockserveError, ClientDisconnected
from service.metrics import UNRESOLVED, Metrics, ProtocolName, VersionMetrics


class Place(Protocol):
    """A place in a queue, and what became of it; see `batching.request.Request`."""

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
    """

    def __init__(
        self,
        protocol: ProtocolName,
        *,
        metrics: Metrics,
        access_log: AccessLog,
        answered: Status,
        status_of: Callable[[BlockserveError], Status],
    ) -> None:
        self.protocol = protocol
        self.metrics = metrics
        self.access_log = access_log
        self.answered = answered
        self.status_of = status_of
        self.in_flight = metrics.requests_in_flight[protocol]

    def observe(self, request_id: str) -> "Observation":
        """Observe a request that arrives at this moment."""
        return Observation(self, request_id)


class Observation:
    """One request, from its arrival to its answer, as a context manager.

    Errors that pass through are counted by their code.

    Args:
        edge: Where it came in.
        request_id: What the client calls it, or what it is told to.

    Attributes:
        version: Which loaded version answers, once that is known.
        place: Where it waits for the engine, once it does.
        decode_seconds: What it took to make tensors of what was sent.
    """

    __slots__ = (
        "_edge",
        "_predicted_at",
        "_read_at",
        "_started_at",
        "decode_seconds",
        "place",
        "request_id",
        "version",
    )

    def __init__(self, edge: Edge, request_id: str) -> None:
        self.request_id = request_id
        self.version: VersionMetrics | None = None
        self.place: Place | None = None
        self.decode_seconds = 0.0
        self._edge = edge
        self._started_at = perf_counter()
        self._read_at = self._predicted_at = 0.0

    def has_been_read(self) -> None:
        """All that the client has sent is there."""
        self._read_at = perf_counter()

    def has_been_predicted(self) -> None:
        """The engine's outputs are there."""
        self._predicted_at = perf_counter()

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
        self._end(None if error is None else _told(error), perf_counter())

    def _end(self, error: BlockserveError | None, now: float) -> None:
        self._count(error, now)
        if self._edge.access_log.takes(error):
            self._write_down(error, now)

    def _count(self, error: BlockserveError | None, now: float) -> None:
        edge, version = self._edge, self.version
        seconds = now - self._started_at
        labels = (edge.protocol, *(UNRESOLVED if version is None else version.labels))
        metrics = edge.metrics
        if error is not None:
            metrics.errors_total.labels(*labels, error.kind).inc()
        metrics.requests_total.labels(*labels).inc()
        metrics.request_duration_seconds.labels(*labels).observe(seconds)
        if version is None:
            return
        statistics = version.statistics
        tally = statistics.success if error is None else statistics.failure
        tally.add(seconds)
        if self._read_at:
            version.read_seconds.observe(self._read_at - self._started_at)
        if self.decode_seconds:
            version.decode_seconds.observe(self.decode_seconds)
        if self._predicted_at:
            version.encode_seconds.observe(now - self._predicted_at)

    def _write_down(self, error: BlockserveError | None, now: float) -> None:
        edge, version, place = self._edge, self.version, self.place
        model, number = UNRESOLVED if version is None else version.labels
        edge.access_log.write(
            request_id=self.request_id,
            protocol=edge.protocol,
            model=model,
            version=number,
            status=edge.answered if error is None else edge.status_of(error),
            error=None if error is None else error.kind,
            seconds=now - self._started_at,
            stages_seconds={
                "read": self._read_at and self._read_at - self._started_at,
                "decode": self.decode_seconds,
                "queue": place.queue_seconds if place else 0.0,
                "inference": place.inference_seconds if place else 0.0,
                "encode": self._predicted_at and now - self._predicted_at,
            },
        )


def _told(error: BaseException) -> BlockserveError:
    """The error that a client is told of."""
    if isinstance(error, BlockserveError):
        return error
    if isinstance(error, CancelledError):
        return ClientDisconnected("the call was cancelled")
    return BlockserveError(INTERNAL)
