"""The documentation says what the code does: names are complete, examples run."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from loadtest.__main__ import BENCHMARKS
from loadtest.harness.report import Report, shown
from service.gateway import Gateway
from service.settings import Settings
from service.workers.totals import LARGEST, SMALLEST

ROOT: Final = Path(__file__).parents[1]
OPERATIONS: Final = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
PROTOCOLS: Final = (ROOT / "docs/protocols.md").read_text(encoding="utf-8")
README: Final = (ROOT / "README.md").read_text(encoding="utf-8")
# Told on the command line, where no client sees a code.
COMMAND_LINE_CODES: Final = {"invalid_settings", "request_failed"}
SERVED_AT: Final = "http://127.0.0.1:8000"


def code_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def documented(section: str) -> set[str]:
    """The names in the tables below a heading of the operations guide."""
    body = OPERATIONS.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return set(re.findall(r"`([a-z0-9_]+)`", body))


def test_every_setting_is_documented_with_its_default() -> None:
    for name, field in Settings.model_fields.items():
        default = "" if field.default in (None, {}) else f"`{field.default}`"
        assert f"| `{name}` | {default} | " in OPERATIONS


async def test_every_metric_is_documented() -> None:
    settings = Settings(engine="tfserving", tfserving="localhost:8500")
    metrics = Gateway(settings).metrics
    ours = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in metrics.registry.collect()
        if family.name.startswith("blockserve_")
    }
    assert len(ours) >= 20
    assert ours <= documented("Metrics")


def test_what_workers_tell_once_are_metrics_that_there_are() -> None:
    assert {*LARGEST, *SMALLEST} <= documented("Metrics")


def test_every_error_code_is_documented() -> None:
    codes = set()
    for path in (ROOT / "service").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            value = None
            if isinstance(node, ast.keyword) and node.arg == "code":
                value = node.value
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                target = (
                    node.targets[0] if isinstance(node, ast.Assign) else node.target
                )
                if isinstance(target, ast.Name) and target.id == "code":
                    value = node.value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                codes.add(value.value)
    assert "overloaded" in codes
    assert codes - COMMAND_LINE_CODES <= documented("Errors")


@pytest.mark.parametrize("page", ["docs/models.md"])
def test_the_code_of_a_page_runs_from_top_to_bottom(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    code = "\n".join(code_blocks(text, "python"))
    namespace: dict[str, object] = {"__name__": page}
    exec(compile(code, page, "exec"), namespace)  # noqa: S102, it is our own page


@pytest.fixture
def run(
    gateway_url: str, grpc_address: str, version_directory: Path, tmp_path: Path
) -> Callable[..., str]:
    """Runs an example beside an image, against a running gateway: what it prints."""
    sample = version_directory / "assets.extra/sample.png"
    (tmp_path / "digit.png").write_bytes(sample.read_bytes())

    def run_in_place(program: str, example: str) -> str:
        for documented, actual in (
            (SERVED_AT, gateway_url),
            ("127.0.0.1:8001", grpc_address),
        ):
            example = example.replace(documented, actual)
        done = subprocess.run(
            [program, "-c", example],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (example, done.stderr)
        return done.stdout

    return run_in_place


def test_the_examples_of_the_readme_work_against_a_running_gateway(
    run: Callable[..., str],
) -> None:
    curls = [
        line
        for block in code_blocks(README, "sh")
        for line in block.splitlines()
        if line.startswith("curl")
    ]
    assert len(curls) == 3
    for line in curls:
        assert '"predictions"' in run("bash", line), line
    examples = code_blocks(README, "python")
    assert len(examples) == 3
    outputs = [run(sys.executable, example).split() for example in examples]
    label, probability = outputs[0]
    assert label in set("0123456789")
    assert 0 < float(probability) <= 1
    assert outputs[1] == [label]
    assert outputs[2] == ["1"]


def test_the_examples_of_the_protocols_work_against_a_running_gateway(
    run: Callable[..., str],
) -> None:
    metadata, inference = code_blocks(PROTOCOLS, "bash")
    assert '"signature_def"' in run("bash", metadata)
    (output,) = json.loads(run("bash", inference))["outputs"]
    assert output["shape"] == [1, 2]
    assert all(re.fullmatch(r"[01]\.\d+:(\d):\1", one) for one in output["data"])
    (example,) = code_blocks(PROTOCOLS, "python")
    label, count = run(sys.executable, example).split()
    assert label in set("0123456789")
    assert count == "100"


def test_the_examples_of_the_client_s_page_work_against_a_running_gateway(
    run: Callable[..., str],
) -> None:
    page = (ROOT / "docs/client.md").read_text(encoding="utf-8")
    outputs = [
        run(sys.executable, example).split() for example in code_blocks(page, "python")
    ]
    batch, arrays, files, models, gathered, failures = outputs
    label, first, second, _ = batch[:4]
    assert batch == [label, first, second, batch[3]] * 2
    assert first.endswith(",")
    assert arrays == ["float32", label]
    assert files == [label]
    assert models[:3] == ["True", "1", "AVAILABLE"]
    assert "serving_default images uint8 (None, 28, 28, 1)" in " ".join(models)
    assert gathered == ["1"]
    assert failures == ["NOT_FOUND", "inception"]


def test_the_commands_that_the_readme_names_exist() -> None:
    shell = "\n".join(code_blocks(README, "sh"))
    commands = re.findall(r"blockserve (\w+)", shell)
    assert set(commands) == {"bench", "build", "classify", "models"}
    helped = subprocess.run(
        [sys.executable, "-m", "service", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for command in commands:
        assert f" {command} " in helped
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE):
        assert f"\n{target}: " in makefile, target


def test_the_performance_page_tells_what_was_measured() -> None:
    """Each budget with the number in the committed report, met or not."""
    page = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    reports = [Report.read(path) for path in (ROOT / "docs/performance").glob("*.json")]
    assert {*BENCHMARKS, "compare"} <= {report.name for report in reports}
    for report in reports:
        assert f"python -m loadtest.{report.name}" in page
        assert f"(performance/{report.name}.png)" in page
        assert (ROOT / f"docs/performance/{report.name}.png").is_file()
        for one in report.budgets:
            cells = (
                f"{report.name}: {one.name}",
                shown(one.measured, one.format),
                f"{one.bound} {shown(one.limit, one.format)}",
                "met" if one.met else "**missed**",
            )
            assert f"| {' | '.join(cells)} |" in page


def test_no_pinned_file_carries_an_address() -> None:
    pinned = sorted((ROOT / "deploy/lock").glob("*.txt"))
    assert len(pinned) == 4
    for path in pinned:
        text = path.read_text(encoding="utf-8")
        assert "://" not in text, path
        assert text.count("--hash=sha256:") > text.count("==") > 0
