"""Throughput at saturation: how much of the engine's speed reaches HTTP clients.

    python -m loadtest.saturation [--repository DIR] [--output DIR] [--seconds S]

JPEGs go in and labels come out, in a closed loop at 1 to 256 connections, with default
settings. The ceiling is the raw engine's best rate over all batch sizes
(`loadtest.engine`), measured before and after each round; a round is compared with the
mean of both, and the spread of all tells how steady the machine was. Medians over the
rounds. The load comes from the same machine: measured alone, the engine has all cores,
and with the gateway it has what HTTP, decoding and the generator leave.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import fmean, median
from typing import Any, Final

import cyclopts
import matplotlib.pyplot as plt

from loadtest import engine
from loadtest.engine import EngineSpeed
from loadtest.harness.client import Measurement, closed_loop
from loadtest.harness.gateway import gateway
from loadtest.harness.report import (
    MILLISECONDS,
    Budget,
    Options,
    Report,
    Steps,
    finish,
    new_table,
    processor_share,
    progress,
    shown,
)
from loadtest.harness.workloads import (
    requests_for,
    version_directory,
    with_expected_answers,
)

CONNECTIONS: Final = (1, 4, 16, 64, 256)
# Share of the raw engine's best rate that is to be reached at the best point.
BUDGETS: Final[Mapping[str, float]] = {"inception": 0.85, "googlenet": 0.95}
BUDGET_ADDED_SECONDS: Final = 0.001
# In a share of a point's time: what each batch size gets in the raw engine.
ENGINE_SHARE: Final = 0.4
WARM_UP_SECONDS: Final = 1.0
# Requests that each connection has had answered, about, when the window opens.
WARM_UP_ANSWERS: Final = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A number of connections."""

    connections: int
    answers_per_second: float
    of_engine: float
    p50_seconds: float
    p95_seconds: float
    p99_seconds: float
    failures: int
    generator_share: float
    gateway_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Saturation:
    """A model's turn.

    Attributes:
        engine: The mean of all measurements of the engine alone.
        engine_spread: How far the best rates in these are apart, over their mean.
    """

    model: str
    engine: EngineSpeed
    engine_spread: float
    points: Sequence[Point]

    @property
    def best_of_engine(self) -> float:
        """At the number of connections that gives the highest share."""
        return max(point.of_engine for point in self.points)

    @property
    def added_seconds(self) -> float:
        """What the gateway adds to the median of one image alone."""
        return self.points[0].p50_seconds - self.engine.single_seconds


def main(options: Options = Options()) -> None:  # noqa: B008, it is immutable
    """Measure, print a table for each model, and write the report."""
    for model in BUDGETS:
        version_directory(options.repository, model)
    points = options.rounds * (len(CONNECTIONS) + 1) + 1
    with progress(len(BUDGETS) * points) as steps:
        turns = [_measure(model, options, steps) for model in BUDGETS]
    report = Report(
        name="saturation",
        settings=asdict(options),
        results=[asdict(one) for one in turns],
        budgets=[budget for one in turns for budget in _budgets(one)],
    )
    finish(report, _plot(turns), [_table(one) for one in turns], options.output)


def _measure(model: str, options: Options, steps: Steps) -> Saturation:
    directory = version_directory(options.repository, model)
    speeds: list[EngineSpeed] = []

    def measure_engine() -> None:
        steps.next(f"{model}: raw engine")
        seconds = options.point_seconds * ENGINE_SHARE
        speeds.append(engine.measure(directory, seconds=seconds))

    rounds = []
    measure_engine()
    with gateway(options.repository, model=model) as server:
        requests = with_expected_answers(server.address, requests_for(model))
        for _ in range(options.rounds):
            measured: dict[int, Measurement] = {}
            for connections in CONNECTIONS:
                steps.next(f"{model}: {connections} connections")
                answers = WARM_UP_ANSWERS * connections
                measured[connections] = closed_loop(
                    server.address,
                    requests,
                    connections=connections,
                    duration_seconds=options.point_seconds,
                    warm_up_seconds=WARM_UP_SECONDS
                    + answers / speeds[0].best_images_per_second,
                    server_pid=server.pid,
                )
            rounds.append(measured)
            measure_engine()
    best = [speed.best_images_per_second for speed in speeds]
    ceilings = [(before + after) / 2 for before, after in pairwise(best)]
    return Saturation(
        model=model,
        engine=engine.mean(speeds),
        engine_spread=(max(best) - min(best)) / fmean(best),
        points=[
            _point(connections, [one[connections] for one in rounds], ceilings)
            for connections in CONNECTIONS
        ],
    )


def _point(
    connections: int, rounds: Sequence[Measurement], ceilings: Sequence[float]
) -> Point:
    """Medians over the rounds, each under its own ceiling."""
    return Point(
        connections=connections,
        answers_per_second=median(one.per_second() for one in rounds),
        of_engine=median(
            one.per_second() / ceiling
            for one, ceiling in zip(rounds, ceilings, strict=True)
        ),
        p50_seconds=median(one.p50_seconds for one in rounds),
        p95_seconds=median(one.p95_seconds for one in rounds),
        p99_seconds=median(one.p99_seconds for one in rounds),
        failures=sum(one.failures for one in rounds),
        generator_share=median(
            processor_share(one.cpu_seconds, one.wall_seconds) for one in rounds
        ),
        gateway_share=median(
            processor_share(one.server_cpu_seconds, one.wall_seconds) for one in rounds
        ),
    )


def _budgets(turn: Saturation) -> list[Budget]:
    return [
        Budget(
            name=f"{turn.model}, share of the raw engine",
            measured=turn.best_of_engine,
            limit=BUDGETS[turn.model],
            bound="at least",
            format="percent",
        ),
        Budget(
            name=f"{turn.model}, added to one image alone",
            measured=turn.added_seconds,
            limit=BUDGET_ADDED_SECONDS,
            bound="at most",
            format="milliseconds",
        ),
    ]


def _table(turn: Saturation) -> Any:
    table = new_table(
        f"{turn.model}: raw engine {turn.engine.best_images_per_second:,.0f} images/s "
        f"(measurements {turn.engine_spread:.1%} apart), one alone "
        f"{shown(turn.engine.single_seconds, 'milliseconds')}",
        "connections",
        "answers/s",
        "of engine",
        "p50",
        "p95",
        "p99",
        "failures",
        "generator",
        "gateway",
    )
    for point in turn.points:
        table.add_row(
            str(point.connections),
            f"{point.answers_per_second:,.1f}",
            shown(point.of_engine, "percent"),
            shown(point.p50_seconds, "milliseconds"),
            shown(point.p95_seconds, "milliseconds"),
            shown(point.p99_seconds, "milliseconds"),
            str(point.failures),
            shown(point.generator_share, "percent"),
            shown(point.gateway_share, "percent"),
        )
    return table


def _plot(turns: Sequence[Saturation]) -> Any:
    figure, axes = plt.subplots(
        2, len(turns), figsize=(5 * len(turns), 7), layout="constrained", squeeze=False
    )
    for column, turn in enumerate(turns):
        _plot_rate(axes[0][column], turn)
        _plot_latency(axes[1][column], turn)
    return figure


def _plot_rate(axes: Any, turn: Saturation) -> None:
    best = turn.engine.best_images_per_second
    budget = BUDGETS[turn.model]
    rates = [point.answers_per_second for point in turn.points]
    axes.plot(CONNECTIONS, rates, marker="o", label="gateway over HTTP")
    axes.axhline(best, color="0.4", label="raw engine, best batch size")
    axes.axhline(
        best * budget, color="C3", linestyle="--", label=f"budget {budget:.0%}"
    )
    axes.set(title=turn.model, ylabel="images/s", ylim=(0, max(best, *rates) * 1.1))
    _connections_axis(axes)


def _plot_latency(axes: Any, turn: Saturation) -> None:
    for name in ("p50", "p95", "p99"):
        seconds = [getattr(point, f"{name}_seconds") for point in turn.points]
        axes.plot(
            CONNECTIONS, [one * MILLISECONDS for one in seconds], marker="o", label=name
        )
    alone = turn.engine.single_seconds * MILLISECONDS
    axes.axhline(alone, color="0.4", label="raw engine, one image")
    axes.set(ylabel="latency, ms", yscale="log")
    _connections_axis(axes)


def _connections_axis(axes: Any) -> None:
    axes.set_xscale("log", base=4)
    axes.set_xticks(CONNECTIONS, [str(one) for one in CONNECTIONS])
    axes.set_xlabel("connections")
    axes.grid(alpha=0.3)
    axes.legend()


if __name__ == "__main__":
    cyclopts.run(main)
