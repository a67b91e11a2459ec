"""The architectures that `blockserve build` knows, by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

import keras

from models.architectures.inception import inception


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A network as a recipe: `build(image_shape, classes)` makes it with fresh weights.

    Its input is `images`, uint8 `[N, H, W, C]` with the normalisation inside; its
    output is `probabilities`, float32 `[N, classes]`.
    """

    name: str
    style: Literal["functional"]
    description: str
    image_shape: tuple[int, int, int]
    classes: int
    build: Callable[[tuple[int, int, int], int], keras.Model]


ARCHITECTURES: Final[Mapping[str, Architecture]] = MappingProxyType(
    {
        architecture.name: architecture
        for architecture in (
            Architecture(
                name="inception",
                style="functional",
                description="a small GoogLeNet: a stem and three inception blocks",
                image_shape=(28, 28, 1),
                classes=10,
                build=inception,
            ),
        )
    }
)
