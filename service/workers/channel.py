"""Messages between the supervisor and one worker.

They go over a socket pair that only these two hold, so that whoever is left notices at
once when the other ends, and nothing lies in the file system.
"""

import asyncio
import pickle
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Any, Final, Self

from service.errors import BlockserveError
from service.settings import Settings

HEADER: Final = struct.Struct("!qI")  # the message's number, and its length in bytes
NOTICE: Final = 0  # the number of a message that needs no answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """To the worker, first of all: which one it is, and how to serve."""

    worker: int
    settings: Settings


@dataclass(frozen=True, slots=True)
class Started:
    """To the supervisor: both ports are open and every model has been tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """To the supervisor: why the worker cannot serve."""

    error: BlockserveError


@dataclass(frozen=True, slots=True)
class Collect:
    """To the worker: what does your own registry hold? Answer: metric families."""


@dataclass(frozen=True, slots=True)
class Recall:
    """What was done in the last minute? Answer: a `Window`, or `None` of nobody.

    To the worker: by yourself. To the supervisor: by all.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Render:
    """To the supervisor: the exposition of all. Answer: body and content type."""

    accept: str


class Channel:
    """One end: sends notices, asks questions and answers those of the other end."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._numbers = count(1)
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._closed = False

    @classmethod
    async def open(cls, end: socket.socket) -> Self:
        """Take over one end of a socket pair."""
        return cls(*await asyncio.open_unix_connection(sock=end))

    async def close(self) -> None:
        """Close once all that was sent is on its way."""
        self._closed = True
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()

    def send(self, message: object, *, number: int = NOTICE) -> None:
        """Send a message that needs no answer."""
        payload = pickle.dumps(message)
        self._writer.write(HEADER.pack(number, len(payload)) + payload)

    async def receive(self) -> tuple[int, Any]:
        """The next message's number, and the message.

        Raises:
            EOFError: The other end has closed.
        """
        try:
            header = await self._reader.readexactly(HEADER.size)
            number, length = HEADER.unpack(header)
            payload = await self._reader.readexactly(length)
        except ConnectionError as error:
            raise EOFError from error
        return number, pickle.loads(payload)  # noqa: S301, the peer is our own program

    async def ask(self, message: object) -> Any:
        """Send a question and wait for its answer, while `listen` runs.

        Raises:
            EOFError: The other end has closed.
        """
        if self._closed:
            raise EOFError
        number = next(self._numbers)
        answer = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        self.send(message, number=number)
        try:
            return await answer
        finally:
            del self._asked[number]

    async def listen(self, answer: Callable[[Any], Awaitable[object]]) -> None:
        """Let `answer` take what comes, until the other end closes; then close."""
        with suppress(EOFError):
            while True:
                number, message = await self.receive()
                if number >= NOTICE:
                    task = asyncio.create_task(self._take(number, message, answer))
                    self._answering.add(task)
                    task.add_done_callback(self._answering.discard)
                elif (asked := self._asked.get(-number)) and not asked.done():
                    asked.set_result(message)
        await self.close()
        for asked in self._asked.values():
            if not asked.done():
                asked.set_exception(EOFError())
        await asyncio.gather(*self._answering)

    async def _take(
        self, number: int, message: Any, answer: Callable[[Any], Awaitable[object]]
    ) -> None:
        reply = await answer(message)
        if number != NOTICE and not self._closed:
            self.send(reply, number=-number)
