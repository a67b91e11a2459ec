"""The queue of one signature, and which of its requests run together.

The policy is work-conserving. While a slot in the engine is free, a request is run at
once; while all slots are busy, requests gather, and the slot that frees takes what has
gathered, up to the size that the throughput curve found best. Nothing waits for company
on a timer, unless `max_queue_delay_seconds` says so.

A request whose answer cannot be there before its deadline is refused as it comes. What
its answer will cost is known from the same curve, and how wrong such forecasts were of
late is added to it.

There is no dispatcher task that could die unseen: dispatching happens where something
changed, on arrival and when a slot frees.
"""

import asyncio
import logging
import math
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import Final

import numpy as np

from service.batching.curve import CurvePoint, ThroughputCurve
from service.batching.processor import Processor
from service.batching.request import (
    Answer,
    Priority,
    Request,
    Slice,
    concatenate,
    expired,
    slice_rows,
)
from service.errors import (
    BlockserveError,
    DeadlineExceeded,
    Draining,
    EngineFailure,
    Overloaded,
    Unavailable,
)
from service.telemetry.metrics import VersionMetrics
from service.telemetry.tracing import BatchSpan, RequestSpan
from service.tensors import Array, Tensors

logger = logging.getLogger(__name__)

Infer = Callable[[Tensors, float], Awaitable[dict[str, Array]]]

# Of the places in the queue, batch requests get at most this share: an interactive one
# finds a place however much bulk work waits.
BATCH_PRIORITY_SHARE: Final = 0.5
# How forecasts are held against what came, as TCP does it for round trips (RFC 6298).
LATENESS_STEP: Final = 1 / 16
DEVIATIONS: Final = 3
# A queue that is long all the time makes batches of one size, and what others would
# take shows only in them. So one in so many is of the next larger size.
TRIAL_INTERVAL_BATCHES: Final = 16
# uvloop's timers count milliseconds; a shorter one fires at once, again and again.
SHORTEST_TIMER_SECONDS: Final = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchingOptions:
    """What an operator or an engine fixes; the rest is learned.

    Attributes:
        slots: Batches that may run at a time, to begin with.
        max_queue_depth: Most requests that wait or are being decoded.
        max_batch_size: Most rows in one batch; `None` is what the curve prefers, which
            is then one of the allowed sizes, where there are such.
        max_queue_delay_seconds: How long a free slot waits for company.
        allowed_batch_sizes: Batches of rows are padded to the next of these, where
            given.
        free_inputs: The inputs that vary in more than their rows; only requests that
            agree in the rest of their shapes share a batch.
        batched: Whether the first dimension counts rows. Where it does not, a request
            is one row whatever its shape, and its outputs are handed on untouched.
        cancels: Whether a batch is cancelled once nobody waits for it any more; the
            engine then has its slot back at once.
        gathers: Whether requests share batches, and large ones are split. Else each
            goes as it is: the engine makes its own batches.
    """

    slots: int
    max_queue_depth: int
    max_batch_size: int | None = None
    max_queue_delay_seconds: float = 0.0
    allowed_batch_sizes: Sequence[int] | None = None
    free_inputs: Sequence[str] = ()
    batched: bool = True
    cancels: bool = False
    gathers: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchingState:
    """What a batcher has learned, and how it is doing.

    Attributes:
        batch_size_limit_rows: Most rows that it puts into one batch now.
        batch_size_is_learned: Whether that follows the curve.
        gathers: Whether requests share batches at all.
        slots: Batches that may run at a time.
        queue_depth: Requests that wait or are being decoded.
        expected_wait_seconds: What a request that comes now should wait for a slot.
        lateness_seconds: What is added to each forecast, for it has been so wrong.
        curve: What batches cost.
    """

    batch_size_limit_rows: int
    batch_size_is_learned: bool
    gathers: bool
    slots: int
    queue_depth: int
    expected_wait_seconds: float
    lateness_seconds: float
    curve: Sequence[CurvePoint]


@dataclass(slots=True, eq=False, kw_only=True)
class _Batch:
    """What runs in one slot; it is put together in the first moments there."""

    slices: Sequence[Slice]
    rows: int
    padded_rows: int
    started_at: float
    expected_seconds: float
    span: BatchSpan | None = None
    assembled_at: float = math.inf


class _Forecasts:
    """How much later than expected answers were, of late."""

    def __init__(self) -> None:
        self._mean_seconds = 0.0
        self._deviation_seconds = 0.0

    @property
    def margin_seconds(self) -> float:
        """What to add to a forecast so that few answers are later."""
        return max(0.0, self._mean_seconds + DEVIATIONS * self._deviation_seconds)

    def observe(self, seconds: float) -> None:
        """An answer came `seconds` later than expected (negative: earlier)."""
        error = seconds - self._mean_seconds
        self._mean_seconds += LATENESS_STEP * error
        self._deviation_seconds += LATENESS_STEP * (
            abs(error) - self._deviation_seconds
        )


@dataclass(slots=True, eq=False)
class _Line:
    """The requests of one priority, and their rows that no batch has taken yet.

    `places` and `rows` count what is being decoded, too; `waiting_rows` does not.
    `announced` are those that are to come in this turn of the event loop.
    """

    waiting: OrderedDict[Request, None] = field(default_factory=OrderedDict)
    waiting_rows: int = 0
    places: int = 0
    rows: int = 0
    announced: int = 0
    forecasts: _Forecasts = field(default_factory=_Forecasts)


class Batcher:
    """Queue and dispatch of one signature of one model version.

    Args:
        infer: Runs one batch: `{input: array[rows, …]}` to `{output: array[rows, …]}`.
            Told the moment of `time.monotonic` after which nobody wants the answer.
        options: What is fixed.
        curve: What batches cost; corrected as they run.
        processor: Where slots are shared with other batchers.
        metrics: Where the times of queue, assembly and inference are observed, and the
            sizes of batches.
        on_crash: Called when dispatching has failed for good.
    """

    def __init__(
        self,
        infer: Infer,
        *,
        options: BatchingOptions,
        curve: ThroughputCurve,
        processor: Processor,
        metrics: VersionMetrics,
        on_crash: Callable[[], None] = lambda: None,
    ) -> None:
        self._infer = infer
        self._options = options
        self._curve = curve
        self._processor = processor
        self._metrics = metrics
        self._on_crash = on_crash
        self._slots = options.slots
        self._free_slots = options.slots  # below zero once some with batches are gone
        self._busy_seconds = 0.0  # of batches that have ended
        self._batches_since_trial = 0
        self._fixed_limit = _fixed_limit(options)
        self._lines = tuple(_Line() for _ in Priority)
        self._again: deque[Slice] = deque()  # what shared a batch that failed
        self._running: dict[_Batch, asyncio.Future[dict[str, Array]]] = {}
        self._unanswered: set[Request] = set()
        # One timer for all of them: most are answered long before their deadlines.
        self._expiry: asyncio.TimerHandle | None = None
        self._expires_at = math.inf
        self._loop = asyncio.get_running_loop()
        self._refuse: Callable[[], BlockserveError] | None = None
        processor.join(self)

    @property
    def queue_depth(self) -> int:
        """Requests that wait for a slot or are being decoded."""
        interactive, batch = self._lines
        return interactive.places + batch.places

    @property
    def oldest_age_seconds(self) -> float:
        """How long the request that has waited longest for a slot waits; 0 if none."""
        heads = [next(iter(line.waiting)) for line in self._lines if line.waiting]
        return max((monotonic() - one.queued_at for one in heads), default=0.0)

    @property
    def slots(self) -> int:
        """Batches that may run at a time."""
        return self._slots

    @property
    def max_queue_depth(self) -> int:
        """Most requests that wait or are being decoded."""
        return self._options.max_queue_depth

    @property
    def calls_in_flight(self) -> int:
        """Batches that run now."""
        return len(self._running)

    @property
    def busy_seconds(self) -> float:
        """Time that slots have been taken, all together, up to this moment."""
        now = monotonic()
        return self._busy_seconds + sum(now - one.started_at for one in self._running)

    @property
    def batch_size_limit_rows(self) -> int:
        """Most rows that it puts into one batch now."""
        return self._fixed_limit or self._curve.preferred_batch_size

    @property
    def crashed(self) -> bool:
        """Whether dispatching failed; such a batcher refuses everything."""
        return self._refuse is _crashed

    @property
    def state(self) -> BatchingState:
        """What it has learned, and how it is doing."""
        return BatchingState(
            batch_size_limit_rows=self.batch_size_limit_rows,
            batch_size_is_learned=self._fixed_limit is None,
            gathers=self._options.gathers,
            slots=self._slots,
            queue_depth=self.queue_depth,
            expected_wait_seconds=self._expected_wait(Priority.BATCH)[0],
            lateness_seconds=self._lines[0].forecasts.margin_seconds,
            curve=self._curve.points,
        )

    def admit(
        self,
        *,
        rows: int,
        deadline: float,
        priority: Priority = Priority.INTERACTIVE,
        span: RequestSpan | None = None,
    ) -> Request:
        """Give a request a place in the queue; `submit` it there once it is decoded.

        Args:
            rows: The number of rows that it will bring.
            deadline: Moment of `time.monotonic`, in seconds.
            priority: Whose turn it is.
            span: Its span, if it is recorded.

        Raises:
            Overloaded: The queue is full, or too long for the deadline.
            DeadlineExceeded: The deadline has passed already.
            Draining: The batcher is closed.
            EngineFailure: The batcher has crashed.
        """
        expected_at = self.check(rows=rows, deadline=deadline, priority=priority)
        line = self._lines[priority]
        line.places += 1
        line.rows += rows
        return Request(
            queue=self,
            rows=rows,
            deadline=deadline,
            priority=priority,
            expected_at=expected_at,
            answer=self._loop.create_future(),
            span=span,
        )

    def announce(self, *, deadline: float, priority: Priority) -> None:
        """Refuse a request of one row that `admit` would refuse, or expect it.

        Until the next turn of the event loop it counts as admitted: of those that come
        in one turn, no more are let in than can be answered.

        Raises:
            BlockserveError: As `admit` would.
        """
        self.check(rows=1, deadline=deadline, priority=priority)
        if not self._announced:
            self._loop.call_soon(self._forget_announced)
        self._lines[priority].announced += 1

    def _forget_announced(self) -> None:
        for line in self._lines:
            line.announced = 0

    def check(self, *, rows: int, deadline: float, priority: Priority) -> float:
        """Say when an answer could be there, without taking a place.

        Raises:
            BlockserveError: As `admit` would.
        """
        if self._refuse is not None:
            raise self._refuse()
        now = monotonic()
        if deadline <= now:
            raise expired()
        wait, own = self._expected_wait(priority, rows)
        self._check_depth(priority, wait)
        expected_at = now + wait + own
        late = expected_at + self._lines[priority].forecasts.margin_seconds - deadline
        # An idle engine tries: were the forecast wrong, nothing else would correct it.
        if late > 0 and (self._running or self.queue_depth or self._announced):
            raise Overloaded(
                f"{self.queue_depth} requests wait and an answer would take about "
                f"{expected_at - now:.2g} s, which is more than the request's time of "
                f"{deadline - now:.2g} s; try again later, or allow more time",
                code="deadline_unreachable",
                retry_after_seconds=late,
            )
        return expected_at

    def submit(
        self,
        tensors: Tensors,
        *,
        rows: int,
        deadline: float,
        priority: Priority = Priority.INTERACTIVE,
        span: RequestSpan | None = None,
    ) -> Request:
        """Admit and queue rows at once; see `admit` and `Request.submit`."""
        request = self.admit(rows=rows, deadline=deadline, priority=priority, span=span)
        try:
            answer = request.submit(tensors)
        except BlockserveError:
            self.release(request)
            raise
        answer.add_done_callback(lambda _: self.release(request))
        return request

    def enqueue(self, request: Request, tensors: Tensors) -> Answer:
        """Let an admitted request wait for a slot; see `Request.submit`."""
        now = monotonic()
        if self._refuse is not None:
            raise self._refuse()
        if request.deadline <= now:
            raise expired()
        request.tensors = tensors
        request.queued_at = now
        self._unanswered.add(request)
        if request.deadline < self._expires_at:
            self._set_expiry(request.deadline, now)
        line = self._lines[request.priority]
        if not line.waiting:
            self._processor.awake(self)
        line.waiting[request] = None
        line.waiting_rows += request.rows
        if delay := self._options.max_queue_delay_seconds:
            self._loop.call_later(delay, self._ripen, request)
        else:
            request.is_ripe = True
        self._processor.dispatch_soon()
        return request.answer

    def release(self, request: Request) -> None:
        """Let go of a request that is answered, or withdraw it."""
        line = self._lines[request.priority]
        if request.tensors is None:  # it was never submitted
            line.places -= 1
            line.rows -= request.rows
            return
        self._unanswered.discard(request)
        if request in line.waiting:
            request.answer.cancel()
            self._leave(request)
            if request.taken and self._options.cancels:  # its first rows may run
                self._cancel_for(request)
        elif not request.answer.cancelled():
            line.forecasts.observe(monotonic() - request.expected_at)
        elif self._options.cancels:
            self._cancel_for(request)

    def resize(self, slots: int) -> None:
        """Run another number of batches at a time from now on."""
        self._free_slots += slots - self._slots
        self._slots = slots
        self._processor.dispatch_soon()

    def close(self) -> None:
        """Refuse new requests and fail those that have no answer yet."""
        self._stop(_closed)

    @property
    def wants_slot(self) -> bool:
        """Whether a batch could start now; see `Member`."""
        if self._free_slots <= 0:
            return False
        if self._again:
            return True
        lines = [line for line in self._lines if line.waiting]
        return bool(lines) and (
            any(next(iter(line.waiting)).is_ripe for line in lines)
            or self._waiting_rows >= self.batch_size_limit_rows
        )

    def start_batch(self) -> float | None:
        """Start a batch of what waits; see `Member`."""
        try:
            slices = self._take()
            if not slices:
                return None
            rows = sum(part.rows for part in slices)
            padded_rows = self._padded(rows)
            batch = _Batch(
                slices=slices,
                rows=rows,
                padded_rows=padded_rows,
                started_at=monotonic(),
                expected_seconds=self._curve.seconds(padded_rows),
                span=self._span_of(slices, rows=rows, padded_rows=padded_rows),
            )
        except Exception as error:
            self._crash(error)
            return None
        self._free_slots -= 1
        task = self._loop.create_task(self._compute(batch))
        self._running[batch] = task
        task.add_done_callback(partial(self._finished, batch))
        return batch.expected_seconds

    def _span_of(
        self, slices: Sequence[Slice], *, rows: int, padded_rows: int
    ) -> BatchSpan | None:
        """The span of a batch, if a request in it is recorded."""
        spans = [span for part in slices if (span := part.request.span) is not None]
        if not spans:
            return None
        model, version = self._metrics.labels
        return spans[0].batch(
            spans,
            {
                "blockserve.model": model,
                "blockserve.version": version,
                "blockserve.batch.requests": len(slices),
                "blockserve.batch.rows": rows,
                "blockserve.batch.padded_rows": padded_rows,
            },
        )

    def _limit_or_trial(self) -> int:
        """Most rows in the batch that starts now."""
        limit = self.batch_size_limit_rows
        larger = None if self._fixed_limit else self._curve.size_to_try
        if larger is None or self._waiting_rows < larger:
            return limit
        self._batches_since_trial += 1
        if self._batches_since_trial < TRIAL_INTERVAL_BATCHES:
            return limit
        self._batches_since_trial = 0
        return larger

    def _padded(self, rows: int) -> int:
        sizes = self._options.allowed_batch_sizes
        if not sizes or not self._options.batched:
            return rows
        return min(size for size in sizes if size >= rows)

    @property
    def _waiting_rows(self) -> int:
        interactive, batch = self._lines
        return interactive.waiting_rows + batch.waiting_rows

    @property
    def _announced(self) -> int:
        interactive, batch = self._lines
        return interactive.announced + batch.announced

    def _check_depth(self, priority: Priority, wait_seconds: float) -> None:
        limit = self._options.max_queue_depth
        if self.queue_depth + self._announced >= limit:
            self._processor.dispatch()  # some may only wait for this moment to pass
        if self.queue_depth + self._announced >= limit:
            raise Overloaded(
                f"the queue is full ({limit} requests wait); try again later",
                retry_after_seconds=wait_seconds,
            )
        share = max(1, int(limit * BATCH_PRIORITY_SHARE))
        line = self._lines[priority]
        if priority is Priority.BATCH and line.places + line.announced >= share:
            raise Overloaded(
                f"{share} requests of batch priority wait; try again later",
                retry_after_seconds=wait_seconds,
            )

    def _expected_wait(self, priority: Priority, rows: int = 1) -> tuple[float, float]:
        """Seconds until the last of `rows` new rows starts, and that they take then."""
        if not self._options.gathers:
            return self._expected_wait_for_own_call(priority, rows)
        limit = self.batch_size_limit_rows
        interactive, batch = self._lines
        ahead = interactive.rows + interactive.announced
        if priority is Priority.BATCH:
            ahead += batch.rows + batch.announced
        if not ahead and rows <= limit and self._free_slots > 0:
            return 0.0, self._curve.seconds(rows)
        batches = -(-(ahead + rows) // limit)
        own = self._curve.seconds(ahead + rows - (batches - 1) * limit)
        busy = (batches - 1) * self._curve.seconds(limit)
        if ahead or self._free_slots <= 0:
            busy += self._seconds_left()
        return busy / self._slots, own

    def _expected_wait_for_own_call(
        self, priority: Priority, rows: int
    ) -> tuple[float, float]:
        """As `_expected_wait`, where each request is a call."""
        lines = self._lines if priority is Priority.BATCH else self._lines[:1]
        calls = sum(line.places + line.announced for line in lines)
        busy = 0.0
        if calls:
            ahead = sum(line.rows + line.announced for line in lines)
            busy = calls * self._curve.seconds(round(ahead / calls))
        if calls or self._free_slots <= 0:
            busy += self._seconds_left()
        return busy / self._slots, self._curve.seconds(rows)

    def _seconds_left(self) -> float:
        """What the batches that run should take from now on, one after the other."""
        now = monotonic()
        ends = (one.started_at + one.expected_seconds for one in self._running)
        return sum(max(0.0, end - now) for end in ends)

    def _take(self) -> Sequence[Slice]:
        """Remove the next batch from the queue; empty if nothing live waits."""
        while self._again:
            part = self._again.popleft()
            if not part.request.answer.done():
                return [part]
        limit = self._limit_or_trial()
        free_inputs = self._options.free_inputs
        # Two that came together have each a slot of their own, if both are free.
        room = min(limit, -(-self._waiting_rows // self._free_slots))
        now = monotonic()
        batch: list[Slice] = []
        for line in self._lines:
            while line.waiting:
                request = next(iter(line.waiting))
                if request.answer.done():  # cancelled, or failed in another batch
                    self._leave(request)
                    continue
                if request.deadline <= now:  # a busy event loop runs its timers late
                    self._time_is_up(request, now)
                    continue
                left = request.rows - request.taken
                if not self._options.gathers:
                    return [self._slice(request, left, now)]
                if batch and (
                    left > room  # only a request that no batch can hold is split
                    or (free_inputs and not _fit(batch[0], request, free_inputs))
                ):
                    return batch
                rows = min(left, limit)
                batch.append(self._slice(request, rows, now))
                room -= rows
                if room <= 0:
                    return batch
        return batch

    def _slice(self, request: Request, rows: int, now: float) -> Slice:
        """Take the next rows of the request at the head of its line."""
        assert request.tensors is not None  # noqa: S101, it waits
        if request.taken == 0:
            self._has_waited(request, now)
        start, stop = request.taken, request.taken + rows
        part = Slice(
            request=request,
            tensors=slice_rows(request.tensors, start, stop, rows=request.rows),
            start=start,
            stop=stop,
        )
        request.taken = stop
        line = self._lines[request.priority]
        line.rows -= rows
        line.waiting_rows -= rows
        if stop == request.rows:
            self._leave(request)
        return part

    def _has_waited(self, request: Request, now: float) -> None:
        request.queue_seconds = now - request.queued_at
        trace_id = None if request.span is None else request.span.trace_id
        self._metrics.queue_seconds.observe(request.queue_seconds, trace_id)

    def _time_is_up(self, request: Request, now: float) -> None:
        if request.taken == 0:
            self._has_waited(request, now)
        request.fail(expired())

    def _leave(self, request: Request) -> None:
        line = self._lines[request.priority]
        del line.waiting[request]
        line.places -= 1
        line.rows -= request.rows - request.taken
        line.waiting_rows -= request.rows - request.taken

    def _cancel_for(self, request: Request) -> None:
        """Cancel what ran for a request that was given up, if it ran for no other."""
        for batch, task in self._running.items():
            requests = [part.request for part in batch.slices]
            if request in requests and all(one.answer.done() for one in requests):
                task.cancel()

    def _set_expiry(self, deadline: float, now: float) -> None:
        """Look for requests whose time is up at the earliest of their deadlines."""
        if self._expiry is not None:
            self._expiry.cancel()
        self._expires_at = deadline
        wait_seconds = max(SHORTEST_TIMER_SECONDS, deadline - now)
        self._expiry = self._loop.call_later(wait_seconds, self._expire)

    def _expire(self) -> None:
        now = monotonic()
        self._expires_at = math.inf
        for request in tuple(self._unanswered):
            if request.answer.done():
                continue
            if request.deadline <= now:
                self._time_is_up(request, now)
            else:
                self._expires_at = min(self._expires_at, request.deadline)
        if self._expires_at < math.inf:
            self._set_expiry(self._expires_at, now)

    def _ripen(self, request: Request) -> None:
        request.is_ripe = True
        self._processor.dispatch()

    async def _compute(self, batch: _Batch) -> dict[str, Array]:
        tensors = concatenate([part.tensors for part in batch.slices])
        if batch.padded_rows > batch.rows:
            padding = batch.padded_rows - batch.rows
            tensors = {name: _pad(array, padding) for name, array in tensors.items()}
        deadline = max(part.request.deadline for part in batch.slices)
        batch.assembled_at = monotonic()
        if batch.span is None:
            outputs = await self._infer(tensors, deadline)
        else:
            with batch.span.engine():
                outputs = await self._infer(tensors, deadline)
        if self._options.batched:
            _check_rows(outputs, batch.padded_rows)
        return outputs

    def _finished(self, batch: _Batch, task: asyncio.Future[dict[str, Array]]) -> None:
        now = monotonic()
        seconds = now - batch.started_at
        del self._running[batch]
        self._free_slots += 1
        self._busy_seconds += seconds
        try:
            try:
                error = _error_of(task)
                if batch.span is not None:
                    batch.span.end(error)
                if error is not None:
                    self._fail(batch, error)
                else:
                    self._curve.observe(batch.padded_rows, seconds)
            except Exception:
                self._processor.leave(self)  # the slot is for others then
                raise
            finally:
                # First the engine's next batch, then this one's answers.
                self._processor.finished(
                    self, surplus_seconds=seconds - batch.expected_seconds
                )
            if error is None:
                self._observe(batch, now)
                self._answer(batch, task.result())
        except Exception as unforeseen:
            self._crash(unforeseen)

    def _observe(self, batch: _Batch, ended_at: float) -> None:
        inference_seconds = ended_at - batch.assembled_at
        metrics = self._metrics
        trace_id = None if batch.span is None else batch.span.trace_id
        metrics.assembly_seconds.observe(batch.assembled_at - batch.started_at)
        metrics.inference_seconds.observe(inference_seconds, trace_id)
        metrics.batch_size_rows.observe(batch.rows)
        if batch.padded_rows > batch.rows:
            metrics.padding_rows.inc(batch.padded_rows - batch.rows)
        metrics.statistics.executed(
            rows=batch.rows, requests=len(batch.slices), seconds=inference_seconds
        )
        for part in batch.slices:
            part.request.inference_seconds += inference_seconds

    def _answer(self, batch: _Batch, outputs: dict[str, Array]) -> None:
        offset = 0
        for part in batch.slices:
            end = offset + part.rows
            if not self._options.batched or len(batch.slices) == 1 == batch.padded_rows:
                own = outputs
            else:
                own = {name: a[offset:end] for name, a in outputs.items()}
            try:
                part.resolve(own)
            except ValueError:  # what the rows hold decides how large outputs are
                part.request.fail(_not_joined(self.batch_size_limit_rows))
            offset = end

    def _fail(self, batch: _Batch, error: BaseException) -> None:
        if len(batch.slices) == 1:
            batch.slices[0].request.fail(_as_failure(error))
            return
        if isinstance(error, Unavailable | DeadlineExceeded):
            for part in batch.slices:
                part.request.fail(copy(error))
            return
        live = [part for part in batch.slices if not part.request.answer.done()]
        if live:
            # One of them may be at fault: alone, each fails or succeeds for itself.
            logger.warning("a batch of %d requests failed: %r", len(live), error)
            self._again.extend(live)

    def _crash(self, error: BaseException) -> None:
        logger.error("dispatching failed; refusing requests", exc_info=error)
        self._metrics.dispatcher_crashes.inc()
        self._stop(_crashed)
        self._on_crash()

    def _stop(self, reason: Callable[[], BlockserveError]) -> None:
        self._refuse = self._refuse or reason
        self._processor.leave(self)
        if self._expiry is not None:
            self._expiry.cancel()
        self._again.clear()
        for request in tuple(self._unanswered):
            # A new exception each time: a raised one keeps growing its traceback.
            request.fail(reason())


def _fixed_limit(options: BatchingOptions) -> int | None:
    """Most rows in one batch, where that is not learned."""
    if not options.batched:
        return 1
    if options.max_batch_size and options.allowed_batch_sizes:
        return min(options.max_batch_size, max(options.allowed_batch_sizes))
    return options.max_batch_size


def _fit(part: Slice, request: Request, free_inputs: Sequence[str]) -> bool:
    """Whether the rows of a request have the shapes of those in a batch."""
    assert request.tensors is not None  # noqa: S101, it waits
    mine, theirs = request.tensors, part.tensors
    return all(mine[one].shape[1:] == theirs[one].shape[1:] for one in free_inputs)


def _check_rows(outputs: dict[str, Array], rows: int) -> None:
    for name, array in outputs.items():
        if array.shape[:1] != (rows,):
            raise EngineFailure(
                f"the engine answered {rows} rows with {name!r} of shape "
                f"{list(array.shape)}"
            )


def _pad(array: Array, rows: int) -> Array:
    empty = np.zeros((rows, *array.shape[1:]), array.dtype)
    return np.concatenate([array, empty])


def _error_of(task: asyncio.Future[dict[str, Array]]) -> BaseException | None:
    if task.cancelled():
        return EngineFailure("the engine's call was cancelled")
    return task.exception()


def _as_failure(error: BaseException) -> BlockserveError:
    if isinstance(error, BlockserveError):
        return error
    logger.error("the engine failed", exc_info=error)
    return EngineFailure("the engine failed at this request; the server's log says why")


def _not_joined(limit_rows: int) -> BlockserveError:
    return EngineFailure(
        "the request went in several batches, and their outputs cannot be joined, for "
        "their shapes differ in more than the number of rows; "
        f"send at most {limit_rows} rows at a time"
    )


def _closed() -> BlockserveError:
    return Draining("this model version is being unloaded; try again")


def _crashed() -> BlockserveError:
    return EngineFailure("the batcher has failed; the server's log says why")
