"""Two images through one network: functional API, shared layers, several outputs.

After Bromley et al., "Signature verification using a Siamese time delay neural network"
(1993), with the trunk of `inception`.
"""

from typing import Final

import keras
from keras import layers

from models.architectures.common import classifier, features, image_input
from models.architectures.inception import STEPS
from models.architectures.options import Options
from models.blocks import Tensor

COMPARING_UNITS: Final = 64


def siamese(options: Options) -> keras.Model:
    """Tell whether two images show the same, and what each shows.

    Maps `left` and `right`, both uint8 `[N, H, W, C]`, to `same`, the probability
    `[N, 1]` that both are of one class, and to `left_probabilities` and
    `right_probabilities`, both `[N, classes]`; all float32.
    """
    images = image_input(options)
    trunk = keras.Model(images, features(images, STEPS, options), name="trunk")
    inputs = {side: image_input(options, name=side) for side in ("left", "right")}
    seen = {side: trunk(image) for side, image in inputs.items()}

    dropout, probabilities = classifier(options)
    outputs = {"same": _same(seen["left"], seen["right"], options)}
    for side, x in seen.items():
        outputs[f"{side}_probabilities"] = probabilities(dropout(x))
    return keras.Model(inputs, outputs, name="siamese")


def _same(left: Tensor, right: Tensor, options: Options) -> Tensor:
    """Compare feature by feature: exchanging left and right changes nothing."""
    difference = layers.Subtract(name="compare_difference")([left, right])
    distance = layers.Multiply(name="compare_distance")([difference, difference])
    product = layers.Multiply(name="compare_product")([left, right])
    x = layers.Concatenate(name="compare_concat")([distance, product])
    x = layers.Dense(
        options.widened(COMPARING_UNITS),
        activation="relu",
        kernel_initializer="he_normal",
        name="compare_dense",
    )(x)
    return layers.Dense(1, activation="sigmoid", name="same", dtype="float32")(x)
