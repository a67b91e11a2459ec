"""What the generators share: outcomes, the window of a closed loop, and their process.

A generator is a process of its own: it gets a task over standard input, sends the load,
and leaves its measurement at standard output.
"""

import asyncio
import os
import pickle
import sys
import time
from array import array
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

import numpy as np
import uvloop

from loadtest.harness.client import ClosedLoop, Failure, Measurement
from loadtest.harness.processes import cpu_seconds

# A closed loop waits so long for an answer that closes its window, and then for each
# answer that is still to come.
PATIENCE_SECONDS: Final = 30


class Sent(Protocol):
    """A request that has been sent."""

    sent_at: float
    """Moment of `time.perf_counter`."""


class Outcomes:
    """What became of requests, and the time on the processor meanwhile."""

    def __init__(self, server_pid: int | None) -> None:
        self._server_pid = server_pid
        self._statuses = array("h")
        self._latencies = array("d")
        self._sent_at = array("d")

    def record(self, request: Sent, status: int, now: float) -> None:
        """A request has its outcome."""
        self._statuses.append(status)
        self._latencies.append(now - request.sent_at)
        self._sent_at.append(request.sent_at)

    def start_clocks(self, now: float) -> None:
        """What follows counts."""
        self._started = now
        self._cpu = time.process_time()
        self._server_cpu = self._server_cpu_seconds()

    def stop_clocks(self, now: float) -> None:
        """What follows does not count."""
        self._wall = now - self._started
        self._cpu = time.process_time() - self._cpu
        self._server_cpu = self._server_cpu_seconds() - self._server_cpu

    def measurement(self) -> Measurement:
        """All of it, once the clocks have stopped."""
        return Measurement(
            statuses=np.array(self._statuses, np.int16),
            latencies_seconds=np.array(self._latencies, np.float64),
            sent_at_seconds=np.array(self._sent_at, np.float64) - self._started,
            wall_seconds=self._wall,
            cpu_seconds=self._cpu,
            server_cpu_seconds=self._server_cpu,
        )

    def _server_cpu_seconds(self) -> float:
        pid = self._server_pid
        return 0.0 if pid is None else cpu_seconds(pid)


class Window:
    """The part of a closed loop that counts; see `harness.client.closed_loop`.

    Make it when the load begins.

    Attributes:
        is_closed: Whether nothing more is to be sent.
    """

    def __init__(self, load: ClosedLoop, outcomes: Outcomes) -> None:
        self.is_closed = False
        self._outcomes = outcomes
        self._duration_seconds = load.duration_seconds
        self._opens = time.perf_counter() + load.warm_up_seconds
        self._closes = self._opens + load.duration_seconds
        self._is_open = False
        self._under_way: set[Sent] = set()
        loop = asyncio.get_running_loop()
        self._finished: asyncio.Future[None] = loop.create_future()
        self._drained: asyncio.Future[None] = loop.create_future()

    def begin(self, request: Sent) -> None:
        """A request is sent."""
        self._under_way.add(request)

    def resolve(self, request: Sent, status: int) -> None:
        """Count it if the window is open, and see whether it is to open or close."""
        self._under_way.discard(request)
        if self.is_closed:
            if not self._under_way and not self._drained.done():
                self._drained.set_result(None)
            return
        now = time.perf_counter()
        if self._is_open:
            self._outcomes.record(request, status, now)
            if now >= self._closes:
                self._close(now)
        elif now >= self._opens:
            self._open(now)

    def break_off(self, error: BaseException) -> None:
        """`wait` ends with this error, unless the window is closed."""
        if not self._finished.done():
            self._finished.set_exception(error)

    async def wait(self) -> None:
        """Wait for its end, and then for the requests under way."""
        longest = self._closes - time.perf_counter() + PATIENCE_SECONDS
        await asyncio.wait({self._finished}, timeout=longest)
        if self._finished.done():
            self._finished.result()
        else:
            self._close(time.perf_counter())
        if self._under_way:
            await asyncio.wait({self._drained}, timeout=PATIENCE_SECONDS)
        now = time.perf_counter()
        for request in self._under_way:
            self._outcomes.record(request, Failure.TIMEOUT, now)

    def _open(self, now: float) -> None:
        self._is_open = True
        self._closes = now + self._duration_seconds
        self._outcomes.start_clocks(now)

    def _close(self, now: float) -> None:
        if not self._is_open:
            self._open(self._opens)
        self._outcomes.stop_clocks(now)
        self.is_closed = True
        if not self._finished.done():
            self._finished.set_result(None)


def run(generate: Callable[[Any], Coroutine[Any, Any, Measurement]]) -> None:
    """Read a task from standard input, and write its measurement to standard output."""
    task = pickle.load(sys.stdin.buffer)  # noqa: S301, from our own process
    measurement = uvloop.run(generate(task))
    # What PYTHONUNBUFFERED makes of standard output may write a part, and say nothing.
    with os.fdopen(sys.stdout.fileno(), "wb", closefd=False) as output:
        pickle.dump(measurement, output)
