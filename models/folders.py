"""A folder of pictures as a data set: one sub-folder a label."""

import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final, Literal

import numpy as np
from PIL import Image
from rich.progress import track

from models.card import ImageInput
from models.datasets import SAMPLES, Dataset, Images, Split
from models.preprocessing import UnreadableImage, read, read_upright

MIN_LABELS: Final = 2
# One each to train on, to steer by and to measure with.
MIN_IMAGES_PER_LABEL: Final = 3
# Files to look at for whether a data set has colours.
COLOUR_SAMPLES: Final = 64
READ_AHEAD: Final = 256
# What file managers leave behind.
CLUTTER: Final = frozenset({"Thumbs.db", "desktop.ini"})


class UnusableFolder(ValueError):
    """A directory is no data set."""


@dataclass(frozen=True, slots=True)
class _Sample:
    path: Path
    label: int


def folder(
    directory: Path, image_input: ImageInput, *, validation_share: float, seed: int
) -> Dataset:
    """Read and split a folder of pictures, with a progress bar.

    Args:
        directory: Holds one sub-folder for each label, named as the label; pictures
            may lie in folders below that. Hidden files do not count.
        image_input: What the pictures are made into.
        validation_share: The share of each label's pictures that steers training; as
            many again are held out.
        seed: Of the split, which depends on nothing but it and the files' names.

    Raises:
        UnusableFolder: Fewer than two labels, or a label with too few pictures.
    """
    labels, samples = _find(directory)
    counts = Counter(sample.label for sample in samples)
    for index, label in enumerate(labels):
        if counts[index] < MIN_IMAGES_PER_LABEL:
            raise UnusableFolder(
                f"label {label!r} in {directory} has {counts[index]} files; expected "
                f"at least {MIN_IMAGES_PER_LABEL}: to train on, to steer by and to "
                "measure with"
            )
    parts = _split(samples, len(labels), share=validation_share, seed=seed)
    skipped: list[str] = []
    train, validation, held_out = (
        _read(part, directory, image_input, skipped, title)
        for part, title in zip(
            parts,
            ("reading training", "reading validation", "reading held-out"),
            strict=True,
        )
    )
    for split in (train, validation, held_out):
        _check_each_label(split, labels, skipped)
    return Dataset(
        name=directory.resolve().name,
        kind="photographs",
        labels=labels,
        train=train,
        validation=validation,
        held_out=held_out,
        originals=_originals(parts[-1], image_input),
        skipped=tuple(skipped),
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
            return image.mode not in {"1", "L", "LA", "La", "I;16", "I;16B"}
    except OSError:
        return False


def _split(
    samples: Sequence[_Sample], labels: int, *, share: float, seed: int
) -> list[list[_Sample]]:
    """Train, validation, held out; of each label, the last two have a share each.

    All in a random order: the first few of each are of many labels.
    """
    random = np.random.default_rng(seed)
    parts: list[list[_Sample]] = [[], [], []]
    for label in range(labels):
        of_label = [sample for sample in samples if sample.label == label]
        order = [of_label[index] for index in random.permutation(len(of_label))]
        count = max(1, round(share * len(order)))
        for part, chosen in zip(
            parts,
            (order[2 * count :], order[:count], order[count : 2 * count]),
            strict=True,
        ):
            part.extend(chosen)
    return [[part[index] for index in random.permutation(len(part))] for part in parts]


def _read(
    samples: Sequence[_Sample],
    directory: Path,
    image_input: ImageInput,
    skipped: list[str],
    title: str,
) -> Split:
    """Read files into an array that may be larger than the memory.

    Adds those that cannot be read to `skipped`.
    """
    shape = (len(samples), *image_input.shape)
    with tempfile.TemporaryFile() as file:  # gone when the array is
        images: Images = np.memmap(file, np.uint8, "w+", shape=shape)
    classes = np.zeros(len(samples), np.int64)
    count = 0
    with ThreadPoolExecutor() as pool:

        def read_one(sample: _Sample) -> Images | UnreadableImage:
            try:
                pixels: Images = read(sample.path, image_input)
            except UnreadableImage as error:
                return error
            return pixels

        for batch in track(list(_batches(samples)), description=title, transient=True):
            for sample, pixels in zip(batch, pool.map(read_one, batch), strict=True):
                if isinstance(pixels, UnreadableImage):
                    skipped.append(f"{sample.path.relative_to(directory)}: {pixels}")
                else:
                    images[count], classes[count] = pixels, sample.label
                    count += 1
    return Split(images=images[:count], classes=classes[:count])


def _check_each_label(
    split: Split, labels: Sequence[str], skipped: Sequence[str]
) -> None:
    missing = set(range(len(labels))) - set(split.classes.tolist())
    if missing:
        raise UnusableFolder(
            f"too few pictures of {labels[min(missing)]!r} can be read; skipped "
            f"{'; '.join(skipped[:5])}"
        )


def _originals(
    samples: Sequence[_Sample], image_input: ImageInput
) -> tuple[Images, ...]:
    """The first readable files in their own size."""
    originals: list[Images] = []
    for sample in samples:
        with suppress(UnreadableImage):
            originals.append(read_upright(sample.path, image_input.colour_order))
        if len(originals) == SAMPLES:
            break
    return tuple(originals)


def _batches(samples: Iterable[_Sample]) -> Iterable[list[_Sample]]:
    """Lists of samples: reading further ahead would only fill the memory."""
    rest = iter(samples)
    while batch := list(islice(rest, READ_AHEAD)):
        yield batch
