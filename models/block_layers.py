"""The bricks once more, as layers: by subclassing, as Keras' own layers are written.

A layer owns its variables: called twice, it shares them between both places. The layers
within are named as `models.blocks` names them.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, Self

import keras
from keras import layers

from models.blocks import (
    AveragePool,
    Branches,
    Conv,
    MaxPool,
    Padding,
    Size,
    Split,
    Step,
    Tensor,
    cnn_layers,
    pool_layer,
)

Shape = tuple[int | None, ...]

_registered = keras.saving.register_keras_serializable(package="blockserve")
_inlining: Final = ContextVar("_inlining", default=False)


@contextmanager
def inlined() -> Iterator[None]:
    """Within it, a graph of calls shows the layers inside of blocks, not the blocks.

    The blocks must be built. The variables stay theirs.
    """
    token = _inlining.set(True)
    try:
        yield
    finally:
        _inlining.reset(token)


class _Block(keras.Layer):  # type: ignore[misc]  # Keras is untyped
    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if _inlining.get():
            return self.call(x)
        return super().__call__(x, *args, **kwargs)


@_registered
class CnnBlock(_Block):
    """`models.blocks.cnn_block` as a layer."""

    def __init__(
        self,
        filters: int,
        kernel_size: Size,
        *,
        strides: int = 1,
        padding: Padding = "same",
        **layer_options: Any,
    ) -> None:
        super().__init__(**layer_options)
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.padding = padding
        self.layers = cnn_layers(
            filters,
            kernel_size,
            strides,
            padding,
            name=self.name,
            dtype=self.dtype_policy,
        )

    def build(self, input_shape: Shape) -> None:
        """Create the variables for an input `[N, H, W, C]`."""
        build_chain(self.layers, input_shape)

    def call(self, x: Tensor) -> Tensor:
        """Map as `cnn_block` does."""
        for layer in self.layers:
            x = layer(x)
        return x

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Tell the shape of what `call` answers."""
        return chain_output_shape(self.layers, input_shape)

    def get_config(self) -> dict[str, Any]:
        """Tell the arguments that make such a layer."""
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "padding": self.padding,
        }


@_registered
class InceptionBlock(_Block):
    """`models.blocks.inception_block` as a layer."""

    def __init__(self, branches: Branches, **layer_options: Any) -> None:
        super().__init__(**layer_options)
        self.branches = branches
        self.chains = [
            [
                block_layer(
                    step,
                    name=f"{self.name}_{branch}_{position}",
                    dtype=self.dtype_policy,
                )
                for position, step in enumerate(steps, start=1)
            ]
            for branch, steps in branches.items()
        ]
        self.concatenate = layers.Concatenate(
            name=f"{self.name}_concat", dtype=self.dtype_policy
        )

    def build(self, input_shape: Shape) -> None:
        """Create the variables for an input `[N, H, W, C]`."""
        for chain in self.chains:
            build_chain(chain, input_shape)
        self.concatenate.build(self._chain_output_shapes(input_shape))

    def call(self, x: Tensor) -> Tensor:
        """Map as `inception_block` does."""
        outputs = []
        for chain in self.chains:
            y = x
            for layer in chain:
                y = layer(y)
            outputs.append(y)
        return self.concatenate(outputs)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Tell the shape of what `call` answers."""
        shapes = self._chain_output_shapes(input_shape)
        return tuple(self.concatenate.compute_output_shape(shapes))

    def get_config(self) -> dict[str, Any]:
        """Tell the arguments that make such a layer."""
        branches = keras.saving.serialize_keras_object(self.branches)
        return {**super().get_config(), "branches": branches}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Make a layer from what `get_config` tells."""
        branches = keras.saving.deserialize_keras_object(config["branches"])
        block: Self = super().from_config({**config, "branches": branches})
        return block

    def _chain_output_shapes(self, input_shape: Shape) -> list[Shape]:
        return [chain_output_shape(chain, input_shape) for chain in self.chains]


def block_layer(step: Step, *, name: str, dtype: Any = None) -> keras.Layer:
    """The layer that does a step."""
    match step:
        case Conv(filters, kernel_size, strides, padding):
            return CnnBlock(
                filters,
                kernel_size,
                strides=strides,
                padding=padding,
                name=name,
                dtype=dtype,
            )
        case Split(branches):
            return InceptionBlock(branches, name=name, dtype=dtype)
        case MaxPool() | AveragePool():
            return pool_layer(step, name=name, dtype=dtype)


def build_chain(chain: Iterable[keras.Layer], input_shape: Shape) -> None:
    """Create the variables of layers that are called one after the other."""
    for layer in chain:
        layer.build(input_shape)
        input_shape = layer.compute_output_shape(input_shape)


def chain_output_shape(chain: Iterable[keras.Layer], input_shape: Shape) -> Shape:
    """The shape of what the last of such layers answers."""
    for layer in chain:
        input_shape = layer.compute_output_shape(input_shape)
    return tuple(input_shape)
