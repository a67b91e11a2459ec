"""The command line: what it prints, and what it says to wrong use."""

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support import (
    BLOCKSERVE,
    address_of,
    image_of_class,
    serving,
    stub_version,
)


def blockserve(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        timeout=60,
    )


def test_help_describes_every_command(tmp_path: Path) -> None:
    done = blockserve("--help", cwd=tmp_path)
    assert done.returncode == 0
    for line in (
        "architectures  List the architectures",
        "bench          Load a gateway",
        "build          Train an architecture",
        "classify       Classify image files",
        "models         List the models",
        "plot           Draw an architecture",
        "serve          Serve the repository's models",
        "summary        Print Keras' summary",
    ):
        assert line in done.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "hint"),
    [
        (["nonsense"], 2, "Available commands"),
        (["serve", "--enginee", "x"], 2, "--engine"),
        (["serve", "--http-port", "99999"], 2, "http_port"),
        (["serve", "--engine", "magic"], 2, "'openvino'"),
        (["serve", "--config", "absent.toml"], 1, "absent.toml"),
        (["serve", "--repository", "file"], 1, "is not a directory"),
        (["models", "--repository", "absent"], 1, "blockserve build"),
        (["classify"], 2, "IMAGE"),
        (["classify", "absent.png"], 1, "No such file"),
        (["classify", "file", "--url", "http://127.0.0.1:9"], 1, "blockserve serve"),
        (["classify", "file", "--url", "grpc://127.0.0.1:9"], 1, "blockserve serve"),
        (["classify", "file", "--url", "ftp://127.0.0.1"], 1, "grpc://HOST:PORT"),
    ],
)
def test_wrong_use_says_what_to_do_instead(
    tmp_path: Path, arguments: list[str], status: int, hint: str
) -> None:
    (tmp_path / "file").touch()
    done = blockserve(*arguments, cwd=tmp_path)
    assert done.returncode == status, done.stderr
    assert hint in done.stderr
    assert "Traceback" not in done.stderr


def test_models_lists_what_the_repository_holds(tmp_path: Path) -> None:
    stub_version(tmp_path, "first", 1)
    stub_version(tmp_path, "first", 2)
    (stub_version(tmp_path, "second") / "assets.extra/model_card.json").unlink()
    done = blockserve("models", "--repository", ".", cwd=tmp_path)
    assert done.returncode == 0
    rows = [line.split() for line in done.stdout.splitlines() if line.strip()]
    assert ["first", "2", "stub", "4×4×1", "2026-01-01"] in rows
    assert ["first", "1", "stub", "4×4×1", "2026-01-01"] in rows
    assert ["second", "1", "no", "model", "card"] in rows


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_classify_prints_a_row_for_each_image(
    tmp_path: Path, scheme: str
) -> None:
    stub_version(tmp_path)
    (tmp_path / "good.png").write_bytes(image_of_class(3))
    (tmp_path / "bad.png").write_bytes(b"no image")
    async with serving(tmp_path) as served:
        url = address_of(served, scheme)
        done = await asyncio.to_thread(
            blockserve, "classify", "good.png", "bad.png", "--url", url, cwd=tmp_path
        )
    assert "good.png   d  90.0%" in done.stdout
    assert done.returncode == 1
    assert "bad.png: 8 bytes that are not an image" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ending_the_gateway_while_it_builds_the_demo_ends_the_build(
    tmp_path: Path, number: signal.Signals
) -> None:
    command = [*BLOCKSERVE, "serve", "--repository", str(tmp_path / "repository")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        assert "building the demo model first" in process.stdout.readline()
        gateway = psutil.Process(process.pid)
        while not (builds := gateway.children()):
            assert process.poll() is None
        process.send_signal(number)
        process.communicate(timeout=60)
        gone, alive = psutil.wait_procs(builds, timeout=60)
    assert (len(gone), alive) == (1, [])
    assert process.returncode == 128 + number
