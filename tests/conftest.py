"""Fixtures that several test modules share."""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from models.datasets import Dataset, digits
from tests.support import BLOCKSERVE, make_certificate, started

POOL: Final = "service.engines.tfserving.pool"
_BUILD: Final = pytest.StashKey[tuple[Path, subprocess.Popen[bytes]]]()


def _needs_build(item: pytest.Item) -> bool:
    return "repository" in getattr(item, "fixturenames", ())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests that wait for the build last."""
    items.sort(key=_needs_build)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the build that some tests need; it runs while the others do."""
    if session.config.option.collectonly or not any(map(_needs_build, session.items)):
        return
    directory = Path(tempfile.mkdtemp(prefix="blockserve-build-"))
    repository = str(directory / "repository")
    with (
        (directory / "stdout").open("w") as out,
        (directory / "stderr").open("w") as err,
    ):
        build = subprocess.Popen(
            [*BLOCKSERVE, "build", "--epochs", "1", "--repository", repository],
            stdout=out,
            stderr=err,
        )
    session.config.stash[_BUILD] = (directory, build)


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the build, should the run have ended before it."""
    if _BUILD in config.stash:
        directory, build = config.stash[_BUILD]
        build.kill()
        build.wait()
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def repository(pytestconfig: pytest.Config) -> Path:
    """A repository with a real build of `inception`, trained for one epoch only.

    Made by the program itself, so that its command line is tested on the way; what it
    printed is in the files `stdout` and `stderr` beside the repository.
    """
    directory, build = pytestconfig.stash[_BUILD]
    assert build.wait() == 0, (directory / "stderr").read_text(encoding="utf-8")
    return directory / "repository"


@pytest.fixture(scope="session")
def version_directory(repository: Path) -> Path:
    """The version that the build has made."""
    return repository / "inception" / "1"


@pytest.fixture(scope="session")
def digit_data() -> Dataset:
    """The digits, read once: that takes seconds."""
    return digits()


@pytest.fixture(scope="session")
def announcement(repository: Path) -> Iterator[str]:
    """What `blockserve serve` said when it began to serve the build."""
    with started("--repository", str(repository)) as (_, _, lines):
        yield "".join(lines)


@pytest.fixture(scope="session")
def gateway_url(announcement: str) -> str:
    """Where the running program answers HTTP."""
    return re.findall(r"HTTP at (\S+),", announcement)[0]


@pytest.fixture(scope="session")
def grpc_address(announcement: str) -> str:
    """Where the running program answers gRPC."""
    return re.findall(r"gRPC at (\S+)", announcement)[0]


@pytest.fixture
def certificate(tmp_path: Path) -> dict[str, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    key, chain = make_certificate(tmp_path, "chain")
    return {"tls_key": key, "tls_certificate": chain}


@pytest.fixture
def quick_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicas are asked more often than once a second."""
    monkeypatch.setattr(f"{POOL}.PROBE_SECONDS", 0.02)
    monkeypatch.setattr(f"{POOL}.SHORTEST_PROBE_SECONDS", 0.01)
    monkeypatch.setattr(f"{POOL}.RESOLVE_SECONDS", 0.02)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica that does not answer soon does not answer."""
    monkeypatch.setattr(f"{POOL}.PROBE_TIMEOUT_SECONDS", 0.1)
    monkeypatch.setattr(f"{POOL}.LEAST_PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(f"{POOL}.UNKNOWN_ANSWER_SECONDS", 0.01)
