"""The rules that operators load into Prometheus: right, tested and explained."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from service.settings import Settings
from tests.deployment import ROOT
from tests.monitoring import (
    PROMETHEUS,
    RULE_FILES,
    alerts,
    anchors,
    program,
    read,
    recorded,
)
from tests.support import only

TESTS: Final = sorted((PROMETHEUS / "tests").glob("*.yml"))
OPERATIONS: Final = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
RUNBOOK: Final = OPERATIONS.split("\n## Alerts\n")[1].split("\n## ")[0]


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run(
        [program("promtool"), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.prometheus
def test_prometheus_reads_its_configuration() -> None:
    promtool("check", "config", "--syntax-only", PROMETHEUS / "prometheus.yml")


@pytest.mark.prometheus
def test_prometheus_reads_the_rules_and_finds_nothing_to_warn_of() -> None:
    promtool("check", "rules", "--lint=all", "--lint-fatal", *RULE_FILES)


@pytest.mark.prometheus
@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_alerts_fire_when_they_should_and_only_then(path: Path) -> None:
    promtool("test", "rules", path)


def cases() -> Iterator[dict[str, Any]]:
    """Every question after an alert in the tests of the rules."""
    for path in TESTS:
        for test in read(path)["tests"]:
            yield from test.get("alert_rule_test", ())


def test_each_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    silent = {case["alertname"] for case in cases() if not case["exp_alerts"]}
    firing = {
        (case["alertname"], labels.get("window"))
        for case in cases()
        for labels in (alert["exp_labels"] for alert in case["exp_alerts"])
    }
    # Rules that share a name have different windows, and each fires.
    assert firing == {(it["alert"], it["labels"].get("window")) for it in alerts()}
    assert silent == {alert["alert"] for alert in alerts()}


def test_each_alert_says_how_bad_it_is_and_what_is_wrong_where() -> None:
    for alert in alerts():
        assert alert["labels"]["severity"] in {"page", "ticket"}
        annotations = alert["annotations"]
        assert annotations.keys() == {"summary", "description", "runbook_url"}
        assert "$labels." in annotations["summary"]
        assert "$value" in annotations["description"]
        assert "$labels.job" in annotations["description"]


def test_each_alert_leads_to_its_section_of_the_runbook() -> None:
    for alert in alerts():
        page, _, anchor = alert["annotations"]["runbook_url"].partition("#")
        assert anchor == alert["alert"].lower()
        assert anchor in anchors((ROOT / page).read_text(encoding="utf-8"))
    sections = re.findall(r"^### (\w+)$", RUNBOOK, re.MULTILINE)
    assert sorted(sections) == sorted({alert["alert"] for alert in alerts()})


def test_the_runbook_has_each_alerts_severity() -> None:
    for alert in alerts():
        section = RUNBOOK.split(f"\n### {alert['alert']}\n")[1].split("\n### ")[0]
        assert section.lstrip().startswith(f"*{alert['labels']['severity']}*")


def test_recorded_series_are_named_level_metric_operations() -> None:
    for rule in recorded():
        assert re.fullmatch(r"[a-z_]+:[a-z_]+:[a-z0-9_]+", rule["record"])
        level, *_ = rule["record"].split(":")
        if by := re.search(r"\b(?:sum|min|count) by \(([\w, ]+)\)", rule["expr"]):
            labels = {label.strip() for label in by[1].split(",")} - {"le"}
            # What is static is in the level as well.
            assert set(level.split("_")) - set(rule.get("labels", ())) == labels


def test_faults_of_the_server_are_the_codes_with_a_status_of_500_or_more() -> None:
    rule = only(
        one
        for one in recorded()
        if one["record"] == "job_model_version:blockserve_faults:rate5m"
    )
    kinds = re.findall(r'kind=~"([^"]+)"', rule["expr"])
    rows = re.findall(r"^\| 5\d\d \| (.*) \|$", OPERATIONS, re.MULTILINE)
    codes = {code for row in rows for code in re.findall(r"`([a-z_]+)`", row)}
    assert set(only(kinds).split("|")) == codes


def test_the_time_that_a_request_may_take_is_a_bucket() -> None:
    rule = only(
        one for one in recorded() if one["record"] == "job:blockserve_slow:rate5m"
    )
    threshold = float(only(re.findall(r'le="([\d.]+)"', rule["expr"])))
    buckets = Settings.model_fields["duration_buckets_seconds"].default
    assert threshold in buckets
    # Prometheus 3 writes whole numbers otherwise than Prometheus 2.
    assert not threshold.is_integer()
    assert f"{threshold * 1000:.0f} ms" in RUNBOOK


def test_the_guide_tells_the_objectives() -> None:
    objectives = {
        rule["labels"]["slo"]: float(re.findall(r"[\d.]+", rule["expr"])[0])
        for rule in recorded()
        if rule["record"] == "slo:blockserve_objective:ratio"
    }
    assert objectives.keys() == {"availability", "latency"}
    for objective in objectives.values():
        assert f"{objective * 100:g} %" in RUNBOOK
