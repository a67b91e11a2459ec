"""The gateway beside other servers, with the same model and the same load.

    python -m loadtest.peers.install ENVIRONMENTS
    python -m loadtest.compare --environments ENVIRONMENTS [--peers NAME,…]

28×28 JPEGs of digits. First a sweep: the configurations of each peer in turn, in closed
loops of 64 connections; the fastest is compared. The gateway has its defaults. Then
each server has the machine for itself and the load generator, once in every round:
closed loops of 1 and of 64 connections, and open loops at fixed rates, which all are
asked to keep up with. Medians over the rounds. An answer counts only if its first label
is that which the same image gets when it is sent alone.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import cyclopts
import httpx

from loadtest.compare_report import (
    CONNECTIONS,
    MANY,
    MODEL,
    OURS,
    RATES_PER_SECOND,
    Round,
    Trial,
    budgets,
    closed_outcomes,
    footprints,
    paced_outcomes,
    plot,
    tables,
    trials_of,
)
from loadtest.harness.client import Measurement, Request, closed_loop, open_loop
from loadtest.harness.gateway import gateway
from loadtest.harness.ports import free_port
from loadtest.harness.processes import Server, server
from loadtest.harness.report import Options, Report, Steps, finish, progress
from loadtest.harness.workloads import (
    FIRST_LABEL,
    digits,
    post,
    version_directory,
    with_expected_answers,
)
from loadtest.overhead import raw
from loadtest.peers.catalogue import PEERS, Peer, Variant, chosen, interpreter
from loadtest.peers.model import DIRECTORY_VARIABLE, PORT_VARIABLE

WARM_UP_SECONDS: Final = 2
PATIENCE_SECONDS: Final = 2
SEED: Final = 0
DEFAULTS: Final = Variant("defaults", {})
CHECKOUT: Final = Path(__file__).parents[1]

Run = Callable[[Variant], AbstractContextManager[Server]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A server that is compared.

    Attributes:
        run: Runs it in one of its configurations until a block ends.
    """

    title: str
    run: Run
    requests: Sequence[Request]
    variants: Sequence[Variant] = (DEFAULTS,)
    answer: re.Pattern[bytes] = FIRST_LABEL


def main(
    options: Options = Options(),  # noqa: B008, it is immutable
    *,
    environments: Path,
    peers: str = ",".join(PEERS),
) -> None:
    """Measure, print tables, and write the report.

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
            run=lambda _: gateway(options.repository, model=MODEL),
            requests=_requests(raw(f"/models/{MODEL}/classify")),
        ),
        *(_subject(PEERS[one], environments, one, directory) for one in installed),
    ]
    trials, rounds = _measure(subjects, options)
    closed, paced = closed_outcomes(rounds), paced_outcomes(rounds)
    sizes = footprints(rounds)
    skipped = [PEERS[one].title for one in names if one not in installed]
    report = Report(
        name="compare",
        settings={**asdict(options), "skipped": skipped},
        results={
            "sweep": [asdict(one) for one in trials],
            "closed_loop": [asdict(one) for one in closed],
            "open_loop": [asdict(one) for one in paced],
            "footprint": [asdict(one) for one in sizes],
        },
        budgets=budgets(closed),
    )
    shown = tables(trials, closed, paced, sizes, skipped)
    finish(report, plot(closed, paced), shown, options.output)


def _subject(peer: Peer, environments: Path, name: str, directory: Path) -> Subject:
    requests = _requests(peer.request)
    python = interpreter(environments, name)
    return Subject(
        title=peer.title,
        run=lambda variant: _running(peer, variant, python, directory, requests[0]),
        requests=requests,
        variants=peer.variants,
        answer=peer.answer,
    )


def _requests(make: Callable[[bytes], Request]) -> list[Request]:
    return [make(image) for image in digits()]


def _measure(
    subjects: Sequence[Subject], options: Options
) -> tuple[list[Trial], list[Round]]:
    swept = [one for one in subjects if len(one.variants) > 1]
    turns = sum(len(one.variants) for one in swept) + len(subjects)
    rounds = []
    with progress(options.rounds * turns) as steps:
        trials = [
            trial for subject in swept for trial in _sweep(subject, options, steps)
        ]
        fastest = {one.title: one.variant for one in trials if one.is_fastest}
        for _ in range(options.rounds):
            for subject in subjects:
                steps.next(subject.title)
                name = fastest.get(subject.title, subject.variants[0].name)
                (variant,) = [one for one in subject.variants if one.name == name]
                rounds.append(_round(subject, variant, options.point_seconds))
    return trials, rounds


def _sweep(subject: Subject, options: Options, steps: Steps) -> list[Trial]:
    """Each configuration in each round."""
    measured = defaultdict[str, list[float]](list)
    for _ in range(options.rounds):
        for variant in subject.variants:
            steps.next(f"{subject.title}: {variant.name}")
            with subject.run(variant) as running:
                requests = with_expected_answers(
                    running.address, subject.requests, answer=subject.answer
                )
                loop = _closed_loop(running, requests, MANY, options.point_seconds)
            measured[variant.name].append(loop.per_second())
    return trials_of(subject.title, measured)


def _round(subject: Subject, variant: Variant, seconds: float) -> Round:
    """A server's turn."""
    with subject.run(variant) as running:
        requests = with_expected_answers(
            running.address, subject.requests, answer=subject.answer
        )
        return Round(
            title=subject.title,
            variant=variant.name,
            ready_seconds=running.ready_seconds,
            closed={
                count: _closed_loop(running, requests, count, seconds)
                for count in CONNECTIONS
            },
            paced={
                rate: open_loop(
                    running.address,
                    requests,
                    rate_per_second=rate,
                    duration_seconds=seconds,
                    timeout_seconds=PATIENCE_SECONDS,
                    seed=SEED,
                )
                for rate in RATES_PER_SECOND
            },
            memory_bytes=running.memory_bytes(),
        )


def _closed_loop(
    running: Server, requests: Sequence[Request], connections: int, seconds: float
) -> Measurement:
    return closed_loop(
        running.address,
        requests,
        connections=connections,
        duration_seconds=seconds,
        warm_up_seconds=WARM_UP_SECONDS,
        server_pid=running.pid,
    )


def _running(
    peer: Peer, variant: Variant, python: Path, directory: Path, request: Request
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
            **variant.environment,
        },
        directory=CHECKOUT,
    )


if __name__ == "__main__":
    cyclopts.run(main)
