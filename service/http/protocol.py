"""uvicorn's HTTP/1.1 protocol, with two shorter ways.

uvicorn writes the head and the body of an answer one after the other, and uvloop sends
each at once: two system calls, and a client that is woken twice. What is written in one
turn of the event loop goes out at its end here.

ASGI tells of a client that went away to who waits for its next message; to wait for
that and for the engine at once costs a third of a small request. So a request finds its
connection among the `extensions` of its scope, and can be cancelled by it.
"""

import asyncio
from typing import Any, Final, TypeVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.errors import ClientDisconnected

CONNECTION: Final = "blockserve.connection"

T = TypeVar("T")


class HttpProtocol(HttpToolsProtocol):
    """For `uvicorn.Config(http=…)`; the `Caller` of the requests on its connection.

    uvicorn answers one request at a time, also where several came at once.
    """

    _is_lost = False
    _awaited: asyncio.Future[Any] | None = None

    async def unless_gone(self, work: asyncio.Future[T]) -> T:
        """Wait for the work; cancel it when the client goes away.

        Raises:
            ClientDisconnected: It went away.
        """
        if self._is_lost:
            work.cancel()
        self._awaited = work
        try:
            return await work
        except asyncio.CancelledError:
            if self._is_lost:
                raise ClientDisconnected("the client went away") from None
            raise
        finally:
            self._awaited = None

    def on_message_begin(self) -> None:
        """A request begins; from the parser."""
        super().on_message_begin()
        self.scope["extensions"] = {CONNECTION: self}  # type: ignore[dict-item]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        super().connection_made(_GatheringTransport(transport, self.loop))

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        super().connection_lost(exc)
        self._is_lost = True
        if self._awaited is not None:
            self._awaited.cancel()


class _GatheringTransport(asyncio.Transport):
    """A transport that writes once a turn."""

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__()
        self._transport = transport
        self._loop = loop
        self._gathered: list[bytes] = []

    def write(self, data: Any) -> None:
        if not self._gathered:
            self._loop.call_soon(self._flush)
        self._gathered.append(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def _flush(self) -> None:
        if self._gathered and not self._transport.is_closing():
            self._transport.write(b"".join(self._gathered))
        self._gathered.clear()
