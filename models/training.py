"""Trains a classifier on a data set, and measures it on what was held out."""

from typing import Any, Final

import keras
import numpy as np
import tensorflow as tf
from keras import optimizers
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from models.augmentation import augment
from models.card import Accuracy
from models.datasets import Dataset, Images, Labels, inverted

EPOCHS: Final = 16
BATCH_SIZE: Final = 64
PEAK_LEARNING_RATE: Final = 5e-3
WARMUP_SHARE: Final = 0.2  # of all steps
WEIGHT_DECAY: Final = 1e-2
LABEL_SMOOTHING: Final = 0.05


def train(model: keras.Model, dataset: Dataset, *, epochs: int | None = None) -> None:
    """Fit a model to a data set's training images, with a progress bar.

    Args:
        model: Maps uint8 images `[N, H, W, C]` to probabilities `[N, classes]`.
        dataset: Only its training part is looked at.
        epochs: Passes over it; `None` means as many as the recipe has.
    """
    epochs = epochs or EPOCHS
    batch_size = min(BATCH_SIZE, len(dataset.train_images))
    steps = len(dataset.train_images) // batch_size  # an epoch
    batches = _augmented_batches(dataset, batch_size)
    _compile(model, steps=epochs * steps)
    with Progress(
        TextColumn("training"),
        BarColumn(),
        TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
        TextColumn("accuracy {task.fields[accuracy]:.1%}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    ) as progress:
        bar = _ProgressBar(progress, epochs=epochs, steps=steps)
        model.fit(
            batches,
            epochs=epochs,
            steps_per_epoch=steps,
            shuffle=False,
            verbose=0,
            callbacks=[bar],
        )


def evaluate(model: keras.Model, dataset: Dataset) -> tuple[Accuracy, ...]:
    """The model's accuracy on the held-out images, in both polarities."""
    polarities = {
        "light on dark": dataset.held_out_images,
        "dark on light": inverted(dataset.held_out_images),
    }
    return tuple(
        Accuracy(
            data=f"{dataset.name}, held out, {polarity}",
            samples=len(images),
            value=_accuracy(model, images, dataset.held_out_classes),
        )
        for polarity, images in polarities.items()
    )


def _accuracy(model: keras.Model, images: Images, classes: Labels) -> float:
    guesses = model.predict(images, batch_size=256, verbose=0).argmax(axis=1)
    return float(np.mean(guesses == classes))


def _augmented_batches(dataset: Dataset, size: int) -> Any:
    """Shuffled batches, without end, of distorted images, half of them inverted."""
    classes = len(dataset.labels)

    def distort(images: Any, labels: Any) -> tuple[Any, Any]:
        return augment(images), tf.one_hot(labels, classes)

    return (
        tf.data.Dataset.from_tensor_slices(
            (dataset.train_images, dataset.train_classes)
        )
        .shuffle(len(dataset.train_images), reshuffle_each_iteration=True)
        .batch(size, drop_remainder=True)
        .repeat()  # before the distortion, whose random numbers would start anew
        .map(distort)  # one at a time: the seed fixes which image gets what
        .prefetch(tf.data.AUTOTUNE)
    )


def _compile(model: keras.Model, *, steps: int) -> None:
    warmup_steps = round(WARMUP_SHARE * steps)
    learning_rate = optimizers.schedules.CosineDecay(
        PEAK_LEARNING_RATE / 20,
        steps - warmup_steps,
        warmup_target=PEAK_LEARNING_RATE,
        warmup_steps=warmup_steps,
    )
    optimizer = optimizers.AdamW(learning_rate, weight_decay=WEIGHT_DECAY, beta_2=0.99)
    optimizer.exclude_from_weight_decay(var_names=["beta", "bias"])
    model.compile(
        optimizer,
        keras.losses.CategoricalCrossentropy(label_smoothing=LABEL_SMOOTHING),
        metrics=["accuracy"],
        # On a CPU, XLA takes longer to compile than it saves.
        jit_compile=False,
    )


class _ProgressBar(keras.callbacks.Callback):  # type: ignore[misc]  # Keras is untyped
    def __init__(self, progress: Progress, *, epochs: int, steps: int) -> None:
        super().__init__()
        self._progress = progress
        self._task = progress.add_task(
            "training", total=epochs * steps, epochs=epochs, epoch=1, accuracy=0.0
        )

    def on_epoch_begin(self, epoch: int, _logs: Any = None) -> None:
        self._progress.update(self._task, epoch=epoch + 1)

    def on_train_batch_end(self, _batch: int, logs: Any = None) -> None:
        accuracy = float((logs or {}).get("accuracy", 0))
        self._progress.update(self._task, advance=1, accuracy=accuracy)
