"""AlexNet in one tower: Sequential API, layer added to layer.

After Krizhevsky, "One weird trick for parallelizing convolutional neural networks"
(2014), without local response normalisation; 61,100,840 parameters for 1000 classes.
"""

from typing import Final, NamedTuple

import keras
from keras import layers

from models.architectures.common import dense_classifier, image_input, normalisation
from models.architectures.options import Options


class _Row(NamedTuple):
    filters: int
    kernel_size: int
    pooled: bool  # followed by a maximum over 3×3 in steps of 2


FIRST_FILTERS: Final = 64
CONVOLUTIONS: Final = (
    _Row(192, 5, pooled=True),
    _Row(384, 3, pooled=False),
    _Row(256, 3, pooled=False),
    _Row(256, 3, pooled=True),
)


def alexnet(options: Options) -> keras.Model:
    """Map `images`, uint8 `[N, H, W, C]`, to `probabilities` `[N, classes]`."""
    model = keras.Sequential(name="alexnet")
    model.add(image_input(options))
    model.add(normalisation())
    model.add(layers.ZeroPadding2D(2, name="margin"))
    model.add(
        layers.Conv2D(
            options.widened(FIRST_FILTERS),
            11,
            strides=4,
            activation="relu",
            kernel_initializer="he_normal",
            name="conv_1",
        )
    )
    model.add(layers.MaxPooling2D(3, strides=2, name="pool_1"))
    for number, row in enumerate(CONVOLUTIONS, start=2):
        model.add(
            layers.Conv2D(
                options.widened(row.filters),
                row.kernel_size,
                padding="same",
                activation="relu",
                kernel_initializer="he_normal",
                name=f"conv_{number}",
            )
        )
        if row.pooled:
            model.add(layers.MaxPooling2D(3, strides=2, name=f"pool_{number}"))
    for layer in dense_classifier(options):
        model.add(layer)
    return model
