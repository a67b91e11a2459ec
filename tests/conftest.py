"""Fixtures that several test modules share."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import started


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a real build of `inception`, trained for one epoch only.

    Made by the program itself, so that its command line is tested on the way.
    """
    root = tmp_path_factory.mktemp("build") / "repository"
    command = [sys.executable, "-m", "service", "build", "--epochs", "1"]
    command += ["--repository", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (root.parent / "stdout").write_text(done.stdout, encoding="utf-8")
    (root.parent / "stderr").write_text(done.stderr, encoding="utf-8")
    return root


@pytest.fixture(scope="session")
def version_directory(repository: Path) -> Path:
    """The version that the build has made."""
    return repository / "inception" / "1"


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
