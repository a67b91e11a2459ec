"""The methods of a server: what all of them do with a message that is none."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from service.grpc.calls import Context


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """What stands for a message that cannot be read."""

    reason: str


class Methods:
    """Takes services in a server's stead, as what generated code registers them with.

    A message that cannot be read is answered with INVALID_ARGUMENT; grpc.aio would
    answer UNKNOWN and log an error of ours. And it would wait for a call of each
    registered method by itself; those that are found by name it waits for together.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(
        self, handlers: Sequence[grpc.GenericRpcHandler]
    ) -> None:
        """Take nothing: the same methods come by name, too."""

    def add_registered_method_handlers(
        self, service: str, handlers: Mapping[str, Any]
    ) -> None:
        """Take the methods of a service."""
        checked = {name: _checked(handler) for name, handler in handlers.items()}
        generic = grpc.method_handlers_generic_handler(service, checked)
        self._server.add_generic_rpc_handlers((generic,))


def _checked(handler: Any) -> Any:
    if handler.request_streaming or handler.response_streaming:
        return handler

    def read(message: bytes) -> Any:
        try:
            return handler.request_deserializer(message)
        except DecodeError as error:
            return _Unreadable(str(error))

    async def answer(request: Any, context: Context) -> Any:
        if isinstance(request, _Unreadable):
            code = grpc.StatusCode.INVALID_ARGUMENT
            await context.abort(code, f"the message cannot be read: {request.reason}")
        return await handler.unary_unary(request, context)

    return grpc.unary_unary_rpc_method_handler(
        answer, read, handler.response_serializer
    )
