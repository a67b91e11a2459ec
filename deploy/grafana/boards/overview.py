"""Is all well, and if not, where to look."""

from typing import Final

from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.dashboard import Panel

from deploy.grafana.boards.board import board
from deploy.grafana.boards.panels import (
    BYTES,
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
    spread,
)

INSTANCE: Final = 'instance=~"$instance"'
CHOSEN: Final = f'{INSTANCE}, model=~"$model", version=~"$version"'
VERSION: Final = "{{model}} {{version}}"
DURATION: Final = "blockserve_request_duration_seconds"
STAGES: Final = "blockserve_stage_duration_seconds"


def overview() -> Dashboard:
    """The dashboard to open first."""
    return board(
        "overview",
        "Overview",
        "Is all well: objectives, traffic, errors, latency and the gateway's "
        "processes. The objectives are about all models together; what is chosen above "
        "does not change their panels.",
        {
            "Is all well?": _now(),
            "Objectives": _objectives(),
            "Traffic": _traffic(),
            "Errors": _errors(),
            "Latency": _latency(),
            "Processes": _processes(),
        },
        choices=("instance", "model", "version"),
    )


def _now() -> list[Builder[Panel]]:
    return [
        number(
            "Gateways ready",
            "Red: nobody answers. Look at /readyz, which says why.",
            Query("sum by (job) (job_instance:blockserve_ready:min)", "{{job}}"),
            unit=COUNT,
            best=RED,
            colours={1: GREEN},
        ),
        number(
            "Alerts",
            "How many fire. Each has a section in docs/operations.md that says what to "
            "do.",
            Query(
                'count(ALERTS{alertname=~"Blockserve.*", alertstate="firing"})'
                " or vector(0)",
                "firing",
            ),
            unit=COUNT,
            colours={1: RED},
        ),
        *(
            number(
                f"{slo.capitalize()} budget left",
                f"Of the requests that may miss the objective for {slo} in three days. "
                "0 or less: it is missed.",
                Query(
                    f'1 - job_slo:blockserve_burn:ratio_rate3d{{slo="{slo}"}}',
                    "{{job}}",
                ),
                unit=RATIO,
                best=RED,
                colours={0: ORANGE, 0.25: GREEN},
                decimals=0,
                nothing="no requests",
            )
            for slo in ("availability", "latency")
        ),
        number(
            "Requests",
            "Answered per second, errors included.",
            Query(
                f"sum(rate(blockserve_requests_total{{{CHOSEN}}}[$__rate_interval]))",
                "requests",
            ),
            unit=PER_SECOND,
            best=GREY,
        ),
        number(
            "Busiest engine",
            "How busy the slots of the busiest model version are. From 90 % on "
            "requests wait: see Batching, and Capacity in docs/operations.md.",
            Query(
                "max(job_instance_model_version:blockserve_engine:busy_ratio_rate5m"
                f"{{{CHOSEN}}})",
                "busy",
            ),
            unit=RATIO,
            colours={0.7: ORANGE, 0.9: RED},
            decimals=0,
        ),
    ]


def _objectives() -> list[Builder[Panel]]:
    def burning(slo: str) -> list[Query]:
        return [
            Query(
                f'job_slo:blockserve_burn:ratio_rate{window}{{slo="{slo}"}}',
                f"{{{{job}}}}, last {window}",
            )
            for window in ("5m", "1h", "6h", "3d")
        ]

    limits = {1: ORANGE, 6: RED, 14.4: "dark-red"}
    return [
        lines(
            "Availability budget burns",
            "How many times faster than allowed requests fail by a fault of the "
            "server. Below 1 the objective holds; at 14.4 for an hour, or 6 for six, "
            "somebody is called. Then look at Errors below.",
            *burning("availability"),
            unit=COUNT,
            width=12,
            limits=limits,
        ),
        lines(
            "Latency budget burns",
            "How many times faster than allowed requests are slow. Then look at "
            "Latency below: which stage grew?",
            *burning("latency"),
            unit=COUNT,
            width=12,
            limits=limits,
        ),
    ]


def _traffic() -> list[Builder[Panel]]:
    return [
        lines(
            "Requests by version",
            "A version that is switched to takes over all of them. Requests without a "
            "name found no loaded version.",
            Query(rate("blockserve_requests_total", CHOSEN, "model, version"), VERSION),
            unit=PER_SECOND,
            stacked=True,
        ),
        lines(
            "Requests by protocol",
            "Who asks, and in which way.",
            Query(
                rate("blockserve_requests_total", CHOSEN, "protocol"), "{{protocol}}"
            ),
            unit=PER_SECOND,
            stacked=True,
        ),
        lines(
            "Requests under way",
            "Arrived and not answered yet. It grows with traffic times latency; growth "
            "with neither means that something hangs.",
            Query(
                f"sum by (protocol) (blockserve_requests_in_flight{{{INSTANCE}}})",
                "{{protocol}}",
            ),
            unit=COUNT,
            stacked=True,
        ),
    ]


def _errors() -> list[Builder[Panel]]:
    return [
        lines(
            "Faults of the server",
            "Share of requests, as the objective counts them. One version alone: it "
            "may be broken, and labels or a roll-back help. All: look at the codes "
            "beside.",
            Query(
                "job_model_version:blockserve_faults:rate5m"
                '{model=~"$model", version=~"$version"}'
                " / (job_model_version:blockserve_requests:rate5m > 0)",
                VERSION,
            ),
            unit=RATIO,
            limits={0.05: RED},
        ),
        lines(
            "Errors by code",
            "All errors, the client's as well; docs/operations.md lists the codes. "
            "overloaded and deadline_unreachable: too little capacity. engine_failure "
            "and internal: the log says why.",
            Query(rate("blockserve_errors_total", CHOSEN, "kind"), "{{kind}}"),
            unit=PER_SECOND,
            stacked=True,
        ),
        lines(
            "Errors by version",
            "All errors, the client's as well.",
            Query(rate("blockserve_errors_total", CHOSEN, "model, version"), VERSION),
            unit=PER_SECOND,
            stacked=True,
        ),
    ]


def _latency() -> list[Builder[Panel]]:
    return [
        lines(
            "Latency by version",
            "From a request's arrival to its answer. If only the 99th percentile "
            "grows, requests wait; if the median grows too, all of them are slower.",
            *(
                Query(
                    quantile(q, DURATION, CHOSEN, "model, version"),
                    f"{VERSION} {name}",
                )
                for q, name in ((0.5, "median"), (0.9, "p90"), (0.99, "p99"))
            ),
            unit=SECONDS,
            limits={1: RED},
        ),
        spread(
            "Latencies",
            "Two bands are two kinds of requests, as of two models; a band that rises "
            "is a queue.",
            DURATION,
            CHOSEN,
            unit=SECONDS,
        ),
        lines(
            "Where the time goes",
            "Mean of each stage: read, decode, queue and encode of a request, assembly "
            "and inference of its batch. queue: too little capacity. decode: large "
            "images. read: slow clients.",
            Query(mean(STAGES, CHOSEN, "stage"), "{{stage}}"),
            unit=SECONDS,
            stacked=True,
        ),
    ]


def _processes() -> list[Builder[Panel]]:
    job = f'job="gateway", {INSTANCE}'
    return [
        lines(
            "Processor",
            "Cores that each process uses. One process of the gateway fills about one, "
            "with an engine inside as many as there are.",
            Query(
                f"rate(process_cpu_seconds_total{{{job}}}[$__rate_interval])",
                "{{instance}} {{worker}}",
            ),
            unit=COUNT,
        ),
        lines(
            "Memory",
            "Resident. It grows with each model that is loaded; growth without new "
            "models is a leak.",
            Query(f"process_resident_memory_bytes{{{job}}}", "{{instance}} {{worker}}"),
            unit=BYTES,
        ),
        lines(
            "Event loop",
            "How late a timer runs: how long a process hears nobody. From 100 ms on it "
            "is short of processor time; start more workers or gateways.",
            Query(
                quantile(
                    0.99, "blockserve_event_loop_lag_seconds", INSTANCE, "instance"
                ),
                "{{instance}} p99",
            ),
            unit=SECONDS,
            limits={0.1: RED},
        ),
    ]
