"""The one map from errors to HTTP statuses, and the one shape that errors have."""

import logging
import math
from typing import Final

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from service.errors import (
    INTERNAL,
    BlockserveError,
    ClientDisconnected,
    DeadlineExceeded,
    InvalidImage,
    InvalidRequest,
    NotFound,
    TooLarge,
    Unavailable,
    UnsupportedMediaType,
)

logger = logging.getLogger(__name__)

JSON: Final = b"application/json"

# The first class of the error's ancestry that is listed decides.
STATUS: Final[dict[type[BaseException], int]] = {
    InvalidImage: 422,
    UnsupportedMediaType: 415,
    TooLarge: 413,
    InvalidRequest: 400,
    NotFound: 404,
    Unavailable: 503,
    DeadlineExceeded: 504,
    ClientDisconnected: 499,  # as nginx logs it; nobody is there to be told
    BlockserveError: 500,
}
FRAMEWORK_CODES: Final = {404: "not_found", 405: "method_not_allowed"}


def status_of(error: BlockserveError) -> int:
    """The HTTP status that an error is answered with."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def error_body(code: str, message: str) -> bytes:
    """`{"error": {"code": …, "message": …}}`, the shape of every error."""
    return orjson.dumps({"error": {"code": code, "message": message}})


def retry_after(error: BlockserveError) -> dict[str, str]:
    """The headers of an error: when to try again, where that makes sense."""
    if isinstance(error, Unavailable):
        return {"retry-after": str(math.ceil(error.retry_after_seconds))}
    return {}


def internal_error(error: Exception) -> bytes:
    """Log an error that nobody foresaw, and the body that tells the client nothing."""
    logger.error("a request failed unexpectedly", exc_info=error)
    return error_body("internal", INTERNAL)


def install(app: FastAPI) -> None:
    """Answer the errors of the application's FastAPI routes in our shape."""
    app.add_exception_handler(BlockserveError, _answer_ours)
    app.add_exception_handler(HTTPException, _answer_framework)
    app.add_exception_handler(RequestValidationError, _answer_validation)
    app.add_exception_handler(Exception, _answer_internal)


def _respond(
    status: int, body: bytes, headers: dict[str, str] | None = None
) -> Response:
    return Response(body, status, headers, media_type=JSON.decode())


async def _answer_ours(_: Request, error: Exception) -> Response:
    assert isinstance(error, BlockserveError)  # noqa: S101, registered for this class
    body = error_body(error.code, error.message)
    return _respond(status_of(error), body, retry_after(error))


async def _answer_framework(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101, registered for this class
    message = error.detail
    if error.status_code == 404:  # noqa: PLR2004, a status is its own name
        message = f"there is nothing at {request.url.path}; /docs lists what there is"
    elif error.status_code == 405:  # noqa: PLR2004, as above
        message = f"{request.url.path} does not take {request.method}"
    code = FRAMEWORK_CODES.get(error.status_code, "invalid_request")
    headers = dict(error.headers or {})
    return _respond(error.status_code, error_body(code, message), headers)


async def _answer_validation(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101, as above
    message = "; ".join(
        f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()
    )
    return _respond(422, error_body("invalid_request", message))


async def _answer_internal(_: Request, error: Exception) -> Response:
    return _respond(500, internal_error(error))
