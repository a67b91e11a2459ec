"""What an image file is to the training, which serving is held to."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from models.card import ImageInput, Rectangle, Resize
from models.preprocessing import UnreadableImage, from_array, read, read_upright
from tests.images import (
    ColourOrder,
    encode,
    image_input,
    photograph,
    plain,
    png_that_claims,
    tiff_of_one_pixel,
)

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
RESIZES: tuple[Resize, ...] = ("stretch", "crop", "pad")
PHOTOGRAPH = photograph(90, 120)
BROWN = (200, 100, 50)


def resized_by(
    resize: Resize, height: int, width: int, colour_order: ColourOrder = "rgb"
) -> ImageInput:
    return image_input(height, width, colour_order).model_copy(
        update={"resize": resize}
    )


def first_pixel(data: bytes, colour_order: ColourOrder = "rgb") -> list[int]:
    pixel: list[int] = read(data, image_input(16, 16, colour_order))[0, 0].tolist()
    return pixel


def difference(one: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
    result: NDArray[Any] = np.abs(one.astype(int) - other)
    return result


# Which part of an image goes where


@pytest.mark.parametrize(
    ("resize", "source", "target"),
    [
        ("stretch", Rectangle(0, 0, 375, 500), Rectangle(0, 0, 224, 224)),
        ("crop", Rectangle(0, 62, 375, 375), Rectangle(0, 0, 224, 224)),
        ("pad", Rectangle(0, 0, 375, 500), Rectangle(28, 0, 168, 224)),
    ],
)
def test_a_photograph_is_placed(
    resize: Resize, source: Rectangle, target: Rectangle
) -> None:
    assert resized_by(resize, 224, 224).place(375, 500) == (source, target)


SIDES = st.one_of(st.integers(1, 20), st.integers(1, 20_000))


def check_centred(
    part: Rectangle, whole: tuple[int, int], aspect: tuple[int, int]
) -> None:
    """The largest centred part with an aspect ratio, rounded to whole pixels."""
    height, width = whole
    assert height - part.height - 2 * part.top in {0, 1}
    assert width - part.width - 2 * part.left in {0, 1}
    exact_height = max(1, min(height, width * aspect[0] / aspect[1]))
    exact_width = max(1, min(width, height * aspect[1] / aspect[0]))
    assert abs(part.height - exact_height) <= 0.5
    assert abs(part.width - exact_width) <= 0.5
    assert part.height == height or part.width == width


@given(image=st.tuples(SIDES, SIDES), model=st.tuples(SIDES, SIDES))
@settings(derandomize=True, deadline=None, max_examples=300)
def test_crop_takes_the_largest_part_with_the_models_aspect_ratio(
    image: tuple[int, int], model: tuple[int, int]
) -> None:
    source, target = resized_by("crop", *model).place(*image)
    assert target == (0, 0, *model)
    check_centred(source, image, model)


@given(image=st.tuples(SIDES, SIDES), model=st.tuples(SIDES, SIDES))
@settings(derandomize=True, deadline=None, max_examples=300)
def test_pad_fits_the_whole_image_in(
    image: tuple[int, int], model: tuple[int, int]
) -> None:
    source, target = resized_by("pad", *model).place(*image)
    assert source == (0, 0, *image)
    check_centred(target, model, image)


@given(
    model=st.tuples(st.integers(1, 500), st.integers(1, 500)), times=st.integers(1, 40)
)
@settings(derandomize=True, deadline=None, max_examples=100)
def test_the_models_own_aspect_ratio_is_neither_cropped_nor_padded(
    model: tuple[int, int], times: int
) -> None:
    image = times * model[0], times * model[1]
    for resize in RESIZES:
        placement = resized_by(resize, *model).place(*image)
        assert placement == ((0, 0, *image), (0, 0, *model))


# Resizing


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("colour_order", ["grey", "rgb", "bgr"])
@pytest.mark.parametrize("resize", RESIZES)
def test_every_format_becomes_the_models_array(
    image_format: str, colour_order: ColourOrder, resize: Resize
) -> None:
    size = resized_by(resize, 20, 30, colour_order)
    pixels = read(encode(PHOTOGRAPH, image_format), size)
    assert pixels.shape == size.shape
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous


def test_a_file_is_read_as_its_bytes_are(tmp_path: Path) -> None:
    file = tmp_path / "photograph"
    file.write_bytes(encode(PHOTOGRAPH, "JPEG"))
    assert np.array_equal(
        read(file, image_input(20, 30)), read(file.read_bytes(), image_input(20, 30))
    )


@pytest.mark.parametrize("colour_order", ["grey", "rgb", "bgr"])
@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("image", [PHOTOGRAPH, PHOTOGRAPH.convert("L")], ids="CL")
def test_an_array_becomes_what_its_file_does(
    image: Image.Image, resize: Resize, colour_order: ColourOrder
) -> None:
    size = resized_by(resize, 20, 30, colour_order)
    data = encode(image, "PNG")
    array = np.asarray(image).reshape(90, 120, -1)
    assert np.array_equal(from_array(array, size), read(data, size))


def test_shrinking_averages_fine_patterns_away() -> None:
    chessboard = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    pixels = from_array(chessboard[:, :, None], image_input(8, 8, "grey"))
    assert difference(pixels[1:-1, 1:-1], np.full((6, 6, 1), 127)).max() <= 2


def test_crop_leaves_the_middle_unchanged() -> None:
    pixels = read(encode(PHOTOGRAPH, "PNG"), resized_by("crop", 90, 90))
    assert np.array_equal(pixels, np.asarray(PHOTOGRAPH)[:, 15:105])


def test_pad_leaves_the_image_unchanged_in_the_middle_of_black() -> None:
    pixels = read(encode(PHOTOGRAPH, "PNG"), resized_by("pad", 120, 120))
    expected = np.zeros((120, 120, 3), np.uint8)
    expected[15:105] = np.asarray(PHOTOGRAPH)
    assert np.array_equal(pixels, expected)


# Colours


@pytest.mark.parametrize(
    ("colour_order", "expected"),
    [
        ("rgb", [200, 100, 50]),
        ("bgr", [50, 100, 200]),
        ("grey", [124]),  # 0.299 * 200 + 0.587 * 100 + 0.114 * 50 = 124.2
    ],
)
def test_colours_come_in_the_cards_order(
    colour_order: ColourOrder, expected: list[int]
) -> None:
    assert first_pixel(encode(plain(BROWN), "PNG"), colour_order) == expected


@pytest.mark.parametrize("kind", ["RGBA", "LA", "tRNS", "GIF"])
def test_what_is_transparent_lies_on_white(kind: str) -> None:
    data, expected = {
        "RGBA": (encode(plain((*BROWN, 51), "RGBA"), "PNG"), [244, 224, 214]),
        "LA": (encode(plain((100, 51), "LA"), "PNG"), [224] * 3),
        "tRNS": (encode(plain(BROWN), "PNG", transparency=BROWN), [255] * 3),
        "GIF": (encode(plain((3,), "L"), "GIF", transparency=3), [255] * 3),
    }[kind]
    assert first_pixel(data) == expected


def test_grey_of_16_bits_is_scaled_not_clipped() -> None:
    data = encode(plain((51400,), "I;16"), "PNG")
    assert first_pixel(data, "grey") == [200]


def test_a_cmyk_jpeg_has_its_printed_colours() -> None:
    data = encode(plain((0, 255, 255, 51), "CMYK"), "JPEG", quality=100)
    assert first_pixel(data) == pytest.approx([204, 0, 0], abs=2)


# EXIF orientation

STORED = {
    1: lambda pixels: pixels,
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: np.rot90,
    7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels, 3),
}


def exif(orientation: int) -> bytes:
    block = Image.Exif()
    block[274] = orientation
    return block.tobytes()


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", STORED)
def test_an_image_is_turned_upright(image_format: str, orientation: int) -> None:
    upright = np.asarray(PHOTOGRAPH)
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    data = encode(stored, image_format, exif=exif(orientation))
    assert np.array_equal(read(data, image_input(90, 120)), upright)
    assert np.array_equal(read_upright(data, "bgr"), upright)


@pytest.mark.parametrize(
    "block",
    [exif(9), exif(0), exif(6)[:20], b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff"],
    ids=["9", "0", "cut", "empty", "points outside"],
)
def test_a_senseless_orientation_leaves_the_image_alone(block: bytes) -> None:
    data = encode(PHOTOGRAPH, "PNG", exif=block)
    assert np.array_equal(read_upright(data, "rgb"), np.asarray(PHOTOGRAPH))


def test_upright_pixels_are_grey_where_the_model_is() -> None:
    data = encode(PHOTOGRAPH, "PNG")
    expected = np.asarray(PHOTOGRAPH.convert("L"))[:, :, None]
    assert np.array_equal(read_upright(data, "grey"), expected)


# What a data set skips


@pytest.mark.parametrize("read_file", [read, read_upright])
def test_what_cannot_be_read_is_told_in_one_way(read_file: Any) -> None:
    how = image_input(9, 9) if read_file is read else "rgb"
    for data in (
        b"",
        b"hello",
        png_that_claims(100, 100),
        encode(plain((1,), "F"), "TIFF"),
    ):
        with pytest.raises(UnreadableImage, match=r"\w"):
            read_file(data, how)


def test_a_file_that_is_not_there_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match="No such file"):
        read(tmp_path / "nothing", image_input(9, 9))


def test_what_pillow_takes_for_an_attack_is_unreadable() -> None:
    with pytest.raises(UnreadableImage, match="200000000 pixels"):
        read(png_that_claims(20_000, 10_000), image_input(9, 9))


@pytest.mark.parametrize(("bits", "photometric"), [(12, 1), (16, 0)])
def test_grey_that_pillow_misreads_is_unreadable(bits: int, photometric: int) -> None:
    data = tiff_of_one_pixel(
        b"\0\x08", order="<", bits=bits, photometric=photometric, channels=1
    )
    with pytest.raises(UnreadableImage, match="neither 8 nor 16 bits"):
        read(data, image_input(9, 9))


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("tenths", range(1, 10))
def test_a_truncated_image_is_unreadable(image_format: str, tenths: int) -> None:
    data = encode(PHOTOGRAPH, image_format)
    with pytest.raises(UnreadableImage):
        read(data[: len(data) * tenths // 10], image_input(28, 28))


SAMPLES = [encode(PHOTOGRAPH, image_format) for image_format in FORMATS]
SAMPLES += [encode(PHOTOGRAPH, name, exif=exif(6)) for name in ("JPEG", "PNG", "TIFF")]


@given(
    sample=st.sampled_from(SAMPLES),
    damage=st.lists(
        st.tuples(st.integers(0, 300), st.integers(1, 255)), min_size=1, max_size=8
    ),
)
@settings(derandomize=True, deadline=None, max_examples=300)
def test_damage_does_no_more_than_make_an_image_unreadable(
    sample: bytes, damage: list[tuple[int, int]]
) -> None:
    damaged = bytearray(sample)
    for position, mask in damage:
        damaged[position] ^= mask
    try:
        pixels = read(bytes(damaged), image_input(7, 5))
    except UnreadableImage:
        return
    assert pixels.shape == (7, 5, 3)


def test_other_formats_are_not_tried() -> None:
    """Pillow would read more of them, some with the help of other programs."""
    with pytest.raises(UnreadableImage):
        read(encode(plain(BROWN), "PPM"), image_input(9, 9))
    assert Image.open(io.BytesIO(encode(plain(BROWN), "PPM"))).size == (16, 16)
