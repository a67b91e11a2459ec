"""The bricks: plain functions from tensor to tensor, as in the functional API.

A block gets its name from its caller, and its layers extend it (`stem` makes
`stem_conv`, `stem_bn` and `stem_relu`), so that each layer tells where it belongs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from keras import layers

Tensor = Any  # a KerasTensor or a backend tensor; Keras has no public type for both


@dataclass(frozen=True, slots=True)
class Conv:
    """One `cnn_block` of a branch."""

    filters: int
    kernel_size: int | tuple[int, int]


@dataclass(frozen=True, slots=True)
class MaxPool:
    """A maximum over `pool_size` x `pool_size` neighbours that keeps the image size."""

    pool_size: int


Branch = Sequence[Conv | MaxPool]


def cnn_block(
    x: Tensor,
    filters: int,
    kernel_size: int | tuple[int, int],
    *,
    strides: int = 1,
    name: str,
) -> Tensor:
    """Convolution, batch normalisation, ReLU (Ioffe and Szegedy, 2015).

    Maps `[N, H, W, C]` to `[N, H / strides, W / strides, filters]`. The convolution has
    no bias, for the normalisation would take it away again, and the normalisation no
    scale, for the next convolution can take it over.
    """
    x = layers.Conv2D(
        filters,
        kernel_size,
        strides=strides,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        name=f"{name}_conv",
    )(x)
    x = layers.BatchNormalization(momentum=0.9, scale=False, name=f"{name}_bn")(x)
    return layers.ReLU(name=f"{name}_relu")(x)


def inception_block(x: Tensor, branches: Mapping[str, Branch], *, name: str) -> Tensor:
    """Parallel branches over one input, concatenated (Szegedy et al., 2014).

    Maps `[N, H, W, C]` to `[N, H, W, F]`, where `F` is the sum of the filters of the
    branches' last blocks. Step `i` of branch `b` is named `{name}_{b}_{i}`.
    """
    outputs = []
    for branch, steps in branches.items():
        y = x
        for position, step in enumerate(steps, start=1):
            y = _apply(step, y, name=f"{name}_{branch}_{position}")
        outputs.append(y)
    return layers.Concatenate(name=f"{name}_concat")(outputs)


def _apply(step: Conv | MaxPool, x: Tensor, *, name: str) -> Tensor:
    match step:
        case Conv(filters, kernel_size):
            return cnn_block(x, filters, kernel_size, name=name)
        case MaxPool(pool_size):
            pool = layers.MaxPooling2D(pool_size, strides=1, padding="same", name=name)
            return pool(x)
