"""One request on its way to an answer: whom it asks, and when it asks another.

One replica is asked. If it fails, and the request is not to blame, another is asked.
If it is silent for longer than answers take, another is asked as well, and the first
answer wins. Where nobody can be asked, the call waits: a short while for a replica to
come back, and as long as its time allows for one to have room.
"""

import asyncio
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Final, Protocol

import grpc

from service.engines.tfserving import failures
from service.engines.tfserving.replica import Attempt, Replica, ReplicaFailed
from service.errors import BlockserveError

# How long a call goes on where all replicas fail, if its time allows.
PERSISTENCE_SECONDS: Final = 1.0
# After a failure a replica is not asked the same again before this has passed; each
# time twice as long.
BACKOFF_SECONDS: Final = 0.05
# What ended so long before its time has been given up by the replica, or on the way.
EARLY_SECONDS: Final = 0.1
# What stands for no deadline.
LONGEST_SECONDS: Final = 600.0
# uvloop's timers count milliseconds; a shorter one fires at once, again and again.
SHORTEST_TIMER_SECONDS: Final = 0.001


class Replicas(Protocol):
    """What a call asks of the pool."""

    @property
    def hedge_seconds(self) -> float | None:
        """When another one is asked as well; `None` is after `patience_seconds`."""

    def others(
        self, model: str, version: int, avoid: Mapping[Replica, float]
    ) -> Sequence[Replica]:
        """Who may be asked, full or not, except those to avoid."""

    def with_room(self, replicas: Sequence[Replica]) -> Replica | None:
        """The best of them that can take one more call."""

    def patience_seconds(self, remaining_seconds: float) -> float:
        """How long a silence means nothing."""

    def may_try_again(self) -> bool:
        """Take a retry out of the budget; false if there is none left."""

    def asked_again(self, *, beside_another: bool) -> None:
        """Take note that a replica was asked after another, or beside it."""

    def why_hopeless(
        self, model: str, version: int, since: float
    ) -> BlockserveError | None:
        """Why there is nobody to ask, if there is nobody and will not soon be."""

    def learn(
        self, replica: Replica, model: str, version: int, failure: ReplicaFailed
    ) -> None:
        """Take note of a failure that may not be one elsewhere."""

    def answered(self, seconds: float) -> None:
        """Take note of how long an answer took."""

    def ended(self) -> None:
        """A replica has room."""


class Call:
    """A `Predict` of one version, on whatever replicas it takes.

    Args:
        replicas: Who can be asked.
        model: The model's name.
        version: Its number.
        request: The bytes of a `PredictRequest` for that version.
        deadline: Moment of `time.monotonic`, in seconds.

    Attributes:
        wants_room: Whether it waits for a replica to have room.
    """

    def __init__(
        self,
        replicas: Replicas,
        model: str,
        version: int,
        request: bytes,
        deadline: float,
    ) -> None:
        self.wants_room = False
        self._replicas = replicas
        self._model = model
        self._version = version
        self._request = request
        self._began_at = monotonic()
        self._deadline = min(deadline, self._began_at + LONGEST_SECONDS)
        self._attempts: list[Attempt] = []
        self._another_at = 0.0  # when to ask another one as well
        self._avoid: dict[Replica, float] = {}  # until when
        self._backoff_seconds = BACKOFF_SECONDS
        self._failure: ReplicaFailed | None = None
        self._failed_at = 0.0  # for the first time
        self._is_second_opinion = False  # whether one has failed as if it were sick
        self._waiter: asyncio.Future[None] | None = None
        self._error: BlockserveError | None = None

    async def answer(self) -> bytes:
        """Ask until there is an answer.

        Returns:
            The bytes of a `PredictResponse`.

        Raises:
            BlockserveError: There is none; see `ReplicaPool.predict`.
        """
        try:
            while True:
                await self._news(until=self._ask())
                for attempt in [one for one in self._attempts if one.is_done]:
                    self._attempts.remove(attempt)
                    try:
                        answer = await attempt.answer()
                    except ReplicaFailed as failure:
                        self._learn(attempt, failure)
                    else:
                        self._replicas.answered(monotonic() - attempt.began_at)
                        return answer
        finally:
            for attempt in self._attempts:
                _doubt(attempt)
                attempt.cancel()

    def wake(self) -> None:
        """Something has changed."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def fail(self, error: BlockserveError) -> None:
        """End it with an error."""
        self._error = error
        self.wake()

    def _ask(self) -> float:
        """Ask one replica, or one more, if it is time; says when to look again."""
        now = monotonic()
        self.wants_room = False
        if self._error is not None:
            raise self._error
        if now >= self._deadline:
            raise failures.too_late()
        if self._attempts and now < self._another_at and not self._all_are_out:
            return self._another_at
        avoid = {one: until for one, until in self._avoid.items() if until > now}
        avoid |= {attempt.replica: self._deadline for attempt in self._attempts}
        others = self._replicas.others(self._model, self._version, avoid)
        replica = self._replicas.with_room(others)
        if replica is not None and (self._is_free or self._replicas.may_try_again()):
            self._begin(replica, now)
            return self._another_at
        self.wants_room = bool(others) and replica is None
        if not self.wants_room:
            if not self._attempts:
                self._check_hope(now, there_are_others=bool(others))
            if others or not self._attempts:
                return min(self._deadline, now + BACKOFF_SECONDS)
        return min([self._deadline, *avoid.values()])

    @property
    def _all_are_out(self) -> bool:
        return not any(attempt.replica.is_up for attempt in self._attempts)

    @property
    def _is_free(self) -> bool:
        """Whether asking now puts no more load on the replicas than there was."""
        if self._attempts:
            return self._all_are_out
        return self._failure is None or self._failure.is_lost

    def _begin(self, replica: Replica, now: float) -> None:
        remaining = self._deadline - now
        patience = self._replicas.patience_seconds(remaining)
        hedge = self._replicas.hedge_seconds
        if hedge is None or self._attempts:  # one hedge is enough
            hedge = patience
        self._another_at = now + min(remaining, hedge)
        if self._attempts or self._failure is not None:
            self._replicas.asked_again(beside_another=bool(self._attempts))
        attempt = replica.ask(self._request, remaining, self._ended)
        attempt.overdue_at = now + patience
        self._attempts.append(attempt)

    def _ended(self) -> None:
        self._replicas.ended()
        self.wake()

    def _learn(self, attempt: Attempt, failure: ReplicaFailed) -> None:
        """Take note of a failure.

        Raises:
            BlockserveError: It would fail elsewhere, too.
        """
        now = monotonic()
        if failures.may_pass(failure):
            self._avoid[attempt.replica] = now + self._backoff_seconds
            self._backoff_seconds *= 2
        elif self._is_ambiguous(failure, now) and not self._is_second_opinion:
            self._avoid[attempt.replica] = self._deadline
            self._is_second_opinion = True
        else:
            _doubt(attempt)
            raise failures.error_of(failure)
        if self._failure is None:
            self._failed_at = now
        self._failure = failure
        self._replicas.learn(attempt.replica, self._model, self._version, failure)

    def _is_ambiguous(self, failure: ReplicaFailed, now: float) -> bool:
        """Whether the replica may be at fault."""
        if failure.code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return now < self._deadline - EARLY_SECONDS  # not ours, then
        return failure.code in failures.AMBIGUOUS

    def _check_hope(self, now: float, *, there_are_others: bool) -> None:
        """Go on only where somebody may answer yet.

        Raises:
            BlockserveError: Nobody will.
        """
        why = self._replicas.why_hopeless(self._model, self._version, self._began_at)
        if why is not None:
            raise why
        if self._failure is None:
            return
        is_over = now >= self._failed_at + PERSISTENCE_SECONDS
        if is_over or not (there_are_others or failures.may_pass(self._failure)):
            raise failures.error_of(self._failure)

    async def _news(self, *, until: float) -> None:
        """Wait until an attempt is done or something has changed; not for ever."""
        if any(attempt.is_done for attempt in self._attempts):
            return
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        seconds = max(SHORTEST_TIMER_SECONDS, until - monotonic())
        timer = loop.call_later(seconds, self.wake)
        try:
            await self._waiter
        finally:
            timer.cancel()
            self._waiter = None


def _doubt(attempt: Attempt) -> None:
    """Let a replica rest that has been silent for too long."""
    if monotonic() >= attempt.overdue_at:
        attempt.replica.rest()
