"""The images: what they hold, who they run as, and whether they are well made.

No engine builds them here. hadolint reads the Dockerfile, and what it installs is
installed below a directory.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.deployment import (
    GRPC_PORT,
    HTTP_PORT,
    PROGRAMS,
    ROOT,
    answering,
    dockerfile,
    health_check,
)
from tests.support import ANNOUNCEMENT, only


def test_hadolint_has_nothing_to_say() -> None:
    done = subprocess.run(
        [PROGRAMS / "hadolint", "Dockerfile"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("target", "program", "argument"),
    [
        ("gateway", "blockserve", "serve"),
        ("build", "blockserve", "build"),
        ("loadtest", "locust", "--help"),
    ],
)
def test_an_image_runs_its_program_as_nobody_in_particular(
    target: str, program: str, argument: str
) -> None:
    arguments, stages = dockerfile()
    assert list(stages)[-1] == "gateway"  # what is built where no target is named
    stage = stages[target]
    assert stage.base == "base"
    assert stages["base"].base == "${PYTHON_IMAGE}"
    assert arguments.keys() == {"PYTHON_IMAGE"}
    assert stage.all("USER") == ["10001:10001"]
    assert json.loads(only(stage.all("ENTRYPOINT"))) == [program]
    assert json.loads(only(stage.all("CMD")))[0] == argument
    assert all("pip" not in text for text in stage.all("RUN"))


def test_an_image_gets_signals_where_the_gateway_listens_for_them() -> None:
    gateway = dockerfile()[1]["gateway"]
    assert gateway.all("STOPSIGNAL") == ["SIGTERM"]
    assert gateway.all("EXPOSE") == [f"{HTTP_PORT} {GRPC_PORT}"]


def test_the_gateway_image_gets_no_tensorflow() -> None:
    stages = dockerfile()[1]
    copied = only(stages["gateway"].all("COPY"))
    assert copied.startswith("--from=gateway-installed ")
    locks = [
        text
        for name in ("gateway-packages", "gateway-installed")
        for text in stages[name].all("COPY")
        if "deploy/lock" in text
    ]
    assert locks == ["deploy/lock/gateway.txt deploy/lock/"]
    locked = (ROOT / "deploy/lock/gateway.txt").read_text(encoding="utf-8")
    assert not re.search(r"^(tensorflow|keras)", locked, re.MULTILINE)


def test_the_gateway_image_can_trace() -> None:
    """Whether it does is said where it runs, and that should need no other image."""
    locked = (ROOT / "deploy/lock/gateway.txt").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for requirement in project["project"]["optional-dependencies"]["tracing"]:
        name = requirement.partition(">")[0]
        assert re.search(rf"^{name}==", locked, re.MULTILINE), name


def test_everything_that_is_copied_exists_and_is_sent_to_the_engine() -> None:
    sources = {
        source
        for stage in dockerfile()[1].values()
        for text in stage.all("COPY")
        if not text.startswith("--from")
        for source in text.split()[:-1]
    }
    assert all((ROOT / source).exists() for source in sources)
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in ignored if line and line[0] != "#"]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule[0] == "!"} == sources


def test_what_the_wheel_holds_is_copied() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    packages = re.search(r"wheel\]\npackages = (\[.*\])", text)
    assert packages
    copied = " ".join(dockerfile()[1]["wheel"].all("COPY")).split()
    assert set(json.loads(packages[1])) <= set(copied)


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_the_health_check_of_the_gateway(status: int, healthy: bool) -> None:
    with answering(status) as (port, asked):
        url = f"http://127.0.0.1:{port}"
        assert (health_check(url).returncode == 0) == healthy
    assert asked == ["/readyz"]
    assert health_check(url).returncode != 0


class Engine:
    """Carries the Dockerfile's instructions out below a directory, without users."""

    def __init__(self, root: Path) -> None:
        self.root = self._directory = root
        # The base image brings these.
        subprocess.run([sys.executable, "-m", "venv", root / "python"], check=True)
        path = f"{root}/python/bin:/usr/bin:/bin"
        self.environment = {"PATH": path, "HOME": str(root)}

    def build(self, *stages: str) -> None:
        found = dockerfile()[1]
        for stage in stages:
            for instruction, text in found[stage].instructions:
                getattr(self, f"_{instruction.lower()}", lambda _: None)(text)

    def _here(self, text: str) -> str:
        """With our own absolute paths below the root."""
        ours = r"(?<![\w./])/(opt/blockserve|source|wheel|models)\b"
        return re.sub(ours, rf"{self.root}/\1", text)

    def _env(self, text: str) -> None:
        for setting in shlex.split(text):
            name, _, value = setting.partition("=")
            value = value.replace("$PATH", self.environment["PATH"])
            if name != "HOME":
                self.environment[name] = self._here(value)

    def _workdir(self, text: str) -> None:
        self._directory = Path(self._here(text))
        self._directory.mkdir()

    def _copy(self, text: str) -> None:
        *sources, goal = text.split()
        if sources[0].startswith("--from"):
            return  # all stages have one root here
        for source in sources:
            to = self._directory / goal
            to = to / Path(source).name if goal[-1] == "/" else to
            to.parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
            copy(ROOT / source, to)

    def _run(self, text: str) -> None:
        if "useradd" not in text:
            subprocess.run(
                ["/bin/sh", "-c", self._here(text)],
                cwd=self._directory,
                env=self.environment,
                check=True,
            )


@pytest.mark.slow
def test_the_gateway_image_s_packages_are_enough_to_serve(
    repository: Path, tmp_path: Path
) -> None:
    engine = Engine(tmp_path)
    engine.build("base", "gateway-packages", "wheel", "gateway-installed")
    program = tmp_path / "opt/blockserve/bin/blockserve"
    assert not list(tmp_path.glob("opt/blockserve/lib/*/site-packages/tensorflow*"))
    assert not (tmp_path / "opt/blockserve/bin/pip").exists()
    assert list((tmp_path / "opt/blockserve").rglob("service/__pycache__/*.pyc"))
    (tmp_path / "empty").mkdir()
    command = [program, "serve", "--http-port", "0", "--grpc-port", "0"]
    with subprocess.Popen(
        [*command, "--repository", repository],
        cwd=tmp_path / "empty",
        env=engine.environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        found = next(filter(None, map(ANNOUNCEMENT.search, process.stderr)))
        assert health_check(found[1]).returncode == 0
        process.terminate()
        process.communicate()
        assert process.returncode == 0


@pytest.mark.slow
def test_the_build_image_s_packages_are_enough_to_build(tmp_path: Path) -> None:
    engine = Engine(tmp_path)
    engine.build("base", "gateway-packages", "wheel", "build-packages")
    (tmp_path / "empty").mkdir()
    subprocess.run(
        [tmp_path / "opt/blockserve/bin/blockserve", "build", "lenet", "--untrained"],
        cwd=tmp_path / "empty",
        env=engine.environment,
        check=True,
        capture_output=True,
    )
    assert (tmp_path / "models/lenet/1/saved_model.pb").is_file()
    assert list(tmp_path.joinpath("empty").iterdir()) == []


@pytest.mark.slow
def test_the_load_test_image_s_packages_are_enough_to_ask(
    gateway_url: str, grpc_address: str, tmp_path: Path
) -> None:
    engine = Engine(tmp_path)
    engine.build("base", "gateway-packages", "wheel", "loadtest-packages", "loadtest")
    (tmp_path / "empty").mkdir()
    addresses = ("--host", gateway_url, "--grpc-host", grpc_address)
    load = ("--headless", "--run-time", "5s", "--users", "12", "--spawn-rate", "12")
    done = subprocess.run(
        [tmp_path / "opt/blockserve/bin/locust", *addresses, *load, "--json"],
        cwd=tmp_path / "empty",
        env=engine.environment,
        check=True,
        capture_output=True,
    )
    assert len(json.loads(done.stdout)) == 6
    program = tmp_path / "opt/blockserve/bin/python"
    photographs = "from loadtest.harness.workloads import photographs; photographs()"
    subprocess.run([program, "-c", photographs], cwd=tmp_path / "empty", check=True)
