"""Inception v3: functional API, its published table as data.

After Szegedy et al., "Rethinking the Inception architecture for computer vision"
(2015), table 1 and figures 5 to 7, with the filters that its authors published as code;
23,851,784 parameters for 1000 classes.
"""

from typing import Final

import keras

from models.architectures.common import block_network
from models.architectures.options import Options
from models.blocks import AveragePool, Branch, Conv, MaxPool, Split, Step


def _pool(projection: int) -> Branch:
    return AveragePool(3), Conv(projection, 1)


def _fives(pool_projection: int) -> Split:
    """Figure 5: one 5×5, and two 3×3 that see as much."""
    return Split(
        {
            "1x1": (Conv(64, 1),),
            "5x5": (Conv(48, 1), Conv(64, 5)),
            "3x3_double": (Conv(64, 1), Conv(96, 3), Conv(96, 3)),
            "pool": _pool(pool_projection),
        }
    )


def _sevens(filters: int) -> Split:
    """Figure 6: a 7×7 made of 1×7 and 7×1, once and twice."""
    row, column = Conv(filters, (1, 7)), Conv(filters, (7, 1))
    last_row, last_column = Conv(192, (1, 7)), Conv(192, (7, 1))
    return Split(
        {
            "1x1": (Conv(192, 1),),
            "7x7": (Conv(filters, 1), row, last_column),
            "7x7_double": (Conv(filters, 1), column, row, column, last_row),
            "pool": _pool(192),
        }
    )


# Figure 7: where the features are small and many, 1×3 and 3×1 side by side.
_THREES: Final = Split({"1x3": (Conv(384, (1, 3)),), "3x1": (Conv(384, (3, 1)),)})
_EXPANDED: Final = Split(
    {
        "1x1": (Conv(320, 1),),
        "3x3": (Conv(384, 1), _THREES),
        "3x3_double": (Conv(448, 1), Conv(384, 3), _THREES),
        "pool": _pool(192),
    }
)


def _halving(filters: int, kernel_size: int) -> Conv:
    return Conv(filters, kernel_size, strides=2, padding="valid")


_HALVING_POOL: Final = MaxPool(3, strides=2, padding="valid")

STEPS: Final[dict[str, Step]] = {
    "stem_1": _halving(32, 3),
    "stem_2": Conv(32, 3, padding="valid"),
    "stem_3": Conv(64, 3),
    "stem_3_pool": _HALVING_POOL,
    "stem_4": Conv(80, 1),
    "stem_5": Conv(192, 3, padding="valid"),
    "stem_5_pool": _HALVING_POOL,
    "mixed_0": _fives(32),
    "mixed_1": _fives(64),
    "mixed_2": _fives(64),
    "mixed_3": Split(
        {
            "3x3": (_halving(384, 3),),
            "3x3_double": (Conv(64, 1), Conv(96, 3), _halving(96, 3)),
            "pool": (_HALVING_POOL,),
        }
    ),
    "mixed_4": _sevens(128),
    "mixed_5": _sevens(160),
    "mixed_6": _sevens(160),
    "mixed_7": _sevens(192),
    "mixed_8": Split(
        {
            "3x3": (Conv(192, 1), _halving(320, 3)),
            "7x7_3x3": (
                Conv(192, 1),
                Conv(192, (1, 7)),
                Conv(192, (7, 1)),
                _halving(192, 3),
            ),
            "pool": (_HALVING_POOL,),
        }
    ),
    "mixed_9": _EXPANDED,
    "mixed_10": _EXPANDED,
}


def inception_v3(options: Options) -> keras.Model:
    """Map `images`, uint8 `[N, H, W, C]`, to `probabilities` `[N, classes]`."""
    return block_network(STEPS, options, name="inception_v3")
