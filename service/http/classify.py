"""`POST /classify`: the hot endpoint, plain ASGI inside the FastAPI application.

FastAPI's own request handling costs more than decoding a small image does. So these
endpoints read and write ASGI messages themselves, and `Shortcut` answers their requests
before they come to the framework; `openapi` documents them.
"""

import asyncio
import math
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from time import monotonic
from typing import Any, Final, TypeVar
from urllib.parse import parse_qs

import orjson
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from service.batching import Priority
from service.classification import Caller, Classification, Target
from service.errors import (
    BlockserveError,
    ClientDisconnected,
    DeadlineExceeded,
    InvalidRequest,
)
from service.event_loop import Eager
from service.gateway import Gateway
from service.http.auth import Token
from service.http.bodies import images_of, read_body
from service.http.errors import (
    JSON,
    error_body,
    internal_error,
    retry_after,
    status_of,
)
from service.http.protocol import CONNECTION, HttpProtocol
from service.metrics import RequestScope

PATHS: Final = (
    "/classify",
    "/models/{name}/classify",
    "/models/{name}/versions/{version}/classify",
    "/models/{name}/labels/{label}/classify",
)
PRIORITIES: Final = {priority.name.lower().encode(): priority for priority in Priority}
INT64_DIGITS: Final = 18
SHOWN_CHARACTERS: Final = 40
OK: Final = 200

T = TypeVar("T")


class Shortcut:
    """Answers `POST` to `PATHS` in the application's place; it gets all else.

    Args:
        app: The application, which has the same endpoint on a longer way.
        endpoint: What answers.
        token: What requests must carry; those without it are the application's to
            refuse.
    """

    def __init__(
        self, app: ASGIApp, endpoint: "ClassifyEndpoint", *, token: Token | None
    ) -> None:
        self._app = app
        self._endpoint = endpoint
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or pass on."""
        if scope["type"] == "http" and scope["method"] == "POST":
            parameters = _path_parameters(scope["path"])
            if parameters is not None and (
                self._token is None or self._token.is_in(scope)
            ):
                scope["path_params"] = parameters
                await self._endpoint(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _path_parameters(path: str) -> dict[str, str] | None:
    """What `PATHS` say of a path; `None` if it is none of them."""
    match path.split("/"):
        case ["", "classify"]:
            return {}
        case ["", "models", name, "classify"] if name:
            return {"name": name}
        case ["", "models", name, "versions", version, "classify"] if name and version:
            return {"name": name, "version": version}
        case ["", "models", name, "labels", label, "classify"] if name and label:
            return {"name": name, "label": label}
    return None


def routes(endpoint: "ClassifyEndpoint") -> list[Route]:
    """The endpoints as FastAPI knows them, for all that the shortcut passes on."""
    return [Route(path, endpoint, methods=["POST"]) for path in PATHS]


class ClassifyEndpoint:
    """ASGI application that reads images and answers their classes."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        status = OK
        headers: dict[str, str] = {}
        try:
            with self._gateway.metrics.request("http") as request:
                answer = await self._classify(scope, receive, request)
                body = orjson.dumps(_as_json(answer))
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
        priority = _priority(headers)
        target = _target(scope["path_params"])
        top_k = _top_k(scope["query_string"])
        settings = gateway.settings
        check = partial(
            gateway.classifier.check,
            target,
            deadline=deadline,
            priority=priority,
            scope=request,
        )
        if b"expect" in headers:
            check()  # to read would be to ask for the body
        reading = Eager(read_body(receive, headers, settings.max_body_bytes))
        if reading.is_done:
            body = reading.result
        else:
            with closing(reading):
                check()  # what would be refused in the end need not be sent to the end
                body = await _in_time(reading, deadline)
        return await gateway.classifier.classify(
            images_of(body, headers, max_images=settings.max_images_per_request),
            target=target,
            top_k=top_k,
            deadline=deadline,
            priority=priority,
            caller=_caller(scope, receive),
            scope=request,
        )


def _caller(scope: Scope, receive: Receive) -> Caller:
    """Who waits: the connection, where the server is ours."""
    connection: HttpProtocol | None = scope.get("extensions", {}).get(CONNECTION)
    return connection or _Client(receive)


class _Client:
    """A `Caller` over any ASGI server: gone when it says so."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive

    async def unless_gone(self, work: asyncio.Future[T]) -> T:
        """Wait for the work; cancel it when the client goes away.

        The request's own task waits for the client, and the end of the work interrupts
        it: a second task for each request would cost even more.

        Raises:
            ClientDisconnected: It went away.
        """
        task = asyncio.current_task()
        assert task is not None  # noqa: S101, coroutines run in tasks
        waits = True

        def interrupt(_: asyncio.Future[T]) -> None:
            if waits:
                task.cancel()

        work.add_done_callback(interrupt)
        try:
            while (await self._receive())["type"] != "http.disconnect":
                pass
        except asyncio.CancelledError:
            # Without the request of `interrupt`, somebody else wants the task to end.
            if not work.done() or task.uncancel() > 0:
                work.cancel()
                raise
        else:
            if not work.done():
                work.cancel()
                raise ClientDisconnected("the client went away")
        finally:
            waits = False
        return work.result()


async def _in_time(reading: Eager[bytes], deadline: float) -> bytes:
    try:
        async with asyncio.timeout(deadline - monotonic()):
            return await reading
    except TimeoutError as error:
        raise DeadlineExceeded(
            "the request's time ran out before its body was complete"
        ) from error


def _as_json(answer: Classification) -> dict[str, Any]:
    """The answer's document; `openapi.ClassifyResponse` describes it."""
    return {
        "model": answer.model,
        "version": answer.version,
        "results": [
            {
                "predictions": [
                    {
                        "label": answer.label(index),
                        "index": index,
                        "probability": probability,
                    }
                    for index, probability in zip(indices, probabilities, strict=True)
                ]
            }
            for indices, probabilities in zip(
                answer.indices.tolist(), answer.probabilities.tolist(), strict=True
            )
        ],
    }


def _priority(headers: Mapping[bytes, bytes]) -> Priority:
    text = headers.get(b"x-request-priority")
    if text is None:
        return Priority.INTERACTIVE
    priority = PRIORITIES.get(text.lower())
    if priority is None:
        raise InvalidRequest(
            "X-Request-Priority: expected 'interactive' or 'batch', got "
            f"{text[:SHOWN_CHARACTERS].decode('latin-1')!r}"
        )
    return priority


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
