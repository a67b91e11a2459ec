"""The architectures that `blockserve build` knows, by name."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal

import keras

from models.architectures.alexnet import alexnet
from models.architectures.googlenet import googlenet
from models.architectures.inception import inception
from models.architectures.inception_subclassed import (
    InceptionSubclassed,
    inception_subclassed,
)
from models.architectures.inception_v3 import inception_v3
from models.architectures.lenet import lenet
from models.architectures.options import Options
from models.architectures.siamese import siamese
from models.architectures.vgg import vgg11, vgg16

if TYPE_CHECKING:  # who only makes a network need not have what the card needs
    from models.card import FloatPrecision, Role

Style = Literal["Sequential", "Functional", "Functional, shared layers", "Subclassing"]

CLASSIFIES: "Final[Mapping[str, Role]]" = MappingProxyType(
    {"probabilities": "probabilities"}
)
COMPARES: "Final[Mapping[str, Role]]" = MappingProxyType(
    {
        "same": "other",
        "left_probabilities": "probabilities",
        "right_probabilities": "probabilities",
    }
)


class UnknownArchitecture(ValueError):
    """There is no architecture of this name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A network as a recipe.

    Attributes:
        name: What users call it.
        style: Which of Keras' ways its code is written in.
        description: A few words.
        defaults: The options of the original.
        smallest_side: The least height and width that it can work with.
        learning_rate: The highest that its training should use.
        make: Makes it with fresh weights. The network takes uint8 images
            `[N, H, W, C]`, the normalisation being inside. One with a single input
            takes `images` and answers a float32 tensor `[N, classes]`; one with
            several takes a dictionary by name and answers one by name.
        inputs: The names of its inputs.
        outputs: What its outputs mean, by their names.
    """

    name: str
    style: Style
    description: str
    defaults: Options
    smallest_side: int = 1
    learning_rate: float = 5e-3
    make: Callable[[Options], keras.Model]
    inputs: tuple[str, ...] = ("images",)
    outputs: "Mapping[str, Role]" = field(default_factory=lambda: CLASSIFIES)

    def build(
        self, options: Options, *, precision: "FloatPrecision" = "float32"
    ) -> keras.Model:
        """Make the network, its weights and its arithmetic in this precision.

        Raises:
            ValueError: An image of this size would vanish on its way.
        """
        self.check_size(options)
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(precision)
        try:
            return self.make(options)
        finally:
            keras.config.set_dtype_policy(before)

    def outline(self, options: Options) -> keras.Model:
        """Make the network to look at: its weights have shapes, but no values.

        Raises:
            ValueError: An image of this size would vanish on its way.
        """
        self.check_size(options)

        def make() -> keras.Model:
            with keras.StatelessScope(initialize_variables=False):
                return self.make(options)

        # Keras gives the variables their values at the next opportunity in the same
        # thread, so there is none.
        with ThreadPoolExecutor(max_workers=1) as thread:
            return thread.submit(make).result()

    def check_size(self, options: Options) -> None:
        """Raise ValueError where an image of this size would vanish on its way."""
        height, width, _ = options.image_shape
        if min(height, width) < self.smallest_side:
            raise ValueError(
                f"{self.name} needs images of at least {self.smallest_side}x"
                f"{self.smallest_side} pixels, got {height}x{width}"
            )


_DIGITS: Final = (28, 28, 1)
_PHOTOGRAPHS: Final = (224, 224, 3)
# Without batch normalisation, a higher rate makes deep networks diverge.
_WITHOUT_NORMALISATION: Final = 1e-3

ARCHITECTURES: Final[Mapping[str, Architecture]] = MappingProxyType(
    {
        architecture.name: architecture
        for architecture in (
            Architecture(
                name="lenet",
                style="Sequential",
                description="LeNet-5 of 1998, a list of layers",
                defaults=Options(image_shape=_DIGITS, classes=10, dropout=0.0),
                smallest_side=12,
                make=lenet,
            ),
            Architecture(
                name="alexnet",
                style="Sequential",
                description="AlexNet in one tower, layer added to layer",
                defaults=Options(image_shape=_PHOTOGRAPHS, classes=1000, dropout=0.5),
                smallest_side=63,
                learning_rate=_WITHOUT_NORMALISATION,
                make=alexnet,
            ),
            Architecture(
                name="vgg",
                style="Sequential",
                description="VGG with 11 layers, its configuration as data",
                defaults=Options(image_shape=_PHOTOGRAPHS, classes=1000, dropout=0.5),
                smallest_side=32,
                learning_rate=_WITHOUT_NORMALISATION,
                make=vgg11,
            ),
            Architecture(
                name="vgg16",
                style="Sequential",
                description="VGG with 16 layers, its configuration as data",
                defaults=Options(image_shape=_PHOTOGRAPHS, classes=1000, dropout=0.5),
                smallest_side=32,
                learning_rate=_WITHOUT_NORMALISATION,
                make=vgg16,
            ),
            Architecture(
                name="inception",
                style="Functional",
                description="a small GoogLeNet: a stem and three inception blocks",
                defaults=Options(image_shape=_DIGITS, classes=10, dropout=0.3),
                smallest_side=4,
                make=inception,
            ),
            Architecture(
                name="googlenet",
                style="Functional",
                description="Inception v1, with batch normalisation",
                defaults=Options(image_shape=_PHOTOGRAPHS, classes=1000, dropout=0.4),
                make=googlenet,
            ),
            Architecture(
                name="inception_v3",
                style="Functional",
                description="Inception v3: convolutions in factors, blocks in blocks",
                defaults=Options(image_shape=(299, 299, 3), classes=1000, dropout=0.2),
                smallest_side=75,
                make=inception_v3,
            ),
            Architecture(
                name="siamese",
                style="Functional, shared layers",
                description="compares two images, each seen by the same inception",
                defaults=Options(image_shape=_DIGITS, classes=10, dropout=0.3),
                smallest_side=4,
                make=siamese,
                inputs=("left", "right"),
                outputs=COMPARES,
            ),
            Architecture(
                name="inception_subclassed",
                style="Subclassing",
                description="the network of inception, written as a class",
                defaults=Options(image_shape=_DIGITS, classes=10, dropout=0.3),
                smallest_side=4,
                make=inception_subclassed,
            ),
        )
    }
)


def named(name: str) -> Architecture:
    """The architecture of this name.

    Raises:
        UnknownArchitecture: There is none; the message lists those that there are.
    """
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UnknownArchitecture(
            f"there is no architecture {name!r}; there is {known}"
        )
    return ARCHITECTURES[name]


def drawable(network: keras.Model) -> keras.Model:
    """The same network over the same variables, as a graph of all its layers."""
    is_code = isinstance(network, InceptionSubclassed)
    return network.functional() if is_code else network
