"""Writes an answer as ASGI messages, without a framework."""

from collections.abc import Iterable
from typing import Final

from starlette.types import Send

from service.http.errors import JSON

CONTENT_TYPE: Final = (b"content-type", JSON)

Headers = Iterable[tuple[bytes, bytes]]


async def send_json(
    send: Send, status: int, body: bytes, headers: Headers = ()
) -> None:
    """Send a whole answer of JSON; see `send_body`."""
    await send_body(send, status, JSON, body, headers)


async def send_body(
    send: Send, status: int, media_type: bytes, body: bytes, headers: Headers = ()
) -> None:
    """Send a whole answer.

    Args:
        send: The request's, of ASGI.
        status: Of HTTP.
        media_type: What the body is.
        body: All of it.
        headers: Besides content type and length.
    """
    length = (b"content-length", b"%d" % len(body))
    every = [(b"content-type", media_type), *headers, length]
    await send({"type": "http.response.start", "status": status, "headers": every})
    await send({"type": "http.response.body", "body": body})
