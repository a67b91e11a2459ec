"""Real photographs that ship in packages, as folders of crops."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import skimage.data
import sklearn.datasets
from PIL import Image

Pixels = np.ndarray[Any, Any]

# Each picture is a label, and its crops are that label's pictures.
SOURCES: Final[dict[str, Callable[[], Pixels]]] = {
    "astronaut": skimage.data.astronaut,
    "cat": skimage.data.chelsea,
    "coffee": skimage.data.coffee,
    "flower": lambda: sklearn.datasets.load_sample_image("flower.jpg"),
    "temple": lambda: sklearn.datasets.load_sample_image("china.jpg"),
}


def write_crops(directory: Path, *, of_each: int, seed: int = 0) -> Path:
    """Write `of_each` crops of odd sizes for each label, as JPEG and PNG."""
    random = np.random.default_rng(seed)
    for label, load in SOURCES.items():
        photograph = Image.fromarray(load())
        (directory / label).mkdir(parents=True)
        for number in range(of_each):
            height, width = random.integers(120, 260, 2)
            top = random.integers(0, photograph.height - height)
            left = random.integers(0, photograph.width - width)
            crop = photograph.crop((left, top, left + width, top + height))
            suffix = "jpg" if number % 2 else "png"
            crop.save(directory / label / f"{number}.{suffix}", quality=92)
    return directory
