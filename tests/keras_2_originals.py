"""Writes models of Keras 2 into a directory, and beside most what they answer.

A program of its own: the old Keras warns a lot, and a warning is an error in the tests.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tf_keras import layers

Array = np.ndarray[Any, Any]

DIRECTORY: Final = Path(sys.argv[1])
IMAGES: Final = np.load(DIRECTORY / "images.npy") / np.float32(255)
SHAPE: Final = IMAGES.shape[1:]
RANDOM: Final = np.random.default_rng(0)


def trained(model: Any) -> Any:
    """Weights that tell gamma from beta and mean from variance."""
    model.set_weights(
        [
            RANDOM.uniform(0.2, 0.8, weight.shape)
            / (weight.shape[-2] if weight.ndim > 1 else 1)
            for weight in model.get_weights()
        ]
    )
    return model


def write_answers(file: str, answers: Mapping[str, Array]) -> None:
    np.savez(DIRECTORY / f"{file}.npz", **answers)


def write(model: Any, *files: str, role: str, **options: Any) -> None:
    for file in files:
        model.save(DIRECTORY / file, **options)
        write_answers(file, {role: model(IMAGES, training=False)})


def body(x: Any) -> Any:
    x = layers.Conv2D(4, 3, strides=2, padding="same")(x)
    x = layers.BatchNormalization()(x)
    x = layers.ReLU(6.0)(x)
    x = layers.DepthwiseConv2D(3, padding="same")(x)
    x = layers.SeparableConv2D(6, 3)(x)
    x = layers.LeakyReLU(0.1)(x)
    return layers.GlobalAveragePooling2D()(x)


def functional() -> None:
    image = keras.Input(SHAPE)
    animal = layers.Dense(3, activation="softmax", name="animal")
    model = trained(keras.Model(image, animal(body(image))))
    write(model, "functional.h5", role="probabilities")
    model.save_weights(DIRECTORY / "weights.h5")
    model.export(DIRECTORY / "exported")
    write_answers("exported", {"probabilities": model(IMAGES, training=False)})


def sequential() -> None:
    model = keras.Sequential(
        [
            layers.RandomFlip("horizontal", input_shape=SHAPE),
            layers.Conv2D(4, 3),
            layers.BatchNormalization(),
            layers.Conv2DTranspose(2, 3),
            layers.Flatten(),
            layers.Dense(1, activation="sigmoid"),
        ]
    )
    trained(model).save(DIRECTORY / "sequential.h5")
    p = model(IMAGES, training=False)
    write_answers("sequential.h5", {"probabilities": np.hstack([1 - p, p])})


def transfer() -> None:
    image = keras.Input(SHAPE)
    normalise = layers.Normalization()
    base = keras.Model(image, body(normalise(image)))
    model = trained(keras.Sequential([base, layers.Dropout(0.5), layers.Dense(4)]))
    normalise.finalize_state()
    base.trainable = False
    write(model, "transfer.h5", "transfer.keras", role="logits")


def saved_models() -> None:
    model = keras.Sequential(
        [
            keras.Input(SHAPE),
            layers.Conv2D(4, 3),
            layers.BatchNormalization(),
            layers.Dropout(0.5),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )
    write(trained(model), "saved", role="logits")
    write(model, "without_signature", role="logits", signatures={})


def two_outputs() -> None:
    image = keras.Input(SHAPE)
    x = body(image)
    embedding = layers.Dense(8, name="embedding")(x)
    animal = layers.Dense(3, activation="softmax", name="animal")(x)
    model = trained(keras.Model(image, [embedding, animal]))
    model.save(DIRECTORY / "two_outputs.h5")
    answers = dict(zip(model.output_names, model(IMAGES, training=False), strict=True))
    write_answers("two_outputs.h5", answers)


def operators() -> None:
    image = keras.Input(SHAPE)
    x = tf.nn.relu(body((image - 0.5) / tf.constant(0.25)))
    model = trained(keras.Model(image, layers.Dense(3, activation="softmax")(x)))
    write(model, "operators.h5", "operators.keras", role="probabilities")


def mixed_precision() -> None:
    keras.mixed_precision.set_global_policy("mixed_float16")
    image = keras.Input(SHAPE)
    x = layers.Dense(3)(body(image))
    model = trained(keras.Model(image, layers.Softmax(dtype="float32")(x)))
    write(model, "mixed.h5", role="probabilities")
    keras.mixed_precision.set_global_policy("float32")


class Mystery(layers.Layer):
    """A layer that only this file knows."""


def code_of_their_own() -> None:
    for name, layer in [
        ("lambda", layers.Lambda(lambda x: 2 * x)),
        ("mystery", Mystery()),
    ]:
        model = keras.Sequential([keras.Input(SHAPE), layer, layers.Flatten()])
        model.save(DIRECTORY / f"{name}.h5")


if __name__ == "__main__":
    functional()
    sequential()
    transfer()
    saved_models()
    two_outputs()
    operators()
    mixed_precision()
    code_of_their_own()
