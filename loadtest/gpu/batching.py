"""The gateway's batcher over a runtime: what of its speed single images get."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from loadtest.gpu.results import Batching, Case
from loadtest.gpu.runtimes import Images
from service.batching import Batcher, BatchingOptions, Processor, ThroughputCurve
from service.telemetry.metrics import Metrics
from service.tensors import Array, Tensors

# Nobody's time runs out: this measures what can be had, not whom to refuse.
PATIENCE_SECONDS: Final = 3600.0
# While one batch runs, the next one can fill.
BATCHES_UNDER_WAY: Final = 2
# Prometheus does not look.
NO_BUCKETS: Final = (1.0,)
# Of the time, to fill the queue and to correct the curve.
WARM_UP_SHARE: Final = 0.25


class BatchEnd(NamedTuple):
    """A moment at which the engine answered.

    Attributes:
        moment: Of `time.monotonic`.
        answered_before: Images of all batches before.
    """

    moment: float
    answered_before: int


async def measure(
    case: Case,
    predict: Callable[[Images], npt.NDArray[np.float32]],
    images: Images,
    batch_seconds: Mapping[int, float],
    *,
    engine_images_per_second: float,
    seconds: float,
) -> Batching:
    """Let as many submitters as two batches have rows ask again and again.

    The batcher is as in a gateway in front of one engine with one slot and with
    `--allowed-batch-sizes`: it fills batches up to the size that the curve prefers, and
    pads them to one of the sizes that were measured, so that nothing is compiled.

    Args:
        case: What `predict` runs.
        predict: From images in the host's memory to probabilities there.
        images: Whose rows are submitted one by one.
        batch_seconds: What a batch takes, by its size.
        engine_images_per_second: What the result is held against.
        seconds: For how long.
    """
    largest = max(batch_seconds)
    submitters = BATCHES_UNDER_WAY * largest
    loop = asyncio.get_running_loop()
    metrics = Metrics(NO_BUCKETS).version(case.model, 1)
    began = monotonic()
    stop = began + seconds
    latencies: list[float] = []
    ends: list[BatchEnd] = []

    with ThreadPoolExecutor(max_workers=1) as engine:

        async def infer(tensors: Tensors, _deadline: float) -> dict[str, Array]:
            rows = tensors["images"]
            answer = await loop.run_in_executor(engine, predict, rows)
            ends.append(BatchEnd(monotonic(), answered_before=len(latencies)))
            return {"probabilities": answer}

        batcher = Batcher(
            infer,
            options=BatchingOptions(
                slots=1,
                max_queue_depth=2 * submitters,
                allowed_batch_sizes=sorted(batch_seconds),
            ),
            curve=ThroughputCurve(batch_seconds),
            processor=Processor(1),
            metrics=metrics,
        )

        async def ask_again_and_again(row: Images) -> None:
            while (asked := monotonic()) < stop:
                deadline = asked + PATIENCE_SECONDS
                place = batcher.submit({"images": row}, rows=1, deadline=deadline)
                await place.answer
                latencies.append(monotonic() - asked)

        async with asyncio.TaskGroup() as tasks:
            for index in range(submitters):
                start = index % len(images)
                tasks.create_task(ask_again_and_again(images[start : start + 1]))
        batcher.close()

    first, last = _window(ends, began + WARM_UP_SHARE * seconds, stop)
    answered = last.answered_before - first.answered_before
    rate = answered / (last.moment - first.moment)
    counted = latencies[first.answered_before : last.answered_before]
    batches = sum(tally.count for tally in metrics.statistics.batches.values())
    return Batching(
        case=case,
        largest_batch_size=largest,
        submitters=submitters,
        images_per_second=rate,
        of_engine=rate / engine_images_per_second,
        p50_seconds=float(np.quantile(counted, 0.5)),
        p99_seconds=float(np.quantile(counted, 0.99)),
        mean_batch_size=metrics.statistics.rows / batches,
    )


def _window(
    ends: Sequence[BatchEnd], start: float, stop: float
) -> tuple[BatchEnd, BatchEnd]:
    """From a batch's end to a batch's end, so that none is counted by half.

    Where the engine is so slow that few batches ended in time, from the first to the
    last.
    """
    within = [end for end in ends if start <= end.moment <= stop]
    return (within[0], within[-1]) if len(within) > 1 else (ends[0], ends[-1])
