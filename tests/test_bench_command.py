"""`blockserve bench` as a command: with a real Locust, and what it ends with."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from loadtest.bench import command
from loadtest.bench.measuring import LoadFailed, measure
from loadtest.bench.results import Run
from loadtest.commands import NotInstalled, Options, bench
from loadtest.shapes import Stage
from tests import runs
from tests.locusts import answering_as_tf_serving
from tests.support import started, stub_version

COMMAND = (sys.executable, "-m", "service", "bench")
ENVIRONMENT = {
    **os.environ,
    "BLOCKSERVE_ENGINE": "stub",
    "BLOCKSERVE_TOKEN": "secret",
    "PYTHONUNBUFFERED": "1",
}


def blockserve_bench(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run it with the stub engine."""
    return subprocess.run(
        [*COMMAND, *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        timeout=90,
    )


def left_in(directory: Path) -> list[psutil.Process]:
    """The processes that still run there."""
    return [
        one for one in psutil.process_iter(["cwd"]) if one.info["cwd"] == str(directory)
    ]


def test_a_gateway_is_started_loaded_judged_and_ended(tmp_path: Path) -> None:
    stub_version(tmp_path / "models")
    done = blockserve_bench(
        *("--repository", "models", "--shape", "ramp", "--duration", "9"),
        *("--processes", "2", "--protocol", "http", "--protocol", "grpc"),
        *("--protocol", "http"),
        *("--repetitions", "1", "--slo", "p99<0.01ms", "--output", "out"),
        cwd=tmp_path,
    )
    assert done.returncode == 1, done.stderr
    assert left_in(tmp_path) == []
    assert "repetition 1/1, stage 1/3, 100/s asked" in done.stdout
    assert "p99<0.01ms: missed" in done.stdout
    assert "in stage 1" in done.stdout
    assert "secret" not in done.stdout + done.stderr
    run = Run.read(tmp_path / "out/report.json")
    assert run.protocols == ["http", "grpc"]
    assert len(run.stages) == 3
    stage = run.stages[1]
    assert stage.measure("rps") == pytest.approx(100, rel=0.3)
    assert stage.failures == {}
    assert stage.over("http").measure("rps") == pytest.approx(50, rel=0.4)
    assert stage.over("grpc").measure("rps") == pytest.approx(50, rel=0.4)
    assert stage.measure("p99") > 0
    assert stage.gateway("batch_rows") >= 1
    assert 0 < stage.generator_busy < 1
    assert run.settings["server"] == "version 1 on stub, started for this"
    with (tmp_path / "out/report.csv").open(newline="") as file:
        rows = [one for one in csv.DictReader(file) if one["protocol"] == "all"]
    row = rows[1]
    assert float(row["answers_per_second"]) == pytest.approx(stage.measure("rps"), 1e-4)
    html = (tmp_path / "out/report.html").read_text()
    assert "Objective missed:" in html
    assert "secret" not in html + json.dumps(run.settings)


def test_tensorflow_serving_alone_is_loaded_over_its_own_protocols(
    tmp_path: Path,
) -> None:
    stub_version(tmp_path, "digits", side=28)
    with (
        started("--engine", "stub", "--repository", str(tmp_path)) as (_, gateway, _),
        answering_as_tf_serving(gateway) as url,
    ):
        arguments = ("--url", url, "--shape", "ramp", "--duration", "9")
        asked = ("--repetitions", "1", "--model", "digits", "--output", "out")
        refused = blockserve_bench(*arguments, *asked, cwd=tmp_path)
        done = blockserve_bench(
            *(*arguments, *asked, "--protocol", "tf_serving_http"), cwd=tmp_path
        )
        unnamed = blockserve_bench(*arguments, cwd=tmp_path)
        unknown = blockserve_bench(*arguments, "--model", "cats", cwd=tmp_path)
    assert {one.returncode for one in (unnamed, unknown, refused)} == {1}
    assert "it has no 'cats'" in " ".join(unknown.stderr.split())
    assert "say which model" in " ".join(unnamed.stderr.split())
    assert "answers tf_serving_http, tf_serving_grpc, and not http" in " ".join(
        refused.stderr.split()
    )
    assert done.returncode == 0, done.stderr
    run = Run.read(tmp_path / "out/report.json")
    assert run.settings["server"] == "TensorFlow Serving, version 1"
    stage = run.stages[1]
    assert stage.measure("rps") == pytest.approx(100, rel=0.3)
    assert stage.failures == {}
    # There is nobody to tell of batches, but Locust's own processes are known.
    assert math.isnan(stage.gateway("batch_rows"))
    assert 0 < stage.generator_busy < 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_was_started_ends_with_it(number: signal.Signals, tmp_path: Path) -> None:
    stub_version(tmp_path / "models")
    with subprocess.Popen(
        [*COMMAND, "--repository", "models", "--shape", "soak"],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    ) as process:
        assert process.stdout is not None
        assert "stage 1/2" in process.stdout.readline()
        assert len(left_in(tmp_path)) >= 3
        process.send_signal(number)
        process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "status", "hint"),
    [
        (["--slo", "p99<fast"], 2, "errors<0.1%"),
        (["--shape", "triangle"], 2, "capacity"),
        (["--repetitions", "0"], 2, "repetitions"),
        (["--compare", "absent.json"], 2, "--compare: absent.json: No such file"),
        (["--compare", "old.json"], 2, "the old run has shape step, this one capacity"),
        (["--url", "http://127.0.0.1:9"], 1, "nobody answers at http://127.0.0.1:9"),
    ],
)
def test_wrong_use_is_told_before_anything_is_measured(
    arguments: list[str], status: int, hint: str, tmp_path: Path
) -> None:
    runs.run().write(tmp_path / "old.json")
    done = blockserve_bench(*arguments, cwd=tmp_path)
    assert done.returncode == status, done.stderr
    assert hint in " ".join(done.stderr.replace("│", "").split())
    assert "Traceback" not in done.stderr


def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("loadtest.commands.NEEDED", ("json", "absent_locust"))
    with pytest.raises(NotInstalled, match=r"absent_locust: .*blockserve\[loadtest\]"):
        bench()


def test_the_command_line_lists_it_without_what_it_needs() -> None:
    code = "import sys, loadtest.commands; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert not loaded & {"locust", "gevent", "matplotlib", "numpy", "psutil"}


Tell = Callable[..., int]


@pytest.fixture
def tell(tmp_path: Path) -> Tell:
    """Judges a run that was made up, and writes its report."""

    def told(run: Run, *, old: Run | None = None, slo: str | None = None) -> int:
        options = Options(output=tmp_path / "out", slo=slo, shape="step")
        return command.tell(options, run, old)

    return told


def test_the_status_tells_whether_the_objective_was_met(
    tell: Tell, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tell(runs.run()) == 0
    assert tell(runs.run(), slo="p99<50ms,rps>10") == 0
    assert "p99<50ms,rps>10: met" in capsys.readouterr().out
    assert tell(runs.run(), slo="p99<15ms,rps>10") == 1
    printed = capsys.readouterr().out
    assert "p99<15ms,rps>10: missed" in printed
    assert "p99<15ms was missed: " in printed
    assert "in stage 3" in printed


def test_protocols_that_share_the_load_are_printed_at_the_highest_load(
    tell: Tell, capsys: pytest.CaptureFixture[str]
) -> None:
    tell(runs.run(protocols=("http", "tf_serving_grpc")))
    printed = capsys.readouterr().out
    table = printed[printed.index(" protocol ") :]
    rows = [line.split()[:4] for line in table.splitlines() if " ms" in line]
    assert rows == [["3", "200", "http", "100"], ["3", "200", "tf_serving_grpc", "100"]]


def test_a_narrow_terminal_has_room_for_all_that_is_printed(
    tell: Tell, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_console", lambda: Console(width=80))
    tell(runs.run(protocols=("http", "open_inference_http")))
    printed = capsys.readouterr().out
    assert "open_inference_http" in printed
    assert "…" not in printed


def test_what_changed_is_printed_with_its_noise(
    tell: Tell, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    slower = runs.run(slower=1.5, seed=1, processor="another")
    assert tell(slower, old=runs.run()) == 0
    printed = capsys.readouterr().out
    assert "worse" in printed
    assert "cannot tell" in printed
    assert "not the same machine: processor: made up before, another now" in printed
    assert "Since the run before" in (tmp_path / "out/report.html").read_text()
    tell(runs.run(repetitions=2), old=runs.run(repetitions=2))
    assert "fewer than 3 repetitions" in capsys.readouterr().out


def test_a_load_that_cannot_be_sent_is_told_with_what_locust_printed() -> None:
    code = "print('no such user'); raise SystemExit(3)"
    with pytest.raises(LoadFailed, match="no such user"):
        measure(
            lambda _: [sys.executable, "-c", code],
            [Stage(1, 1)],
            url="http://127.0.0.1:9",
            model="any",
            token=None,
            on_moment=lambda _: None,
        )
