"""Slots, threads and pinning of the embedded engine, behind the gateway.

    python -m loadtest.engine_options [--repository DIR] [--output DIR] [--seconds S]

What is best for the engine alone need not be best for it here, where decoding and HTTP
use the same cores. Each variant is a gateway of its own, asked over one connection and
over 64, in turn with the others; medians over the rounds. The first is what the gateway
does on its own.
"""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import product
from statistics import median
from typing import Any, Final

import cyclopts
import matplotlib.pyplot as plt

from loadtest.harness.client import Measurement, closed_loop
from loadtest.harness.gateway import gateway
from loadtest.harness.numbers import median_ratio
from loadtest.harness.report import (
    Options,
    Report,
    Steps,
    finish,
    new_table,
    progress,
    shown,
)
from loadtest.harness.workloads import (
    IMAGES_OF,
    requests_for,
    version_directory,
    with_expected_answers,
)

MANY: Final = 64
CONNECTIONS: Final = (1, MANY)
WARM_UP_SECONDS: Final = 2
DEFAULT: Final = "default"
CORES: Final = os.cpu_count() or 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """The gateway's flags, and properties of OpenVINO that it has no flags for."""

    flags: Sequence[str] = ()
    properties: Mapping[str, Any] = field(default_factory=dict)


VARIANTS: Final[Mapping[str, Variant]] = {
    DEFAULT: Variant(),
    "two slots": Variant(flags=("--engine-slots", "2")),
    "half of the cores": Variant(
        properties={"INFERENCE_NUM_THREADS": max(1, CORES // 2)}
    ),
    "threads pinned": Variant(properties={"ENABLE_CPU_PINNING": True}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Medians over the rounds; the ratios are to the default, round by round."""

    model: str
    variant: str
    answers_per_second: float
    of_default: float
    alone_p50_seconds: float
    alone_p50_of_default: float
    failures: int


def main(options: Options = Options()) -> None:  # noqa: B008, it is immutable
    """Measure, print a table, and write the report."""
    for model in IMAGES_OF:
        version_directory(options.repository, model)
    points = options.rounds * len(VARIANTS) * len(CONNECTIONS)
    with progress(len(IMAGES_OF) * points) as steps:
        outcomes = [
            outcome
            for model in IMAGES_OF
            for outcome in _outcomes(model, _measure(model, options, steps))
        ]
    report = Report(
        name="engine_options",
        settings=asdict(options),
        results=[asdict(one) for one in outcomes],
        budgets=[],
    )
    finish(report, _plot(outcomes), [_table(outcomes)], options.output)


def _measure(
    model: str, options: Options, steps: Steps
) -> dict[tuple[str, int], list[Measurement]]:
    measured: dict[tuple[str, int], list[Measurement]] = {
        one: [] for one in product(VARIANTS, CONNECTIONS)
    }
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(
                gateway(
                    options.repository,
                    *variant.flags,
                    model=model,
                    program=_program(variant),
                )
            )
            for name, variant in VARIANTS.items()
        }
        requests = with_expected_answers(servers[DEFAULT].address, requests_for(model))
        for _ in range(options.rounds):
            for (name, connections), rounds in measured.items():
                steps.next(f"{model}, {name}, {connections} connections")
                rounds.append(
                    closed_loop(
                        servers[name].address,
                        requests,
                        connections=connections,
                        duration_seconds=options.point_seconds,
                        warm_up_seconds=WARM_UP_SECONDS,
                    )
                )
    return measured


def _program(variant: Variant) -> Sequence[str]:
    """The gateway, with more properties whenever it compiles a model."""
    code = f"""
import json
from service.cli import main
from service.engines.openvino import openvino

compile_model = openvino.Core.compile_model
more = json.loads({json.dumps(variant.properties)!r})

def compile_with_more(core, model, device, properties):
    return compile_model(core, model, device, {{**properties, **more}})

openvino.Core.compile_model = compile_with_more
main()
"""
    return ("-c", code)


def _outcomes(
    model: str, measured: Mapping[tuple[str, int], Sequence[Measurement]]
) -> list[Outcome]:
    rates = {
        name: [one.per_second() for one in measured[name, MANY]] for name in VARIANTS
    }
    alone = {name: [one.p50_seconds for one in measured[name, 1]] for name in VARIANTS}
    return [
        Outcome(
            model=model,
            variant=name,
            answers_per_second=median(rates[name]),
            of_default=median_ratio(rates[name], rates[DEFAULT]),
            alone_p50_seconds=median(alone[name]),
            alone_p50_of_default=median_ratio(alone[name], alone[DEFAULT]),
            failures=sum(
                one.failures
                for connections in CONNECTIONS
                for one in measured[name, connections]
            ),
        )
        for name in VARIANTS
    ]


def _table(outcomes: Sequence[Outcome]) -> Any:
    table = new_table(
        f"variants of the embedded engine on {CORES} cores",
        "model and variant",
        f"answers/s at {MANY}",
        "of default",
        "p50 alone",
        "of default",
        "failures",
    )
    for one in outcomes:
        table.add_row(
            f"{one.model}, {one.variant}",
            f"{one.answers_per_second:,.1f}",
            shown(one.of_default, "ratio"),
            shown(one.alone_p50_seconds, "milliseconds"),
            shown(one.alone_p50_of_default, "ratio"),
            str(one.failures),
        )
    return table


def _plot(outcomes: Sequence[Outcome]) -> Any:
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10, 3.5), layout="constrained", sharey=True
    )
    names = [f"{one.model}, {one.variant}" for one in outcomes]
    colours = ["C0" if one.variant == DEFAULT else "0.7" for one in outcomes]
    for axes, ratios, label in (
        (
            left,
            [one.of_default for one in outcomes],
            f"answers per second at {MANY} connections, of the default",
        ),
        (
            right,
            [one.alone_p50_of_default for one in outcomes],
            "median latency at one connection, of the default",
        ),
    ):
        axes.bar_label(axes.barh(names, ratios, color=colours), fmt="%.2f", padding=3)
        axes.set_xlabel(label)
        axes.margins(x=0.12)
    left.invert_yaxis()
    return figure


if __name__ == "__main__":
    cyclopts.run(main)
