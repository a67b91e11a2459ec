"""Trains a network on a data set: with a progress bar, and until it gets no better."""

import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final

import keras
import numpy as np
import tensorflow as tf
from keras import optimizers
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from models.augmentation import distortion
from models.card import Training
from models.charts import Epoch
from models.datasets import Dataset, Split
from models.tasks import BATCH_SIZE, Task

EPOCHS: Final = 20
PATIENCE_EPOCHS: Final = 8
PEAK_LEARNING_RATE: Final = 5e-3
WARMUP_SHARE: Final = 0.2  # of all steps
WEIGHT_DECAY: Final = 1e-2
MIN_BATCH_SIZE: Final = 16
# Validation normalises with moving statistics, of which a step replaces a tenth. After
# fewer steps they are still those of other weights, so that the validation loss rises
# and patience ends a training that goes well.
MIN_STEPS_PER_EPOCH: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How long to train, and how fast.

    Attributes:
        epochs: How many at most; `pace` tells what one is.
        patience_epochs: Epochs without a smaller validation loss that end it.
        learning_rate: The highest, after a fifth of the steps; it rises to there in a
            line and falls in a cosine.
        seed: Of the pairs to compare.
    """

    epochs: int = EPOCHS
    patience_epochs: int = PATIENCE_EPOCHS
    learning_rate: float = PEAK_LEARNING_RATE
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What happened in each epoch, and after which one the weights were the best."""

    epochs: Sequence[Epoch]
    best_epoch: int
    interrupted: bool

    def describe(self) -> Training:
        """What the card keeps of it."""
        best = self.epochs[self.best_epoch - 1]
        return Training(
            epochs=len(self.epochs),
            best_epoch=self.best_epoch,
            validation_loss=best.validation_loss,
            validation_accuracy=best.validation_accuracy,
            interrupted=self.interrupted,
        )


def train(
    network: keras.Model, task: Task, dataset: Dataset, schedule: Schedule
) -> History:
    """Fit a network; it ends with the weights that had the least validation loss.

    The first Ctrl-C ends the training early and keeps the best weights so far; a
    second one ends the program.

    Args:
        network: Maps uint8 images `[N, H, W, C]` to the task's outputs.
        task: What it learns.
        dataset: The held-out part is not looked at.
        schedule: How long and how fast.

    Raises:
        Diverged: The learning rate was too high.
    """
    batch_size, steps = pace(len(dataset.train))
    batches = _Batches(network, task, labels=len(dataset.labels))
    _compile(network, task, schedule, steps=schedule.epochs * steps)
    with Progress(
        TextColumn("training"),
        BarColumn(),
        TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TextColumn("validation {task.fields[validation]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    ) as progress:
        recorder = _Recorder(progress, task, epochs=schedule.epochs, steps=steps)
        stopping = keras.callbacks.EarlyStopping(
            patience=schedule.patience_epochs, restore_best_weights=True
        )
        with _interruptible(progress.console) as was_interrupted:
            recorder.should_stop = was_interrupted
            network.fit(
                batches.endless(dataset, batch_size, seed=schedule.seed),
                epochs=schedule.epochs,
                steps_per_epoch=steps,
                validation_data=batches.once(dataset.validation_views()),
                shuffle=False,
                verbose=0,
                callbacks=[recorder, stopping],
            )
    kept = recorder.epochs[stopping.best_epoch :][:1]
    if not all(math.isfinite(epoch.validation_loss) for epoch in kept):
        raise Diverged(
            f"the training diverged in epoch {len(recorder.epochs)}: its loss is no "
            f"number; choose a --learning-rate below {schedule.learning_rate:g}"
        )
    return History(
        epochs=recorder.epochs,
        best_epoch=stopping.best_epoch + 1,
        interrupted=was_interrupted(),
    )


def pace(images: int) -> tuple[int, int]:
    """The size of a batch, and the steps of an epoch.

    An epoch is one pass over the training images in batches of 64. Of fewer than 1,024
    the batches are smaller, down to 16 images, and of fewer than 256 an epoch is
    several passes: it never has fewer than 16 steps.
    """
    wanted = max(MIN_BATCH_SIZE, min(BATCH_SIZE, images // MIN_STEPS_PER_EPOCH))
    batch_size = min(wanted, images)
    return batch_size, max(MIN_STEPS_PER_EPOCH, images // batch_size)


class Diverged(Exception):
    """The loss has become no number: nothing was learned."""


class _Batches:
    """A task's batches as Keras wants them: alone, or by name where there are several.

    Images are gathered batch by batch, since an array may be larger than the memory.
    """

    def __init__(self, network: keras.Model, task: Task, *, labels: int) -> None:
        self._network = network
        self._task = task
        self._labels = labels

    def endless(self, dataset: Dataset, size: int, *, seed: int) -> Any:
        """Shuffled batches of distorted images, without end."""
        distort = distortion(dataset.kind)

        def distorted(images: dict[str, Any], targets: Any) -> tuple[Any, Any]:
            return {name: distort(batch) for name, batch in images.items()}, targets

        # Up to here one at a time: the seed fixes which image gets what.
        return (
            self._indices(dataset.train)
            .shuffle(len(dataset.train), reshuffle_each_iteration=True)
            .batch(size, drop_remainder=True)
            .repeat()  # before the distortion, whose random numbers would start anew
            .map(self._gather(dataset.train, seed=seed))
            .map(distorted)
            .map(self._unpacked)
            .prefetch(tf.data.AUTOTUNE)
        )

    def once(self, split: Split) -> Any:
        """The images as they are; kept, so that each epoch sees the same pairs."""
        batches = self._indices(split).batch(BATCH_SIZE)
        return batches.map(self._gather(split, seed=0)).map(self._unpacked).cache()

    def _indices(self, split: Split) -> Any:
        return tf.data.Dataset.from_tensor_slices(np.arange(len(split)))

    def _gather(self, split: Split, *, seed: int) -> Callable[[Any], tuple[Any, Any]]:
        random = np.random.default_rng(seed)
        task = self._task

        def gather(indices: Any) -> list[Any]:
            images, targets = task.batch(split, indices, self._labels, random)
            return [
                *(images[name] for name in task.inputs),
                *(targets[name] for name in task.outputs),
            ]

        def gathered(indices: Any) -> tuple[Any, Any]:
            kinds = [tf.uint8] * len(task.inputs) + [tf.float32] * len(task.outputs)
            arrays = tf.numpy_function(gather, [indices], kinds)
            images = dict(zip(task.inputs, arrays, strict=False))
            targets = dict(zip(task.outputs, arrays[len(task.inputs) :], strict=True))
            size = indices.shape[0]
            for batch in images.values():
                batch.set_shape((size, *split.images.shape[1:]))
            for name, target in targets.items():
                target.set_shape((size, 1 if name == "same" else self._labels))
            return images, targets

        return gathered

    def _unpacked(self, images: Any, targets: Any) -> tuple[Any, Any]:
        return _alone_or_all(images), _alone_or_all(targets)


def _alone_or_all(by_name: dict[str, Any]) -> Any:
    return next(iter(by_name.values())) if len(by_name) == 1 else by_name


def _compile(network: keras.Model, task: Task, schedule: Schedule, steps: int) -> None:
    warmup_steps = round(WARMUP_SHARE * steps)
    learning_rate = optimizers.schedules.CosineDecay(
        schedule.learning_rate / 20,
        steps - warmup_steps,
        warmup_target=schedule.learning_rate,
        warmup_steps=warmup_steps,
    )
    optimizer = optimizers.AdamW(learning_rate, weight_decay=WEIGHT_DECAY, beta_2=0.99)
    optimizer.exclude_from_weight_decay(var_names=["beta", "bias"])
    metrics = {output: ["accuracy"] for output in task.outputs}
    network.compile(
        optimizer,
        _alone_or_all(task.losses()),
        metrics=_alone_or_all(metrics),
        # On a CPU, XLA takes longer to compile than it saves.
        jit_compile=False,
    )


@contextmanager
def _interruptible(console: Console) -> Iterator[Callable[[], bool]]:
    """Tell whether Ctrl-C was pressed; the second time it does what it always does."""
    interrupted = threading.Event()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        interrupted.set()
        console.print("ending the training; the best weights so far are kept")

    if threading.current_thread() is not threading.main_thread():
        yield interrupted.is_set  # signals are none of its business
        return
    before = signal.signal(signal.SIGINT, stop)
    try:
        yield interrupted.is_set
    finally:
        signal.signal(signal.SIGINT, before)


class _Recorder(keras.callbacks.Callback):  # type: ignore[misc]  # Keras is untyped
    """Moves the progress bar and writes down each epoch."""

    def __init__(
        self, progress: Progress, task: Task, *, epochs: int, steps: int
    ) -> None:
        super().__init__()
        self.epochs: list[Epoch] = []
        self.should_stop: Callable[[], bool] = lambda: False
        several = len(task.outputs) > 1
        self._accuracy = f"{task.outputs[0]}_accuracy" if several else "accuracy"
        self._progress = progress
        self._bar = progress.add_task(
            "training",
            total=epochs * steps,
            epochs=epochs,
            epoch=1,
            loss=0.0,
            validation="—",
        )

    def on_epoch_begin(self, epoch: int, _logs: Any = None) -> None:
        self._progress.update(self._bar, epoch=epoch + 1)

    def on_train_batch_end(self, _batch: int, logs: Any = None) -> None:
        loss = float(logs["loss"])
        self._progress.update(self._bar, advance=1, loss=loss)
        if self.should_stop() or not math.isfinite(loss):
            self.model.stop_training = True

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        done = Epoch(
            number=epoch + 1,
            loss=float(logs["loss"]),
            accuracy=float(logs[self._accuracy]),
            validation_loss=float(logs["val_loss"]),
            validation_accuracy=float(logs[f"val_{self._accuracy}"]),
            learning_rate=float(self.model.optimizer.learning_rate),
        )
        self.epochs.append(done)
        self._progress.update(self._bar, validation=f"{done.validation_accuracy:.1%}")
