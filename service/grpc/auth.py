"""The optional bearer token, asked for before a call comes to its service."""

from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc

from service.token import Token

# Orchestrators, who ask for health, carry none.
UNGUARDED: Final = "/grpc.health.v1.Health/"
DETAILS: Final = "send the metadata authorization: Bearer <token>"
# By whether the request is a stream, and the answer.
HANDLERS: Final = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


class RequireToken(grpc.aio.ServerInterceptor):
    """Answers UNAUTHENTICATED unless a call carries the token."""

    def __init__(self, token: Token) -> None:
        self._token = token

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Pass the call on or refuse it."""
        handler = await continuation(handler_call_details)
        if (
            handler is None
            or handler_call_details.method.startswith(UNGUARDED)
            or self._token.is_in(
                (key.encode(), value if isinstance(value, bytes) else value.encode())
                for key, value in handler_call_details.invocation_metadata or ()
            )
        ):
            return handler
        make = HANDLERS[handler.request_streaming, handler.response_streaming]
        return make(_refuse)


async def _refuse(_: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, DETAILS)
