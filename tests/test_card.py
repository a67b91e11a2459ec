"""The model card: what it keeps, what it refuses, and what it says then."""

import json
import subprocess
import sys
from datetime import UTC, datetime
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from models.card import (
    CARD_FILE,
    Accuracy,
    CardError,
    DataSplit,
    ImageInput,
    ModelCard,
    OutputTensor,
    Parity,
    PrecisionMeasurement,
    Preprocessing,
    Training,
)

CARD = ModelCard(
    name="digits",
    version=3,
    architecture="inception",
    created=datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC),
    image_input=ImageInput(
        tensor="images", height=28, width=32, channels=3, colour_order="bgr"
    ),
    encoded_input="image_bytes",
    outputs=(
        OutputTensor(name="probabilities", role="probabilities"),
        OutputTensor(name="features", role="other"),
    ),
    labels=("zéro", "一", 'a "quote"'),
    parameters=192_326,
    precision="int8",
    precisions=(
        PrecisionMeasurement(
            precision="int8",
            engine="openvino",
            size_bytes=351_000,
            batch_size=32,
            images_per_second=16_267.5,
            accuracy=0.98,
        ),
    ),
    batch_sizes=(1, 8, 32),
    recipe={"epochs": 3, "width": 0.5, "dataset": "pets", "untrained": False},
    data=DataSplit(
        name="pets", images={"zéro": 20}, train=14, validation=3, held_out=3
    ),
    training=Training(
        epochs=9, best_epoch=7, validation_loss=0.5, validation_accuracy=0.9
    ),
    accuracy=(
        Accuracy(data="held out", samples=1000, value=0.9875, labels={"zéro": 1.0}),
    ),
    preprocessing=(
        Preprocessing(
            path="gateway",
            variant="exif rotation",
            samples=16,
            mean_abs_difference=0.35,
            max_abs_difference=12,
            changed_predictions=1,
        ),
    ),
    parity=Parity(samples=32, max_abs_difference=1.2e-7),
    frameworks={"keras": "3.15.1"},
)


def changed(path: str, value: Any) -> dict[str, Any]:
    """The card as JSON with one value set; `path` is like `outputs.0.role`."""
    content: dict[str, Any] = CARD.model_dump(mode="json")
    *parents, last = (int(p) if p.isdecimal() else p for p in path.split("."))
    place: Any = content
    for parent in parents:
        place = place[parent]
    place[last] = value
    return content


def put(directory: Path, content: Any) -> Path:
    """A version directory whose card file holds these bytes, or this as JSON."""
    path = directory / CARD_FILE
    path.parent.mkdir(parents=True)
    is_raw = isinstance(content, bytes)
    path.write_bytes(content if is_raw else json.dumps(content).encode())
    return path


def test_a_card_reads_as_it_was_written(tmp_path: Path) -> None:
    CARD.write(tmp_path)
    assert ModelCard.read(tmp_path) == CARD


def test_a_card_lies_where_servers_look_and_people_can_read_it(tmp_path: Path) -> None:
    CARD.write(tmp_path)
    text = (tmp_path / "assets.extra/model_card.json").read_text(encoding="utf-8")
    assert json.loads(text)["created"] == "2026-01-02T03:04:05.000678Z"
    assert '  "labels": [\n    "zéro",\n' in text
    assert text.endswith("}\n")


def test_a_card_replaces_the_one_before(tmp_path: Path) -> None:
    CARD.write(tmp_path)
    later = CARD.model_copy(update={"version": 4})
    later.write(tmp_path)
    assert ModelCard.read(tmp_path) == later


def test_a_card_may_leave_out_what_is_not_known(tmp_path: Path) -> None:
    known = ("name", "version", "architecture", "created", "outputs", "labels")
    content = {key: CARD.model_dump(mode="json")[key] for key in known}
    put(tmp_path, {**content, "image_input": None})
    card = ModelCard.read(tmp_path)
    assert card is not None
    assert (card.image_input, card.encoded_input, card.parameters) == (None,) * 3
    assert (card.accuracy, card.parity, card.frameworks) == ((), None, {})


def test_an_image_input_is_uint8_and_stretched_unless_it_says_otherwise() -> None:
    plain = ImageInput(tensor="x", height=1, width=1, channels=1, colour_order="grey")
    assert (plain.dtype, plain.resize) == ("uint8", "stretch")


def test_a_version_without_a_card_has_none(tmp_path: Path) -> None:
    assert ModelCard.read(tmp_path) is None
    assert ModelCard.read(tmp_path / "absent") is None


def test_a_card_never_changes() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        CARD.version = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    "path",
    [
        *("colour", "image_input.colour", "outputs.1.colour"),
        *("accuracy.0.colour", "parity.colour"),
    ],
)
def test_unknown_keys_are_refused_wherever_they_are(tmp_path: Path, path: str) -> None:
    file = put(tmp_path, changed(path, "red"))
    with pytest.raises(CardError) as error:
        ModelCard.read(tmp_path)
    assert str(error.value).startswith(f"{file} is not a model card: {path}: ")
    assert "not permitted" in str(error.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("name", ""),
        ("name", 7),
        ("version", 0),
        ("version", -1),
        ("version", 1.5),
        ("version", "latest"),
        ("created", "yesterday"),
        ("image_input", "images"),
        ("image_input.tensor", None),
        ("image_input.height", 0),
        ("image_input.width", -28),
        ("image_input.channels", 2),
        ("image_input.channels", 4),
        ("image_input.dtype", "int8"),
        ("image_input.resize", "squeeze"),
        ("image_input.colour_order", "rgba"),
        ("outputs", None),
        ("outputs.1.role", "embedding"),
        ("labels", "abc"),
        ("labels.2", 3),
        ("parameters", -1),
        ("accuracy.0.value", 1.01),
        ("accuracy.0.value", -0.01),
        ("accuracy.0.value", nan),
        ("accuracy.0.samples", 0),
        ("accuracy.0.labels", ["zéro"]),
        ("precision", "int4"),
        ("precisions.0.engine", "tflite"),
        ("precisions.0.size_bytes", 0),
        ("precisions.0.images_per_second", inf),
        ("precisions.0.accuracy", 2),
        ("batch_sizes.1", 0),
        ("recipe", "default"),
        ("data.train", None),
        ("training.best_epoch", 0),
        ("training.validation_accuracy", 1.5),
        ("preprocessing.0.path", "training"),
        ("preprocessing.0.mean_abs_difference", nan),
        ("preprocessing.0.changed_predictions", -1),
        ("parity.samples", 0),
        ("parity.max_abs_difference", -1e-9),
        ("parity.max_abs_difference", nan),
        ("parity.max_abs_difference", inf),
        ("frameworks", ["keras"]),
    ],
)
def test_impossible_values_are_refused_by_name(
    tmp_path: Path, path: str, value: Any
) -> None:
    file = put(tmp_path, changed(path, value))
    with pytest.raises(CardError) as error:
        ModelCard.read(tmp_path)
    assert str(error.value).startswith(f"{file} is not a model card: {path}")


@pytest.mark.parametrize(
    ("channels", "colour_order"), [(1, "rgb"), (1, "bgr"), (3, "grey")]
)
def test_the_colour_order_must_fit_the_channels(
    channels: int, colour_order: str
) -> None:
    fields = {"channels": channels, "colour_order": colour_order}
    with pytest.raises(ValidationError, match=f"got {channels} and '{colour_order}'"):
        ImageInput.model_validate({"tensor": "x", "height": 1, "width": 1, **fields})


@pytest.mark.parametrize(
    "field", [name for name, f in ModelCard.model_fields.items() if f.is_required()]
)
def test_a_missing_field_is_named(tmp_path: Path, field: str) -> None:
    content = CARD.model_dump(mode="json")
    del content[field]
    put(tmp_path, content)
    with pytest.raises(CardError, match=f"not a model card: {field}: Field required"):
        ModelCard.read(tmp_path)


def test_everything_wrong_is_told_at_once(tmp_path: Path) -> None:
    put(tmp_path, {**changed("version", 0), "labels": 5})
    with pytest.raises(CardError, match=r"version: .*; labels: "):
        ModelCard.read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"PNG\0", b'{"a": }'])
def test_a_file_that_is_no_card_is_named(tmp_path: Path, content: bytes) -> None:
    file = put(tmp_path, content)
    with pytest.raises(CardError) as error:
        ModelCard.read(tmp_path)
    assert str(error.value).startswith(f"{file} is not a model card: card: ")


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    file = put(tmp_path, b"\xff\xfe{}")
    with pytest.raises(CardError) as error:
        ModelCard.read(tmp_path)
    assert str(error.value).startswith(f"cannot read {file}: ")


def test_a_directory_in_place_of_the_file_is_named(tmp_path: Path) -> None:
    (tmp_path / CARD_FILE).mkdir(parents=True)
    with pytest.raises(CardError, match=f"cannot read {tmp_path / CARD_FILE}: "):
        ModelCard.read(tmp_path)


def test_the_card_loads_no_framework() -> None:
    """In a fresh interpreter, for this one may have loaded TensorFlow already."""
    code = "import sys, models.card; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    tops = {name.split(".")[0] for name in done.stdout.split()}
    assert "pydantic" in tops
    assert not tops & {"keras", "tensorflow", "numpy", "PIL", "openvino"}
