"""`/v2…`: health of models, metadata, inference and the repository, as plain ASGI."""

from collections.abc import Mapping
from typing import Final

import orjson
from starlette.types import Receive, Scope, Send

from models.card import DEFAULT_SIGNATURE
from service.errors import INTERNAL, BlockserveError, ClientDisconnected
from service.event_loop import maybe_in_thread
from service.gateway import Gateway
from service.http.arrivals import Arrival
from service.http.bodies import read_in_time
from service.http.errors import internal_error, retry_after, status_of
from service.http.identity import identity_of
from service.http.open_inference import answers, requests
from service.http.open_inference.answers import Body
from service.http.open_inference.requests import ControlDocument, IndexDocument
from service.http.open_inference.routes import Action, Route, route
from service.http.sending import send_body, send_json
from service.open_inference import documents
from service.open_inference.inference import MANY_BYTES, infer
from service.repository import Target
from service.telemetry.observation import Observation
from service.telemetry.tracing import Operation

OK: Final = 200
INTERNAL_ERROR: Final = 500
INFER: Final = Operation.of_http("POST", "/v2/models/{name}/infer")
INFER_VERSION: Final = Operation.of_http(
    "POST", "/v2/models/{name}/versions/{version}/infer"
)
BINARY: Final = b"application/octet-stream"


class OpenInferenceEndpoint:
    """ASGI application that answers as the protocol says."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._edge = gateway.edge(
            "open_inference_http", answered=OK, status_of=status_of
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        status = OK
        headers: Mapping[str, str] = {}
        try:
            body = await self._answer(scope, receive)
        except ClientDisconnected:
            return
        except BlockserveError as error:
            status, headers = status_of(error), retry_after(error)
            body = _error(error.message)
        except Exception as error:
            internal_error(error)
            status, body = INTERNAL_ERROR, _error(INTERNAL)
        sent = [(name.encode(), value.encode()) for name, value in headers.items()]
        if body.json_length is None:
            await send_json(send, status, body.content, sent)
        else:
            sent.append((requests.JSON_LENGTH, b"%d" % body.json_length))
            await send_body(send, status, BINARY, body.content, sent)

    async def _answer(self, scope: Scope, receive: Receive) -> Body:
        asked = route(scope["method"], scope["path"])
        target = documents.target(asked.name, asked.version)
        match asked.action:
            case "infer":
                operation = INFER_VERSION if asked.version else INFER
                with self._edge.observe(
                    identity_of(scope), operation, path=scope["path"]
                ) as observation:
                    return await self._infer(target, scope, receive, observation)
            case "index" | "load" | "unload":
                return _json(await self._control(asked, scope, receive))
            case _:
                return _json(self._tell(asked.action, target))

    def _tell(self, action: Action, target: Target) -> object:
        gateway = self._gateway
        match action:
            case "model":
                return documents.model(gateway.repository, target)
            case "ready":
                return documents.ready(gateway.repository, target)
            case "config":
                return documents.configuration(gateway, target)
            case "stats":
                return documents.statistics(gateway.repository, target)
        return documents.server()

    async def _control(self, asked: Route, scope: Scope, receive: Receive) -> object:
        gateway = self._gateway
        if asked.action == "index":
            index = await self._document(IndexDocument, scope, receive)
            return documents.index(gateway.repository, only_ready=index.ready)
        control = await self._document(ControlDocument, scope, receive)
        if asked.action == "load":
            await documents.load(gateway, asked.name, control.parameters)
        else:
            await documents.unload(gateway, asked.name)
        return {}

    async def _document(
        self, kind: type[requests.T], scope: Scope, receive: Receive
    ) -> requests.T:
        """What a request about the repository says; nothing where it has no body."""
        gateway = self._gateway
        body = await read_in_time(
            receive,
            dict(scope["headers"]),
            max_bytes=gateway.settings.max_body_bytes,
            deadline=gateway.deadline(None),
            check=gateway.admit,
        )
        return requests.parsed(body or b"{}", kind)

    async def _infer(
        self, target: Target, scope: Scope, receive: Receive, observation: Observation
    ) -> Body:
        gateway = self._gateway
        arrival = await Arrival.of(gateway, target, scope, receive, observation)
        length = requests.json_length(arrival.headers, arrival.body)
        if length or requests.JSON_LENGTH not in arrival.headers:
            is_long = length > MANY_BYTES
            request_id, asked = await maybe_in_thread(
                is_long, requests.read, arrival.body, length
            )
        else:
            with gateway.repository.lease(target) as served:
                signature, _ = served.signature(DEFAULT_SIGNATURE)
            request_id, asked = "", requests.only_input(arrival.body, signature)
        observation.has_been_parsed()
        answer = await infer(gateway, asked, arrival.call)
        return await maybe_in_thread(
            answer.is_long, answers.write, answer, asked, request_id
        )


def _json(document: object) -> Body:
    return Body(orjson.dumps(document))


def _error(message: str) -> Body:
    return _json({"error": message})
