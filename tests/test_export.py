"""Export: a version with everything that servers ask for, checked, or none at all."""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree as ET

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from PIL import Image
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

from models import export as module
from models.card import (
    GRAPH_FILE,
    SAMPLE_FILE,
    SUMMARY_FILE,
    WARMUP_FILE,
    Accuracy,
    ImageInput,
    ModelCard,
    OutputTensor,
)
from models.export import ParityError, export
from tests.images import encode, photograph

Array = np.ndarray[Any, Any]

LABELS = ("cat", "dog", "bird")
ACCURACY = (Accuracy(data="made up", samples=7, value=0.5),)


def random_images(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def grey_model() -> keras.Model:
    """A sequential one."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1), dtype="uint8", name="images"),
            layers.Rescaling(1 / 255),
            layers.Conv2D(4, 3, name="the_conv"),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dropout(0.5),
            layers.Dense(3, activation="softmax"),
        ],
        name="tiny",
    )


def colour_model() -> keras.Model:
    """A functional one, whose input and output have names of their own."""
    pixels = keras.Input((8, 6, 3), dtype="uint8", name="pixels")
    x = layers.Rescaling(1 / 255)(pixels)
    branches = [layers.Conv2D(2, k, padding="same")(x) for k in (1, 3)]
    x = layers.GlobalAveragePooling2D()(layers.Concatenate()(branches))
    return keras.Model(pixels, layers.Dense(3, activation="softmax", name="animal")(x))


def mirror(channels: int) -> keras.Model:
    """Answers with the pixels that it has got."""
    images = keras.Input((8, 6, channels), dtype="uint8", name="images")
    return keras.Model(images, layers.Flatten()(layers.Rescaling(1.0)(images)))


def exported(
    model: keras.Model, repository: Path, name: str = "animals"
) -> tuple[Path, ModelCard]:
    return export(
        model,
        name=name,
        architecture="tiny",
        labels=LABELS,
        samples=random_images(5, *model.input_shape[1:]),
        accuracy=ACCURACY,
        repository=repository,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """A model and its export."""

    model: keras.Model
    directory: Path
    card: ModelCard
    started: datetime

    def signature(self, name: str) -> Any:
        return tf.saved_model.load(str(self.directory)).signatures[name]


@pytest.fixture(scope="module", params=[grey_model, colour_model])
def result(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Export:
    keras.utils.set_random_seed(0)
    started = datetime.now(UTC)
    model = request.param()
    # Directories on the way are made, too.
    repository = tmp_path_factory.mktemp("export") / "models" / "repository"
    with file_mode_mask(0o022):
        directory, card = exported(model, repository)
    return Export(model=model, directory=directory, card=card, started=started)


@contextmanager
def file_mode_mask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def test_the_default_signature_takes_images_and_answers_probabilities(
    result: Export,
) -> None:
    signature = result.signature("serving_default")
    (images,) = signature.structured_input_signature[1].values()
    assert (images.name, images.dtype) == ("images", tf.uint8)
    assert images.shape.as_list() == [None, *result.model.input_shape[1:]]
    assert signature.structured_outputs.keys() == {"probabilities"}
    output = signature.structured_outputs["probabilities"]
    assert (output.dtype, output.shape.as_list()) == (tf.float32, [None, 3])


@pytest.mark.parametrize("rows", [1, 9])
def test_the_export_computes_what_the_model_does(result: Export, rows: int) -> None:
    images = random_images(rows, *result.model.input_shape[1:], seed=1)
    answer = result.signature("serving_default")(images=tf.constant(images))
    expected = result.model.predict_on_batch(images)
    np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-6)


def test_the_bytes_signature_takes_encoded_images(result: Export) -> None:
    signature = result.signature("serving_bytes")
    (encoded,) = signature.structured_input_signature[1].values()
    assert (encoded.name, encoded.dtype) == ("image_bytes", tf.string)
    assert encoded.shape.as_list() == [None]
    assert signature.structured_outputs.keys() == {"probabilities"}


def test_the_card_tells_what_was_exported(result: Export) -> None:
    height, width, channels = result.model.input_shape[1:]
    card = result.card
    assert (card.name, card.version, card.architecture) == ("animals", 1, "tiny")
    assert card.image_input == ImageInput(
        tensor="images",
        height=height,
        width=width,
        channels=channels,
        colour_order={1: "grey", 3: "rgb"}[channels],
    )
    assert card.encoded_input == "image_bytes"
    assert card.outputs == (OutputTensor(name="probabilities", role="probabilities"),)
    assert (card.labels, card.accuracy) == (LABELS, ACCURACY)
    assert card.parameters == result.model.count_params()
    assert result.started <= card.created <= datetime.now(UTC)


def test_the_card_tells_how_far_the_export_is_from_the_model(result: Export) -> None:
    assert result.card.parity is not None
    assert result.card.parity.samples == 5
    assert 0 <= result.card.parity.max_abs_difference <= 1e-4


def test_the_card_tells_the_frameworks_whatever_package_they_come_from(
    result: Export,
) -> None:
    """TensorFlow may be installed as `tensorflow` or as `tensorflow-cpu`."""
    assert result.card.frameworks == {
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
        "numpy": np.__version__,
    }


def test_the_card_on_disk_is_the_one_that_was_returned(result: Export) -> None:
    assert ModelCard.read(result.directory) == result.card


def test_the_version_has_the_files_that_servers_look_for(result: Export) -> None:
    files = {
        str(path.relative_to(result.directory))
        for path in result.directory.rglob("*")
        if path.is_file()
    }
    assert files >= {
        "saved_model.pb",
        "variables/variables.index",
        "assets.extra/graph.svg",
        "assets.extra/model_card.json",
        "assets.extra/sample.png",
        "assets.extra/summary.txt",
        "assets.extra/tf_serving_warmup_requests",
    }


def test_nothing_but_the_version_is_left_in_the_repository(result: Export) -> None:
    model_directory = result.directory.parent
    assert [path.name for path in model_directory.parent.iterdir()] == ["animals"]
    assert [path.name for path in model_directory.iterdir()] == ["1"]


def test_another_user_can_read_every_file(result: Export) -> None:
    model_directory = result.directory.parent
    for path in (model_directory.parent, model_directory, *model_directory.rglob("*")):
        needed = 0o555 if path.is_dir() else 0o444
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode & needed == needed, f"{path} has mode {mode:o}"


def test_tensorflow_serving_warms_up_with_each_batch_size(result: Export) -> None:
    path = str(result.directory / WARMUP_FILE)
    records = tf.data.TFRecordDataset(path).as_numpy_iterator()
    logs = [PredictionLog.FromString(record).predict_log for record in records]
    signature = result.signature("serving_default")
    sizes = []
    for log in logs:
        assert log.request.model_spec.name == "animals"
        assert log.request.model_spec.signature_name == "serving_default"
        assert not log.request.model_spec.HasField("version")
        assert list(log.request.inputs) == ["images"]
        images = tf.make_ndarray(log.request.inputs["images"])
        assert images.dtype == np.uint8
        assert images.shape[1:] == result.model.input_shape[1:]
        sizes.append(len(signature(images=tf.constant(images))["probabilities"]))
    assert sizes == [1, 2, 4, 8, 16]


def test_the_summary_names_every_layer_and_counts_the_parameters(
    result: Export,
) -> None:
    text = (result.directory / SUMMARY_FILE).read_text(encoding="utf-8")
    assert f'Model: "{result.model.name}"' in text
    assert f"Total params: {result.model.count_params():,} " in text
    assert all(layer.name in text for layer in result.model.layers)
    assert "\x1b" not in text


def test_the_summary_is_as_wide_as_it_needs_whatever_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    directory, _ = exported(colour_model(), tmp_path)
    lines = (directory / SUMMARY_FILE).read_text(encoding="utf-8").splitlines()
    table = [line for line in lines if line[:1] in tuple("┏┃┡│├└")]
    assert "Connected to" in table[1]
    assert all(line[-1] in "┓┃┩│┤┘" for line in table)


def test_the_graph_is_a_drawing_of_the_model(result: Export) -> None:
    text = (result.directory / GRAPH_FILE).read_text(encoding="utf-8")
    root = ET.fromstring(text)  # noqa: S314, our own output
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    title = root.findtext("{http://www.w3.org/2000/svg}title") or ""
    assert title.startswith(f"{result.model.name}: ")


def test_the_sample_is_the_first_image_pixel_by_pixel(result: Export) -> None:
    shape = result.model.input_shape[1:]
    with Image.open(result.directory / SAMPLE_FILE) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image).reshape(shape)
    np.testing.assert_array_equal(pixels, random_images(5, *shape)[0])


Mirrors = dict[int, Any]


@pytest.fixture(scope="module")
def mirrors(tmp_path_factory: pytest.TempPathFactory) -> Mirrors:
    """By number of channels, what the bytes signature feeds to the model."""
    root = tmp_path_factory.mktemp("mirrors")
    found = {}
    for channels in (1, 3):
        directory, _ = exported(mirror(channels), root, name=f"mirror_{channels}")
        found[channels] = tf.saved_model.load(str(directory))
    return found


def fed(mirrors: Mirrors, channels: int, *encoded: bytes) -> Array:
    signature = mirrors[channels].signatures["serving_bytes"]
    answer = signature(image_bytes=tf.constant(encoded))["probabilities"]
    return np.asarray(answer).reshape(len(encoded), 8, 6, channels)


def resized(pixels: Array, *, antialias: bool = True) -> Array:
    """Bilinear, as the card promises, by hand."""
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    result = tf.image.resize(pixels, (8, 6), method="bilinear", antialias=antialias)
    return np.round(np.asarray(result)).clip(0, 255)


SIZES = [(8, 6), (37, 50), (5, 4), (3, 64), (200, 150)]
MODES = {1: "L", 3: "RGB"}


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_of_any_size_is_decoded_and_resized(
    mirrors: Mirrors, channels: int, size: tuple[int, int]
) -> None:
    image = photograph(*size).convert(MODES[channels])
    (pixels,) = fed(mirrors, channels, encode(image, "PNG"))
    np.testing.assert_array_equal(pixels, resized(np.asarray(image)))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_jpeg_is_decoded_and_resized(mirrors: Mirrors, channels: int) -> None:
    encoded = encode(photograph(37, 50).convert(MODES[channels]), "JPEG", quality=95)
    (pixels,) = fed(mirrors, channels, encoded)
    decoded = tf.io.decode_jpeg(encoded, channels=channels)
    np.testing.assert_array_equal(pixels, resized(np.asarray(decoded)))


@pytest.mark.parametrize("channels", [1, 3])
def test_shrinking_is_antialiased_as_pillow_does_it(
    mirrors: Mirrors, channels: int
) -> None:
    """Pillow's own filter differs by a rounding, one without antialiasing by a lot."""
    image = photograph(120, 90).convert(MODES[channels])
    (pixels,) = fed(mirrors, channels, encode(image, "PNG"))
    by_pillow = np.asarray(image.resize((6, 8), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(pixels, by_pillow.reshape(pixels.shape), atol=1)
    aliased = resized(np.asarray(image), antialias=False)
    assert np.abs(pixels - aliased).max() > 20


def test_a_colour_image_becomes_grey_for_a_grey_model(mirrors: Mirrors) -> None:
    image = photograph(8, 6)
    (pixels,) = fed(mirrors, 1, encode(image, "PNG"))
    by_pillow = np.asarray(image.convert("L"))[..., None]
    np.testing.assert_allclose(pixels, by_pillow, atol=1)


def test_a_grey_image_has_three_equal_channels_for_a_colour_model(
    mirrors: Mirrors,
) -> None:
    image = photograph(8, 6).convert("L")
    (pixels,) = fed(mirrors, 3, encode(image, "PNG"))
    np.testing.assert_array_equal(pixels, np.asarray(image.convert("RGB")))


def test_images_of_several_sizes_and_formats_share_a_batch(mirrors: Mirrors) -> None:
    photo = photograph(40, 30)
    encoded = [
        encode(photo, "PNG"),
        encode(photo.resize((9, 9)), "JPEG"),
        encode(photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT), "PNG"),
    ]
    together = fed(mirrors, 3, *encoded)
    for row, alone in zip(together, encoded, strict=True):
        np.testing.assert_array_equal(row, fed(mirrors, 3, alone)[0])


def test_versions_count_up_past_gaps_and_other_files(tmp_path: Path) -> None:
    model = mirror(1)
    numbers = [exported(model, tmp_path)[1].version for _ in range(3)]
    (tmp_path / "animals" / "7").mkdir()
    (tmp_path / "animals" / "notes").mkdir()
    (tmp_path / "animals" / "99.old").touch()
    directory, card = exported(model, tmp_path)
    assert (numbers, card.version) == ([1, 2, 3], 8)
    assert directory == tmp_path / "animals" / "8"
    assert ModelCard.read(directory) == card
    other, card = exported(model, tmp_path, name="other")
    assert (other, card.version) == (tmp_path / "other" / "1", 1)


def test_two_builds_at_once_get_a_version_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one publishes between this one's look at the disk and its own move."""
    write = ModelCard.write

    def write_too_late(card: ModelCard, directory: Path) -> None:
        other = tmp_path / "animals" / "1"
        other.mkdir(exist_ok=True)
        (other / "saved_model.pb").write_bytes(b"the other one")
        write(card, directory)

    monkeypatch.setattr(ModelCard, "write", write_too_late)
    directory, card = exported(mirror(1), tmp_path)
    assert (directory.name, card.version) == ("2", 2)
    assert ModelCard.read(directory) == card
    other = tmp_path / "animals" / "1" / "saved_model.pb"
    assert other.read_bytes() == b"the other one"


def everything_in(directory: Path) -> list[Path]:
    return list(directory.rglob("*"))


class Noise(layers.Layer):  # type: ignore[misc]  # Keras is untyped
    """Answers differently each time, so that no export is like the model."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.seed = keras.random.SeedGenerator(0)

    def call(self, x: Any) -> Any:
        return x + keras.random.uniform(keras.ops.shape(x), seed=self.seed)


def test_an_export_that_differs_is_not_published(tmp_path: Path) -> None:
    model = keras.Sequential([*mirror(1).layers, Noise()])
    with pytest.raises(ParityError, match=r"'serving_\w+' differs .* by [1-9]\.\d\de"):
        exported(model, tmp_path)
    assert everything_in(tmp_path) == []


@pytest.mark.parametrize("wrong", ["serving_default", "serving_bytes"])
@pytest.mark.parametrize(
    "spoil", [lambda p: p * np.nan, lambda p: p + 0.01, lambda p: p + np.inf]
)
def test_either_signature_can_fail_the_check(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wrong: str,
    spoil: Callable[[Any], Any],
) -> None:
    load = tf.saved_model.load

    def spoilt(path: str) -> SimpleNamespace:
        signatures = dict(load(path).signatures)
        right = signatures[wrong]
        signatures[wrong] = lambda **inputs: {
            name: spoil(value) for name, value in right(**inputs).items()
        }
        return SimpleNamespace(signatures=signatures)

    monkeypatch.setattr(tf.saved_model, "load", spoilt)
    with pytest.raises(ParityError, match=wrong):
        exported(mirror(1), tmp_path)
    assert everything_in(tmp_path) == []


def test_an_older_version_outlives_a_failed_export(tmp_path: Path) -> None:
    directory, card = exported(mirror(1), tmp_path)
    with pytest.raises(ParityError):
        exported(keras.Sequential([*mirror(1).layers, Noise()]), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["animals"]
    assert [path.name for path in (tmp_path / "animals").iterdir()] == ["1"]
    assert ModelCard.read(directory) == card


def test_a_failure_on_the_way_leaves_nothing_and_shows_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not ready stays under a name that servers do not look at."""
    seen = []

    def full_disk(_: keras.Model) -> str:
        seen.extend(path.name for path in tmp_path.iterdir())
        raise OSError("no space left on device")

    monkeypatch.setattr(module, "draw", full_disk)
    with pytest.raises(OSError, match="no space"):
        exported(mirror(1), tmp_path)
    assert len(seen) == 1
    assert seen[0].startswith(".")
    assert everything_in(tmp_path) == []


def test_exporting_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = grey_model()
    before = [weight.copy() for weight in model.get_weights()]
    exported(model, tmp_path)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_exporting_says_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    exported(mirror(1), tmp_path)
    captured = capfd.readouterr()
    assert captured.out == ""
