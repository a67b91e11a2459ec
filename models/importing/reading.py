"""From a file to a network of our own kind."""

import re
from pathlib import Path
from typing import Any

import keras
import numpy as np

from models.datasets import Images
from models.importing.failures import explaining
from models.importing.feeding import Feeding
from models.importing.formats import read_original
from models.importing.imported import Imported
from models.importing.inputs import image_input
from models.importing.originals import Array, Original
from models.importing.outputs import Output, judge, probes
from models.plan import Preprocess


def read(
    path: Path, *, preprocess: Preprocess, size: tuple[int, int] | None = None
) -> Imported:
    """Import a classifier of images.

    Args:
        path: A `.keras` file, an `.h5` file with a whole model, or the directory of a
            SavedModel; of its signatures, `serving_default` or the only one is taken,
            and without any, what the saved object does when it is called.
        preprocess: How the original was fed: `none` with 0 to 255, `scale01` with 0 to
            1, `scale11` with -1 to 1, `imagenet-mean` with BGR minus ImageNet's mean
            (Keras' mode "caffe"), `imagenet-standard` with ImageNet's mean and standard
            deviation taken out (Keras' mode "torch").
        size: Height and width, for an original that takes any.

    Raises:
        ImportFailed: It cannot be read, or is no classifier of single images.
    """
    with explaining(path, "cannot be read and may be damaged"):
        original = read_original(path)
    dtype, image_shape = image_input(original.inputs, size)
    feeding = Feeding(preprocess=preprocess, dtype=dtype)
    feeding.check(image_shape)
    with explaining(path, f"fails on images of {image_shape}"):
        outputs, classes = judge(original.run(feeding.in_numpy(probes(image_shape))))
        images = keras.Input(image_shape, dtype="uint8", name="images")
        answer = _answer(original, outputs, feeding.in_keras(images))

    def original_outputs(images: Images) -> dict[str, Array]:
        answers = original.run(feeding.in_numpy(images))
        return {o.tensor.name: o.of(answers[o.source], np.concatenate) for o in outputs}

    return Imported(
        network=keras.Model(images, answer, name=re.sub(r"\W", "_", path.stem)),
        image_shape=image_shape,
        classes=classes,
        outputs=tuple(output.tensor for output in outputs),
        kind=original.kind,
        castable=original.is_keras,
        original_outputs=original_outputs,
    )


def _answer(original: Original, outputs: tuple[Output, ...], images: Any) -> Any:
    """The network's output tensor, or several by name."""
    answers = {
        # A plain operation: it stays where `cast` changes the layers.
        name: keras.ops.cast(tensor, "float32")
        for name, tensor in original.connect(images).items()
    }
    tensors = {
        o.tensor.name: o.of(answers[o.source], keras.ops.concatenate) for o in outputs
    }
    (first, *others) = tensors.values()
    return tensors if others else first
