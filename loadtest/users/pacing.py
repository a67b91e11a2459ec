"""When a user is to send, whatever becomes of what it sent before.

Locust's `constant_throughput` paces a user, too, but forgets: what was to be sent while
an answer was awaited is never sent, and what is sent late counts from when it was sent.
So a server that stalls for half a second shows one slow answer for each user, and not
all those whom it kept waiting (coordinated omission). Here what is late is sent as soon
as it can be, and its response time counts from when it was due.
"""


class Pace:
    """A moment in each period, from the first one on.

    Attributes:
        due_seconds: The moment that counts for what is being sent, or comes next.
    """

    def __init__(self, period_seconds: float, *, first_due_seconds: float) -> None:
        self._period_seconds = period_seconds
        self._next_due_seconds = first_due_seconds
        self.due_seconds = first_due_seconds

    def next(self, now_seconds: float) -> float:
        """Go on to the next moment: how long to wait for it; 0 if it has passed."""
        self.due_seconds = self._next_due_seconds
        self._next_due_seconds += self._period_seconds
        return max(0.0, self.due_seconds - now_seconds)
