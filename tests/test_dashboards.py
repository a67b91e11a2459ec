"""Grafana's dashboards: generated, and readable for whom an alert has woken.

There is no Grafana here: what it needs of a file is checked as its schema says, and
`test_monitoring.py` asks a real Prometheus every query.
"""

import re
from itertools import accumulate, groupby, pairwise
from typing import Any, Final

import pytest

from deploy.grafana.boards.__main__ import texts
from tests.deployment import ROOT
from tests.monitoring import DASHBOARDS, dashboards, panels, recorded, rules, targets

OPERATIONS: Final = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
GUIDE: Final = OPERATIONS.split("\n## Dashboards\n")[1].split("\n## ")[0]
COLUMNS: Final = 24
EACH: Final = pytest.mark.parametrize(
    "dashboard", dashboards().values(), ids=dashboards()
)


def test_the_files_are_what_their_source_says() -> None:
    """`make dashboards` would change nothing."""
    found = {path.name: path.read_text(encoding="utf-8") for path in DASHBOARDS}
    assert found == texts()


def test_names_and_addresses_are_unique() -> None:
    found = dashboards()
    assert {one["uid"] for one in found.values()} == {
        f"blockserve-{it}" for it in found
    }
    assert len({one["title"] for one in found.values()}) == len(found)


@EACH
def test_panels_stand_in_full_lines_below_the_titles_of_rows(
    dashboard: dict[str, Any],
) -> None:
    everything = dashboard["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    below = 0
    for y, group in groupby(everything, lambda panel: panel["gridPos"]["y"]):
        places = [panel["gridPos"] for panel in group]
        assert y == below
        assert len({place["h"] for place in places}) == 1
        right = list(accumulate(place["w"] for place in places))
        assert [place["x"] for place in places] == [0, *right[:-1]]
        assert right[-1] == COLUMNS
        below += places[0]["h"]
    types = [panel["type"] for panel in everything]
    assert types[0] == "row"
    assert types[-1] != "row"
    assert ("row", "row") not in pairwise(types)


@EACH
def test_each_panel_says_what_to_look_for_and_in_which_unit(
    dashboard: dict[str, Any],
) -> None:
    titles = [panel["title"] for panel in panels(dashboard)]
    assert len(set(titles)) == len(titles)
    for panel in panels(dashboard):
        assert len(panel["description"]) > 20
        assert panel["description"].endswith((".", "?"))
        assert panel["fieldConfig"]["defaults"]["unit"]


@EACH
def test_all_that_is_asked_is_asked_of_the_chosen_source(
    dashboard: dict[str, Any],
) -> None:
    source = {"type": "prometheus", "uid": "$datasource"}
    variables = {one["name"]: one for one in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    asking = [
        *panels(dashboard),
        *dashboard["annotations"]["list"],
        *(target for panel in panels(dashboard) for target in panel["targets"]),
        *(one for name, one in variables.items() if name != "datasource"),
    ]
    assert all(one["datasource"] == source for one in asking)


@EACH
def test_every_variable_is_used_and_every_one_used_is_there(
    dashboard: dict[str, Any],
) -> None:
    names = {one["name"] for one in dashboard["templating"]["list"]}
    text = str([panel["targets"] for panel in panels(dashboard)])
    used = set(re.findall(r"\$(\w+)", text))
    assert used - {"__rate_interval"} == names


def test_legends_name_what_answers_are_apart_by() -> None:
    """Else two lines of one panel would have the same name."""
    for target in targets():
        # By the labels of the outermost sum.
        by = re.search(r"\bby \(([\w, ]+)\)", target.expression)
        labels = {it.strip() for it in by[1].split(",")} - {"le"} if by else set()
        if not target.expression.startswith(("min(", "max(", "sum(", "count(")):
            missing = {it for it in labels if f"{{{{{it}}}}}" not in target.legend}
            assert not missing, target


def test_queries_use_what_there_is() -> None:
    """Metrics of ours are documented, and recorded series are recorded."""
    documented = set(re.findall(r"\bblockserve_[a-z_]+\b", OPERATIONS))
    names = {rule["record"] for rule in recorded()}
    expressions = [
        *(target.expression for target in targets()),
        *(rule["expr"] for rule in rules()),
    ]
    for expression in expressions:
        for name in re.findall(r"(?<![\w:])blockserve_[a-z_]+\b", expression):
            metric = re.sub(r"_(bucket|sum|count)$", "", name)
            assert {name, metric} & documented, expression
        series = re.findall(r"\b[a-z_]+:blockserve_[a-z_]+:[a-z0-9_]+", expression)
        assert set(series) <= names, expression


def test_metrics_of_tensorflow_serving_are_those_of_the_real_one() -> None:
    recording = ROOT / "tests/golden/rest/prometheus_disabled_or_enabled.json"
    text = recording.read_text(encoding="utf-8")
    known = set(re.findall(r"# TYPE (:tensorflow:[\w:]+) \w+", text))
    for target in targets():
        for name in re.findall(r":tensorflow:[\w:]+", target.expression):
            histogram = re.sub(r"_(bucket|sum|count)$", "", name)
            assert {name, histogram} & known, target


def test_the_guide_describes_every_dashboard_and_row() -> None:
    for dashboard in dashboards().values():
        title = dashboard["title"].removeprefix("blockserve / ")
        assert f"### {title}\n" in GUIDE
        section = GUIDE.split(f"### {title}\n")[1].split("\n### ")[0]
        for row in dashboard["panels"]:
            if row["type"] == "row":
                assert f"**{row['title'].rstrip('?')}" in section, row["title"]


def test_the_guide_names_panels_that_there_are() -> None:
    titles = {panel["title"] for one in dashboards().values() for panel in panels(one)}
    sections = re.split(r"^## ", OPERATIONS, flags=re.MULTILINE)
    about = [it for it in sections if re.match("Dashboards|Alerts|Capacity", it)]
    assert len(about) == 3
    named = re.findall(r"(?<!\*)\*([A-Z][^*\n]+)\*(?!\*)", "\n".join(about))
    assert len(named) > 30
    assert set(named) <= titles
