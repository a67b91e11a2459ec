"""The network of `inception` once more: model subclassing.

Its code says what a graph says for the functional one, so Keras knows its layers, but
not how they are connected; `functional` tells that.
"""

from dataclasses import asdict
from typing import Any, Self

import keras
from keras import layers

from models.architectures.common import classifier, image_input, normalisation
from models.architectures.inception import STEPS
from models.architectures.options import Options
from models.block_layers import Shape, block_layer, build_chain, inlined
from models.blocks import Tensor


@keras.saving.register_keras_serializable(package="blockserve")
class InceptionSubclassed(keras.Model):  # type: ignore[misc]  # Keras is untyped
    """Maps uint8 images `[N, H, W, C]` to probabilities, float32 `[N, classes]`."""

    def __init__(self, options: Options, **model_options: Any) -> None:
        super().__init__(**model_options)
        self.options = options
        self.normalise = normalisation()
        self.blocks = [
            block_layer(options.widened_step(step), name=name, dtype=self.dtype_policy)
            for name, step in STEPS.items()
        ]
        self.average = layers.GlobalAveragePooling2D(
            name="average", dtype=self.dtype_policy
        )
        self.dropout, self.probabilities = classifier(options)

    def build(self, input_shape: Shape) -> None:
        """Create the variables for images `[N, H, W, C]`."""
        chain = (self.normalise, *self.blocks, self.average)
        build_chain((*chain, self.dropout, self.probabilities), input_shape)

    def call(self, images: Tensor) -> Tensor:
        """Map a batch of images."""
        x = self.normalise(images)
        for block in self.blocks:
            x = block(x)
        x = self.average(x)
        x = self.dropout(x)
        return self.probabilities(x)

    def functional(self) -> keras.Model:
        """The same network, over the same variables, as a graph of all its layers."""
        images = image_input(self.options)
        with inlined():
            return keras.Model(images, self.call(images), name=self.name)

    def get_config(self) -> dict[str, Any]:
        """Tell the arguments that make such a model."""
        return {**super().get_config(), "options": asdict(self.options)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Make a model from what `get_config` tells."""
        options = config["options"]
        height, width, channels = options["image_shape"]  # a list, after JSON
        image_shape = (height, width, channels)
        return cls(
            **{**config, "options": Options(**{**options, "image_shape": image_shape})}
        )


def inception_subclassed(options: Options) -> keras.Model:
    """Map `images`, uint8 `[N, H, W, C]`, to `probabilities` `[N, classes]`."""
    model = InceptionSubclassed(options, name="inception_subclassed")
    model.build((None, *options.image_shape))
    return model
