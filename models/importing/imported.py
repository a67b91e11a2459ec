"""What an import results in."""

from collections.abc import Callable
from dataclasses import dataclass

import keras

from models.card import OutputTensor
from models.datasets import Images
from models.importing.originals import Array, Kind


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Imported:
    """Someone else's model as a network of ours.

    Attributes:
        network: Takes `images`, uint8 `[N, *image_shape]`, the preprocessing being
            inside. With a single output it answers a float32 tensor `[N, classes]`,
            with several a dictionary of float32 tensors by name.
        image_shape: Height, width and channels.
        classes: How many labels its first classifying output tells apart.
        outputs: What the outputs are called and what they mean; a sole one is called
            by its role. One whose single number `p` is within 0 to 1 became the two
            probabilities `[1 - p, p]`, any other single number `z` the two logits
            `[0, z]`, of which softmax makes `sigmoid(z)`.
        kind: The format of the file.
        castable: Whether `cast` can change its precision.
        original_outputs: What the network ought to answer to uint8 images, computed
            without the network: they are preprocessed by NumPy and go through the
            original as it was loaded. Float32 arrays by the names in `outputs`.
    """

    network: keras.Model
    image_shape: tuple[int, int, int]
    classes: int
    outputs: tuple[OutputTensor, ...]
    kind: Kind
    castable: bool
    original_outputs: Callable[[Images], dict[str, Array]]
