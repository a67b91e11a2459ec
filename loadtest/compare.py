"""The gateway beside other servers, with the same model and the same load.

    python -m loadtest.peers.install ENVIRONMENTS
    python -m loadtest.compare --environments ENVIRONMENTS [--peers NAME,…]

28×28 JPEGs of digits. First a sweep: the configurations of each peer in turn, in closed
loops of 1 and of 64 connections; the fastest with each is compared. The gateway has its
defaults. Then each server has the machine for itself and the load generator, once in
every round: the same closed loops, and in its configuration for 64 connections open
loops at fixed rates, which all are asked to keep up with. Medians over the rounds. An
answer counts only if its first label is that which the same image gets when it is sent
alone.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Final

import cyclopts

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
from loadtest.harness.gateway import gateway_command, repository_of
from loadtest.harness.image_requests import raw
from loadtest.harness.ports import free_port
from loadtest.harness.processes import Server, server
from loadtest.harness.report import Options, Report, Steps, finish, progress
from loadtest.harness.workloads import (
    ANSWER_SECONDS,
    FIRST_LABEL,
    digits,
    version_directory,
    with_expected_answers,
)
from loadtest.peers.catalogue import PEERS, Peer, Variant, chosen, interpreter
from loadtest.peers.model import DIRECTORY_VARIABLE, PORT_VARIABLE

WARM_UP_SECONDS: Final = 2
PATIENCE_SECONDS: Final = 2
SEED: Final = 0
DEFAULTS: Final = Variant("defaults", {})
CHECKOUT: Final = Path(__file__).parents[1]
HOST: Final = "127.0.0.1"

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

    def expecting(self, running: Server) -> Sequence[Request]:
        """The requests, each with the label that it gets when it is sent alone."""
        return with_expected_answers(running.address, self.requests, answer=self.answer)


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
        _ours(options.repository),
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


def _ours(repository: Path) -> Subject:
    requests = list(map(raw(f"/models/{MODEL}/classify"), digits()))

    @contextmanager
    def run(_: Variant) -> Iterator[Server]:
        port = free_port()
        with repository_of(repository, MODEL) as only:
            command = gateway_command(only, "--http-port", str(port))
            with _answering(command, port, requests[0]) as running:
                yield running

    return Subject(title=OURS, run=run, requests=requests)


def _subject(peer: Peer, environments: Path, name: str, directory: Path) -> Subject:
    requests = list(map(peer.request, digits()))
    python = interpreter(environments, name)

    def run(variant: Variant) -> AbstractContextManager[Server]:
        port = free_port()
        arguments = [part.format(port=port) for part in peer.command]
        environment = {
            "PYTHONPATH": str(CHECKOUT),
            DIRECTORY_VARIABLE: str(directory.absolute()),
            PORT_VARIABLE: str(port),
            **variant.environment,
        }
        command = [str(python), "-m", *arguments]
        return _answering(command, port, requests[0], environment)

    return Subject(
        title=peer.title,
        run=run,
        requests=requests,
        variants=peer.variants,
        answer=peer.answer,
    )


def _answering(
    command: Sequence[str],
    port: int,
    request: Request,
    environment: Mapping[str, str] | None = None,
) -> AbstractContextManager[Server]:
    """Run a server until the block ends; it has answered a request."""

    def ready(_: str) -> str | None:
        return f"http://{HOST}:{port}" if _is_answered(port, request) else None

    return server(command, ready=ready, environment=environment, directory=CHECKOUT)


def _is_answered(port: int, request: Request) -> bool:
    """With a client that takes next to nothing from a server that starts beside it."""
    connection = HTTPConnection(HOST, port, timeout=ANSWER_SECONDS)
    with closing(connection), suppress(OSError, HTTPException):
        connection.request("POST", request.path, request.body, dict(request.headers))
        return connection.getresponse().status == HTTPStatus.OK
    return False


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
        for _ in range(options.rounds):
            for subject in subjects:
                steps.next(subject.title)
                fastest = _fastest(subject, trials)
                rounds.append(_round(subject, fastest, options.point_seconds))
    return trials, rounds


def _sweep(subject: Subject, options: Options, steps: Steps) -> list[Trial]:
    """Each configuration in each round."""
    loops: dict[int, dict[str, list[Measurement]]] = {
        count: {variant.name: [] for variant in subject.variants}
        for count in CONNECTIONS
    }
    for _ in range(options.rounds):
        for variant in subject.variants:
            steps.next(f"{subject.title}: {variant.name}")
            with subject.run(variant) as running:
                requests = subject.expecting(running)
                for count in CONNECTIONS:
                    loop = _closed_loop(running, requests, count, options.point_seconds)
                    loops[count][variant.name].append(loop)
    return [
        trial
        for count, measured in loops.items()
        for trial in trials_of(subject.title, count, measured)
    ]


def _fastest(subject: Subject, trials: Sequence[Trial]) -> Mapping[int, Variant]:
    """The configuration to compare, by the number of connections."""
    names = {
        one.connections: one.variant
        for one in trials
        if one.is_fastest and one.title == subject.title
    }
    by_name = {variant.name: variant for variant in subject.variants}
    first = subject.variants[0]
    return {count: by_name[names.get(count, first.name)] for count in CONNECTIONS}


def _round(subject: Subject, variants: Mapping[int, Variant], seconds: float) -> Round:
    """A server's turn."""
    closed = {}
    for count, variant in variants.items():
        with subject.run(variant) as running:
            requests = subject.expecting(running)
            closed[count] = _closed_loop(running, requests, count, seconds)
    with subject.run(variants[MANY]) as running:
        requests = subject.expecting(running)
        return Round(
            title=subject.title,
            variants={count: variant.name for count, variant in variants.items()},
            closed=closed,
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
            ready_seconds=running.ready_seconds,
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


if __name__ == "__main__":
    cyclopts.run(main)
