"""Encoded images become the arrays that a model was trained on.

Every image is read as a person sees it: turned upright by its EXIF orientation, laid on
white where it is transparent. Then it gets the card's colours and is stretched, cropped
or padded to the card's size, with Pillow's antialiased bilinear filter.

JPEG, which nearly every client sends, takes a short way through libjpeg-turbo, and a
large one is scaled while it is decoded: the inverse DCT yields 1/2, 1/4 or 1/8 of the
size, as long as twice the model's size is left; the filter does the rest. An image is
turned last, when few pixels are left to move.
"""

import io
import re
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Final, NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    PHOTOMETRIC_INTERPRETATION,
    TiffImageFile,
)
from PIL.WebPImagePlugin import WebPImageFile

from models.card import ImageInput, Rectangle
from service.errors import BlockserveError, InvalidImage, TooLarge

Pixels = NDArray[np.uint8]
Encoded = bytes | bytearray | memoryview

# Pillow warns of a damaged TIFF directory with numbers from the file in the text, so
# each such request would leave a line on stderr and an entry in a registry that is
# never emptied. catch_warnings() is no way out: it swaps the filters of every thread.
warnings.filterwarnings("ignore", module=r"PIL\.")


def decode(data: Encoded, image_input: ImageInput, *, max_pixels: int) -> Pixels:
    """Decode an image into one instance of the model's input.

    Args:
        data: A whole JPEG, PNG, WebP, BMP, GIF or TIFF file. Of several frames or pages
            the first counts. Grey of 16 bits is divided by 257; colour becomes grey
            as BT.601 luma.
        image_input: The size and the colours that the model expects.
        max_pixels: Larger images are refused from their header, before decoding.

    Returns:
        `uint8[height, width, channels]`, C-contiguous, perhaps read-only; of this dtype
        for a `float32` input too.

    Raises:
        InvalidImage: Not a format that is read, truncated, corrupt, or of samples whose
            brightness is undefined. `kind` is `empty_image` where there are no bytes.
        TooLarge: More than `max_pixels`; `kind` is `image_too_large`.
    """
    encoded = bytes(data)
    image_format = _format_of(encoded)
    try:
        pixels = None
        if image_format is _JPEG:
            pixels = _decode_jpeg(encoded, image_input, max_pixels)
        if pixels is None:
            pixels = _decode_any(encoded, image_format, image_input, max_pixels)
    except BlockserveError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(str(error)) from error
    # Over damaged bytes, decoders raise nearly every built-in exception.
    except Exception as error:
        raise InvalidImage(
            f"the {image_format.name} image is truncated or corrupt: "
            f"{str(error) or type(error).__name__}"
        ) from error
    return pixels


# What fits these takes up to about a millisecond, resize to 224x224 included: a JPEG
# needs 10 to 20 ns a pixel, a PNG 20 to 40, and noise 20 ns a byte.
_QUICK_BYTES: Final = 32 * 1024
_QUICK_PIXELS: Final = 32 * 1024
_PNG_SIZE: Final = struct.Struct(">16xII")


def is_slow(data: Encoded) -> bool:
    """Whether `decode` may hold an event loop for more than about a millisecond.

    Judged by the length and, of JPEG and PNG, the size in the header, in two
    microseconds. The other formats count as slow, and so does what looks broken.
    """
    if len(data) > _QUICK_BYTES:
        return True
    start = bytes(data[:24])
    try:
        if _JPEG.start.match(start):
            height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        elif _PNG.start.match(start):
            width, height = _PNG_SIZE.unpack_from(start)
        else:
            return True
    except (KeyError, ValueError, struct.error):
        return True
    pixels: int = height * width
    return pixels > _QUICK_PIXELS


@dataclass(frozen=True, slots=True, kw_only=True)
class _Format:
    """How a format begins, and Pillow's reader of it.

    Readers are called directly: `Image.open` tries formats that are not wanted here,
    and warns of large images by a limit of its own.
    """

    name: str
    start: re.Pattern[bytes]
    open: Callable[[IO[bytes]], ImageFile]


_JPEG: Final = _Format(
    name="JPEG", start=re.compile(rb"\xff\xd8\xff"), open=JpegImageFile
)
_PNG: Final = _Format(
    name="PNG", start=re.compile(rb"\x89PNG\r\n\x1a\n"), open=PngImageFile
)
_FORMATS: Final = (
    _JPEG,
    _PNG,
    _Format(name="WebP", start=re.compile(rb"RIFF(?s:....)WEBP"), open=WebPImageFile),
    _Format(name="BMP", start=re.compile(rb"BM"), open=BmpImageFile),
    _Format(name="GIF", start=re.compile(rb"GIF8[79]a"), open=GifImageFile),
    _Format(name="TIFF", start=re.compile(rb"II[*+]\0|MM\0[*+]"), open=TiffImageFile),
)


def _format_of(encoded: bytes) -> _Format:
    for known in _FORMATS:
        if known.start.match(encoded):
            return known
    if not encoded:
        raise InvalidImage("the image is empty: 0 bytes", code="empty_image")
    names = ", ".join(known.name for known in _FORMATS)
    raise InvalidImage(
        f"{len(encoded)} bytes that are not an image of a format read here: {names}"
    )


def _check_pixels(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise _too_large(
            f"{width}x{height} is {height * width} pixels, and at most {max_pixels} "
            "are accepted"
        )


def _too_large(why: str) -> TooLarge:
    return TooLarge(f"the image is too large: {why}", code="image_too_large")


_COLOUR_SPACES: Final = {"grey": "GRAY", "rgb": "RGB", "bgr": "BGR"}

# Real files have about ten. Each scan of a progressive JPEG visits every pixel, yet may
# take no more than a few bytes: a small body could keep a core busy for minutes.
_MAX_SCANS: Final = 100
_START_OF_SCAN: Final = b"\xff\xda"

# Damage that costs no pixels; other readers pass over it in silence.
_HARMLESS: Final = re.compile(
    r"extraneous bytes before marker|Invalid SOS parameters|unknown JFIF revision"
    r"|Unknown Adobe color transform|bad ICC marker"
)


class _Plan(NamedTuple):
    """How an image becomes the model's input when it is turned last.

    `source` is the part of the stored image that becomes `rows` by `columns` pixels;
    `target` is their place once they are upright.
    """

    source: Rectangle
    rows: int
    columns: int
    orientation: int
    target: Rectangle


class _JpegHeader(NamedTuple):
    height: int
    width: int
    orientation: int
    sequential: bool


def _decode_jpeg(
    encoded: bytes, image_input: ImageInput, max_pixels: int
) -> Pixels | None:
    """Decode a JPEG with libjpeg-turbo alone; `None` for those it leaves to Pillow.

    Raises:
        ValueError: The image is truncated or corrupt.
    """
    header = _read_jpeg_header(encoded)
    if header is None or not header.sequential:
        _check_scans(encoded)
    if header is None:
        return None
    height, width, orientation, _ = header
    _check_pixels(height, width, max_pixels)
    # Many clients send what fits already; the plan to do nothing would take as long as
    # decoding a small image.
    fits = (height, width) == image_input.shape[:2] and orientation == _UPRIGHT
    plan = None if fits else _plan(image_input, height, width, orientation)
    scale = _dct_scale(plan) if plan else 1
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(
            encoded,
            _COLOUR_SPACES[image_input.colour_order],
            min_height=-(-height // scale),
            min_width=-(-width // scale),
        )
    except ValueError as error:
        if _HARMLESS.search(str(error)):
            return None
        raise
    if plan is None:
        return pixels
    return _turn_and_pad(_resize_scaled(pixels, plan, scale), plan, image_input)


def _read_jpeg_header(encoded: bytes) -> _JpegHeader | None:
    """Size, orientation and kind; `None` where only Pillow gets the colours right."""
    try:
        height, width, colour_space, _ = simplejpeg.decode_jpeg_header(encoded)
    except (KeyError, ValueError):  # rare chroma subsampling, or no JPEG at all
        return None
    if colour_space in {"CMYK", "YCCK"}:
        return None
    exif, frame = _walk_jpeg(encoded)
    return _JpegHeader(height, width, _orientation(exif), frame in _SEQUENTIAL_FRAMES)


_SEGMENT: Final = struct.Struct(">xBH")  # 0xFF, marker, length without the marker
_MAX_SEGMENTS: Final = 256
_APP1: Final = 0xE1
_FILL: Final = 0xFF
_SEQUENTIAL_FRAMES: Final = frozenset({0xC0, 0xC1, 0xC9})
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def _walk_jpeg(encoded: bytes) -> tuple[bytes, int]:
    """The Exif segment (empty if there is none), and the marker of the frame."""
    exif = b""
    position = 2
    marker = 0
    for _ in range(_MAX_SEGMENTS):
        marker, length = _SEGMENT.unpack_from(encoded, position)
        if marker in _FRAMES:
            break
        if marker == _FILL:
            position += 1
            continue
        # A block too long for one segment goes on in others, which begin alike.
        if marker == _APP1 and not exif and encoded.startswith(_EXIF, position + 4):
            exif = encoded[position + 4 : position + 2 + length]
        position += 2 + length
    return exif, marker


def _check_scans(encoded: bytes) -> None:
    scans = encoded.count(_START_OF_SCAN)
    if scans > _MAX_SCANS:
        raise InvalidImage(
            f"the JPEG image has {scans} scans, and at most {_MAX_SCANS} are accepted; "
            "save it anew"
        )


# How many times the model's size a scaled JPEG must keep, each way.
_MIN_SURPLUS: Final = 2


def _dct_scale(plan: _Plan) -> int:
    """By how much to shrink in the inverse DCT: 8, 4, 2 or 1.

    Scaling there is nearly free, and blurs. How far pixels (0 to 255) are then from a
    full decode with the same filter, over 24 photographs of 0.1 to 18 megapixels and
    eight sizes of 28 to 299:

        surplus      mean   99th percentile   largest
        1.0 to 1.5   0.97   5.8               55
        1.5 to 2     0.50   3.0               22
        2 to 3       0.35   1.8               15
        3 to 4       0.19   1.0               9
        more         0.10   1.0               7

    With a surplus of 2 or 3, 12 megapixels to 224x224 take a fifth of the time of a
    full decode; with 1.5, a seventh.
    """
    source = plan.source
    most = min(source.height / plan.rows, source.width / plan.columns) / _MIN_SURPLUS
    return next((scale for scale in (8, 4, 2) if scale <= most), 1)


def _resize_scaled(pixels: Pixels, plan: _Plan, scale: int) -> Pixels:
    """Resize what was decoded at 1/`scale` of its size."""
    top, left, height, width = plan.source
    # Whole pixels that cover the part; at its edges they may lie partly outside of it.
    first_row, first_column = top // scale, left // scale
    part = pixels[
        first_row : -(-(top + height) // scale),
        first_column : -(-(left + width) // scale),
    ]
    if part.shape[:2] == (plan.rows, plan.columns):
        return part
    x, y = left / scale - first_column, top / scale - first_row
    grey_or_colour = part[:, :, 0] if part.shape[2] == 1 else part
    return _resize(
        Image.fromarray(grey_or_colour),
        plan,
        box=(x, y, x + width / scale, y + height / scale),
    )


def _decode_any(
    encoded: bytes, image_format: _Format, image_input: ImageInput, max_pixels: int
) -> Pixels:
    image = image_format.open(io.BytesIO(encoded))
    _check_pixels(image.height, image.width, max_pixels)
    image.load()
    # Only now, as a PNG may tell after its pixels. Pillow itself turns TIFF.
    orientation = _orientation(image.info.get("exif", b""))
    opaque = _opaque(image)
    mode = "L" if image_input.colour_order == "grey" else "RGB"
    if opaque.mode != mode:
        opaque = opaque.convert(mode)
    plan = _plan(image_input, opaque.height, opaque.width, orientation)
    top, left, height, width = plan.source
    if (width, height) != opaque.size:
        # Not as the box of the resize: its filter would reach over the edges.
        opaque = opaque.crop((left, top, left + width, top + height))
    pixels = _resize(opaque, plan)
    if image_input.colour_order == "bgr":
        pixels = pixels[:, :, ::-1]
    return _turn_and_pad(pixels, plan, image_input)


def _opaque(image: Image.Image) -> Image.Image:
    """The image in mode L or RGB, on white where it is transparent."""
    if image.mode in {"F", "I"}:
        raise InvalidImage(
            "samples of 32 bits do not say which value is white; send 8 or 16 bits"
        )
    if image.mode.startswith("I;16"):
        return _eight_bits(image)
    if image.has_transparency_data:
        return _on_white(image)
    return image if image.mode == "L" else image.convert("RGB")


_WHITE: Final = 255


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale grey of 16 bits, which Pillow's own conversion would clip at 255."""
    if isinstance(image, TiffImageFile) and (
        image.tag_v2.get(BITSPERSAMPLE) != (16,)
        or image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) != 1
    ):
        # Pillow reads these, but forgets how far they reach and which end is black.
        raise InvalidImage(
            "grey TIFF of more than 8 bits is read with 16 bits and black as 0 only"
        )
    samples = np.asarray(image).astype(np.uint32)
    grey = ((samples + 128) // 257).astype(np.uint8)
    grey[samples == image.info.get("transparency")] = _WHITE
    return Image.fromarray(grey)


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")
    coloured = image.convert("RGBA")
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(coloured, mask=coloured)
    return canvas


def _resize(
    image: Image.Image,
    plan: _Plan,
    box: tuple[float, float, float, float] | None = None,
) -> Pixels:
    """Stretch to `uint8[rows, columns, channels]`."""
    resized = image.resize(
        (plan.columns, plan.rows),
        Image.Resampling.BILINEAR,
        box=box,
        # From eight times the size on, averaging blocks first halves the time and
        # moves a pixel by 0.2 of 255 in the mean.
        reducing_gap=4,
    )
    return np.asarray(resized).reshape(plan.rows, plan.columns, -1)


_EXIF: Final = b"Exif\0\0"
_UPRIGHT: Final = 1

# EXIF orientation -> transpose, then reverse the rows, then reverse the columns.
_TURNS: Final = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


def _orientation(exif: bytes) -> int:
    """The orientation that an Exif block tells; upright where it tells none."""
    if not exif:
        return _UPRIGHT
    tags = Image.Exif()
    try:
        tags.load(exif)
        orientation = tags.get(ExifTags.Base.Orientation)
    except Exception:  # Pillow raises what it stumbles over; pixels are not affected
        return _UPRIGHT
    return orientation if orientation in _TURNS else _UPRIGHT


def _plan(image_input: ImageInput, height: int, width: int, orientation: int) -> _Plan:
    """Plan for a stored image of this size and EXIF orientation."""
    transposed, reverse_rows, reverse_columns = _TURNS[orientation]
    if transposed:
        height, width = width, height
    source, target = image_input.place(height, width)
    rows, columns = target.height, target.width
    # From the upright image back to the stored one.
    if reverse_rows:
        source = source._replace(top=height - source.top - source.height)
    if reverse_columns:
        source = source._replace(left=width - source.left - source.width)
    if transposed:
        source = Rectangle(source.left, source.top, source.width, source.height)
        rows, columns = columns, rows
    return _Plan(source, rows, columns, orientation, target)


def _turn_and_pad(pixels: Pixels, plan: _Plan, image_input: ImageInput) -> Pixels:
    transposed, reverse_rows, reverse_columns = _TURNS[plan.orientation]
    if transposed:
        pixels = pixels.swapaxes(0, 1)
    if reverse_rows:
        pixels = pixels[::-1]
    if reverse_columns:
        pixels = pixels[:, ::-1]
    if pixels.shape == image_input.shape:
        return np.ascontiguousarray(pixels)
    top, left, height, width = plan.target
    padded = np.zeros(image_input.shape, np.uint8)
    padded[top : top + height, left : left + width] = pixels
    return padded
