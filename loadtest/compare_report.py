"""What `loadtest.compare` has measured, as numbers, tables and a plot."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Final

import matplotlib.pyplot as plt

from loadtest.harness.client import OK, Measurement
from loadtest.harness.report import (
    MILLISECONDS,
    Budget,
    new_table,
    processor_share,
    shown,
)
from loadtest.peers.catalogue import PEERS

MODEL: Final = "inception"
OURS: Final = "blockserve"
MANY: Final = 64
CONNECTIONS: Final = (1, MANY)
RATES_PER_SECOND: Final = (100, 300)
BUDGET_THROUGHPUT: Final = 1.7
BUDGET_P50: Final = 0.4


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A configuration in the sweep, at a number of connections."""

    title: str
    variant: str
    connections: int
    answers_per_second: float
    p50_seconds: float
    is_fastest: bool


def trials_of(
    title: str, connections: int, measured: Mapping[str, Sequence[Measurement]]
) -> list[Trial]:
    """Medians, so that one lucky round makes no configuration the fastest.

    With one connection the fastest is that with the shortest median latency, with many
    that with the most answers.

    Args:
        title: The server's.
        connections: How many there were.
        measured: Closed loops by configurations, one for each round.
    """
    trials = [
        Trial(
            title=title,
            variant=variant,
            connections=connections,
            answers_per_second=median(one.per_second() for one in several),
            p50_seconds=median(one.p50_seconds for one in several),
            is_fastest=False,
        )
        for variant, several in measured.items()
    ]
    if connections == MANY:
        fastest = max(trials, key=lambda one: one.answers_per_second)
    else:
        fastest = min(trials, key=lambda one: one.p50_seconds)
    return [replace(one, is_fastest=one is fastest) for one in trials]


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """A server's turn in a round.

    Attributes:
        variants: Its configurations, by the number of connections.
        closed: By the number of connections.
        paced: By the rate in a second, in the configuration for many connections.
        ready_seconds: From its start to its first answer, in the same.
        memory_bytes: Of all its processes, after that, in the same.
    """

    title: str
    variants: Mapping[int, str]
    ready_seconds: float
    closed: Mapping[int, Measurement]
    paced: Mapping[int, Measurement]
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Medians over the rounds, at a number of connections."""

    title: str
    variant: str
    connections: int
    answers_per_second: float
    p50_seconds: float
    p99_seconds: float
    failures: int
    server_share: float
    generator_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PacedOutcome:
    """Medians over the rounds, at a rate; latencies are those of good answers."""

    title: str
    rate_per_second: int
    p50_seconds: float
    p99_seconds: float
    answered_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Medians over the rounds: from the start to the first answer, and memory."""

    title: str
    variant: str
    ready_seconds: float
    memory_bytes: float


def closed_outcomes(rounds: Sequence[Round]) -> list[Outcome]:
    """The closed loops of all servers."""
    return [
        _closed_outcome(title, count, several)
        for count in CONNECTIONS
        for title, several in _by_title(rounds).items()
    ]


def paced_outcomes(rounds: Sequence[Round]) -> list[PacedOutcome]:
    """The open loops of all servers."""
    return [
        PacedOutcome(
            title=title,
            rate_per_second=rate,
            p50_seconds=median(one.paced[rate].p50_seconds for one in several),
            p99_seconds=median(one.paced[rate].p99_seconds for one in several),
            answered_share=median(
                one.paced[rate].count(OK) / len(one.paced[rate].statuses)
                for one in several
            ),
        )
        for rate in RATES_PER_SECOND
        for title, several in _by_title(rounds).items()
    ]


def footprints(rounds: Sequence[Round]) -> list[Footprint]:
    """How long each takes to start, and what it holds."""
    return [
        Footprint(
            title=title,
            variant=several[0].variants[MANY],
            ready_seconds=median(one.ready_seconds for one in several),
            memory_bytes=median(one.memory_bytes for one in several),
        )
        for title, several in _by_title(rounds).items()
    ]


def budgets(outcomes: Sequence[Outcome]) -> list[Budget]:
    """Our throughput and our median latency, against the best other's.

    None where only the floor of the latency is compared with.
    """
    floors = {peer.title for peer in PEERS.values() if peer.is_floor}
    alone, many = (
        {one.title: one for one in outcomes if one.connections == count}
        for count in CONNECTIONS
    )
    ours_alone, ours_many = alone.pop(OURS), many.pop(OURS)
    rivals = [one for one in alone.values() if one.title not in floors]
    if not rivals:
        return []
    most = max(one.answers_per_second for one in many.values())
    fastest = min(one.p50_seconds for one in rivals)
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


def tables(
    trials: Sequence[Trial],
    closed: Sequence[Outcome],
    paced: Sequence[PacedOutcome],
    sizes: Sequence[Footprint],
    skipped: Sequence[str],
) -> list[Any]:
    """The sweep, the two kinds of load, and what each server takes."""
    last = _size_table(sizes)
    if skipped:
        last.caption = f"not installed: {', '.join(skipped)}"
    return [_sweep_table(trials), _closed_table(closed), _paced_table(paced), last]


def plot(closed: Sequence[Outcome], paced: Sequence[PacedOutcome]) -> Any:
    """Rate, latency alone, and latency at the highest rate, side by side."""
    figure, (rates, alone, at_rate) = plt.subplots(
        1, 3, figsize=(13, 4), layout="constrained", sharey=True
    )
    highest = max(RATES_PER_SECOND)
    many = [one for one in closed if one.connections == MANY]
    titles = [one.title for one in many]
    colours = ["C0" if title == OURS else "0.7" for title in titles]
    for axes, values, form, label in (
        (
            rates,
            [one.answers_per_second for one in many],
            "%.0f",
            f"answers per second at {MANY} connections",
        ),
        (
            alone,
            [one.p50_seconds * MILLISECONDS for one in closed if one.connections == 1],
            "%.1f",
            "median latency at one connection, ms",
        ),
        (
            at_rate,
            [
                one.p99_seconds * MILLISECONDS
                for one in paced
                if one.rate_per_second == highest
            ],
            "%.0f",
            f"p99 of good answers at {highest} requests/s, ms",
        ),
    ):
        axes.bar_label(axes.barh(titles, values, color=colours), fmt=form, padding=3)
        axes.set_xlabel(label)
        axes.margins(x=0.15)
    rates.invert_yaxis()
    figure.suptitle(f"{MODEL}: 28×28 JPEG in, labels out")
    return figure


def _by_title(rounds: Sequence[Round]) -> Mapping[str, Sequence[Round]]:
    found: defaultdict[str, list[Round]] = defaultdict(list)
    for one in rounds:
        found[one.title].append(one)
    return found


def _closed_outcome(title: str, count: int, rounds: Sequence[Round]) -> Outcome:
    loops = [one.closed[count] for one in rounds]
    return Outcome(
        title=title,
        variant=rounds[0].variants[count],
        connections=count,
        answers_per_second=median(one.per_second() for one in loops),
        p50_seconds=median(one.p50_seconds for one in loops),
        p99_seconds=median(one.p99_seconds for one in loops),
        failures=sum(one.failures for one in loops),
        server_share=median(
            processor_share(one.server_cpu_seconds, one.wall_seconds) for one in loops
        ),
        generator_share=median(
            processor_share(one.cpu_seconds, one.wall_seconds) for one in loops
        ),
    )


def _sweep_table(trials: Sequence[Trial]) -> Any:
    table = new_table(
        "sweep", "server", "configuration", "connections", "answers/s", "p50"
    )
    for one in trials:
        table.add_row(
            one.title,
            f"[bold]{one.variant}[/bold]" if one.is_fastest else one.variant,
            str(one.connections),
            shown(one.answers_per_second, "count"),
            shown(one.p50_seconds, "milliseconds"),
        )
    return table


def _closed_table(outcomes: Sequence[Outcome]) -> Any:
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
    return table


def _paced_table(outcomes: Sequence[PacedOutcome]) -> Any:
    table = new_table(
        "at fixed rates", "server", "requests/s", "p50", "p99", "answered"
    )
    for one in outcomes:
        table.add_row(
            one.title,
            str(one.rate_per_second),
            shown(one.p50_seconds, "milliseconds"),
            shown(one.p99_seconds, "milliseconds"),
            shown(one.answered_share, "percent"),
        )
    return table


def _size_table(sizes: Sequence[Footprint]) -> Any:
    table = new_table("what each takes", "server", "configuration", "start", "memory")
    for one in sizes:
        table.add_row(
            one.title,
            one.variant,
            shown(one.ready_seconds, "seconds"),
            shown(one.memory_bytes, "megabytes"),
        )
    return table
