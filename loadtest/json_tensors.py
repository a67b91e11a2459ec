"""How fast images as JSON numbers become an array, beside the standard library.

    python -m loadtest.json_tensors [--output DIR] [--seconds S]

The body of a `:predict` request in row format, as clients of TensorFlow Serving send
it, is read to the array that the batcher takes. The standard library's way is
`json.loads` and `numpy.array`; both work on the same bytes, in turn, and give the same
array.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Final

import cyclopts
import matplotlib.pyplot as plt
import numpy as np

from loadtest.harness.report import (
    MILLISECONDS,
    Budget,
    Options,
    Report,
    finish,
    new_table,
    progress,
    shown,
)
from loadtest.harness.workloads import SEED
from service.http.tf_serving.predict_requests import PredictRequest
from service.server import spare_the_collector
from service.tensors import Signature, TensorSpec

SHAPES: Final = ((1, 28, 28, 1), (1, 224, 224, 3), (8, 224, 224, 3))
DTYPES: Final = ("uint8", "float32")
DIGITS: Final = 6
MIN_ROUNDS: Final = 3
PLAIN: Final = "json and numpy"
OURS: Final = "blockserve"
# It is to be so many times as fast where it is large.
LARGE: Final = (1, 224, 224, 3)
BUDGET_TIMES: Final = {"uint8": 4.0, "float32": 7.0}

Reader = Callable[[bytes], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Median times of one body."""

    dtype: str
    shape: tuple[int, ...]
    body_bytes: int
    plain_seconds: float
    seconds: float

    @property
    def name(self) -> str:
        """As in `uint8 1×224×224×3`."""
        return f"{self.dtype} {'×'.join(map(str, self.shape))}"

    @property
    def times_as_fast(self) -> float:
        """As the standard library."""
        return self.plain_seconds / self.seconds


def main(options: Options = Options()) -> None:  # noqa: B008, it is immutable
    """Measure, print a table, and write the report."""
    spare_the_collector()  # as the gateway does, or long lists would take its time
    outcomes = []
    with progress(len(SHAPES) * len(DTYPES)) as steps:
        for dtype in DTYPES:
            for shape in SHAPES:
                steps.next(f"{dtype} {shape}")
                outcomes.append(_measure(dtype, shape, options.point_seconds))
    report = Report(
        name="json_tensors",
        settings=asdict(options),
        results=[asdict(one) for one in outcomes],
        budgets=[
            Budget(
                name=f"{one.name}, times as fast as the standard library",
                measured=one.times_as_fast,
                limit=BUDGET_TIMES[one.dtype],
                bound="at least",
                format="ratio",
            )
            for one in outcomes
            if one.shape == LARGE
        ],
    )
    finish(report, _plot(outcomes), [_table(outcomes)], options.output)


def body(dtype: str, shape: tuple[int, ...]) -> bytes:
    """A request with random tensors: bytes of pixels, or numbers of six digits."""
    random = np.random.default_rng(SEED)
    if dtype == "uint8":
        rows: Any = random.integers(0, 256, shape)
    else:
        rows = random.random(shape).round(DIGITS)
    return json.dumps({"instances": rows.tolist()}).encode()


def readers(dtype: str, shape: tuple[int, ...]) -> Mapping[str, Reader]:
    """The ways to read a body to `dtype[shape]`."""
    spec = TensorSpec(name="images", dtype=np.dtype(dtype), shape=(None, *shape[1:]))
    signature = Signature(
        name="serving_default", inputs={spec.name: spec}, outputs={spec.name: spec}
    )

    def plain(text: bytes) -> Any:
        return np.array(json.loads(text)["instances"], dtype)

    def ours(text: bytes) -> Any:
        return PredictRequest.read(text).tensors(signature)[spec.name]

    return {PLAIN: plain, OURS: ours}


def _measure(dtype: str, shape: tuple[int, ...], seconds: float) -> Outcome:
    text = body(dtype, shape)
    ways = readers(dtype, shape)
    times: dict[str, list[float]] = {name: [] for name in ways}
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(times[OURS]) < MIN_ROUNDS:
        for name, read in ways.items():
            started = time.perf_counter()
            read(text)
            times[name].append(time.perf_counter() - started)
    return Outcome(
        dtype=dtype,
        shape=shape,
        body_bytes=len(text),
        plain_seconds=median(times[PLAIN]),
        seconds=median(times[OURS]),
    )


def _table(outcomes: list[Outcome]) -> Any:
    table = new_table(
        "JSON to an array", "tensor", "body", PLAIN, OURS, "times as fast"
    )
    for one in outcomes:
        table.add_row(
            one.name,
            f"{one.body_bytes:,} bytes",
            shown(one.plain_seconds, "milliseconds"),
            shown(one.seconds, "milliseconds"),
            shown(one.times_as_fast, "ratio"),
        )
    return table


def _plot(outcomes: list[Outcome]) -> Any:
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    places = np.arange(len(outcomes))
    for offset, name, values in (
        (-0.2, PLAIN, [one.plain_seconds for one in outcomes]),
        (0.2, OURS, [one.seconds for one in outcomes]),
    ):
        heights = [value * MILLISECONDS for value in values]
        axes.bar(places + offset, heights, width=0.4, label=name)
    axes.set_xticks(places, [one.name for one in outcomes], rotation=15)
    axes.set(ylabel="time, ms", yscale="log", title="JSON to an array")
    axes.grid(alpha=0.3, axis="y")
    axes.legend()
    return figure


if __name__ == "__main__":
    cyclopts.run(main)
