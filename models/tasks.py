"""What networks are trained for: to classify an image, or to compare two."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final

import keras
import numpy as np
import numpy.typing as npt

from models.card import Accuracy
from models.datasets import Dataset, Images, Labels, Split

Array = npt.NDArray[Any]
# From images by input name to answers by output name.
Predict = Callable[[Mapping[str, Images]], Mapping[str, Array]]
Batch = tuple[Mapping[str, Images], Mapping[str, Array]]

BATCH_SIZE: Final = 64
LABEL_SMOOTHING: Final = 0.05
PAIR_SEED: Final = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scores:
    """How well a network does on held-out images.

    `confusion[i, j]` counts the images of label `i` that were taken for label `j`.
    """

    accuracy: tuple[Accuracy, ...]
    confusion: npt.NDArray[np.int64]

    @property
    def overall(self) -> float:
        """One number to compare networks by: the mean of all accuracies."""
        return fmean(accuracy.value for accuracy in self.accuracy)

    @property
    def named_rightly(self) -> float:
        """The share of images that were taken for what they are."""
        return float(np.trace(self.confusion) / self.confusion.sum())

    @property
    def most_frequent_label(self) -> float:
        """The share of images that always naming the most frequent label gets right."""
        return float(self.confusion.sum(axis=1).max() / self.confusion.sum())


class Task(ABC):
    """What a network learns from labelled images, and how that is scored."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @abstractmethod
    def batch(
        self, split: Split, indices: Labels, labels: int, random: np.random.Generator
    ) -> Batch:
        """The images that go in, and the numbers that should come out.

        Args:
            split: Where the images come from.
            indices: Those to show, `[N]`.
            labels: How many labels there are.
            random: For what is to be chosen.
        """

    @abstractmethod
    def losses(self) -> dict[str, keras.losses.Loss]:
        """What training makes small, by output."""

    @abstractmethod
    def score(self, predict: Predict, dataset: Dataset) -> Scores:
        """Measure on the held-out images."""


class Classification(Task):
    """Which label an image has.

    Args:
        output: The name of the output with a number for each label.
    """

    inputs = ("images",)

    def __init__(self, output: str = "probabilities") -> None:
        self.outputs = (output,)

    def batch(
        self, split: Split, indices: Labels, labels: int, random: np.random.Generator
    ) -> Batch:
        """Images and their labels, one-hot; see `Task.batch`."""
        del random  # nothing is chosen here
        classes = split.classes[indices]
        targets = {self.outputs[0]: _one_hot(classes, labels)}
        return {"images": split.images[indices]}, targets

    def losses(self) -> dict[str, keras.losses.Loss]:
        """Cross-entropy with smoothed labels."""
        return {self.outputs[0]: _cross_entropy()}

    def score(self, predict: Predict, dataset: Dataset) -> Scores:
        """The share of images whose most probable label is right."""
        confusion = _no_confusion(dataset)
        accuracy = []
        for name, split in dataset.held_out_views().items():
            answers = _predict(predict, {"images": split.images})
            guesses = answers[self.outputs[0]].argmax(axis=1)
            np.add.at(confusion, (split.classes, guesses), 1)
            right = guesses == split.classes
            accuracy.append(
                _accuracy_by_label(name, right, split.classes, dataset.labels)
            )
        return Scores(accuracy=tuple(accuracy), confusion=confusion)


class Comparison(Task):
    """Whether two images have the same label, and which label each has."""

    inputs = ("left", "right")
    outputs = ("same", "left_probabilities", "right_probabilities")

    def batch(
        self, split: Split, indices: Labels, labels: int, random: np.random.Generator
    ) -> Batch:
        """Pairs, half of them of one label; see `Task.batch`."""
        partners = _partners(split.classes, indices, random)
        left, right = split.classes[indices], split.classes[partners]
        images = {"left": split.images[indices], "right": split.images[partners]}
        return images, {
            "same": (left == right).astype(np.float32)[:, None],
            "left_probabilities": _one_hot(left, labels),
            "right_probabilities": _one_hot(right, labels),
        }

    def losses(self) -> dict[str, keras.losses.Loss]:
        """Cross-entropy for each of the three questions."""
        return {
            "same": keras.losses.BinaryCrossentropy(),
            "left_probabilities": _cross_entropy(),
            "right_probabilities": _cross_entropy(),
        }

    def score(self, predict: Predict, dataset: Dataset) -> Scores:
        """The share of pairs told apart rightly, then that of images classified so."""
        random = np.random.default_rng(PAIR_SEED)
        confusion = _no_confusion(dataset)
        pairs, images = [], []
        for name, split in dataset.held_out_views().items():
            indices = np.arange(len(split))
            shown, wanted = self.batch(split, indices, len(dataset.labels), random)
            answers = _predict(predict, shown)
            same = (answers["same"] > 1 / 2) == (wanted["same"] > 1 / 2)
            pairs.append(_accuracy(f"pairs: {name}", same[:, 0]))
            guesses = answers["left_probabilities"].argmax(axis=1)
            np.add.at(confusion, (split.classes, guesses), 1)
            right = guesses == split.classes
            images.append(
                _accuracy_by_label(name, right, split.classes, dataset.labels)
            )
        return Scores(accuracy=(*pairs, *images), confusion=confusion)


def _partners(classes: Labels, indices: Labels, random: np.random.Generator) -> Labels:
    """For each image another: with even odds one of its own label, or of any other.

    An only child of its label gets one of another.
    """
    own = classes[indices]
    wants_same = random.random(len(indices)) < 1 / 2
    partners = np.empty_like(indices)
    for label in np.unique(own):
        same = np.flatnonzero(classes == label)
        others = np.flatnonzero(classes != label)
        matched = (own == label) & wants_same & (len(same) > 1)
        unmatched = (own == label) & ~matched
        # Some steps further round the circle of its label: never itself.
        places = np.searchsorted(same, indices[matched])
        steps = random.integers(1, max(2, len(same)), matched.sum())
        partners[matched] = same[(places + steps) % len(same)]
        partners[unmatched] = random.choice(others, unmatched.sum())
    return partners


def _predict(predict: Predict, images: Mapping[str, Images]) -> dict[str, Array]:
    """Predict in batches: the images may be more than the memory holds."""
    count = len(next(iter(images.values())))
    answers = [
        predict({name: array[i : i + BATCH_SIZE] for name, array in images.items()})
        for i in range(0, count, BATCH_SIZE)
    ]
    return {
        name: np.concatenate([answer[name] for answer in answers])
        for name in answers[0]
    }


def _accuracy(name: str, right: npt.NDArray[np.bool_]) -> Accuracy:
    return Accuracy(data=name, samples=len(right), value=float(right.mean()))


def _accuracy_by_label(
    name: str, right: npt.NDArray[np.bool_], classes: Labels, labels: Sequence[str]
) -> Accuracy:
    per_label = {
        label: float(right[classes == index].mean())
        for index, label in enumerate(labels)
        if (classes == index).any()
    }
    return _accuracy(name, right).model_copy(update={"labels": per_label})


def _no_confusion(dataset: Dataset) -> npt.NDArray[np.int64]:
    return np.zeros((len(dataset.labels), len(dataset.labels)), np.int64)


def _one_hot(classes: Labels, labels: int) -> npt.NDArray[np.float32]:
    return np.eye(labels, dtype=np.float32)[classes]


def _cross_entropy() -> keras.losses.Loss:
    return keras.losses.CategoricalCrossentropy(label_smoothing=LABEL_SMOOTHING)
