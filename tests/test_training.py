"""Training: the recipe, what the network gets to see, and what is measured."""

import io
import os
import signal
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from models.blocks import cnn_block
from models.card import ImageInput
from models.datasets import Dataset, Split, inverted
from models.folders import folder
from models.tasks import Classification, Comparison, Task
from models.training import Diverged, History, Schedule, pace, train
from tests.photographs import write_crops

Array = np.ndarray[Any, Any]
Batch = tuple[Array, Array]


def bars(images: int, held_out: int = 100) -> Dataset:
    """Upright bars and lying bars, taking turns."""
    lying = np.zeros((12, 12, 1), np.uint8)
    lying[5:7] = 255
    kinds = np.stack([lying, lying.transpose(1, 0, 2)])
    train_classes, held_out_classes = np.arange(images) % 2, np.arange(held_out) % 2
    train, held_out = (
        Split(images=kinds[classes], classes=classes)
        for classes in (train_classes, held_out_classes)
    )
    return Dataset(
        name="bars",
        kind="digits",
        labels=("lying", "upright"),
        train=train,
        validation=held_out,
        held_out=held_out,
        originals=(),
    )


def tiny_model() -> keras.Model:
    images = keras.Input((12, 12, 1), dtype="uint8", name="images")
    x = layers.Rescaling(1 / 127.5, offset=-1)(images)
    x = layers.Conv2D(8, 5, strides=2, activation="relu")(x)
    x = layers.Flatten()(x)
    return keras.Model(images, layers.Dense(2, activation="softmax")(x))


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training of a tiny network."""

    model: keras.Model
    before: list[Array]
    after: list[Array]
    history: History
    output: str


def trained() -> Run:
    keras.utils.set_random_seed(0)
    model = tiny_model()
    before = model.get_weights()
    output = io.StringIO()
    with redirect_stdout(output):
        history = train(model, Classification(), bars(1024), Schedule(epochs=1))
    return Run(
        model=model,
        before=before,
        after=model.get_weights(),
        history=history,
        output=output.getvalue(),
    )


@pytest.fixture(scope="module")
def run() -> Run:
    return trained()


def test_training_changes_every_weight(run: Run) -> None:
    assert len(run.before) == 4
    for old, new in zip(run.before, run.after, strict=True):
        assert np.isfinite(new).all()
        assert (old != new).any()


def test_an_epoch_makes_the_network_better_in_both_polarities(run: Run) -> None:
    data = bars(2)
    untrained = tiny_model()
    untrained.set_weights(run.before)
    for images in (data.train.images, inverted(data.train.images)):
        before, after = (
            model.predict_on_batch(images)[[0, 1], data.train.classes]
            for model in (untrained, run.model)
        )
        assert np.log(after).mean() > np.log(before).mean()
        assert (after > 0.5).all()


def test_the_same_seed_trains_the_same_network(run: Run) -> None:
    for first, second in zip(run.after, trained().after, strict=True):
        np.testing.assert_allclose(first, second, atol=1e-4)


def test_where_there_is_no_terminal_the_progress_is_one_line(run: Run) -> None:
    (line,) = run.output.splitlines()
    assert "epoch 1/1" in line
    assert line.startswith("training ")
    assert "\x1b" not in run.output


class RecordingModel:
    """Keeps what it is told to do, and does nothing."""

    def compile(self, optimizer: Any, loss: Any, **options: Any) -> None:
        self.optimizer, self.loss, self.options = optimizer, loss, options

    def fit(self, batches: Any, **options: Any) -> None:
        self.batches, self.fit_options = batches, options
        for callback in options["callbacks"]:
            callback.on_train_begin()

    def get_weights(self) -> list[Array]:
        return []

    def epochs(self) -> list[list[Batch]]:
        """The batches of each epoch, taken as Keras takes them."""
        epochs = range(self.fit_options["epochs"])
        steps = self.fit_options.get("steps_per_epoch")
        if steps is None:
            return [list(self.batches.as_numpy_iterator()) for _ in epochs]
        iterator = self.batches.as_numpy_iterator()
        return [list(islice(iterator, steps)) for _ in epochs]


def recorded(
    data: Dataset, epochs: int = 16, task: Task | None = None
) -> RecordingModel:
    model = RecordingModel()
    train(model, task or Classification(), data, Schedule(epochs=epochs))
    return model


def test_the_learning_rate_rises_for_a_fifth_of_the_steps_and_falls_to_zero() -> None:
    """Twenty batches of 64 in eight epochs make 160 steps."""
    schedule = recorded(bars(1280), epochs=8).optimizer._learning_rate
    rates = [float(schedule(step)) for step in range(161)]
    assert rates[0] == pytest.approx(2.5e-4)
    assert rates[32] == max(rates) == pytest.approx(5e-3)
    assert rates[160] == pytest.approx(0, abs=1e-8)
    assert np.all(np.diff(rates[:33]) > 0)
    assert np.all(np.diff(rates[32:]) < 0)


def test_offsets_and_biases_do_not_decay() -> None:
    optimizer = recorded(bars(64)).optimizer
    assert isinstance(optimizer, keras.optimizers.AdamW)
    assert optimizer.weight_decay == 1e-2
    kernel, bias = (keras.Variable([1.0], name=name) for name in ("kernel", "bias"))
    offset = keras.Variable([1.0], name="beta")
    optimizer.build([kernel, bias, offset])
    decays = [optimizer._use_weight_decay(v) for v in (kernel, bias, offset)]
    assert decays == [True, False, False]


def test_labels_are_smoothed() -> None:
    model = recorded(bars(64))
    right = [[0.975, 0.025]]
    losses = [
        float(model.loss(np.array([[1.0, 0.0]]), np.array(guess)))
        for guess in (right, [[0.999, 0.001]], [[0.9, 0.1]])
    ]
    assert losses[0] == min(losses)


@pytest.mark.parametrize(
    ("images", "batch_size", "steps"),
    [
        (1, 1, 16),
        (15, 15, 16),
        (56, 16, 16),
        (255, 16, 16),
        (256, 16, 16),
        (1023, 63, 16),
        (1024, 64, 16),
        (1200, 64, 18),
        (3800, 64, 59),  # the digits
    ],
)
def test_of_few_images_batches_are_smaller_and_an_epoch_is_several_passes(
    images: int, batch_size: int, steps: int
) -> None:
    assert pace(images) == (batch_size, steps)


@pytest.mark.parametrize("images", [1, 63, 64, 65, 200])
def test_every_number_of_images_can_be_trained_on(images: int) -> None:
    model = recorded(bars(images), epochs=1)
    (batches,) = model.epochs()
    assert len(batches) == pace(images)[1]
    for pixels, targets in batches:
        assert pixels.shape[1:] == (12, 12, 1)
        assert (pixels.dtype, targets.dtype) == (np.uint8, np.float32)
        assert targets.shape == (len(pixels), 2)


def test_an_image_keeps_its_class_through_shuffling_and_distortion() -> None:
    """Blank images stay blank, and bars do not become so."""
    data = bars(640)
    blank = data.train.classes == 1
    images = np.where(blank[:, None, None, None], 0, data.train.images)
    mixed = replace(
        data,
        train=Split(images=images.astype(np.uint8), classes=data.train.classes),
    )
    keras.utils.set_random_seed(0)
    (batches,) = recorded(mixed, epochs=1).epochs()
    for pixels, targets in batches:
        is_blank = np.ptp(pixels, axis=(1, 2, 3)) == 0
        np.testing.assert_array_equal(targets.argmax(axis=1), is_blank)
        np.testing.assert_array_equal(targets.sum(axis=1), 1)


def test_each_epoch_has_another_order_and_other_distortions() -> None:
    keras.utils.set_random_seed(0)
    first, second = recorded(bars(128), epochs=2).epochs()
    assert any((a[1] != b[1]).any() for a, b in zip(first, second, strict=True))
    seen = [
        {image.tobytes() for pixels, _ in batches for image in pixels}
        for batches in (first, second)
    ]
    assert len(seen[0] & seen[1]) < 10


def test_photographs_are_not_inverted() -> None:
    keras.utils.set_random_seed(0)
    data = replace(bars(64), kind="photographs")
    (batches,) = recorded(data, epochs=1).epochs()
    assert all((np.median(pixels, axis=(1, 2, 3)) < 100).all() for pixels, _ in batches)


def normalised_model() -> keras.Model:
    images = keras.Input((24, 24, 3), dtype="uint8", name="images")
    x = layers.Rescaling(1 / 127.5, offset=-1)(images)
    for number, filters in enumerate((8, 16, 32), start=1):
        x = cnn_block(x, filters, 3, strides=2, name=f"block_{number}")
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, layers.Dense(5, activation="softmax")(x))


def test_a_few_photographs_are_enough_to_learn_from(tmp_path: Path) -> None:
    """Fourteen of each label: a single batch of 64 in each epoch would not do."""
    image_input = ImageInput(
        tensor="images", height=24, width=24, channels=3, colour_order="rgb"
    )
    pictures = write_crops(tmp_path, of_each=20, seed=1)
    data = folder(pictures, image_input, validation_share=0.15, seed=1)
    assert len(data.train) == 70
    keras.utils.set_random_seed(1)
    model = normalised_model()
    with redirect_stdout(io.StringIO()):
        history = train(model, Classification(), data, Schedule())
    assert history.describe().validation_accuracy >= 0.9
    guesses = model.predict_on_batch(data.held_out.images).argmax(axis=1)
    assert (guesses == data.held_out.classes).mean() >= 0.85


def test_pairs_come_by_name_and_half_of_them_match() -> None:
    model = recorded(bars(1024), epochs=1, task=Comparison())
    (batches,) = model.epochs()
    same = []
    for images, targets in batches:
        assert set(images) == {"left", "right"}
        assert images["left"].shape == images["right"].shape == (64, 12, 12, 1)
        left, right = targets["left_probabilities"], targets["right_probabilities"]
        np.testing.assert_array_equal(targets["same"][:, 0], (left * right).sum(axis=1))
        same += targets["same"].tolist()
    assert 0.4 < np.mean(same) < 0.6


def test_validation_shows_the_same_images_each_time_undistorted() -> None:
    data = bars(64)
    model = recorded(data, epochs=1, task=Comparison())
    first, second = (
        list(model.fit_options["validation_data"].as_numpy_iterator()) for _ in range(2)
    )
    lefts = [
        np.concatenate([images["left"] for images, _ in r]) for r in (first, second)
    ]
    rights = [
        np.concatenate([images["right"] for images, _ in r]) for r in (first, second)
    ]
    np.testing.assert_array_equal(lefts[0], data.validation_views().images)
    np.testing.assert_array_equal(rights[0], rights[1])


def test_an_epoch_is_written_down(run: Run) -> None:
    (epoch,) = run.history.epochs
    assert epoch.number == run.history.best_epoch == 1
    assert not run.history.interrupted
    assert epoch.loss > 0
    assert epoch.validation_loss > 0
    assert 0.5 < epoch.validation_accuracy <= 1
    assert epoch.learning_rate == pytest.approx(0, abs=1e-6)


def test_training_stops_when_it_gets_no_better_and_keeps_the_best_weights() -> None:
    """A learning rate far too high spoils what the slow start has learned."""
    keras.utils.set_random_seed(0)
    model = tiny_model()
    with redirect_stdout(io.StringIO()):
        history = train(
            model,
            Classification(),
            bars(512),
            Schedule(epochs=40, patience_epochs=2, learning_rate=30.0),
        )
    losses = [epoch.validation_loss for epoch in history.epochs]
    assert len(losses) == history.best_epoch + 2 < 40
    best = min(losses)
    assert losses[history.best_epoch - 1] == best
    views = bars(2).validation_views()
    targets = np.eye(2, dtype=np.float32)[views.classes]
    now, _ = model.evaluate(views.images, targets, verbose=0)
    assert now == pytest.approx(best, rel=1e-3)


class Interrupting(Classification):
    """Presses Ctrl-C while a certain batch is prepared."""

    def __init__(self, press: int) -> None:
        super().__init__()
        self._press = press
        self._batches = 0

    def batch(self, split: Split, *arguments: Any) -> Any:
        self._batches += 1
        if self._batches == self._press:
            os.kill(os.getpid(), signal.SIGINT)
        return super().batch(split, *arguments)


class InterruptingTwice(Interrupting):
    """Presses it once more in the validation, which the first one leads to."""

    def __init__(self, press: int, *, training: Split) -> None:
        super().__init__(press)
        self._training = training
        self._is_done = False

    def batch(self, split: Split, *arguments: Any) -> Any:
        if split is not self._training and not self._is_done:
            self._is_done = True
            os.kill(os.getpid(), signal.SIGINT)
        return super().batch(split, *arguments)


def test_ctrl_c_ends_the_training_and_keeps_what_was_learned() -> None:
    """Sixteen batches an epoch, and four to validate with."""
    keras.utils.set_random_seed(0)
    model = tiny_model()
    before, output = model.get_weights(), io.StringIO()
    handler = signal.getsignal(signal.SIGINT)
    with redirect_stdout(output):
        history = train(
            model, Interrupting(30), bars(1024), Schedule(epochs=50, patience_epochs=50)
        )
    assert history.interrupted
    assert 1 <= len(history.epochs) < 50
    assert 1 <= history.best_epoch <= len(history.epochs)
    assert any((a != b).any() for a, b in zip(before, model.get_weights(), strict=True))
    assert "ending the training; the best weights so far are kept" in output.getvalue()
    assert signal.getsignal(signal.SIGINT) is handler


def test_ctrl_c_before_the_first_step_ends_the_training_after_it() -> None:
    """Keras forgets what it is told before."""
    with redirect_stdout(io.StringIO()):
        history = train(
            tiny_model(),
            Interrupting(1),
            bars(1024),
            Schedule(epochs=50, patience_epochs=50),
        )
    assert history.interrupted
    assert len(history.epochs) == 1
    assert history.describe().interrupted


def test_a_training_that_diverges_says_so_at_once() -> None:
    output = io.StringIO()
    with redirect_stdout(output), pytest.raises(Diverged, match="--learning-rate"):
        train(
            tiny_model(),
            Classification(),
            bars(512),
            Schedule(epochs=50, learning_rate=1e38),
        )


def test_a_second_ctrl_c_ends_the_program() -> None:
    dataset = bars(1024)
    with pytest.raises(KeyboardInterrupt), redirect_stdout(io.StringIO()):
        train(
            tiny_model(),
            InterruptingTwice(2, training=dataset.train),
            dataset,
            Schedule(epochs=50, patience_epochs=50),
        )
