"""The architectures that `blockserve build` knows, by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

import keras

from models.architectures.inception import inception
from models.architectures.options import Options
from models.card import OutputTensor

FloatPrecision = Literal["float32", "float16", "bfloat16"]

CLASSIFIES: Final = (OutputTensor(name="probabilities", role="probabilities"),)
COMPARES: Final = (
    OutputTensor(name="same", role="other"),
    OutputTensor(name="left_probabilities", role="probabilities"),
    OutputTensor(name="right_probabilities", role="probabilities"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A network as a recipe.

    Attributes:
        name: What users call it.
        style: Which of Keras' ways its code is written in.
        description: A few words.
        defaults: The options of the original.
        smallest_side: The least height and width that it can work with.
        make: Makes it with fresh weights. The network takes uint8 images
            `[N, H, W, C]`, the normalisation being inside. One with a single input
            takes `images` and answers a float32 tensor `[N, classes]`; one with
            several takes a dictionary by name and answers one by name.
        inputs: The names of its inputs.
        outputs: The names of its outputs and what they mean.
    """

    name: str
    style: Literal["sequential", "functional", "shared layers", "subclassing"]
    description: str
    defaults: Options
    smallest_side: int = 1
    make: Callable[[Options], keras.Model]
    inputs: tuple[str, ...] = ("images",)
    outputs: tuple[OutputTensor, ...] = CLASSIFIES

    def build(
        self, options: Options, *, precision: FloatPrecision = "float32"
    ) -> keras.Model:
        """Make the network, its weights and its arithmetic in this precision.

        Raises:
            ValueError: An image of this size would vanish on its way.
        """
        height, width, _ = options.image_shape
        if min(height, width) < self.smallest_side:
            raise ValueError(
                f"{self.name} needs images of at least {self.smallest_side}x"
                f"{self.smallest_side} pixels, got {height}x{width}"
            )
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(precision)
        try:
            return self.make(options)
        finally:
            keras.config.set_dtype_policy(before)


ARCHITECTURES: Final[Mapping[str, Architecture]] = MappingProxyType(
    {
        architecture.name: architecture
        for architecture in (
            Architecture(
                name="inception",
                style="functional",
                description="a small GoogLeNet: a stem and three inception blocks",
                defaults=Options(image_shape=(28, 28, 1), classes=10, dropout=0.3),
                make=inception,
            ),
        )
    }
)
