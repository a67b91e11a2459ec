"""Fixtures that several test modules share."""

import subprocess
import sys
from pathlib import Path

import pytest


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
