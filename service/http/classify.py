"""`POST /classify`: the hot endpoint, plain ASGI inside the FastAPI application.

FastAPI's own request handling costs more than decoding a small image does. So these
endpoints read and write ASGI messages themselves, and `shortcut.Shortcut` answers their
requests before they come to the framework; `openapi` documents them.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs

import orjson
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from service.batching import Priority
from service.classification import Classification
from service.errors import (
    BlockserveError,
    ClientDisconnected,
    InvalidRequest,
    Overloaded,
)
from service.event_loop import maybe_in_thread
from service.gateway import Gateway
from service.http import terms
from service.http.bodies import images_of, is_packed, read_in_time
from service.http.callers import caller_of
from service.http.errors import (
    error_body,
    internal_error,
    retry_after,
    status_of,
)
from service.http.identity import HEADER as REQUEST_ID
from service.http.identity import identity_in, identity_of
from service.http.protocol import Refusal
from service.http.sending import CONTENT_TYPE, send_json
from service.prediction import Call
from service.repository import Target
from service.telemetry.metrics import VersionMetrics
from service.telemetry.observation import Observation
from service.telemetry.request_ids import Identity
from service.telemetry.tracing import Operation

PATHS: Final = (
    "/classify",
    "/models/{name}/classify",
    "/models/{name}/versions/{version}/classify",
    "/models/{name}/labels/{label}/classify",
)
OPERATIONS: Final = [Operation.of_http("POST", path) for path in PATHS]
INT64_DIGITS: Final = 18
SHOWN_CHARACTERS: Final = 40
OK: Final = 200
# About a millisecond of unpacking.
LARGE_BODY_BYTES: Final = 256 * 1024
# How long after a refusal requests are looked at as soon as their headers are there.
OVERLOAD_SECONDS: Final = 1.0


def path_parameters(path: str) -> dict[str, str] | None:
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
        self._edge = gateway.edge("http", answered=OK, status_of=status_of)
        self._overloaded_until = 0.0
        self._refused: dict[tuple[bytes | None, ...], _Refused] = {}

    @property
    def is_overloaded(self) -> bool:
        """Whether a request was refused a moment ago for there being too many."""
        return monotonic() < self._overloaded_until

    def refuse(self, path: bytes, headers: Mapping[bytes, bytes]) -> Refusal | None:
        """Refuse a request if there are too many; `None` lets it pass.

        Args:
            path: As it was sent.
            headers: Its headers.
        """
        # What is refused now is refused until something ends, in another turn.
        key = (path, headers.get(terms.TIMEOUT), headers.get(terms.PRIORITY))
        identity = identity_in(headers.items())
        refused = self._refused.get(key)
        if refused is None:
            refused = self._try_to_refuse(path, headers)
            if refused is None:
                return None
            if not self._refused:
                asyncio.get_running_loop().call_soon(self._refused.clear)
            self._refused[key] = refused
        observation = self._edge.observe(
            identity, refused.operation, path=path.decode("latin-1")
        )
        observation.version = refused.version
        observation.refused(refused.error)
        name = identity.request_id.encode("latin-1")
        named = (*refused.answer.headers, (REQUEST_ID, name))
        return replace(refused.answer, headers=named)

    def _try_to_refuse(
        self, path: bytes, headers: Mapping[bytes, bytes]
    ) -> "_Refused | None":
        parameters = path_parameters(path.decode("latin-1"))
        if parameters is None:
            return None
        observation = Observation(self._edge, Identity(""))  # it is told to nobody
        try:
            target, deadline, priority = self._terms(parameters, headers)
            self._gateway.predictor.announce_image(
                target, deadline=deadline, priority=priority, observation=observation
            )
        except Overloaded as error:
            status, answered, body = self._answer_to(error)
            refusal = Refusal(status, [CONTENT_TYPE, *answered], body)
            operation = _operation(parameters)
            return _Refused(operation, observation.version, error, refusal)
        except BlockserveError:
            return None  # the way through the application tells and counts it
        return None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        status = OK
        headers: list[tuple[bytes, bytes]] = []
        try:
            with self._edge.observe(
                identity_of(scope), _operation(scope["path_params"]), path=scope["path"]
            ) as observation:
                answer = await self._classify(scope, receive, observation)
                body = orjson.dumps(_as_json(answer))
        except ClientDisconnected:
            return
        except BlockserveError as error:
            status, headers, body = self._answer_to(error)
        except Exception as error:
            status, body = 500, internal_error(error)
        await send_json(send, status, body, headers)

    async def _classify(
        self, scope: Scope, receive: Receive, observation: Observation
    ) -> Classification:
        gateway = self._gateway
        headers: Mapping[bytes, bytes] = dict(scope["headers"])
        target, deadline, priority = self._terms(scope["path_params"], headers)
        observation.find_version = partial(gateway.predictor.version_of, target)
        top_k = _top_k(scope["query_string"])
        settings = gateway.settings
        check = partial(
            gateway.predictor.announce_image,
            target,
            deadline=deadline,
            priority=priority,
            observation=observation,
        )
        body = await read_in_time(
            receive,
            headers,
            max_bytes=settings.max_body_bytes,
            deadline=deadline,
            check=check,
        )
        observation.has_been_read()
        limit = settings.max_images_per_request
        if len(body) > LARGE_BODY_BYTES:
            unpack = partial(images_of, body, headers, max_images=limit)
            images = await maybe_in_thread(is_packed(headers), unpack)
        else:
            images = images_of(body, headers, max_images=limit)
        observation.has_been_parsed()
        call = Call(
            target=target,
            deadline=deadline,
            priority=priority,
            caller=caller_of(scope, receive),
            observation=observation,
        )
        return await gateway.classifier.classify(images, call, top_k=top_k)

    def _terms(
        self, parameters: Mapping[str, str], headers: Mapping[bytes, bytes]
    ) -> tuple[Target, float, Priority]:
        """What a request asks for before its body is read, and its deadline."""
        self._gateway.admit()
        deadline = self._gateway.deadline(terms.timeout_seconds(headers))
        return _target(parameters), deadline, terms.priority(headers)

    def _answer_to(
        self, error: BlockserveError
    ) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        """Status, headers and body of an error."""
        if isinstance(error, Overloaded):
            self._overloaded_until = monotonic() + OVERLOAD_SECONDS
        headers = [(k.encode(), v.encode()) for k, v in retry_after(error).items()]
        body = error_body(error.code, error.message)
        return status_of(error), headers, body


class _Refused(NamedTuple):
    """A refusal that others with the same terms get, too."""

    operation: Operation
    version: VersionMetrics | None
    error: BlockserveError
    answer: Refusal


def _operation(path: Mapping[str, str]) -> Operation:
    """Which of `PATHS` it is that has these parameters."""
    if "version" in path:
        return OPERATIONS[2]
    if "label" in path:
        return OPERATIONS[3]
    return OPERATIONS[1] if "name" in path else OPERATIONS[0]


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
