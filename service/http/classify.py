"""`POST /classify`: the hot endpoint, plain ASGI inside the FastAPI application.

FastAPI's own request handling costs more than decoding a small image does, so these
routes read and write ASGI messages themselves; `openapi` documents them.
"""

import asyncio
import math
from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qs

import orjson
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from service.classification import Classification, Target
from service.errors import (
    BlockserveError,
    ClientDisconnected,
    DeadlineExceeded,
    InvalidRequest,
)
from service.gateway import Gateway
from service.http.bodies import images_of, read_body
from service.http.errors import (
    JSON,
    error_body,
    internal_error,
    retry_after,
    status_of,
)
from service.metrics import RequestScope

PATHS: Final = (
    "/classify",
    "/models/{name}/classify",
    "/models/{name}/versions/{version}/classify",
    "/models/{name}/labels/{label}/classify",
)
INT64_DIGITS: Final = 18
SHOWN_CHARACTERS: Final = 40


def routes(gateway: Gateway) -> list[Route]:
    """The classify endpoints."""
    endpoint = _ClassifyEndpoint(gateway)
    return [Route(path, endpoint, methods=["POST"]) for path in PATHS]


class _ClassifyEndpoint:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: dict[str, str] = {}
        try:
            with self._gateway.metrics.request("http") as request:
                answer = await self._classify(scope, receive, request)
            status, body = 200, orjson.dumps(answer)
        except ClientDisconnected:
            return
        except BlockserveError as error:
            status, body = status_of(error), error_body(error.kind, error.message)
            headers = retry_after(error)
        except Exception as error:
            status, body = 500, internal_error(error)
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [
                    (b"content-type", JSON),
                    (b"content-length", b"%d" % len(body)),
                    *((k.encode(), v.encode()) for k, v in headers.items()),
                ],
            }
        )
        await send({"type": "http.response.body", "body": body})

    async def _classify(
        self, scope: Scope, receive: Receive, request: RequestScope
    ) -> Classification:
        gateway = self._gateway
        gateway.admit()
        headers: Mapping[bytes, bytes] = dict(scope["headers"])
        deadline = gateway.deadline(_timeout_seconds(headers))
        target = _target(scope["path_params"])
        top_k = _top_k(scope["query_string"])
        try:
            async with asyncio.timeout_at(deadline):
                body = await read_body(
                    receive, headers, max_bytes=gateway.settings.max_body_bytes
                )
        except TimeoutError as error:
            raise DeadlineExceeded(
                "the request's time ran out before its body was complete"
            ) from error
        limit = gateway.settings.max_images_per_request
        work = asyncio.ensure_future(
            gateway.classifier.classify(
                images_of(body, headers, max_images=limit),
                target=target,
                top_k=top_k,
                deadline=deadline,
                scope=request,
            )
        )
        return await _unless_disconnected(work, receive)


async def _unless_disconnected(
    work: asyncio.Task[Classification], receive: Receive
) -> Classification:
    """Wait for the work, but cancel it as soon as the client goes away."""

    async def cancel_on_disconnect() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        work.cancel()

    watcher = asyncio.ensure_future(cancel_on_disconnect())
    try:
        return await work
    except asyncio.CancelledError:
        if work.cancelled() and watcher.done():
            raise ClientDisconnected("the client went away") from None
        raise
    finally:
        watcher.cancel()


def _timeout_seconds(headers: Mapping[bytes, bytes]) -> float | None:
    text = headers.get(b"x-request-timeout")
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InvalidRequest(
            "X-Request-Timeout: expected a positive number of seconds, got "
            f"{text[:SHOWN_CHARACTERS].decode('latin-1')!r}"
        )
    return seconds


def _target(path: Mapping[str, str]) -> Target:
    text = path.get("version")
    if text is None:
        return Target(name=path.get("name"), label=path.get("label"))
    version = _positive(text)
    if version is None:
        raise InvalidRequest(
            f"a version is a positive integer, got {text[:SHOWN_CHARACTERS]!r}",
            code="invalid_version",
        )
    return Target(name=path["name"], version=version)


def _top_k(query: bytes) -> int | None:
    if not query:
        return None
    values = parse_qs(query.decode("latin-1"), keep_blank_values=True).get("top_k")
    if values is None:
        return None
    top_k = _positive(values[-1])
    if top_k is None:
        raise InvalidRequest(
            f"top_k: expected a positive integer, got {values[-1][:SHOWN_CHARACTERS]!r}"
        )
    return top_k


def _positive(text: str) -> int | None:
    """The positive integer of 64 bits that a text spells, if it does."""
    if len(text) > INT64_DIGITS or not (text.isascii() and text.isdecimal()):
        return None
    return int(text) or None
