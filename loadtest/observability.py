"""What it costs to tell of requests: metrics, the access log, traces.

    python -m loadtest.observability [--repository DIR] [--output DIR] [--seconds S]

Gateways with the stub engine, which computes nothing: as it is by default, with other
settings, and one from which all notes of requests were taken out. Time on the processor
of the server's process over requests answered, with a 28×28 JPEG at 16 connections, in
rounds in which each has its turn. What counts is the difference to the gateway without
notes in the same round; medians.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from statistics import median
from threading import Thread
from typing import Any, Final

import cyclopts
import matplotlib.pyplot as plt

from loadtest.harness.client import Measurement
from loadtest.harness.gateway import PROGRAM, gateway
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
from loadtest.harness.workloads import requests_for, version_directory
from loadtest.overhead import CONNECTIONS, MODEL, drive

UNOBSERVED: Final = "without notes"
METRICS: Final = "metrics (default)"
BUDGET_SECONDS: Final = 25e-6


@dataclass(frozen=True, slots=True)
class Subject:
    """A way to run the gateway; `sampled` is the share of requests with a trace."""

    name: str
    flags: Sequence[str] = ()
    program: Sequence[str] = PROGRAM
    sampled: float = 0

    def environment(self, collector: str) -> Mapping[str, str]:
        """What OpenTelemetry goes by, given where its collector listens."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector,
            "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": str(self.sampled),
        }


SUBJECTS: Final = (
    Subject(UNOBSERVED, program=("-m", "loadtest.unobserved")),
    Subject(METRICS),
    Subject("access log, 1 %", ("--access-log-share", "0.01")),
    Subject("access log, text", ("--access-log-share", "1")),
    Subject("access log, json", ("--access-log-share", "1", "--log-format", "json")),
    Subject("traces, 1 %", ("--tracing",), sampled=0.01),
    Subject("traces, all", ("--tracing",), sampled=1),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Medians over the rounds; what is added is added to the gateway without notes."""

    subject: str
    cpu_seconds_per_request: float
    added_seconds: float
    answers_per_second: float
    failures: int


def main(options: Options = Options()) -> None:  # noqa: B008, it is immutable
    """Measure, print a table, and write the report."""
    version_directory(options.repository, MODEL)
    costs = costs_of(_measure(options))
    (metrics,) = [cost for cost in costs if cost.subject == METRICS]
    report = Report(
        name="observability",
        settings={**asdict(options), "connections": CONNECTIONS},
        results=[asdict(cost) for cost in costs],
        budgets=[
            Budget(
                name="metrics, CPU per request",
                measured=metrics.added_seconds,
                limit=BUDGET_SECONDS,
                bound="at most",
                format="microseconds",
            )
        ],
    )
    finish(report, _plot(costs), [_table(costs)], options.output)


def costs_of(measured: Mapping[str, Sequence[Measurement]]) -> list[Cost]:
    """What the rounds come to; each difference is of one round."""
    cpu = {
        name: [one.server_cpu_seconds_per_request for one in rounds]
        for name, rounds in measured.items()
    }
    return [
        Cost(
            subject=name,
            cpu_seconds_per_request=median(cpu[name]),
            added_seconds=median(
                one - base for one, base in zip(cpu[name], cpu[UNOBSERVED], strict=True)
            ),
            answers_per_second=median(one.per_second() for one in rounds),
            failures=sum(one.failures for one in rounds),
        )
        for name, rounds in measured.items()
    ]


def _measure(options: Options) -> dict[str, list[Measurement]]:
    measured: dict[str, list[Measurement]] = {one.name: [] for one in SUBJECTS}
    requests = requests_for(MODEL)
    with ExitStack() as stack:
        collector = stack.enter_context(_collector())
        servers = {
            one.name: stack.enter_context(
                gateway(
                    options.repository,
                    *("--engine", "stub", *one.flags),
                    model=MODEL,
                    program=one.program,
                    environment=one.environment(collector),
                )
            )
            for one in SUBJECTS
        }
        steps = stack.enter_context(progress(options.rounds * len(SUBJECTS)))
        for _ in range(options.rounds):
            for name, server in servers.items():
                steps.next(name)
                measured[name].append(drive(server, requests, options.point_seconds))
    return measured


@contextmanager
def _collector() -> Iterator[str]:
    """The address of a collector of traces, which takes all and keeps none."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Taking) as collector:
        Thread(target=collector.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{collector.server_port}"
        collector.shutdown()


class _Taking(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        """Take spans."""
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(HTTPStatus.OK)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002, its name
        """Say nothing."""


def _table(costs: Sequence[Cost]) -> Any:
    table = new_table(
        f"CPU per request, 28×28 JPEG, stub engine, {CONNECTIONS} connections",
        "gateway",
        "CPU",
        "added",
        "answers/s",
        "failures",
    )
    for cost in costs:
        table.add_row(
            cost.subject,
            shown(cost.cpu_seconds_per_request, "microseconds"),
            shown(cost.added_seconds, "microseconds"),
            shown(cost.answers_per_second, "count"),
            str(cost.failures),
        )
    return table


def _plot(costs: Sequence[Cost]) -> Any:
    microseconds = MILLISECONDS * MILLISECONDS
    names = [cost.subject for cost in costs]
    base = costs[0].cpu_seconds_per_request * microseconds
    added = [cost.added_seconds * microseconds for cost in costs]
    figure, axes = plt.subplots(figsize=(8, 3.5), layout="constrained")
    axes.barh(names, [base] * len(names), color="0.8", label=UNOBSERVED)
    bars = axes.barh(names, added, left=base, label="added")
    axes.bar_label(bars, [f"{one:+.0f}" for one in added], padding=3)
    limit = base + BUDGET_SECONDS * microseconds
    axes.axvline(limit, color="C3", linestyle="--", label="budget of the metrics")
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("time on the processor per request, µs")
    axes.set_title("What it costs to tell of requests (stub engine, 28×28 JPEG)")
    axes.legend()
    return figure


if __name__ == "__main__":
    cyclopts.run(main)
