"""Runs a signature at growing sizes before it gets requests, and measures it so.

The first call at a size is many times slower than those that follow: engines compile,
reshape and allocate then.
"""

import asyncio
import logging
from collections.abc import Collection, Iterator, Mapping
from time import perf_counter
from typing import Final

import numpy as np

from service.batching import ThroughputCurve
from service.engines import Engine
from service.errors import BlockserveError, InvalidTensor, Unavailable
from service.settings import Settings
from service.tensors import Array, Signature

logger = logging.getLogger(__name__)

# Where no size is set by hand: sizes grow up to this one ...
LARGEST_SIZE: Final = 32
# ... unless this many in a row were no better than the best before them,
PATIENCE: Final = 2
# or one call takes so long that a larger batch would serve nobody.
LONGEST_CALL_SECONDS: Final = 0.5
# Other programs only ever make a call slower: the fastest of a few is what it takes.
REPETITIONS: Final = 5
ENOUGH_SECONDS: Final = 0.1
# Requests wait meanwhile; those of other models, too.
MEASURING_SECONDS: Final = 10.0


async def warm_up(
    engine: Engine, signature: Signature, settings: Settings
) -> ThroughputCurve:
    """Run zeros of growing sizes; answers what each size takes.

    A signature with strings or with free dimensions besides the batch is not run: no
    made-up input would stand for real ones.
    """
    curve, sizes = await _measured(engine, signature, settings)
    if not settings.allowed_batch_sizes and sizes:
        for size in range(2, curve.preferred_batch_size):
            if size not in sizes:
                await engine.infer(signature.name, _zeros(signature, size))
    return curve


async def measure(
    engine: Engine, settings: Settings, known: Mapping[str, ThroughputCurve]
) -> dict[str, ThroughputCurve]:
    """The curves of an engine that runs already, and need not be warmed up.

    Where it is not known what its calls take, that is measured, for a short time. One
    that does not answer may have much to do: its curve will follow what answers take.

    Args:
        engine: What runs a version, somewhere else.
        settings: How to batch.
        known: The curves of the version before it, of signatures that are the same.
    """
    curves = dict(known)
    end = asyncio.get_running_loop().time() + MEASURING_SECONDS
    for name, signature in engine.signatures.items():
        if name in curves:
            continue
        try:
            async with asyncio.timeout_at(end):
                curves[name], _ = await _measured(engine, signature, settings)
        except (TimeoutError, BlockserveError) as error:
            curves[name] = ThroughputCurve.unmeasured(max(_sizes(settings)))
            why = error if isinstance(error, BlockserveError) else "it takes too long"
            logger.warning("what calls of %r take will show later: %s", name, why)
    return curves


async def _measured(
    engine: Engine, signature: Signature, settings: Settings
) -> tuple[ThroughputCurve, Collection[int]]:
    """A curve, and the sizes that it was measured at; none where it could not be."""
    if not _can_fill(signature):
        return ThroughputCurve.unmeasured(max(_sizes(settings))), ()
    measured: dict[int, float] = {}
    by_hand = settings.max_batch_size or settings.allowed_batch_sizes
    for size in _sizes(settings) if signature.batched else (1,):
        try:
            measured[size] = await _seconds(engine, signature, size)
        except Unavailable:
            raise  # for now, whatever the size
        except Exception as error:
            # Out of memory, say: what that raises is each engine's own.
            if by_hand or not measured:
                raise
            _tell_of_failure(signature, size, error)
            break
        if not by_hand and _has_seen_enough(measured):
            break
    return ThroughputCurve(measured), measured.keys()


def _sizes(settings: Settings) -> Iterator[int]:
    """Batch sizes that are worth a measurement, growing."""
    if settings.allowed_batch_sizes:
        yield from sorted(set(settings.allowed_batch_sizes))
        return
    largest = settings.max_batch_size or LARGEST_SIZE
    size = 1
    while size < largest:
        yield size
        size *= 2
    yield largest


def _tell_of_failure(signature: Signature, size: int, error: Exception) -> None:
    if isinstance(error, InvalidTensor):
        logger.info("a batch has less than %d rows: %s", size, error.message)
    else:
        logger.warning(
            "a batch of %d rows of %r has failed, so batches have less: %s",
            size,
            signature.name,
            str(error) or repr(error),
        )


def _has_seen_enough(measured: dict[int, float]) -> bool:
    *_, latest = measured.values()
    rates = [size / seconds for size, seconds in measured.items()]
    best = rates.index(max(rates))
    return latest > LONGEST_CALL_SECONDS or len(rates) - 1 - best >= PATIENCE


async def _seconds(engine: Engine, signature: Signature, size: int) -> float:
    tensors = _zeros(signature, size)
    await engine.infer(signature.name, tensors)
    times: list[float] = []
    while len(times) < REPETITIONS and sum(times) < ENOUGH_SECONDS:
        started = perf_counter()
        await engine.infer(signature.name, tensors)
        times.append(perf_counter() - started)
    return min(times)


def _can_fill(signature: Signature) -> bool:
    return not any(
        spec.dtype.hasobject or None in spec.shape[1 if signature.batched else 0 :]
        for spec in signature.inputs.values()
    )


def _zeros(signature: Signature, size: int) -> dict[str, Array]:
    return {
        name: np.zeros([size if d is None else d for d in spec.shape], spec.dtype)
        for name, spec in signature.inputs.items()
    }
