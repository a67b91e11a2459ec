"""Training: the recipe, what the network gets to see, and what is measured."""

import io
from contextlib import redirect_stdout
from dataclasses import dataclass
from itertools import islice
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from models.card import Accuracy
from models.datasets import Dataset, inverted
from models.training import evaluate, train

Array = np.ndarray[Any, Any]
Batch = tuple[Array, Array]


def bars(images: int, held_out: int = 100) -> Dataset:
    """Upright bars and lying bars, taking turns."""
    lying = np.zeros((12, 12, 1), np.uint8)
    lying[5:7] = 255
    kinds = np.stack([lying, lying.transpose(1, 0, 2)])
    train_classes, held_out_classes = np.arange(images) % 2, np.arange(held_out) % 2
    return Dataset(
        name="bars",
        labels=("lying", "upright"),
        train_images=kinds[train_classes],
        train_classes=train_classes,
        held_out_images=kinds[held_out_classes],
        held_out_classes=held_out_classes,
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
    output: str


def trained() -> Run:
    keras.utils.set_random_seed(0)
    model = tiny_model()
    before = model.get_weights()
    output = io.StringIO()
    with redirect_stdout(output):
        train(model, bars(1024), epochs=1)
    return Run(
        model=model, before=before, after=model.get_weights(), output=output.getvalue()
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
    for images in (data.train_images, inverted(data.train_images)):
        before, after = (
            model.predict_on_batch(images)[[0, 1], data.train_classes]
            for model in (untrained, run.model)
        )
        assert np.log(after).mean() > np.log(before).mean()
    assert [accuracy.value for accuracy in evaluate(run.model, data)] == [1, 1]


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

    def epochs(self) -> list[list[Batch]]:
        """The batches of each epoch, taken as Keras takes them."""
        epochs = range(self.fit_options["epochs"])
        steps = self.fit_options.get("steps_per_epoch")
        if steps is None:
            return [list(self.batches.as_numpy_iterator()) for _ in epochs]
        iterator = self.batches.as_numpy_iterator()
        return [list(islice(iterator, steps)) for _ in epochs]


def recorded(data: Dataset, epochs: int | None = None) -> RecordingModel:
    model = RecordingModel()
    train(model, data, epochs=epochs)
    return model


def test_the_recipe_has_sixteen_epochs_unless_told_otherwise() -> None:
    data = bars(640)
    assert recorded(data).fit_options["epochs"] == 16
    assert recorded(data, epochs=3).fit_options["epochs"] == 3


def test_the_learning_rate_rises_for_a_fifth_of_the_steps_and_falls_to_zero() -> None:
    """Ten batches of 64 in sixteen epochs make 160 steps."""
    schedule = recorded(bars(640)).optimizer._learning_rate
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


@pytest.mark.parametrize("images", [1, 63, 64, 65, 200])
def test_every_number_of_images_can_be_trained_on(images: int) -> None:
    model = recorded(bars(images), epochs=1)
    (batches,) = model.epochs()
    assert len(batches) == max(1, images // 64)
    for pixels, targets in batches:
        assert pixels.shape[1:] == (12, 12, 1)
        assert (pixels.dtype, targets.dtype) == (np.uint8, np.float32)
        assert targets.shape == (len(pixels), 2)


def test_an_image_keeps_its_class_through_shuffling_and_distortion() -> None:
    """Blank images stay blank, and bars do not become so."""
    data = bars(640)
    blank = data.train_classes == 1
    images = np.where(blank[:, None, None, None], 0, data.train_images)
    mixed = Dataset(
        name="blank or not",
        labels=data.labels,
        train_images=images.astype(np.uint8),
        train_classes=data.train_classes,
        held_out_images=data.held_out_images,
        held_out_classes=data.held_out_classes,
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


class ReadingModel:
    """Takes the first pixel for the class."""

    def predict(self, images: Array, **_: Any) -> Array:
        return np.eye(256, dtype=np.float32)[images[:, 0, 0, 0]]


def test_accuracy_is_the_share_of_right_guesses_in_each_polarity() -> None:
    """Seven pixels say their class, two say it once inverted, one never does."""
    classes = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    pixels = classes.copy()
    pixels[7:9] = 255 - classes[7:9]
    pixels[9] = 100
    data = Dataset(
        name="pixels",
        labels=tuple("0123456789"),
        train_images=np.zeros((0, 1, 1, 1), np.uint8),
        train_classes=np.zeros(0, np.int64),
        held_out_images=pixels.astype(np.uint8).reshape(-1, 1, 1, 1),
        held_out_classes=classes,
    )
    assert evaluate(ReadingModel(), data) == (
        Accuracy(data="pixels, held out, light on dark", samples=10, value=0.7),
        Accuracy(data="pixels, held out, dark on light", samples=10, value=0.2),
    )
