"""The slots of a processor, and whose turn it is when several models want one.

The one that has had the least of the processor's time goes first (start-time fair
queuing: P. Goyal, H. Vin, H. Cheng, 1996). Time not used is not saved up: a model that
was idle joins at where the others are.
"""

import asyncio
from typing import Protocol


class Member(Protocol):
    """A batcher, as the processor sees it."""

    @property
    def wants_slot(self) -> bool:
        """Whether a batch could start now."""

    def start_batch(self) -> float | None:
        """Start one and say how many seconds it should take; `None` if there is none.

        Must not raise.
        """


class Processor:
    """Decides which batcher's batch is next.

    Args:
        slots: Batches that may run at a time, over all members.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._free_slots = slots  # below zero once slots with batches are taken away
        self._received: dict[Member, float] = {}  # seconds, by a common clock
        self._clock = 0.0
        self._dispatch_is_due = False

    def resize(self, slots: int) -> None:
        """Have another number of slots from now on."""
        self._free_slots += slots - self._slots
        self._slots = slots
        self.dispatch_soon()

    def join(self, member: Member) -> None:
        """Take a batcher in."""
        self._received[member] = self._clock

    def leave(self, member: Member) -> None:
        """Let a batcher go; its batches under way still give their slots back."""
        self._received.pop(member, None)

    def awake(self, member: Member) -> None:
        """Say that a batcher which had nothing to do has something."""
        if member in self._received:
            self._received[member] = max(self._received[member], self._clock)

    def dispatch_soon(self) -> None:
        """Fill free slots once what is happening at this moment has happened.

        So requests that arrive together can go together, and none waits for it.
        """
        if self._free_slots > 0 and not self._dispatch_is_due:
            self._dispatch_is_due = True
            asyncio.get_running_loop().call_soon(self.dispatch)

    def dispatch(self) -> None:
        """Fill free slots."""
        self._dispatch_is_due = False
        received = self._received
        while self._free_slots > 0:
            waiting = [member for member in received if member.wants_slot]
            if not waiting:
                return
            member = min(waiting, key=received.__getitem__)
            self._clock = max(self._clock, received[member])
            seconds = member.start_batch()
            if seconds is not None:
                self._free_slots -= 1
                received[member] += seconds

    def finished(self, member: Member, *, surplus_seconds: float) -> None:
        """Take a slot back, and fill it.

        Args:
            member: Whose batch has ended.
            surplus_seconds: How much longer than said at its start it took.
        """
        self._free_slots += 1
        if member in self._received:
            self._received[member] += surplus_seconds
        self.dispatch()
