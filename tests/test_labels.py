"""Labels: every usual form of a file is read, and what does not fit is told."""

from pathlib import Path

import pytest

from models.labels import numbers, read_labels
from models.plan import WrongPlan


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.txt", "cat\ndog\nbird\n\n"),
        ("labels.txt", "\ufeffcat\r\ndog \r\nbird"),
        ("labels.json", '["cat", "dog", "bird"]'),
        ("labels.json", '{"1": "dog", "0": "cat", "2": "bird"}'),
        (
            "labels.json",
            '{"0": ["n1", "cat"], "1": ["n2", "dog"], "2": ["n3", "bird"]}',
        ),
        ("labels.json", '{"bird": 2, "cat": 0, "dog": 1}'),
    ],
)
def test_labels_are_read_in_every_usual_form(
    name: str, text: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(text.encode())
    assert read_labels(path, 3) == ("cat", "dog", "bird")


def test_without_a_file_the_labels_are_numbers() -> None:
    assert numbers(3) == ("0", "1", "2")


def test_labels_that_occur_twice_are_told_apart(tmp_path: Path) -> None:
    """ImageNet has two cranes: the bird and the machine."""
    path = tmp_path / "labels.txt"
    path.write_text("crane\ndog\ncrane")
    assert read_labels(path, 3) == ("crane (0)", "dog", "crane (2)")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("labels.txt", b"cat\ndog", "holds 2 labels, but the model tells 3 classes"),
        ("labels.txt", b"cat\n\ndog", "label 2 of .*labels.txt is empty"),
        ("labels.txt", b"\xff\xfe", "cannot read"),
        ("labels.json", b"{", "is no JSON"),
        ("labels.json", b'{"a": "b"}', "neither a list of labels nor an object"),
        ("labels.json", b'{"0": "a", "2": "b"}', "neither a list of labels nor"),
        ("labels.json", b"3", "neither a list of labels nor an object"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(WrongPlan, match=f"--labels: .*{message}"):
        read_labels(path, 3)


def test_a_missing_file_of_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WrongPlan, match=r"--labels: cannot read .*No such file"):
        read_labels(tmp_path / "labels.txt", 3)
