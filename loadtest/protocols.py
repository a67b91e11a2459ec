"""What the same image costs over each protocol.

    python -m loadtest.protocols [--repository DIR] [--output DIR] [--seconds S]

The engine is the stub, so that what is left is the gateway's own work; see
`loadtest.overhead`. A 28×28 image, as JPEG, as pixels or as numbers in JSON, one
request under way and many, in rounds in which each subject has its turn; medians. What
counts are the ratios: each subject's time on the processor over that of the JPEG over
HTTP in the same round. An answer under load must be, byte for byte, what the same image
got when it was asked alone, and by then all protocols have told the same class. Beside
them, a bare method of the gRPC library, which reads bytes and answers bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean, median
from typing import Any, Final

import cyclopts
import matplotlib.pyplot as plt
import numpy as np

from loadtest.harness.client import Measurement
from loadtest.harness.gateway import gateway
from loadtest.harness.grpc_baseline import bare_grpc
from loadtest.harness.numbers import median_ratio
from loadtest.harness.processes import Server, ServerFailed
from loadtest.harness.report import (
    MILLISECONDS,
    Budget,
    Options,
    Report,
    finish,
    new_table,
    processor_share,
    progress,
    shown,
)
from loadtest.harness.workloads import digits, version_directory
from loadtest.overhead import MODEL
from loadtest.protocol_subjects import BARE_GRPC, RAW_JPEG, SUBJECTS

ALONE, MANY = 1, 16
CONCURRENCIES: Final = (ALONE, MANY)
WARM_UP_SECONDS: Final = 1
ALL: Final = (*SUBJECTS, BARE_GRPC)
# Of the JPEG over HTTP, with many under way.
BUDGETS: Final[Mapping[str, float]] = {
    "TF Serving REST, JSON": 2.5,
    "Open Inference REST, JSON": 2,
    "Open Inference REST, binary": 1.3,
    "TF Serving gRPC, pixels": 5.5,
    "Open Inference gRPC, pixels": 5.5,
    "Open Inference gRPC, JPEG": 5.5,
    "own gRPC, JPEG": 5.5,
    "own gRPC, JPEG, stream": 3.5,
}

Measured = Mapping[tuple[str, int], Sequence[Measurement]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Medians over the rounds, with so many requests under way."""

    protocol: str
    concurrency: int
    body_bytes: float
    cpu_seconds_per_request: float
    of_raw_jpeg: float
    answers_per_second: float
    p50_seconds: float
    p99_seconds: float
    failures: int
    generator_share: float


def main(options: Options = Options()) -> None:  # noqa: B008, it is immutable
    """Measure, print a table, and write the report."""
    version_directory(options.repository, MODEL)
    images = digits()
    body_bytes = {
        one.name: mean(len(one.body(image)) for image in images) for one in ALL
    }
    costs = costs_of(_measure(images, options), body_bytes)
    report = Report(
        name="protocols",
        settings={**asdict(options), "concurrencies": CONCURRENCIES},
        results=[asdict(cost) for cost in costs],
        budgets=_budgets(costs),
    )
    finish(report, _plot(costs), [_table(costs)], options.output)


def agreed_answers(server: Server, images: Sequence[bytes]) -> dict[str, list[bytes]]:
    """What each image gets over each protocol, when nothing else is under way.

    Raises:
        ServerFailed: The protocols do not tell the same classes.
    """
    answers = {one.name: one.answers(server, images) for one in SUBJECTS}
    classes = {one.name: [*map(one.best, answers[one.name])] for one in SUBJECTS}
    for name, found in classes.items():
        if found != classes[RAW_JPEG]:
            raise ServerFailed(f"{name}: {found}; {RAW_JPEG}: {classes[RAW_JPEG]}")
    return answers


def _measure(images: Sequence[bytes], options: Options) -> Measured:
    points = [(one, count) for count in CONCURRENCIES for one in ALL]
    measured: dict[tuple[str, int], list[Measurement]] = {
        (one.name, count): [] for one, count in points
    }
    with (
        gateway(options.repository, "--engine", "stub", model=MODEL) as server,
        bare_grpc() as bare,
        progress(options.rounds * len(points)) as steps,
    ):
        answers = agreed_answers(server, images)
        answers[BARE_GRPC.name] = BARE_GRPC.answers(bare, images)
        for _ in range(options.rounds):
            for one, count in points:
                steps.next(f"{one.name}, {count} at once")
                measured[one.name, count].append(
                    one.drive(
                        bare if one is BARE_GRPC else server,
                        images,
                        answers[one.name],
                        concurrency=count,
                        duration_seconds=options.point_seconds,
                        warm_up_seconds=WARM_UP_SECONDS,
                    )
                )
    return measured


def costs_of(measured: Measured, body_bytes: Mapping[str, float]) -> list[Cost]:
    """What the rounds come to; each ratio is of one round."""
    cpu = {
        point: [one.server_cpu_seconds_per_request for one in rounds]
        for point, rounds in measured.items()
    }
    return [
        Cost(
            protocol=name,
            concurrency=count,
            body_bytes=body_bytes[name],
            cpu_seconds_per_request=median(cpu[name, count]),
            of_raw_jpeg=median_ratio(cpu[name, count], cpu[RAW_JPEG, count]),
            answers_per_second=median(one.per_second() for one in rounds),
            p50_seconds=median(one.p50_seconds for one in rounds),
            p99_seconds=median(one.p99_seconds for one in rounds),
            failures=sum(one.failures for one in rounds),
            generator_share=median(
                processor_share(one.cpu_seconds, one.wall_seconds) for one in rounds
            ),
        )
        for (name, count), rounds in measured.items()
    ]


def _budgets(costs: Sequence[Cost]) -> list[Budget]:
    return [
        Budget(
            name=f"{cost.protocol}, CPU of {RAW_JPEG}",
            measured=cost.of_raw_jpeg,
            limit=BUDGETS[cost.protocol],
            bound="at most",
            format="ratio",
        )
        for cost in costs
        if cost.concurrency == MANY and cost.protocol in BUDGETS
    ] + [
        Budget(
            name="failures",
            measured=sum(cost.failures for cost in costs),
            limit=0,
            bound="at most",
            format="count",
        )
    ]


def _table(costs: Sequence[Cost]) -> Any:
    table = new_table(
        "one 28×28 image, stub engine; of: HTTP, JPEG; gen.: generator",
        "protocol",
        "at once",
        "bytes",
        "CPU",
        "of",
        "answers/s",
        "p50",
        "p99",
        "failures",
        "gen.",
    )
    for cost in costs:
        table.add_row(
            cost.protocol,
            str(cost.concurrency),
            shown(cost.body_bytes, "count"),
            shown(cost.cpu_seconds_per_request, "microseconds"),
            shown(cost.of_raw_jpeg, "ratio"),
            shown(cost.answers_per_second, "count"),
            shown(cost.p50_seconds, "milliseconds"),
            shown(cost.p99_seconds, "milliseconds"),
            str(cost.failures),
            shown(cost.generator_share, "percent"),
            end_section=cost is costs[len(ALL) - 1],
        )
    return table


def _plot(costs: Sequence[Cost]) -> Any:
    figure, (processor, latency) = plt.subplots(
        1, 2, figsize=(11, 5), sharey=True, layout="constrained"
    )
    names = [one.name for one in ALL]
    height = 0.8 / len(CONCURRENCIES)
    places = np.arange(len(names))
    for number, count in enumerate(CONCURRENCIES):
        chosen = [cost for cost in costs if cost.concurrency == count]
        at = places + number * height
        bars = processor.barh(
            at,
            [one.cpu_seconds_per_request * MILLISECONDS**2 for one in chosen],
            height=height,
            label=f"{count} at once",
        )
        labels = [f"{one.of_raw_jpeg:.2f}" for one in chosen]
        processor.bar_label(bars, labels, padding=3)
        p50, p99 = (
            np.array([getattr(one, field) for one in chosen]) * MILLISECONDS
            for field in ("p50_seconds", "p99_seconds")
        )
        latency.barh(at, p99, height=height, color=f"C{number}", alpha=0.35)
        latency.barh(at, p50, height=height, color=f"C{number}")
    processor.set_yticks(places + height * (len(CONCURRENCIES) - 1) / 2, names)
    processor.invert_yaxis()
    processor.margins(x=0.12)
    processor.set_xlabel("time on the processor per request, µs; of HTTP, JPEG")
    latency.set_xlabel("latency, ms: p50, and p99 (pale)")
    figure.suptitle("One 28×28 image over each protocol (stub engine)")
    processor.legend()
    return figure


if __name__ == "__main__":
    cyclopts.run(main)
