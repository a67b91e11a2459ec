"""The graph reads images as the training does, and what does not is found out."""

import io
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from rich.console import Console

from models import graph_preprocessing
from models.card import ImageInput, Preprocessing, Resize
from models.preprocessing import Pixels, from_array, read, to_image
from models.preprocessing_parity import (
    PreprocessingMismatch,
    check,
    compare,
    photographs,
    sample_files,
    table,
)
from tests.images import ColourOrder, encode, image_input, photograph, replace_once

RESIZES: tuple[Resize, ...] = ("stretch", "crop", "pad")
VARIANTS = (
    "png",
    "odd size",
    "progressive",
    "large photograph",
    "exif rotation",
    "grey",
    "cmyk",
    "png with alpha",
)
SIZE = image_input(40, 60)
PHOTOGRAPH = photograph(45, 64)
ORIGINALS = photographs()[1:3]


def decoder(size: ImageInput) -> Callable[[Sequence[bytes]], Pixels]:
    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)])
    def decode(encoded: Any) -> Any:
        return tf.map_fn(
            lambda one: graph_preprocessing.decode(one, size),
            encoded,
            fn_output_signature=tf.TensorSpec(size.shape, tf.uint8),
        )

    def decoded(files: Sequence[bytes]) -> Pixels:
        pixels: Pixels = decode(tf.constant(list(files))).numpy()
        return pixels

    return decoded


in_graph = decoder(SIZE)


def brightest_channel(pixels: Pixels) -> Any:
    """A model with a class for each channel."""
    return pixels.astype(np.float32).mean(axis=(1, 2))


def exif(orientation: int, order: str = "<") -> bytes:
    """A description, to be passed over, and the orientation."""
    block = Image.Exif()
    block.endian = order
    block[270] = "upright, they say"
    block[274] = orientation
    return block.tobytes()


def reference(data: bytes) -> Pixels:
    return read(data, SIZE)


def worst(one: Pixels, other: Pixels) -> int:
    return int(np.abs(one.astype(int) - other).max())


# The decoder in the graph


@given(
    model=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    image=st.tuples(st.integers(1, 65_535), st.integers(1, 65_535)),
    resize=st.sampled_from(RESIZES),
)
@settings(derandomize=True, deadline=None, max_examples=50)
def test_tensorflow_places_images_as_python_does(
    model: tuple[int, int], image: tuple[int, int], resize: Resize
) -> None:
    size = image_input(*model).model_copy(update={"resize": resize})
    placed = size.place(*(tf.constant(side, tf.int64) for side in image))
    assert placed == size.place(*image)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_is_turned_upright(orientation: int, order: str) -> None:
    data = encode(PHOTOGRAPH, "JPEG", exif=exif(orientation, order))
    assert worst(in_graph([data])[0], reference(data)) <= 1


def with_segments(data: bytes, *bodies: bytes) -> bytes:
    """A JPEG with more segments before its first."""
    segments = (body[:2] + (len(body)).to_bytes(2, "big") + body[2:] for body in bodies)
    return data[:2] + b"".join(segments) + data[2:]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(
            with_segments(
                encode(PHOTOGRAPH, "JPEG", exif=exif(6)),
                b"\xff\xfea comment of Exif\0\0",
                b"\xff\xe2" + bytes(40_000),
                b"\xff\xe1http://ns.adobe.com/xap/1.0/\0",
            ),
            id="behind others",
        ),
        pytest.param(
            replace_once(
                encode(PHOTOGRAPH, "JPEG", exif=exif(6)),
                b"\xff\xe1",
                b"\xff\xff\xff\xe1",
            ),
            id="behind fill bytes",
        ),
        pytest.param(
            with_segments(
                encode(PHOTOGRAPH, "JPEG", exif=exif(3)), b"\xff\xe1" + exif(6)
            ),
            id="the first of two",
        ),
        pytest.param(
            encode(PHOTOGRAPH, "JPEG", progressive=True, exif=exif(6)), id="progressive"
        ),
    ],
)
def test_the_exif_block_is_found(data: bytes) -> None:
    turned = Image.open(io.BytesIO(data)).transpose(Image.Transpose.ROTATE_270)
    expected = from_array(np.asarray(turned), SIZE)
    assert worst(in_graph([data])[0], expected) <= 1


@pytest.mark.parametrize(
    "block",
    [
        exif(9),
        exif(0),
        exif(6)[:30],
        exif(6)[:12],
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\xff\xff\xff\xff",
        b"Exif\0\0XX" + exif(6)[8:],
        exif(6).replace(b"\x12\x01\x03\0", b"\x12\x01\x02\0"),
        b"Exif??" + exif(6)[6:],
    ],
    ids=[
        "9",
        "0",
        "cut in the tag",
        "cut in the header",
        "empty",
        "points outside",
        "points outside, big-endian",
        "no byte order",
        "text",
        "other data",
    ],
)
def test_a_senseless_orientation_leaves_the_image_alone(block: bytes) -> None:
    strange = with_segments(encode(PHOTOGRAPH, "JPEG"), b"\xff\xe1" + block)
    one, other = in_graph([strange, encode(PHOTOGRAPH, "JPEG")])
    assert np.array_equal(one, other)


def test_no_damage_to_the_exif_block_fails() -> None:
    """The tables behind it are left whole, or the decoder itself would refuse."""
    random = np.random.default_rng(0)
    whole = exif(6)
    damaged = []
    for _ in range(300):
        block = bytearray(whole)
        for position in random.integers(6, len(whole), random.integers(1, 5)):
            block[position] = random.integers(256)
        damaged.append(bytes(block))
    small = encode(Image.new("RGB", (2, 2)), "JPEG")
    files = [with_segments(small, b"\xff\xe1" + block) for block in damaged]
    assert in_graph(files).shape == (300, *SIZE.shape)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "GIF", "BMP"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 500), (45, 64)])
def test_the_formats_that_tensorflow_reads_are_read(
    image_format: str, height: int, width: int
) -> None:
    data = encode(photograph(height, width), image_format)
    assert worst(in_graph([data])[0], reference(data)) <= 1


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_kind_of_png_is_read(mode: str) -> None:
    image = PHOTOGRAPH.convert("L") if mode == "I;16" else PHOTOGRAPH
    data = encode(image.convert(mode), "PNG")
    assert worst(in_graph([data])[0], reference(data)) <= 1


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_png_of_few_colours_is_opaque(bits: int) -> None:
    """To such a one TensorFlow adds an alpha of 1, 3 or 15 instead of 255."""
    image = PHOTOGRAPH.quantize(2**bits)
    data = encode(image, "PNG", bits=bits)
    assert worst(in_graph([data])[0], reference(data)) <= 1


@pytest.mark.parametrize(
    ("mode", "transparency"),
    [("L", 90), ("RGB", (1, 2, 3)), ("P", 3), ("P", bytes(range(256)))],
    ids=["L", "RGB", "P", "P with alpha"],
)
def test_a_colour_of_a_png_marked_transparent_is_white(
    mode: str, transparency: Any
) -> None:
    image = PHOTOGRAPH.convert(mode)
    if mode == "RGB":
        image.paste((1, 2, 3), (10, 10, 30, 20))
    data = encode(image, "PNG", transparency=transparency)
    assert worst(in_graph([data])[0], reference(data)) <= 1


# The comparison


@pytest.mark.parametrize(
    ("resize", "colour_order"),
    [("stretch", "bgr"), ("crop", "rgb"), ("pad", "grey"), ("stretch", "grey")],
)
def test_the_graph_has_the_trainings_pixels_but_for_the_rounding(
    resize: Resize, colour_order: ColourOrder
) -> None:
    size = image_input(40, 60, colour_order).model_copy(update={"resize": resize})
    rows = compare(ORIGINALS, size, decoder(size), brightest_channel)
    assert {row.variant for row in rows} == set(VARIANTS)
    of_graph = [row for row in rows if row.path == "serving_bytes"]
    assert max(row.max_abs_difference for row in of_graph) <= 1
    assert max(row.mean_abs_difference for row in of_graph) < 0.25


@pytest.mark.parametrize("resize", RESIZES)
def test_the_gateway_has_the_trainings_pixels_nearly(resize: Resize) -> None:
    """Large files are shrunk while they are decoded; the others are not."""
    size = image_input(150, 140).model_copy(update={"resize": resize})
    rows = compare(ORIGINALS, size, decoder(size), brightest_channel)
    for row in rows:
        if row.path == "gateway":
            large = row.variant == "large photograph"
            turned = row.variant == "exif rotation"
            assert row.mean_abs_difference < (0.5 if large else 0.2 * turned or 1e-9)
            assert row.max_abs_difference <= (20 if large else int(turned))


def pillow_decoder(
    change: Callable[[Image.Image], Image.Image] = ImageOps.exif_transpose,
    *,
    background: str = "white",
    resampling: Image.Resampling = Image.Resampling.BILINEAR,
    channels: slice = slice(None),
) -> Callable[[Sequence[bytes]], Pixels]:
    """A decoder that may do one step in another way than the training."""

    def decode_one(data: bytes) -> Pixels:
        image = change(Image.open(io.BytesIO(data)))
        if image.mode == "RGBA":
            canvas = Image.new("RGB", image.size, background)
            canvas.paste(image, mask=image)
            image = canvas
        resized = image.convert("RGB").resize((SIZE.width, SIZE.height), resampling)
        return np.asarray(resized)[:, :, channels]

    return lambda files: np.stack([decode_one(data) for data in files])


def found_out(decode: Callable[[Sequence[bytes]], Pixels]) -> set[str]:
    """The kinds of files in which a decoder's pixels are others, not just rounded."""
    rows = compare(ORIGINALS, SIZE, decode, brightest_channel)
    return {
        row.variant
        for row in rows
        if row.path == "serving_bytes" and row.mean_abs_difference > 0.5
    }


def test_a_decoder_that_does_as_the_training_does_is_not_accused() -> None:
    assert found_out(pillow_decoder()) == set()


def test_a_decoder_that_ignores_exif_is_found_out() -> None:
    assert found_out(pillow_decoder(lambda image: image)) == {"exif rotation"}


def test_a_decoder_that_ignores_transparency_is_found_out() -> None:
    assert found_out(pillow_decoder(background="black")) == {"png with alpha"}


def test_a_decoder_that_does_not_antialias_is_found_out() -> None:
    nearest = pillow_decoder(resampling=Image.Resampling.NEAREST)
    assert found_out(nearest) == set(VARIANTS)


def test_a_decoder_that_swaps_colours_is_found_out() -> None:
    swapped = pillow_decoder(channels=slice(None, None, -1))
    assert found_out(swapped) == set(VARIANTS) - {"grey"}


def test_a_decoder_that_inverts_cmyk_is_found_out() -> None:
    def inverted(image: Image.Image) -> Image.Image:
        upright = ImageOps.exif_transpose(image)
        if image.mode != "CMYK":
            return upright
        return Image.eval(upright, lambda ink: 255 - ink)

    assert found_out(pillow_decoder(inverted)) == {"cmyk"}


def test_changed_predictions_are_counted() -> None:
    red = np.full((40, 60, 3), (200, 60, 20), np.uint8)
    swapped = pillow_decoder(channels=slice(None, None, -1))
    rows = compare([red, red], SIZE, swapped, brightest_channel)
    changed = {(row.path, row.variant): row.changed_predictions for row in rows}
    assert changed["serving_bytes", "png"] == 2
    assert changed["serving_bytes", "exif rotation"] == 7
    assert changed["serving_bytes", "grey"] == 0
    assert not any(changed["gateway", variant] for variant in VARIANTS)
    with pytest.raises(PreprocessingMismatch, match="serving_bytes"):
        check(rows, max_changed_percent=2)


# The sample files


@cache
def samples() -> dict[str, list[bytes]]:
    return sample_files(ORIGINALS)


def opened(variant: str) -> list[Image.Image]:
    return [Image.open(io.BytesIO(data)) for data in samples()[variant]]


def test_the_samples_are_what_their_names_say() -> None:
    assert all(image.width * image.height > 3e6 for image in opened("large photograph"))
    assert all(image.width % 2 and image.height % 2 for image in opened("odd size"))
    assert all(image.mode == "L" for image in opened("grey"))
    assert all(image.mode == "CMYK" for image in opened("cmyk"))
    assert all("progression" in image.info for image in opened("progressive"))
    assert all(image.format == "PNG" for image in opened("png"))
    for image in opened("png with alpha"):
        assert image.getchannel("A").getextrema() == (0, 255)


def test_every_orientation_is_among_the_samples_and_stored_as_it_says() -> None:
    images = opened("exif rotation")
    assert {image.getexif()[274] for image in images} == set(range(2, 9))
    for index, image in enumerate(images):
        expected = to_image(ORIGINALS[index % 2])
        upright = ImageOps.exif_transpose(image)
        assert upright.size == expected.size
        assert worst(np.asarray(upright), np.asarray(expected)) < 80


def test_a_huge_original_makes_no_huge_samples() -> None:
    files = sample_files([np.zeros((2000, 3000, 1), np.uint8)])
    sides = {
        name: Image.open(io.BytesIO(data)).size for name, (data, *_) in files.items()
    }
    assert sides.pop("large photograph") == (2449, 1633)
    assert all(width * height < 1e6 for width, height in sides.values())


def test_the_narrowest_original_fits_into_a_jpeg() -> None:
    rows = compare(
        [np.zeros((1, 2000, 1), np.uint8)], SIZE, pillow_decoder(), brightest_channel
    )
    assert len(rows) == 2 * len(VARIANTS)


def test_there_are_photographs_without_a_data_set() -> None:
    pictures = photographs()
    assert len(pictures) == 8
    assert all(picture.std() > 20 for picture in pictures)
    assert len({picture.shape for picture in pictures}) >= 4


# The threshold and the table


def row(path: Any, variant: str, *, changed: int) -> Preprocessing:
    return Preprocessing(
        path=path,
        variant=variant,
        samples=50,
        mean_abs_difference=0.25,
        max_abs_difference=7,
        changed_predictions=changed,
    )


ROWS = (
    row("gateway", "png", changed=1),
    row("serving_bytes", "png", changed=0),
    row("gateway", "cmyk", changed=4),
    row("serving_bytes", "cmyk", changed=0),
)


def test_as_many_changed_predictions_as_allowed_pass() -> None:
    check(ROWS, max_changed_percent=5)


def test_predictions_that_a_rounding_changes_were_ties() -> None:
    rounded = [r.model_copy(update={"max_abs_difference": 1}) for r in ROWS]
    check(rounded, max_changed_percent=0)
    with pytest.raises(PreprocessingMismatch):
        check([*rounded[:3], ROWS[2]], max_changed_percent=0)


def test_more_changed_predictions_than_allowed_name_the_path_and_the_worst_files() -> (
    None
):
    with pytest.raises(PreprocessingMismatch) as caught:
        check(ROWS, max_changed_percent=4.9)
    assert str(caught.value) == (
        "images read by the gateway change 5 of 100 predictions (5.0%, and "
        "--max-changed-predictions allows 4.9%); the most with 'cmyk': 4 of 50, where "
        "pixels (0 to 255) differ by 0.25 in the mean and by 7 at most"
    )


def test_the_table_has_a_row_for_each_kind_of_file() -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table(ROWS))
    lines = [line.split("│")[1:-1] for line in console.export_text().splitlines()]
    cells = [[cell.strip() for cell in line] for line in lines if line]
    assert cells == [
        ["png", "0.25", "7", "1 of 50", "0.25", "7", "0 of 50"],
        ["cmyk", "0.25", "7", "4 of 50", "0.25", "7", "0 of 50"],
    ]
