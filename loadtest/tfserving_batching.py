"""In front of TensorFlow Serving: who makes the batches, and how many calls at a time.

    python -m loadtest.tfserving_batching [--tfserving HOST:PORT] [--output DIR] …

JPEGs of digits go into a gateway at 1, 16 and 64 connections, and their pixels on to
one replica: in batches that the gateway makes, at several numbers of calls under way
(`tfserving_calls_per_replica`), or each in a call of its own, which leaves the batches
to the server. All gateways are up at the same time and have their turn in each round;
medians, and ratios to the defaults in the same round.

Without an address the replica is a second blockserve with its embedded engine, which
makes batches of its own. What calls cost on both sides is real then; how TensorFlow
Serving makes batches, and what a GPU gains from them, is not to be seen. Given the
address of a real one that serves the same model (`deploy/tfserving.sh`), it is.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from statistics import median
from typing import Annotated, Any, Final

import cyclopts
import httpx
import matplotlib.pyplot as plt
from prometheus_client.parser import text_string_to_metric_families

from loadtest.harness.client import Measurement, Request, closed_loop
from loadtest.harness.gateway import gateway, grpc_address
from loadtest.harness.numbers import median_ratio
from loadtest.harness.processes import Server
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
from loadtest.harness.workloads import (
    requests_for,
    version_directory,
    with_expected_answers,
)
from service.settings import Settings

MODEL: Final = "inception"
CONNECTIONS: Final = (1, 16, 64)
WARM_UP_SECONDS: Final = 1.0
BATCH_SIZE: Final = "blockserve_batch_size_rows"


@dataclass(frozen=True, slots=True)
class Subject:
    """Who makes the batches, and how many calls are under way at most."""

    batching: str
    calls: int

    @property
    def name(self) -> str:
        """As tables and plots have it."""
        return f"{self.batching}, {self.calls} calls"

    def flags(self, replica: str) -> Sequence[str]:
        """Of a gateway in front of a replica."""
        return (
            *("--engine", "tfserving", "--tfserving", replica),
            *("--batching", self.batching),
            *("--tfserving-calls-per-replica", str(self.calls)),
        )


DEFAULTS: Final = Subject(
    Settings.model_fields["batching"].default,
    Settings.model_fields["tfserving_calls_per_replica"].default,
)
SUBJECTS: Final = (
    *(Subject("gateway", calls) for calls in (1, 2, 4, 8, 16)),
    *(Subject("server", calls) for calls in (4, 16, 64)),
)


@dataclass(frozen=True, slots=True)
class Turn:
    """A subject's turn in a round; rows are those of an average call."""

    measurement: Measurement
    rows_per_call: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Medians over the rounds, at a number of connections."""

    batching: str
    calls: int
    connections: int
    answers_per_second: float
    of_defaults: float
    p50_seconds: float
    p99_seconds: float
    rows_per_call: float
    cpu_seconds_per_request: float
    failures: int


Turns = Mapping[tuple[Subject, int], Sequence[Turn]]


def main(
    options: Options = Options(),  # noqa: B008, it is immutable
    *,
    tfserving: Annotated[str | None, cyclopts.Parameter(show_default=False)] = None,
) -> None:
    """Measure, print a table, and write the report.

    Args:
        options: How it runs.
        tfserving: Address of a TensorFlow Serving that serves the model; a second
            blockserve takes its place if not given.
    """
    version_directory(options.repository, MODEL)
    outcomes = outcomes_of(_measure(options, tfserving))
    report = Report(
        name="tfserving_batching",
        settings={**asdict(options), "replica": tfserving or "blockserve"},
        results=[asdict(one) for one in outcomes],
        budgets=[
            Budget(
                name="failures",
                measured=sum(one.failures for one in outcomes),
                limit=0,
                bound="at most",
                format="count",
            )
        ],
    )
    finish(report, _plot(outcomes), [_table(outcomes)], options.output)


def outcomes_of(turns: Turns) -> list[Outcome]:
    """What the rounds come to; each ratio is of one round."""
    outcomes = []
    for (subject, connections), rounds in turns.items():
        measured = [turn.measurement for turn in rounds]
        base = [turn.measurement for turn in turns[DEFAULTS, connections]]
        outcomes.append(
            Outcome(
                batching=subject.batching,
                calls=subject.calls,
                connections=connections,
                answers_per_second=median(one.per_second() for one in measured),
                of_defaults=median_ratio(
                    [one.per_second() for one in measured],
                    [one.per_second() for one in base],
                ),
                p50_seconds=median(one.p50_seconds for one in measured),
                p99_seconds=median(one.p99_seconds for one in measured),
                rows_per_call=median(turn.rows_per_call for turn in rounds),
                cpu_seconds_per_request=median(
                    one.server_cpu_seconds_per_request for one in measured
                ),
                failures=sum(one.failures for one in measured),
            )
        )
    return outcomes


def rows_and_calls(exposition: str) -> tuple[float, float]:
    """How many rows the engine has run, in how many calls."""
    samples = {
        sample.name: sample.value
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
        if family.name == BATCH_SIZE
    }
    return samples.get(f"{BATCH_SIZE}_sum", 0), samples.get(f"{BATCH_SIZE}_count", 0)


@contextmanager
def _gateways(options: Options, replica: str | None) -> Iterator[dict[Subject, Server]]:
    """One for each subject, all in front of the same replica."""
    with ExitStack() as stack:
        if replica is None:
            standin = stack.enter_context(gateway(options.repository, model=MODEL))
            replica = grpc_address(standin)
        yield {
            subject: stack.enter_context(
                gateway(options.repository, *subject.flags(replica), model=MODEL)
            )
            for subject in SUBJECTS
        }


def _measure(options: Options, replica: str | None) -> Turns:
    points = [(subject, count) for count in CONNECTIONS for subject in SUBJECTS]
    turns: dict[tuple[Subject, int], list[Turn]] = {point: [] for point in points}
    with (
        _gateways(options, replica) as servers,
        progress(options.rounds * len(points)) as steps,
    ):
        address = servers[DEFAULTS].address
        requests = with_expected_answers(address, requests_for(MODEL))
        for _ in range(options.rounds):
            for subject, connections in points:
                steps.next(f"{subject.name}, {connections} connections")
                turn = _turn(servers[subject], requests, connections, options)
                turns[subject, connections].append(turn)
    return turns


def _turn(
    server: Server, requests: Sequence[Request], connections: int, options: Options
) -> Turn:
    rows_before, calls_before = _rows_and_calls(server)
    measurement = closed_loop(
        server.address,
        requests,
        connections=connections,
        duration_seconds=options.point_seconds,
        warm_up_seconds=WARM_UP_SECONDS,
        server_pid=server.pid,
    )
    rows, calls = _rows_and_calls(server)
    return Turn(measurement, (rows - rows_before) / (calls - calls_before))


def _rows_and_calls(server: Server) -> tuple[float, float]:
    answer = httpx.get(f"{server.address}/metrics").raise_for_status()
    return rows_and_calls(answer.text)


def _table(outcomes: Sequence[Outcome]) -> Any:
    table = new_table(
        f"{MODEL}; of: {DEFAULTS.name}",
        "batches by",
        "calls",
        "connections",
        "answers/s",
        "of",
        "p50",
        "p99",
        "rows a call",
        "gateway's CPU",
        "failures",
    )
    for one in outcomes:
        table.add_row(
            one.batching,
            str(one.calls),
            str(one.connections),
            shown(one.answers_per_second, "count"),
            shown(one.of_defaults, "ratio"),
            shown(one.p50_seconds, "milliseconds"),
            shown(one.p99_seconds, "milliseconds"),
            shown(one.rows_per_call, "ratio"),
            shown(one.cpu_seconds_per_request, "microseconds"),
            str(one.failures),
        )
    return table


def _plot(outcomes: Sequence[Outcome]) -> Any:
    figure, (rate, latency) = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    for connections in CONNECTIONS:
        for batching, style in (("gateway", "-"), ("server", "--")):
            chosen = [
                one
                for one in outcomes
                if (one.batching, one.connections) == (batching, connections)
            ]
            look = {
                "marker": "o",
                "linestyle": style,
                "color": f"C{CONNECTIONS.index(connections)}",
                "label": f"{connections} connections, batches by the {batching}",
            }
            calls = [one.calls for one in chosen]
            rate.plot(calls, [one.answers_per_second for one in chosen], **look)
            p99 = [one.p99_seconds * MILLISECONDS for one in chosen]
            latency.plot(calls, p99, **look)
    for axes, label in ((rate, "answers/s"), (latency, "p99, ms")):
        axes.set_xscale("log", base=2)
        ticks = sorted({subject.calls for subject in SUBJECTS})
        axes.set_xticks(ticks, [str(one) for one in ticks])
        axes.set(xlabel="calls under way at most", ylabel=label, ylim=(0, None))
        axes.grid(alpha=0.3)
    handles, labels = rate.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(CONNECTIONS))
    figure.suptitle(f"{MODEL} in front of one replica")
    return figure


if __name__ == "__main__":
    cyclopts.run(main)
