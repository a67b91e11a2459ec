"""Streams in which each request has an answer, whichever is ready first."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, TypeVar

import grpc
from google.protobuf.message import DecodeError

from service.grpc.calls import Context

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")

# Requests of one stream that have come and are not answered to the client. While there
# are so many no more are read, and HTTP/2 makes the client wait.
MAX_UNDER_WAY: Final = 64


async def answer_each(
    context: Context,
    requests: AsyncIterator[Asked],
    answer: Callable[[Asked], Awaitable[Answer]],
) -> AsyncIterator[Answer]:
    """The answers to a stream of requests, in the order in which they are ready.

    A message that cannot be read ends the stream, once those before have their answers.

    Args:
        context: The call's.
        requests: The stream.
        answer: Answers one; it raises nothing but for the whole stream to end.
    """
    ready: asyncio.Queue[Answer | None] = asyncio.Queue()
    places = asyncio.Semaphore(MAX_UNDER_WAY)

    async def work(request: Asked) -> None:
        ready.put_nowait(await answer(request))

    async def read() -> DecodeError | None:
        try:
            async with asyncio.TaskGroup() as group:
                try:
                    async for request in requests:
                        await places.acquire()
                        group.create_task(work(request))
                except DecodeError as error:
                    return error
        finally:
            ready.put_nowait(None)
        return None

    reading = asyncio.create_task(read())
    try:
        while (one := await ready.get()) is not None:
            yield one
            places.release()  # by now it has gone to the client
        if unreadable := await reading:
            code = grpc.StatusCode.INVALID_ARGUMENT
            await context.abort(code, f"a message cannot be read: {unreadable}")
    finally:
        reading.cancel()
        await asyncio.wait([reading])
