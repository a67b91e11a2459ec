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

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from PIL import Image
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from models.card import ImageInput, ModelCard, OutputTensor
from models.export import (
    Interface,
    ParityError,
    check_parity,
    decoder_in_graph,
    draft_directory,
    png,
    predict_with,
    publish,
    write_saved_model,
)
from service import engines
from tests.images import encode, image_input, photograph

Array = np.ndarray[Any, Any]

LABELS = ("cat", "dog", "bird")
PROBABILITIES = OutputTensor(name="probabilities", role="probabilities")


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


def pair_model() -> keras.Model:
    """One with two inputs and two outputs."""
    inputs = {
        side: keras.Input((8, 6, 3), dtype="uint8", name=side)
        for side in ("left", "right")
    }
    flat = layers.Flatten()
    seen = {side: flat(layers.Rescaling(1 / 255)(x)) for side, x in inputs.items()}
    outputs = {
        "same": layers.Dense(1, name="same")(layers.Subtract()(list(seen.values()))),
        "probabilities": layers.Dense(3, activation="softmax")(seen["left"]),
    }
    return keras.Model(inputs, outputs)


def input_called(tensor: str, shape: tuple[int, int, int]) -> ImageInput:
    height, width, channels = shape
    expected = image_input(height, width, "grey" if channels == 1 else "rgb")
    return expected.model_copy(update={"tensor": tensor})


def interface_of(model: keras.Model) -> Interface:
    if len(model.inputs) > 1:
        return Interface(
            inputs=tuple(input_called(x.name, x.shape[1:]) for x in model.inputs),
            outputs=(OutputTensor(name="same", role="other"), PROBABILITIES),
        )
    inputs = (input_called("images", model.input_shape[1:]),)
    return Interface(inputs=inputs, outputs=(PROBABILITIES,))


def samples_of(model: keras.Model, rows: int = 5, seed: int = 0) -> dict[str, Array]:
    return {
        i.tensor: random_images(rows, *i.shape, seed=seed + number)
        for number, i in enumerate(interface_of(model).inputs)
    }


def exported(
    model: keras.Model, repository: Path, name: str = "animals"
) -> tuple[Path, ModelCard]:
    interface, samples = interface_of(model), samples_of(model)
    with draft_directory(repository) as draft:
        write_saved_model(model, interface, draft)
        expected = predict_with(model, interface)(samples)
        parity = check_parity(draft, interface, samples, expected)
        card = ModelCard(
            name=name,
            version=1,
            architecture="tiny",
            created=datetime.now(UTC),
            image_input=interface.image_input,
            outputs=interface.outputs,
            labels=LABELS,
            parity=parity,
        )
        return publish(draft, card, repository)


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """A model and its export."""

    model: keras.Model
    directory: Path
    card: ModelCard

    def signature(self, name: str) -> Any:
        return tf.saved_model.load(str(self.directory)).signatures[name]


@pytest.fixture(scope="module", params=[grey_model, colour_model])
def result(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Export:
    keras.utils.set_random_seed(0)
    model = request.param()
    # Directories on the way are made, too.
    repository = tmp_path_factory.mktemp("export") / "models" / "repository"
    with file_mode_mask(0o022):
        directory, card = exported(model, repository)
    return Export(model=model, directory=directory, card=card)


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


def test_the_card_tells_how_far_the_export_is_from_the_model(result: Export) -> None:
    assert result.card.parity is not None
    assert result.card.parity.samples == 5
    assert 0 <= result.card.parity.max_abs_difference <= 1e-4


def test_the_card_on_disk_is_the_one_that_was_returned(result: Export) -> None:
    assert ModelCard.read(result.directory) == result.card


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


def test_each_weight_is_written_once(result: Export) -> None:
    variables = result.directory / "variables" / "variables"
    shapes = [shape for _, shape in tf.train.list_variables(str(variables)) if shape]
    expected = [list(weight.shape) for weight in result.model.weights]
    assert sorted(shapes) == sorted(expected)


def test_several_inputs_and_outputs_keep_their_names(tmp_path: Path) -> None:
    model = pair_model()
    directory, card = exported(model, tmp_path)
    assert card.image_input is None
    signatures = tf.saved_model.load(str(directory)).signatures
    images = samples_of(model, rows=3, seed=7)
    expected = {k: v.numpy() for k, v in model(images).items()}
    by_images = signatures["serving_default"](
        **{name: tf.constant(batch) for name, batch in images.items()}
    )
    by_bytes = signatures["serving_bytes"](
        **{f"{n}_bytes": tf.constant([png(i) for i in b]) for n, b in images.items()}
    )
    for answers in (by_images, by_bytes):
        assert answers.keys() == {"same", "probabilities"}
        for name, want in expected.items():
            np.testing.assert_allclose(answers[name], want, atol=1e-5)


@pytest.mark.parametrize("make", [grey_model, pair_model])
async def test_a_compiled_export_computes_the_same_in_every_engine(
    tmp_path: Path, make: Callable[[], keras.Model]
) -> None:
    """Where there is no XLA, as in OpenVINO, its graph is one as any other."""
    model = make()
    interface, samples = interface_of(model), samples_of(model)
    write_saved_model(model, interface, tmp_path, xla=True)
    expected = predict_with(model, interface)(samples)
    check_parity(tmp_path, interface, samples, expected)
    written = SavedModel.FromString((tmp_path / "saved_model.pb").read_bytes())
    functions = written.meta_graphs[0].graph_def.library.function
    compiled = [f for f in functions if f.attr["_XlaMustCompile"].b]
    assert compiled
    operations = {node.op for function in compiled for node in function.node_def}
    assert "MatMul" in operations
    assert not operations & {"DecodeImage", "DecodePng", "DecodeJpeg"}
    for choice in ("openvino", "tensorflow"):
        engine = engines.load(choice, tmp_path, slots=1)
        answers = await engine.infer("serving_default", samples)
        engine.close()
        for name, answer in answers.items():
            np.testing.assert_allclose(answer, expected[name], atol=1e-5)


@pytest.fixture(scope="module", params=[1, 3], ids=["grey", "rgb"])
def mirrored(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, Any]:
    """Channels, and a signature that answers with what the network is fed."""
    directory, _ = exported(mirror(request.param), tmp_path_factory.mktemp("mirror"))
    loaded = tf.saved_model.load(str(directory))

    def feed(*encoded: bytes) -> Array:
        signature = loaded.signatures["serving_bytes"]
        answer = signature(image_bytes=tf.constant(encoded))["probabilities"]
        return np.asarray(answer).reshape(len(encoded), 8, 6, request.param)

    return request.param, feed


def test_the_bytes_signature_decodes_and_resizes_as_the_decoder_does(
    mirrored: tuple[int, Callable[..., Array]],
) -> None:
    """Images of several sizes and formats share a batch."""
    channels, feed = mirrored
    photo = photograph(40, 30)
    encoded = [
        encode(photo, "PNG"),
        encode(photo.resize((9, 9)), "JPEG"),
        encode(photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT), "PNG"),
        encode(photo.convert("L"), "PNG"),
    ]
    decode = decoder_in_graph(input_called("images", (8, 6, channels)))
    together = feed(*encoded)
    np.testing.assert_array_equal(together, decode(encoded))
    for row, alone in zip(together, encoded, strict=True):
        np.testing.assert_array_equal(row, feed(alone)[0])


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
        other.mkdir(parents=True, exist_ok=True)
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
    "spoil", [lambda p: p * np.nan, lambda p: p + 1, lambda p: p + np.inf]
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

    def full_disk(_: ModelCard, __: Path) -> None:
        seen.extend(path.name for path in tmp_path.iterdir())
        raise OSError("no space left on device")

    monkeypatch.setattr(ModelCard, "write", full_disk)
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
