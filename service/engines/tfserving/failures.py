"""What failures of TensorFlow Serving are to those who wait here."""

import logging
from typing import Final

import grpc

from service.engines.tfserving.replica import ReplicaFailed
from service.errors import (
    BlockserveError,
    DeadlineExceeded,
    EngineFailure,
    InvalidTensor,
    Overloaded,
    TooLarge,
    Unavailable,
    VersionGone,
)

logger = logging.getLogger(__name__)

# Nothing in these is the request's fault, and another replica may do better.
RETRIED: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.CANCELLED,
    }
)
# In these either the request or the replica is at fault; one other replica can tell.
AMBIGUOUS: Final = frozenset(
    {
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.DATA_LOSS,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    }
)
# What gRPC itself says, with RESOURCE_EXHAUSTED, of a message beyond a limit.
BEYOND_LIMIT: Final = "larger than max"
# What a server that batches says, with UNAVAILABLE, where it has enough to do.
QUEUE_IS_FULL: Final = "batch scheduling queue"
# Somebody has to change something, at the server or here.
REFUSALS: Final = frozenset(
    {
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)


def may_pass(failure: ReplicaFailed) -> bool:
    """Whether the same request may be answered later, or by another replica."""
    if BEYOND_LIMIT in failure.details:
        return False
    return failure.is_lost or failure.code in RETRIED


def error_of(failure: ReplicaFailed) -> BlockserveError:
    """What those are told who wait, where no replica did better."""
    code, details = failure.code, failure.details
    if may_pass(failure):
        return passing(failure)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return too_late()
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return InvalidTensor(f"TensorFlow Serving refused it: {details}")
    if BEYOND_LIMIT in details:
        return TooLarge(f"TensorFlow Serving does not take as much: {details}")
    logger.error("TensorFlow Serving: %s: %s", code.name, details)
    if code in REFUSALS:
        return EngineFailure(f"TensorFlow Serving refused it ({code.name}: {details})")
    return EngineFailure(
        "TensorFlow Serving failed at this request; the server's log says why"
    )


def passing(failure: ReplicaFailed) -> Unavailable:
    """The same, where it may be better later."""
    if failure.code is grpc.StatusCode.NOT_FOUND:
        return VersionGone(f"no TensorFlow Serving has it any more: {failure.details}")
    busy = failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    if busy or QUEUE_IS_FULL in failure.details:
        return Overloaded(f"TensorFlow Serving is busy: {failure.details}")
    return Unavailable(f"TensorFlow Serving failed: {failure.details}")


def gone(model: str, version: int) -> VersionGone:
    """The error where nobody serves a version."""
    return VersionGone(f"no TensorFlow Serving serves {model} version {version}")


def too_late() -> DeadlineExceeded:
    """The error where the time was not enough."""
    return DeadlineExceeded(
        "the request's time ran out before TensorFlow Serving had answered"
    )
