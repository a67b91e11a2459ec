"""The bricks: plain functions from tensor to tensor, as in the functional API.

A network's body is data, steps by name: a `Conv`, a pool, or a `Split` into parallel
branches, which are made of steps again. `apply` turns a step into layers.

A block gets its name from its caller, and its layers extend it (`stem` makes
`stem_conv`, `stem_bn` and `stem_relu`), so that each layer tells where it belongs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Self, TypeAlias

import keras
from keras import layers

Tensor: TypeAlias = Any  # a KerasTensor or a backend tensor; Keras has no public type
Size: TypeAlias = int | tuple[int, int]
Padding: TypeAlias = Literal["same", "valid"]

_registered = keras.saving.register_keras_serializable(package="blockserve")


class _Data:
    """Lets Keras save a step as part of a layer's configuration."""

    __slots__ = ()

    def get_config(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]  # only data classes inherit this

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(**keras.saving.deserialize_keras_object(config))


@_registered
@dataclass(frozen=True, slots=True)
class Conv(_Data):
    """One `cnn_block`."""

    filters: int
    kernel_size: Size
    strides: int = 1
    padding: Padding = "same"


@_registered
@dataclass(frozen=True, slots=True)
class MaxPool(_Data):
    """A maximum over neighbours; as it is by default, it keeps the image size."""

    pool_size: Size
    strides: int = 1
    padding: Padding = "same"


@_registered
@dataclass(frozen=True, slots=True)
class AveragePool(_Data):
    """A mean over neighbours within the image; by default it keeps the image size."""

    pool_size: Size
    strides: int = 1
    padding: Padding = "same"


@_registered
@dataclass(frozen=True, slots=True)
class Split(_Data):
    """One `inception_block`."""

    branches: "Branches"


Step: TypeAlias = Conv | MaxPool | AveragePool | Split
Branch: TypeAlias = Sequence[Step]
Branches: TypeAlias = Mapping[str, Branch]


def cnn_block(
    x: Tensor,
    filters: int,
    kernel_size: Size,
    *,
    strides: int = 1,
    padding: Padding = "same",
    name: str,
) -> Tensor:
    """Convolution, batch normalisation, ReLU (Ioffe and Szegedy, 2015).

    Maps `[N, H, W, C]` to `[N, H / strides, W / strides, filters]`, rounded up; without
    padding `kernel_size - 1` is taken off H and W before.
    """
    for layer in cnn_layers(filters, kernel_size, strides, padding, name=name):
        x = layer(x)
    return x


def inception_block(x: Tensor, branches: Branches, *, name: str) -> Tensor:
    """Parallel branches over one input, concatenated (Szegedy et al., 2014).

    Maps `[N, H, W, C]` to `[N, H', W', F]`, where `F` is the sum of the channels that
    the branches end with, and `H'` and `W'`, which their strides and paddings decide,
    must be the same for all. Step `i` of branch `b` is named `{name}_{b}_{i}`.
    """
    outputs = []
    for branch, steps in branches.items():
        y = x
        for position, step in enumerate(steps, start=1):
            y = apply(step, y, name=f"{name}_{branch}_{position}")
        outputs.append(y)
    return layers.Concatenate(name=f"{name}_concat")(outputs)


def apply(step: Step, x: Tensor, *, name: str) -> Tensor:
    """Map images or features `[N, H, W, C]` as the step tells."""
    match step:
        case Conv(filters, kernel_size, strides, padding):
            return cnn_block(
                x, filters, kernel_size, strides=strides, padding=padding, name=name
            )
        case Split(branches):
            return inception_block(x, branches, name=name)
        case MaxPool() | AveragePool():
            return pool_layer(step, name=name)(x)


def cnn_layers(
    filters: int,
    kernel_size: Size,
    strides: int,
    padding: Padding,
    *,
    name: str,
    dtype: Any = None,
) -> tuple[keras.Layer, ...]:
    """The layers of a `cnn_block`, to be called one after the other.

    The convolution has no bias, for the normalisation would take it away again, and the
    normalisation no scale, for the next convolution can take it over.
    """
    return (
        layers.Conv2D(
            filters,
            kernel_size,
            strides=strides,
            padding=padding,
            use_bias=False,
            kernel_initializer="he_normal",
            name=f"{name}_conv",
            dtype=dtype,
        ),
        layers.BatchNormalization(
            momentum=0.9, scale=False, name=f"{name}_bn", dtype=dtype
        ),
        layers.ReLU(name=f"{name}_relu", dtype=dtype),
    )


def pool_layer(
    pool: MaxPool | AveragePool, *, name: str, dtype: Any = None
) -> keras.Layer:
    """The layer that pools so."""
    kinds = {MaxPool: layers.MaxPooling2D, AveragePool: layers.AveragePooling2D}
    return kinds[type(pool)](
        pool.pool_size,
        strides=pool.strides,
        padding=pool.padding,
        name=name,
        dtype=dtype,
    )
