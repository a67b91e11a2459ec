"""TensorFlow Serving's replicas, as the gateway sees them."""

from typing import Final

from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.dashboard import Panel

from deploy.grafana.boards.board import board
from deploy.grafana.boards.overview import INSTANCE, STAGES, VERSION
from deploy.grafana.boards.panels import (
    COUNT,
    GREEN,
    ORANGE,
    PER_SECOND,
    RATIO,
    RED,
    SECONDS,
    Query,
    lines,
    number,
    quantile,
    rate,
    states,
)

REPLICA: Final = f'{INSTANCE}, replica=~"$replica"'
CALLS: Final = "blockserve_tfserving_calls_total"
UP: Final = f"blockserve_tfserving_replica_up{{{REPLICA}}}"


def replicas() -> Dashboard:
    """The dashboard for trouble between gateway and TensorFlow Serving."""
    return board(
        "replicas",
        "Replicas",
        "TensorFlow Serving's replicas as the gateway sees them: who is up, who gets "
        "calls, who fails. Only with the engine tfserving; a gateway that runs the "
        "models itself has no replicas.",
        {"Who is up": _up(), "Calls": _calls(), "Trouble": _trouble()},
        choices=("instance", "replica"),
    )


def _up() -> list[Builder[Panel]]:
    return [
        number(
            "Replicas up",
            "None: the gateway answers 503, and /readyz names each with what is wrong.",
            Query(f"min(sum by (instance) ({UP} > bool 0))", "up"),
            unit=COUNT,
            best=RED,
            colours={1: GREEN},
            width=12,
        ),
        number(
            "Replicas down",
            "What is left has to do the work of all.",
            Query(f"sum(1 - ({UP} > bool 0))", "down"),
            unit=COUNT,
            colours={1: ORANGE},
            width=12,
        ),
        states(
            "States",
            "One that comes and goes restarts: look at its log. All at once: the "
            "network.",
            Query(
                f"max by (instance, replica) ({UP} > bool 0)",
                "{{replica}} from {{instance}}",
            ),
            (("down", RED), ("up", GREEN)),
        ),
    ]


def _calls() -> list[Builder[Panel]]:
    return [
        lines(
            "Calls by replica",
            "The one with the fewest under way gets the next, so faster ones get more. "
            "One that gets none rests after failures.",
            Query(rate(CALLS, REPLICA, "replica"), "{{replica}}"),
            unit=PER_SECOND,
            stacked=True,
        ),
        lines(
            "Calls under way",
            "At most tfserving_calls_per_replica each, in one process. All at that: "
            "replicas or calls are too few.",
            Query(
                f"sum by (replica) (blockserve_tfserving_calls_in_flight{{{REPLICA}}})",
                "{{replica}}",
            ),
            unit=COUNT,
        ),
        lines(
            "Time of a call",
            "Of a batch, seen from the gateway: network, TensorFlow Serving's queue "
            "and the network's computation.",
            *(
                Query(
                    quantile(
                        q,
                        STAGES,
                        f'{INSTANCE}, stage="inference"',
                        "model, version",
                    ),
                    f"{VERSION} {label}",
                )
                for q, label in ((0.5, "median"), (0.99, "p99"))
            ),
            unit=SECONDS,
        ),
    ]


def _trouble() -> list[Builder[Panel]]:
    failed = rate(CALLS, f'{REPLICA}, outcome!="ok"', "replica")
    calls = rate(CALLS, REPLICA, "replica")
    return [
        lines(
            "Calls that failed",
            "Share by replica. As long as another answers in time, clients see none.",
            Query(f"({failed} or 0 * {calls}) / ({calls} > 0)", "{{replica}}"),
            unit=RATIO,
            limits={0.05: RED},
        ),
        lines(
            "Outcomes other than ok",
            "resource_exhausted: more threads (--grpc_max_threads) or replicas. "
            "unavailable: it restarts, or its batching queue is full. "
            "deadline_exceeded: it hangs or is slow. cancelled: the other was faster.",
            Query(
                rate(CALLS, f'{REPLICA}, outcome!="ok"', "replica, outcome"),
                "{{replica}} {{outcome}}",
            ),
            unit=PER_SECOND,
            stacked=True,
        ),
        lines(
            "Calls asked twice",
            "Retries after a failure or silence, and hedges after a fixed time. At one "
            "call in five the budget is used up, and clients see failures.",
            Query(
                rate("blockserve_tfserving_retries_total", INSTANCE, "instance"),
                "{{instance}} retries",
            ),
            Query(
                rate("blockserve_tfserving_hedges_total", INSTANCE, "instance"),
                "{{instance}} hedges",
            ),
            unit=PER_SECOND,
        ),
    ]
