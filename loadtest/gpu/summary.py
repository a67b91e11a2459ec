"""What was measured, in words."""

from collections.abc import Iterator, Sequence
from typing import Final

from loadtest.gpu.results import Batching, Case, Failure, Point, Results, Timing

MILLISECONDS: Final = 1000


def described(one: Point | Batching | Failure) -> str:
    """A line about what has just been measured."""
    match one:
        case Point():
            return (
                f"{one.case}, batch {one.batch_size}: "
                f"{one.on_device.images_per_second:,.1f} images/s, "
                f"{_milliseconds(one.on_device.median_seconds)}; with copies "
                f"{one.with_copy.images_per_second:,.1f} images/s, "
                f"{_milliseconds(one.with_copy.median_seconds)}"
            )
        case Batching():
            return (
                f"{one.case}, batcher up to {one.largest_batch_size}: "
                f"{one.images_per_second:,.1f} images/s, {one.of_engine:.0%} of the "
                f"engine, p99 {_milliseconds(one.p99_seconds)}"
            )
        case Failure():
            where = f", batch {one.batch_size}" if one.batch_size else ""
            return f"{one.case}{where}: {one.reason}"


def summary(results: Results) -> str:
    """A table with a line for each case, and what was left out."""
    device = results.device
    what = "GPU" if device["kind"] == "gpu" else "processor, not a GPU"
    lines = [f"{device['name']} ({what})", ""]
    lines += _table(list(_rows(results)))
    lines += [""]
    lines += [
        f"{runtime['title']}: {runtime['skipped']}"
        for runtime in results.runtimes.values()
        if "skipped" in runtime
    ]
    lines += results.notes
    lines += map(described, results.failures)
    if not device["peak_tflops"]:
        lines.append("the chip's peak is not known here: see --peak-tflops")
    return "\n".join(lines)


def _rows(results: Results) -> Iterator[Sequence[str]]:
    yield (
        "network, runtime, precision",
        "images/s",
        "batch",
        "of peak",
        "with copies",
        "batch",
        "one image",
        "batcher",
        "of engine",
        "p99",
    )
    for case in dict.fromkeys(point.case for point in results.points):
        points = [point for point in results.points if point.case == case]
        yield (str(case), *_best(points), *_batching(results, case))


def _best(points: Sequence[Point]) -> Iterator[str]:
    """On the device, with copies, and one image alone."""
    best = max(points, key=lambda point: point.on_device.images_per_second)
    copying = max(points, key=lambda point: point.with_copy.images_per_second)
    share = best.share_of_peak
    yield _rate(best.on_device)
    yield str(best.batch_size)
    yield "-" if share is None else f"{share:.1%}"
    yield _rate(copying.with_copy)
    yield str(copying.batch_size)
    alone = [point for point in points if point.batch_size == 1]
    yield _milliseconds(alone[0].with_copy.median_seconds) if alone else "-"


def _batching(results: Results, case: Case) -> Sequence[str]:
    """With the largest batches that it was allowed."""
    measured = [one for one in results.batching if one.case == case]
    if not measured:
        return ("-", "-", "-")
    one = max(measured, key=lambda one: one.largest_batch_size)
    return (
        f"{one.images_per_second:,.1f}",
        f"{one.of_engine:.1%}",
        _milliseconds(one.p99_seconds),
    )


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """The first column to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def _rate(timing: Timing) -> str:
    return f"{timing.images_per_second:,.1f}"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * MILLISECONDS:,.2f} ms"
