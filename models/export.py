"""Writes a network as a new version of the repository: whole or not at all."""

import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from models.card import (
    BYTES_SIGNATURE,
    DEFAULT_SIGNATURE,
    ImageInput,
    ModelCard,
    OutputTensor,
    Parity,
    Precision,
)
from models.datasets import Images
from models.graph_preprocessing import decode
from models.tasks import Predict

# How far an output may be from that of the network, in its arithmetic's precision and
# as a share of the largest output where that exceeds 1.
MAX_DIFFERENCE: Final[Mapping[Precision, float]] = {
    "float32": 1e-4,
    "float16": 1e-2,
    "bfloat16": 5e-2,
}


class ParityError(Exception):
    """The exported SavedModel does not compute what the original does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """What a network takes and answers, by name."""

    inputs: tuple[ImageInput, ...]
    outputs: tuple[OutputTensor, ...]

    @property
    def image_input(self) -> ImageInput | None:
        """The image that `classify` fills in; `None` where there are several."""
        return self.inputs[0] if len(self.inputs) == 1 else None

    def encoded_name(self, image_input: ImageInput) -> str:
        """What an input is called where it takes encoded images."""
        alone = len(self.inputs) == 1
        return "image_bytes" if alone else f"{image_input.tensor}_bytes"

    def call(self, network: Any, images: Mapping[str, Any]) -> dict[str, Any]:
        """Call a network for inference: names in, names out."""
        given = images if len(self.inputs) > 1 else images[self.inputs[0].tensor]
        answer = network(given, training=False)
        if isinstance(answer, Mapping):
            return {output.name: answer[output.name] for output in self.outputs}
        return {self.outputs[0].name: answer}


def predict_with(network: keras.Model, interface: Interface) -> Predict:
    """Make a function from images to answers, by name, of a network."""

    @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
    def call(images: Any) -> Any:
        return interface.call(network, images)

    def predict(images: Mapping[str, Images]) -> Mapping[str, Any]:
        tensors = {name: tf.constant(array) for name, array in images.items()}
        return {name: answer.numpy() for name, answer in call(tensors).items()}

    return predict


def write_saved_model(
    network: keras.Model, interface: Interface, directory: Path, *, xla: bool = False
) -> None:
    """Write a SavedModel whose signatures take images, and encoded images.

    Args:
        network: What they compute.
        interface: Their inputs' and outputs' names.
        directory: Where to write.
        xla: Whether a server has to compile the network, anew for each batch size.
            Decoding is left out: XLA knows no strings.
    """

    def from_images(*images: Any) -> dict[str, Any]:
        named = zip(interface.inputs, images, strict=True)
        return interface.call(network, {i.tensor: batch for i, batch in named})

    if xla:
        from_images = tf.function(from_images, jit_compile=True)

    def from_bytes(*encoded: Any) -> dict[str, Any]:
        named = zip(interface.inputs, encoded, strict=True)
        return from_images(*(_decode_batch(batch, i) for i, batch in named))

    # The archive keeps the variables that its endpoints use; tracking the network
    # itself would write each of them twice.
    archive = keras.export.ExportArchive()
    archive.add_endpoint(
        DEFAULT_SIGNATURE,
        from_images,
        [
            tf.TensorSpec((None, *i.shape), tf.uint8, name=i.tensor)
            for i in interface.inputs
        ],
    )
    archive.add_endpoint(
        BYTES_SIGNATURE,
        from_bytes,
        [
            tf.TensorSpec((None,), tf.string, name=interface.encoded_name(i))
            for i in interface.inputs
        ],
    )
    archive.write_out(str(directory), verbose=False)


def decoder_in_graph(image_input: ImageInput) -> Callable[[Sequence[bytes]], Images]:
    """What the signature for encoded images does to them before it predicts."""

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)])  # type: ignore[untyped-decorator]
    def decode_batch(encoded: Any) -> Any:
        return _decode_batch(encoded, image_input)

    def decoded(files: Sequence[bytes]) -> Images:
        pixels: Images = decode_batch(tf.constant(list(files))).numpy()
        return pixels

    return decoded


def check_parity(
    directory: Path,
    interface: Interface,
    samples: Mapping[str, Images],
    expected: Mapping[str, Any],
    *,
    precision: Precision = "float32",
) -> Parity:
    """Reload an export and compare both its signatures with the original.

    Args:
        directory: Where the SavedModel is.
        interface: Its names.
        samples: Images `[N, H, W, C]` by input.
        expected: What the original answers to them, by output.
        precision: Of the network's arithmetic; tells what difference is allowed.

    Raises:
        ParityError: An output differs by more than `MAX_DIFFERENCE`.
    """
    reloaded = tf.saved_model.load(str(directory)).signatures
    encoded = {
        interface.encoded_name(i): [png(image) for image in samples[i.tensor]]
        for i in interface.inputs
    }
    worst = 0.0
    for signature, inputs in ((DEFAULT_SIGNATURE, samples), (BYTES_SIGNATURE, encoded)):
        tensors = {name: tf.constant(values) for name, values in inputs.items()}
        answers = reloaded[signature](**tensors)
        for name, want in expected.items():
            difference = _difference(answers[name].numpy(), want)
            # Written so that a difference that is not a number fails as well.
            if not difference <= MAX_DIFFERENCE[precision]:
                raise ParityError(
                    f"output {name!r} of the exported signature {signature!r} differs "
                    f"from the original's by {difference:.2e}; at most "
                    f"{MAX_DIFFERENCE[precision]:.0e} is allowed in {precision}"
                )
            worst = max(worst, difference)
    count = len(next(iter(samples.values())))
    return Parity(samples=count, max_abs_difference=worst)


def publish(draft: Path, card: ModelCard, repository: Path) -> tuple[Path, ModelCard]:
    """Move a draft to its model's next free version; servers see all of it at once."""
    model_directory = repository / card.name
    taken = (int(d.name) for d in model_directory.glob("*") if d.name.isdecimal())
    number = max(taken, default=0) + 1
    while True:
        numbered = card.model_copy(update={"version": number})
        numbered.write(draft)
        model_directory.mkdir(exist_ok=True)
        try:
            final = draft.rename(model_directory / str(number))
        except OSError:
            if not (model_directory / str(number)).exists():
                raise
            number += 1  # another build was faster
        else:
            return final, numbered


@contextmanager
def draft_directory(repository: Path) -> Iterator[Path]:
    """A directory on the repository's file system that servers do not look at."""
    repository.mkdir(parents=True, exist_ok=True)
    draft = repository / f".draft-{uuid.uuid4().hex}"
    draft.mkdir()
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def png(image: Images) -> bytes:
    """Encode an image `[H, W, C]`."""
    buffer = BytesIO()
    Image.fromarray(image.squeeze(axis=-1) if image.shape[-1] == 1 else image).save(
        buffer, "PNG"
    )
    return buffer.getvalue()


def _decode_batch(encoded: Any, image_input: ImageInput) -> Any:
    return tf.map_fn(
        lambda one: decode(one, image_input),
        encoded,
        fn_output_signature=tf.TensorSpec(image_input.shape, tf.uint8),
    )


def _difference(answer: Any, expected: Any) -> float:
    scale = max(1.0, float(np.abs(expected).max()))
    return float(np.abs(answer - expected).max()) / scale
