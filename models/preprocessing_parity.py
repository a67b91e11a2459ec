"""How far the serving side's ways of reading an image file are from the training's.

Sample files of many kinds are read as the training does, by the gateway, and by the
graph of the signature `serving_bytes`; then the pixels are compared, and what the model
makes of them.
"""

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final, Literal

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image
from rich.table import Table

from models.card import ImageInput, Preprocessing
from models.preprocessing import Pixels, read, read_upright, to_image
from service.imaging import decode

Way = Literal["gateway", "serving_bytes"]
Classes = npt.NDArray[np.int64]

LARGE_PIXELS: Final = 4_000_000
# Larger originals would make the other kinds of files large as well.
USUAL_PIXELS: Final = 500_000
JPEG_QUALITY: Final = 90
# Pixels no further apart were rounded differently: what changes then was a tie.
ROUNDING: Final = 1
MAX_SIDE: Final = 65_500  # of a JPEG

# Left, upper, right and lower edge of eight photographs in one of 512x600 pixels.
CROPS: Final = (
    (0, 0, 512, 600),
    (0, 0, 256, 300),
    (256, 0, 512, 300),
    (0, 300, 256, 600),
    (256, 300, 512, 600),
    (100, 20, 400, 320),
    (0, 150, 512, 450),
    (150, 0, 350, 600),
)


class PreprocessingMismatch(Exception):
    """Serving would read images so differently that predictions change."""


def photographs() -> tuple[Pixels, ...]:
    """Photographs `uint8[h, w, 3]`, red first, for models that come without data.

    Parts of the portrait of Grace Hopper that ships with matplotlib, in several sizes.
    """
    file = Path(mpl.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    whole = read_upright(file, "rgb")
    return tuple(whole[upper:lower, left:right] for left, upper, right, lower in CROPS)


def compare(
    originals: Sequence[Pixels],
    image_input: ImageInput,
    decode_in_graph: Callable[[Sequence[bytes]], Pixels],
    predict: Callable[[Pixels], npt.NDArray[Any]],
) -> tuple[Preprocessing, ...]:
    """Make files of every kind, read them in every way, and compare.

    Args:
        originals: Images `uint8[h, w, C]`, upright: grey, or red, green and blue.
        image_input: The size and the colours that the model expects.
        decode_in_graph: From files to `uint8[N, H, W, C]`, as `serving_bytes` does it.
        predict: From `uint8[N, H, W, C]` to a number for each class, `[N, classes]`.

    Returns:
        For each kind of file what differs with the gateway and with `serving_bytes`.
    """

    def decode_in_gateway(files: Sequence[bytes]) -> Pixels:
        decoded = (decode(f, image_input, max_pixels=2 * LARGE_PIXELS) for f in files)
        return np.stack(list(decoded))

    def classes(pixels: Pixels) -> Classes:
        best: Classes = predict(pixels).argmax(axis=-1)
        return best

    paths: Mapping[Way, Callable[[Sequence[bytes]], Pixels]] = {
        "gateway": decode_in_gateway,
        "serving_bytes": decode_in_graph,
    }
    rows = []
    for variant, files in sample_files(originals).items():
        expected = np.stack([read(file, image_input) for file in files])
        expected_classes = classes(expected)
        for path, decode_files in paths.items():
            pixels = decode_files(files)
            difference = np.abs(pixels.astype(np.int16) - expected)
            # Equal pixels are predicted equally, and a large model takes its time.
            changed = difference.any() and (classes(pixels) != expected_classes).sum()
            rows.append(
                Preprocessing(
                    path=path,
                    variant=variant,
                    samples=len(files),
                    mean_abs_difference=float(difference.mean()),
                    max_abs_difference=float(difference.max()),
                    changed_predictions=int(changed),
                )
            )
    return tuple(rows)


def check(rows: Sequence[Preprocessing], *, max_changed_percent: float) -> None:
    """Refuse a difference that changes too many predictions.

    Args:
        rows: What `compare` returns.
        max_changed_percent: How many predictions in a hundred may change on a path,
            over all kinds of files; those with pixels at most 1 apart do not count.

    Raises:
        PreprocessingMismatch: More of them do.
    """
    for path in dict.fromkeys(row.path for row in rows):
        of_path = [row for row in rows if row.path == path]
        samples = sum(row.samples for row in of_path)
        unlike = [row for row in of_path if row.max_abs_difference > ROUNDING]
        changed = sum(row.changed_predictions for row in unlike)
        if 100 * changed <= max_changed_percent * samples:
            continue
        worst = max(unlike, key=lambda row: row.changed_predictions / row.samples)
        raise PreprocessingMismatch(
            f"images read by {PATHS[path]} change {changed} of {samples} predictions "
            f"({changed / samples:.1%}, and --max-changed-predictions allows "
            f"{max_changed_percent:g}%); the "
            f"most with {worst.variant!r}: {worst.changed_predictions} of "
            f"{worst.samples}, where pixels (0 to 255) differ by "
            f"{worst.mean_abs_difference:.2f} in the mean and by "
            f"{worst.max_abs_difference:.0f} at most"
        )


PATHS: Final[Mapping[Way, str]] = {
    "gateway": "the gateway",
    "serving_bytes": "the signature serving_bytes",
}


def table(rows: Sequence[Preprocessing]) -> Table:
    """What differs, a row for each kind of file."""
    table = Table(title="preprocessing: difference from the training's pixels (0-255)")
    table.add_column("image files")
    paths = list(dict.fromkeys(row.path for row in rows))
    for path in paths:
        table.add_column(f"{path}\nmean", justify="right")
        table.add_column("\nmax", justify="right")
        table.add_column("changed\npredictions", justify="right")
    for variant in dict.fromkeys(row.variant for row in rows):
        cells = [
            cell
            for path in paths
            for row in rows
            if (row.path, row.variant) == (path, variant)
            for cell in (
                f"{row.mean_abs_difference:.2f}",
                f"{row.max_abs_difference:.0f}",
                f"{row.changed_predictions} of {row.samples}",
            )
        ]
        table.add_row(variant, *cells)
    return table


def sample_files(originals: Sequence[Pixels]) -> dict[str, list[bytes]]:
    """Files of every kind that clients send, one or more of each original."""
    images = [to_image(original) for original in originals]
    usual = [_shrunk(image) for image in images]
    turned = islice(cycle(usual), max(len(usual), len(STORED_TURNS)))
    return {
        "png": [_encode(image, "PNG") for image in usual],
        "odd size": [_encode(_odd(image)) for image in usual],
        "progressive": [_encode(image, progressive=True) for image in usual],
        "large photograph": [_encode(_scaled(image, LARGE_PIXELS)) for image in images],
        "exif rotation": [_turned(image, index) for index, image in enumerate(turned)],
        "grey": [_encode(image.convert("L")) for image in usual],
        "cmyk": [_encode(image.convert("RGB").convert("CMYK")) for image in usual],
        "png with alpha": [_encode(_see_through(image), "PNG") for image in usual],
    }


def _encode(image: Image.Image, image_format: str = "JPEG", **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, image_format, quality=JPEG_QUALITY, **options)
    return file.getvalue()


def _scaled(image: Image.Image, pixels: int) -> Image.Image:
    factor = (pixels / (image.width * image.height)) ** 0.5
    width, height = (min(MAX_SIDE, max(1, round(factor * side))) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _shrunk(image: Image.Image) -> Image.Image:
    if image.width * image.height <= USUAL_PIXELS and max(image.size) <= MAX_SIDE:
        return image
    return _scaled(image, USUAL_PIXELS)


def _odd(image: Image.Image) -> Image.Image:
    """Odd sides, which are no multiple of the blocks that a JPEG consists of."""
    width, height = image.size

    def odd(side: int) -> int:
        return min(side, MAX_SIDE - 2) | 1

    return image.resize((odd(width * 5 // 4), odd(height * 3 // 2)))


# How a camera held in each way stores what a person should see.
STORED_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def _turned(image: Image.Image, index: int) -> bytes:
    """A photograph of a turned camera, that says so; each turn in its turn."""
    turns = list(STORED_TURNS.items())
    orientation, turn = turns[index % len(turns)]
    exif = Image.Exif()
    exif.endian = "<>"[index % 2]
    exif[ExifTags.Base.Orientation] = orientation
    return _encode(image.transpose(turn), exif=exif.tobytes())


def _see_through(image: Image.Image) -> Image.Image:
    """Opaque at the lower edge, and ever less so above."""
    veiled = image.convert("RGBA")
    veiled.putalpha(Image.linear_gradient("L").resize(image.size))
    return veiled
