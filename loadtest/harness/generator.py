"""The process that sends the load; `client` starts it and reads its report.

Its own work per request is kept small, for it shares the processor with the server:
requests are bytes made beforehand, httptools reads the answers, uvloop moves them.
"""

import asyncio
import gc
import resource
import signal
import time
from abc import ABC, abstractmethod
from collections import deque
from itertools import cycle
from typing import Any, Final, cast

import httptools

from loadtest.harness.client import (
    OK,
    ClosedLoop,
    Failure,
    Measurement,
    OpenLoop,
    Task,
    poisson_arrivals,
)
from loadtest.harness.generating import Outcomes, Window, run

RECONNECT_SECONDS: Final = 0.1
# An open loop that needs more counts the request as a failed connection.
MAX_CONNECTIONS: Final = 4096
EXPIRY_CHECK_SECONDS: Final = 0.02
SHORTEST_TIMER_SECONDS: Final = 1e-6


class Exchange:
    """One request and, some day, its outcome."""

    __slots__ = ("connecting", "connection", "done", "encoded", "expect", "sent_at")

    def __init__(self, request: tuple[bytes, bytes | None], sent_at: float) -> None:
        self.encoded, self.expect = request
        self.sent_at = sent_at
        self.connecting: asyncio.Task[None] | None = None
        self.connection: Connection | None = None
        self.done = False

    def give_up(self) -> None:
        """Close its connection, or make none."""
        if self.connection is not None:
            self.connection.abort()
        elif self.connecting is not None:
            self.connecting.cancel()


class Generator(ABC):
    """What closed and open loop share: connections, and a record of the outcomes."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._requests = cycle(task.requests)
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(self._handle)
        self._outcomes = Outcomes(task.server_pid)

    @abstractmethod
    async def run(self) -> Measurement:
        """Send the load."""

    @abstractmethod
    def resolve(self, exchange: Exchange, status: int) -> None:
        """An exchange has its outcome, and no other will follow."""

    @abstractmethod
    def idle(self, connection: "Connection") -> None:
        """A connection has had its answer and can take another request."""

    @abstractmethod
    def lost(self, connection: "Connection") -> None:
        """A connection is closed."""

    @abstractmethod
    def break_off(self, error: BaseException) -> None:
        """End with an error of ours."""

    def _connect(self, exchange: Exchange) -> None:
        exchange.connecting = self._loop.create_task(self._try_to_connect(exchange))

    async def _try_to_connect(self, exchange: Exchange) -> None:
        connection = Connection(self, exchange)
        host, port = self._task.host, self._task.port
        try:
            await self._loop.create_connection(lambda: connection, host, port)
        except (OSError, asyncio.CancelledError):
            self._loop.call_soon(connection.connection_lost, None)

    def _handle(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An error in a callback ends it all; those of connections are outcomes."""
        error = context.get("exception") or RuntimeError(context["message"])
        if not isinstance(error, OSError):
            self.break_off(error)


class Connection(asyncio.Protocol):
    """A connection made for an exchange; it carries one at a time."""

    __slots__ = ("_body", "_exchange", "_generator", "_parser", "_transport")

    def __init__(self, generator: Generator, exchange: Exchange) -> None:
        self._generator = generator
        self._parser = httptools.HttpResponseParser(self)
        self._body = b""
        self._exchange: Exchange | None = exchange
        self._transport: asyncio.Transport

    def send(self, exchange: Exchange) -> None:
        """Send a request; there is none under way."""
        self._exchange = exchange
        exchange.connection = self
        self._transport.write(exchange.encoded)

    def abort(self) -> None:
        """Close at once; `connection_lost` follows."""
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)
        exchange, self._exchange = self._exchange, None
        if exchange is None or exchange.done:
            self._generator.idle(self)
        else:
            self.send(exchange)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError:
            raise  # an error of ours, and no other's
        except httptools.HttpParserError:
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002, its name
        """See `asyncio.Protocol`."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            self._generator.resolve(exchange, Failure.CONNECTION)
        self._generator.lost(self)

    def on_body(self, body: bytes) -> None:
        """Part of a body, from the parser."""
        if self._exchange is not None and self._exchange.expect is not None:
            self._body += body

    def on_message_complete(self) -> None:
        """The end of an answer, from the parser."""
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            self.abort()
            return
        status: int = self._parser.get_status_code()
        if exchange.expect is not None:
            if status == OK and exchange.expect not in self._body:
                status = Failure.WRONG_ANSWER
            self._body = b""
        self._generator.resolve(exchange, status)
        if self._parser.should_keep_alive():
            self._generator.idle(self)
        else:
            self.abort()


class ClosedLoopGenerator(Generator):
    """Each connection sends the next request when it has its answer."""

    def __init__(self, task: Task, load: ClosedLoop) -> None:
        super().__init__(task)
        self._concurrency = load.concurrency
        self._window = Window(load, self._outcomes)

    async def run(self) -> Measurement:
        """Warm up, measure, drain."""
        for _ in range(self._concurrency):
            self._begin()
        await self._window.wait()
        return self._outcomes.measurement()

    def idle(self, connection: Connection) -> None:
        """Send the next request, unless the window is closed."""
        if not self._window.is_closed:
            connection.send(self._next_exchange())

    def lost(self, connection: Connection) -> None:  # noqa: ARG002, gone for good
        """Make another, but not in a hurry: the server may be down."""
        self._loop.call_later(RECONNECT_SECONDS, self._begin)

    def resolve(self, exchange: Exchange, status: int) -> None:
        """Count it, where it counts."""
        self._window.resolve(exchange, status)

    def break_off(self, error: BaseException) -> None:
        """See `Generator`."""
        self._window.break_off(error)

    def _begin(self) -> None:
        if not self._window.is_closed:
            self._connect(self._next_exchange())

    def _next_exchange(self) -> Exchange:
        exchange = Exchange(next(self._requests), time.perf_counter())
        self._window.begin(exchange)
        return exchange


class OpenLoopGenerator(Generator):
    """Requests leave at the moments of a Poisson process."""

    def __init__(self, task: Task, load: OpenLoop) -> None:
        super().__init__(task)
        self._load = load
        self._connections = 0
        self._idle: list[Connection] = []
        self._unresolved: deque[Exchange] = deque()
        self._finished: asyncio.Future[None] = self._loop.create_future()

    async def run(self) -> Measurement:
        """Send everything, and wait until all have their outcome."""
        load = self._load
        arrivals = poisson_arrivals(
            load.rate_per_second, load.duration_seconds, seed=load.seed
        )
        start = time.perf_counter()
        self._due = deque((start + arrivals).tolist())
        self._outcomes.start_clocks(start)
        # The timers of the event loop count milliseconds, and an answer takes few.
        self._loop.add_signal_handler(signal.SIGALRM, self._send_what_is_due)
        self._send_what_is_due()
        self._expire()
        await self._finished
        self._outcomes.stop_clocks(time.perf_counter())
        return self._outcomes.measurement()

    def idle(self, connection: Connection) -> None:
        """Keep it for the next request."""
        self._idle.append(connection)

    def lost(self, connection: Connection) -> None:
        """Forget it."""
        self._connections -= 1
        if connection in self._idle:
            self._idle.remove(connection)

    def resolve(self, exchange: Exchange, status: int) -> None:
        """Count it, once."""
        if not exchange.done:
            exchange.done = True
            self._outcomes.record(exchange, status, time.perf_counter())

    def break_off(self, error: BaseException) -> None:
        """See `Generator`."""
        if not self._finished.done():
            self._finished.set_exception(error)

    def _send_what_is_due(self) -> None:
        while self._due and self._due[0] <= time.perf_counter():
            self._send(Exchange(next(self._requests), self._due.popleft()))
        if self._due:
            wait = max(SHORTEST_TIMER_SECONDS, self._due[0] - time.perf_counter())
            signal.setitimer(signal.ITIMER_REAL, wait)

    def _send(self, exchange: Exchange) -> None:
        self._unresolved.append(exchange)
        if self._idle:
            self._idle.pop().send(exchange)
        elif self._connections < MAX_CONNECTIONS:
            self._connections += 1
            self._connect(exchange)
        else:
            self.resolve(exchange, Failure.CONNECTION)

    def _expire(self) -> None:
        """Give up on those whose time is over; they are in the order of arrival."""
        expired = time.perf_counter() - self._load.timeout_seconds
        while self._unresolved:
            first = self._unresolved[0]
            if not first.done:
                if first.sent_at > expired:
                    break
                self.resolve(first, Failure.TIMEOUT)
                first.give_up()
            self._unresolved.popleft()
        if self._due or self._unresolved:
            self._loop.call_later(EXPIRY_CHECK_SECONDS, self._expire)
        elif not self._finished.done():
            self._finished.set_result(None)


async def generate(task: Task) -> Measurement:
    """Send a task's load to its server."""
    load = task.load
    generator: Generator = (
        ClosedLoopGenerator(task, load)
        if isinstance(load, ClosedLoop)
        else OpenLoopGenerator(task, load)
    )
    return await generator.run()


def _allow_connections() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def main() -> None:
    """Do what `client` says."""
    _allow_connections()
    # Nothing here lives in cycles but connections, and they are few.
    gc.disable()
    run(generate)


if __name__ == "__main__":
    main()
