"""The tables that a build prints."""

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from models.card import Accuracy
from models.datasets import Dataset, Split
from models.report import (
    MAX_LABEL_ROWS,
    accuracy_by_label,
    balance,
    built,
    skipped,
    warning,
)
from models.tasks import Scores
from tests.test_card import CARD


def printed(table: Table) -> str:
    console = Console(file=io.StringIO(), width=200, record=True)
    console.print(table)
    return console.export_text()


def dataset(labels: tuple[str, ...], counts: list[int], name: str = "pets") -> Dataset:
    """As many images of each label in each part."""
    classes = np.repeat(np.arange(len(labels)), counts)
    split = Split(images=np.zeros((len(classes), 1, 1, 1), np.uint8), classes=classes)
    return Dataset(
        name=name,
        kind="photographs",
        labels=labels,
        train=split,
        validation=split,
        held_out=split,
        originals=(),
        skipped=[f"{number}.png: no image" for number in range(25)],
    )


def test_the_balance_tells_how_often_each_label_occurs_in_each_part() -> None:
    text = printed(balance(dataset(("cat", "dog"), [3, 1])))
    rows = [[cell.strip() for cell in line.split("│")] for line in text.splitlines()]
    assert ["", "cat", "3", "3", "3", "75.0%", ""] in rows
    assert ["", "dog", "1", "1", "1", "25.0%", ""] in rows
    assert ["", "all", "4", "4", "4", "100.0%", ""] in rows


def test_of_many_labels_the_rarest_and_the_most_frequent_are_shown() -> None:
    labels = tuple(f"label {number}" for number in range(100))
    text = printed(balance(dataset(labels, list(range(1, 101)))))
    shown = [label for label in labels if f"│ {label} " in text]
    assert shown == [*labels[:15], *labels[-15:]]
    assert "of 100 labels" in text


def test_labels_and_names_are_no_markup() -> None:
    data = dataset(("[red]", "[bold]x"), [1, 1], name="of [green]")
    text = printed(balance(data))
    for name in ("[red]", "[bold]x", "of [green]: 2 labels"):
        assert name in text
    accuracy = Accuracy(
        data="of [green], held out", samples=2, value=0.5, labels={"[red]": 0.5}
    )
    text = printed(accuracy_by_label([accuracy]))
    assert "[red]" in text
    assert "of [green], held out" in text


def test_the_worst_of_many_labels_are_shown() -> None:
    shares = {f"label {number}": number / 100 for number in range(100)}
    accuracy = Accuracy(data="held out", samples=100, value=0.5, labels=shares)
    text = printed(accuracy_by_label([accuracy]))
    assert f"│ label {MAX_LABEL_ROWS - 1} " in text
    assert f"│ label {MAX_LABEL_ROWS} " not in text
    assert f"the {MAX_LABEL_ROWS} worst of 100 labels" in " ".join(text.split())


def scores(confusion: list[list[int]]) -> Scores:
    return Scores(accuracy=(), confusion=np.array(confusion))


@pytest.mark.parametrize(
    "confusion",
    [
        [[3, 0, 0], [3, 0, 0], [3, 0, 0]],
        [[0, 5, 0], [0, 0, 5], [5, 0, 0]],
        [[8, 0, 0], [1, 0, 0], [1, 0, 0]],  # 80 % for nothing
    ],
)
def test_a_model_that_learned_nothing_is_warned_of(confusion: list[list[int]]) -> None:
    text = warning(scores(confusion), trained=True)
    assert text is not None
    for advice in ("more pictures of each label", "--epochs", "--learning-rate"):
        assert advice in text


def test_the_warning_tells_both_shares() -> None:
    text = warning(scores([[1, 3], [1, 5]]), trained=True)
    assert text is not None
    assert "the model gets 60.0% of the held-out images right" in text
    assert "the most frequent label would get 60.0%" in text


def test_of_an_imported_model_its_options_are_to_be_checked() -> None:
    text = warning(scores([[0, 4], [4, 0]]), trained=False)
    assert text is not None
    assert "--preprocess" in text
    assert "--labels" in text
    assert "--epochs" not in text


def test_of_a_model_that_learned_something_there_is_no_warning() -> None:
    assert warning(scores([[4, 0], [3, 1]]), trained=True) is None


def test_many_skipped_files_are_counted() -> None:
    lines = skipped(dataset(("a", "b"), [1, 1]))
    assert lines[0] == "skipped 0.png: no image"
    assert lines[-1] == "skipped 5 more files"
    assert len(lines) == 21


def test_what_was_built_is_told_from_its_card(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(bytes(1_500_000))
    text = printed(built(CARD, tmp_path, seconds=61.7))
    for fact in ("digits version 3", "192,326 parameters", "28x32, bgr, stretch"):
        assert fact in text
    for fact in ("1.5 MB, int8", "98.8% of 1,000", "1.2e-07 over 32", "62 s"):
        assert fact in text
