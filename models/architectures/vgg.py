"""VGG: Sequential API, the configurations as data.

After Simonyan and Zisserman, "Very deep convolutional networks for large-scale image
recognition" (2014), table 1: 132,863,336 parameters with 11 layers (A) and 138,357,544
with 16 (D) for 224×224×3 and 1000 classes.
"""

from collections.abc import Sequence
from typing import Final

import keras
from keras import layers

from models.architectures.common import (
    dense_classifier,
    image_input,
    normalisation,
)
from models.architectures.options import Options

# The filters of the 3×3 convolutions; height and width are halved after each group.
CONFIGURATION_A: Final = ((64,), (128,), (256, 256), (512, 512), (512, 512))
CONFIGURATION_D: Final = (
    (64, 64),
    (128, 128),
    (256, 256, 256),
    (512, 512, 512),
    (512, 512, 512),
)


def vgg11(options: Options) -> keras.Model:
    """Map `images`, uint8 `[N, H, W, C]`, to `probabilities` `[N, classes]`."""
    return _vgg(CONFIGURATION_A, options, name="vgg")


def vgg16(options: Options) -> keras.Model:
    """Map `images`, uint8 `[N, H, W, C]`, to `probabilities` `[N, classes]`."""
    return _vgg(CONFIGURATION_D, options, name="vgg16")


def _vgg(
    groups: Sequence[Sequence[int]], options: Options, *, name: str
) -> keras.Model:
    chain = [image_input(options), normalisation()]
    for group, convolutions in enumerate(groups, start=1):
        chain += [
            layers.Conv2D(
                options.widened(filters),
                3,
                padding="same",
                activation="relu",
                kernel_initializer="he_normal",
                name=f"conv_{group}_{number}",
            )
            for number, filters in enumerate(convolutions, start=1)
        ]
        chain.append(layers.MaxPooling2D(2, name=f"pool_{group}"))
    return keras.Sequential([*chain, *dense_classifier(options)], name=name)
