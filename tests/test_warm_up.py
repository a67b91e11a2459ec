"""What is run and measured before a version gets requests, on a clock of its own."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service import warm_up as module
from service.batching import ThroughputCurve
from service.errors import EngineFailure, InvalidTensor, Overloaded
from service.settings import Settings
from service.tensors import Signature, Tensors, TensorSpec
from service.warm_up import measure, warm_up
from tests.support import only


class Clockwork:
    """An engine whose calls take what `seconds` says of their size, and no real time.

    The first call at a size takes ten times as long. From `largest` rows on each call
    fails with `failure`, if there is one.
    """

    kind = "clockwork"
    slots = 1
    stops = False

    def __init__(self, seconds: Mapping[int, float], signature: Signature) -> None:
        self._seconds = seconds
        self.signatures = {signature.name: signature}
        self.now = 0.0
        self.sizes: list[int] = []
        self.failure: BaseException | None = None
        self.largest = 0

    async def infer(self, _signature: str, tensors: Tensors) -> dict[str, Any]:
        (array,) = tensors.values()
        size = len(array)
        if self.failure is not None and size >= self.largest:
            raise self.failure
        low = max(s for s in self._seconds if s <= size)
        first = size not in self.sizes
        self.now += self._seconds[low] * (10 if first else 1)
        self.sizes.append(size)
        return {"y": array}

    def close(self) -> None:
        pass


def signature(
    shape: tuple[int | None, ...] = (None, 2), dtype: str = "uint8"
) -> Signature:
    spec = TensorSpec(name="x", dtype=np.dtype(dtype), shape=shape)
    answer = TensorSpec(name="y", dtype=np.dtype("float32"), shape=shape)
    return Signature(name="serve", inputs={"x": spec}, outputs={"y": answer})


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Warm an engine up; answers the engine and the curve."""

    async def run(
        seconds: Mapping[int, float],
        asked: Signature | None = None,
        failure: tuple[int, BaseException] | None = None,
        **settings: Any,
    ) -> Any:
        asked = asked or signature()
        engine = Clockwork(seconds, asked)
        if failure is not None:
            engine.largest, engine.failure = failure
        monkeypatch.setattr(module, "perf_counter", lambda: engine.now)
        chosen = Settings(repository=tmp_path, **settings)
        return engine, await warm_up(engine, asked, chosen)

    return run


async def test_the_curve_is_what_calls_take_once_they_are_warm(run: Any) -> None:
    _, curve = await run({1: 0.01, 2: 0.012, 4: 0.014, 8: 0.02, 16: 0.03, 32: 0.05})
    seconds = {point.batch_size_rows: point.seconds for point in curve.points}
    assert seconds == pytest.approx(
        {1: 0.01, 2: 0.012, 4: 0.014, 8: 0.02, 16: 0.03, 32: 0.05}
    )
    assert curve.preferred_batch_size == 32


async def test_sizes_stop_growing_where_they_bring_nothing(run: Any) -> None:
    engine, curve = await run({1: 0.01, 2: 0.012, 4: 0.025, 8: 0.06, 16: 0.13})
    assert max(engine.sizes) == 8
    assert curve.preferred_batch_size == 2


async def test_sizes_stop_growing_where_a_call_takes_too_long(run: Any) -> None:
    engine, curve = await run({1: 0.4, 2: 0.6, 4: 0.8})
    assert max(engine.sizes) == 2
    assert curve.preferred_batch_size == 2


async def test_every_size_up_to_the_preferred_one_has_been_run(run: Any) -> None:
    engine, curve = await run({1: 0.01, 8: 0.01, 9: 0.1})
    assert curve.preferred_batch_size == 8
    assert set(range(1, 9)) <= set(engine.sizes)


async def test_a_size_set_by_hand_is_measured_whatever_the_curve_says(
    run: Any,
) -> None:
    engine, _ = await run({1: 0.01, 2: 1.0}, max_batch_size=12)
    assert set(engine.sizes) >= {1, 2, 4, 8, 12}


async def test_only_allowed_sizes_are_run(run: Any) -> None:
    engine, curve = await run({1: 0.01, 9: 0.02}, allowed_batch_sizes=(8, 2, 16))
    assert set(engine.sizes) == {2, 8, 16}
    assert curve.preferred_batch_size == 8


async def test_a_signature_without_a_batch_is_run_as_it_is(run: Any) -> None:
    engine, curve = await run({1: 0.01}, signature((5, 2)))
    assert set(engine.sizes) == {5}
    assert curve.preferred_batch_size == 1


@pytest.mark.parametrize(
    "asked", [signature((None,), "object"), signature((None, None, 3))]
)
async def test_what_cannot_be_made_up_is_not_run(run: Any, asked: Signature) -> None:
    engine, curve = await run({1: 0.01}, asked)
    assert engine.sizes == []
    assert curve.preferred_batch_size == 32


async def test_sizes_stop_growing_where_the_engine_takes_no_more(run: Any) -> None:
    """As a TensorFlow Serving does that makes batches itself."""
    refusal = InvalidTensor("Task size 8 is larger than maximum input batch size 4")
    engine, curve = await run({1: 0.01}, failure=(5, refusal))
    assert max(engine.sizes) == 4
    assert curve.preferred_batch_size == 4
    with pytest.raises(InvalidTensor):
        await run({1: 0.01}, failure=(5, refusal), max_batch_size=8)
    with pytest.raises(InvalidTensor):
        await run({1: 0.01}, failure=(1, refusal))


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (RuntimeError("[CPU] out of memory"), "[CPU] out of memory"),
        (MemoryError(), "MemoryError()"),
        (EngineFailure("the server's log says why"), "the server's log says why"),
    ],
)
async def test_a_size_that_fails_ends_the_growing_and_what_worked_serves(
    run: Any, caplog: pytest.LogCaptureFixture, failure: Exception, reason: str
) -> None:
    engine, curve = await run({1: 0.01}, failure=(8, failure))
    assert max(engine.sizes) == 4
    assert curve.preferred_batch_size == 4
    assert caplog.messages == [
        f"a batch of 8 rows of 'serve' has failed, so batches have less: {reason}"
    ]
    assert only(caplog.records).levelname == "WARNING"


@pytest.mark.parametrize(
    ("smallest", "failure", "settings"),
    [
        (1, RuntimeError("at any size"), {}),
        (8, RuntimeError("set by hand"), {"max_batch_size": 8}),
        (8, RuntimeError("set by hand"), {"allowed_batch_sizes": (2, 8)}),
        (8, Overloaded("whatever the size"), {}),
        (8, asyncio.CancelledError("nobody waits"), {}),
    ],
)
async def test_a_failure_that_no_smaller_batch_would_mend_ends_the_load(
    run: Any, smallest: int, failure: BaseException, settings: dict[str, Any]
) -> None:
    with pytest.raises(type(failure), match=str(failure)):
        await run({1: 0.01}, failure=(smallest, failure), **settings)


async def test_an_engine_that_runs_already_is_only_measured(tmp_path: Path) -> None:
    engine = Clockwork({1: 0.01, 8: 0.01, 9: 0.1}, signature())
    await measure(engine, Settings(repository=tmp_path), {})
    assert set(engine.sizes) == {1, 2, 4, 8, 16, 32}


async def test_what_is_known_of_the_version_before_is_not_measured(
    tmp_path: Path,
) -> None:
    engine = Clockwork({1: 0.01}, signature())
    known = {"serve": ThroughputCurve({1: 1.0})}
    assert await measure(engine, Settings(repository=tmp_path), known) == known
    assert engine.sizes == []


@pytest.mark.parametrize("is_silent", [False, True])
async def test_an_engine_that_has_no_time_to_be_measured_serves_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_silent: bool
) -> None:
    monkeypatch.setattr(module, "MEASURING_SECONDS", 0.01)
    engine = Clockwork({1: 0.01}, signature())
    if is_silent:

        async def infer(*_: Any) -> Any:
            await asyncio.Event().wait()

        monkeypatch.setattr(engine, "infer", infer)
    else:
        engine.failure = Overloaded("not now")
    curves = await measure(engine, Settings(repository=tmp_path), {})
    assert curves["serve"].preferred_batch_size == 32
