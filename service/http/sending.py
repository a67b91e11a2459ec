"""Writes a JSON answer as ASGI messages, without a framework."""

from collections.abc import Iterable
from typing import Final

from starlette.types import Send

from service.http.errors import JSON

CONTENT_TYPE: Final = (b"content-type", JSON)


async def send_json(
    send: Send, status: int, body: bytes, headers: Iterable[tuple[bytes, bytes]] = ()
) -> None:
    """Send a whole answer.

    Args:
        send: The request's, of ASGI.
        status: Of HTTP.
        body: JSON.
        headers: Besides content type and length.
    """
    length = (b"content-length", b"%d" % len(body))
    every = [CONTENT_TYPE, *headers, length]
    await send({"type": "http.response.start", "status": status, "headers": every})
    await send({"type": "http.response.body", "body": body})
