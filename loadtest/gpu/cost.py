"""What one image costs a network."""

import math

import keras

from models.architectures import drawable


def multiply_adds(network: keras.Model) -> int:
    """Multiply-adds of all convolutions and dense layers, for one image.

    `models.summary` counts them in TensorFlow's graph of any model; this needs Keras
    only. One is two floating-point operations.

    Args:
        network: One whose layers are each called once.
    """
    return sum(
        math.prod(layer.output.shape[1:-1]) * math.prod(layer.kernel.shape)
        for layer in drawable(network).layers
        if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense)
    )
