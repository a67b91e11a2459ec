"""How a training went and what a network confuses, as charts.

Both are SVG documents that refer to nothing outside themselves. Their texts stay
texts, so that a reader's fonts can show what characters a label has.
"""

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from models.drawing import (
    BLUE,
    DARK_BLUE,
    DARK_ORANGE,
    FAINT_INK,
    FONTS,
    FRAME,
    INK,
    LIGHT_BLUE,
    LIGHT_ORANGE,
    LINE,
    ORANGE,
    PAPER,
    printable,
    shortened,
    standalone,
)

# It comes with Matplotlib and is wide, so what is measured with it has room in others.
_MEASURED_FONT: Final = "DejaVu Sans"
_STYLE: Final = {
    "axes.axisbelow": True,
    "axes.edgecolor": FRAME,
    "axes.grid": True,
    "axes.labelcolor": FAINT_INK,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.titlesize": 12,
    "font.family": _MEASURED_FONT,
    "font.size": 10,
    "grid.color": "#e4e8ec",
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "blockserve",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": LINE,
    "xtick.labelcolor": INK,
    "ytick.color": LINE,
    "ytick.labelcolor": INK,
}
_NO_METADATA: Final = dict.fromkeys(("Creator", "Date", "Format", "Type"))
_POINTS_PER_INCH: Final = 72

_MARKED_EPOCHS: Final = 40

_BLUES: Final = (LIGHT_BLUE, BLUE, DARK_BLUE)
_ORANGES: Final = (LIGHT_ORANGE, ORANGE, DARK_ORANGE)
_DARK: Final = 0.45  # from here on, ink on the scale is hard to read
_NUMBERED_LABELS: Final = 30
_NAMED_LABELS: Final = 40
_STEPS: Final = (1, 2, 5, 10, 20, 25, 50, 100, 200, 500)
_LABEL_CHARACTERS: Final = 28
_CELL_INCHES: Final = 0.4
_MIN_SIDE_INCHES: Final = 2.8
_HEAT_MAP_INCHES: Final = 8.0
_IMAGE_PIXELS: Final = 1000
# Widths of text, as shares of its size.
_DIGIT: Final = 0.64
_LETTER: Final = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """One epoch of a training; accuracies are shares.

    Attributes:
        number: The first is 1.
        loss: Over the training images as they were seen, averaged over the epoch.
        accuracy: Likewise.
        validation_loss: After the epoch.
        validation_accuracy: After the epoch.
        learning_rate: At the end of the epoch.
    """

    number: int
    loss: float
    accuracy: float
    validation_loss: float
    validation_accuracy: float
    learning_rate: float


def training_curve(epochs: Sequence[Epoch], best_epoch: int) -> str:
    """Draw accuracy, loss and learning rate by epoch: the text of an SVG document.

    Args:
        epochs: At least one; values that are not finite leave gaps.
        best_epoch: The number of the epoch after which the weights were kept.

    Raises:
        ValueError: There is no such epoch.
    """
    best = next((epoch for epoch in epochs if epoch.number == best_epoch), None)
    if best is None:
        raise ValueError(
            f"there is no epoch {best_epoch} among the {len(epochs)} given"
        )
    title = (
        f"Epoch {best_epoch} of {len(epochs)} was kept: validation accuracy "
        f"{best.validation_accuracy:.1%}, loss {best.validation_loss:.3g}"
    )
    with _matplotlib() as matplotlib:
        figure = matplotlib.figure.Figure((7.5, 7.5))
        accuracy, loss, rate = figure.subplots(
            3, sharex=True, height_ratios=(4, 4, 1.5), gridspec_kw={"hspace": 0.3}
        )
        _plot(accuracy, epochs, "accuracy", "training", ORANGE)
        _plot(accuracy, epochs, "validation_accuracy", "validation", BLUE)
        _plot(loss, epochs, "loss", "training", ORANGE)
        _plot(loss, epochs, "validation_loss", "validation", BLUE)
        _plot(rate, epochs, "learning_rate", "learning rate", FAINT_INK)
        for axes, name in (
            (accuracy, "accuracy"),
            (loss, "loss"),
            (rate, "learning rate"),
        ):
            axes.set_title(name)
            axes.spines[["top", "right"]].set_visible(False)
            axes.axvline(best_epoch, color=LINE, linestyle=":", zorder=1, label="kept")
        figure.suptitle(title, x=figure.subplotpars.left, y=0.95, ha="left")
        accuracy.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1))
        accuracy.set_ylim(top=1)
        accuracy.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3)
        loss.set_ylim(bottom=0)
        rate.set_xlim(epochs[0].number - 0.5, epochs[-1].number + 0.5)
        rate.xaxis.set_major_locator(
            matplotlib.ticker.MaxNLocator(integer=True, min_n_ticks=1)
        )
        rate.set_ylim(bottom=0)
        rate.set_xlabel("epoch")
        return _svg(figure, title)


def confusion_matrix(
    counts: npt.NDArray[np.integer[Any]], labels: Sequence[str]
) -> str:
    """Draw which labels are taken for which: the text of an SVG document.

    The colour of a cell tells its share of its row: blue where the label was found,
    orange where another one was. Up to 30 labels have numbers, too.

    Args:
        counts: `[labels, labels]`; row `i`, column `j` counts the images of label `i`
            that were taken for label `j`.
        labels: In the order of the rows.
    """
    size = len(labels)
    correct, total = int(np.trace(counts)), int(counts.sum())
    share = f", {correct / total:.1%}" if total else ""
    title = f"{correct:,} of {total:,} correct{share}"
    is_numbered = size <= _NUMBERED_LABELS
    numbered_inches = max(_MIN_SIDE_INCHES, size * _CELL_INCHES)
    inches = numbered_inches if is_numbered else _HEAT_MAP_INCHES
    with _matplotlib() as matplotlib:
        figure = matplotlib.figure.Figure((inches, inches))
        axes = figure.add_axes((0, 0, 1, 1))
        blue, orange = (
            matplotlib.colors.LinearSegmentedColormap.from_list("", colours)
            for colours in (_BLUES, _ORANGES)
        )
        strengths = _strengths(counts)
        is_correct = np.eye(size, dtype=bool)[..., None]
        colours = np.where(is_correct, blue(strengths), orange(strengths))
        colours[counts == 0] = matplotlib.colors.to_rgba(PAPER)
        _show(axes, colours)
        _name_rows_and_columns(axes, labels)
        if is_numbered:
            _write_numbers(axes, counts, strengths)
        _legend(figure, "correct", blue, left_inches=0)
        _legend(figure, "mistaken", orange, left_inches=1.7)
        figure.suptitle(title, x=0, y=1 + 0.95 / inches, ha="left", va="bottom")
        return _svg(figure, f"confusion matrix: {title}")


def _plot(
    axes: Any, epochs: Sequence[Epoch], name: str, label: str, colour: str
) -> None:
    values = [getattr(epoch, name) for epoch in epochs]
    axes.plot(
        [epoch.number for epoch in epochs],
        [value if math.isfinite(value) else math.nan for value in values],
        color=colour,
        label=label,
        marker="o" if len(epochs) <= _MARKED_EPOCHS else None,
        markersize=4,
        clip_on=False,
    )


def _strengths(counts: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float64]:
    """How far along its scale each cell's colour is; few errors are to be seen, too."""
    rows = counts.sum(axis=1, keepdims=True)
    strengths: npt.NDArray[np.float64] = np.sqrt(counts / np.maximum(rows, 1))
    return strengths


def _show(axes: Any, colours: npt.NDArray[np.float64]) -> None:
    """Show a matrix of colours as an image.

    Viewers blur what they enlarge, so its pixels are many for each cell.
    """
    size = len(colours)
    pixels = np.ones((math.ceil(_IMAGE_PIXELS / size),) * 2 + (1,))
    extent = (-0.5, size - 0.5, size - 0.5, -0.5)
    axes.imshow(np.kron(colours, pixels), extent=extent, interpolation="none")
    axes.grid(visible=False)


def _name_rows_and_columns(axes: Any, labels: Sequence[str]) -> None:
    """Write as many labels as there is room for."""
    step = next(step for step in _STEPS if len(labels) <= step * _NAMED_LABELS)
    places = range(0, len(labels), step)
    names = [shortened(printable(labels[place]), _LABEL_CHARACTERS) for place in places]
    points = _POINTS_PER_INCH * axes.figure.get_figwidth() / len(labels) * step
    font_points = axes.xaxis.get_ticklabels()[0].get_fontsize()
    is_wide = max(map(len, names)) * _LETTER * font_points > points
    upright = {"rotation": 90, "rotation_mode": "anchor", "ha": "right", "va": "center"}
    axes.set_xticks(places, names, **(upright if is_wide else {}))
    axes.set_yticks(places, names)
    axes.set_xlabel("taken for")
    axes.set_ylabel("label")


def _write_numbers(
    axes: Any,
    counts: npt.NDArray[np.integer[Any]],
    strengths: npt.NDArray[np.float64],
) -> None:
    """Write counts into the cells, and beside each row the share that is correct."""
    cell_points = _POINTS_PER_INCH * axes.figure.get_figwidth() / len(counts)
    digits = len(f"{counts.max():,}")
    font_points = min(10, cell_points * 0.9 / (digits * _DIGIT))
    for (row, column), count in np.ndenumerate(counts):
        if count or row == column:
            axes.text(
                column,
                row,
                f"{count:,}",
                color=PAPER if strengths[row, column] > _DARK else INK,
                fontsize=font_points,
                ha="center",
                va="center",
            )
    lines = np.arange(0.5, len(counts) - 1)
    axes.set_xticks(lines, minor=True)
    axes.set_yticks(lines, minor=True)
    axes.tick_params(which="minor", length=0)
    axes.grid(visible=True, which="minor")
    beside = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points"}
    for row, total in enumerate(counts.sum(axis=1)):
        share = f"{counts[row, row] / total:.1%}" if total else "—"
        axes.annotate(share, (1, row), (6, 0), color=FAINT_INK, va="center", **beside)
    axes.annotate("correct", (1, -0.5), (6, 4), color=FAINT_INK, va="bottom", **beside)


def _legend(figure: Any, name: str, scale: Any, *, left_inches: float) -> None:
    """A strip above the matrix that shows which shares of a row have which colours."""
    inches = figure.get_figwidth()
    place = (left_inches / inches, 1 + 0.55 / inches, 1.2 / inches, 0.12 / inches)
    strip = figure.add_axes(place)
    colours = scale(np.linspace(0, 1, 256))[None]
    strip.imshow(colours, aspect="auto", extent=(0, 1, 0, 1))
    strip.grid(visible=False)
    shares = (0.01, 0.1, 0.5, 1)
    strip.set_xticks(np.sqrt(shares), [f"{share:.0%}" for share in shares], fontsize=8)
    strip.set_yticks([])
    strip.set_title(name, fontsize=9, fontweight="normal", pad=3)


def _svg(figure: Any, title: str) -> str:
    text = StringIO()
    figure.savefig(
        text,
        format="svg",
        bbox_inches="tight",
        pad_inches=0.2,
        metadata=_NO_METADATA,
    )
    return standalone(text.getvalue().replace(f"'{_MEASURED_FONT}'", FONTS), title)


@contextmanager
def _matplotlib() -> Iterator[Any]:
    """Matplotlib with our style, whatever its user has configured.

    It is slow to import, and only the build extra installs it.
    """
    with _no_log_of("matplotlib"):  # it tells where it keeps its list of fonts
        import matplotlib.colors  # noqa: PLC0415
        import matplotlib.figure  # noqa: PLC0415
        import matplotlib.ticker  # noqa: PLC0415
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        # The reader's fonts count, not the one that measures.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield matplotlib


@contextmanager
def _no_log_of(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
