"""Import: other people's models become networks of ours, or a sentence says why not."""

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from models import importing
from models.importing import Imported, ImportFailed
from models.plan import Preprocess

# Keras' writer of weights is older than the present NumPy.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept"
)

Array = np.ndarray[Any, Any]


def mirror(image_shape: tuple[int, ...] = (8, 6, 3), **options: Any) -> keras.Model:
    """Answers with what it is fed."""
    image = keras.Input(image_shape, **options)
    return keras.Model(
        image, layers.Rescaling(1.0, name="fed")(layers.Flatten()(image))
    )


def saved(model: keras.Model, directory: Path) -> Path:
    path = directory / "model.keras"
    model.save(path)
    return path


# Preprocessing


def assert_both_answer(
    imported: Imported, images: Array, expected: Array, tolerance: float
) -> None:
    """The network, and what it is checked with."""
    outputs = imported.original_outputs(images)
    for answer in (imported.network(images), outputs["logits"]):
        assert answer.dtype == np.float32
        np.testing.assert_allclose(answer, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("preprocess", "reference"),
    [
        ("none", lambda images: images),
        ("scale01", lambda images: images / 255),
        ("scale11", keras.applications.mobilenet_v2.preprocess_input),
        ("imagenet-mean", keras.applications.resnet50.preprocess_input),
        ("imagenet-standard", keras.applications.densenet.preprocess_input),
    ],
)
def test_the_network_preprocesses_as_keras_does(
    preprocess: Preprocess, reference: Callable[[Array], Array], tmp_path: Path
) -> None:
    imported = importing.read(saved(mirror(), tmp_path), preprocess=preprocess)
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 6, 3), np.uint8)
    expected = reference(images.astype(np.float32)).reshape(4, -1)
    assert_both_answer(imported, images, expected, np.abs(expected).max() * 1e-6)


def test_an_original_of_uint8_gets_the_pixels_as_they_are(tmp_path: Path) -> None:
    model = keras.Sequential(
        [keras.Input((8, 6, 1), dtype="uint8"), layers.Rescaling(1.0), layers.Flatten()]
    )
    imported = importing.read(saved(model, tmp_path), preprocess="none")
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 6, 1), np.uint8)
    assert_both_answer(imported, images, images.reshape(4, -1), tolerance=0)


def test_an_original_in_half_precision_is_fed_in_half_precision(tmp_path: Path) -> None:
    path = saved(mirror(dtype="float16"), tmp_path)
    imported = importing.read(path, preprocess="scale01")
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 6, 3), np.uint8)
    expected = (images / 255).astype(np.float16).astype(np.float32).reshape(4, -1)
    assert_both_answer(imported, images, expected, tolerance=1e-3)


# Outputs


@pytest.mark.parametrize(
    ("bias", "role", "expected"),
    [(0.25, "probabilities", [0.75, 0.25]), (-2.0, "logits", [0.0, -2.0])],
)
def test_a_single_number_becomes_two_classes(
    bias: float, role: str, expected: list[float], tmp_path: Path
) -> None:
    constant = layers.Dense(
        1,
        kernel_initializer="zeros",
        bias_initializer=keras.initializers.Constant(bias),
    )
    model = keras.Sequential([keras.Input((4, 4, 1)), layers.Flatten(), constant])
    imported = importing.read(saved(model, tmp_path), preprocess="scale01")
    assert [output.role for output in imported.outputs] == [role]
    assert imported.classes == 2
    black = np.zeros((1, 4, 4, 1), np.uint8)
    np.testing.assert_allclose(imported.network(black), [expected])
    np.testing.assert_allclose(imported.original_outputs(black)[role], [expected])


def test_several_outputs_keep_their_names_and_get_roles(tmp_path: Path) -> None:
    image = keras.Input((8, 6, 3))
    flat = layers.Flatten()(image)
    outputs = {
        "map": layers.Conv2D(2, 1)(image),
        "certainty": layers.Dense(1, activation="sigmoid")(flat),
        "kind": layers.Dense(4, activation="softmax")(flat),
        "raw kind": layers.Dense(4)(flat),
    }
    path = saved(keras.Model(image, outputs), tmp_path)
    imported = importing.read(path, preprocess="scale01")
    assert {output.name: output.role for output in imported.outputs} == {
        "map": "other",
        "certainty": "other",
        "kind": "probabilities",
        "raw kind": "logits",
    }
    assert imported.classes == 4
    answer = imported.network(np.zeros((2, 8, 6, 3), np.uint8))
    assert {name: tuple(tensor.shape) for name, tensor in answer.items()} == {
        "map": (2, 8, 6, 2),
        "certainty": (2, 1),
        "kind": (2, 4),
        "raw kind": (2, 4),
    }


def test_a_layer_that_answers_twice_has_two_names(tmp_path: Path) -> None:
    image = keras.Input((8, 6, 3))
    shared = layers.Dense(4, name="kind")
    flat = layers.Flatten()(image)
    model = keras.Model(image, [shared(flat), shared(layers.Rescaling(-1.0)(flat))])
    imported = importing.read(saved(model, tmp_path), preprocess="scale01")
    assert [output.name for output in imported.outputs] == ["kind", "kind_1"]


# Sizes


def convolutional(image_shape: tuple[int | None, ...]) -> keras.Model:
    """Takes images of any size from 3x3."""
    image = keras.Input(image_shape)
    maps = layers.Conv2D(4, 3)(image)
    return keras.Model(image, layers.GlobalAveragePooling2D()(maps))


def test_the_size_is_chosen_where_the_original_takes_any(tmp_path: Path) -> None:
    path = saved(convolutional((None, None, 3)), tmp_path)
    imported = importing.read(path, preprocess="scale01", size=(14, 9))
    assert imported.image_shape == imported.network.input_shape[1:] == (14, 9, 3)


@pytest.mark.parametrize(
    ("shape", "size", "message"),
    [
        (
            (None, None, 3),
            None,
            r"any, any, any, 3\].*any size; choose one with --size",
        ),
        ((12, None, 3), None, "any size; choose one with --size"),
        ((12, None, 3), (13, 10), "--size: .* 12xNone pixels, not of 13x10"),
        ((12, 10, 3), (10, 12), "--size: .* 12x10 pixels, not of 10x12"),
        ((None, None, 3), (2, 2), r"fails on images of \(2, 2, 3\): "),
    ],
)
def test_a_size_that_cannot_be_is_refused(
    shape: tuple[int | None, ...],
    size: tuple[int, int] | None,
    message: str,
    tmp_path: Path,
) -> None:
    path = saved(convolutional(shape), tmp_path)
    with pytest.raises(ImportFailed, match=message):
        importing.read(path, preprocess="scale01", size=size)


# Refusals


def weightless(*inputs: Any) -> keras.Model:
    merged = layers.Concatenate()([layers.Flatten()(image) for image in inputs])
    return keras.Model(list(inputs), merged)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda: weightless(keras.Input((8, 6, 3)), keras.Input((4,), name="age")),
            r"takes .*float32 \[any, 8, 6, 3\], age float32 \[any, 4\]; expected one",
        ),
        (lambda: mirror((48,)), r"float32 \[any, 48\]; expected one input of images"),
        (lambda: mirror(dtype="int32"), "int32 .*; expected .* float32, float16 or"),
        (lambda: mirror((3, 8, 6)), "channels come first there, and must come last"),
        (lambda: mirror((8, 6, 4)), r"any, 8, 6, 4\]; expected .* 1 or 3\]"),
        (lambda: mirror(batch_size=2), "batches of 2 images only; save it again"),
        (
            lambda: keras.Sequential([keras.Input((8, 6, 3)), layers.Conv2D(2, 1)]),
            r"answers \S+ \[N, 8, 6, 2\]; expected \[N, classes\]",
        ),
    ],
)
def test_what_is_no_classifier_of_images_is_refused(
    model: Callable[[], keras.Model], message: str, tmp_path: Path
) -> None:
    path = saved(model(), tmp_path)
    with pytest.raises(ImportFailed, match=message):
        importing.read(path, preprocess="scale01")


@pytest.mark.filterwarnings("ignore:You are saving a model that has not yet been built")
def test_a_model_that_has_seen_no_image_is_refused(tmp_path: Path) -> None:
    path = saved(keras.Sequential([layers.Flatten(), layers.Dense(2)]), tmp_path)
    with pytest.raises(ImportFailed, match="never seen an image"):
        importing.read(path, preprocess="scale01")


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):  # type: ignore[misc]  # Keras has no types
    """As one of a library that is installed: Keras finds its class."""

    def call(self, images: Any) -> Any:
        return keras.ops.mean(images, (1, 2))


def test_a_model_that_is_written_as_a_class_is_refused(tmp_path: Path) -> None:
    model = Subclassed()
    model(np.zeros((1, 8, 6, 3), np.float32))
    with pytest.raises(ImportFailed, match=r"written as a class; .*model\.export"):
        importing.read(saved(model, tmp_path), preprocess="scale01")


class Sum(tf.Module):  # type: ignore[misc]  # TensorFlow has no types
    """Adds images up, all to one."""

    @tf.function(input_signature=[tf.TensorSpec((None, 8, 6, 3), tf.float32)])
    def __call__(self, images: Any) -> Any:
        return tf.reduce_sum(images, 0)


def test_an_output_without_a_row_for_each_image_is_refused(tmp_path: Path) -> None:
    tf.saved_model.save(Sum(), str(tmp_path))
    with pytest.raises(ImportFailed, match="expected a row for each"):
        importing.read(tmp_path, preprocess="scale01")


@pytest.mark.parametrize(
    ("shape", "dtype", "preprocess", "message"),
    [
        ((8, 6, 3), "uint8", "scale01", "takes uint8, hence pixels as they are"),
        ((8, 6, 1), "float32", "imagenet-mean", "takes grey ones"),
        ((8, 6, 1), "float32", "imagenet-standard", "takes grey ones"),
    ],
)
def test_preprocessing_that_does_not_fit_is_refused(
    shape: tuple[int, ...],
    dtype: str,
    preprocess: Preprocess,
    message: str,
    tmp_path: Path,
) -> None:
    path = saved(mirror(shape, dtype=dtype), tmp_path)
    with pytest.raises(ImportFailed, match=f"--preprocess {preprocess}.*{message}"):
        importing.read(path, preprocess=preprocess)


class Puzzle(layers.Layer):  # type: ignore[misc]
    """A layer that only this file knows."""


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (layers.Lambda(lambda x: 2 * x), "contains a Lambda layer"),
        (Puzzle(), r"uses 'Puzzle', which is not part of Keras; .*model\.export"),
    ],
)
def test_files_of_keras_3_with_code_of_their_own_are_refused(
    layer: keras.Layer, message: str, tmp_path: Path
) -> None:
    path = saved(keras.Sequential([keras.Input((8, 6, 3)), layer]), tmp_path)
    with pytest.raises(ImportFailed, match=message):
        importing.read(path, preprocess="scale01")


def nothing(path: Path) -> None:
    """Leave it missing."""


def cut(path: Path) -> None:
    saved(mirror(), path.parent).rename(path)
    path.write_bytes(path.read_bytes()[:-100])


def without_config(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", b"")


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("missing.keras", nothing, "cannot read .*missing.keras: No such file"),
        ("model.pkl", lambda path: path.write_bytes(pickle.dumps([])), "is a pickle"),
        ("text.h5", lambda path: path.write_text("Hi"), "is damaged or of another"),
        ("cut.keras", cut, "is damaged or of another format"),
        ("torch.pt", without_config, "zip archive without config.json, hence no"),
        ("empty", Path.mkdir, "directory without saved_model.pb, hence no SavedModel"),
    ],
)
def test_what_is_no_model_is_refused(
    name: str, write: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    write(tmp_path / name)
    with pytest.raises(ImportFailed, match=message):
        importing.read(tmp_path / name, preprocess="scale01")


def test_one_of_several_signatures_must_be_the_default(tmp_path: Path) -> None:
    module = Sum()
    signatures = {"small": module.__call__, "big": module.__call__}
    tf.saved_model.save(module, str(tmp_path), signatures=signatures)
    with pytest.raises(ImportFailed, match="signatures big, small, and none of them"):
        importing.read(tmp_path, preprocess="scale01")


def test_what_cannot_be_called_is_refused(tmp_path: Path) -> None:
    tf.saved_model.save(tf.Module(), str(tmp_path))
    with pytest.raises(ImportFailed, match="no signature and cannot be called"):
        importing.read(tmp_path, preprocess="scale01")


def test_variables_of_tensorflow_1_are_refused(tmp_path: Path) -> None:
    v1 = tf.compat.v1
    with v1.Graph().as_default(), v1.Session() as session:
        images = v1.placeholder(tf.float32, (None, 4, 4, 3))
        weights = v1.get_variable("weights", (48, 2), use_resource=False)
        session.run(v1.global_variables_initializer())
        outputs = {"scores": tf.reshape(images, (-1, 48)) @ weights}
        v1.saved_model.simple_save(
            session, str(tmp_path / "old"), {"images": images}, outputs
        )
    with pytest.raises(ImportFailed, match="made by TensorFlow 1"):
        importing.read(tmp_path / "old", preprocess="scale01")
