"""Writes a model as a new version of the repository: whole or not at all."""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Final

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from models.card import (
    ASSETS_DIRECTORY,
    GRAPH_FILE,
    SAMPLE_FILE,
    SUMMARY_FILE,
    WARMUP_FILE,
    Accuracy,
    ImageInput,
    ModelCard,
    OutputTensor,
    Parity,
)
from models.datasets import Images
from models.plot import draw
from models.summary import summarise
from models.warmup import write_warmup_requests

IMAGES: Final = "images"
IMAGE_BYTES: Final = "image_bytes"
PROBABILITIES: Final = "probabilities"
# What TensorFlow Serving warms up with; the gateway warms itself up.
WARMUP_BATCH_SIZES: Final = (1, 2, 4, 8, 16)
MAX_DIFFERENCE: Final = 1e-4
FRAMEWORKS: Final = (keras, tf, np)


class ParityError(Exception):
    """The exported SavedModel does not compute what the Keras model does."""


def export(
    model: keras.Model,
    *,
    name: str,
    architecture: str,
    labels: tuple[str, ...],
    samples: Images,
    accuracy: tuple[Accuracy, ...],
    repository: Path,
) -> tuple[Path, ModelCard]:
    """Export a model and check the export against it.

    Args:
        model: Maps `images`, uint8 `[N, H, W, C]`, to float32 `[N, classes]`.
        name: The model's name in the repository.
        architecture: What the model is, for the card.
        labels: Class names, in order.
        samples: Images `[N, H, W, C]` for the parity check; the first one becomes the
            sample file.
        accuracy: What was measured, for the card.
        repository: Directory of models.

    Returns:
        The new version's directory and its card.

    Raises:
        ParityError: An output differs by more than 1e-4; nothing is published.
    """
    _, height, width, channels = model.input_shape
    image_input = ImageInput(
        tensor=IMAGES,
        height=height,
        width=width,
        channels=channels,
        colour_order="grey" if channels == 1 else "rgb",
    )
    with _draft_directory(repository) as draft:
        _write_saved_model(model, image_input, draft)
        parity = _check_parity(model, draft, samples)
        card = ModelCard(
            name=name,
            version=1,
            architecture=architecture,
            created=datetime.now(UTC),
            image_input=image_input,
            encoded_input=IMAGE_BYTES,
            outputs=(OutputTensor(name=PROBABILITIES, role="probabilities"),),
            labels=labels,
            parameters=model.count_params(),
            accuracy=accuracy,
            parity=parity,
            frameworks={module.__name__: module.__version__ for module in FRAMEWORKS},
        )
        _write_assets(model, name, samples, draft)
        return _publish(draft, card, repository / name)


def _write_saved_model(
    model: keras.Model, image_input: ImageInput, directory: Path
) -> None:
    height, width, channels = (
        image_input.height,
        image_input.width,
        image_input.channels,
    )

    def from_images(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return {PROBABILITIES: model(images, training=False)}

    def from_bytes(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        shape = tf.TensorSpec((height, width, channels), tf.uint8)
        images = tf.map_fn(decode, image_bytes, fn_output_signature=shape)
        return from_images(images)

    def decode(encoded: tf.Tensor) -> tf.Tensor:
        # The filter that the card promises: bilinear, antialiased.
        image = tf.io.decode_image(encoded, channels=channels, expand_animations=False)
        resized = tf.image.resize(image, (height, width), antialias=True)
        return tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)

    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(
        "serving_default",
        from_images,
        [tf.TensorSpec((None, height, width, channels), tf.uint8, name=IMAGES)],
    )
    archive.add_endpoint(
        "serving_bytes",
        from_bytes,
        [tf.TensorSpec((None,), tf.string, name=IMAGE_BYTES)],
    )
    archive.write_out(str(directory), verbose=False)


def _check_parity(model: keras.Model, directory: Path, samples: Images) -> Parity:
    """Reload the export and compare both signatures with the Keras model."""
    expected = model.predict_on_batch(samples)
    reloaded = tf.saved_model.load(str(directory)).signatures
    encoded = tf.constant([_png(image) for image in samples])
    answers = {
        "serving_default": reloaded["serving_default"](images=tf.constant(samples)),
        "serving_bytes": reloaded["serving_bytes"](image_bytes=encoded),
    }
    differences = {
        signature: float(np.abs(answer[PROBABILITIES].numpy() - expected).max())
        for signature, answer in answers.items()
    }
    for signature, difference in differences.items():
        # Written so that a difference that is not a number fails as well.
        if not difference <= MAX_DIFFERENCE:
            raise ParityError(
                f"the exported signature {signature!r} differs from the Keras model by "
                f"{difference:.2e}; at most {MAX_DIFFERENCE:.0e} is allowed"
            )
    worst = max(differences.values())
    return Parity(samples=len(samples), max_abs_difference=worst)


def _write_assets(
    model: keras.Model, name: str, samples: Images, directory: Path
) -> None:
    (directory / ASSETS_DIRECTORY).mkdir(exist_ok=True)
    (directory / SUMMARY_FILE).write_text(summarise(model), encoding="utf-8")
    (directory / GRAPH_FILE).write_text(draw(model), encoding="utf-8")
    (directory / SAMPLE_FILE).write_bytes(_png(samples[0]))
    batches = (np.resize(samples, (n, *samples.shape[1:])) for n in WARMUP_BATCH_SIZES)
    write_warmup_requests(
        directory / WARMUP_FILE,
        model_name=name,
        requests=[("serving_default", {IMAGES: batch}) for batch in batches],
    )


def _publish(
    draft: Path, card: ModelCard, model_directory: Path
) -> tuple[Path, ModelCard]:
    """Move the draft to the next free version number; servers see all of it at once."""
    model_directory.mkdir(exist_ok=True)
    taken = (int(d.name) for d in model_directory.iterdir() if d.name.isdecimal())
    number = max(taken, default=0) + 1
    while True:
        numbered = card.model_copy(update={"version": number})
        numbered.write(draft)
        try:
            final = draft.rename(model_directory / str(number))
        except OSError:
            if not (model_directory / str(number)).exists():
                raise
            number += 1  # another build was faster
        else:
            return final, numbered


@contextmanager
def _draft_directory(repository: Path) -> Iterator[Path]:
    """A directory on the repository's file system that servers do not look at."""
    repository.mkdir(parents=True, exist_ok=True)
    draft = repository / f".draft-{uuid.uuid4().hex}"
    draft.mkdir()
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _png(image: Images) -> bytes:
    buffer = BytesIO()
    Image.fromarray(image.squeeze(axis=-1) if image.shape[-1] == 1 else image).save(
        buffer, "PNG"
    )
    return buffer.getvalue()
