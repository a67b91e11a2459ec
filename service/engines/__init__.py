"""Engines, and the choice among them; each is imported only when it is asked for."""

import importlib
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from service.engines.base import Engine
from service.errors import UnsupportedModel
from service.settings import EngineChoice

__all__ = ["Engine", "load"]

_CLASSES: Final = {
    "openvino": "OpenVinoEngine",
    "stub": "StubEngine",
    "tensorflow": "TensorFlowEngine",
}


def load(choice: EngineChoice, version_directory: Path, *, slots: int | None) -> Engine:
    """Load a model version into an engine. Blocks for up to seconds.

    `auto` takes OpenVINO where it can convert the model, else TensorFlow.

    Raises:
        UnsupportedModel: No engine that may be used can load it; says what to do.
    """
    if not (version_directory / "saved_model.pb").is_file():
        raise UnsupportedModel(
            f"{version_directory} holds no saved_model.pb; a version is a SavedModel "
            "directory, as `blockserve build` writes it"
        )
    if choice != "auto":
        return _load(choice, version_directory, slots)
    try:
        return _load("openvino", version_directory, slots)
    except UnsupportedModel as error:
        if find_spec("tensorflow") is None:
            raise UnsupportedModel(
                f"{error}. TensorFlow may be able to: "
                "pip install 'blockserve[tensorflow]'"
            ) from error
        try:
            return _load("tensorflow", version_directory, slots)
        except UnsupportedModel as second:
            raise UnsupportedModel(f"{error}. {second}") from second


def _load(choice: str, version_directory: Path, slots: int | None) -> Engine:
    try:
        module = importlib.import_module(f"service.engines.{choice}")
    except ImportError as error:
        raise UnsupportedModel(
            f"the engine {choice!r} is not installed ({error}): "
            f"pip install 'blockserve[{choice}]'"
        ) from error
    engine: Engine = getattr(module, _CLASSES[choice]).load(
        version_directory, slots=slots
    )
    return engine
