"""Traces, as the rest of the gateway knows them: without OpenTelemetry.

A request that is recorded has a `RequestSpan`, which goes with it through the queue;
the others have none. So there is nothing to do for them, and nothing at all where
tracing is off.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

from service.errors import BlockserveError, InvalidSettings
from service.telemetry.access_log import Status
from service.telemetry.trace_context import TraceContext


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """What requests of one kind ask for.

    Attributes:
        name: Of their spans.
        attributes: Of their spans, as OpenTelemetry's conventions name them.
    """

    name: str
    attributes: Mapping[str, str]

    @classmethod
    def of_http(cls, method: str, route: str) -> "Operation":
        """A method and a path, with `{…}` for what differs."""
        attributes = {"http.request.method": method, "http.route": route}
        return cls(f"{method} {route}", attributes)

    @classmethod
    def of_grpc(cls, method: str) -> "Operation":
        """`PACKAGE.SERVICE/METHOD`."""
        return cls(method, {"rpc.system.name": "grpc", "rpc.method": method})


class Stage(NamedTuple):
    """A part of a request's time, in seconds since its arrival."""

    name: str
    start: float
    end: float


class CallSpan(Protocol):
    """An attempt of the engine to have a batch run elsewhere.

    Attributes:
        headers: What tells the other side which trace its work belongs to.
    """

    headers: Sequence[tuple[str, str]]

    def end(self, status: str, *, is_error: bool) -> None:
        """It is over, with a gRPC status."""


class EngineSpan(Protocol):
    """The engine at work on a batch."""

    def call(self, operation: Operation, target: str) -> CallSpan:
        """It asks a server, at an address as gRPC has it."""


class BatchSpan(Protocol):
    """A batch.

    Attributes:
        trace_id: The trace that it is in, 32 hexadecimal digits.
    """

    trace_id: str

    def engine(self) -> AbstractContextManager[None]:
        """The engine is at it, which finds its span in `ENGINE_SPAN`."""

    def end(self, error: BaseException | None) -> None:
        """Its outputs are there, or it has failed."""


class RequestSpan(Protocol):
    """A request, from its arrival to its answer.

    Attributes:
        trace_id: The trace that it is in, 32 hexadecimal digits.
        context: What a link to it consists of.
    """

    trace_id: str
    context: Any

    def batch(
        self, requests: Sequence["RequestSpan"], attributes: Mapping[str, str | int]
    ) -> BatchSpan:
        """A batch of several requests begins, of which this is the first."""

    def ran_in(self, batch: Any) -> None:
        """Link it to a batch that began with another request."""

    def end(
        self,
        stages: Iterable[Stage],
        attributes: Mapping[str, str | int],
        *,
        seconds: float,
        status: Status,
        error: BlockserveError | None,
    ) -> None:
        """It is answered.

        Args:
            stages: Where its time went.
            attributes: What has been found out about it.
            seconds: Since its arrival.
            status: What the client was told, in its protocol.
            error: Why it got no good answer, if it did not.
        """


class Tracer(Protocol):
    """Records traces."""

    def request(
        self, operation: Operation, *, path: str, context: TraceContext | None
    ) -> RequestSpan | None:
        """A request has arrived; `None` if it is not to be recorded.

        Args:
            operation: What it asks for.
            path: As it was sent; empty where the protocol has none.
            context: What it is a part of.
        """

    async def close(self) -> None:
        """Send what has not been sent, if that is possible soon."""


# What a batch that is recorded is at. An engine need not be handed what none but those
# that ask others have a use for.
ENGINE_SPAN: Final[ContextVar[EngineSpan | None]] = ContextVar(
    "ENGINE_SPAN", default=None
)


def load_tracer(*, scheme: str) -> Tracer:
    """What records traces.

    Args:
        scheme: Of the gateway's URL.

    Raises:
        InvalidSettings: It is not installed, or OTEL_* variables say what cannot be.
    """
    try:
        # Who traces nothing need not have it.
        from service.telemetry.tracing.otel import OtelTracer  # noqa: PLC0415
    except ImportError as error:
        raise InvalidSettings(
            f"tracing: it is not installed ({error}): pip install 'blockserve[tracing]'"
        ) from error
    return OtelTracer(scheme=scheme)
