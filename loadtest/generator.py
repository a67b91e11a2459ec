"""The process that sends the load; `loadtest.client` starts it and reads its report.

Its own work per request is kept small, for it shares the processor with the server:
requests are bytes made beforehand, httptools reads the answers, uvloop moves them.
"""

import asyncio
import gc
import os
import pickle
import resource
import signal
import sys
import time
from abc import ABC, abstractmethod
from array import array
from collections import deque
from itertools import cycle
from typing import Any, Final, cast

import httptools
import numpy as np
import uvloop

from loadtest.client import (
    OK,
    ClosedLoop,
    Failure,
    Measurement,
    OpenLoop,
    Task,
    poisson_arrivals,
)
from loadtest.processes import cpu_seconds

# A closed loop waits so long for an answer that closes its window, and then for each
# answer that is still to come.
PATIENCE_SECONDS: Final = 30
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
        self._finished: asyncio.Future[None] = self._loop.create_future()
        self._loop.set_exception_handler(self._break_off)
        self._statuses = array("h")
        self._latencies = array("d")
        self._sent_at = array("d")

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

    def _connect(self, exchange: Exchange) -> None:
        exchange.connecting = self._loop.create_task(self._try_to_connect(exchange))

    async def _try_to_connect(self, exchange: Exchange) -> None:
        connection = Connection(self, exchange)
        host, port = self._task.host, self._task.port
        try:
            await self._loop.create_connection(lambda: connection, host, port)
        except (OSError, asyncio.CancelledError):
            self._loop.call_soon(connection.connection_lost, None)

    def _break_off(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An error in a callback ends it all; those of connections are outcomes."""
        error = context.get("exception") or RuntimeError(context["message"])
        if not isinstance(error, OSError) and not self._finished.done():
            self._finished.set_exception(error)

    def _record(self, exchange: Exchange, status: int, now: float) -> None:
        self._statuses.append(status)
        self._latencies.append(now - exchange.sent_at)
        self._sent_at.append(exchange.sent_at)

    def _start_clocks(self, now: float) -> None:
        self._started = now
        self._cpu = time.process_time()
        self._server_cpu = self._server_cpu_seconds()

    def _stop_clocks(self, now: float) -> None:
        self._wall = now - self._started
        self._cpu = time.process_time() - self._cpu
        self._server_cpu = self._server_cpu_seconds() - self._server_cpu

    def _server_cpu_seconds(self) -> float:
        pid = self._task.server_pid
        return 0.0 if pid is None else cpu_seconds(pid)

    def _measurement(self) -> Measurement:
        return Measurement(
            statuses=np.array(self._statuses, np.int16),
            latencies_seconds=np.array(self._latencies, np.float64),
            sent_at_seconds=np.array(self._sent_at, np.float64) - self._started,
            wall_seconds=self._wall,
            cpu_seconds=self._cpu,
            server_cpu_seconds=self._server_cpu,
        )


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
        self._load = load
        self._window_open = False
        self._draining = False
        self._drained: asyncio.Future[None] = self._loop.create_future()
        self._under_way: set[Exchange] = set()

    async def run(self) -> Measurement:
        """Warm up, measure, drain."""
        load = self._load
        self._window_opens = time.perf_counter() + load.warm_up_seconds
        self._window_closes = self._window_opens + load.duration_seconds
        for _ in range(load.connections):
            self._begin()
        longest = load.warm_up_seconds + load.duration_seconds + PATIENCE_SECONDS
        await asyncio.wait({self._finished}, timeout=longest)
        if self._finished.done():
            self._finished.result()
        else:
            self._close_window(time.perf_counter())
        if self._under_way:
            await asyncio.wait({self._drained}, timeout=PATIENCE_SECONDS)
        now = time.perf_counter()
        for exchange in self._under_way:
            self._record(exchange, Failure.TIMEOUT, now)
        return self._measurement()

    def idle(self, connection: Connection) -> None:
        """Send the next request, unless the window is closed."""
        if not self._draining:
            connection.send(self._next_exchange())

    def lost(self, connection: Connection) -> None:  # noqa: ARG002, gone for good
        """Make another, but not in a hurry: the server may be down."""
        self._loop.call_later(RECONNECT_SECONDS, self._begin)

    def resolve(self, exchange: Exchange, status: int) -> None:
        """Count it if the window is open, and see whether it is to open or close."""
        self._under_way.discard(exchange)
        if self._draining:
            if not self._under_way and not self._drained.done():
                self._drained.set_result(None)
            return
        now = time.perf_counter()
        if self._window_open:
            self._record(exchange, status, now)
            if now >= self._window_closes:
                self._close_window(now)
        elif now >= self._window_opens:
            self._open_window(now)

    def _begin(self) -> None:
        if not self._draining:
            self._connect(self._next_exchange())

    def _next_exchange(self) -> Exchange:
        exchange = Exchange(next(self._requests), time.perf_counter())
        self._under_way.add(exchange)
        return exchange

    def _open_window(self, now: float) -> None:
        self._window_open = True
        self._window_closes = now + self._load.duration_seconds
        self._start_clocks(now)

    def _close_window(self, now: float) -> None:
        if not self._window_open:
            self._open_window(self._window_opens)
        self._stop_clocks(now)
        self._draining = True
        if not self._finished.done():
            self._finished.set_result(None)


class OpenLoopGenerator(Generator):
    """Requests leave at the moments of a Poisson process."""

    def __init__(self, task: Task, load: OpenLoop) -> None:
        super().__init__(task)
        self._load = load
        self._connections = 0
        self._idle: list[Connection] = []
        self._unresolved: deque[Exchange] = deque()

    async def run(self) -> Measurement:
        """Send everything, and wait until all have their outcome."""
        load = self._load
        arrivals = poisson_arrivals(
            load.rate_per_second, load.duration_seconds, seed=load.seed
        )
        start = time.perf_counter()
        self._due = deque((start + arrivals).tolist())
        self._start_clocks(start)
        # The timers of the event loop count milliseconds, and an answer takes few.
        self._loop.add_signal_handler(signal.SIGALRM, self._send_what_is_due)
        self._send_what_is_due()
        self._expire()
        await self._finished
        self._stop_clocks(time.perf_counter())
        return self._measurement()

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
            self._record(exchange, status, time.perf_counter())

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
    """Read a task from standard input, and write its measurement to standard output."""
    task: Task = pickle.load(sys.stdin.buffer)  # noqa: S301, from our own process
    _allow_connections()
    # Nothing here lives in cycles but connections, and they are few.
    gc.disable()
    measurement = uvloop.run(generate(task))
    # What PYTHONUNBUFFERED makes of standard output may write a part, and say nothing.
    with os.fdopen(sys.stdout.fileno(), "wb", closefd=False) as output:
        pickle.dump(measurement, output)


if __name__ == "__main__":
    main()
