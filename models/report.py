"""What the build step prints: tables of what went in and what came out."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from rich.markup import escape
from rich.table import Table

from models.card import Accuracy, ImageInput, ModelCard
from models.datasets import Dataset
from models.tasks import Scores

# Longer tables are cut: to the labels that deserve a look.
MAX_LABEL_ROWS: Final = 30
MAX_SKIPPED_FILES: Final = 20


def balance(dataset: Dataset) -> Table:
    """How many pictures each label has, and what for."""
    table = Table(title=escape(f"{dataset.name}: {len(dataset.labels)} labels"))
    table.add_column("label")
    parts = {
        "train": dataset.train,
        "validation": dataset.validation,
        "held out": dataset.held_out,
    }
    for heading in (*parts, "share"):
        table.add_column(heading, justify="right")
    counts = [
        [int((part.classes == index).sum()) for part in parts.values()]
        for index in range(len(dataset.labels))
    ]
    total = sum(map(sum, counts))
    order = sorted(range(len(counts)), key=lambda index: sum(counts[index]))
    shown = set(order if len(order) <= MAX_LABEL_ROWS else _ends(order))
    for index, (label, of_label) in enumerate(zip(dataset.labels, counts, strict=True)):
        if index in shown:
            share = f"{sum(of_label) / total:.1%}"
            table.add_row(escape(label), *_numbers(of_label), share)
    if len(shown) < len(counts):
        table.caption = f"the rarest and the most frequent of {len(counts)} labels"
    table.add_section()
    table.add_row("all", *_numbers(map(len, parts.values())), "100.0%")
    return table


def skipped(dataset: Dataset) -> list[str]:
    """A line for each file that could not be read."""
    lines = [f"skipped {line}" for line in dataset.skipped[:MAX_SKIPPED_FILES]]
    if len(dataset.skipped) > MAX_SKIPPED_FILES:
        lines.append(f"skipped {len(dataset.skipped) - MAX_SKIPPED_FILES} more files")
    return lines


def accuracy_by_label(accuracies: Sequence[Accuracy]) -> Table:
    """Each label's accuracy on each of the held-out sets that tell it."""
    accuracies = [accuracy for accuracy in accuracies if accuracy.labels]
    table = Table(title="accuracy by label")
    table.add_column("label")
    for accuracy in accuracies:
        table.add_column(escape(accuracy.data), justify="right")
    worst_first = sorted(
        accuracies[0].labels, key=lambda label: min(_of(label, accuracies))
    )
    shown = set(worst_first[:MAX_LABEL_ROWS])
    for label in accuracies[0].labels:
        if label in shown:
            shares = (f"{share:.1%}" for share in _of(label, accuracies))
            table.add_row(escape(label), *shares)
    if len(worst_first) > MAX_LABEL_ROWS:
        table.caption = f"the {MAX_LABEL_ROWS} worst of {len(worst_first)} labels"
    return table


def warning(scores: Scores, *, trained: bool) -> str | None:
    """What to do about a model that names labels no better than a guess, if it is one.

    Args:
        scores: On the held-out images.
        trained: Here, by this build; else the model was imported.
    """
    if scores.named_rightly > scores.most_frequent_label:
        return None
    advice = (
        "give it more pictures of each label, more --epochs or another --learning-rate"
        if trained
        else "check --preprocess, and the order of the labels in --labels"
    )
    return (
        f"warning: the model gets {scores.named_rightly:.1%} of the held-out images "
        "right, and always naming the most frequent label would get "
        f"{scores.most_frequent_label:.1%}; {advice}"
    )


def built(card: ModelCard, path: Path, *, seconds: float) -> Table:
    """What a build made, and how well."""
    table = Table(title=f"{card.name} version {card.version}", show_header=False)
    for row in _facts(card, path):
        table.add_row(*map(escape, row))
    table.add_row("build time", f"{seconds:.0f} s")
    return table


def _facts(card: ModelCard, path: Path) -> Iterator[tuple[str, str]]:
    yield "architecture", f"{card.architecture}, {card.parameters or 0:,} parameters"
    if card.image_input is not None:
        yield "input", describe_input(card.image_input)
    yield "size", f"{_size_bytes(path) / 1e6:.1f} MB, {card.precision}"
    for accuracy in card.accuracy:
        share = f"{accuracy.value:.1%} of {accuracy.samples:,}"
        yield f"accuracy, {accuracy.data}", share
    if card.parity is not None:
        yield (
            "largest difference from the original",
            f"{card.parity.max_abs_difference:.1e} over {card.parity.samples} images",
        )


def describe_input(image_input: ImageInput) -> str:
    """An image input in a few words."""
    size = f"{image_input.height}x{image_input.width}"
    return f"{size}, {image_input.colour_order}, {image_input.resize}"


def _of(label: str, accuracies: Sequence[Accuracy]) -> list[float]:
    return [accuracy.labels.get(label, 0.0) for accuracy in accuracies]


def _numbers(counts: Iterator[int] | Sequence[int]) -> Iterator[str]:
    return (f"{count:,}" for count in counts)


def _ends(order: Sequence[int]) -> list[int]:
    half = MAX_LABEL_ROWS // 2
    return [*order[:half], *order[-half:]]


def _size_bytes(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
