"""The report's plots, as SVG that stands in a page of either brightness."""

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from loadtest.bench.results import PERCENTILES, Repetition, Run, StageSummary
from loadtest.bench.slo import Term

# Drawn in a colour that is used for nothing else, and then given the page's own.
INK: Final = "#010203"
SHADES: Final = {"p50": "#2a9d8f", "p90": "#3b82c4", "p95": "#8b6cc9", "p99": "#d9634c"}
ANSWERED, ASKED, FAILED, BATCH, QUEUE, BUSY = (
    "#3b82c4",
    "#888888",
    "#d9634c",
    "#2a9d8f",
    "#8b6cc9",
    "#c98a2b",
)
# As many as there are protocols.
PROTOCOL_SHADES: Final = (
    *("#2a9d8f", "#3b82c4", "#8b6cc9", "#d9634c", "#c98a2b", "#888888"),
)
# Of each second: its name, how it is called, and its colour.
GATEWAY_SERIES: Final = (
    ("batch_rows", "rows in a batch", BATCH),
    ("queue_depth", "requests that wait", QUEUE),
)
MILLISECONDS: Final = 1000
# Loads that differ so much are shown by their logarithm.
WIDE: Final = 10
MARGIN: Final = 1.15
DOTS: Final = "; dots are single repetitions"
WIDTH_INCHES: Final = 7.2
STYLE: Final = {
    "svg.fonttype": "none",  # text stays text, in the page's own font
    "svg.hashsalt": "blockserve",  # the same numbers give the same file
    "font.size": 9,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}
SIZE: Final = re.compile(r'<svg ([^>]*?)height="[\d.]+pt"([^>]*?)width="[\d.]+pt"')
PATH: Final = re.compile(r' (?:d|x|y)="[^"]*"')
DIGITS: Final = re.compile(r"(\d\.\d)\d+")
NAMED: Final = re.compile(r'(id="|url\(#|href="#)')


def plots(run: Run, terms: Sequence[Term]) -> Iterator[tuple[str, str]]:
    """Title and SVG of each plot.

    Against the load, where the shape has several loads, and over time.
    """
    stages = run.stages
    if len({stage.asked_per_second for stage in stages}) > 1:
        yield "Latency against load", _drawn("latency", _latency, run, terms)
        if run.parts:
            yield "Latency by protocol", _drawn("protocols", _protocols, run)
        yield "Throughput and errors", _drawn("throughput", _throughput, run)
        if run.knows_gateway:
            yield "Inside the gateway", _drawn("gateway", _gateway, run)
    yield "Over time", _drawn("time", _over_time, run)


def _latency(run: Run, terms: Sequence[Term]) -> Figure:
    figure, (axes,) = _figure(1, height=3.4)
    for name, shade in SHADES.items():
        _measured(axes, run, name, shade=shade, label=name, scale=MILLISECONDS)
    for term in terms:
        if term.measure in PERCENTILES:
            limit = term.limit * MILLISECONDS
            axes.axhline(limit, color=SHADES[term.measure], linestyle=":", linewidth=1)
            axes.annotate(
                term.text,
                (0.01, limit),
                xycoords=("axes fraction", "data"),
                va="bottom",
                fontsize=8,
            )
    _log_milliseconds(axes)
    _load_axis(axes, run)
    # Above the axes, for the objective's line may be anywhere in them.
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(SHADES))
    return figure


def _protocols(run: Run) -> Figure:
    figure, panels = _figure(2, height=4.8)
    for axes, name in zip(panels, ("p50", "p99"), strict=True):
        for protocol, shade in zip(run.parts, PROTOCOL_SHADES, strict=False):
            values = [
                one.over(protocol).measure(name) * MILLISECONDS for one in run.stages
            ]
            _line(axes, run.stages, values, shade, protocol)
        _log_milliseconds(axes, label=f"{name}, milliseconds")
    panels[0].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    _load_axis(panels[1], run, dots="")
    return figure


def _throughput(run: Run) -> Figure:
    figure, (rate, errors) = _figure(2, height=4.2, ratios=(3, 1))
    loads = sorted(map(_asked, run.stages))
    rate.plot(loads, loads, color=ASKED, linestyle="--", label="asked")
    _measured(rate, run, "rps", shade=ANSWERED, label="answered rightly")
    if _is_wide(loads):
        rate.set_yscale("log")
        _plain_numbers(rate.yaxis)
    rate.set_ylabel("answers a second")
    rate.legend(loc="upper left")
    _measured(errors, run, "errors", shade=FAILED, label="errors", scale=100)
    errors.set_ylabel("errors, %")
    errors.set_ylim(0, max(1.0, errors.get_ylim()[1]))
    _load_axis(errors, run)
    return figure


def _gateway(run: Run) -> Figure:
    figure, (rows, queue, busy) = _figure(3, height=4.8)
    for axes, name, shade, label, scale in (
        (rows, "batch_rows", BATCH, "rows in a batch", 1),
        (queue, "queue_depth", QUEUE, "requests that wait", 1),
        (busy, "engine_busy", BUSY, "engine busy, %", 100),
    ):
        for repetition in run.repetitions:
            values = [getattr(one.gateway, name) * scale for one in repetition.stages]
            _dots(axes, repetition, values, shade)
        medians = [one.gateway(name) * scale for one in run.stages]
        _line(axes, run.stages, medians, shade, label)
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
    _load_axis(busy, run)
    return figure


def _over_time(run: Run) -> Figure:
    told = GATEWAY_SERIES if run.knows_gateway else ()
    panels = 2 + len(told)
    figure, (rate, latency, *gateway) = _figure(panels, height=1.6 * panels)
    lines = [
        (rate, "asked", "asked", ASKED, 1),
        (rate, "answered", "answered", ANSWERED, 1),
        (rate, "failed", "failed", FAILED, 1),
        (latency, "p50_seconds", "p50", SHADES["p50"], MILLISECONDS),
        (latency, "p99_seconds", "p99", SHADES["p99"], MILLISECONDS),
    ]
    for axes, (name, label, shade) in zip(gateway, told, strict=True):
        lines.append((axes, name, label, shade, 1))
        axes.set_ylabel(label)
    for axes, name, label, shade, scale in lines:
        for number, repetition in enumerate(run.repetitions):
            axes.plot(
                [one.at_seconds for one in repetition.series],
                [getattr(one, name) * scale for one in repetition.series],
                color=shade,
                linewidth=0.9,
                alpha=0.75,
                label=None if number else label,
            )
    _log_milliseconds(latency)
    rate.set_ylabel("a second")
    for axes in (rate, *gateway):
        axes.set_ylim(bottom=0)
    rate.legend(loc="upper left", ncols=3)
    latency.legend(loc="upper left", ncols=2)
    (gateway or [latency])[-1].set_xlabel(
        "seconds since the start; one line for each repetition"
    )
    return figure


def _figure(
    panels: int, *, height: float, ratios: Sequence[float] | None = None
) -> tuple[Figure, Sequence[Any]]:
    figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
    axes = figure.subplots(
        panels, sharex=True, squeeze=False, height_ratios=ratios or [1] * panels
    )
    return figure, list(axes[:, 0])


def _is_wide(loads: Sequence[float]) -> bool:
    return max(loads) > WIDE * min(loads)


def _log_milliseconds(axes: Any, *, label: str = "milliseconds") -> None:
    axes.set_ylabel(label)
    # Of nothing, as where all stages were too short, there is no logarithm.
    if any(np.isfinite(line.get_ydata()).any() for line in axes.lines):
        axes.set_yscale("log")
        _plain_numbers(axes.yaxis)


def _plain_numbers(axis: Any) -> None:
    """On a logarithmic axis, and enough of them."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _asked(stage: StageSummary) -> float:
    return stage.asked_per_second


def _measured(
    axes: Any, run: Run, name: str, *, shade: str, label: str, scale: float = 1
) -> None:
    """A measure of each repetition, and the median."""
    for repetition in run.repetitions:
        values = [one.measure(name) * scale for one in repetition.stages]
        _dots(axes, repetition, values, shade)
    medians = [one.measure(name) * scale for one in run.stages]
    _line(axes, run.stages, medians, shade, label)


def _dots(
    axes: Any, repetition: Repetition, values: Sequence[float], shade: str
) -> None:
    """One repetition, to show how far they lie apart."""
    loads = [one.asked_per_second for one in repetition.stages]
    look = {"linestyle": "", "marker": "o", "markersize": 3, "alpha": 0.35}
    axes.plot(loads, values, color=shade, **look)


def _line(
    axes: Any,
    stages: Sequence[StageSummary],
    values: Sequence[float],
    shade: str,
    label: str,
) -> None:
    """All repetitions together, by growing load."""
    points = sorted(zip(map(_asked, stages), values, strict=True))
    axes.plot(*zip(*points, strict=True), color=shade, label=label)


def _load_axis(axes: Any, run: Run, *, dots: str = DOTS) -> None:
    axes.set_xlabel(f"load, requests asked for a second{dots}")
    loads = list(map(_asked, run.stages))
    if _is_wide(loads):
        # Said, for it cannot be found where nothing was measured.
        axes.set_xlim(min(loads) / MARGIN, max(loads) * MARGIN)
        axes.set_xscale("log")
        _plain_numbers(axes.xaxis)
    else:
        axes.set_xlim(left=0)


@contextmanager
def _style() -> Iterator[None]:
    with mpl.rc_context(STYLE):
        yield


def _drawn(name: str, draw: Callable[..., Figure], *arguments: Any) -> str:
    """A figure as an SVG element whose names do not meet those of others."""
    with _style():
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        draw(*arguments).savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg ") :]
    text = SIZE.sub(r'<svg role="img" \1\2', text)
    # A tenth of a point is finer than anybody sees, and halves the page.
    text = PATH.sub(lambda found: DIGITS.sub(r"\1", found[0]), text)
    text = NAMED.sub(rf"\g<1>{name}-", text)
    return text.replace(INK, "currentColor")
