"""Charts of trainings and confusions: what they show, and that they stand alone."""

import base64
import math
import os
import re
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from models.charts import Epoch, confusion_matrix, training_curve

SVG = "{http://www.w3.org/2000/svg}"
HREF = "{http://www.w3.org/1999/xlink}href"
DIGITS = tuple("0123456789")


class Chart:
    """An SVG document taken apart."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.root = ET.fromstring(text)  # noqa: S314 (our own output)
        self.texts = [element.text or "" for element in self.root.iter(f"{SVG}text")]

    @property
    def title(self) -> str:
        return self.root.findtext(f"{SVG}title") or ""

    def pixels(self) -> np.ndarray:
        """The image that the matrix is."""
        address = self.root.find(f".//{SVG}image").get(HREF)
        data = base64.b64decode(address.removeprefix("data:image/png;base64,"))
        with Image.open(BytesIO(data)) as image:
            return np.asarray(image.convert("RGB")).astype(int)

    def cell(self, row: int, column: int, labels: int) -> np.ndarray:
        pixels = self.pixels()
        side = len(pixels) / labels
        return pixels[int((row + 0.5) * side), int((column + 0.5) * side)]


def epochs(count):
    return [
        Epoch(
            number=number,
            loss=2 / number,
            accuracy=1 - 0.5 / number,
            validation_loss=2.2 / number,
            validation_accuracy=1 - 0.6 / number,
            learning_rate=0.01 / number,
        )
        for number in range(1, count + 1)
    ]


def confusion(labels, each=100):
    """Nine in ten are correct, the others are taken for the label that follows."""
    counts = np.eye(labels, dtype=np.int64) * each * 9 // 10
    return counts + np.roll(np.eye(labels, dtype=np.int64), 1, axis=1) * (each // 10)


CHARTS = {
    "training": lambda: training_curve(epochs(12), best_epoch=10),
    "one epoch": lambda: training_curve(epochs(1), best_epoch=1),
    "numbers": lambda: confusion_matrix(confusion(10), DIGITS),
    "heat map": lambda: confusion_matrix(confusion(50), [f"n{i}" for i in range(50)]),
}


@pytest.fixture(scope="module", params=CHARTS.values(), ids=CHARTS)
def make(request):
    return request.param


def test_a_chart_refers_to_nothing_outside_itself(make):
    chart = Chart(make())
    without_namespaces = re.sub(r' xmlns(:\w+)?="[^"]*"', "", chart.text)
    assert "http" not in without_namespaces
    assert "<!DOCTYPE" not in chart.text
    references = [element.get(HREF) for element in chart.root.iter()]
    assert all(
        reference.startswith(("#", "data:image/png;base64,"))
        for reference in references
        if reference is not None
    )
    assert set(re.findall(r"url\((.)", chart.text)) <= {"#"}


def test_a_chart_is_the_same_every_time_and_leaves_no_trace(make):
    first = make()
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        before = dict(mpl.rcParams)
        assert make() == first
        assert dict(mpl.rcParams) == before


def test_a_chart_tells_what_it_shows_to_those_who_do_not_see_it(make):
    chart = Chart(make())
    assert chart.root.get("role") == "img"
    assert chart.root[0].tag == f"{SVG}title"
    assert chart.title in {
        "Epoch 10 of 12 was kept: validation accuracy 94.0%, loss 0.22",
        "Epoch 1 of 1 was kept: validation accuracy 40.0%, loss 2.2",
        "confusion matrix: 900 of 1,000 correct, 90.0%",
        "confusion matrix: 4,500 of 5,000 correct, 90.0%",
    }
    assert chart.title.removeprefix("confusion matrix: ") in chart.texts


def test_a_training_curve_names_what_it_shows():
    texts = Chart(CHARTS["training"]()).texts
    for name in ("accuracy", "loss", "learning rate", "epoch", "100%"):
        assert name in texts
    assert [text for text in texts if text in {"training", "validation", "kept"}] == [
        *("training", "validation", "kept")
    ]


def test_a_single_epoch_is_a_dot_above_its_number():
    chart = Chart(CHARTS["one epoch"]())
    below = chart.texts[: chart.texts.index("epoch")]
    assert [text for text in below if text.isdecimal()] == ["1"]
    dots = [use for use in chart.root.iter(f"{SVG}use") if _is_dot(chart, use)]
    assert len(dots) == 5 + 2  # the values and the legend
    assert len({dot.get("x") for dot in dots}) == 1 + 2


def _is_dot(chart, use):
    """Whether a mark is round: ticks are straight."""
    shape = next(e for e in chart.root.iter() if "#" + e.get("id", "") == use.get(HREF))
    return "C" in shape.get("d")


def test_the_kept_epoch_is_marked_where_it_is():
    def left(best_epoch):
        chart = Chart(training_curve(epochs(12), best_epoch=best_epoch))
        dotted = [
            element.get("d")
            for element in chart.root.iter(f"{SVG}path")
            if "stroke-dasharray" in element.get("style", "")
        ]
        xs = [float(re.match(r"M ([\d.]+)", line)[1]) for line in dotted]
        assert len(xs) == 4  # a line in each of three panels, and the legend's
        assert len(set(xs)) == 2
        return min(xs)

    assert left(3) < left(4) < left(5)


def test_values_that_are_not_finite_leave_gaps():
    broken = Epoch(
        number=1,
        loss=math.nan,
        accuracy=0.1,
        validation_loss=math.inf,
        validation_accuracy=0.1,
        learning_rate=0.001,
    )
    chart = Chart(training_curve([broken], best_epoch=1))
    shapes = [element.get("d", "") for element in chart.root.iter(f"{SVG}path")]
    assert not any(re.search("nan|inf", shape) for shape in shapes)
    dots = [element.get("y") for element in chart.root.iter(f"{SVG}use")]
    assert not {"nan", "inf"} & set(dots)
    assert chart.title.endswith("loss inf")


@pytest.mark.parametrize("count", [0, 2])
def test_the_kept_epoch_has_to_be_among_those_given(count):
    with pytest.raises(ValueError, match=f"no epoch 3 among the {count} given"):
        training_curve(epochs(count), best_epoch=3)


def test_a_matrix_shows_its_counts_and_each_labels_share():
    counts = np.array([[70, 30, 0], [0, 1234, 0], [0, 0, 0]])
    chart = Chart(confusion_matrix(counts, ["ant", "bee", "cat"]))
    numbers = [text for text in chart.texts if re.fullmatch(r"[\d,]+", text)]
    assert numbers == ["70", "30", "1,234", "0"]
    assert {"70.0%", "100.0%", "—"} <= set(chart.texts)
    assert chart.texts.count("ant") == chart.texts.count("cat") == 2


def test_correct_cells_are_blue_mistaken_ones_orange_and_empty_ones_white():
    counts = np.array([[90, 10, 0], [0, 50, 50], [0, 0, 1]])
    chart = Chart(confusion_matrix(counts, ["a", "b", "c"]))
    few, many = chart.cell(0, 1, 3), chart.cell(1, 2, 3)
    assert chart.cell(0, 0, 3)[2] > chart.cell(0, 0, 3)[0]
    assert few[0] > few[2]
    assert many[0] > many[2]
    assert many.sum() < few.sum()
    assert list(chart.cell(0, 2, 3)) == [255, 255, 255]


def test_many_labels_make_a_heat_map_with_some_of_their_names():
    labels = [f"label {i}" for i in range(1000)]
    chart = Chart(confusion_matrix(confusion(1000), labels))
    names = [text for text in chart.texts if text.startswith("label ")]
    assert 20 <= len(set(names)) <= 40
    assert not any(text in {"90", "10"} for text in chart.texts)
    assert len(chart.text) < 500_000
    assert list(chart.cell(999, 0, 1000)) != [255, 255, 255]


@pytest.mark.parametrize("count", [1, 2, 30, 31])
def test_a_matrix_of_any_size_can_be_drawn(count):
    labels = [f"n{index}" for index in range(count)]
    chart = Chart(confusion_matrix(confusion(count), labels))
    assert {"n0", labels[-1 if count < 31 else 0]} <= set(chart.texts)


def test_a_matrix_without_images_is_drawn_too():
    chart = Chart(confusion_matrix(np.zeros((2, 2), np.int64), ["a", "b"]))
    assert chart.title == "confusion matrix: 0 of 0 correct"


@pytest.mark.parametrize(
    "label", ["$x_1^2$", "a & <b>", "under_score", "$", "日本語", "😀", '"\\frac"']
)
def test_any_label_is_shown_as_it_is(label):
    chart = Chart(confusion_matrix(confusion(2), [label, "b"]))
    assert chart.texts.count(label) == 2


def test_what_xml_cannot_hold_is_replaced_and_long_labels_lose_their_middle():
    chart = Chart(confusion_matrix(confusion(2), ["tab\t\x00\udc80", 99 * "long "]))
    assert chart.texts.count("tab���") == 2
    assert sum("…" in text and len(text) < 30 for text in chart.texts) == 2


def test_numbers_of_any_length_fit_their_cells():
    def font_size(text, number):
        element = next(e for e in text.root.iter(f"{SVG}text") if e.text == number)
        return float(re.search(r"([\d.]+)px", element.get("style"))[1])

    labels = [str(index) for index in range(30)]
    short = Chart(confusion_matrix(confusion(30, each=100), labels))
    long = Chart(confusion_matrix(confusion(30, each=1_000_000), labels))
    assert font_size(long, "900,000") < font_size(short, "90")


SCRIPT = """
import sys
from models.charts import Epoch, training_curve
assert not {"keras", "matplotlib", "tensorflow"} & set(sys.modules)
training_curve([Epoch(number=1, loss=1, accuracy=1, validation_loss=1,
                      validation_accuracy=1, learning_rate=1)], best_epoch=1)
assert "matplotlib.pyplot" not in sys.modules
"""


def test_charts_are_drawn_quietly_where_no_home_can_be_written(tmp_path: Path):
    no_home = tmp_path / "file"
    no_home.touch()
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MPL", "XDG"))
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT],
        env=kept | {"HOME": str(no_home)},
        capture_output=True,
        check=False,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
