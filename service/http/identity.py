"""What a request is called: the client's `X-Request-Id`, or a name made here.

Every answer carries it, and so do the log and traces.
"""

from collections.abc import Iterable
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.request_ids import new_request_id, usable

HEADER: Final = b"x-request-id"
IN_SCOPE: Final = "blockserve.request_id"


def request_id_in(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """What the client calls a request, or what to call it where it does not say."""
    for name, value in headers:
        if name == HEADER:
            return usable(value.decode("latin-1")) or new_request_id()
    return new_request_id()


def request_id_of(scope: Scope) -> str:
    """What a request is called."""
    request_id: str = scope[IN_SCOPE]
    return request_id


class Identified:
    """ASGI middleware: gives each request its name, and tells it with the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http" or IN_SCOPE in scope:
            await self._app(scope, receive, send)
            return
        request_id = scope[IN_SCOPE] = request_id_in(scope["headers"])

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                header = (HEADER, request_id.encode("latin-1"))
                message["headers"] = [*message.get("headers", ()), header]
            await send(message)

        await self._app(scope, receive, tell)
