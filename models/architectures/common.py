"""What the architectures share: how they begin and end, and the way between."""

from collections.abc import Mapping

import keras
from keras import layers

from models.architectures.options import Options
from models.blocks import Step, Tensor, apply


def image_input(options: Options, *, name: str = "images") -> Tensor:
    """An input of uint8 images `[N, H, W, C]`."""
    return keras.Input(options.image_shape, dtype="uint8", name=name)


def normalisation() -> keras.Layer:
    """Maps bytes to -1…1, so that inverting an image flips its sign.

    In float32 whatever follows: in bfloat16, neighbouring greys would become one.
    """
    return layers.Rescaling(1 / 127.5, offset=-1, name="normalise", dtype="float32")


def classifier(options: Options) -> tuple[keras.Layer, keras.Layer]:
    """The last two layers: they map features `[N, F]` to float32 `[N, classes]`."""
    return (
        layers.Dropout(options.dropout, name="dropout"),
        layers.Dense(
            options.classes, activation="softmax", name="probabilities", dtype="float32"
        ),
    )


def dense_classifier(options: Options) -> tuple[keras.Layer, ...]:
    """The ending of AlexNet and VGG: two wide layers before the last."""

    def wide(number: int) -> keras.Layer:
        return layers.Dense(
            options.widened(4096),
            activation="relu",
            kernel_initializer="he_normal",
            name=f"dense_{number}",
        )

    return (
        layers.Flatten(name="flatten"),
        wide(1),
        layers.Dropout(options.dropout, name="dense_1_dropout"),
        wide(2),
        *classifier(options),
    )


def features(images: Tensor, steps: Mapping[str, Step], options: Options) -> Tensor:
    """Map uint8 images `[N, H, W, C]` to features `[N, F]`, step after step."""
    x = normalisation()(images)
    for name, step in steps.items():
        x = apply(options.widened_step(step), x, name=name)
    return layers.GlobalAveragePooling2D(name="average")(x)


def block_network(
    steps: Mapping[str, Step], options: Options, *, name: str
) -> keras.Model:
    """A network that maps `images` to `probabilities`, step after step."""
    images = image_input(options)
    x = features(images, steps, options)
    for layer in classifier(options):
        x = layer(x)
    return keras.Model(images, x, name=name)
