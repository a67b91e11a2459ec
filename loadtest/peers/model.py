"""The model that all peers serve: where it is, what it is given, what it says."""

import io
import json
import os
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

DIRECTORY_VARIABLE: Final = "PEER_MODEL_DIRECTORY"
PORT_VARIABLE: Final = "PEER_PORT"
PREDICTIONS: Final = 5


def directory() -> Path:
    """The SavedModel."""
    return Path(os.environ[DIRECTORY_VARIABLE])


def port() -> int:
    """Where to listen."""
    return int(os.environ[PORT_VARIABLE])


def setting(name: str, default: float) -> float:
    """A number that the sweep varies; see `catalogue.Variant`."""
    return float(os.environ.get(name, default))


def labels() -> list[str]:
    """By index."""
    card = directory() / "assets.extra" / "model_card.json"
    names: list[str] = json.loads(card.read_text(encoding="utf-8"))["labels"]
    return names


def pixels(image: bytes) -> NDArray[np.uint8]:
    """An image file as `uint8[28, 28, 1]`."""
    grey = Image.open(io.BytesIO(image)).convert("L").resize((28, 28))
    return np.asarray(grey)[..., np.newaxis]


def best(probabilities: NDArray[np.float32], names: list[str]) -> list[dict[str, Any]]:
    """The five most probable labels of one row, the best one first."""
    order = np.argsort(probabilities)[::-1][:PREDICTIONS]
    return [
        {"label": names[index], "probability": float(probabilities[index])}
        for index in order
    ]
