"""The script that starts TensorFlow Serving by hand."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.deployment import ROOT, flags_of, services
from tests.support import only

# It prints what it was started with.
RECORDER: Final = """\
#!/bin/bash
printf '%s\\n' "$TF_FORCE_GPU_ALLOW_GROWTH" "$@"
cat /proc/self/fd/3
"""


def recorded(repository: Path, *arguments: str, path: Path) -> list[str]:
    """What the script starts, as lines: an environment variable, flags, models."""
    (path / "tensorflow_model_server").write_text(RECORDER, encoding="utf-8")
    (path / "tensorflow_model_server").chmod(0o755)
    return subprocess.run(
        [ROOT / "deploy/tfserving.sh", repository, *arguments],
        env={"PATH": f"{path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()


def test_the_script_starts_tensorflow_serving_with_the_same_flags(
    repository: Path, tmp_path: Path
) -> None:
    copied = shutil.copytree(repository, tmp_path / "my models")
    lines = recorded(copied, "--port=9500", path=tmp_path)
    growth, *flags = lines[: lines.index("model_config_list {") - 1]
    by_hand = flags_of(flags)
    service = services()["tfserving"]
    in_compose = flags_of(service["command"])
    assert {"TF_FORCE_GPU_ALLOW_GROWTH": growth} == service["environment"]
    assert flags[-1] == "--port=9500"
    assert by_hand.pop("port") == "9500"
    assert in_compose.pop("port") == "8500"
    assert by_hand.pop("model_config_file") == "/proc/self/fd/3"
    assert in_compose.pop("model_config_file") == "/models/models.config"
    assert in_compose.pop("model_config_file_poll_wait_seconds")  # it is a copy
    assert by_hand.pop("monitoring_config_file") == f"{copied}/monitoring.config"
    assert in_compose.pop("monitoring_config_file") == "/models/monitoring.config"
    assert by_hand == in_compose


def test_the_script_says_where_the_models_are(repository: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(repository, tmp_path / "my models")
    path = copied / "models.config"
    text = path.read_text(encoding="utf-8")
    elsewhere = '  config {\n    name: "x"\n    base_path: "/mnt/x"\n  }\n'
    path.write_text(text[: text.rindex("}")] + elsewhere + "}\n", encoding="utf-8")
    lines = recorded(copied, path=tmp_path)
    paths = [line.strip() for line in lines if "base_path" in line]
    assert paths == [f'base_path: "{copied}/inception"', 'base_path: "/mnt/x"']
    given = path.read_text(encoding="utf-8").splitlines()
    assert len(given) == len(lines) - lines.index(given[0])


@pytest.mark.parametrize(
    ("files", "says"),
    [((), "no models.config"), (("models.config", "monitoring.config"), "on the PATH")],
)
def test_the_script_says_what_is_missing(
    tmp_path: Path, files: tuple[str, ...], says: str
) -> None:
    for name in files:
        (tmp_path / name).touch()
    (tmp_path / "realpath").symlink_to(shutil.which("realpath") or "")
    done = subprocess.run(
        [shutil.which("bash") or "", ROOT / "deploy/tfserving.sh", tmp_path],
        env={"PATH": str(tmp_path)},  # and no server, on whatever machine this is
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert says in only(done.stderr.splitlines())
