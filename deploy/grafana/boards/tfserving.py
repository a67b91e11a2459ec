"""TensorFlow Serving, as it sees itself."""

from typing import Final

from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.dashboard import Panel

from deploy.grafana.boards.board import board
from deploy.grafana.boards.panels import (
    COUNT,
    GREEN,
    GREY,
    ORANGE,
    PER_SECOND,
    RATIO,
    RED,
    SECONDS,
    WIDTH,
    Query,
    lines,
    mean,
    number,
    quantile,
    rate,
)

SERVER: Final = 'instance=~"$server"'
CHOSEN: Final = f'{SERVER}, model_name=~"$model_name"'
# Questions for a model's state have no API; the gateway asks them each second.
PREDICTING: Final = f'{CHOSEN}, API!=""'
SERVING: Final = ":tensorflow:serving"
REQUESTS: Final = f"{SERVING}:request_count"
LATENCY: Final = f"{SERVING}:request_latency"
RUNTIME: Final = f"{SERVING}:runtime_latency"
QUEUING: Final = f"{SERVING}:batching_session:queuing_latency"
RUNS: Final = f"{SERVING}:batching_session:wrapped_run_count"
FROM_MICROSECONDS: Final = " / 1e6"


def tfserving() -> Dashboard:
    """The dashboard for TensorFlow Serving's own metrics."""
    return board(
        "tfserving",
        "TensorFlow Serving",
        "TensorFlow Serving as it sees itself, from its "
        "/monitoring/prometheus/metrics. The names are those that version 2.17.1 "
        "listed when it was recorded (a file of tests/golden); their meaning is told "
        "by its sources (util.cc, batching_session.cc). It reports no memory, no GPU "
        "and no version numbers.",
        {"Servers": _servers(), "Time": _time(), "Batching and computing": _batching()},
        choices=("server", "model_name"),
    )


def _servers() -> list[Builder[Panel]]:
    return [
        number(
            "Servers reached",
            "By Prometheus. Fewer than there should be: see Replicas for what the "
            "gateway says.",
            Query(f'sum(up{{job="tfserving", {SERVER}}})', "up"),
            unit=COUNT,
            width=6,
            best=RED,
            colours={1: GREEN},
        ),
        number(
            "Loads that failed",
            "Of models, since each server started.",
            Query(
                "sum(:tensorflow:cc:saved_model:load_attempt_count"
                f'{{{SERVER}, status!="success"}}) or vector(0)',
                "failed",
            ),
            unit=COUNT,
            width=6,
            colours={1: RED},
        ),
        number(
            "Longest load",
            "Of a model, without warm-up.",
            Query(
                f"max(:tensorflow:cc:saved_model:load_latency{{{SERVER}}})"
                f"{FROM_MICROSECONDS}",
                "longest",
            ),
            unit=SECONDS,
            width=6,
            best=GREY,
        ),
        number(
            "Requests that fail",
            "Share. INVALID_ARGUMENT and NOT_FOUND are the caller's.",
            Query(
                f'(sum(rate({REQUESTS}{{{CHOSEN}, status!="OK"}}[$__rate_interval])) '
                f"or vector(0)) / (sum(rate({REQUESTS}{{{CHOSEN}}}[$__rate_interval])) "
                "> 0)",
                "failed",
            ),
            unit=RATIO,
            width=6,
            colours={0.01: ORANGE, 0.05: RED},
            decimals=2,
            nothing="no requests",
        ),
        lines(
            "Requests by status",
            "Questions for a model's state are among them: one each second from each "
            "process of a gateway.",
            Query(
                rate(REQUESTS, CHOSEN, "model_name, status"),
                "{{model_name}} {{status}}",
            ),
            unit=PER_SECOND,
            width=WIDTH,
            stacked=True,
        ),
    ]


def _time() -> list[Builder[Panel]]:
    def time(title: str, description: str, histogram: str) -> Builder[Panel]:
        return lines(
            title,
            description,
            *(
                Query(
                    quantile(
                        q,
                        histogram,
                        PREDICTING,
                        "instance, model_name",
                        scale=FROM_MICROSECONDS,
                    ),
                    f"{{{{model_name}}}} at {{{{instance}}}} {label}",
                )
                for q, label in ((0.5, "median"), (0.99, "p99"))
            ),
            unit=SECONDS,
        )

    by = "instance, model_name"
    return [
        time(
            "Time of a request",
            "Predictions, in the server. Compare with Time of a call of the dashboard "
            "Replicas: the difference is the network and waiting for a thread.",
            LATENCY,
        ),
        time(
            "Time of the computation",
            "The network alone. If this grows, the GPU or its cores are busy with "
            "something else, or batches are larger.",
            RUNTIME,
        ),
        lines(
            "Time beside the computation",
            "Mean of a request, less that of its computation: copying tensors. With "
            "--enable_batching the computation includes the wait for the batch.",
            Query(
                f"({mean(LATENCY, PREDICTING, by)} - {mean(RUNTIME, PREDICTING, by)})"
                f"{FROM_MICROSECONDS}",
                "{{model_name}} at {{instance}}",
            ),
            unit=SECONDS,
        ),
    ]


def _batching() -> list[Builder[Panel]]:
    return [
        lines(
            "Wait for a batch",
            "Only with --enable_batching. Near batch_timeout_micros: too few requests "
            "to fill a batch. Far above: too little capacity.",
            *(
                Query(
                    quantile(q, QUEUING, SERVER, "instance", scale=FROM_MICROSECONDS),
                    f"{{{{instance}}}} {label}",
                )
                for q, label in ((0.5, "median"), (0.99, "p99"))
            ),
            unit=SECONDS,
            width=12,
        ),
        lines(
            "Requests in a batch",
            "Mean. Only with --enable_batching. About 1: leave batching to the "
            "gateway.",
            Query(
                f"{rate(f'{QUEUING}_count', SERVER, 'instance')}"
                f" / ({rate(RUNS, SERVER, 'instance')} > 0)",
                "{{instance}}",
            ),
            unit=COUNT,
            width=12,
        ),
        lines(
            "Computations",
            "Runs of a graph per second, of all models.",
            Query(
                rate(":tensorflow:core:graph_runs", SERVER, "instance"), "{{instance}}"
            ),
            unit=PER_SECOND,
            width=12,
            stacked=True,
        ),
        lines(
            "Computing",
            "Seconds of running graphs in each second: how many run at a time. More "
            "than the GPU has streams, or the machine cores, only wait for each other.",
            Query(
                rate(":tensorflow:core:graph_run_time_usecs", SERVER, "instance")
                + FROM_MICROSECONDS,
                "{{instance}}",
            ),
            unit=COUNT,
            width=12,
        ),
    ]
