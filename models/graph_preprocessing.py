"""Encoded images decoded by TensorFlow itself, for the signature `serving_bytes`.

The same steps as in `models.preprocessing`, in operations that TensorFlow Serving has.
They decode JPEG, PNG, GIF and BMP; WebP and TIFF they do not. They pass over the
palette of a BMP, what is transparent in a BMP or GIF, and the EXIF orientation: that of
a JPEG is therefore looked up here, byte by byte.
"""

from typing import Any, Final

import tensorflow as tf

from models.card import ImageInput

BITS_OFFSET: Final = 24  # in a PNG, of the bits of a sample
OPAQUE: Final = 255
WHITE: Final = 255
LUMA: Final = ((0.299,), (0.587,), (0.114,))  # BT.601


def decode(encoded: Any, image_input: ImageInput) -> Any:
    """Decode an image into one instance of the model's input.

    Args:
        encoded: A scalar string: a JPEG, PNG, GIF or BMP file. Of the frames of a GIF
            the first counts; samples of 16 bits keep their upper byte.
        image_input: The size and the colours that the model expects.

    Returns:
        `uint8[H, W, C]`.

    Raises:
        tf.errors.InvalidArgumentError: When run: no such file, or damaged.
    """
    # The decoders and the resize run on no GPU; nor should the small sums between them.
    with tf.device("CPU:0"):
        image = tf.cond(
            _starts_with(encoded, b"\xff\xd8\xff"),
            lambda: _upright(_decode_jpeg(encoded), _orientation(encoded)),
            lambda: _decode_other(encoded),
        )
        return _fit(image, image_input)


def _starts_with(encoded: Any, start: bytes) -> Any:
    return tf.strings.substr(encoded, 0, len(start)) == start


# From file to `uint8[h, w, 3]`, red first


def _decode_jpeg(encoded: Any) -> Any:
    # Not the default, which is faster than what other decoders do, and coarser.
    return tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")


def _decode_other(encoded: Any) -> Any:
    return tf.cond(
        _starts_with(encoded, b"\x89PNG"),
        lambda: _decode_png(encoded),
        lambda: tf.io.decode_image(encoded, channels=3, expand_animations=False),
    )


def _decode_png(encoded: Any) -> Any:
    image = tf.io.decode_png(encoded, channels=4)
    colours, alpha = image[:, :, :3], image[:, :, 3:]
    # What has no alpha gets the largest value, but of the bits that the file has.
    bits = tf.io.decode_raw(tf.strings.substr(encoded, BITS_OFFSET, 1), tf.uint8)[0]
    largest = tf.minimum(2 ** tf.cast(bits, tf.int32) - 1, OPAQUE)
    opaque = tf.reduce_all(alpha == tf.cast(largest, tf.uint8))
    return tf.cond(opaque, lambda: colours, lambda: _on_white(colours, alpha))


def _on_white(colours: Any, alpha: Any) -> Any:
    light = tf.cast(colours, tf.float32)
    share = tf.cast(alpha, tf.float32) / OPAQUE
    return tf.cast(tf.round(WHITE + (light - WHITE) * share), tf.uint8)


# The EXIF orientation of a JPEG

UPRIGHT: Final = 1
# By orientation: transpose, then reverse the rows, then reverse the columns.
TURNS: Final = (
    (False, False, False),  # none is told
    (False, False, False),
    (False, False, True),
    (False, True, True),
    (False, True, False),
    (True, False, False),
    (True, False, True),
    (True, True, True),
    (True, True, False),
)

# How far into a file it is looked for, and as many zeros behind as one slice takes.
REACH_BYTES: Final = 1 << 16
MARGIN_BYTES: Final = 1 << 11
MAX_SEGMENTS: Final = 256
MAX_TAGS: Final = 128
TAG_BYTES: Final = 12

MARKER: Final = 0xFF
APP1: Final = 0xE1
# What may stand before the Exif segment: tables, application data, comments, filling.
PASSED_OVER: Final = (0xC4, 0xCC, *range(0xDB, 0xF0), 0xFE, MARKER)

EXIF: Final = tuple(b"Exif\0\0")
LITTLE_ENDIAN: Final = tuple(b"II*\0")
BIG_ENDIAN: Final = tuple(b"MM\0*")
ORIENTATION: Final = 0x0112
SHORT: Final = 3


def _upright(image: Any, orientation: Any) -> Any:
    def turned() -> Any:
        turn = tf.gather(tf.constant(TURNS), orientation)
        axes = tf.where(turn[0], [1, 0, 2], [0, 1, 2])
        return tf.reverse(tf.transpose(image, axes), tf.boolean_mask([0, 1], turn[1:]))

    return tf.cond(orientation > UPRIGHT, turned, lambda: image)


def _orientation(jpeg: Any) -> Any:
    """The EXIF orientation, 1 to 8; 0 where the file tells none."""
    start = tf.strings.substr(jpeg, 0, REACH_BYTES)
    data = tf.io.decode_raw(start, tf.uint8, fixed_length=REACH_BYTES + MARGIN_BYTES)
    segment = _find_exif(data)
    return tf.cond(
        _is_exif(_octets(data, segment, 10)),
        lambda: _read_exif(data, segment),
        lambda: tf.constant(0, tf.int64),
    )


def _find_exif(data: Any) -> Any:
    """Walk to the Exif segment; to some other place if there is none."""

    def goes_on(position: Any) -> Any:
        head = _octets(data, position, 10)
        passed_over = (head[0] == MARKER) & tf.reduce_any(head[1] == PASSED_OVER)
        return passed_over & ~_is_exif(head) & (position < REACH_BYTES)

    def step(position: Any) -> Any:
        head = _octets(data, position, 4)
        length = 2 + 256 * head[2] + head[3]
        return (position + tf.where(head[1] == MARKER, tf.ones_like(length), length),)

    start = tf.constant(2, tf.int64)
    return tf.while_loop(goes_on, step, (start,), maximum_iterations=MAX_SEGMENTS)[0]


def _is_exif(head: Any) -> Any:
    return (head[1] == APP1) & tf.reduce_all(head[4:10] == EXIF)


def _read_exif(data: Any, segment: Any) -> Any:
    """Look the orientation up in the segment's first directory."""
    end = segment + 2 + tf.reduce_sum(_octets(data, segment + 2, 2) * (256, 1))
    tiff = segment + 10
    head = _octets(data, tiff, 8)
    little = tf.reduce_all(head[:4] == LITTLE_ENDIAN)
    big = tf.reduce_all(head[:4] == BIG_ENDIAN)
    digits = tf.constant([1, 1 << 8, 1 << 16, 1 << 24], tf.int64)
    long = tf.where(little, digits, digits[::-1])
    short = tf.where(little, digits[:2], digits[1::-1])

    directory = tiff + tf.reduce_sum(head[4:] * long)
    count = tf.reduce_sum(_octets(data, directory, 2) * short)
    entries = _octets(data, directory + 2, MAX_TAGS * TAG_BYTES)
    entries = tf.reshape(entries, (MAX_TAGS, TAG_BYTES))
    numbers = tf.range(MAX_TAGS, dtype=tf.int64)
    ends = directory + 2 + TAG_BYTES * (numbers + 1)
    tags, kinds, values = (
        tf.reduce_sum(entries[:, first : first + 2] * short, axis=1)
        for first in (0, 2, 8)
    )
    told = (
        (little | big)
        & (numbers < count)
        & (ends <= end)
        & (tags == ORIENTATION)
        & (kinds == SHORT)
        & (values < len(TURNS))
    )
    return tf.reduce_max(tf.where(told, values, 0))


def _octets(data: Any, position: Any, count: int) -> Any:
    """Bytes as int64; zeros where there are none."""
    position = tf.minimum(position, REACH_BYTES)
    return tf.cast(tf.slice(data, [position], [count]), tf.int64)


# From `uint8[h, w, 3]` to the model's size and colours


def _fit(image: Any, image_input: ImageInput) -> Any:
    height, width = tf.unstack(tf.shape(image, tf.int64)[:2])
    source, target = image_input.place(height, width)
    if image_input.resize == "crop":
        begin = tf.stack([source.top, source.left, 0])
        image = tf.slice(image, begin, tf.stack([source.height, source.width, 3]))
    size = tf.cast(tf.stack([target.height, target.width]), tf.int32)
    pixels = _coloured(tf.image.resize(image, size, antialias=True), image_input)
    pixels = tf.cast(tf.round(pixels), tf.uint8)
    if image_input.resize == "pad":
        below = image_input.height - target.top - target.height
        right = image_input.width - target.left - target.width
        around = tf.stack([target.top, below, target.left, right, 0, 0])
        pixels = tf.pad(pixels, tf.reshape(around, (3, 2)))
    return tf.ensure_shape(pixels, image_input.shape)


def _coloured(pixels: Any, image_input: ImageInput) -> Any:
    if image_input.colour_order == "grey":
        return tf.tensordot(pixels, tf.constant(LUMA), 1)
    return pixels[:, :, ::-1] if image_input.colour_order == "bgr" else pixels
