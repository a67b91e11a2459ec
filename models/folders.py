"""A folder of pictures as a data set: one sub-folder a label."""

import os
import tempfile
import unicodedata
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from models.card import ImageInput
from models.datasets import SAMPLES, Dataset, Images, Labels, Split
from models.preprocessing import UnreadableImage, read, read_upright, to_image

MIN_LABELS: Final = 2
# One each to train on, to steer by and to measure with.
MIN_IMAGES_PER_LABEL: Final = 3
# Files to look at for whether a data set has colours.
COLOUR_SAMPLES: Final = 64
BATCH: Final = 256
MAX_ORIGINAL_PIXELS: Final = 4_000_000
NAMED_FILES: Final = 5
# What file managers leave behind.
CLUTTER: Final = frozenset({"Thumbs.db", "desktop.ini"})
# Control characters, and bytes that are no UTF-8.
UNWRITABLE: Final = frozenset({"Cc", "Cs"})
GREY_MODES: Final = frozenset({"1", "L", "LA", "La", "I;16", "I;16B"})


class UnusableFolder(ValueError):
    """A directory is no data set."""


@dataclass(frozen=True, slots=True)
class _Sample:
    path: Path
    label: int


def folder(
    directory: Path,
    image_input: ImageInput,
    *,
    validation_share: float,
    seed: int,
    console: Console | None = None,
) -> Dataset:
    """Read and split a folder of pictures, with a progress bar.

    Args:
        directory: Holds one sub-folder for each label, named as the label; pictures
            may lie in folders below that. Hidden files do not count.
        image_input: What the pictures are made into.
        validation_share: The share of each label's pictures that steers training; as
            many again are held out.
        seed: Of the split, which depends on nothing but it and the readable files.
        console: Where the progress bar goes.

    Raises:
        UnusableFolder: Fewer than two labels, a label with too few pictures, or no
            room for them.
    """
    labels, samples = _find(directory)
    images, skipped = _read(samples, directory, image_input, console)
    classes = np.array([sample.label for sample in samples], np.int64)
    lines = [f"{path.relative_to(directory)}: {why}" for path, why in skipped.items()]
    readable = np.array([sample.path not in skipped for sample in samples], np.bool_)
    for index, label in enumerate(labels):
        count = int((readable & (classes == index)).sum())
        if count < MIN_IMAGES_PER_LABEL:
            why = f"; skipped {'; '.join(lines[:NAMED_FILES])}" if lines else ""
            raise UnusableFolder(
                f"label {label!r} in {directory} has {count} pictures that can be "
                f"read; expected at least {MIN_IMAGES_PER_LABEL}: to train on, to "
                f"steer by and to measure with{why}"
            )
    parts = _split(classes, readable, share=validation_share, seed=seed)
    train, validation, held_out = (
        Split(images=_part(images, rows), classes=classes[rows]) for rows in parts
    )
    return Dataset(
        name=directory.resolve().name,
        kind="photographs",
        labels=labels,
        train=train,
        validation=validation,
        held_out=held_out,
        originals=_originals([samples[row].path for row in parts[-1]], image_input),
        skipped=tuple(lines),
    )


def channels_of(directory: Path) -> Literal[1, 3]:
    """Whether a folder's pictures are grey (1) or in colour (3)."""
    _, samples = _find(directory)
    step = max(1, len(samples) // COLOUR_SAMPLES)
    return 3 if any(_is_coloured(sample.path) for sample in samples[::step]) else 1


def _find(directory: Path) -> tuple[tuple[str, ...], list[_Sample]]:
    """The labels of a folder, and its files in the order of their names."""
    folders = sorted(
        entry
        for entry in directory.iterdir()
        if entry.is_dir() and not entry.name.startswith(".")
    )
    if len(folders) < MIN_LABELS:
        raise UnusableFolder(
            f"{directory} holds {len(folders)} sub-folders; expected one for each "
            "label, and at least two"
        )
    for below in folders:
        if {unicodedata.category(c) for c in below.name} & UNWRITABLE:
            raise UnusableFolder(
                f"the folder {below.name!r} cannot be a label: its name is no text; "
                "rename it"
            )
    samples = [
        _Sample(path, label)
        for label, below in enumerate(folders)
        for path in sorted(below.rglob("*"))
        if path.is_file() and not _is_clutter(path.relative_to(below))
    ]
    return tuple(below.name for below in folders), samples


def _is_clutter(path: Path) -> bool:
    return path.name in CLUTTER or any(part.startswith(".") for part in path.parts)


def _is_coloured(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return image.mode not in GREY_MODES
    except Exception:  # over damaged bytes, Pillow raises nearly everything
        return False


def _read(
    samples: Sequence[_Sample],
    directory: Path,
    image_input: ImageInput,
    console: Console | None,
) -> tuple[Images, dict[Path, str]]:
    """Read all files: a row of the array for each, and why some cannot be read."""
    images = _array((len(samples), *image_input.shape))
    skipped: dict[Path, str] = {}

    def read_one(row: int) -> None:
        try:
            images[row] = read(samples[row].path, image_input)
        except UnreadableImage as error:
            skipped[samples[row].path] = str(error)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in track(
            pool.map(read_one, range(len(samples))),
            description=f"reading {directory}",
            total=len(samples),
            console=console,
            transient=True,
        ):
            pass
    return images, dict(sorted(skipped.items()))


def _array(shape: tuple[int, ...]) -> Images:
    """An array on disk, for it may be larger than the memory."""
    size_bytes = int(np.prod(shape))
    with tempfile.TemporaryFile() as file:  # gone when the array is
        try:
            # A disk that is full would kill the process at the first write.
            os.posix_fallocate(file.fileno(), 0, max(1, size_bytes))
        except OSError as error:
            raise UnusableFolder(
                f"the pictures take {size_bytes / 1e6:,.0f} MB, for which there is no "
                f"room in {tempfile.gettempdir()} ({error.strerror}); name another "
                "directory in TMPDIR, or choose a smaller --size"
            ) from error
        return np.memmap(file, np.uint8, "r+", shape=shape)


def _split(
    classes: Labels, readable: np.ndarray, *, share: float, seed: int
) -> list[Labels]:
    """Rows to train on, to steer by and held out; the last two have a share each.

    All in a random order: the first few of each are of many labels.
    """
    random = np.random.default_rng(seed)
    parts: list[list[Labels]] = [[], [], []]
    for label in np.unique(classes):
        rows = random.permutation(np.flatnonzero(readable & (classes == label)))
        count = min(max(1, round(share * len(rows))), (len(rows) - 1) // 2)
        parts[0].append(rows[2 * count :])
        parts[1].append(rows[:count])
        parts[2].append(rows[count : 2 * count])
    return [random.permutation(np.concatenate(rows)) for rows in parts]


def _part(images: Images, rows: Labels) -> Images:
    """Some rows of an array, on disk as well."""
    part = _array((len(rows), *images.shape[1:]))
    for batch in _batches(len(rows)):
        part[batch] = images[rows[batch]]
    return part


def _batches(count: int) -> Iterator[slice]:
    return (slice(start, start + BATCH) for start in range(0, count, BATCH))


def _originals(paths: Sequence[Path], image_input: ImageInput) -> tuple[Images, ...]:
    """The first files in their own size, unless that is huge."""
    originals = []
    for path in paths[:SAMPLES]:
        with suppress(UnreadableImage):  # it was readable, but disks may fail
            pixels = read_upright(path, image_input.colour_order)
            originals.append(_shrunk(pixels))
    return tuple(originals)


def _shrunk(pixels: Images) -> Images:
    height, width, channels = pixels.shape
    factor = (MAX_ORIGINAL_PIXELS / (height * width)) ** 0.5
    if factor >= 1:
        return pixels
    size = (max(1, int(width * factor)), max(1, int(height * factor)))
    small = to_image(pixels).resize(size, Image.Resampling.BOX)
    return np.asarray(small).reshape(size[1], size[0], channels)
