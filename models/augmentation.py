"""Light distortions of training images, which leave their labels true."""

from collections.abc import Callable
from math import pi
from typing import Any, Final, Literal

import keras
import tensorflow as tf

MAX_ROTATION_RADIANS: Final = 13 * pi / 180
MAX_SHEAR: Final = 0.2
MAX_ZOOM: Final = 0.15
MAX_SHIFT_PIXELS: Final = 2.5
# Elastic: a coarse grid of random shifts, smoothed up to the image's size.
ELASTIC_GRID: Final = (5, 5)
ELASTIC_DEVIATION_PIXELS: Final = 1.0

# Photographs: shares of the size, of a full turn, and of the brightness.
MAX_PHOTOGRAPH_SHIFT: Final = 0.1
MAX_PHOTOGRAPH_ZOOM: Final = 0.15
MAX_PHOTOGRAPH_TURN: Final = 0.03
MAX_PHOTOGRAPH_BRIGHTNESS: Final = 0.15

Distortion = Callable[[Any], Any]


def distortion(kind: Literal["digits", "photographs"]) -> Distortion:
    """What training does to a batch, uint8 `[N, H, W, C]` to the same."""
    return distort_digits if kind == "digits" else _photograph_distortion()


def distort_digits(images: Any) -> Any:
    """Distort light-on-dark digits and invert half of them: one resampling does it all.

    Args:
        images: uint8 `[N, H, W, C]` on a black background.

    Returns:
        uint8 `[N, H, W, C]`; what moved in from outside is background.
    """
    height, width, channels = images.shape[1:]
    count = tf.shape(images)[0]
    pixels = tf.cast(images, tf.float32)
    rows, columns = _source_coordinates(count, height, width)
    number = tf.broadcast_to(tf.range(count)[:, None, None], tf.shape(rows))
    coordinates = tf.stack([tf.cast(number, tf.float32), rows, columns])
    moved = tf.stack(
        [
            keras.ops.image.map_coordinates(pixels[..., c], coordinates, order=1)
            for c in range(channels)
        ],
        axis=-1,
    )
    inverted = tf.random.uniform((count, 1, 1, 1)) < 0.5  # noqa: PLR2004, half of them
    polarised = tf.where(inverted, 255 - moved, moved)
    return tf.cast(tf.round(polarised), tf.uint8)


def _photograph_distortion() -> Distortion:
    """Shifts, zooms, turns and light; no mirror images, which may mean another label.

    What moves in from outside is a reflection.
    """
    steps = [
        keras.layers.RandomTranslation(MAX_PHOTOGRAPH_SHIFT, MAX_PHOTOGRAPH_SHIFT),
        keras.layers.RandomZoom(MAX_PHOTOGRAPH_ZOOM),
        keras.layers.RandomRotation(MAX_PHOTOGRAPH_TURN),
        keras.layers.RandomBrightness(MAX_PHOTOGRAPH_BRIGHTNESS),
    ]

    def distort(images: Any) -> Any:
        pixels = tf.cast(images, tf.float32)
        for step in steps:
            pixels = step(pixels, training=True)
        return tf.cast(tf.round(tf.clip_by_value(pixels, 0, 255)), tf.uint8)

    return distort


def _source_coordinates(count: Any, height: int, width: int) -> tuple[Any, Any]:
    """Where each pixel of `[count, height, width]` comes from: rows and columns."""

    def uniform(limit: float) -> Any:
        return tf.random.uniform((count, 1, 1), -limit, limit)

    angle, shear = uniform(MAX_ROTATION_RADIANS), uniform(MAX_SHEAR)
    row = tf.range(height, dtype=tf.float32)[None, :, None] - (height - 1) / 2
    column = tf.range(width, dtype=tf.float32)[None, None, :] - (width - 1) / 2
    zoomed_row = row * (1 + uniform(MAX_ZOOM))
    zoomed_column = column * (1 + uniform(MAX_ZOOM))
    rows = tf.cos(angle) * zoomed_row - tf.sin(angle) * zoomed_column
    columns = (tf.sin(angle) + shear) * zoomed_row + tf.cos(angle) * zoomed_column
    grid = (count, *ELASTIC_GRID, 2)
    coarse = tf.random.normal(grid, stddev=ELASTIC_DEVIATION_PIXELS)
    elastic = tf.image.resize(coarse, (height, width), "bicubic")
    return (
        rows + elastic[..., 0] + uniform(MAX_SHIFT_PIXELS) + (height - 1) / 2,
        columns + elastic[..., 1] + uniform(MAX_SHIFT_PIXELS) + (width - 1) / 2,
    )
