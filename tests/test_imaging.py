"""What clients may send as an image, and the pixels that the model then sees."""

import io
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms

from models import preprocessing
from models.card import ImageInput, Resize
from service.errors import InvalidImage, TooLarge
from service.imaging import decode, is_slow
from tests.images import (
    ColourOrder,
    encode,
    image_input,
    photograph,
    plain,
    png_that_claims,
    quarters,
    replace_once,
    tiff_of_one_pixel,
)

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
MEGAPIXEL = 1_000_000
BROWN = (200, 100, 50)
# A fifth of BROWN, four fifths of white.
BROWN_ON_WHITE = [244, 224, 214]

PHOTOGRAPH = photograph(90, 120)


def pixels_of(data: bytes, colour_order: ColourOrder = "rgb") -> NDArray[Any]:
    """Decode without a resize."""
    with Image.open(io.BytesIO(data)) as image:
        size = image_input(image.height, image.width, colour_order)
    return decode(data, size, max_pixels=MEGAPIXEL)


def first_pixel(data: bytes, colour_order: ColourOrder = "rgb") -> list[int]:
    pixel: list[int] = pixels_of(data, colour_order)[0, 0].tolist()
    return pixel


def pillow_resize(image: Image.Image, height: int, width: int) -> NDArray[Any]:
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def difference(one: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
    result: NDArray[Any] = np.abs(one.astype(int) - other)
    return result


# Shape, size and filter


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("colour_order", ["grey", "rgb", "bgr"])
def test_every_format_becomes_the_models_array(
    image_format: str, colour_order: ColourOrder
) -> None:
    size = image_input(20, 30, colour_order)
    pixels = decode(encode(PHOTOGRAPH, image_format), size, max_pixels=MEGAPIXEL)
    assert pixels.shape == (20, 30, size.channels)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "BMP", "TIFF"])
def test_without_a_resize_a_lossless_image_keeps_its_pixels(image_format: str) -> None:
    pixels = pixels_of(encode(PHOTOGRAPH, image_format))
    assert np.array_equal(pixels, np.asarray(PHOTOGRAPH))


@pytest.mark.parametrize("height", [28, 90, 400])
def test_a_jpeg_near_the_models_size_is_resized_as_pillow_would(height: int) -> None:
    data = encode(PHOTOGRAPH, "JPEG")
    expected = pillow_resize(Image.open(io.BytesIO(data)), height, 70)
    pixels = decode(data, image_input(height, 70), max_pixels=MEGAPIXEL)
    assert np.array_equal(pixels, expected)


@pytest.mark.parametrize(
    ("height", "width", "scale"), [(107, 151, 2), (205, 301, 4), (417, 617, 8)]
)
def test_a_large_jpeg_scaled_while_decoded_keeps_its_pixels_nearly(
    height: int, width: int, scale: int
) -> None:
    """The sizes are odd: taking the rounding up for pixels would cost 4 in the mean."""
    data = encode(photograph(height, width), "JPEG", quality=90)
    side = height // (2 * scale)
    expected = pillow_resize(Image.open(io.BytesIO(data)), side, side)
    pixels = decode(data, image_input(side, side), max_pixels=MEGAPIXEL)
    assert difference(pixels, expected).mean() < 1.5
    assert difference(pixels, expected).max() < 12


def test_a_large_png_is_shrunk_with_nearly_the_same_filter() -> None:
    image = photograph(600, 800)
    pixels = decode(encode(image, "PNG"), image_input(28, 28), max_pixels=MEGAPIXEL)
    assert difference(pixels, pillow_resize(image, 28, 28)).mean() < 0.5


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_shrinking_averages_fine_patterns_away(image_format: str) -> None:
    """Without antialiasing, a chessboard of single pixels would stay black or white."""
    chessboard = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    data = encode(Image.fromarray(chessboard), image_format, quality=100)
    pixels = decode(data, image_input(8, 8, "grey"), max_pixels=MEGAPIXEL)
    assert difference(pixels[1:-1, 1:-1], np.full((6, 6, 1), 127)).max() <= 2


def test_the_aspect_ratio_is_stretched_away() -> None:
    data = encode(quarters(40, 80), "PNG")
    pixels = decode(data, image_input(8, 8), max_pixels=MEGAPIXEL)
    assert pixels[1, 1].tolist() == [255, 0, 0]
    assert pixels[1, 6].tolist() == [0, 255, 0]
    assert pixels[6, 1].tolist() == [0, 0, 255]
    assert pixels[6, 6].tolist() == [255, 255, 255]


@pytest.mark.parametrize("buffer", [bytearray, memoryview])
def test_any_buffer_of_bytes_is_read(buffer: Any) -> None:
    for image_format in ("JPEG", "PNG"):
        data = encode(PHOTOGRAPH, image_format, progressive=True, exif=exif(6))
        size = image_input(28, 28)
        assert np.array_equal(
            decode(buffer(data), size, max_pixels=MEGAPIXEL),
            decode(data, size, max_pixels=MEGAPIXEL),
        )
        assert is_slow(buffer(data)) == is_slow(data)


def test_a_float_model_gets_bytes_to_cast_itself() -> None:
    size = image_input(16, 16).model_copy(update={"dtype": "float32"})
    pixels = decode(encode(plain(BROWN), "PNG"), size, max_pixels=MEGAPIXEL)
    assert pixels.dtype == np.uint8


def test_threads_do_not_disturb_each_other() -> None:
    files = [
        encode(photograph(40 + n, 60), image_format)
        for n in range(8)
        for image_format in FORMATS
    ]

    def decoded(data: bytes) -> bytes:
        return decode(data, image_input(28, 28), max_pixels=MEGAPIXEL).tobytes()

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(decoded, files)) == [decoded(data) for data in files]


# Colours


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize(
    ("colour_order", "expected"),
    [
        ("rgb", [200, 100, 50]),
        ("bgr", [50, 100, 200]),
        ("grey", [124]),  # 0.299 * 200 + 0.587 * 100 + 0.114 * 50 = 124.2
    ],
)
def test_colours_come_in_the_cards_order(
    image_format: str, colour_order: ColourOrder, expected: list[int]
) -> None:
    data = encode(plain(BROWN), image_format, quality=100)
    tolerance = 2 if image_format == "JPEG" else 0
    assert first_pixel(data, colour_order) == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("image_format", FORMATS)
def test_a_grey_image_fills_all_channels_of_a_colour_model(image_format: str) -> None:
    data = encode(plain((77,), "L"), image_format)
    assert first_pixel(data) == [77, 77, 77]


def lab() -> Image.Image:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    converted = ImageCms.applyTransform(
        plain(BROWN), ImageCms.buildTransform(*profiles, "RGB", "LAB")
    )
    assert converted is not None
    return converted


def palette(alpha: int | None = None) -> Image.Image:
    image = plain((3,), "P")
    image.putpalette([0, 0, 0] * 3 + [*BROWN])
    if alpha is not None:
        image = image.convert("PA")
        image.putalpha(alpha)
    return image


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(encode(plain((1,), "1"), "PNG"), [255, 255, 255], id="1 png"),
        pytest.param(encode(plain((1,), "1"), "TIFF"), [255, 255, 255], id="1 tiff"),
        pytest.param(encode(palette(), "PNG"), [*BROWN], id="P"),
        pytest.param(
            encode(plain((150, 100, 150), "YCbCr"), "TIFF"), [181, 144, 100], id="YCbCr"
        ),
        pytest.param(
            encode(plain((0, 128, 192, 51), "CMYK"), "TIFF"), [204, 102, 50], id="CMYK"
        ),
        pytest.param(encode(lab(), "TIFF"), [*BROWN], id="LAB"),
    ],
)
def test_every_kind_of_pixel_becomes_its_colour(
    data: bytes, expected: list[int]
) -> None:
    assert first_pixel(data) == pytest.approx(expected, abs=2)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(encode(plain((*BROWN, 51), "RGBA"), "PNG"), id="RGBA png"),
        pytest.param(encode(plain((*BROWN, 51), "RGBA"), "WEBP"), id="RGBA webp"),
        pytest.param(encode(plain((*BROWN, 51), "RGBA"), "TIFF"), id="RGBA tiff"),
        pytest.param(encode(palette(51), "TIFF"), id="PA tiff"),
        pytest.param(
            encode(palette(), "PNG", transparency=b"\xff\xff\xff\x33"), id="P png"
        ),
    ],
)
def test_what_is_half_transparent_lies_on_white(data: bytes) -> None:
    assert first_pixel(data) == BROWN_ON_WHITE
    # 0.299 * 244 + 0.587 * 224 + 0.114 * 214 = 228.8
    assert first_pixel(data, "grey") == [229]


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_transparent_grey_lies_on_white(image_format: str) -> None:
    data = encode(plain((100, 51), "LA"), image_format)
    assert first_pixel(data) == [224, 224, 224]
    assert first_pixel(data, "grey") == [224]


def test_grey_with_premultiplied_alpha_lies_on_white() -> None:
    data = replace_once(
        encode(plain((20, 51), "LA"), "TIFF"),
        struct.pack("<HHIHH", 338, 3, 1, 2, 0),  # ExtraSamples: unassociated alpha
        struct.pack("<HHIHH", 338, 3, 1, 1, 0),  # associated
    )
    assert first_pixel(data, "grey") == [224]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(encode(plain((1,), "1"), "PNG", transparency=1), id="1"),
        pytest.param(encode(plain((9,), "L"), "PNG", transparency=9), id="L"),
        pytest.param(encode(plain(BROWN), "PNG", transparency=BROWN), id="RGB"),
        pytest.param(encode(palette(), "PNG", transparency=3), id="P"),
        pytest.param(encode(palette(), "GIF", transparency=3), id="P gif"),
        pytest.param(encode(plain((9,), "I;16"), "PNG", transparency=9), id="I;16"),
    ],
)
def test_a_colour_marked_transparent_is_white(data: bytes) -> None:
    assert first_pixel(data) == [255, 255, 255]


@pytest.mark.parametrize(
    "options", [{}, {"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}]
)
@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_grey_of_16_bits_is_scaled_not_clipped(
    order: str, options: dict[str, str]
) -> None:
    samples = np.array([[0, 128, 129, 2570], [32768, 51400, 65406, 65535]], order)
    mode = "I;16" if order == "<u2" else "I;16B"
    image = Image.frombytes(mode, (4, 2), samples.tobytes())
    expected = [[0, 0, 1, 10], [128, 200, 254, 255]]
    assert pixels_of(encode(image, "TIFF", **options), "grey")[:, :, 0].tolist() == (
        expected
    )
    assert pixels_of(encode(image, "PNG"), "grey")[:, :, 0].tolist() == expected


@pytest.mark.parametrize("order", ["<", ">"])
def test_colour_of_16_bits_keeps_its_upper_byte(order: str) -> None:
    data = tiff_of_one_pixel(
        struct.pack(f"{order}3H", *(257 * value for value in BROWN)),
        order=order,
        bits=16,
        photometric=2,
        channels=3,
    )
    assert first_pixel(data) == [*BROWN]


@pytest.mark.parametrize("mode", ["F", "I"])
def test_samples_of_unknown_scale_are_refused(mode: str) -> None:
    with pytest.raises(InvalidImage, match="32 bits do not say which value is white"):
        pixels_of(encode(plain((1,), mode), "TIFF"))


@pytest.mark.parametrize(
    ("bits", "photometric"), [(12, 1), (16, 0)], ids=["12 bits", "white is 0"]
)
def test_grey_that_pillow_misreads_is_refused(bits: int, photometric: int) -> None:
    data = tiff_of_one_pixel(
        b"\0\x08", order="<", bits=bits, photometric=photometric, channels=1
    )
    with pytest.raises(InvalidImage, match="16 bits and black as 0 only"):
        pixels_of(data)


# Kinds of JPEG


INKS = (0, 255, 255, 51)
PRINTED = [204, 0, 0]  # full red, darkened by a fifth


def test_a_cmyk_jpeg_has_its_printed_colours() -> None:
    data = encode(plain(INKS, "CMYK"), "JPEG", quality=100)
    assert simplejpeg.decode_jpeg_header(data)[2] == "CMYK"
    assert first_pixel(data) == pytest.approx(PRINTED, abs=2)


def test_a_ycck_jpeg_has_its_printed_colours() -> None:
    inverted = np.full((16, 16, 4), 255, np.uint8) - np.array(INKS, np.uint8)
    data = simplejpeg.encode_jpeg(inverted, 100, "CMYK", "444")
    assert simplejpeg.decode_jpeg_header(data)[2] == "YCCK"
    assert first_pixel(data) == pytest.approx(PRINTED, abs=2)


@pytest.mark.parametrize(
    "options",
    [{"progressive": True}, {"subsampling": "4:2:2"}, {"keep_rgb": True}],
    ids=str,
)
def test_the_usual_kinds_of_jpeg_give_the_same_pixels_as_pillow(
    options: dict[str, Any],
) -> None:
    data = encode(PHOTOGRAPH, "JPEG", **options)
    assert np.array_equal(pixels_of(data), np.asarray(Image.open(io.BytesIO(data))))


def test_a_jpeg_with_rare_chroma_subsampling_is_read() -> None:
    """One block of 16x16 in 4:2:0 holds the same data as one of 8x32 in 4:4:1."""
    data = encode(plain(BROWN), "JPEG", quality=100, subsampling="4:2:0")
    frame = data.index(b"\xff\xc0")
    height_width = slice(frame + 5, frame + 9)
    luma_sampling = frame + 11
    patched = bytearray(data)
    patched[height_width] = struct.pack(">HH", 32, 8)
    patched[luma_sampling] = 0x14
    assert first_pixel(bytes(patched)) == pytest.approx(BROWN, abs=2)


@pytest.mark.parametrize("find", [bytes.index, bytes.rindex], ids=["before", "between"])
def test_a_jpeg_with_stray_bytes_around_its_scans_is_read(find: Any) -> None:
    data = encode(PHOTOGRAPH, "JPEG", progressive=True)
    tables = find(data, b"\xff\xc4")
    stray = data[:tables] + b"\0\0" + data[tables:]
    assert np.array_equal(pixels_of(stray), pixels_of(data))


def test_a_jpeg_with_another_file_behind_it_is_read() -> None:
    data = encode(PHOTOGRAPH, "JPEG")
    assert np.array_equal(pixels_of(data + data), pixels_of(data))


def test_a_jpeg_of_very_many_scans_is_refused() -> None:
    """Else a few kilobytes keep a core busy for minutes."""
    data = encode(PHOTOGRAPH, "JPEG", progressive=True)
    scans = data.rindex(b"\xff\xda")
    with pytest.raises(InvalidImage, match="scans, and at most 100 are accepted"):
        pixels_of(data[:scans] + data[scans:-2] * 100 + data[-2:])


# EXIF orientation

FORMATS_WITH_EXIF = ("JPEG", "PNG", "WEBP", "TIFF")

# How a camera held in each way stores what a person should see.
STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def stored(image: Image.Image, orientation: int) -> Image.Image:
    turn = STORED.get(orientation)
    return image if turn is None else image.transpose(turn)


def exif(orientation: int, order: str = "<") -> bytes:
    """A description, to be passed over, and the orientation."""
    block = Image.Exif()
    block.endian = order
    block[270] = "upright, they say"
    block[274] = orientation
    return block.tobytes()


@pytest.mark.parametrize("image_format", FORMATS_WITH_EXIF)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_upright(image_format: str, orientation: int) -> None:
    image = quarters(64, 96)
    data = encode(
        stored(image, orientation),
        image_format,
        exif=exif(orientation),
        **({"quality": 100, "subsampling": 0} if image_format == "JPEG" else {}),
    )
    tolerance = 2 if image_format == "JPEG" else 0
    for height, width in ((64, 96), (20, 30)):
        pixels = decode(data, image_input(height, width), max_pixels=MEGAPIXEL)
        expected = pillow_resize(image, height, width)
        assert difference(pixels, expected).max() <= tolerance
        assert pixels.flags.c_contiguous


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_large_photograph_is_turned_upright(orientation: int) -> None:
    image = photograph(600, 800)
    data = encode(stored(image, orientation), "JPEG", exif=exif(orientation, ">"))
    pixels = decode(data, image_input(30, 40, "grey"), max_pixels=MEGAPIXEL)
    expected = pillow_resize(image.convert("L"), 30, 40)[:, :, None]
    assert difference(pixels, expected).mean() < 1


def test_a_cmyk_jpeg_is_turned_upright() -> None:
    image = quarters(32, 48)
    data = encode(stored(image, 6).convert("CMYK"), "JPEG", quality=100, exif=exif(6))
    pixels = decode(data, image_input(32, 48), max_pixels=MEGAPIXEL)
    assert difference(pixels, np.asarray(image)).max() <= 2


def test_fill_bytes_do_not_hide_the_orientation() -> None:
    data = encode(PHOTOGRAPH, "JPEG", exif=exif(3))
    filled = replace_once(data, b"\xff\xe1", b"\xff\xff\xff\xe1")
    assert np.array_equal(pixels_of(filled), pixels_of(data))


@pytest.mark.parametrize(
    "block",
    [exif(9), exif(0), exif(6)[:30], b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff"],
    ids=["9", "0", "cut", "empty", "points outside"],
)
def test_a_senseless_orientation_leaves_the_image_alone(block: bytes) -> None:
    size = image_input(90, 120)
    assert np.array_equal(
        decode(encode(PHOTOGRAPH, "JPEG", exif=block), size, max_pixels=MEGAPIXEL),
        decode(encode(PHOTOGRAPH, "JPEG"), size, max_pixels=MEGAPIXEL),
    )


def test_an_exif_block_in_two_segments_counts_by_its_first() -> None:
    data = encode(PHOTOGRAPH, "JPEG", exif=exif(3))
    rest = b"Exif\0\0the rest of a long block"
    second = b"\xff\xe1" + struct.pack(">H", 2 + len(rest)) + rest
    frame = data.index(b"\xff\xc0")
    long = data[:frame] + second + data[frame:]
    assert np.array_equal(pixels_of(long), pixels_of(data))


# Crop and pad

RESIZES: tuple[Resize, ...] = ("stretch", "crop", "pad")


def resized_by(
    resize: Resize, height: int, width: int, colour_order: ColourOrder = "rgb"
) -> ImageInput:
    return image_input(height, width, colour_order).model_copy(
        update={"resize": resize}
    )


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_crop_takes_the_upright_images_middle_to_the_pixel(
    orientation: int, image_format: str
) -> None:
    columns = np.tile(np.arange(29, dtype=np.uint8) * 8, (16, 1))
    data = encode(
        stored(Image.fromarray(columns), orientation),
        image_format,
        exif=exif(orientation),
        **({"quality": 100} if image_format == "JPEG" else {}),
    )
    pixels = decode(data, resized_by("crop", 16, 16, "grey"), max_pixels=MEGAPIXEL)
    # 13 columns are too many: 6 on the left and 7 on the right.
    assert difference(pixels[:, :, 0], columns[:, 6:22]).max() <= 2


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pad_puts_the_upright_image_in_the_middle_of_black(
    orientation: int, image_format: str
) -> None:
    data = encode(
        stored(Image.new("RGB", (32, 16), BROWN), orientation),
        image_format,
        exif=exif(orientation),
        **({"quality": 100} if image_format == "JPEG" else {}),
    )
    pixels = decode(data, resized_by("pad", 19, 16, "bgr"), max_pixels=MEGAPIXEL)
    expected = np.zeros((19, 16, 3), np.uint8)
    expected[5:13] = BROWN[::-1]
    assert difference(pixels, expected).max() <= 2 * (image_format == "JPEG")
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
@pytest.mark.parametrize("side", [8, 31, 64, 200])
def test_a_crop_shows_nothing_of_what_was_cut_off(side: int, image_format: str) -> None:
    """The filter is wider than a pixel, and must not reach over the edge."""
    image = Image.new("RGB", (192, 64), "black")
    image.paste("white", (64, 0, 128, 64))
    data = encode(image, image_format, quality=100, subsampling=0)
    pixels = decode(data, resized_by("crop", side, side), max_pixels=MEGAPIXEL)
    assert pixels.min() == 255


@given(
    height=st.integers(1, 24),
    width=st.integers(1, 24),
    # Shrunk to less than an eighth, an image is not resized in one step.
    size=st.builds(
        resized_by,
        st.sampled_from(RESIZES),
        st.integers(5, 40),
        st.integers(5, 40),
        st.sampled_from(["grey", "rgb", "bgr"]),
    ),
    orientation=st.integers(1, 8),
)
@settings(derandomize=True, deadline=None, max_examples=300)
def test_a_small_png_has_the_trainings_pixels(
    height: int, width: int, size: ImageInput, orientation: int
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    image = stored(Image.fromarray(noise), orientation)
    data = encode(image, "PNG", exif=exif(orientation))
    pixels = decode(data, size, max_pixels=MEGAPIXEL)
    expected = preprocessing.read(data, size)
    # Turned late, an image is resized along its other side first, and rounded.
    assert difference(pixels, expected).max() <= (orientation > 1)


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("colour_order", ["grey", "rgb", "bgr"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize(("height", "width"), [(50, 40), (100, 130)])
def test_a_jpeg_near_the_models_size_has_the_trainings_pixels(
    resize: Resize, colour_order: ColourOrder, orientation: int, height: int, width: int
) -> None:
    image = stored(photograph(91, 121), orientation)
    data = encode(image, "JPEG", exif=exif(orientation))
    size = resized_by(resize, height, width, colour_order)
    pixels = decode(data, size, max_pixels=MEGAPIXEL)
    # The luma of a JPEG is not calculated from its colours, which have been rounded.
    tolerance = (orientation > 1) + 2 * (colour_order == "grey")
    assert difference(pixels, preprocessing.read(data, size)).max() <= tolerance


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("side", [25, 51, 102])
def test_a_large_jpeg_has_the_trainings_pixels_nearly(
    resize: Resize, orientation: int, side: int
) -> None:
    """Decoded at 1/8, 1/4 and 1/2 of its size, from odd places on."""
    image = stored(photograph(411, 617), orientation)
    data = encode(image, "JPEG", quality=90, exif=exif(orientation))
    size = resized_by(resize, side, side)
    pixels = decode(data, size, max_pixels=MEGAPIXEL)
    distances = difference(pixels, preprocessing.read(data, size))
    assert distances.mean() < 1
    assert distances.max() < 16


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
@pytest.mark.parametrize(("height", "width"), [(1, 500), (500, 1), (1, 1), (3, 2000)])
def test_the_narrowest_image_has_the_trainings_pixels_nearly(
    resize: Resize, image_format: str, height: int, width: int
) -> None:
    data = encode(photograph(height, width), image_format)
    size = resized_by(resize, 28, 20)
    pixels = decode(data, size, max_pixels=MEGAPIXEL)
    distances = difference(pixels, preprocessing.read(data, size))
    assert distances.max() <= 2


# Refusals


def test_no_bytes_are_no_image() -> None:
    with pytest.raises(InvalidImage, match="0 bytes") as caught:
        decode(b"", image_input(28, 28), max_pixels=MEGAPIXEL)
    assert caught.value.code == "empty_image"


@pytest.mark.parametrize(
    "data",
    [b"hello", b"<svg/>", b"%PDF-1.7", encode(plain(BROWN), "PPM"), b"RIFF....WAVE"],
)
def test_what_is_no_image_is_told_which_formats_are_read(data: bytes) -> None:
    with pytest.raises(InvalidImage, match="JPEG, PNG, WebP, BMP, GIF, TIFF") as caught:
        decode(data, image_input(28, 28), max_pixels=MEGAPIXEL)
    assert caught.value.code == "invalid_image"


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("tenths", range(1, 10))
def test_a_truncated_jpeg_is_refused(tenths: int, *, progressive: bool) -> None:
    data = encode(PHOTOGRAPH, "JPEG", progressive=progressive)
    with pytest.raises(InvalidImage, match="JPEG image is truncated or corrupt"):
        decode(
            data[: len(data) * tenths // 10],
            image_input(28, 28),
            max_pixels=MEGAPIXEL,
        )


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "BMP", "GIF", "TIFF"])
@pytest.mark.parametrize("tenths", range(1, 10))
def test_a_truncated_image_is_refused(image_format: str, tenths: int) -> None:
    data = encode(PHOTOGRAPH, image_format)
    with pytest.raises(InvalidImage, match=r"(?i)image is truncated or corrupt: \w"):
        decode(
            data[: len(data) * tenths // 10],
            image_input(28, 28),
            max_pixels=MEGAPIXEL,
        )


def jpeg_that_claims(height: int, width: int) -> bytes:
    data = encode(plain(BROWN), "JPEG")
    frame = b"\xff\xc0\x00\x11\x08"
    claim = struct.pack(">HH", height, width)
    return replace_once(data, frame + b"\0\x10\0\x10", frame + claim)


def cmyk_jpeg_that_claims(height: int, width: int) -> bytes:
    data = encode(plain(INKS, "CMYK"), "JPEG")
    frame = b"\xff\xc0\x00\x14\x08"
    claim = struct.pack(">HH", height, width)
    return replace_once(data, frame + b"\0\x10\0\x10", frame + claim)


def gif_that_claims(height: int, width: int) -> bytes:
    data = encode(plain(BROWN), "GIF")
    return data[:6] + struct.pack("<HH", width, height) + data[10:]


def bmp_that_claims(height: int, width: int) -> bytes:
    data = encode(plain(BROWN), "BMP")
    return data[:18] + struct.pack("<ii", width, height) + data[26:]


def tiff_that_claims(height: int, width: int) -> bytes:
    data = encode(plain(BROWN), "TIFF")
    for tag, value in ((256, width), (257, height)):
        entry = struct.pack("<HHI", tag, 4, 1)
        data = replace_once(
            data, entry + struct.pack("<I", 16), entry + struct.pack("<I", value)
        )
    return data


def webp_that_claims(height: int, width: int) -> bytes:
    """A canvas with one small frame on it."""
    data = encode(plain(BROWN), "WEBP", save_all=True, append_images=[plain((0, 0, 0))])
    canvas = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    return data[:24] + canvas + data[30:]


@pytest.mark.parametrize(
    "claim",
    [
        png_that_claims,
        jpeg_that_claims,
        cmyk_jpeg_that_claims,
        gif_that_claims,
        bmp_that_claims,
        tiff_that_claims,
        webp_that_claims,
    ],
)
@pytest.mark.parametrize("side", [1001, 12_000, 16_000])
def test_an_image_of_too_many_pixels_is_refused_by_its_header(
    claim: Any, side: int
) -> None:
    """Pillow on its own would warn from 89 megapixels on, and fail from 179 on."""
    with pytest.raises(TooLarge, match=str(side * side)) as caught:
        decode(claim(side, side), image_input(28, 28), max_pixels=MEGAPIXEL)
    assert caught.value.code == "image_too_large"


def test_the_refusal_of_a_large_image_names_both_numbers() -> None:
    with pytest.raises(TooLarge) as caught:
        decode(png_that_claims(30_000, 20_000), image_input(1, 1), max_pixels=1234)
    assert caught.value.message == (
        "the image is too large: 20000x30000 is 600000000 pixels, "
        "and at most 1234 are accepted"
    )


@pytest.mark.parametrize("image_format", FORMATS)
def test_the_pixel_limit_itself_is_allowed(image_format: str) -> None:
    data = encode(plain(BROWN), image_format)
    size = image_input(16, 16)
    assert decode(data, size, max_pixels=256).shape == (16, 16, 3)
    with pytest.raises(TooLarge):
        decode(data, size, max_pixels=255)


def test_a_damaged_file_leaves_nothing_on_stderr() -> None:
    """In a process of its own, as pytest replaces the filters of warnings."""
    data = encode(plain(BROWN), "TIFF", tiffinfo={270: "a description " * 4})
    description = struct.pack("<HHI", 270, 2, 57)
    damaged = replace_once(data, description, struct.pack("<HHI", 270, 2, 1 << 20))
    with pytest.warns(UserWarning, match="Tag data larger than file"):
        Image.open(io.BytesIO(damaged))
    script = (
        "import sys; from service.imaging import decode; "
        "from tests.images import image_input; "
        "decode(sys.stdin.buffer.read(), image_input(9, 9), max_pixels=256)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", script],
        input=damaged,
        capture_output=True,
        check=True,
    )
    assert done.stderr == b""


# Whatever the bytes are

SAMPLES = [
    *(encode(PHOTOGRAPH, image_format) for image_format in FORMATS),
    *(encode(PHOTOGRAPH, name, exif=exif(6)) for name in FORMATS_WITH_EXIF),
    encode(PHOTOGRAPH, "JPEG", progressive=True),
    encode(PHOTOGRAPH.convert("CMYK"), "JPEG"),
    encode(PHOTOGRAPH.convert("L"), "TIFF", compression="tiff_lzw"),
    encode(PHOTOGRAPH.convert("P"), "PNG", transparency=3),
    encode(PHOTOGRAPH, "GIF", save_all=True, append_images=[plain(BROWN)]),
    encode(plain((9,), "I;16"), "PNG"),
]
STARTS = sorted({sample[:12] for sample in SAMPLES} | {b"", b"\xff\xd8\xff\xda"})
COLOUR_ORDERS: tuple[ColourOrder, ...] = ("grey", "rgb", "bgr")


def decodes_or_refuses(data: bytes) -> None:
    is_slow(data)
    for colour_order in COLOUR_ORDERS:
        size = image_input(7, 5, colour_order)
        try:
            pixels = decode(data, size, max_pixels=MEGAPIXEL)
        except (InvalidImage, TooLarge):
            continue
        assert pixels.shape == (7, 5, size.channels)
        assert pixels.dtype == np.uint8


@given(start=st.sampled_from(STARTS), rest=st.binary(max_size=300))
@settings(derandomize=True, deadline=None, max_examples=300)
def test_random_bytes_are_refused_and_nothing_worse(start: bytes, rest: bytes) -> None:
    decodes_or_refuses(start + rest)


@given(sample=st.sampled_from(SAMPLES), share=st.floats(0, 1))
@settings(derandomize=True, deadline=None, max_examples=200)
def test_no_truncation_does_more_than_refuse(sample: bytes, share: float) -> None:
    decodes_or_refuses(sample[: int(share * len(sample))])


@given(
    sample=st.sampled_from(SAMPLES),
    damage=st.lists(
        # Most of what a decoder trusts stands in the first bytes.
        st.tuples(
            st.one_of(st.integers(0, 200), st.integers(0, 20_000)), st.integers(1, 255)
        ),
        min_size=1,
        max_size=8,
    ),
)
@settings(derandomize=True, deadline=None, max_examples=500)
def test_no_flipped_bytes_do_more_than_refuse(
    sample: bytes, damage: list[tuple[int, int]]
) -> None:
    damaged = bytearray(sample)
    for position, mask in damage:
        damaged[position % len(damaged)] ^= mask
    decodes_or_refuses(bytes(damaged))


# What may be decoded between two requests


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_a_small_image_is_quick(image_format: str) -> None:
    assert not is_slow(encode(photograph(28, 28), image_format))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_a_large_image_is_slow_even_if_its_file_is_small(image_format: str) -> None:
    data = encode(Image.new("RGB", (500, 375)), image_format)
    assert len(data) < 5000
    assert is_slow(data)


@pytest.mark.parametrize("image_format", FORMATS)
def test_a_large_file_is_slow(image_format: str) -> None:
    assert is_slow(encode(photograph(28, 28), image_format) + bytes(40_000))


@pytest.mark.parametrize("image_format", ["WEBP", "BMP", "GIF", "TIFF"])
def test_the_size_of_other_formats_is_not_looked_up(image_format: str) -> None:
    assert is_slow(encode(photograph(28, 28), image_format))


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"hello"])
def test_what_looks_broken_is_slow(data: bytes) -> None:
    assert is_slow(data)
