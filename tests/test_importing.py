"""Import: other people's models become networks of ours, or a sentence says why not."""

import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from models import importing
from models.importing import FloatPrecision, Imported, ImportFailed, Preprocess
from models.plot import draw
from models.summary import summarise
from service.engines import load

# Keras' writer of weights is older than the present NumPy.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept"
)

Array = np.ndarray[Any, Any]

IMAGES: Final = np.random.default_rng(7).integers(0, 256, (5, 12, 10, 3), np.uint8)

KERAS_2: Final = (
    "functional.h5",
    "sequential.h5",
    "transfer.h5",
    "transfer.keras",
    "mixed.h5",
    "two_outputs.h5",
    "operators.h5",
    "operators.keras",
    "saved",
    "exported",
    "without_signature",
)
KERAS_3: Final = ("keras_3.keras", "keras_3.h5", "keras_3_exported")
TENSORFLOW: Final = ("module", "module_without_signature")
ORIGINALS: Final = KERAS_2 + KERAS_3 + TENSORFLOW

# Runs by itself: the old Keras warns a lot, and a warning is an error in these tests.
KERAS_2_WRITER: Final = '''
import sys
import numpy as np, tensorflow as tf, tf_keras as keras
from tf_keras import layers

directory, images = sys.argv[1], np.load(sys.argv[1] + "/images.npy") / np.float32(255)
random = np.random.default_rng(0)

def trained(model):
    """Weights that tell gamma from beta and mean from variance."""
    model.set_weights([
        random.uniform(0.2, 0.8, w.shape) / (w.shape[-2] if w.ndim > 1 else 1)
        for w in model.get_weights()
    ])
    return model

def write(model, *files, answer=lambda value: {"probabilities": value}, **options):
    for file in files:
        model.save(f"{directory}/{file}", **options)
        np.savez(f"{directory}/{file}.npz", **answer(model.predict(images, verbose=0)))

def body(x):
    x = layers.Conv2D(4, 3, strides=2, padding="same")(x)
    x = layers.BatchNormalization()(x)
    x = layers.ReLU(6.0)(x)
    x = layers.DepthwiseConv2D(3, padding="same")(x)
    x = layers.SeparableConv2D(6, 3)(x)
    x = layers.LeakyReLU(0.1)(x)
    return layers.GlobalAveragePooling2D()(x)

image = keras.Input((12, 10, 3))
classify = layers.Dense(3, activation="softmax", name="animal")
functional = trained(keras.Model(image, classify(body(image))))
write(functional, "functional.h5")
functional.export(f"{directory}/exported")
np.savez(f"{directory}/exported.npz",
         probabilities=functional.predict(images, verbose=0))

sequential = keras.Sequential([
    layers.RandomFlip("horizontal", input_shape=(12, 10, 3)),
    layers.Conv2D(4, 3), layers.BatchNormalization(), layers.Conv2DTranspose(2, 3),
    layers.Flatten(), layers.Dense(1, activation="sigmoid"),
])
write(trained(sequential), "sequential.h5",
      answer=lambda p: {"probabilities": np.hstack([1 - p, p])})

normalise = layers.Normalization()
normalise.adapt(images)
inner = keras.Input((12, 10, 3))
base = keras.Model(inner, body(normalise(inner)))
transfer = trained(keras.Sequential([base, layers.Dropout(0.5), layers.Dense(4)]))
normalise.adapt(images)
base.trainable = False
write(transfer, "transfer.h5", "transfer.keras", answer=lambda z: {"logits": z})

small = trained(keras.Sequential([
    keras.Input((12, 10, 3)), layers.Conv2D(4, 3), layers.BatchNormalization(),
    layers.Dropout(0.5), layers.Flatten(), layers.Dense(3),
]))
write(small, "saved", answer=lambda z: {"logits": z})
write(small, "without_signature", answer=lambda z: {"logits": z}, signatures={})

x = body(image)
two = keras.Model(image, [layers.Dense(8, name="embedding")(x), classify(x)])
write(trained(two), "two_outputs.h5",
      answer=lambda both: dict(zip(["embedding", "animal"], both)))

x = body((image - 0.5) / tf.constant(0.25))
operators = keras.Model(image, layers.Dense(3, activation="softmax")(tf.nn.relu(x)))
write(trained(operators), "operators.h5", "operators.keras")

keras.mixed_precision.set_global_policy("mixed_float16")
x = layers.Dense(3)(body(image))
write(trained(keras.Model(image, layers.Softmax(dtype="float32")(x))), "mixed.h5")
keras.mixed_precision.set_global_policy("float32")

functional.save_weights(f"{directory}/weights.h5")
times = keras.Sequential([layers.Lambda(lambda x: 2 * x, input_shape=(12, 10, 3)),
                          layers.Flatten(), layers.Dense(2)])
times.save(f"{directory}/lambda.h5")

class Mystery(layers.Layer):
    pass

mystery = keras.Sequential([keras.Input((12, 10, 3)), Mystery(), layers.Flatten()])
mystery.save(f"{directory}/mystery.h5")
'''


class Module(tf.Module):  # type: ignore[misc]  # TensorFlow has no types
    """Plain TensorFlow, called once before it was saved and once for training."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = tf.Variable(
            np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
        )

    @tf.function
    def __call__(self, images: Any, training: bool = False) -> Any:
        means = tf.reduce_mean(images, (1, 2))
        return means @ self.matrix * (3.0 if training else 1.0)


def conv_net(image_shape: tuple[int | None, ...] = (12, 10, 3), **options: Any) -> Any:
    keras.utils.set_random_seed(1)
    image = keras.Input(image_shape, **options)
    x = layers.Conv2D(4, 3, activation="relu")(image)
    x = layers.BatchNormalization()(layers.DepthwiseConv2D(3)(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(3, activation="softmax", name="animal")(x))


def write_others(directory: Path) -> None:
    """Originals of Keras 3 and of plain TensorFlow, and what they answer."""
    fed = IMAGES / np.float32(255)
    model = conv_net()
    model.save(directory / "keras_3.keras")
    model.save(directory / "keras_3.h5")
    model.export(directory / "keras_3_exported", verbose=False)
    for name in KERAS_3:
        np.savez(directory / f"{name}.npz", probabilities=model(fed))
    module = Module()
    module(tf.zeros((1, 12, 10, 3)))
    images = tf.TensorSpec((None, 12, 10, 3), tf.float32, name="images")
    module.__call__.get_concrete_function(images, training=True)
    classify = module.__call__.get_concrete_function(images)
    tf.saved_model.save(module, str(directory / "module_without_signature"))
    tf.saved_model.save(
        module, str(directory / "module"), signatures={"classify": classify}
    )
    for name in TENSORFLOW:
        np.savez(directory / f"{name}.npz", logits=module(fed))


@pytest.fixture(scope="module", autouse=True)
def keras_2(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """The old Keras at work, beside the tests that do not need it."""
    directory = tmp_path_factory.mktemp("originals")
    np.save(directory / "images.npy", IMAGES)
    with (
        (directory / "stderr").open("w") as stderr,
        subprocess.Popen(
            [sys.executable, "-c", KERAS_2_WRITER, str(directory)],
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        ) as process,
    ):
        yield directory, process
        process.kill()


@pytest.fixture(scope="module")
def directory(keras_2: tuple[Path, subprocess.Popen[bytes]]) -> Path:
    """Originals that took 0 to 1, and beside each the answers of its maker."""
    directory, process = keras_2
    write_others(directory)
    assert process.wait() == 0, (directory / "stderr").read_text(encoding="utf-8")
    return directory


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """An import, what its original answers to `IMAGES`, and how exactly."""

    imported: Imported
    expected: dict[str, Array]
    tolerance: float


@pytest.fixture(scope="module", params=ORIGINALS)
def case(request: pytest.FixtureRequest, directory: Path) -> Case:
    with np.load(directory / f"{request.param}.npz") as expected:
        return Case(
            imported=importing.read(directory / request.param, preprocess="scale01"),
            expected=dict(expected),
            tolerance=1e-3 if request.param == "mixed.h5" else 1e-4,
        )


def named(imported: Imported, answer: Any) -> dict[str, Any]:
    return answer if isinstance(answer, dict) else {imported.outputs[0].name: answer}


def assert_equal(found: Any, expected: dict[str, Array], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=0, atol=tolerance)


# Preprocessing


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
    tolerance = np.abs(expected).max() * 1e-6
    assert_equal({"logits": imported.network(images)}, {"logits": expected}, tolerance)
    assert_equal(imported.original_outputs(images), {"logits": expected}, tolerance)


def test_an_original_of_uint8_gets_the_pixels_as_they_are(tmp_path: Path) -> None:
    model = keras.Sequential(
        [keras.Input((8, 6, 1), dtype="uint8"), layers.Rescaling(1.0), layers.Flatten()]
    )
    imported = importing.read(saved(model, tmp_path), preprocess="none")
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 6, 1), np.uint8)
    expected = {"logits": images.reshape(4, -1).astype(np.float32)}
    assert_equal({"logits": imported.network(images)}, expected, 0)
    assert_equal(imported.original_outputs(images), expected, 0)


def test_an_original_in_half_precision_is_fed_in_half_precision(tmp_path: Path) -> None:
    path = saved(mirror(dtype="float16"), tmp_path)
    imported = importing.read(path, preprocess="scale01")
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 6, 3), np.uint8)
    expected = (images / 255).astype(np.float16).astype(np.float32).reshape(4, -1)
    assert_equal({"logits": imported.network(images)}, {"logits": expected}, 1e-3)


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
    answer = imported.network(np.zeros((1, 4, 4, 1), np.uint8))
    np.testing.assert_allclose(answer, [expected])


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


def test_the_size_is_chosen_where_the_original_takes_any(tmp_path: Path) -> None:
    path = saved(conv_net((None, None, 3)), tmp_path)
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
    path = saved(conv_net(shape), tmp_path)
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


def test_an_output_without_a_row_for_each_image_is_refused(tmp_path: Path) -> None:
    class Sum(tf.Module):  # type: ignore[misc]
        @tf.function(input_signature=[tf.TensorSpec((None, 8, 6, 3), tf.float32)])
        def __call__(self, images: Any) -> Any:
            return tf.reduce_sum(images, 0)

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


class Puzzle(layers.Layer):  # type: ignore[misc]  # Keras has no types
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
    module = Module()
    images = tf.TensorSpec((None, 12, 10, 3), tf.float32, name="images")
    function = module.__call__.get_concrete_function(images)
    signatures = {"small": function, "big": function}
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


# Labels


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
    assert importing.labels(path, 3) == ("cat", "dog", "bird")


def test_without_a_file_the_labels_are_numbers() -> None:
    assert importing.labels(None, 3) == ("0", "1", "2")


def test_labels_that_occur_twice_are_told_apart(tmp_path: Path) -> None:
    """ImageNet has two cranes: the bird and the machine."""
    path = tmp_path / "labels.txt"
    path.write_text("crane\ndog\ncrane")
    assert importing.labels(path, 3) == ("crane (0)", "dog", "crane (2)")


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
    with pytest.raises(ImportFailed, match=f"--labels: .*{message}"):
        importing.labels(path, 3)


def test_a_missing_file_of_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImportFailed, match=r"--labels: cannot read .*No such file"):
        importing.labels(tmp_path / "labels.txt", 3)


# Originals


def test_an_import_computes_what_the_original_did(case: Case) -> None:
    imported, expected = case.imported, case.expected
    answer = named(imported, imported.network(IMAGES, training=False))
    assert {tensor.dtype for tensor in answer.values()} == {tf.float32}
    assert_equal(answer, expected, case.tolerance)
    assert_equal(imported.original_outputs(IMAGES), expected, case.tolerance)


def test_an_import_says_what_it_takes_and_answers(case: Case) -> None:
    imported, expected = case.imported, case.expected
    (images,) = imported.network.inputs
    assert (images.name, images.dtype) == ("images", "uint8")
    assert images.shape == (None, *imported.image_shape) == (None, 12, 10, 3)
    assert [output.name for output in imported.outputs] == list(expected)
    classifying = next(o for o in imported.outputs if o.role != "other")
    assert expected[classifying.name].shape == (5, imported.classes)


async def test_an_import_is_exported_and_served(case: Case, tmp_path: Path) -> None:
    imported, expected = case.imported, case.expected
    archive = keras.export.ExportArchive()
    archive.track(imported.network)
    archive.add_endpoint(
        "serving_default",
        lambda images: named(imported, imported.network(images, training=False)),
        [tf.TensorSpec((None, *imported.image_shape), tf.uint8, name="images")],
    )
    archive.write_out(str(tmp_path), verbose=False)
    reloaded = tf.saved_model.load(str(tmp_path)).signatures["serving_default"]
    assert_equal(reloaded(images=tf.constant(IMAGES)), expected, case.tolerance)
    engine = load("openvino", tmp_path, slots=1)
    try:
        answer = await engine.infer("serving_default", {"images": IMAGES})
    finally:
        engine.close()
    assert_equal(answer, expected, 1e-3)


def test_an_import_is_drawn_and_summarised(case: Case) -> None:
    network = case.imported.network
    drawing, summary = draw(network), summarise(network)
    for layer in network.layers:
        assert layer.name in summary
    assert "images" in drawing
    assert network.count_params() > 0


def test_the_layers_of_a_keras_model_are_the_network_s_own(directory: Path) -> None:
    """Not one box with a model in it."""
    imported = importing.read(directory / "functional.h5", preprocess="scale01")
    assert "animal" in [layer.name for layer in imported.network.layers]


@pytest.mark.parametrize("name", ["functional.h5", "transfer.keras"])
def test_without_the_old_keras_most_of_its_files_are_read(
    name: str, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "find_spec", lambda _: None)
    assert importing.read(directory / name, preprocess="scale01").castable


@pytest.mark.parametrize("name", ["operators.h5", "operators.keras"])
def test_without_the_old_keras_the_others_are_refused(
    name: str, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "find_spec", lambda _: None)
    with pytest.raises(ImportFailed, match="pip install tf-keras"):
        importing.read(directory / name, preprocess="scale01")


# Precision


@pytest.mark.parametrize("name", ["functional.h5", "transfer.h5", "keras_3.keras"])
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_a_keras_model_can_be_had_in_another_precision(
    name: str, precision: FloatPrecision, directory: Path
) -> None:
    imported = importing.read(directory / name, preprocess="scale01")
    network = importing.cast(imported, precision)
    kinds = {weight.dtype for weight in network.weights}
    assert kinds - {"int64"} == {precision}  # Normalization counts what it saw
    answer = network(IMAGES, training=False)
    assert answer.dtype == tf.float32
    expected = imported.network(IMAGES, training=False)
    np.testing.assert_allclose(answer, expected, atol=0.02)
    assert not np.array_equal(answer, expected)
    assert importing.cast(imported, "float32") is imported.network


@pytest.mark.parametrize("name", ["saved", "operators.h5"])
def test_the_precision_of_a_saved_model_stays(name: str, directory: Path) -> None:
    imported = importing.read(directory / name, preprocess="scale01")
    assert not imported.castable
    with pytest.raises(ImportFailed, match="only --precision float32 or int8"):
        importing.cast(imported, "float16")


# Originals that are refused


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("weights.h5", "holds weights only, .* save the whole model"),
        ("lambda.h5", "contains a Lambda layer, whose Python code will not be run"),
        ("mystery.h5", r"uses 'Mystery', which is not part of Keras; .*model\.export"),
    ],
)
def test_files_of_keras_2_that_cannot_be_imported_say_why(
    name: str, message: str, directory: Path
) -> None:
    with pytest.raises(ImportFailed, match=message):
        importing.read(directory / name, preprocess="scale01")


@pytest.mark.parametrize(
    ("harmless", "harmful"),
    [("math.truediv", "io.write_file"), ("TFOpLambda", "ClassMethod")],
)
def test_the_old_keras_is_not_made_to_call_what_it_should_not(
    harmless: str, harmful: str, directory: Path, tmp_path: Path
) -> None:
    """Its loader would call any public function of TensorFlow that a file names."""
    path = tmp_path / "malicious.keras"
    with zipfile.ZipFile(directory / "operators.keras") as original:
        members = {name: original.read(name) for name in original.namelist()}
    config = members["config.json"].decode()
    assert f'"{harmless}"' in config
    members["config.json"] = config.replace(f'"{harmless}"', f'"{harmful}"').encode()
    with zipfile.ZipFile(path, "w") as malicious:
        for name, content in members.items():
            malicious.writestr(name, content)
    with pytest.raises(ImportFailed, match=f"calls .*{harmful}.* of TensorFlow"):
        importing.read(path, preprocess="scale01")


def test_a_damaged_h5_is_refused(directory: Path, tmp_path: Path) -> None:
    whole = (directory / "functional.h5").read_bytes()
    path = tmp_path / "half.h5"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImportFailed, match=r"half\.h5 cannot be read and may be damag"):
        importing.read(path, preprocess="scale01")


def test_a_damaged_saved_model_is_refused(directory: Path, tmp_path: Path) -> None:
    shutil.copytree(directory / "saved", tmp_path, dirs_exist_ok=True)
    for file in (tmp_path / "variables").iterdir():
        file.unlink()
    with pytest.raises(ImportFailed, match="cannot be read and may be damaged: "):
        importing.read(tmp_path, preprocess="scale01")
