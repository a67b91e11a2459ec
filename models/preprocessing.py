"""How the training reads an image file: the definition that serving is held to.

In plain Pillow and without a shortcut; the gateway and the graph of the signature
`serving_bytes` do the same in faster ways, and `models.preprocessing_parity` measures
how far they are from this.

An image is read as a person sees it: turned upright by its EXIF orientation, laid on
white where it is transparent. Then it gets the input's colours (grey is BT.601 luma)
and is stretched, cropped or padded to its size, bilinear with antialiasing.
"""

import io
import warnings
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    PHOTOMETRIC_INTERPRETATION,
    TiffImageFile,
)

from models.card import ImageInput

Pixels = npt.NDArray[np.uint8]
ColourOrder = Literal["grey", "rgb", "bgr"]

# What the gateway reads, too.
FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")

# Of large images and damaged tags; what matters here is raised.
warnings.filterwarnings("ignore", module=r"PIL\.")


class UnreadableImage(ValueError):
    """A file is no image, damaged, or does not say what its samples mean.

    Or it has more than 179 million pixels, which Pillow takes for an attack.
    """


def read(file: Path | bytes, image_input: ImageInput) -> Pixels:
    """Read an image file as the training does.

    Args:
        file: A JPEG, PNG, WebP, BMP, GIF or TIFF file or its contents. Of several
            frames or pages the first counts.
        image_input: The size and the colours that the model expects.

    Returns:
        `uint8[H, W, C]`.

    Raises:
        UnreadableImage: It cannot be read.
    """
    return _fit(_open(file), image_input)


def read_upright(file: Path | bytes, colour_order: ColourOrder) -> Pixels:
    """Read an image file in its own size, to make other files of it.

    Returns:
        `uint8[h, w, 1]` for `grey`; else `uint8[h, w, 3]`, always with red first.

    Raises:
        UnreadableImage: It cannot be read.
    """
    image = _open(file).convert("L" if colour_order == "grey" else "RGB")
    return _pixels(image)


def from_array(pixels: Pixels, image_input: ImageInput) -> Pixels:
    """Make a decoded image what the model expects.

    Args:
        pixels: `uint8[h, w, C]`, upright: grey, or red, green and blue.
        image_input: The size and the colours that the model expects.

    Returns:
        `uint8[H, W, C]`.
    """
    return _fit(to_image(pixels), image_input)


def to_image(pixels: Pixels) -> Image.Image:
    """Pillow's image of `uint8[h, w, C]`: grey, or red, green and blue."""
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _open(file: Path | bytes) -> Image.Image:
    """Upright and opaque, in mode L or RGB."""
    # Over damaged bytes, decoders raise nearly every built-in exception.
    try:
        with Image.open(
            io.BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS
        ) as image:
            image.load()
            return _upright(_opaque(image), image.info.get("exif", b""))
    except UnreadableImage:
        raise
    except Exception as error:
        raise UnreadableImage(str(error) or type(error).__name__) from error


_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright(image: Image.Image, exif: bytes) -> Image.Image:
    """Turn an image by its EXIF block; one that tells no orientation stays as it is.

    `ImageOps.exif_transpose` follows XMP data too, which browsers do not, and fails on
    a damaged block. A TIFF has been turned by Pillow, which then leaves no block.
    """
    tags = Image.Exif()
    try:
        tags.load(exif)
        turn = _TURNS.get(tags.get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow raises what it stumbles over; pixels are not affected
        return image
    return image if turn is None else image.transpose(turn)


def _opaque(image: Image.Image) -> Image.Image:
    """Mode L or RGB, on white where it is transparent."""
    if image.mode in {"F", "I"}:
        raise UnreadableImage("samples of 32 bits do not say which value is white")
    if image.mode.startswith("I;16"):
        return _eight_bits(image)
    if image.has_transparency_data:
        straight = image.convert("LA") if image.mode == "La" else image
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, straight.convert("RGBA")).convert("RGB")
    return image if image.mode == "L" else image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale grey of 16 bits, where 65535 is white."""
    if isinstance(image, TiffImageFile) and (
        image.tag_v2.get(BITSPERSAMPLE) != (16,)
        or image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) != 1
    ):
        # Pillow reads these, but forgets how far they reach and which end is black.
        raise UnreadableImage("grey TIFF of neither 8 nor 16 bits, or with white as 0")
    samples = np.asarray(image)
    grey = np.rint(samples / 257).astype(np.uint8)
    grey[samples == image.info.get("transparency")] = 255
    return Image.fromarray(grey)


def _fit(image: Image.Image, image_input: ImageInput) -> Pixels:
    grey = image_input.colour_order == "grey"
    image = image.convert("L" if grey else "RGB")
    source, target = image_input.place(image.height, image.width)
    part = image.crop(
        (
            source.left,
            source.top,
            source.left + source.width,
            source.top + source.height,
        )
    )
    resized = part.resize((target.width, target.height), Image.Resampling.BILINEAR)
    canvas = Image.new(image.mode, (image_input.width, image_input.height), "black")
    canvas.paste(resized, (target.left, target.top))
    pixels = _pixels(canvas)
    if image_input.colour_order == "bgr":
        return np.ascontiguousarray(pixels[:, :, ::-1])
    return pixels


def _pixels(image: Image.Image) -> Pixels:
    return np.asarray(image).reshape(image.height, image.width, -1)
