"""Who waits for an answer over HTTP."""

import asyncio
from typing import TypeVar

from starlette.types import Receive, Scope

from service.errors import ClientDisconnected
from service.http.protocol import CONNECTION, HttpProtocol
from service.prediction import Caller

T = TypeVar("T")


def caller_of(scope: Scope, receive: Receive) -> Caller:
    """Who waits: the connection, where the server is ours."""
    connection: HttpProtocol | None = scope.get("extensions", {}).get(CONNECTION)
    return connection or _Client(receive)


class _Client:
    """A `Caller` over any ASGI server: gone when it says so."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive

    async def unless_gone(self, work: asyncio.Future[T]) -> T:
        """Wait for the work; cancel it when the client goes away.

        The request's own task waits for the client, and the end of the work interrupts
        it: a second task for each request would cost even more.

        Raises:
            ClientDisconnected: It went away.
        """
        task = asyncio.current_task()
        assert task is not None  # noqa: S101, coroutines run in tasks
        waits = True

        def interrupt(_: asyncio.Future[T]) -> None:
            if waits:
                task.cancel()

        work.add_done_callback(interrupt)
        try:
            while (await self._receive())["type"] != "http.disconnect":
                pass
        except asyncio.CancelledError:
            # Without the request of `interrupt`, somebody else wants the task to end.
            if not work.done() or task.uncancel() > 0:
                work.cancel()
                raise
        else:
            if not work.done():
                work.cancel()
                raise ClientDisconnected("the client went away")
        finally:
            waits = False
        return work.result()
