"""uvicorn's HTTP/1.1 protocol, with three shorter ways.

uvicorn writes the head and the body of an answer one after the other, and uvloop sends
each at once: two system calls, and a client that is woken twice. Here they are written
together, once the answer is complete.

In ASGI, whoever wants to know that the client has gone waits for a message. To wait for
that and for the engine at the same time costs a quarter of what a small request does.
So a request finds its connection among the `extensions` of its scope, and the
connection cancels what the request waits for.

A request runs in a task, which is made when its headers are there. Under overload most
requests end with a refusal that the headers suffice for, and tasks that only refuse
would take the time that is short. So a doorkeeper sees the headers first.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.errors import ClientDisconnected

CONNECTION: Final = "blockserve.connection"

T = TypeVar("T")
Headers = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer in the application's place."""

    status: int
    headers: Headers
    body: bytes


class Doorkeeper(Protocol):
    """Sees requests whose body has not been read yet."""

    def refuse(self, method: bytes, path: bytes, headers: Headers) -> Refusal | None:
        """Refuse a request; `None` lets it pass.

        Args:
            method: As it was sent.
            path: As it was sent, without the query.
            headers: Names in lower case, and values.
        """


def http_protocol(doorkeeper: Doorkeeper) -> Callable[..., "HttpProtocol"]:
    """What `uvicorn.Config(http=…)` is to make for each connection."""
    return partial(HttpProtocol, doorkeeper)


class _Refused:
    """Stands where uvicorn has the request that is being answered: it is, already."""

    response_complete = True
    message_event = asyncio.Event()  # nobody waits for it


REFUSED: Final = _Refused()


class HttpProtocol(HttpToolsProtocol):
    """A connection, and the `Caller` of the requests on it.

    uvicorn answers one request at a time, also where several came at once.
    """

    def __init__(self, doorkeeper: Doorkeeper, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._doorkeeper = doorkeeper
        self._is_lost = False
        self._awaited: asyncio.Future[Any] | None = None

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

    def on_headers_complete(self) -> None:
        """Refuse the request, or start it."""
        # One that waits for another's answer cannot be answered yet. Those with
        # another end than most (an upgrade, a closed connection) are uvicorn's.
        if (
            (self.cycle is None or self.cycle.response_complete)
            and self.parser.should_keep_alive()
            and not self.parser.should_upgrade()
            and not self.expect_100_continue
        ):
            path = self.url.partition(b"?")[0]
            method = self.parser.get_method()
            refusal = self._doorkeeper.refuse(method, path, self.headers)
            if refusal is not None:
                self._answer(refusal)
                return
        super().on_headers_complete()

    def _answer(self, refusal: Refusal) -> None:
        headers = [*self.server_state.default_headers, *refusal.headers]
        lines = [b"%b: %b\r\n" % header for header in headers]
        length = b"content-length: %d\r\n\r\n" % len(refusal.body)
        head = (STATUS_LINE[refusal.status], *lines, length)
        self.transport.write(b"".join((*head, refusal.body)))
        self.cycle = REFUSED  # type: ignore[assignment]  # so its body is dropped
        self.on_response_complete()

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
