"""What the conversations over HTTP yield, and how they read what is wrong."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import httpx
import msgspec

from service.client.errors import (
    DEADLINE_EXCEEDED,
    INVALID_ARGUMENT,
    NOT_FOUND,
    UNAVAILABLE,
    UNIMPLEMENTED,
    UNKNOWN,
    RequestFailed,
    reading,
)

T = TypeVar("T")

REQUEST_ID: Final = "x-request-id"
STATUS: Final[Mapping[int, str]] = {
    400: INVALID_ARGUMENT,
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: NOT_FOUND,
    405: UNIMPLEMENTED,
    408: DEADLINE_EXCEEDED,
    412: "FAILED_PRECONDITION",
    413: INVALID_ARGUMENT,
    415: INVALID_ARGUMENT,
    422: INVALID_ARGUMENT,
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    501: UNIMPLEMENTED,
    502: UNAVAILABLE,
    503: UNAVAILABLE,
    504: DEADLINE_EXCEEDED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """A request, whatever sends it; the names are httpx's."""

    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    files: Sequence[tuple[str, tuple[str, bytes, str]]] = ()


def checked(answer: httpx.Response) -> httpx.Response:
    """An answer that is none of failure.

    Raises:
        RequestFailed: It is one.
    """
    if answer.is_success:
        return answer
    raise RequestFailed(
        STATUS.get(answer.status_code, UNKNOWN),
        told(answer) or f"HTTP status {answer.status_code}",
        _retry_after_seconds(answer),
        answer.headers.get(REQUEST_ID),
    )


def parsed(answer: httpx.Response, kind: type[T]) -> T:
    """The document that an answer is; numbers may be written as strings in it.

    Raises:
        RequestFailed: It is a failure, or no such document.
    """
    content = checked(answer).content
    with reading():
        return msgspec.json.decode(content, type=kind, strict=False)


def told(answer: httpx.Response) -> str | None:
    """What a failure says, as the gateway or TensorFlow Serving does, if it does."""
    try:
        error: Any = answer.json()["error"]
        message = error if isinstance(error, str) else error["message"]
    except (ValueError, KeyError, TypeError):
        return None
    return str(message)


def _retry_after_seconds(answer: httpx.Response) -> float | None:
    try:
        seconds = float(answer.headers["retry-after"])
    except (KeyError, ValueError):  # there is none, or it is a date
        return None
    return seconds if 0 <= seconds < math.inf else None
