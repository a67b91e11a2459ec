"""Light distortions of small grey images: one resampling does them all."""

from math import pi
from typing import Any, Final

import keras
import tensorflow as tf

MAX_ROTATION_RADIANS: Final = 13 * pi / 180
MAX_SHEAR: Final = 0.2
MAX_ZOOM: Final = 0.15
MAX_SHIFT_PIXELS: Final = 2.5
# Elastic: a coarse grid of random shifts, smoothed up to the image's size.
ELASTIC_GRID: Final = (5, 5)
ELASTIC_DEVIATION_PIXELS: Final = 1.0


def augment(images: Any) -> Any:
    """Distort light-on-dark images and invert half of them.

    Args:
        images: uint8 `[N, H, W, 1]` on a black background.

    Returns:
        uint8 `[N, H, W, 1]`; what moved in from outside is background.
    """
    count = tf.shape(images)[0]
    pixels = tf.cast(images[..., 0], tf.float32)
    rows, columns = _source_coordinates(count, *images.shape[1:3])
    number = tf.broadcast_to(tf.range(count)[:, None, None], tf.shape(rows))
    coordinates = tf.stack([tf.cast(number, tf.float32), rows, columns])
    moved = keras.ops.image.map_coordinates(pixels, coordinates, order=1)
    inverted = tf.random.uniform((count, 1, 1)) < 0.5  # noqa: PLR2004, half of them
    polarised = tf.where(inverted, 255 - moved, moved)
    return tf.cast(tf.round(polarised), tf.uint8)[..., None]


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
