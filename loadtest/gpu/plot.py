"""Draws what was measured: a row for each network."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from loadtest.gpu.results import Point, Precision, Results
from loadtest.gpu.runtimes import RUNTIMES

mpl.use("Agg")

DOTS_PER_INCH: Final = 144
MILLISECONDS: Final = 1000
ROW_INCHES, WIDTH_INCHES = 3.8, 14.0
COLOURS: Final = {name: f"C{index}" for index, name in enumerate(RUNTIMES)}
STYLES: Final[Mapping[Precision, str]] = MappingProxyType(
    {"float32": ":", "tf32": "-.", "float16": "-", "bfloat16": "--"}
)


def draw(results: Results) -> Any:
    """Rate, latency and share of the peak by batch size.

    Rates and shares are without copies, latencies with them.
    """
    names = list(results.models)
    figure, rows = plt.subplots(
        len(names),
        3,
        figsize=(WIDTH_INCHES, ROW_INCHES * len(names) + 0.6),
        layout="constrained",
        squeeze=False,
    )
    for name, (rates, latencies, shares) in zip(names, rows, strict=True):
        points = [point for point in results.points if point.case.model == name]
        _lines(rates, points, lambda point: point.on_device.images_per_second)
        rates.set(title=name, ylabel="images/s, without copies")
        _logarithmic(rates.yaxis)
        _lines(
            latencies,
            points,
            lambda point: point.with_copy.median_seconds * MILLISECONDS,
        )
        latencies.set(ylabel="median latency with copies, ms")
        _logarithmic(latencies.yaxis)
        _draw_use(shares, points)
    figure.suptitle(_title(results))
    figure.legend(handles=_legend(results.points), loc="outside lower center", ncols=4)
    return figure


def _draw_use(axes: Any, points: Sequence[Point]) -> None:
    """The share of the peak, or what it would be a share of."""
    if any(point.share_of_peak is not None for point in points):
        known = [point for point in points if point.share_of_peak is not None]
        _lines(axes, known, lambda point: 100 * (point.share_of_peak or 0))
        axes.set(ylabel="share of the chip's peak, %")
    else:
        _lines(axes, points, lambda point: point.tflops)
        axes.set(ylabel="TFLOP/s (peak unknown)")
    axes.update_datalim([(1, 0)], updatex=False)
    axes.autoscale_view()


def _lines(axes: Any, points: Sequence[Point], value: Callable[[Point], float]) -> None:
    for case in dict.fromkeys(point.case for point in points):
        own = [point for point in points if point.case == case]
        axes.plot(
            [point.batch_size for point in own],
            [value(point) for point in own],
            color=COLOURS[case.runtime],
            linestyle=STYLES[case.precision],
            marker=".",
        )
    sizes = sorted({point.batch_size for point in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_xlabel("batch size")
    axes.grid(alpha=0.3)


def _logarithmic(axis: Any) -> None:
    """Numbers without powers of ten, at 1, 2 and 5."""
    axis.axes.set_yscale("log")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:,g}")
    axis.set_minor_formatter(NullFormatter())


def _title(results: Results) -> str:
    name, date = results.device["name"], results.machine["date"][:10]
    remark = "" if results.device["kind"] == "gpu" else " (a processor, not a GPU)"
    return f"{name}{remark}, {date}"


def _legend(points: Sequence[Point]) -> list[Any]:
    """Colours are runtimes, and line styles precisions."""
    runtimes = dict.fromkeys(point.case.runtime for point in points)
    precisions = dict.fromkeys(point.case.precision for point in points)
    return [
        *(
            Line2D([], [], color=COLOURS[one], label=RUNTIMES[one].title)
            for one in runtimes
        ),
        *(
            Line2D([], [], color="0.3", linestyle=STYLES[one], label=one)
            for one in precisions
        ),
    ]
