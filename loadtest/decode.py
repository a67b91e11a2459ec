"""How fast an image becomes the model's input, beside Pillow and OpenCV.

    python -m loadtest.decode [--output DIR] [--seconds S]

Encoded photographs are decoded and resized by the gateway's `service.imaging.decode`,
by Pillow (open, convert, resize) and by OpenCV (decode, resize with either of the
filters that people take), in one thread and in turn. Each time is the mean over the
photographs of their medians. A reader can buy speed with other pixels, so a table tells
how far each result lies from Pillow's.
"""

import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any, Final

import cv2
import cyclopts
import matplotlib.pyplot as plt
import numpy as np
import skimage.data
import sklearn.datasets
from numpy.typing import NDArray
from PIL import Image

from loadtest.harness.report import (
    MILLISECONDS,
    Budget,
    Options,
    Report,
    finish,
    new_table,
    progress,
    shown,
)
from models.card import ImageInput
from service.imaging import decode

Pixels = NDArray[np.uint8]
Reader = Callable[[bytes, ImageInput], Pixels]

BUDGET_SECONDS: Final = 20e-3
PLAIN: Final = "Pillow"
OURS: Final = "blockserve"
MAX_PIXELS: Final = 20_000_000
MIN_ROUNDS: Final = 3
SEED: Final = 0
# Standard deviation of an enlarged photograph's grain, of 255.
GRAIN: Final = 2.0
KILOBYTE: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A size of photographs, and the input of a model that gets them."""

    name: str
    width: int
    height: int
    image_input: ImageInput
    formats: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How one reader does with the photographs of one size and format.

    Attributes:
        seconds: Of one photograph.
        times_as_fast: As plain Pillow.
        mean_difference: From plain Pillow's samples, of 255.
        largest_difference: Likewise.
    """

    reader: str
    seconds: float
    times_as_fast: float
    mean_difference: float
    largest_difference: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Photographs of one size and format, and how all readers do with them.

    Attributes:
        file_bytes: The mean.
        model_input: Height, width and channels.
    """

    size: str
    image_format: str
    file_bytes: float
    model_input: tuple[int, int, int]
    readings: Sequence[Reading]

    @property
    def name(self) -> str:
        """As in `500×375 JPEG`."""
        return f"{self.size} {self.image_format}"


GREY_28: Final = ImageInput(
    tensor="images", height=28, width=28, channels=1, colour_order="grey"
)
COLOUR_224: Final = ImageInput(
    tensor="images", height=224, width=224, channels=3, colour_order="rgb"
)
SAVE_OPTIONS: Final[Mapping[str, Mapping[str, int]]] = {
    "JPEG": {"quality": 90},
    "PNG": {},
    "WebP": {"quality": 90},
    "BMP": {},
    "GIF": {},
    "TIFF": {},
}
FORMATS: Final = tuple(SAVE_OPTIONS)
TWELVE_MEGAPIXELS: Final = Size(
    name="4000×3000",
    width=4000,
    height=3000,
    image_input=COLOUR_224,
    formats=("JPEG", "PNG"),
)
SIZES: Final = (
    Size(name="28×28", width=28, height=28, image_input=GREY_28, formats=FORMATS),
    Size(
        name="500×375", width=500, height=375, image_input=COLOUR_224, formats=FORMATS
    ),
    Size(
        name="1024×768", width=1024, height=768, image_input=COLOUR_224, formats=FORMATS
    ),
    TWELVE_MEGAPIXELS,
)


def main(options: Options = Options()) -> None:  # noqa: B008, it is immutable
    """Measure, print a table, and write the report."""
    cases = _measure(options)
    budget = Budget(
        name=f"{TWELVE_MEGAPIXELS.name} JPEG to 224×224",
        measured=next(
            reading.seconds
            for case in cases
            if (case.size, case.image_format) == (TWELVE_MEGAPIXELS.name, "JPEG")
            for reading in case.readings
            if reading.reader == OURS
        ),
        limit=BUDGET_SECONDS,
        bound="at most",
        format="milliseconds",
    )
    report = Report(
        name="decode",
        settings={**asdict(options), "grain": GRAIN, "opencv": cv2.__version__},
        results=[asdict(case) for case in cases],
        budgets=[budget],
    )
    finish(
        report, plot(cases), [speed_table(cases), pixel_table(cases)], options.output
    )


def read_plainly(encoded: bytes, image_input: ImageInput) -> Pixels:
    """As Pillow's documentation has it."""
    grey = image_input.colour_order == "grey"
    image = Image.open(io.BytesIO(encoded)).convert("L" if grey else "RGB")
    size = (image_input.width, image_input.height)
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR))


def opencv_reader(interpolation: int) -> Reader:
    """As OpenCV's documentation has it, with one of its filters."""

    def read(encoded: bytes, image_input: ImageInput) -> Pixels:
        grey = image_input.colour_order == "grey"
        colours = cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR_RGB
        image: Any = cv2.imdecode(np.frombuffer(encoded, np.uint8), colours)
        size = (image_input.width, image_input.height)
        resized: Any = cv2.resize(image, size, interpolation=interpolation)
        return np.asarray(resized, np.uint8)

    return read


# The others are compared with the first.
READERS: Final[Mapping[str, Reader]] = {
    PLAIN: read_plainly,
    OURS: lambda encoded, image_input: decode(
        encoded, image_input, max_pixels=MAX_PIXELS
    ),
    "OpenCV, area": opencv_reader(cv2.INTER_AREA),
    "OpenCV, linear": opencv_reader(cv2.INTER_LINEAR),
}


def compare(
    files: Sequence[bytes],
    image_input: ImageInput,
    *,
    seconds: float,
    readers: Mapping[str, Reader] = READERS,
) -> list[Reading]:
    """Let readers read the same files in turn.

    Args:
        files: Encoded images.
        image_input: What they are to become.
        seconds: Time for all; each file is read three times by each at least.
        readers: By name; the others are compared with the first.
    """
    pixels = {
        name: np.stack([_samples(read(file, image_input)) for file in files])
        for name, read in readers.items()
    }
    spent = {
        name: fmean(median(times) for times in by_file)
        for name, by_file in _times(files, image_input, readers, seconds).items()
    }
    first = next(iter(readers))
    readings = []
    for name in readers:
        differences = np.abs(pixels[name] - pixels[first])
        readings.append(
            Reading(
                reader=name,
                seconds=spent[name],
                times_as_fast=spent[first] / spent[name],
                mean_difference=float(differences.mean()),
                largest_difference=int(differences.max()),
            )
        )
    return readings


def _samples(pixels: Pixels) -> NDArray[np.int16]:
    """Signed, to be subtracted, and flat, for OpenCV's grey has no channels."""
    return pixels.astype(np.int16).ravel()


def _times(
    files: Sequence[bytes],
    image_input: ImageInput,
    readers: Mapping[str, Reader],
    seconds: float,
) -> dict[str, list[list[float]]]:
    """Seconds by reader, file and round."""
    spent: dict[str, list[list[float]]] = {
        name: [[] for _ in files] for name in readers
    }
    # In a random order, for what a reader leaves in the caches serves the next one.
    random = np.random.default_rng(SEED)
    stop = time.perf_counter() + seconds
    rounds = 0
    while rounds < MIN_ROUNDS or time.perf_counter() < stop:
        for name in random.permutation(list(readers)):
            for number in random.permutation(len(files)):
                started = time.perf_counter()
                readers[name](files[number], image_input)
                spent[name][number].append(time.perf_counter() - started)
        rounds += 1
    return spent


def _measure(options: Options) -> list[Case]:
    cv2.setNumThreads(1)
    photographs = _photographs()
    cases = []
    with progress(sum(len(size.formats) for size in SIZES)) as steps:
        for size in SIZES:
            images = [_in_size(one, size) for one in photographs]
            for image_format in size.formats:
                steps.next(f"{size.name} {image_format}")
                files = [_encode(image, image_format) for image in images]
                cases.append(
                    Case(
                        size=size.name,
                        image_format=image_format,
                        file_bytes=fmean(map(len, files)),
                        model_input=size.image_input.shape,
                        readings=compare(
                            files, size.image_input, seconds=options.point_seconds
                        ),
                    )
                )
    return cases


def _photographs() -> list[Image.Image]:
    """A temple, a flower and a cup of coffee."""
    scenes = [*sklearn.datasets.load_sample_images().images, skimage.data.coffee()]
    return [Image.fromarray(pixels) for pixels in scenes]


def _in_size(photograph: Image.Image, size: Size) -> Image.Image:
    """A photograph in a size, in the colours of the model.

    One that is enlarged has no detail left in its pixels, and its file would be
    smaller, and read faster, than a camera's: it gets grain.
    """
    image = photograph.resize((size.width, size.height), Image.Resampling.LANCZOS)
    if size.image_input.colour_order == "grey":
        image = image.convert("L")
    if size.width <= photograph.width:
        return image
    samples = np.asarray(image, np.float32)
    random = np.random.default_rng(SEED)
    grain = random.standard_normal(samples.shape, np.float32) * GRAIN
    return Image.fromarray((samples + grain).clip(0, 255).astype(np.uint8))


def _encode(image: Image.Image, image_format: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **SAVE_OPTIONS[image_format])
    return buffer.getvalue()


def speed_table(cases: Sequence[Case]) -> Any:
    """Time of each reader, and how many times as fast as plain Pillow it is."""
    table = new_table(
        "decode and resize, and times as fast as Pillow", "image", "file", *READERS
    )
    for case in cases:
        plain, *others = case.readings
        table.add_row(
            case.name,
            f"{case.file_bytes / KILOBYTE:,.1f} kB",
            shown(plain.seconds, "milliseconds"),
            *(
                f"{shown(one.seconds, 'milliseconds')} {one.times_as_fast:5.2f}×"
                for one in others
            ),
        )
    return table


def pixel_table(cases: Sequence[Case]) -> Any:
    """How far each reader's samples lie from plain Pillow's."""
    _, *others = READERS
    table = new_table("difference from Pillow, of 255: mean, largest", "image", *others)
    for case in cases:
        table.add_row(
            case.name,
            *(
                f"{one.mean_difference:.2f} {one.largest_difference:4d}"
                for one in case.readings[1:]
            ),
        )
    return table


def plot(cases: Sequence[Case]) -> Any:
    """Time by image and reader, in logarithms."""
    figure, axes = plt.subplots(figsize=(9, 9), layout="constrained")
    height = 0.8 / len(READERS)
    for number, reader in enumerate(READERS):
        axes.barh(
            [place + number * height for place in range(len(cases))],
            [case.readings[number].seconds * MILLISECONDS for case in cases],
            height=height,
            label=reader,
            color="0.7" if reader == PLAIN else None,
        )
    limit = BUDGET_SECONDS * MILLISECONDS
    label = f"budget of the {TWELVE_MEGAPIXELS.name} JPEG, {limit:.0f} ms"
    axes.axvline(limit, color="C3", linestyle="--", label=label)
    middle = height * (len(READERS) - 1) / 2
    axes.set_yticks(
        [place + middle for place in range(len(cases))], [case.name for case in cases]
    )
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xscale("log")
    axes.set_xlabel("decode and resize, ms")
    axes.set_title("From a file to the model's input, one thread")
    axes.legend()
    return figure


if __name__ == "__main__":
    cyclopts.run(main)
