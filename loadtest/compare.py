"""The gateway beside other servers, with the same model and the same load.

    python -m loadtest.peers.install ENVIRONMENTS
    python -m loadtest.compare --environments ENVIRONMENTS [--peers NAME,…]

28×28 JPEGs of digits, a closed loop of 1 and of 64 connections. Each server has the
machine for itself and the load generator, once in every round; medians over the rounds.
An answer counts only if its first label is that which the same image gets when it is
sent alone.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import cyclopts
import httpx
import matplotlib.pyplot as plt

from loadtest.client import Measurement, Request, closed_loop
from loadtest.gateway import gateway
from loadtest.overhead import raw
from loadtest.peers.catalogue import PEERS, Peer, chosen, interpreter
from loadtest.peers.model import DIRECTORY_VARIABLE, PORT_VARIABLE
from loadtest.ports import free_port
from loadtest.processes import Server, server
from loadtest.report import (
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
from loadtest.workloads import (
    FIRST_LABEL,
    digits,
    post,
    version_directory,
    with_expected_answers,
)

MODEL: Final = "inception"
OURS: Final = "blockserve"
MANY: Final = 64
CONNECTIONS: Final = (1, MANY)
WARM_UP_SECONDS: Final = 2
BUDGET_THROUGHPUT: Final = 1.7
BUDGET_P50: Final = 0.4
CHECKOUT: Final = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A server that is compared."""

    title: str
    run: Callable[[], AbstractContextManager[Server]]
    requests: Sequence[Request]
    answer: re.Pattern[bytes] = FIRST_LABEL


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Medians over the rounds, at a number of connections."""

    title: str
    connections: int
    answers_per_second: float
    p50_seconds: float
    p99_seconds: float
    failures: int
    server_share: float
    generator_share: float


def main(
    options: Options = Options(),  # noqa: B008, it is immutable
    *,
    environments: Path,
    peers: str = ",".join(PEERS),
) -> None:
    """Measure, print a table, and write the report.

    Args:
        options: How to run.
        environments: Where `loadtest.peers.install` has put them; a peer that is not
            there is left out.
        peers: Names, separated by commas.
    """
    names = chosen(peers)
    installed = [one for one in names if interpreter(environments, one).exists()]
    if not installed:
        raise SystemExit(f"{environments} has no environment of {', '.join(names)}")
    directory = version_directory(options.repository, MODEL)
    subjects = [
        Subject(
            title=OURS,
            run=lambda: gateway(options.repository, model=MODEL),
            requests=_requests(raw(f"/models/{MODEL}/classify")),
        ),
        *(_subject(PEERS[one], environments, one, directory) for one in installed),
    ]
    outcomes = _outcomes(_measure(subjects, options))
    skipped = [PEERS[one].title for one in names if one not in installed]
    report = Report(
        name="compare",
        settings={**asdict(options), "skipped": skipped},
        results=[asdict(one) for one in outcomes],
        budgets=budgets(outcomes),
    )
    finish(report, _plot(outcomes), [_table(outcomes, skipped)], options.output)


def budgets(outcomes: Sequence[Outcome]) -> list[Budget]:
    """Our throughput and our median latency, against the best rival's."""
    floors = {peer.title for peer in PEERS.values() if peer.is_floor}
    by_connections = {
        count: {
            one.title: one
            for one in outcomes
            if one.connections == count and one.title not in floors
        }
        for count in CONNECTIONS
    }
    ours_many = by_connections[MANY].pop(OURS)
    ours_alone = by_connections[1].pop(OURS)
    most = max(one.answers_per_second for one in by_connections[MANY].values())
    fastest = min(one.p50_seconds for one in by_connections[1].values())
    return [
        Budget(
            name=f"throughput at {MANY} connections, of the best other",
            measured=ours_many.answers_per_second / most,
            limit=BUDGET_THROUGHPUT,
            bound="at least",
            format="ratio",
        ),
        Budget(
            name="p50 at one connection, of the best other",
            measured=ours_alone.p50_seconds / fastest,
            limit=BUDGET_P50,
            bound="at most",
            format="ratio",
        ),
    ]


def _subject(peer: Peer, environments: Path, name: str, directory: Path) -> Subject:
    requests = _requests(peer.request)
    python = interpreter(environments, name)
    return Subject(
        title=peer.title,
        run=lambda: _running(peer, python, directory, requests[0]),
        requests=requests,
        answer=peer.answer,
    )


def _requests(make: Callable[[bytes], Request]) -> list[Request]:
    return [make(image) for image in digits()]


def _measure(
    subjects: Sequence[Subject], options: Options
) -> dict[tuple[str, int], list[Measurement]]:
    measured: dict[tuple[str, int], list[Measurement]] = {
        (one.title, count): [] for count in CONNECTIONS for one in subjects
    }
    with progress(options.rounds * len(subjects)) as steps:
        for _ in range(options.rounds):
            for subject in subjects:
                steps.next(subject.title)
                with subject.run() as running:
                    requests = with_expected_answers(
                        running.address, subject.requests, answer=subject.answer
                    )
                    for count in CONNECTIONS:
                        measured[subject.title, count].append(
                            closed_loop(
                                running.address,
                                requests,
                                connections=count,
                                duration_seconds=options.point_seconds,
                                warm_up_seconds=WARM_UP_SECONDS,
                                server_pid=running.pid,
                            )
                        )
    return measured


def _running(
    peer: Peer, python: Path, directory: Path, request: Request
) -> AbstractContextManager[Server]:
    """Run a peer until the block ends; it has answered a request."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"

    def ready(_: str) -> str | None:
        with suppress(httpx.TransportError):
            if post(address, request).is_success:
                return address
        return None

    return server(
        [str(python), "-m", *(part.format(port=port) for part in peer.command)],
        ready=ready,
        environment={
            "PYTHONPATH": str(CHECKOUT),
            DIRECTORY_VARIABLE: str(directory.absolute()),
            PORT_VARIABLE: str(port),
        },
        directory=CHECKOUT,
    )


def _outcomes(
    measured: Mapping[tuple[str, int], Sequence[Measurement]],
) -> list[Outcome]:
    return [
        Outcome(
            title=title,
            connections=count,
            answers_per_second=median(one.per_second() for one in rounds),
            p50_seconds=median(one.p50_seconds for one in rounds),
            p99_seconds=median(one.p99_seconds for one in rounds),
            failures=sum(one.failures for one in rounds),
            server_share=median(
                processor_share(one.server_cpu_seconds, one.wall_seconds)
                for one in rounds
            ),
            generator_share=median(
                processor_share(one.cpu_seconds, one.wall_seconds) for one in rounds
            ),
        )
        for (title, count), rounds in measured.items()
    ]


def _table(outcomes: Sequence[Outcome], skipped: Sequence[str]) -> Any:
    table = new_table(
        f"{MODEL}, 28×28 JPEG in, labels out",
        "server",
        "connections",
        "answers/s",
        "p50",
        "p99",
        "failures",
        "server",
        "generator",
    )
    for one in outcomes:
        table.add_row(
            one.title,
            str(one.connections),
            shown(one.answers_per_second, "count"),
            shown(one.p50_seconds, "milliseconds"),
            shown(one.p99_seconds, "milliseconds"),
            str(one.failures),
            shown(one.server_share, "percent"),
            shown(one.generator_share, "percent"),
        )
    if skipped:
        table.caption = f"not installed: {', '.join(skipped)}"
    return table


def _plot(outcomes: Sequence[Outcome]) -> Any:
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 4), layout="constrained", sharey=True
    )
    many = [one for one in outcomes if one.connections == MANY]
    alone = [one for one in outcomes if one.connections == 1]
    titles = [one.title for one in many]
    colours = ["C0" if title == OURS else "0.7" for title in titles]
    rates = left.barh(titles, [one.answers_per_second for one in many], color=colours)
    left.bar_label(rates, fmt="%.0f", padding=3)
    left.set_xlabel(f"answers per second at {MANY} connections")
    times = [one.p50_seconds * MILLISECONDS for one in alone]
    right.bar_label(right.barh(titles, times, color=colours), fmt="%.1f", padding=3)
    right.set_xlabel("median latency at one connection, ms")
    left.invert_yaxis()
    for axes in (left, right):
        axes.margins(x=0.12)
    figure.suptitle(f"{MODEL}: 28×28 JPEG in, labels out")
    return figure


if __name__ == "__main__":
    cyclopts.run(main)
