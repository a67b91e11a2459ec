"""A dashboard: rows of panels, what can be chosen above them, and how it is written."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from grafana_foundation_sdk.builders.dashboard import (
    AnnotationQuery,
    Dashboard,
    DashboardLink,
    DatasourceVariable,
    QueryVariable,
    Row,
)
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    Panel,
    VariableModel,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

from deploy.grafana.boards.panels import SOURCE

DIRECTORY: Final = Path(__file__).parents[1] / "dashboards"
TAG: Final = "blockserve"
ALL: Final = VariableOption(text="All", value="$__all", selected=True)

# Label values to choose from, each within what was chosen before it: the series that
# have them. `.*` matches requests of no model, too.
CHOICES: Final = {
    "instance": "blockserve_requests_in_flight",
    "model": 'blockserve_engine_slots{instance=~"$instance"}',
    "version": 'blockserve_engine_slots{instance=~"$instance", model=~"$model"}',
    "replica": 'blockserve_tfserving_replica_up{instance=~"$instance"}',
    "server": 'up{job="tfserving"}',
    "model_name": ':tensorflow:serving:request_count{instance=~"$server"}',
}
LABELS: Final = {
    "instance": "Gateway",
    "server": "TensorFlow Serving",
    "model_name": "Model",
}
# A choice whose label is called otherwise.
LABEL_OF: Final = {"server": "instance"}

Rows = Mapping[str, Sequence[Builder[Panel]]]


def board(
    name: str, title: str, description: str, rows: Rows, *, choices: Sequence[str]
) -> Dashboard:
    """A dashboard with rows in the order in which an operator reads them.

    Args:
        name: The file's, and the end of its address.
        title: Its title.
        description: What it is for, and where its data come from.
        rows: Titles of rows, and their panels.
        choices: What can be chosen; see `CHOICES`.
    """
    made = (
        Dashboard(f"blockserve / {title}")
        .uid(f"{TAG}-{name}")
        .description(description)
        .tags([TAG])
        .readonly()
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .time("now-1h", "now")
        .refresh("10s")
        .timezone("browser")
        .variables([_source(), *map(_choice, choices)])
        .link(
            DashboardLink("blockserve")
            .type(DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .keep_time(True)
            .include_vars(True)
        )
        .annotation(
            AnnotationQuery()
            .name("Alerts")
            .datasource(SOURCE)
            .enable(True)
            .icon_color("red")
            .expr('ALERTS{alertname=~"Blockserve.*", alertstate="firing"}')
        )
    )
    for row, panels in rows.items():
        made.with_row(Row(row))
        for panel in panels:
            made.with_panel(panel)
    return made


def written(dashboard: Dashboard) -> str:
    """The dashboard as Grafana reads it."""
    made = dashboard.build()
    for number, panel in enumerate(made.panels or (), start=1):
        panel.id_val = number
    return json.dumps(made, cls=JSONEncoder, indent=1, sort_keys=True) + "\n"


def _source() -> DatasourceVariable:
    return (
        DatasourceVariable("datasource")
        .label("Data source")
        .type("prometheus")
        .current(VariableOption(text="Prometheus", value="prometheus", selected=True))
    )


def _choice(name: str) -> Builder[VariableModel]:
    label = LABEL_OF.get(name, name)
    return (
        QueryVariable(name)
        .label(LABELS.get(name, name.capitalize()))
        .datasource(SOURCE)
        .query(f"label_values({CHOICES[name]}, {label})")
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(ALL)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.NATURAL_ASC)
    )
