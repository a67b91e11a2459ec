"""Makes the int8 form of an exported model, which the embedded engine prefers.

Post-training quantisation by NNCF: weights become int8, activations uint8, with ranges
read off while training images pass through (Jacob et al., "Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", 2018).
The SavedModel stays as it is, in float32, for TensorFlow Serving.
"""

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import rich
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from models.card import Precision
from models.datasets import Images
from models.precision import Candidate, PrecisionError
from models.tasks import Array


@contextmanager
def _hidden(*modules: str) -> Iterator[None]:
    """Make imports of these modules fail, as if they were not installed."""
    before = {name: sys.modules[name] for name in modules if name in sys.modules}
    for name in modules:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]
        sys.modules.update(before)


# The converter, which we do not need, and NNCF report their use to their makers, the
# former from a forked process; both do without where these modules are missing.
with _hidden("openvino.tools.ovc", "openvino_telemetry"):
    import openvino

    try:
        import nncf
    except ModuleNotFoundError as error:
        raise ImportError(
            f"int8 needs the package nncf ({error}): pip install 'blockserve[int8]'"
        ) from error
nncf.set_log_level(logging.ERROR)

# What NNCF takes by default.
CALIBRATION_SAMPLES: Final = 300


def quantise(
    saved_model: Path, calibration: Mapping[str, Images], target: Path
) -> None:
    """Write a SavedModel's signature `serving_default` as int8, with a progress bar.

    The same model and images give the same weights each time.

    Args:
        saved_model: Directory of the exported model.
        calibration: Training images, uint8 `[N, H, W, C]`, by the name of the input;
            at most 300 of them are used, spread over all.
        target: The `.xml` file to write; its weights go beside it, as `.bin`. Inputs
            and outputs keep their names.

    Raises:
        PrecisionError: OpenVINO cannot read the SavedModel.
    """
    model = _read(openvino.Core(), saved_model)
    count = len(next(iter(calibration.values())))
    # Spread over all, for a data set may come sorted by label.
    rows = np.linspace(0, count - 1, min(count, CALIBRATION_SAMPLES)).astype(int)
    with Progress(
        TextColumn("calibrating"), BarColumn(), MofNCompleteColumn(), console=Console()
    ) as progress:
        bar = progress.add_task("calibrating", total=len(rows))

        def sample(row: int) -> dict[str, Images]:
            progress.advance(bar)
            return {name: images[row : row + 1] for name, images in calibration.items()}

        with _without_bars_of_nncf():
            samples = nncf.Dataset(rows.tolist(), sample)
            quantised = nncf.quantize(model, samples, subset_size=len(rows))
    target.parent.mkdir(parents=True, exist_ok=True)
    # Biases and scales stay in float32: they are few.
    openvino.save_model(quantised, target, compress_to_fp16=False)


def openvino_candidate(precision: Precision, model: Path) -> Candidate:
    """Load a SavedModel's directory or an `.xml` file as the embedded engine does.

    Raises:
        PrecisionError: OpenVINO cannot read it.
    """
    core = openvino.Core()
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(_read(core, model), "CPU", options)

    def predict(images: Mapping[str, Images]) -> dict[str, Array]:
        results = compiled(dict(images), share_inputs=True)
        return {port.get_any_name(): results[port] for port in compiled.outputs}

    return Candidate(
        precision=precision, engine="openvino", model=model, predict=predict
    )


def _read(core: Any, model: Path) -> Any:
    try:
        return core.read_model(model)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise PrecisionError(f"OpenVINO cannot read {model}: {reason}") from error


@contextmanager
def _without_bars_of_nncf() -> Iterator[None]:
    """Silence rich's global console, which is where NNCF draws its own progress."""
    console: Any = rich.get_console()
    before = console.quiet
    console.quiet = True
    try:
        yield
    finally:
        console.quiet = before
