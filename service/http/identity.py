"""What a request is called: the client's `X-Request-Id`, or a name made here.

Every answer carries it, and so do the log and traces. `traceparent` says which trace
it belongs to.
"""

from collections.abc import Iterable
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.telemetry.request_ids import Identity
from service.telemetry.trace_context import TRACEPARENT, TRACESTATE

HEADER: Final = b"x-request-id"
IN_SCOPE: Final = "blockserve.identity"
_PARENT: Final = TRACEPARENT.encode()
_STATE: Final = TRACESTATE.encode()
_HEADERS: Final = frozenset({HEADER, _PARENT, _STATE})


def identity_in(headers: Iterable[tuple[bytes, bytes]]) -> Identity:
    """What a request is called whose headers are these."""
    found: dict[bytes, bytes] | None = None
    for name, value in headers:
        if name in _HEADERS:
            found = found or {}
            if name == _STATE and name in found:  # several are one, in their order
                found[name] += b"," + value
            else:
                found.setdefault(name, value)
    if found is None:
        return Identity.said()
    return Identity.said(
        request_id=found.get(HEADER, b"").decode("latin-1"),
        traceparent=found.get(_PARENT, b"").decode("latin-1"),
        tracestate=found.get(_STATE, b"").decode("latin-1"),
    )


def identity_of(scope: Scope) -> Identity:
    """What a request is called."""
    identity: Identity = scope[IN_SCOPE]
    return identity


class Identified:
    """ASGI middleware: gives each request its name, and tells it with the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http" or IN_SCOPE in scope:
            await self._app(scope, receive, send)
            return
        identity = scope[IN_SCOPE] = identity_in(scope["headers"])

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                header = (HEADER, identity.request_id.encode("latin-1"))
                message["headers"] = [*message.get("headers", ()), header]
            await send(message)

        await self._app(scope, receive, tell)
