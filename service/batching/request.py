"""One caller's rows on their way through the queue."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from types import TracebackType
from typing import Protocol, Self

import numpy as np

from service.errors import BlockserveError, DeadlineExceeded
from service.telemetry.tracing import RequestSpan
from service.tensors import Array, Tensors

Answer = asyncio.Future[dict[str, Array]]


class Priority(IntEnum):
    """Whose turn it is: no batch request goes before an interactive one."""

    INTERACTIVE = 0
    BATCH = 1


class Queue(Protocol):
    """What a request does to the queue that it has a place in."""

    def enqueue(self, request: "Request", tensors: Tensors) -> Answer:
        """Let it wait for a slot."""

    def release(self, request: "Request") -> None:
        """Let go of one that is answered, or withdraw it."""


@dataclass(slots=True, eq=False, kw_only=True)
class Request:
    """A place in a batcher's queue, held from admission to the answer.

    Use it as a context manager: what has no answer when the block ends is withdrawn.

    Attributes:
        rows: Rows that it will bring.
        deadline: Moment of `time.monotonic`, in seconds.
        priority: Whose turn it is.
        expected_at: When its answer was expected as it was admitted.
        span: Its span, if it is recorded.
        tensors: The rows, once they are there.
        queued_at: Since when they are.
        queue_seconds: How long they, or the first of them, have waited for a slot.
        inference_seconds: How long the engine took for them, in all batches.
        is_ripe: Whether it need wait for company no longer.
        taken: Rows that have left the queue in batches.
        answered: Rows whose outputs are there.
        parts: Outputs by first row, for a request that spans several batches.
    """

    queue: Queue
    rows: int
    deadline: float
    priority: Priority
    expected_at: float
    answer: Answer
    span: RequestSpan | None = None
    tensors: Tensors | None = None
    queued_at: float = 0.0
    queue_seconds: float = 0.0
    inference_seconds: float = 0.0
    is_ripe: bool = False
    taken: int = 0
    answered: int = 0
    parts: dict[int, dict[str, Array]] | None = None

    def submit(self, tensors: Tensors) -> Answer:
        """Queue the rows; cancel the returned future to give up.

        Args:
            tensors: What the signature's `validate` has accepted, of `rows` rows.

        Returns:
            The outputs, with `rows` rows each. The future fails with
            `DeadlineExceeded` at the deadline and with `EngineFailure` if the engine
            could not run these rows.

        Raises:
            DeadlineExceeded: The deadline has passed.
            Draining: The batcher has been closed meanwhile.
            EngineFailure: The batcher has crashed.
        """
        return self.queue.enqueue(self, tensors)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.queue.release(self)

    def fail(self, error: BlockserveError) -> None:
        """Answer with an error, unless there is an answer already."""
        if not self.answer.done():
            self.answer.set_exception(error)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Slice:
    """The rows `[start, stop)` of a request that go into one batch."""

    request: Request
    tensors: Tensors
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """How many they are."""
        return self.stop - self.start

    def resolve(self, outputs: dict[str, Array]) -> None:
        """Hand the request its part; the last part completes the answer.

        Raises:
            ValueError: The shapes of the parts differ in more than their rows.
        """
        request = self.request
        if request.answer.done():
            return
        if self.rows == request.rows:
            request.answer.set_result(outputs)
            return
        if request.parts is None:
            request.parts = {}
        request.parts[self.start] = outputs
        request.answered += self.rows
        if request.answered == request.rows:
            parts = [request.parts[start] for start in sorted(request.parts)]
            request.answer.set_result(concatenate(parts))


def slice_rows(tensors: Tensors, start: int, stop: int, *, rows: int) -> Tensors:
    """The rows `[start, stop)` of `rows`; all of them are not copied."""
    if stop - start == rows:
        return tensors
    return {name: array[start:stop] for name, array in tensors.items()}


def concatenate(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Join `{name: array[rows, …]}` along the rows; one part is not copied."""
    if len(parts) == 1:
        return dict(parts[0])
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def expired() -> DeadlineExceeded:
    """The error of a request whose deadline has passed."""
    return DeadlineExceeded(
        "the request's time ran out before its answer was there; "
        "allow more time or send less load"
    )
