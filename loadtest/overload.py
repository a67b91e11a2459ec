"""Overload: three times as many requests as the gateway can answer.

    python -m loadtest.overload [--model NAME]… [--repository DIR] [--output DIR]

Requests arrive at random moments (Poisson) at three times the capacity, which a closed
loop finds before and after. Each tells the gateway how much time it has. What counts is
goodput, the answers that came within that time, by the client's clock; that no answer
comes later, for then its client is gone; and that a refusal comes at once. Goodput
leaves out the start, when the queue is still empty; all else counts it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Final

import cyclopts
import matplotlib.pyplot as plt
import numpy as np

from loadtest.harness.client import (
    OK,
    Failure,
    Measurement,
    Request,
    closed_loop,
    open_loop,
)
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

OVERLOAD: Final = 3
TIMEOUT_SECONDS: Final[Mapping[str, float]] = MappingProxyType(
    {"inception": 0.25, "googlenet": 2.0}
)
DEFAULT_TIMEOUT_SECONDS: Final = 1.0
CAPACITY_CONNECTIONS: Final = 64
WARM_UP_SECONDS: Final = 2
SEED: Final = 0
# The client waits so much longer than the time that it gives, to see late answers.
PATIENCE: Final = 4
REFUSED: Final = 503
EXPIRED: Final = 504
# A deadline ends the server's work; the way to the client's clock takes its time, too.
ALLOWANCE_SECONDS: Final = 0.010
BUDGET_GOODPUT: Final = 0.9
BUDGET_REFUSAL_SECONDS: Final = 0.020


@dataclass(frozen=True, slots=True, kw_only=True)
class Overload:
    """What became of the requests; of the goodput the start is left out.

    Attributes:
        late: 200s after the deadline, by the client's clock.
        late_beyond_allowance: Those of them that not even the way back excuses.
        unanswered: No answer within the client's patience.
        failures: Broken connections, wrong answers, other statuses.
    """

    model: str
    timeout_seconds: float
    capacity_per_second: float
    capacity_spread: float
    goodput_per_second: float
    requests: int
    answered: int
    late: int
    late_beyond_allowance: int
    refused: int
    expired: int
    unanswered: int
    failures: int
    answer_p50_seconds: float
    answer_p99_seconds: float
    refusal_p50_seconds: float
    refusal_p99_seconds: float
    refusal_max_seconds: float
    generator_share: float
    gateway_share: float

    @property
    def goodput(self) -> float:
        """Share of the capacity."""
        return self.goodput_per_second / self.capacity_per_second


def main(
    options: Options = Options(),  # noqa: B008, it is immutable
    *,
    model: tuple[str, ...] = tuple(TIMEOUT_SECONDS),
) -> None:
    """Measure, print a table, and write the report.

    Args:
        options: See there.
        model: What is served, one after the other.
    """
    for name in model:
        version_directory(options.repository, name)
    outcomes, measured = [], {}
    with progress(3 * len(model)) as steps:
        for name in model:
            outcome, measured[name] = _measure(name, options, steps)
            outcomes.append(outcome)
    report = Report(
        name="overload",
        settings={**asdict(options), "overload": OVERLOAD},
        results=[asdict(one) for one in outcomes],
        budgets=[budget for one in outcomes for budget in _budgets(one)],
    )
    figure = _plot(outcomes, measured)
    finish(report, figure, [_table(outcomes)], options.output)


def summarise(
    measured: Measurement,
    *,
    model: str,
    timeout_seconds: float,
    duration_seconds: float,
    capacities_per_second: Sequence[float],
) -> Overload:
    """Count outcomes; rates are of what was answered between the start and the end.

    Args:
        measured: From an open loop.
        model: Its name.
        timeout_seconds: What each request gave the server; the start lasts as long.
        duration_seconds: How long requests were sent.
        capacities_per_second: Measurements of the capacity, the mean of which is taken.
    """
    capacity = float(np.mean(capacities_per_second))
    ok = measured.statuses == OK
    good = ok & (measured.latencies_seconds <= timeout_seconds)
    answered_at = measured.answered_at_seconds
    steady = (answered_at >= timeout_seconds) & (answered_at < duration_seconds)
    steady_seconds = duration_seconds - timeout_seconds
    late_seconds = np.where(ok, measured.latencies_seconds - timeout_seconds, 0)
    refusals = measured.latencies_of(REFUSED)
    p50, p99, longest = (
        np.percentile(refusals, (50, 99, 100)) if len(refusals) else [np.nan] * 3
    )
    refused, expired = measured.count(REFUSED), measured.count(EXPIRED)
    unanswered = measured.count(Failure.TIMEOUT)
    return Overload(
        model=model,
        timeout_seconds=timeout_seconds,
        capacity_per_second=capacity,
        capacity_spread=float(np.ptp(capacities_per_second)) / capacity,
        goodput_per_second=np.count_nonzero(good & steady) / steady_seconds,
        requests=len(measured.statuses),
        answered=measured.count(OK),
        late=int(np.count_nonzero(late_seconds > 0)),
        late_beyond_allowance=int(np.count_nonzero(late_seconds > ALLOWANCE_SECONDS)),
        refused=refused,
        expired=expired,
        unanswered=unanswered,
        failures=measured.failures - refused - expired - unanswered,
        answer_p50_seconds=measured.p50_seconds,
        answer_p99_seconds=measured.p99_seconds,
        refusal_p50_seconds=float(p50),
        refusal_p99_seconds=float(p99),
        refusal_max_seconds=float(longest),
        generator_share=processor_share(measured.cpu_seconds, measured.wall_seconds),
        gateway_share=processor_share(
            measured.server_cpu_seconds, measured.wall_seconds
        ),
    )


def _measure(
    model: str, options: Options, steps: Steps
) -> tuple[Overload, Measurement]:
    timeout = TIMEOUT_SECONDS.get(model, DEFAULT_TIMEOUT_SECONDS)
    # The start, which goodput leaves out, comes on top.
    duration = options.point_seconds + timeout
    with gateway(options.repository, model=model) as server:
        requests = with_expected_answers(server.address, requests_for(model))
        steps.next(f"{model}: capacity")
        before = _capacity(server, requests, options.point_seconds)
        steps.next(f"{model}: overload")
        measured = open_loop(
            server.address,
            [_with_timeout(request, timeout) for request in requests],
            rate_per_second=OVERLOAD * before,
            duration_seconds=duration,
            timeout_seconds=PATIENCE * timeout,
            seed=SEED,
            server_pid=server.pid,
        )
        steps.next(f"{model}: capacity, again")
        after = _capacity(server, requests, options.point_seconds)
    outcome = summarise(
        measured,
        model=model,
        timeout_seconds=timeout,
        duration_seconds=duration,
        capacities_per_second=(before, after),
    )
    return outcome, measured


def _capacity(server: Server, requests: Sequence[Request], seconds: float) -> float:
    return closed_loop(
        server.address,
        requests,
        connections=CAPACITY_CONNECTIONS,
        duration_seconds=seconds,
        warm_up_seconds=WARM_UP_SECONDS,
    ).per_second()


def _with_timeout(request: Request, seconds: float) -> Request:
    headers = {**request.headers, "x-request-timeout": str(seconds)}
    return Request(request.path, headers, request.body, expect=request.expect)


def _budgets(outcome: Overload) -> list[Budget]:
    return [
        Budget(
            name=f"{outcome.model}, goodput over capacity",
            measured=outcome.goodput,
            limit=BUDGET_GOODPUT,
            bound="at least",
            format="percent",
        ),
        Budget(
            name=f"{outcome.model}, answers after the deadline",
            measured=outcome.late_beyond_allowance,
            limit=0,
            bound="at most",
            format="count",
        ),
        Budget(
            name=f"{outcome.model}, slowest refusal",
            measured=outcome.refusal_max_seconds,
            limit=BUDGET_REFUSAL_SECONDS,
            bound="at most",
            format="milliseconds",
        ),
    ]


def _table(outcomes: Sequence[Overload]) -> Any:
    """A line for each number, for there are many of them and few models."""
    title = f"{OVERLOAD} times the capacity, Poisson arrivals"
    table = new_table(title, "", *(one.model for one in outcomes))
    lines: Sequence[tuple[str, Any]] = (
        ("capacity, answers/s", lambda one: f"{one.capacity_per_second:,.1f}"),
        ("  two measurements apart", lambda one: shown(one.capacity_spread, "percent")),
        ("goodput, answers/s", lambda one: f"{one.goodput_per_second:,.1f}"),
        ("  over capacity", lambda one: shown(one.goodput, "percent")),
        ("time given", lambda one: shown(one.timeout_seconds, "milliseconds")),
        ("requests", lambda one: shown(one.requests, "count")),
        ("  answered (200)", lambda one: shown(one.answered, "count")),
        ("    after the deadline", lambda one: shown(one.late, "count")),
        (
            "    by more than 10 ms",
            lambda one: shown(one.late_beyond_allowance, "count"),
        ),
        ("  refused (503)", lambda one: shown(one.refused, "count")),
        ("  expired (504)", lambda one: shown(one.expired, "count")),
        ("  no answer", lambda one: shown(one.unanswered, "count")),
        ("  failed", lambda one: shown(one.failures, "count")),
        ("answer p50", lambda one: shown(one.answer_p50_seconds, "milliseconds")),
        ("answer p99", lambda one: shown(one.answer_p99_seconds, "milliseconds")),
        ("refusal p50", lambda one: shown(one.refusal_p50_seconds, "milliseconds")),
        ("refusal p99", lambda one: shown(one.refusal_p99_seconds, "milliseconds")),
        (
            "refusal, slowest",
            lambda one: shown(one.refusal_max_seconds, "milliseconds"),
        ),
        ("generator's share of CPU", lambda one: shown(one.generator_share, "percent")),
        ("gateway's share of CPU", lambda one: shown(one.gateway_share, "percent")),
    )
    for name, value in lines:
        table.add_row(name, *(value(one) for one in outcomes))
    return table


def _plot(outcomes: Sequence[Overload], measured: Mapping[str, Measurement]) -> Any:
    figure, every_axes = plt.subplots(
        1,
        len(outcomes),
        figsize=(6 * len(outcomes), 4.5),
        layout="constrained",
        squeeze=False,
    )
    for axes, outcome in zip(every_axes[0], outcomes, strict=True):
        _plot_times(axes, outcome, measured[outcome.model])
    every_axes[0][0].set_ylabel("share of those with this outcome")
    return figure


def _plot_times(axes: Any, outcome: Overload, measured: Measurement) -> None:
    for name, status in (("200", OK), ("503", REFUSED), ("504", EXPIRED)):
        milliseconds = measured.latencies_of(status) * MILLISECONDS
        if len(milliseconds):
            axes.ecdf(milliseconds, label=f"{name}: {len(milliseconds):,}")
    deadline = outcome.timeout_seconds * MILLISECONDS
    axes.axvline(deadline, color="0.4", linestyle="--", label="deadline")
    axes.axvline(
        BUDGET_REFUSAL_SECONDS * MILLISECONDS,
        color="C3",
        linestyle="--",
        label="budget of a refusal (503)",
    )
    axes.set(
        title=f"{outcome.model}: goodput {outcome.goodput:.0%} of capacity "
        f"at {OVERLOAD} times the load",
        xlabel="time until the answer, ms",
        xscale="log",
    )
    axes.grid(alpha=0.3)
    axes.legend()


if __name__ == "__main__":
    cyclopts.run(main)
