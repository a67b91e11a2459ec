"""How late the event loop is."""

import asyncio
from time import monotonic


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
