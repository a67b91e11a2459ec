"""Turns requests into engine calls: few enough for speed, early enough for latency.

The policy is work-conserving. While a slot in the engine is free, a request is run at
once; while all slots are busy, requests gather, and the slot that frees takes what has
gathered, up to `max_batch_size` rows. Nothing waits for company on a timer.

There is no dispatcher task that could die unseen: dispatching happens where something
changed, on arrival and when a slot frees.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from service.errors import (
    BlockserveError,
    DeadlineExceeded,
    Draining,
    EngineFailure,
    Overloaded,
)
from service.metrics import VersionMetrics
from service.tensors import Array, Tensors

logger = logging.getLogger(__name__)

Infer = Callable[[Tensors], Awaitable[dict[str, Array]]]


@dataclass(slots=True, eq=False, kw_only=True)
class _Request:
    """One caller's rows; `taken` of them have left the queue, `answered` are done.

    `parts` collects the outputs by first row, for a request that spans several batches.
    """

    tensors: Tensors
    rows: int
    deadline: float
    queued_at: float
    answer: asyncio.Future[dict[str, Array]]
    taken: int = 0
    answered: int = 0
    parts: dict[int, dict[str, Array]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Slice:
    """The rows `[start, stop)` of a request that go into one batch."""

    request: _Request
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start

    @property
    def tensors(self) -> Tensors:
        whole = self.request.tensors
        if self.rows == self.request.rows:
            return whole
        return {name: array[self.start : self.stop] for name, array in whole.items()}

    def resolve(self, outputs: dict[str, Array]) -> None:
        """Hand the request its part; the last part completes the answer."""
        request = self.request
        if request.answer.done():
            return
        if self.rows == request.rows:
            request.answer.set_result(outputs)
            return
        request.parts[self.start] = outputs
        request.answered += self.rows
        if request.answered == request.rows:
            parts = [request.parts[start] for start in sorted(request.parts)]
            request.answer.set_result(_concatenate(parts))

    def reject(self, error: BlockserveError) -> None:
        if not self.request.answer.done():
            self.request.answer.set_exception(error)


class Batcher:
    """Queue and dispatch of one signature of one model version.

    Args:
        infer: Runs one batch: `{input: array[rows, …]}` to `{output: array[rows, …]}`.
        slots: Batches that may run at a time.
        max_batch_size: Most rows in one batch; 1 for a signature that is not batched.
        max_queue_depth: Most requests that wait; more are refused.
        batched: Whether the first dimension counts rows. Where it does not, a request
            is one row whatever its shape, and its outputs are handed on untouched.
        metrics: Where queue time, inference time and batch size are observed.
        on_crash: Called when dispatching has failed for good.
    """

    def __init__(
        self,
        infer: Infer,
        *,
        slots: int,
        max_batch_size: int,
        max_queue_depth: int,
        batched: bool = True,
        metrics: VersionMetrics,
        on_crash: Callable[[], None] = lambda: None,
    ) -> None:
        self._infer = infer
        self._free_slots = slots
        self._max_batch_size = max_batch_size if batched else 1
        self._max_queue_depth = max_queue_depth
        self._batched = batched
        self._metrics = metrics
        self._on_crash = on_crash
        self._queue: deque[_Request] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._unanswered: set[asyncio.Future[dict[str, Array]]] = set()
        self._loop = asyncio.get_running_loop()
        self._refuse: Callable[[], BlockserveError] | None = None

    @property
    def queue_depth(self) -> int:
        """Requests that wait for a slot."""
        return len(self._queue)

    @property
    def crashed(self) -> bool:
        """Whether dispatching failed; such a batcher refuses everything."""
        return self._refuse is _crashed

    def submit(
        self, tensors: Tensors, *, rows: int, deadline: float
    ) -> asyncio.Future[dict[str, Array]]:
        """Queue one request; cancel the returned future to withdraw it.

        Args:
            tensors: What the signature's `validate` has accepted.
            rows: The number that `validate` returned.
            deadline: Moment on the event loop's clock, in seconds.

        Returns:
            The outputs, with `rows` rows each. The future fails with
            `DeadlineExceeded` at the deadline and with `EngineFailure` if the engine
            could not run these rows.

        Raises:
            Overloaded: The queue is full.
            DeadlineExceeded: The deadline has passed already.
            Draining: The batcher is closed.
            EngineFailure: The batcher has crashed.
        """
        if self._refuse is not None:
            raise self._refuse()
        now = self._loop.time()
        if deadline <= now:
            raise _expired()
        if len(self._queue) >= self._max_queue_depth:
            raise Overloaded(
                f"the queue is full ({self._max_queue_depth} requests wait); "
                "try again later"
            )
        answer: asyncio.Future[dict[str, Array]] = self._loop.create_future()
        request = _Request(
            tensors=tensors,
            rows=rows,
            deadline=deadline,
            queued_at=now,
            answer=answer,
        )
        expiry = self._loop.call_at(deadline, _fail, answer, _expired)
        self._unanswered.add(answer)

        def settle(answer: asyncio.Future[dict[str, Array]]) -> None:
            expiry.cancel()
            self._unanswered.discard(answer)

        answer.add_done_callback(settle)
        self._queue.append(request)
        self._dispatch()
        return answer

    def close(self) -> None:
        """Refuse new requests and fail those that have no answer yet."""
        self._stop(_closed)

    def _dispatch(self) -> None:
        try:
            while self._free_slots and (batch := self._take()):
                self._free_slots -= 1
                task = self._loop.create_task(self._run(batch))
                self._running.add(task)
                task.add_done_callback(self._finished)
        except Exception as error:
            self._crash(error)

    def _take(self) -> list[_Slice]:
        """Remove the next batch from the queue; empty if nothing live waits."""
        batch: list[_Slice] = []
        room = self._max_batch_size
        now = self._loop.time()
        while room and self._queue:
            request = self._queue[0]
            if request.answer.done():  # cancelled, expired or failed in another batch
                self._queue.popleft()
                continue
            if request.deadline <= now:  # a busy event loop runs its timers late
                _fail(request.answer, _expired)
                continue
            left = request.rows - request.taken
            if left > room and batch:
                break  # only a request that no batch can hold is split
            rows = min(left, room)
            if request.taken == 0:
                self._metrics.queue_seconds.observe(now - request.queued_at)
            batch.append(
                _Slice(request=request, start=request.taken, stop=request.taken + rows)
            )
            request.taken += rows
            room -= rows
            if request.taken == request.rows:
                self._queue.popleft()
        return batch

    async def _run(self, batch: Sequence[_Slice]) -> None:
        try:
            await self._run_batch(batch)
        except Exception as error:
            if len(batch) == 1:
                batch[0].reject(_as_failure(error))
                return
            # One of them may be at fault: alone, each fails or succeeds for itself.
            logger.warning("a batch of %d requests failed: %r", len(batch), error)
            for part in batch:
                if not part.request.answer.done():
                    await self._run([part])

    async def _run_batch(self, batch: Sequence[_Slice]) -> None:
        rows = sum(part.rows for part in batch)
        tensors = _concatenate([part.tensors for part in batch])
        started = self._loop.time()
        outputs = await self._infer(tensors)
        self._metrics.inference_seconds.observe(self._loop.time() - started)
        self._metrics.batch_size_rows.observe(rows)
        if not self._batched:
            batch[0].resolve(outputs)
            return
        for name, array in outputs.items():
            if array.shape[:1] != (rows,):
                raise EngineFailure(
                    f"the engine answered {rows} rows with {name!r} of shape "
                    f"{list(array.shape)}"
                )
        offset = 0
        for part in batch:
            end = offset + part.rows
            part.resolve({name: a[offset:end] for name, a in outputs.items()})
            offset = end

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._free_slots += 1
        if not task.cancelled() and (error := task.exception()) is not None:
            self._crash(error)
        self._dispatch()

    def _crash(self, error: BaseException) -> None:
        logger.error("dispatching failed; refusing requests", exc_info=error)
        self._stop(_crashed)
        self._on_crash()

    def _stop(self, reason: Callable[[], BlockserveError]) -> None:
        self._refuse = self._refuse or reason
        self._queue.clear()
        for answer in tuple(self._unanswered):
            _fail(answer, reason)


def _concatenate(parts: Sequence[Tensors]) -> dict[str, Array]:
    """Join `{name: array[rows, …]}` along the rows; one part is not copied."""
    if len(parts) == 1:
        return dict(parts[0])
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _as_failure(error: Exception) -> BlockserveError:
    if isinstance(error, BlockserveError):
        return error
    logger.error("the engine failed", exc_info=error)
    return EngineFailure("the engine failed at this request; the server's log says why")


def _fail(
    answer: asyncio.Future[dict[str, Array]], reason: Callable[[], BlockserveError]
) -> None:
    # A new exception each time: a raised one keeps growing its traceback.
    if not answer.done():
        answer.set_exception(reason())


def _expired() -> BlockserveError:
    return DeadlineExceeded(
        "the request's time ran out before its answer was there; "
        "allow more time or send less load"
    )


def _closed() -> BlockserveError:
    return Draining("this model version is being unloaded; try again")


def _crashed() -> BlockserveError:
    return EngineFailure("the batcher has failed; the server's log says why")
