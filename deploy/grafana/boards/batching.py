"""How full the engines are, and how requests share their calls."""

from typing import Final

from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.dashboard import Panel

from deploy.grafana.boards.board import board
from deploy.grafana.boards.overview import CHOSEN, STAGES, VERSION
from deploy.grafana.boards.panels import (
    COUNT,
    ORANGE,
    PER_SECOND,
    RATIO,
    RED,
    SECONDS,
    Query,
    lines,
    mean,
    quantile,
    rate,
    spread,
)

ROWS: Final = "blockserve_batch_size_rows"
AT: Final = f"{VERSION} at {{{{instance}}}}"
WHERE: Final = "instance, model, version"


def batching() -> Dashboard:
    """The dashboard for questions of capacity."""
    return board(
        "batching",
        "Batching",
        "How full the engines are, how requests share their calls, and what waiting "
        "costs. Capacity in docs/operations.md tells how to read it.",
        {
            "Is there a reserve?": _saturation(),
            "Batches": _batches(),
            "Time": _time(),
        },
        choices=("instance", "model", "version"),
    )


def _saturation() -> list[Builder[Panel]]:
    return [
        lines(
            "Engine busy",
            "Share of the time that the engine's slots are busy. It cannot exceed 100 "
            "%; above 70 % waiting grows fast, above 90 % add replicas or cores.",
            Query(
                f"{rate('blockserve_engine_busy_seconds_total', CHOSEN, WHERE)}"
                f" / sum by ({WHERE}) (blockserve_engine_slots{{{CHOSEN}}} > 0)",
                AT,
            ),
            unit=RATIO,
            most=1,
            limits={0.7: ORANGE, 0.9: RED},
        ),
        lines(
            "Queue full",
            "Share of the places that are taken. At 100 % requests are refused. With "
            "busy engines it is too little capacity; without, the engine hangs.",
            Query(
                f"job_instance_model_version:blockserve_queue:fill_ratio{{{CHOSEN}}}",
                AT,
            ),
            unit=RATIO,
            limits={0.8: RED},
        ),
        lines(
            "Longest wait",
            "How long the oldest request in the queue has waited. It should stay far "
            "below the clients' deadlines.",
            Query(
                f"max by ({WHERE}) (blockserve_queue_oldest_age_seconds{{{CHOSEN}}})",
                AT,
            ),
            unit=SECONDS,
        ),
        lines(
            "Calls under way",
            "Calls of the engine, and the slots that there are for them. Calls at the "
            "limit with an idle GPU: raise tfserving_calls_per_replica.",
            Query(
                "sum by (model, version) "
                f"(blockserve_engine_calls_in_flight{{{CHOSEN}}})",
                f"{VERSION} calls",
            ),
            Query(
                f"sum by (model, version) (blockserve_engine_slots{{{CHOSEN}}})",
                f"{VERSION} slots",
            ),
            unit=COUNT,
        ),
        lines(
            "Requests waiting",
            "For a slot, or being decoded.",
            Query(
                "sum by (model, version) "
                f"(blockserve_queue_depth_requests{{{CHOSEN}}})",
                VERSION,
            ),
            unit=COUNT,
        ),
        lines(
            "Refused or given up",
            "Requests that could not be answered in time. Any: too little capacity, or "
            "deadlines shorter than a batch.",
            Query(
                rate(
                    "blockserve_errors_total",
                    f'{CHOSEN}, kind=~"overloaded|deadline_.*"',
                    "model, version, kind",
                ),
                f"{VERSION} {{{{kind}}}}",
            ),
            unit=PER_SECOND,
            stacked=True,
        ),
    ]


def _batches() -> list[Builder[Panel]]:
    padding = rate("blockserve_padding_rows_total", CHOSEN, "model, version")
    rows = rate(f"{ROWS}_sum", CHOSEN, "model, version")
    return [
        lines(
            "Rows in a batch",
            "Mean, beside the size that was learned to be best. Batches as large as "
            "that and a busy engine: it is at its best rate, and only more engines "
            "help.",
            Query(mean(ROWS, CHOSEN, "model, version"), f"{VERSION} mean"),
            Query(
                "max by (model, version, signature) "
                f"(blockserve_batch_size_limit_rows{{{CHOSEN}}})",
                f"{VERSION} {{{{signature}}}} limit",
            ),
            unit=COUNT,
        ),
        spread(
            "Sizes of batches",
            "Small batches at a small load are as it should be: nobody waits for "
            "company.",
            ROWS,
            CHOSEN,
            unit=COUNT,
        ),
        lines(
            "Padding",
            "Share of the computed rows that nobody asked for. Above a quarter: "
            "allowed_batch_sizes are too far apart.",
            Query(f"{padding} / (({padding} + {rows}) > 0)", VERSION),
            unit=RATIO,
            limits={0.25: ORANGE},
        ),
        lines(
            "Rows computed",
            "Images or instances per second: what the engine delivers.",
            Query(rows, VERSION),
            unit=PER_SECOND,
            width=12,
            stacked=True,
        ),
        lines(
            "Batches computed",
            "Calls of the engine per second.",
            Query(rate(f"{ROWS}_count", CHOSEN, "model, version"), VERSION),
            unit=PER_SECOND,
            width=12,
            stacked=True,
        ),
    ]


def _time() -> list[Builder[Panel]]:
    def stage(name: str, title: str, description: str) -> Builder[Panel]:
        chosen = f'{CHOSEN}, stage="{name}"'
        return lines(
            title,
            description,
            *(
                Query(
                    quantile(q, STAGES, chosen, "model, version"), f"{VERSION} {label}"
                )
                for q, label in ((0.5, "median"), (0.99, "p99"))
            ),
            unit=SECONDS,
        )

    return [
        stage(
            "queue",
            "Waiting",
            "Of a request for a slot. Longer than an inference: more arrives than the "
            "engine can do.",
        ),
        stage(
            "inference",
            "Inference",
            "Of a batch. It grows with the batch; alone, the engine got slower: "
            "another program on its cores or GPU?",
        ),
        stage(
            "decode",
            "Decoding",
            "Of a request's images. Long: larger images than before, or no free core.",
        ),
        stage(
            "read",
            "Reading",
            "Of a request's body. Long: slow clients or networks, or large bodies.",
        ),
        stage(
            "assembly",
            "Assembly",
            "Of a batch from its requests: copies in memory, far below an inference.",
        ),
        stage(
            "encode",
            "Encoding",
            "Of an answer. Long: large outputs as JSON; binary tensors or gRPC cost "
            "less.",
        ),
    ]
