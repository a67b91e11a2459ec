"""Which HTTP server costs least: the same bare ASGI application under each.

    pip install --target PACKAGES granian hypercorn
    python -m loadtest.http_servers [--packages PACKAGES] [--output DIR] [--seconds S]

`harness.baselines.asgi` reads the body, a 28×28 JPEG, and answers a fixed JSON. Each
server runs it in one process with one event loop, uvloop's where it has a choice; in
each round each has its turn; medians. Time on the processor is that of the server and
its children over the answers.
"""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from statistics import median
from typing import Any, Final

import cyclopts
import matplotlib.pyplot as plt

from loadtest.harness.client import Measurement, closed_loop
from loadtest.harness.image_requests import raw
from loadtest.harness.ports import free_port
from loadtest.harness.processes import Server, announced, server
from loadtest.harness.report import (
    MILLISECONDS,
    Options,
    Report,
    finish,
    new_table,
    progress,
    shown,
)
from loadtest.harness.workloads import digits

APPLICATION: Final = "loadtest.harness.baselines:asgi"
CONNECTIONS: Final = (16, 64)
WARM_UP_SECONDS: Final = 1
ANNOUNCEMENT: Final = re.compile(r"(?:unning on|Listening at:) (http://\S+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpServer:
    """A server's module, and what follows it on the command line."""

    module: str
    arguments: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Medians over the rounds, at a number of connections."""

    server: str
    connections: int
    cpu_seconds_per_request: float
    answers_per_second: float
    p50_seconds: float
    p99_seconds: float
    failures: int


def _uvicorn(http: str) -> HttpServer:
    arguments = ("--loop=uvloop", f"--http={http}", "--no-access-log", "--lifespan=off")
    return HttpServer(
        module="uvicorn", arguments=("--port={port}", *arguments, APPLICATION)
    )


def _granian(runtime: str) -> HttpServer:
    arguments = ("--interface=asgi", "--workers=1", "--loop=uvloop", "--no-ws")
    return HttpServer(
        module="granian",
        arguments=(
            *("--host=127.0.0.1", "--port={port}", *arguments),
            *(f"--runtime-mode={runtime}", "--runtime-threads=1", APPLICATION),
        ),
    )


SERVERS: Final[Mapping[str, HttpServer]] = {
    "uvicorn, httptools": _uvicorn("httptools"),
    "uvicorn, h11": _uvicorn("h11"),
    "granian, one thread": _granian("st"),
    "granian, threads": _granian("mt"),
    "hypercorn": HttpServer(
        module="hypercorn",
        arguments=(
            *("--bind=127.0.0.1:{port}", "--workers=1", "--worker-class=uvloop"),
            APPLICATION,
        ),
    ),
}


def main(
    options: Options = Options(),  # noqa: B008, it is immutable
    *,
    packages: Path | None = None,
) -> None:
    """Measure, print a table, and write the report.

    Args:
        options: How to run; no models are needed.
        packages: Folder of packages besides those of this interpreter; a server that
            neither has is left out.
    """
    path = [str(packages.absolute())] if packages else []
    found = {
        name: one
        for name, one in SERVERS.items()
        if PathFinder.find_spec(one.module, [*path, *sys.path])
    }
    costs = _costs(_measure(found, path, options))
    skipped = [name for name in SERVERS if name not in found]
    report = Report(
        name="http_servers",
        settings={**asdict(options), "skipped": skipped},
        results=[asdict(cost) for cost in costs],
        budgets=[],
    )
    finish(report, _plot(costs), [_table(costs, skipped)], options.output)


def _measure(
    servers: Mapping[str, HttpServer], path: Sequence[str], options: Options
) -> dict[tuple[str, int], list[Measurement]]:
    measured: dict[tuple[str, int], list[Measurement]] = {
        (name, count): [] for name in servers for count in CONNECTIONS
    }
    requests = [raw("/")(image) for image in digits()]
    with ExitStack() as stack:
        running = {
            name: stack.enter_context(_running(one, path))
            for name, one in servers.items()
        }
        steps = stack.enter_context(progress(options.rounds * len(measured)))
        for _ in range(options.rounds):
            for (name, count), rounds in measured.items():
                steps.next(f"{name}, {count} connections")
                rounds.append(
                    closed_loop(
                        running[name].address,
                        requests,
                        connections=count,
                        duration_seconds=options.point_seconds,
                        warm_up_seconds=WARM_UP_SECONDS,
                        server_pid=running[name].pid,
                    )
                )
    return measured


def _running(one: HttpServer, path: Sequence[str]) -> AbstractContextManager[Server]:
    port = free_port()
    arguments = [part.format(port=port) for part in one.arguments]
    return server(
        [sys.executable, "-m", one.module, *arguments],
        ready=announced(ANNOUNCEMENT),
        environment={"PYTHONPATH": os.pathsep.join([*path, *filter(None, sys.path)])},
    )


def _costs(measured: Mapping[tuple[str, int], Sequence[Measurement]]) -> list[Cost]:
    return [
        Cost(
            server=name,
            connections=count,
            cpu_seconds_per_request=median(
                one.server_cpu_seconds_per_request for one in rounds
            ),
            answers_per_second=median(one.per_second() for one in rounds),
            p50_seconds=median(one.p50_seconds for one in rounds),
            p99_seconds=median(one.p99_seconds for one in rounds),
            failures=sum(one.failures for one in rounds),
        )
        for (name, count), rounds in measured.items()
    ]


def _table(costs: Sequence[Cost], skipped: Sequence[str]) -> Any:
    table = new_table(
        "bare ASGI application, 28×28 JPEG in, fixed JSON out",
        "server",
        "connections",
        "CPU",
        "answers/s",
        "p50",
        "p99",
        "failures",
    )
    for cost in costs:
        table.add_row(
            cost.server,
            str(cost.connections),
            shown(cost.cpu_seconds_per_request, "microseconds"),
            shown(cost.answers_per_second, "count"),
            shown(cost.p50_seconds, "milliseconds"),
            shown(cost.p99_seconds, "milliseconds"),
            str(cost.failures),
        )
    if skipped:
        table.caption = f"not installed: {', '.join(skipped)}"
    return table


def _plot(costs: Sequence[Cost]) -> Any:
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    names = list(dict.fromkeys(cost.server for cost in costs))
    height = 0.8 / len(CONNECTIONS)
    for number, count in enumerate(CONNECTIONS):
        bars = axes.barh(
            [place + number * height for place in range(len(names))],
            [
                cost.cpu_seconds_per_request * MILLISECONDS * MILLISECONDS
                for cost in costs
                if cost.connections == count
            ],
            height=height,
            label=f"{count} connections",
        )
        axes.bar_label(bars, fmt="%.0f", padding=3)
    middle = height * (len(CONNECTIONS) - 1) / 2
    axes.set_yticks([place + middle for place in range(len(names))], names)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("time on the processor per request, µs")
    axes.set_title("What an HTTP server costs (bare ASGI application)")
    axes.legend()
    return figure


if __name__ == "__main__":
    cyclopts.run(main)
