"""What tests of Prometheus' rules and Grafana's dashboards need: both, as data."""

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.deployment import ROOT

PROMETHEUS: Final = ROOT / "deploy/prometheus"
RULE_FILES: Final = sorted((PROMETHEUS / "rules").glob("*.yml"))
DASHBOARDS: Final = sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))


def program(name: str) -> str:
    """Where Prometheus or its tool is; a test without it is skipped, except in CI."""
    path = shutil.which(name)
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(f"CI needs {name}, of the package prometheus")
        pytest.skip(f"no {name} on this machine")
    return path


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def rules() -> list[dict[str, Any]]:
    """Every rule, of all files."""
    return [
        rule
        for path in RULE_FILES
        for group in read(path)["groups"]
        for rule in group["rules"]
    ]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def recorded() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "record" in rule]


@dataclass(frozen=True, slots=True)
class Target:
    """One query of a panel."""

    dashboard: str
    panel: str
    expression: str
    legend: str

    def __str__(self) -> str:
        return f"{self.dashboard} / {self.panel}: {self.expression}"


def dashboards() -> dict[str, dict[str, Any]]:
    """Every dashboard, by the name of its file."""
    return {
        path.stem: json.loads(path.read_text(encoding="utf-8")) for path in DASHBOARDS
    }


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """Its panels, without the titles of rows."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def targets() -> list[Target]:
    """Every query of every panel."""
    return [
        Target(name, panel["title"], target["expr"], target["legendFormat"])
        for name, dashboard in dashboards().items()
        for panel in panels(dashboard)
        for target in panel["targets"]
    ]


def anchors(markdown: str) -> set[str]:
    """What links can name in a page: its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", markdown, re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in headings
    }
