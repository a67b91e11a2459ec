"""A small GoogLeNet for digits: the same bricks and shape, a fiftieth of the size.

After Szegedy et al., "Going deeper with convolutions" (2014): a convolutional stem,
inception blocks with max-pooling between the stages, global average pooling.
"""

from typing import Final

import keras
from keras import layers

from models.blocks import Branch, Conv, MaxPool, cnn_block, inception_block

STEM_FILTERS: Final = (16, 32)
DROPOUT: Final = 0.3


def _branches(
    ones: int,
    threes: tuple[int, int],
    fives: tuple[int, int],
    pool_projection: int,
) -> dict[str, Branch]:
    """A row of GoogLeNet's table; pairs are the reducing 1×1 and the convolution."""
    return {
        "1x1": (Conv(ones, 1),),
        "3x3": (Conv(threes[0], 1), Conv(threes[1], 3)),
        "5x5": (Conv(fives[0], 1), Conv(fives[1], 5)),
        "pool": (MaxPool(3), Conv(pool_projection, 1)),
    }


# Stage by stage, with a halving of height and width after each but the last.
STAGES: Final = (
    (
        _branches(24, (24, 48), (8, 24), 24),
        _branches(40, (32, 64), (12, 32), 24),
    ),
    (_branches(64, (64, 128), (16, 48), 48),),
)


def inception(image_shape: tuple[int, int, int], classes: int) -> keras.Model:
    """Map `images`, uint8 `[N, *image_shape]`, to `probabilities` `[N, classes]`.

    Normalisation to -1…1 is inside, so inverting an image flips its sign.
    """
    images = keras.Input(image_shape, dtype="uint8", name="images")
    x = layers.Rescaling(1 / 127.5, offset=-1, name="normalise")(images)
    for number, filters in enumerate(STEM_FILTERS, start=1):
        x = cnn_block(x, filters, 3, name=f"stem_{number}")
        x = layers.MaxPooling2D(2, name=f"stem_{number}_pool")(x)
    for stage, blocks in enumerate(STAGES, start=1):
        for letter, branches in zip("abc", blocks, strict=False):
            x = inception_block(x, branches, name=f"inception_{stage}{letter}")
        if stage < len(STAGES):
            x = layers.MaxPooling2D(2, padding="same", name=f"stage_{stage}_pool")(x)
    x = layers.GlobalAveragePooling2D(name="average")(x)
    x = layers.Dropout(DROPOUT, name="dropout")(x)
    probabilities = layers.Dense(classes, activation="softmax", name="probabilities")
    return keras.Model(images, probabilities(x), name="inception")
