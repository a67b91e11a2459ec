"""Latency under load: batching that tunes itself, against settings made by hand.

    python -m loadtest.latency_under_load [--model NAME] [--repository DIR] …

Requests arrive at random moments (Poisson), at shares of the highest rate of such
requests at which the default settings answer them all. Four gateways run side by side
and are sent the same arrivals in turn, round by round: one with default settings, three
with the settings that people choose by hand. The rounds of each are taken together; a
request that failed counts as infinitely late, so that refusing work does not pass for
speed.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import product
from types import MappingProxyType
from typing import Any, Final

import cyclopts
import matplotlib.pyplot as plt
import numpy as np

from loadtest.harness.client import OK, Measurement, Request, closed_loop, open_loop
from loadtest.harness.gateway import gateway
from loadtest.harness.processes import Server
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

DEFAULT: Final = "default settings"
SETTINGS: Final[Mapping[str, Sequence[str]]] = MappingProxyType(
    {
        DEFAULT: (),
        "batch 1": ("--max-batch-size", "1"),
        "batch 8, 2 ms": (
            *("--max-batch-size", "8"),
            *("--max-queue-delay-seconds", "0.002"),
        ),
        "batch 32, 5 ms": (
            *("--max-batch-size", "32"),
            *("--max-queue-delay-seconds", "0.005"),
        ),
    }
)
LOADS: Final = (0.2, 0.5, 0.7, 0.9)
PERCENTILES: Final = (50, 95, 99)
CAPACITY_CONNECTIONS: Final = 64
WARM_UP_SECONDS: Final = 1
CAPACITY_SEED: Final = 1000  # the rounds have the small numbers
TIMEOUT_SECONDS: Final = 10
# A closed loop sends when it has an answer, and so in step with the server. Arrivals at
# random moments cost more: their capacity is looked for downwards from there.
RATE_STEP: Final = 0.9
LOWEST_SHARE: Final = 0.3
# What a setting made by hand may be better by, at any load and percentile.
BUDGET_OF_BEST: Final = 1.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One setting at one load, all rounds together; percentiles by their numbers."""

    setting: str
    load: float
    latency_seconds: Mapping[int, float]
    failures: int
    generator_share: float


def main(options: Options = Options(), *, model: str = "inception") -> None:  # noqa: B008, it is immutable
    """Measure, print a table for each percentile, and write the report.

    Args:
        options: See there.
        model: What is served.
    """
    version_directory(options.repository, model)
    capacity, points = _measure(options, model)
    report = Report(
        name="latency_under_load",
        settings={**asdict(options), "model": model},
        results={
            "capacity_per_second": capacity,
            "points": [asdict(point) for point in points],
        },
        budgets=[
            Budget(
                name=f"{load:.0%} load, p{percentile} over the best",
                measured=of_best(points, load, percentile),
                limit=BUDGET_OF_BEST,
                bound="at most",
                format="ratio",
            )
            for load, percentile in product(LOADS, PERCENTILES)
        ],
    )
    tables = [_table(model, capacity, points)]
    finish(report, _plot(model, capacity, points), tables, options.output)


def of_best(points: Sequence[Point], load: float, percentile: int) -> float:
    """Latency of the default settings over that of the best; at least 1."""
    latencies = {
        point.setting: point.latency_seconds[percentile]
        for point in points
        if point.load == load
    }
    return latencies[DEFAULT] / min(latencies.values())


def percentiles(measured: Sequence[Measurement]) -> dict[int, float]:
    """Latency of all requests in seconds; those that failed are infinitely late."""
    latencies = np.concatenate(
        [
            np.where(one.statuses == OK, one.latencies_seconds, np.inf)
            for one in measured
        ]
    )
    # Between two values there may be infinity: take one that was measured.
    found = np.percentile(latencies, PERCENTILES, method="higher")
    return dict(zip(PERCENTILES, map(float, found), strict=True))


def _measure(options: Options, model: str) -> tuple[float, list[Point]]:
    plan = list(product(LOADS, SETTINGS))
    measured: dict[tuple[float, str], list[Measurement]] = {one: [] for one in plan}
    with ExitStack() as stack:
        steps = stack.enter_context(
            progress(2 * len(SETTINGS) + 1 + options.rounds * len(plan))
        )
        servers = {}
        for name, flags in SETTINGS.items():
            steps.next(f"starting: {name}")
            running = gateway(options.repository, *flags, model=model)
            servers[name] = stack.enter_context(running)
        requests = with_expected_answers(servers[DEFAULT].address, requests_for(model))
        capacity = _capacity(servers, requests, options.point_seconds, steps)
        for seed in range(options.rounds):
            for load, name in plan:
                steps.next(f"{load:.0%} load: {name}")
                measured[load, name].append(
                    open_loop(
                        servers[name].address,
                        requests,
                        rate_per_second=load * capacity,
                        duration_seconds=options.point_seconds,
                        timeout_seconds=TIMEOUT_SECONDS,
                        seed=seed,
                    )
                )
    return capacity, [
        _point(name, load, rounds) for (load, name), rounds in measured.items()
    ]


def _capacity(
    servers: Mapping[str, Server],
    requests: Sequence[Request],
    seconds: float,
    steps: Steps,
) -> float:
    """Random arrivals a second of which the default settings answer every one.

    Raises:
        SystemExit: They do not do so at any rate that is worth a comparison.
    """
    for name, server in servers.items():
        steps.next(f"warming up: {name}")
        measured = closed_loop(
            server.address,
            requests,
            connections=CAPACITY_CONNECTIONS,
            duration_seconds=seconds if name == DEFAULT else WARM_UP_SECONDS,
            warm_up_seconds=WARM_UP_SECONDS,
        )
        if name == DEFAULT:
            closed = measured.per_second()
    steps.next("capacity")
    rate = closed
    while rate > LOWEST_SHARE * closed:
        measured = open_loop(
            servers[DEFAULT].address,
            requests,
            rate_per_second=rate,
            duration_seconds=seconds,
            timeout_seconds=TIMEOUT_SECONDS,
            seed=CAPACITY_SEED,
        )
        if not measured.failures:
            return rate
        rate *= RATE_STEP
    raise SystemExit(f"random arrivals fail even at {rate:,.0f} a second")


def _point(name: str, load: float, rounds: Sequence[Measurement]) -> Point:
    return Point(
        setting=name,
        load=load,
        latency_seconds=percentiles(rounds),
        failures=sum(one.failures for one in rounds),
        generator_share=processor_share(
            sum(one.cpu_seconds for one in rounds),
            sum(one.wall_seconds for one in rounds),
        ),
    )


def _table(model: str, capacity: float, points: Sequence[Point]) -> Any:
    table = new_table(
        f"{model}: latency under load, capacity {capacity:,.0f} answers/s",
        "load and setting",
        *(f"p{percentile}" for percentile in PERCENTILES),
        "failures",
        "generator",
    )
    for load in LOADS:
        for point in points:
            if point.load == load:
                table.add_row(
                    f"{load:.0%}  {point.setting}",
                    *(shown(s, "milliseconds") for s in point.latency_seconds.values()),
                    str(point.failures),
                    shown(point.generator_share, "percent"),
                )
        ratios = [shown(of_best(points, load, one), "ratio") for one in PERCENTILES]
        table.add_row(f"{load:.0%}  default over the best", *ratios, end_section=True)
    return table


def _plot(model: str, capacity: float, points: Sequence[Point]) -> Any:
    figure, every_axes = plt.subplots(
        1, len(PERCENTILES), figsize=(12, 4.5), layout="constrained", sharey=True
    )
    for axes, percentile in zip(every_axes, PERCENTILES, strict=True):
        for name in SETTINGS:
            latencies = [
                point.latency_seconds[percentile] * MILLISECONDS
                for point in points
                if point.setting == name
            ]
            axes.plot(
                [load * 100 for load in LOADS],
                latencies,
                marker="o",
                label=name,
                linewidth=3 if name == DEFAULT else 1.5,
            )
        axes.set(title=f"p{percentile}", xlabel="load, % of capacity", yscale="log")
        axes.grid(alpha=0.3, which="both")
    every_axes[0].set_ylabel("latency, ms")
    every_axes[0].legend()
    figure.suptitle(
        f"{model}: Poisson arrivals, capacity {capacity:,.0f} requests a second"
    )
    return figure


if __name__ == "__main__":
    cyclopts.run(main)
