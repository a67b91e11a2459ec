"""`/v1/models…`: status, metadata and prediction, as plain ASGI."""

import json
from collections.abc import Mapping
from functools import partial
from typing import Final, Literal

from google.protobuf.json_format import MessageToJson
from starlette.types import Receive, Scope, Send

from proto.tensorflow.serving.get_model_metadata_pb2 import SignatureDefMap
from service.errors import (
    INTERNAL,
    BlockserveError,
    ClientDisconnected,
    InvalidImage,
    NotFound,
)
from service.event_loop import maybe_in_thread
from service.gateway import Gateway
from service.http.arrivals import Arrival, InvalidEncoding
from service.http.errors import internal_error, retry_after, status_of
from service.http.identity import identity_of
from service.http.sending import send_json
from service.http.tf_serving import answers, documents
from service.http.tf_serving.documents import DocumentError
from service.http.tf_serving.predict_requests import (
    PredictRequest,
    signature_of_examples,
)
from service.http.tf_serving.routes import MalformedRequest, Route, route
from service.repository import Target
from service.telemetry.observation import Observation
from service.tensors import are_long_to_write
from service.tf_serving import examples, states
from service.tf_serving.errors import is_not_found, words

OK: Final = 200
BAD_REQUEST: Final = 400
NOT_FOUND: Final = 404
INTERNAL_ERROR: Final = 500
# About a millisecond of reading.
LARGE_BODY_BYTES: Final = 32 * 1024
KINDS: Final[Mapping[str, Literal["classification", "regression"]]] = {
    "classify": "classification",
    "regress": "regression",
}
SIGNATURE_NOT_FOUND: Final = "signature_not_found"
CLIENT_ERRORS: Final = frozenset({"label_not_found", SIGNATURE_NOT_FOUND})


class TfServingEndpoint:
    """ASGI application that answers as TensorFlow Serving does."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._edge = gateway.edge("tf_serving_http", answered=OK, status_of=_status_of)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        headers: dict[str, str] = {}
        try:
            asked = route(scope["method"], scope["path"])
            status, body, headers = await self._answer(asked, scope, receive)
        except MalformedRequest as error:
            status, body = BAD_REQUEST, answers.error(str(error))
        except ClientDisconnected:
            return
        encoded = ((k.encode(), v.encode()) for k, v in headers.items())
        await send_json(send, status, body, encoded)

    async def _answer(
        self, asked: Route, scope: Scope, receive: Receive
    ) -> tuple[int, bytes, dict[str, str]]:
        try:
            match asked.action:
                case "status":
                    body = self._status(asked.target)
                case "metadata":
                    body = self._metadata(asked.target)
                case _:
                    with self._edge.observe(
                        identity_of(scope), asked.operation, path=scope["path"]
                    ) as observation:
                        body = await self._infer(asked, scope, receive, observation)
        except ClientDisconnected:
            raise
        except BlockserveError as error:
            message = answers.error(words(error, asked.target))
            return _status_of(error), message, retry_after(error)
        except Exception as error:
            internal_error(error)
            return INTERNAL_ERROR, answers.error(INTERNAL), {}
        return OK, body, {}

    def _status(self, target: Target) -> bytes:
        found = states.statuses(self._gateway.repository, target)
        document = {
            "model_version_status": [
                {
                    "version": str(one.version),
                    "state": one.state.value,
                    "status": {
                        "error_code": one.error_code,
                        "error_message": one.error_message,
                    },
                }
                for one in found
            ]
        }
        return json.dumps(document, indent=1).encode() + b"\n"

    def _metadata(self, target: Target) -> bytes:
        with self._gateway.repository.lease(target) as served:
            spec = {
                "name": served.name,
                "signature_name": "",
                "version": str(served.version),
            }
            signatures = MessageToJson(
                SignatureDefMap(signature_def=served.signature_defs),
                always_print_fields_with_no_presence=True,
                preserving_proto_field_name=True,
                indent=1,
            )
        return (
            f'{{\n"model_spec":{json.dumps(spec, indent=1)}\n,\n'
            f'"metadata": {{"signature_def": {signatures}\n}}\n}}\n'
        ).encode()

    async def _infer(
        self, route: Route, scope: Scope, receive: Receive, observation: Observation
    ) -> bytes:
        gateway = self._gateway
        try:
            arrival = await Arrival.of(
                gateway, route.target, scope, receive, observation
            )
        except InvalidEncoding as error:
            raise DocumentError(documents.EMPTY) from error
        body = arrival.body
        run = partial(maybe_in_thread, len(body) > LARGE_BODY_BYTES)
        if route.action != "predict":
            document = await run(documents.read, body)
            name = signature_of_examples(document, route.action)
            kind = KINDS[route.action]
            examples.refuse(gateway.repository, route.target, name, kind)
        asked = await run(PredictRequest.read, body)
        observation.has_been_parsed()
        try:
            prediction = await gateway.predictor.predict(
                partial(run, asked.tensors),
                arrival.call,
                signature_name=asked.signature_name,
            )
        except NotFound as error:
            if error.code == SIGNATURE_NOT_FOUND:
                error.message = (
                    f'Serving signature name: "{asked.signature_name}" not found in '
                    "signature def"
                )
            raise
        write = answers.predictions if asked.rows else answers.outputs
        return await maybe_in_thread(
            are_long_to_write(prediction.outputs.values()), write, prediction.outputs
        )


def _status_of(error: BlockserveError) -> int:
    if is_not_found(error):
        return NOT_FOUND
    if error.code in CLIENT_ERRORS or isinstance(error, InvalidImage):
        return BAD_REQUEST
    return status_of(error)
