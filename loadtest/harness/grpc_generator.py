"""The process that sends gRPC's load; `grpc_client` starts it."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from itertools import cycle
from typing import Any, Final

import grpc

from loadtest.harness.client import OK, Failure, Measurement
from loadtest.harness.generating import Outcomes, Window, run
from loadtest.harness.grpc_client import GrpcTask, Message

# The server may be down, and answers to calls that it cannot get come at once.
PAUSE_SECONDS: Final = 0.1
UNAVAILABLE: Final[int] = grpc.StatusCode.UNAVAILABLE.value[0]
# gRPC waits longer and longer by itself, up to two minutes.
OPTIONS: Final = (("grpc.max_reconnect_backoff_ms", 100),)


class Exchange:
    """One request and, some day, its outcome."""

    __slots__ = ("message", "sent_at")

    def __init__(self, message: Message) -> None:
        self.message = message
        self.sent_at = time.perf_counter()

    def status_of(self, answer: bytes) -> int:
        """What the answer is worth."""
        expect = self.message.expect
        good = expect is None or expect in answer
        return OK if good else Failure.WRONG_ANSWER


class Generator:
    """A closed loop over one connection: of calls, or of the requests of a stream."""

    def __init__(self, task: GrpcTask) -> None:
        self._task = task
        self._messages = cycle(task.messages)
        self._outcomes = Outcomes(task.server_pid)
        self._window = Window(task.load, self._outcomes)

    async def run(self) -> Measurement:
        """Warm up, measure, drain."""
        task = self._task
        async with grpc.aio.insecure_channel(task.address, OPTIONS) as channel:
            if task.tags:
                work = [self._streams(channel.stream_stream(task.method))]
            else:
                call: Any = channel.unary_unary(task.method)
                work = [self._calls(call) for _ in range(task.load.concurrency)]
            running = [asyncio.create_task(one) for one in work]
            for one in running:
                one.add_done_callback(self._ended)
            await self._window.wait()
            for one in running:
                one.cancel()
        return self._outcomes.measurement()

    async def _calls(self, call: Any) -> None:
        """One call after the other."""
        while not self._window.is_closed:
            exchange = self._begin()
            try:
                status = exchange.status_of(await call(exchange.message.body))
            except grpc.aio.AioRpcError as error:
                status = _number(error)
            self._window.resolve(exchange, status)
            if status == UNAVAILABLE:
                await asyncio.sleep(PAUSE_SECONDS)

    async def _streams(self, call: Any) -> None:
        """One stream, and another only where it breaks."""
        while not self._window.is_closed:
            status, left = await self._stream(call)
            for exchange in left:
                self._window.resolve(exchange, status)
            await asyncio.sleep(PAUSE_SECONDS)

    async def _stream(self, call: Any) -> tuple[int, list[Exchange]]:
        """Send and receive; which requests got no answer, and what stands for it."""
        free: asyncio.Queue[bytes] = asyncio.Queue()
        for tag in self._task.tags:
            free.put_nowait(tag)
        under_way: dict[bytes, Exchange] = {}

        async def requests() -> AsyncIterator[bytes]:
            while True:
                tag = await free.get()
                if self._window.is_closed:
                    return
                exchange = under_way[tag] = self._begin()
                yield tag + exchange.message.body

        length = len(self._task.tags[0])
        answers = call(requests())
        status: int = Failure.CONNECTION
        try:
            async for answer in answers:
                tag = answer[:length]
                if tag not in under_way:
                    status = Failure.WRONG_ANSWER
                    break
                exchange = under_way.pop(tag)
                self._window.resolve(exchange, exchange.status_of(answer))
                free.put_nowait(tag)
        except grpc.aio.AioRpcError as error:
            status = _number(error)
        finally:
            answers.cancel()
        return status, list(under_way.values())

    def _begin(self) -> Exchange:
        exchange = Exchange(next(self._messages))
        self._window.begin(exchange)
        return exchange

    def _ended(self, work: asyncio.Task[None]) -> None:
        """An error that is no outcome ends it all."""
        if not work.cancelled() and (error := work.exception()) is not None:
            self._window.break_off(error)


def _number(error: grpc.aio.AioRpcError) -> int:
    number: int = error.code().value[0]
    return number


async def generate(task: GrpcTask) -> Measurement:
    """Send a task's load to its server."""
    return await Generator(task).run()


def main() -> None:
    """Do what `grpc_client` says."""
    gc.freeze()
    run(generate)


if __name__ == "__main__":
    main()
