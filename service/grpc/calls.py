"""What all services do with a call: its time, its turn, its errors."""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, NoReturn, TypeVar

import grpc

from service.batching import Priority
from service.errors import (
    INTERNAL,
    BlockserveError,
    ClientDisconnected,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    Overloaded,
    Unavailable,
)
from service.gateway import Gateway
from service.prediction import Call
from service.repository import Target
from service.telemetry.metrics import ProtocolName
from service.telemetry.observation import Edge, Observation
from service.telemetry.request_ids import Identity
from service.telemetry.trace_context import TRACEPARENT, TRACESTATE
from service.telemetry.tracing import Operation

logger = logging.getLogger(__name__)

T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]

PRIORITY: Final = "x-request-priority"
REQUEST_ID: Final = "x-request-id"
IDENTITY: Final = {
    REQUEST_ID: "request_id",
    TRACEPARENT: "traceparent",
    TRACESTATE: "tracestate",
}
PRIORITIES: Final = {priority.name.lower(): priority for priority in Priority}
# Clients whose retry policy allows it wait so long before they try again.
PUSHBACK: Final = "grpc-retry-pushback-ms"
MILLISECONDS: Final = 1000
# Three times as long on the wire at worst, and of headers beyond 8 KB clients may tell
# nothing but that they were too long.
LONGEST_DETAILS_BYTES: Final = 2_000
# The first class of the error's ancestry that is listed decides.
STATUS: Final[dict[type[BaseException], grpc.StatusCode]] = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    NotFound: grpc.StatusCode.NOT_FOUND,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    ClientDisconnected: grpc.StatusCode.CANCELLED,
    BlockserveError: grpc.StatusCode.INTERNAL,
}


class GrpcCaller:
    """A `Caller` over gRPC: a call that is cancelled cancels its handler."""

    async def unless_gone(self, work: asyncio.Future[T]) -> T:
        """Wait for the work; it is cancelled with the handler."""
        return await work


CALLER: Final = GrpcCaller()


def status_of(error: BlockserveError) -> grpc.StatusCode:
    """The status that an error is answered with."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def _priority(context: Context) -> Priority:
    for key, value in context.invocation_metadata() or ():
        if key == PRIORITY:
            found = PRIORITIES.get(str(value).lower())
            if found is None:
                raise InvalidRequest(
                    f"{PRIORITY}: expected 'interactive' or 'batch', got {value!r}"
                )
            return found
    return Priority.INTERACTIVE


def call_of(
    gateway: Gateway, context: Context, target: Target, observation: Observation
) -> Call:
    """What the core needs to know of a call besides what is in its message.

    The observation learns first which version the call is for, should it be refused.

    Raises:
        InvalidRequest: Its metadata names no priority that there is.
    """
    observation.find_version = partial(gateway.predictor.version_of, target)
    return Call(
        target=target,
        deadline=gateway.deadline(context.time_remaining()),
        priority=_priority(context),
        caller=CALLER,
        observation=observation,
    )


def edge_of(
    gateway: Gateway,
    protocol: ProtocolName,
    told: Callable[[BlockserveError], grpc.StatusCode] = status_of,
) -> Edge:
    """Where the requests of a service come in; `told` is the status of an error."""
    return gateway.edge(
        protocol,
        answered=grpc.StatusCode.OK.name,
        status_of=lambda error: told(error).name,
    )


def identity_of(context: Context) -> Identity:
    """What a call is called, and so is each request of a stream."""
    said: dict[str, str] = {}
    for key, value in context.invocation_metadata() or ():
        if key in IDENTITY:
            said.setdefault(IDENTITY[key], str(value))
    for key, value in context.trailing_metadata() or ():
        if key == REQUEST_ID:  # what the request before it was called
            said["request_id"] = str(value)
    return Identity.said(**said)


async def observed(
    gateway: Gateway,
    edge: Edge,
    operation: Operation,
    context: Context,
    work: Callable[[Observation], Awaitable[T]],
) -> T:
    """Answer a request, and tell what becomes of it.

    Args:
        gateway: What serves.
        edge: Where it came in.
        operation: What it asks for.
        context: The call's, which is told the request's name.
        work: Answers it.

    Raises:
        BlockserveError: It was refused, or failed.
    """
    identity = identity_of(context)
    context.set_trailing_metadata(((REQUEST_ID, identity.request_id),))
    with edge.observe(identity, operation) as observation:
        gateway.admit()
        observation.has_been_read()
        return await work(observation)


async def answer(
    context: Context,
    work: Callable[[], Awaitable[T]],
    *,
    told: Callable[[BlockserveError], tuple[grpc.StatusCode, str]] | None = None,
) -> T:
    """Answer a call, and its errors as statuses.

    Args:
        context: The call's.
        work: Answers it.
        told: Status and details of an error, where they are not the usual ones.
    """
    try:
        return await work()
    except BlockserveError as error:
        code, details = told(error) if told else (status_of(error), error.message)
        await _abort(context, code, details, error)
    except Exception as error:
        await context.abort(grpc.StatusCode.INTERNAL, _internal_error(error))
    raise AssertionError  # `abort` has raised


async def outcome(work: Callable[[], Awaitable[T]]) -> T | BlockserveError:
    """The answer to one request of a stream, or its error: the stream goes on."""
    try:
        return await work()
    except BlockserveError as error:
        return error
    except Exception as error:
        return BlockserveError(_internal_error(error))


def _internal_error(error: Exception) -> str:
    """Log an error that nobody foresaw, and what the client is told of it."""
    logger.error("a call failed unexpectedly", exc_info=error)
    return INTERNAL


def _shortened(details: str) -> str:
    """What a client can be told: it may quote what the client has sent."""
    encoded = details.encode()
    if len(encoded) <= LONGEST_DETAILS_BYTES:
        return details
    return encoded[:LONGEST_DETAILS_BYTES].decode(errors="ignore") + "…"


async def _abort(
    context: Context, code: grpc.StatusCode, details: str, error: BlockserveError
) -> NoReturn:
    trailing = tuple(context.trailing_metadata() or ())
    if isinstance(error, Unavailable):
        wait = math.ceil(error.retry_after_seconds * MILLISECONDS)
        trailing += ((PUSHBACK, str(wait)),)
    await context.abort(code, _shortened(details), trailing)
    raise AssertionError  # `abort` has raised
