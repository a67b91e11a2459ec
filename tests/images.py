"""Sample images, encoded as clients would send them, and the inputs they are for."""

import io
import struct
import zlib
from typing import Any, Literal

import numpy as np
from PIL import Image

from models.card import ImageInput

ColourOrder = Literal["grey", "rgb", "bgr"]


def image_input(
    height: int, width: int, colour_order: ColourOrder = "rgb"
) -> ImageInput:
    """A model's input of this size."""
    return ImageInput(
        tensor="images",
        height=height,
        width=width,
        channels=1 if colour_order == "grey" else 3,
        colour_order=colour_order,
    )


def encode(image: Image.Image, image_format: str, **options: Any) -> bytes:
    """The bytes of a file of this format; the options are Pillow's."""
    if image_format == "WEBP":
        options = {"lossless": True, "exact": True, **options}
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def plain(colour: tuple[int, ...], mode: str = "RGB") -> Image.Image:
    """16x16 pixels of one colour, which JPEG keeps but for a rounding."""
    return Image.new(mode, (16, 16), colour)


def photograph(height: int, width: int) -> Image.Image:
    """Soft shapes under fine grain, the same on every call."""
    rows, columns = np.mgrid[0:height, 0:width] / max(height, width)
    waves = [
        np.sin(9 * rows + 4 * columns),
        np.cos(23 * columns * (1 + rows)),
        np.sin(60 * (rows - columns) ** 2),
    ]
    grain = np.random.default_rng(0).normal(0, 8, (height, width, 1))
    light = 128 + 90 * np.stack(waves, axis=-1) + grain
    return Image.fromarray(light.clip(0, 255).astype(np.uint8))


def quarters(height: int, width: int) -> Image.Image:
    """Red and green above blue and white, so that no turn leaves it as it was."""
    image = Image.new("RGB", (width, height), "red")
    half_width, half_height = width // 2, height // 2
    image.paste("lime", (half_width, 0, width, half_height))
    image.paste("blue", (0, half_height, half_width, height))
    image.paste("white", (half_width, half_height, width, height))
    return image


def tiff_of_one_pixel(
    samples: bytes, *, order: str, bits: int, photometric: int, channels: int
) -> bytes:
    """A raw TIFF such as Pillow reads but does not write; `order` is `<` or `>`."""
    tags = {
        256: 1,  # width
        257: 1,  # height
        258: bits,
        259: 1,  # no compression
        262: photometric,
        273: 8,  # where the samples are: behind the file's header
        277: channels,
        278: 1,  # rows per strip
        279: len(samples),
    }
    return b"".join(
        (
            {"<": b"II", ">": b"MM"}[order],
            struct.pack(f"{order}HI", 42, 8 + len(samples)),
            samples,
            struct.pack(f"{order}H", len(tags)),
            *(struct.pack(f"{order}HHIHxx", tag, 3, 1, tags[tag]) for tag in tags),
            bytes(4),
        )
    )


def png_that_claims(height: int, width: int) -> bytes:
    """A PNG of a few bytes with this size in its header and no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body))
        + kind
        + body
        + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", header), (b"IDAT", b""), (b"IEND", b""))
    )


def replace_once(data: bytes, old: bytes, new: bytes) -> bytes:
    """`data` with its only `old` replaced, to patch what no encoder writes."""
    assert data.count(old) == 1
    return data.replace(old, new)
