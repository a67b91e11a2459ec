"""Originals of every kind: what an import of each answers, and how it fares."""

import io
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from rich.console import Console

from models import importing, subjects
from models.card import FloatPrecision, Precision
from models.importing import Imported, ImportFailed
from models.plan import Plan
from models.plot import draw
from models.precision import WeightOverflow
from models.summary import summarise
from service.engines import load

# Keras' writer of weights is older than the present NumPy.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept"
)

Array = np.ndarray[Any, Any]

IMAGES: Final = np.random.default_rng(7).integers(0, 256, (5, 12, 10, 3), np.uint8)

KERAS_3: Final = ("keras_3.keras", "keras_3.h5", "keras_3_exported")
TENSORFLOW: Final = ("module", "module_without_signature")
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
# Those of Keras 2 last: they take a while to write.
ORIGINALS: Final = KERAS_3 + TENSORFLOW + KERAS_2
# Without those that become the same network as another file's.
SERVED: Final = tuple(
    sorted({*ORIGINALS} - {"keras_3.h5", "transfer.keras", "operators.keras"})
)
WRITER: Final = Path(__file__).with_name("keras_2_originals.py")


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


def conv_net() -> keras.Model:
    keras.utils.set_random_seed(1)
    image = keras.Input(IMAGES.shape[1:])
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Originals:
    """Models that took 0 to 1, and beside each the answers of its maker.

    The old Keras is still at work when the others are there already.
    """

    directory: Path
    keras_2: subprocess.Popen[bytes]
    imports: dict[str, Imported]

    def path(self, name: str) -> Path:
        if name not in KERAS_3 + TENSORFLOW:
            stderr = self.directory / "stderr"
            assert self.keras_2.wait() == 0, stderr.read_text(encoding="utf-8")
        return self.directory / name

    def read(self, name: str) -> Imported:
        """Read it once for all tests."""
        if name not in self.imports:
            imported = importing.read(self.path(name), preprocess="scale01")
            self.imports[name] = imported
        return self.imports[name]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Originals]:
    directory = tmp_path_factory.mktemp("originals")
    np.save(directory / "images.npy", IMAGES)
    with (
        (directory / "stderr").open("w") as stderr,
        subprocess.Popen(
            [sys.executable, str(WRITER), str(directory)],
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        ) as process,
    ):
        try:
            write_others(directory)
            yield Originals(directory=directory, keras_2=process, imports={})
        finally:
            process.kill()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """An import, what its original answers to `IMAGES`, and how exactly."""

    imported: Imported
    expected: dict[str, Array]
    tolerance: float


@pytest.fixture(scope="module", params=ORIGINALS)
def case(request: pytest.FixtureRequest, originals: Originals) -> Case:
    imported = originals.read(request.param)
    with np.load(originals.directory / f"{request.param}.npz") as expected:
        return Case(
            imported=imported,
            expected=dict(expected),
            tolerance=1e-3 if request.param == "mixed.h5" else 1e-4,
        )


def named(imported: Imported, answer: Any) -> dict[str, Any]:
    return answer if isinstance(answer, dict) else {imported.outputs[0].name: answer}


def assert_equal(found: Any, expected: dict[str, Array], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=0, atol=tolerance)


# Imports


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


@pytest.mark.parametrize("case", SERVED, indirect=True)
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


def test_the_layers_of_a_keras_model_are_the_network_s_own(
    originals: Originals,
) -> None:
    """Not one box with a model in it."""
    imported = originals.read("functional.h5")
    assert "animal" in [layer.name for layer in imported.network.layers]


@pytest.mark.parametrize("name", ["functional.h5", "transfer.keras"])
def test_without_the_old_keras_most_of_its_files_are_read(
    name: str, originals: Originals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tf_keras", None)
    imported = importing.read(originals.path(name), preprocess="scale01")
    assert imported.castable


@pytest.mark.parametrize("name", ["operators.h5", "operators.keras"])
def test_without_the_old_keras_the_others_are_refused(
    name: str, originals: Originals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tf_keras", None)
    with pytest.raises(ImportFailed, match="pip install tf-keras"):
        importing.read(originals.path(name), preprocess="scale01")


# Precision


@pytest.mark.parametrize("name", ["functional.h5", "transfer.h5", "keras_3.keras"])
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_a_keras_model_can_be_had_in_another_precision(
    name: str, precision: FloatPrecision, originals: Originals
) -> None:
    imported = originals.read(name)
    network = importing.cast(imported, precision)
    kinds = {weight.dtype for weight in network.weights}
    assert kinds - {"int64"} == {precision}  # Normalization counts what it saw
    answer = network(IMAGES, training=False)
    assert answer.dtype == tf.float32
    expected = imported.network(IMAGES, training=False)
    np.testing.assert_allclose(answer, expected, atol=0.02)
    assert not np.array_equal(answer, expected)
    assert importing.cast(imported, "float32") is imported.network


def test_a_weight_too_large_for_half_precision_is_told(tmp_path: Path) -> None:
    model, path = conv_net(), tmp_path / "large.keras"
    model.get_layer("animal").bias.assign([0, 2.0**20, 0])
    model.save(path)
    imported = importing.read(path, preprocess="scale01")
    with pytest.raises(WeightOverflow, match=r"holds 1\.05e\+06, .* in float16"):
        importing.cast(imported, "float16")
    assert importing.cast(imported, "bfloat16").get_layer("animal").bias[1] == 2**20


@pytest.mark.parametrize("name", ["saved", "operators.h5"])
def test_the_precision_of_a_saved_model_stays(name: str, originals: Originals) -> None:
    imported = originals.read(name)
    assert not imported.castable
    with pytest.raises(ImportFailed, match="only --precision float32 or int8"):
        importing.cast(imported, "float16")


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_that_it_stays_is_told_before_any_data_is_looked_for(
    precision: Precision, originals: Originals, tmp_path: Path
) -> None:
    """Reading a data set can take minutes; here, there is none."""
    plan = Plan(
        source=originals.path("keras_3_exported"),
        precision=precision,
        dataset=str(tmp_path / "absent"),
    )
    assert plan.source is not None
    with pytest.raises(ImportFailed, match=f"--precision {precision}: .* SavedModel"):
        subjects.imported(plan, plan.source, Console(file=io.StringIO()))


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
    name: str, message: str, originals: Originals
) -> None:
    with pytest.raises(ImportFailed, match=message):
        originals.read(name)


@pytest.mark.parametrize(
    ("harmless", "harmful"),
    [("math.truediv", "io.write_file"), ("TFOpLambda", "ClassMethod")],
)
def test_the_old_keras_is_not_made_to_call_what_it_should_not(
    harmless: str, harmful: str, originals: Originals, tmp_path: Path
) -> None:
    """Its loader would call any public function of TensorFlow that a file names."""
    path = tmp_path / "malicious.keras"
    with zipfile.ZipFile(originals.path("operators.keras")) as original:
        members = {name: original.read(name) for name in original.namelist()}
    config = members["config.json"].decode()
    assert f'"{harmless}"' in config
    members["config.json"] = config.replace(f'"{harmless}"', f'"{harmful}"').encode()
    with zipfile.ZipFile(path, "w") as malicious:
        for name, content in members.items():
            malicious.writestr(name, content)
    with pytest.raises(ImportFailed, match=f"calls .*{harmful}.* of TensorFlow"):
        importing.read(path, preprocess="scale01")


def test_a_damaged_h5_is_refused(originals: Originals, tmp_path: Path) -> None:
    whole = originals.path("functional.h5").read_bytes()
    path = tmp_path / "half.h5"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImportFailed, match=r"half\.h5 cannot be read and may be damag"):
        importing.read(path, preprocess="scale01")


def test_a_damaged_saved_model_is_refused(originals: Originals, tmp_path: Path) -> None:
    shutil.copytree(originals.path("saved"), tmp_path, dirs_exist_ok=True)
    for file in (tmp_path / "variables").iterdir():
        file.unlink()
    with pytest.raises(ImportFailed, match="cannot be read and may be damaged: "):
        importing.read(tmp_path, preprocess="scale01")
