"""uvicorn's HTTP/1.1 protocol, with two shorter ways.

uvicorn writes the head and the body of an answer one after the other, and uvloop sends
each at once: two system calls, and a client that is woken twice. Here they are written
together, once the answer is complete.

In ASGI, whoever wants to know that the client has gone waits for a message. To wait for
that and for the engine at the same time costs a quarter of what a small request does.
So a request finds its connection among the `extensions` of its scope, and the
connection cancels what the request waits for.
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
        elif not self.pipeline:
            # After a large body it is paused, and a paused one sees nobody go.
            self.flow.resume_reading()
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
        """Give the request that begins its connection."""
        super().on_message_begin()
        self.scope["extensions"] = {CONNECTION: self}  # type: ignore[dict-item]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Write through a transport that gathers."""
        super().connection_made(_GatheringTransport(transport, self.loop))

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel what the request waits for."""
        super().connection_lost(exc)
        self._is_lost = True
        if self._awaited is not None:
            self._awaited.cancel()
        if self.scope is not None:
            del self.scope["extensions"]  # or only the garbage collector would free us

    def on_response_complete(self) -> None:
        """Send the answer, which is whole now, at once."""
        self.transport.flush()  # type: ignore[attr-defined]  # ours
        super().on_response_complete()


class _GatheringTransport(asyncio.Transport):
    """Writes when it is told to, and at the latest in the next turn of the loop."""

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__()
        self._transport = transport
        self._loop = loop
        self._gathered: list[bytes] = []

    def write(self, data: Any) -> None:
        if not self._gathered:
            self._loop.call_soon(self.flush)
        self._gathered.append(data)

    def flush(self) -> None:
        """Write what has been gathered."""
        if self._gathered and not self._transport.is_closing():
            self._transport.write(b"".join(self._gathered))
        self._gathered.clear()

    def close(self) -> None:
        self.flush()
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
