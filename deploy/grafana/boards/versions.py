"""Which versions of which models are served, and how they compare."""

from typing import Final

from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.dashboard import Panel

from deploy.grafana.boards.board import board
from deploy.grafana.boards.overview import CHOSEN, DURATION, INSTANCE, STAGES, VERSION
from deploy.grafana.boards.panels import (
    BLUE,
    COUNT,
    GREEN,
    GREY,
    ORANGE,
    PER_SECOND,
    RATIO,
    RED,
    SECONDS,
    Query,
    lines,
    mean,
    number,
    quantile,
    rate,
    states,
)

STATE: Final = "blockserve_model_version_state"
FAILURES: Final = f'blockserve_model_load_failures_total{{{INSTANCE}, model=~"$model"}}'
STATES: Final = (
    ("gone", GREY),
    ("start", BLUE),
    ("loading", ORANGE),
    ("available", GREEN),
    ("unloading", "purple"),
    ("end", GREY),
    ("failed", RED),
)
# The number of its state for each version: its place in the list.
STATE_NUMBER: Final = "max by (instance, model, version) ({})".format(
    " or ".join(
        f'{value} * ({STATE}{{{CHOSEN}, state="{name}"}} > bool 0)'
        for value, (name, _) in enumerate(STATES)
        if value
    )
)


def versions() -> Dashboard:
    """The dashboard for a roll-out."""
    return board(
        "versions",
        "Model versions",
        "Which versions of which models are served, and how they compare: for a "
        "roll-out, and for what follows one.",
        {
            "What is served": _served(),
            "How versions compare": _compared(),
            "Loading": _loading(),
        },
        choices=("instance", "model", "version"),
    )


def _served() -> list[Builder[Panel]]:
    return [
        number(
            "Versions available",
            "How many gateways serve how many versions, added up.",
            Query(f'sum({STATE}{{{CHOSEN}, state="available"}} > bool 0)', "available"),
            unit=COUNT,
            best=RED,
            colours={1: GREEN},
            width=6,
        ),
        number(
            "Versions failed",
            "Any: the log and /models say why. The last good version goes on serving.",
            Query(f'sum({STATE}{{{CHOSEN}, state="failed"}} > bool 0)', "failed"),
            unit=COUNT,
            colours={1: RED},
            width=6,
        ),
        number(
            "Failed attempts",
            "To load a version, since the gateways started. A broken one is tried "
            "again only when its files change.",
            Query(f"sum({FAILURES}) or vector(0)", "failures"),
            unit=COUNT,
            colours={1: ORANGE},
            decimals=0,
            width=6,
        ),
        number(
            "Versions that crashed",
            "Any: it refuses all requests until the gateway is restarted.",
            Query(
                f"sum(blockserve_dispatcher_crashes_total{{{CHOSEN}}} > bool 0)",
                "crashed",
            ),
            unit=COUNT,
            colours={1: RED},
            width=6,
        ),
        states(
            "States",
            "A roll-out: the new version goes from start over loading to available, "
            "then the old one from unloading to end. Stuck in loading: TensorFlow "
            "Serving's log says why.",
            Query(STATE_NUMBER, f"{VERSION} at {{{{instance}}}}"),
            STATES,
        ),
    ]


def _compared() -> list[Builder[Panel]]:
    by = "model, version"
    inference = f'{CHOSEN}, stage="inference"'
    errors = rate("blockserve_errors_total", CHOSEN, by)
    requests = rate("blockserve_requests_total", CHOSEN, by)
    return [
        lines(
            "Requests",
            "Who gets how many. After a switch the old version gets none.",
            Query(requests, VERSION),
            unit=PER_SECOND,
        ),
        lines(
            "Errors",
            "Share of requests, the client's errors as well: a new version that "
            "refuses what the old one took has another signature.",
            Query(f"({errors} or 0 * {requests}) / ({requests} > 0)", VERSION),
            unit=RATIO,
            limits={0.05: RED},
        ),
        lines(
            "Latency, p99",
            "From a request's arrival to its answer.",
            Query(quantile(0.99, DURATION, CHOSEN, by), VERSION),
            unit=SECONDS,
        ),
        lines(
            "Time of an inference",
            "Mean of a batch. Slower with the same batches: the new network is larger.",
            Query(mean(STAGES, inference, by), VERSION),
            unit=SECONDS,
        ),
        lines(
            "Time of a row",
            "Inference, divided by the rows computed: what an image costs.",
            Query(
                f"{rate(f'{STAGES}_sum', inference, by)} / "
                f"({rate('blockserve_batch_size_rows_sum', CHOSEN, by)} > 0)",
                VERSION,
            ),
            unit=SECONDS,
        ),
        lines(
            "Rows in a batch at most",
            "Learned at warm-up, and corrected since.",
            Query(
                "max by (model, version, signature) "
                f"(blockserve_batch_size_limit_rows{{{CHOSEN}}})",
                f"{VERSION} {{{{signature}}}}",
            ),
            unit=COUNT,
        ),
    ]


def _loading() -> list[Builder[Panel]]:
    return [
        lines(
            "Time to load",
            "Of the last load, warm-up and measuring included: how long a roll-out "
            "takes, and a restart.",
            Query(
                "max by (instance, model, version) "
                f"(blockserve_model_load_duration_seconds{{{CHOSEN}}})",
                f"{VERSION} at {{{{instance}}}}",
            ),
            unit=SECONDS,
            width=12,
        ),
        lines(
            "Attempts that failed",
            "To load a version, since the gateways started: each step up is one more.",
            Query(f"sum by (model) ({FAILURES})", "{{model}}"),
            unit=COUNT,
            width=12,
        ),
    ]
