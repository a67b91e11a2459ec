"""A small GoogLeNet for digits: functional API, its layer table as data.

The same bricks and shape as the original's at a fiftieth of the size: a convolutional
stem, inception blocks with max-pooling between the stages, global average pooling.
"""

from typing import Final

import keras

from models.architectures.common import block_network
from models.architectures.googlenet import inception_split
from models.architectures.options import Options
from models.blocks import Conv, MaxPool, Step

STEPS: Final[dict[str, Step]] = {
    "stem_1": Conv(16, 3),
    "stem_1_pool": MaxPool(2, strides=2, padding="valid"),
    "stem_2": Conv(32, 3),
    "stem_2_pool": MaxPool(2, strides=2, padding="valid"),
    "inception_1a": inception_split(24, (24, 48), (8, 24), 24),
    "inception_1b": inception_split(40, (32, 64), (12, 32), 24),
    "stage_1_pool": MaxPool(2, strides=2),
    "inception_2a": inception_split(64, (64, 128), (16, 48), 48),
}


def inception(options: Options) -> keras.Model:
    """Map `images`, uint8 `[N, H, W, C]`, to `probabilities` `[N, classes]`."""
    return block_network(STEPS, options, name="inception")
