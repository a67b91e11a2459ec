"""What a client's requests can end with.

RequestFailed            refused or failed by the server, or not answered in time
└── ServerUnreachable    nobody answers at the address
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import msgspec
from google.protobuf.json_format import ParseError
from google.protobuf.message import DecodeError

from service.errors import InvalidTensor

INVALID_ARGUMENT: Final = "INVALID_ARGUMENT"
NOT_FOUND: Final = "NOT_FOUND"
DEADLINE_EXCEEDED: Final = "DEADLINE_EXCEEDED"
UNAVAILABLE: Final = "UNAVAILABLE"
UNIMPLEMENTED: Final = "UNIMPLEMENTED"
UNKNOWN: Final = "UNKNOWN"


class RequestFailed(Exception):
    """A request has no answer.

    Attributes:
        status: Why, as gRPC names it: `NOT_FOUND`, `INVALID_ARGUMENT`; over HTTP too.
        message: Why, for people.
        retry_after_seconds: When the server expects the same request to succeed; `None`
            if it does not say.
        request_id: What the server's log and traces call the request; `None` if it does
            not say.
    """

    def __init__(
        self,
        status: str,
        message: str,
        retry_after_seconds: float | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(status, message, retry_after_seconds, request_id)
        self.status = status
        self.message = message
        self.retry_after_seconds = retry_after_seconds
        self.request_id = request_id

    def __str__(self) -> str:
        return f"{self.status}: {self.message}"


class ServerUnreachable(RequestFailed):
    """Nobody answers at the address."""


def unreachable(address: str, reason: object) -> ServerUnreachable:
    """That nobody answers at an address."""
    return ServerUnreachable(UNAVAILABLE, f"no server answers at {address} ({reason})")


def out_of_time() -> RequestFailed:
    """That the client waited as long as it was told to."""
    return RequestFailed(
        DEADLINE_EXCEEDED, "the request's time ran out before its answer was there"
    )


def no_classifier() -> RequestFailed:
    """That the server, a TensorFlow Serving maybe, takes no images by themselves."""
    return RequestFailed(
        UNIMPLEMENTED,
        "this server does not classify images; use predict, with the name of the "
        "signature that takes encoded images: serving_bytes in models that blockserve "
        "has built",
    )


@contextmanager
def reading() -> Iterator[None]:
    """Read an answer; `RequestFailed` if it is not what the protocol says."""
    try:
        yield
    except (
        *(AttributeError, KeyError, TypeError, ValueError, InvalidTensor),
        *(msgspec.DecodeError, DecodeError, ParseError),
    ) as error:
        raise RequestFailed(
            UNKNOWN, f"the server's answer cannot be read: {error}"
        ) from error
