"""GoogLeNet, also called Inception v1: functional API, its published table as data.

After Szegedy et al., "Going deeper with convolutions" (2014), table 1, without the
auxiliary classifiers; batch normalisation takes the place of biases and of local
response normalisation.
"""

from typing import Final

import keras

from models.architectures.common import block_network
from models.architectures.options import Options
from models.blocks import Conv, MaxPool, Split, Step


def inception_split(
    ones: int, threes: tuple[int, int], fives: tuple[int, int], pool_projection: int
) -> Split:
    """A row of the table; pairs are the reducing 1×1 and the convolution."""
    return Split(
        {
            "1x1": (Conv(ones, 1),),
            "3x3": (Conv(threes[0], 1), Conv(threes[1], 3)),
            "5x5": (Conv(fives[0], 1), Conv(fives[1], 5)),
            "pool": (MaxPool(3), Conv(pool_projection, 1)),
        }
    )


STEPS: Final[dict[str, Step]] = {
    "stem_1": Conv(64, 7, strides=2),
    "stem_1_pool": MaxPool(3, strides=2),
    "stem_2": Conv(64, 1),
    "stem_3": Conv(192, 3),
    "stem_3_pool": MaxPool(3, strides=2),
    "inception_3a": inception_split(64, (96, 128), (16, 32), 32),
    "inception_3b": inception_split(128, (128, 192), (32, 96), 64),
    "stage_3_pool": MaxPool(3, strides=2),
    "inception_4a": inception_split(192, (96, 208), (16, 48), 64),
    "inception_4b": inception_split(160, (112, 224), (24, 64), 64),
    "inception_4c": inception_split(128, (128, 256), (24, 64), 64),
    "inception_4d": inception_split(112, (144, 288), (32, 64), 64),
    "inception_4e": inception_split(256, (160, 320), (32, 128), 128),
    "stage_4_pool": MaxPool(3, strides=2),
    "inception_5a": inception_split(256, (160, 320), (32, 128), 128),
    "inception_5b": inception_split(384, (192, 384), (48, 128), 128),
}


def googlenet(options: Options) -> keras.Model:
    """Map `images`, uint8 `[N, H, W, C]`, to `probabilities` `[N, classes]`."""
    return block_network(STEPS, options, name="googlenet")
