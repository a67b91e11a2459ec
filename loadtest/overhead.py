"""What a request costs the gateway, in time on the processor.

    python -m loadtest.overhead [--repository DIR] [--output DIR] [--seconds S]

The engine is the stub, so that what is left is the gateway's own work: HTTP, decoding a
28×28 JPEG, batching, the top five, JSON, metrics. Time on the processor of the server's
process over requests answered, at 16 connections, in rounds in which each subject has
its turn; medians. Beside it, the same HTTP server with a bare FastAPI route and with a
bare ASGI application that read the body and answer a fixed JSON of the same size.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Final

import cyclopts
import matplotlib.pyplot as plt

from loadtest.harness.baselines import baseline
from loadtest.harness.client import Measurement, Request, closed_loop
from loadtest.harness.gateway import gateway
from loadtest.harness.image_requests import MakeRequest, base64_json, multipart, raw
from loadtest.harness.processes import Server
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

MODEL: Final = "inception"
CONNECTIONS: Final = 16
WARM_UP_SECONDS: Final = 1
BUDGET_SECONDS: Final = 200e-6
BARE_FASTAPI: Final = "bare FastAPI route"
BARE_ASGI: Final = "bare ASGI application"
RAW_IMAGE: Final = "HTTP, raw image"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A server, and how an image is sent to it."""

    name: str
    server: str
    request: MakeRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Medians over the rounds."""

    subject: str
    cpu_seconds_per_request: float
    of_bare_fastapi: float
    answers_per_second: float
    p50_seconds: float
    failures: int
    generator_share: float


CLASSIFY: Final = f"/models/{MODEL}/classify"
SUBJECTS: Final = (
    Subject(name=RAW_IMAGE, server="gateway", request=raw(CLASSIFY)),
    Subject(name="HTTP, multipart form", server="gateway", request=multipart(CLASSIFY)),
    Subject(
        name="HTTP, base64 in JSON", server="gateway", request=base64_json(CLASSIFY)
    ),
    Subject(name=BARE_FASTAPI, server="fastapi", request=raw("/classify")),
    Subject(name=BARE_ASGI, server="asgi", request=raw("/classify")),
)


def main(options: Options = Options()) -> None:  # noqa: B008, it is immutable
    """Measure, print a table, and write the report."""
    version_directory(options.repository, MODEL)
    costs = _costs(_measure(options))
    by_name = {cost.subject: cost for cost in costs}
    budget = Budget(
        name="CPU per request, raw image",
        measured=by_name[RAW_IMAGE].cpu_seconds_per_request,
        limit=BUDGET_SECONDS,
        bound="at most",
        format="microseconds",
    )
    report = Report(
        name="overhead",
        settings={**asdict(options), "connections": CONNECTIONS},
        results=[asdict(cost) for cost in costs],
        budgets=[budget],
    )
    finish(report, _plot(costs), [_table(costs)], options.output)


def _measure(options: Options) -> dict[str, list[Measurement]]:
    measured: dict[str, list[Measurement]] = {one.name: [] for one in SUBJECTS}
    images = digits()
    with ExitStack() as stack:
        servers = {
            "gateway": stack.enter_context(
                gateway(options.repository, "--engine", "stub", model=MODEL)
            ),
            "fastapi": stack.enter_context(baseline("fastapi")),
            "asgi": stack.enter_context(baseline("asgi")),
        }
        steps = stack.enter_context(progress(options.rounds * len(SUBJECTS)))
        for _ in range(options.rounds):
            for subject in SUBJECTS:
                steps.next(subject.name)
                measured[subject.name].append(
                    drive(
                        servers[subject.server],
                        [subject.request(image) for image in images],
                        options.point_seconds,
                    )
                )
    return measured


def drive(server: Server, requests: Sequence[Request], seconds: float) -> Measurement:
    """Keep the connections busy for a time; what each request costs the server."""
    return closed_loop(
        server.address,
        requests,
        connections=CONNECTIONS,
        duration_seconds=seconds,
        warm_up_seconds=WARM_UP_SECONDS,
        server_pid=server.pid,
    )


def _costs(measured: dict[str, list[Measurement]]) -> list[Cost]:
    cpu = {
        name: median(one.server_cpu_seconds_per_request for one in rounds)
        for name, rounds in measured.items()
    }
    return [
        Cost(
            subject=name,
            cpu_seconds_per_request=cpu[name],
            of_bare_fastapi=cpu[name] / cpu[BARE_FASTAPI],
            answers_per_second=median(one.per_second() for one in rounds),
            p50_seconds=median(one.p50_seconds for one in rounds),
            failures=sum(one.failures for one in rounds),
            generator_share=median(
                processor_share(one.cpu_seconds, one.wall_seconds) for one in rounds
            ),
        )
        for name, rounds in measured.items()
    ]


def _table(costs: Sequence[Cost]) -> Any:
    table = new_table(
        f"CPU per request, 28×28 JPEG, stub engine, {CONNECTIONS} connections",
        "subject",
        "CPU",
        "of bare FastAPI",
        "answers/s",
        "p50",
        "failures",
        "generator",
    )
    for cost in costs:
        table.add_row(
            cost.subject,
            shown(cost.cpu_seconds_per_request, "microseconds"),
            shown(cost.of_bare_fastapi, "ratio"),
            shown(cost.answers_per_second, "count"),
            shown(cost.p50_seconds, "milliseconds"),
            str(cost.failures),
            shown(cost.generator_share, "percent"),
        )
    return table


def _plot(costs: Sequence[Cost]) -> Any:
    microseconds = MILLISECONDS * MILLISECONDS
    names = [cost.subject for cost in costs]
    values = [cost.cpu_seconds_per_request * microseconds for cost in costs]
    colours = ["0.7" if name in {BARE_FASTAPI, BARE_ASGI} else "C0" for name in names]
    figure, axes = plt.subplots(figsize=(8, 3.5), layout="constrained")
    axes.bar_label(axes.barh(names, values, color=colours), fmt="%.0f", padding=3)
    limit = BUDGET_SECONDS * microseconds
    axes.axvline(limit, color="C3", linestyle="--", label=f"budget {limit:.0f} µs")
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("time on the processor per request, µs")
    axes.set_title("What a request costs the gateway (stub engine, 28×28 JPEG)")
    axes.legend()
    return figure


if __name__ == "__main__":
    cyclopts.run(main)
