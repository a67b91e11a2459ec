"""Measures on a GPU, or draws what was measured; see `--help`."""

import argparse
import contextlib
import importlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Final, get_args

from loadtest.gpu.process import WorkerFailed, answers
from loadtest.gpu.results import (
    PRECISIONS,
    Batching,
    Case,
    DeviceKind,
    Failure,
    Point,
    Results,
    from_line,
)
from loadtest.gpu.runtimes import RUNTIMES
from loadtest.gpu.summary import described, summary
from loadtest.gpu.survey import NothingToMeasure, survey

MODELS: Final = ("googlenet", "inception_v3")
BATCH_SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, or draw."""
    options = _parser().parse_args(arguments)
    if options.plot:
        _say(f"written: {_draw(Results.read(options.plot), options.plot)}")
        return
    try:
        results = survey(options)
    except NothingToMeasure as missing:
        sys.exit(str(missing))
    path = options.output / "gpu.json"
    with contextlib.suppress(KeyboardInterrupt):  # what was measured is there to show
        _measure(results, options, path)
    results.write(path)
    _say(summary(results))
    if not results.points:
        sys.exit("nothing could be measured")
    if find_spec("matplotlib") is None:
        _say(
            f"written: {path}. matplotlib is not installed: where it is, draw the plot "
            f"with python3 -m loadtest.gpu --plot {path}"
        )
    else:
        _say(f"written: {path}, {_draw(results, path)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m loadtest.gpu",
        description="Measure what a GPU does with the networks of blockserve, by "
        "runtime, precision and batch size. See docs/gpu.md.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--models", nargs="+", default=MODELS, help="architectures, by name"
    )
    parser.add_argument(
        "--runtimes",
        nargs="+",
        choices=RUNTIMES,
        default=tuple(RUNTIMES),
        help="what runs them",
    )
    parser.add_argument(
        "--precisions",
        nargs="+",
        choices=PRECISIONS,
        help="all of them, on a processor all but tf32",
    )
    parser.add_argument(
        "--batch-sizes", nargs="+", type=_size, default=BATCH_SIZES, help="in images"
    )
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="of each point, twice"
    )
    parser.add_argument(
        "--batcher-seconds",
        type=float,
        default=3.0,
        help="of the gateway's batcher, twice; 0 leaves it out",
    )
    parser.add_argument(
        "--device",
        choices=get_args(DeviceKind),
        default="gpu",
        help="cpu tries the program out where there is no GPU",
    )
    parser.add_argument(
        "--peak-tflops",
        nargs="+",
        type=_peak,
        default=(),
        metavar="PRECISION=NUMBER",
        help="the chip's dense peak, where it is not known here",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("bench_results"), help="folder"
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw a gpu.json; measure nothing"
    )
    return parser


def _size(text: str) -> int:
    size = int(text)
    if size < 1:
        raise argparse.ArgumentTypeError("a batch has at least one image")
    return size


def _peak(text: str) -> tuple[str, float]:
    precision, _, number = text.partition("=")
    if precision not in PRECISIONS:
        raise argparse.ArgumentTypeError(f"one of {', '.join(PRECISIONS)}=NUMBER")
    return precision, float(number)


def _measure(results: Results, options: argparse.Namespace, path: Path) -> None:
    """Case after case; what has come is written at once, for a run may be cut off."""
    settings = results.settings
    for case in _cases(results):
        argument = {
            "case": asdict(case),
            "batch_sizes": settings["batch_sizes"],
            "seconds": settings["seconds"],
            "batcher_seconds": settings["batcher_seconds"],
            "peak_tflops": results.device["peak_tflops"].get(case.precision),
        }
        try:
            for line in answers(
                "measure", argument, runtime=case.runtime, device=options.device
            ):
                _take(results, from_line(line), path)
        except WorkerFailed as failure:
            one = Failure(case=case, batch_size=None, reason=str(failure))
            _take(results, one, path)


def _cases(results: Results) -> Iterator[Case]:
    for model in results.models:
        for runtime, found in results.runtimes.items():
            for precision in results.settings["precisions"]:
                if "skipped" not in found:
                    yield Case(runtime=runtime, model=model, precision=precision)


def _take(results: Results, one: Point | Batching | Failure, path: Path) -> None:
    results.add(one)
    results.write(path)
    print(described(one), file=sys.stderr)  # noqa: T201, how far it is


def _say(text: str) -> None:
    print(text)  # noqa: T201, it is the answer


def _draw(results: Results, path: Path) -> Path:
    plot = importlib.import_module("loadtest.gpu.plot")
    picture = path.with_suffix(".png")
    plot.draw(results).savefig(picture, dpi=plot.DOTS_PER_INCH)
    return picture


if __name__ == "__main__":
    main()
