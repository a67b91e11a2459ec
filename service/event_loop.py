"""What asyncio does not tell: how late its loop is, and whether a coroutine waits."""

import asyncio
from collections.abc import Callable, Coroutine, Generator
from time import monotonic
from typing import Any, Final, Generic, NoReturn, TypeVar

from service.telemetry.series import Histogram

LAG_INTERVAL_SECONDS: Final = 0.25

T = TypeVar("T")


async def maybe_in_thread(
    is_long: bool,
    function: Callable[..., T],
    *args: Any,
) -> T:
    """Call a function here, or where it takes long in a thread.

    There it takes turns with the event loop, which answers others meanwhile.
    """
    if is_long:
        return await asyncio.to_thread(function, *args)
    return function(*args)


class EventLoopLag:
    """How long what a client sends waits in its socket until the loop reads it.

    That is a turn of the loop at most. Nothing tells how long a single request has
    waited, but the length of the turn before does nearly, for an overloaded loop makes
    one long turn after the other.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._measured_at = 0.0
        self._turn_began_at: float | None = None

    def seconds_at_arrival(self) -> float:
        """What a request that is seen at this moment may have waited."""
        now = monotonic()
        if self._turn_began_at is None:
            self._turn_began_at = now
            asyncio.get_running_loop().call_soon(self._end_turn)
        # After a pause as long as the turn was, nothing from it waits any more.
        return self._seconds if now - self._measured_at <= self._seconds else 0.0

    def _end_turn(self) -> None:
        assert self._turn_began_at is not None  # noqa: S101, set with the call
        self._measured_at = monotonic()
        self._seconds = self._measured_at - self._turn_began_at
        self._turn_began_at = None


async def observe_lag(histogram: Histogram) -> NoReturn:
    """Observe again and again how much later than due a timer runs, in seconds."""
    while True:
        due_at = monotonic() + LAG_INTERVAL_SECONDS
        await asyncio.sleep(LAG_INTERVAL_SECONDS)
        histogram.observe(max(0.0, monotonic() - due_at))


class Eager(Generic[T]):
    """A coroutine that has run up to the first moment at which it had to wait.

    One that need not wait at all is done at once, and what its caller would set up for
    the wait (a timer costs as much as reading a small request) can be spared.

    Attributes:
        is_done: Whether it came to its end; its `result` is there.

    Raises:
        Exception: What the coroutine raised before it had to wait.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self.is_done = False
        self._coroutine = coroutine
        try:
            self._waits_for = coroutine.send(None)
        except StopIteration as end:
            self.is_done = True
            self.result: T = end.value

    def __await__(self) -> Generator[Any, Any, T]:
        """Wait for the rest of it; once, and only where it is not done."""
        waits_for = self._waits_for
        try:
            while True:
                try:
                    answer = yield waits_for
                except BaseException as error:  # what it makes of it is its own affair
                    waits_for = self._coroutine.throw(error)
                else:
                    waits_for = self._coroutine.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result

    def close(self) -> None:
        """End it where it waits, if it still does."""
        self._coroutine.close()
