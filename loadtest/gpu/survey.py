"""What there is to measure with: runtimes, their GPU, and its driver."""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Final

from loadtest.gpu.peaks import peaks_of
from loadtest.gpu.process import WorkerFailed, answers
from loadtest.gpu.results import PRECISIONS, DeviceKind, Precision, Results
from loadtest.gpu.runtimes import RUNTIMES
from loadtest.harness.machine import machine

ON_A_PROCESSOR: Final[Sequence[Precision]] = ("float32", "float16", "bfloat16")
PACKAGES: Final = (
    *("keras", "numpy", "tensorflow", "tensorflow_cpu", "jax", "jaxlib", "torch"),
    *("nvidia-cudnn-cu12", "nvidia-cudnn-cu13"),
)
BATCHER_NEEDS: Final = ("ml_dtypes", "prometheus_client")
DRIVER_FIELDS: Final = (
    "driver_version",
    "memory.total",
    "power.limit",
    "clocks.max.sm",
)


class NothingToMeasure(Exception):
    """What was asked for is not there; the message says what is missing."""


def survey(options: argparse.Namespace) -> Results:
    """Look what is there, and choose what to measure.

    Raises:
        NothingToMeasure: No runtime has the device, or a model does not exist.
    """
    if find_spec("keras") is None:
        raise NothingToMeasure("Keras is not installed (pip install keras)")
    on_gpu = options.device == "gpu"
    if not on_gpu and "tf32" in (options.precisions or ()):
        raise NothingToMeasure("tf32 is for GPUs; a processor has float32")
    this_machine = machine(PACKAGES)
    runtimes, models, device_name = _runtimes(options)
    if not models:
        raise NothingToMeasure(_what_is_missing(runtimes, options.device))
    name = device_name if on_gpu else this_machine["processor"]
    missing = [package for package in BATCHER_NEEDS if find_spec(package) is None]
    notes = [f"without the gateway's batcher: {p} is not installed" for p in missing]
    return Results(
        machine=this_machine,
        device={
            "kind": options.device,
            "name": name,
            "peak_tflops": {**peaks_of(name), **dict(options.peak_tflops)},
            "driver": _driver() if on_gpu else {},
        },
        settings={
            "precisions": options.precisions
            or (PRECISIONS if on_gpu else ON_A_PROCESSOR),
            "batch_sizes": sorted(set(options.batch_sizes)),
            "seconds": options.seconds,
            "batcher_seconds": 0 if missing else options.batcher_seconds,
            "command": " ".join(["python3 -m loadtest.gpu", *sys.argv[1:]]),
        },
        runtimes=runtimes,
        models=models,
        notes=notes,
    )


def _runtimes(
    options: argparse.Namespace,
) -> tuple[dict[str, dict[str, Any]], dict[str, Any], str]:
    """Of each runtime, why it is left out (`skipped`); the models; the GPU's name."""
    runtimes: dict[str, dict[str, Any]] = {}
    models: dict[str, Any] = {}
    gpu = ""
    for name in options.runtimes:
        kind = RUNTIMES[name]
        runtimes[name] = {"title": kind.title}
        if find_spec(kind.package) is None:
            runtimes[name]["skipped"] = f"{kind.package} is not installed"
            continue
        try:
            argument = {"runtime": name, "models": list(options.models)}
            (line,) = answers("probe", argument, runtime=name, device=options.device)
        except WorkerFailed as failure:
            runtimes[name]["skipped"] = f"it fails: {failure}"
            continue
        probed = json.loads(line)
        if "error" in probed:
            raise NothingToMeasure(probed["error"])
        if options.device == "gpu" and not probed["gpu"]:
            runtimes[name]["skipped"] = "it sees no GPU"
            continue
        gpu, models = probed["gpu"], probed["models"]
    return runtimes, models, gpu


def _what_is_missing(
    runtimes: Mapping[str, Mapping[str, Any]], device: DeviceKind
) -> str:
    reasons = "; ".join(f"{r['title']}: {r['skipped']}" for r in runtimes.values())
    if device == "cpu":
        return f"no runtime is here ({reasons})"
    return (
        f"no runtime with a GPU is here ({reasons}). What is needed: an NVIDIA GPU "
        "with its driver, Keras, and TensorFlow, JAX or PyTorch built for CUDA. "
        "--device cpu tries the program out on the processor."
    )


def _driver() -> dict[str, str]:
    """What `nvidia-smi` tells of the first GPU, where it is installed."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    command = [
        program,
        f"--query-gpu={','.join(DRIVER_FIELDS)}",
        "--format=csv,noheader",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603, fixed
    first, *_ = (done.stdout if done.returncode == 0 else "").splitlines() or [""]
    return dict(zip(DRIVER_FIELDS, first.split(", "), strict=False)) if first else {}
