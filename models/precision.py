"""What a model gains and loses in another precision: size, speed and accuracy."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Final, Literal

import keras
import numpy as np
import tensorflow as tf
from keras import ops
from rich import filesize
from rich.table import Table

from models.card import Precision, PrecisionMeasurement
from models.datasets import Images
from models.tasks import Array, Predict

BATCH_SIZE: Final = 32
ROUNDS: Final = 5
ROUND_SECONDS: Final = 0.2

# Measures a model's accuracy, 0 to 1.
Score = Callable[[Predict], float]


class PrecisionError(Exception):
    """A model cannot be had in this precision."""


class AccuracyDrop(PrecisionError):
    """It costs more accuracy than is allowed."""


class WeightOverflow(PrecisionError):
    """A weight is too large for it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidate:
    """A model in one precision, loaded into an engine.

    Attributes:
        precision: That of its weights.
        engine: What runs it.
        model: A SavedModel's directory, or an `.xml` file with its `.bin` beside it.
        predict: Maps images to answers, as the signature `serving_default` does.
    """

    precision: Precision
    engine: Literal["openvino", "tensorflow"]
    model: Path
    predict: Predict

    @property
    def size_bytes(self) -> int:
        """Graph and weights on disk, without assets."""
        if self.model.is_dir():
            variables = (self.model / "variables").iterdir()
            files = [self.model / "saved_model.pb", *variables]
        else:
            files = [self.model, self.model.with_suffix(".bin")]
        return sum(file.stat().st_size for file in files)


def tensorflow_candidate(precision: Precision, saved_model: Path) -> Candidate:
    """Load an exported model into TensorFlow."""
    loaded = tf.saved_model.load(str(saved_model))

    def predict(images: Mapping[str, Images]) -> dict[str, Array]:
        # Taken from `loaded` each time: alone, it would not keep the variables alive.
        function = loaded.signatures["serving_default"]
        answers = function(**{name: tf.constant(x) for name, x in images.items()})
        return {name: answer.numpy() for name, answer in answers.items()}

    return Candidate(
        precision=precision, engine="tensorflow", model=saved_model, predict=predict
    )


def measure(
    candidates: Sequence[Candidate],
    images: Mapping[str, Images],
    score: Score | None = None,
) -> tuple[PrecisionMeasurement, ...]:
    """Measure size, speed and accuracy, in the order of the candidates.

    Speeds compare with one another: the candidates take turns, so that whatever else
    the machine does meanwhile slows all of them.

    Args:
        candidates: Float32 and those to compare with it.
        images: Any images, uint8 `[N, H, W, C]`, by input name; for speed.
        score: Measures accuracy on held-out images; `None` where there are none.
    """
    batch = {
        name: np.take(array, range(BATCH_SIZE), axis=0, mode="wrap")
        for name, array in images.items()
    }
    return tuple(
        PrecisionMeasurement(
            precision=candidate.precision,
            engine=candidate.engine,
            size_bytes=candidate.size_bytes,
            batch_size=BATCH_SIZE,
            images_per_second=BATCH_SIZE / seconds,
            accuracy=score(candidate.predict) if score else None,
        )
        for candidate, seconds in zip(
            candidates, _batch_seconds(candidates, batch), strict=True
        )
    )


def check_accuracy_drop(
    float32: PrecisionMeasurement,
    candidate: PrecisionMeasurement,
    *,
    max_drop_points: float,
) -> None:
    """Compare accuracies, where both are known.

    Raises:
        AccuracyDrop: The candidate's is lower by more than `max_drop_points`
            percentage points.
    """
    drop_points = -_difference_points(float32, candidate)
    if drop_points > max_drop_points:
        raise AccuracyDrop(
            f"{candidate.precision} has an accuracy of {candidate.accuracy:.2%}, "
            f"float32 one of {float32.accuracy:.2%}: a drop of {drop_points:.2f} "
            f"points, and --max-accuracy-drop allows {max_drop_points:g}"
        )


def table(measurements: Sequence[PrecisionMeasurement]) -> Table:
    """A row for each measurement, compared with float32 in the same engine."""
    made = Table(caption=f"images/s in batches of {BATCH_SIZE} on this machine")
    for heading in ("precision", "engine"):
        made.add_column(heading)
    for heading in ("size", "images/s", "speed", "accuracy", "difference"):
        made.add_column(heading, justify="right")
    float32 = {m.engine: m for m in measurements if m.precision == "float32"}
    for measurement in measurements:
        baseline = float32[measurement.engine]
        known = measurement.accuracy is not None
        speed = measurement.images_per_second / baseline.images_per_second
        difference = _difference_points(baseline, measurement)
        made.add_row(
            measurement.precision,
            measurement.engine,
            filesize.decimal(measurement.size_bytes),
            f"{measurement.images_per_second:,.0f}",
            f"{speed:.2f}x",
            f"{measurement.accuracy:.2%}" if known else "-",
            f"{difference:+.2f} points" if known else "-",
        )
    return made


def cast_weights(source: keras.Model, target: keras.Model) -> None:
    """Copy weights, in order, into the same network of another precision.

    Raises:
        ValueError: The networks are not the same.
        WeightOverflow: A weight would become infinite.
    """
    if len(source.weights) != len(target.weights):
        raise ValueError(
            f"{target.name} has {len(target.weights)} weights, "
            f"{source.name} has {len(source.weights)}"
        )
    for old, new in zip(source.weights, target.weights, strict=True):
        if old.shape != new.shape:
            raise ValueError(f"{new.path} is {new.shape}, {old.path} is {old.shape}")
        value = ops.cast(old, new.dtype)
        if not ops.all(ops.isfinite(value)):
            largest = float(ops.max(ops.abs(old)))
            raise WeightOverflow(
                f"{old.path} holds {largest:.3g}, which is no number in {new.dtype}; "
                "bfloat16 has the range of float32"
            )
        new.assign(value)


def _batch_seconds(
    candidates: Sequence[Candidate], batch: Mapping[str, Images]
) -> list[float]:
    """The median time of a batch for each candidate."""
    for candidate in candidates:
        candidate.predict(batch)  # the first one prepares much
    repeats = [ceil(ROUND_SECONDS / _seconds(c, batch)) for c in candidates]
    rounds = [
        [
            _seconds(candidate, batch, times=times) / times
            for candidate, times in zip(candidates, repeats, strict=True)
        ]
        for _ in range(ROUNDS)
    ]
    return [median(times) for times in zip(*rounds, strict=True)]


def _seconds(
    candidate: Candidate, batch: Mapping[str, Images], *, times: int = 1
) -> float:
    started = perf_counter()
    for _ in range(times):
        candidate.predict(batch)
    return perf_counter() - started


def _difference_points(
    float32: PrecisionMeasurement, candidate: PrecisionMeasurement
) -> float:
    """Percentage points above float32; 0 where an accuracy is unknown."""
    if float32.accuracy is None or candidate.accuracy is None:
        return 0
    # Rounded, or 0.97 and 0.96 would be more than one point apart.
    return round(100 * (candidate.accuracy - float32.accuracy), 6)
