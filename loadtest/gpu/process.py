"""Processes that each have one runtime."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import IO, Any, Final, Literal

from loadtest.gpu.results import DeviceKind
from loadtest.gpu.runtimes import RUNTIMES

# A variable for each runtime: TensorFlow has none but CUDA's.
WITHOUT_GPU: Final[Mapping[str, str]] = {
    "CUDA_VISIBLE_DEVICES": "-1",
    "JAX_PLATFORMS": "cpu",
    "KERAS_TORCH_DEVICE": "cpu",
}
LAST_WORDS: Final = 400  # characters of what a worker printed before it broke off


class WorkerFailed(Exception):
    """A process broke off; the message is the end of what it printed."""


def answers(
    command: Literal["probe", "measure"],
    argument: Mapping[str, Any],
    *,
    runtime: str,
    device: DeviceKind,
) -> Iterator[str]:
    """The lines of a process that runs `loadtest.gpu.worker`, as they come.

    Args:
        command: What it is to do.
        argument: With what.
        runtime: The one that it has.
        device: What this is to run on.

    Raises:
        WorkerFailed: It broke off.
    """
    environment = {
        **os.environ,
        "KERAS_BACKEND": RUNTIMES[runtime].package,
        "TF_CPP_MIN_LOG_LEVEL": "1",
        **(WITHOUT_GPU if device == "cpu" else {}),
    }
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(  # noqa: S603, ourselves
            [
                sys.executable,
                "-m",
                f"{__package__}.worker",
                command,
                json.dumps(argument),
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        with process:
            try:
                yield from process.stdout or ()
            except BaseException:  # the reader has broken off
                process.terminate()
                raise
        if process.returncode:
            raise WorkerFailed(f"status {process.returncode}, {_end_of(log)}")


def _end_of(log: IO[bytes]) -> str:
    """The last line that a process printed: an exception's, in general."""
    log.seek(0)
    lines = log.read().decode(errors="replace").split("\n")
    return next((x.strip() for x in reversed(lines) if x.strip()), "")[-LAST_WORDS:]
