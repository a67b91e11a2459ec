"""The same network in float32, float16, bfloat16 and int8, and what each costs."""

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from models import precision
from models.card import INT8_FILE, Precision, PrecisionMeasurement
from models.datasets import Dataset
from models.precision import (
    AccuracyDrop,
    Candidate,
    PrecisionError,
    WeightOverflow,
    cast_weights,
    check_accuracy_drop,
    measure,
    table,
    tensorflow_candidate,
)
from models.quantisation import openvino_candidate, quantise
from models.tasks import Predict
from service import engines

FLOATS: Final[tuple[Precision, ...]] = ("float32", "float16", "bfloat16")


def network(dtype: str = "float32") -> keras.Model:
    """A stem, and one block of two branches."""
    with dtype_policy(dtype):
        images = keras.Input((28, 28, 1), dtype="uint8", name="images")
        x = layers.Rescaling(1 / 127.5, offset=-1)(images)
        for filters in (16, 32):
            x = convolution(x, filters, 3)
            x = layers.MaxPooling2D(2)(x)
        branches = [convolution(x, 32, 1), convolution(x, 32, 3)]
        x = layers.Flatten()(layers.Concatenate()(branches))
        x = layers.Dense(10)(x)
        return keras.Model(images, layers.Softmax(dtype="float32")(x))


def convolution(x: Any, filters: int, kernel_size: int) -> Any:
    x = layers.Conv2D(filters, kernel_size, padding="same", use_bias=False)(x)
    return layers.ReLU()(layers.BatchNormalization(momentum=0.8)(x))


@contextmanager
def dtype_policy(dtype: str) -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    yield
    keras.config.set_dtype_policy(before)


def export(
    answer: Callable[..., Any], inputs: tuple[str, ...], directory: Path
) -> Path:
    archive = keras.export.ExportArchive()
    specs = [tf.TensorSpec((None, 28, 28, 1), tf.uint8, name=name) for name in inputs]
    archive.add_endpoint("serving_default", answer, specs)
    archive.write_out(str(directory), verbose=False)
    return directory


def export_classifier(model: keras.Model, directory: Path) -> Path:
    def answer(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"probabilities": model(images, training=False)}

    return export(answer, ("images",), directory)


@pytest.fixture(scope="module")
def trained(digit_data: Dataset) -> keras.Model:
    keras.utils.set_random_seed(0)
    model = network()
    model.compile(keras.optimizers.Adam(5e-3), "sparse_categorical_crossentropy")
    model.fit(
        digit_data.train.images[::2],
        digit_data.train.classes[::2],
        batch_size=50,
        epochs=3,
        verbose=0,
    )
    return model


@pytest.fixture(scope="module")
def versions(
    trained: keras.Model, tmp_path_factory: pytest.TempPathFactory
) -> dict[Precision, Path]:
    """The trained network, exported in each precision that TensorFlow computes in."""
    directory = tmp_path_factory.mktemp("versions")
    made = {}
    for dtype in FLOATS:
        model = network(dtype)
        cast_weights(trained, model)
        made[dtype] = export_classifier(model, directory / dtype)
    return made


@pytest.fixture(scope="module")
def int8_file(
    versions: Mapping[Precision, Path],
    digit_data: Dataset,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    target = tmp_path_factory.mktemp("int8") / INT8_FILE
    quantise(versions["float32"], {"images": digit_data.train.images}, target)
    return target


@pytest.fixture(scope="module")
def accuracy(digit_data: Dataset) -> Callable[[Predict], float]:
    def score(predict: Predict) -> float:
        guesses = predict({"images": digit_data.held_out.images})["probabilities"]
        return float(np.mean(guesses.argmax(axis=1) == digit_data.held_out.classes))

    return score


def measured(
    precision: Precision, *, accuracy: float | None, images_per_second: float = 1000
) -> PrecisionMeasurement:
    return PrecisionMeasurement(
        precision=precision,
        engine="openvino",
        size_bytes=1_500_000,
        batch_size=32,
        images_per_second=images_per_second,
        accuracy=accuracy,
    )


def test_int8_is_about_as_accurate_as_float32(
    versions: Mapping[Precision, Path],
    int8_file: Path,
    accuracy: Callable[[Predict], float],
) -> None:
    float32 = accuracy(openvino_candidate("float32", versions["float32"]).predict)
    assert float32 > 0.9
    int8 = accuracy(openvino_candidate("int8", int8_file).predict)
    assert int8 == pytest.approx(float32, abs=0.02)


def test_int8_weights_are_a_quarter_of_float32s(
    versions: Mapping[Precision, Path], int8_file: Path
) -> None:
    (float32,) = (versions["float32"] / "variables").glob("*.data-*")
    int8_bytes = int8_file.with_suffix(".bin").stat().st_size
    assert int8_bytes < float32.stat().st_size / 3


def test_quantising_twice_gives_the_same_weights(
    versions: Mapping[Precision, Path],
    int8_file: Path,
    digit_data: Dataset,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    again = tmp_path / "again.xml"
    quantise(versions["float32"], {"images": digit_data.train.images}, again)
    expected = int8_file.with_suffix(".bin").read_bytes()
    assert again.with_suffix(".bin").read_bytes() == expected
    printed = capfd.readouterr()
    assert printed.out.startswith("calibrating")
    assert printed.out.strip().endswith("300/300")
    assert "\n" not in printed.out.strip()
    assert not printed.err


def test_quantising_looks_at_samples_of_all_labels_of_a_sorted_data_set(
    versions: Mapping[Precision, Path],
    int8_file: Path,
    digit_data: Dataset,
    tmp_path: Path,
    accuracy: Callable[[Predict], float],
) -> None:
    """A thousand black images come first, which alone would leave no range."""
    black = np.zeros((1000, 28, 28, 1), np.uint8)
    images = np.concatenate([black, digit_data.train.images[:1000]])
    quantise(versions["float32"], {"images": images}, tmp_path / "sorted.xml")
    sorted_first = openvino_candidate("int8", tmp_path / "sorted.xml")
    expected = accuracy(openvino_candidate("int8", int8_file).predict)
    assert accuracy(sorted_first.predict) == pytest.approx(expected, abs=0.03)


def test_quantising_keeps_the_names_of_several_inputs_and_outputs(
    tmp_path: Path, digit_data: Dataset
) -> None:
    trunk = network()

    def compare(left: tf.Tensor, right: tf.Tensor) -> dict[str, tf.Tensor]:
        a, b = trunk(left, training=False), trunk(right, training=False)
        same = tf.reduce_sum(a * b, axis=1, keepdims=True)
        return {"same": same, "left_probabilities": a, "right_probabilities": b}

    saved_model = export(compare, ("left", "right"), tmp_path / "1")
    target = saved_model / INT8_FILE
    images = digit_data.train.images[:20]
    quantise(saved_model, {"left": images, "right": images[::-1]}, target)
    tensorflow = engines.load("tensorflow", saved_model, slots=1)
    int8 = engines.load("openvino", saved_model, slots=1)
    for ours, theirs in zip(
        int8.signatures.values(), tensorflow.signatures.values(), strict=True
    ):
        assert ours.inputs == theirs.inputs
        assert ours.outputs.keys() == theirs.outputs.keys()


def test_quantising_what_is_no_model_says_what_openvino_found(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(b"damaged")
    images = np.zeros((1, 28, 28, 1), np.uint8)
    with pytest.raises(PrecisionError, match=r"OpenVINO cannot read .*: \S+"):
        quantise(tmp_path, {"images": images}, tmp_path / INT8_FILE)


def test_without_nncf_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    monkeypatch.delitem(sys.modules, "models.quantisation")
    with pytest.raises(ImportError, match=r"pip install 'blockserve\[int8\]'"):
        importlib.import_module("models.quantisation")


def test_quantising_reports_nothing_to_anyone(
    versions: Mapping[Precision, Path], tmp_path: Path
) -> None:
    """In a fresh interpreter that records processes started and hosts looked up."""
    paths = [str(versions["float32"]), str(tmp_path / "int8.xml")]
    code = f"""
import sys

AUDITED = {{"os.fork", "socket.connect", "socket.getaddrinfo"}}
events = []
sys.addaudithook(lambda event, _: event in AUDITED and events.append(event))
from pathlib import Path
import numpy as np
from models.quantisation import quantise

images = np.zeros((2, 28, 28, 1), np.uint8)
saved_model, target = map(Path, {paths})
quantise(saved_model, {{"images": images}}, target)
print({{"openvino_telemetry", "openvino.tools.ovc"}} & sys.modules.keys(), events)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "set() []"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_weights_are_half_the_size_and_about_as_accurate(
    dtype: Precision,
    trained: keras.Model,
    versions: Mapping[Precision, Path],
    accuracy: Callable[[Predict], float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(precision, "ROUND_SECONDS", 0.01)
    candidates = [tensorflow_candidate(p, versions[p]) for p in ("float32", dtype)]
    images = {"images": np.zeros((3, 28, 28, 1), np.uint8)}
    float32, half = measure(candidates, images, accuracy)
    assert (float32.precision, half.precision) == ("float32", dtype)
    assert (half.engine, half.batch_size) == ("tensorflow", 32)
    saved_bytes = float32.size_bytes - half.size_bytes
    assert saved_bytes == pytest.approx(2 * trained.count_params(), rel=0.1)
    assert half.images_per_second > 0
    assert float32.accuracy is not None
    assert half.accuracy == pytest.approx(float32.accuracy, abs=0.01)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_embedded_engine_runs_half_precision_too(
    dtype: Precision, versions: Mapping[Precision, Path], digit_data: Dataset
) -> None:
    images = {"images": digit_data.held_out.images[:64]}
    expected = tensorflow_candidate(dtype, versions[dtype]).predict(images)
    answer = openvino_candidate(dtype, versions[dtype]).predict(images)
    assert answer["probabilities"].dtype == np.float32
    np.testing.assert_allclose(
        answer["probabilities"], expected["probabilities"], atol=0.05
    )


def test_candidates_take_turns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(precision, "ROUND_SECONDS", 0.001)
    (tmp_path / "model.xml").write_bytes(b"<net/>")
    (tmp_path / "model.bin").write_bytes(b"weights")
    turns: list[str] = []

    def candidate(name: Precision) -> Candidate:
        def predict(images: Mapping[str, Any]) -> Mapping[str, Any]:
            assert images["images"].shape == (precision.BATCH_SIZE, 1, 1, 1)
            if turns[-1:] != [name]:
                turns.append(name)
            return images

        model = tmp_path / "model.xml"
        return Candidate(
            precision=name, engine="openvino", model=model, predict=predict
        )

    images = {"images": np.zeros((5, 1, 1, 1), np.uint8)}
    made = measure([candidate("float32"), candidate("int8")], images)
    assert turns[-2 * precision.ROUNDS :] == ["float32", "int8"] * precision.ROUNDS
    assert [m.size_bytes for m in made] == [len(b"<net/>weights")] * 2
    assert [m.accuracy for m in made] == [None, None]


def test_a_drop_beyond_the_limit_is_refused_and_told_in_numbers() -> None:
    float32 = measured("float32", accuracy=0.975)
    with pytest.raises(AccuracyDrop) as refusal:
        check_accuracy_drop(
            float32, measured("int8", accuracy=0.9631), max_drop_points=1
        )
    assert str(refusal.value) == (
        "int8 has an accuracy of 96.31%, float32 one of 97.50%: a drop of 1.19 points, "
        "and --max-accuracy-drop allows 1"
    )


@pytest.mark.parametrize(
    ("float32", "int8"), [(0.97, 0.96), (0.97, 0.98), (0.97, None), (None, 0.1)]
)
def test_a_drop_up_to_the_limit_a_gain_and_the_unknown_pass(
    float32: float | None, int8: float | None
) -> None:
    check_accuracy_drop(
        measured("float32", accuracy=float32),
        measured("int8", accuracy=int8),
        max_drop_points=1,
    )


def test_the_table_compares_with_float32() -> None:
    made = table(
        [
            measured("float32", accuracy=0.975),
            measured("int8", accuracy=0.9731, images_per_second=3456),
            measured("bfloat16", accuracy=None),
        ]
    )
    columns = {column.header: list(column.cells) for column in made.columns}
    assert columns == {
        "precision": ["float32", "int8", "bfloat16"],
        "engine": ["openvino"] * 3,
        "size": ["1.5 MB"] * 3,
        "images/s": ["1,000", "3,456", "1,000"],
        "speed": ["1.00x", "3.46x", "1.00x"],
        "accuracy": ["97.50%", "97.31%", "-"],
        "difference": ["+0.00 points", "-0.19 points", "-"],
    }


def test_weights_too_large_for_float16_are_refused() -> None:
    source = network()
    source.weights[0].assign(np.full(source.weights[0].shape, 1e5))
    with pytest.raises(WeightOverflow, match=r"kernel holds 1e\+05.*float16"):
        cast_weights(source, network("float16"))
    cast_weights(source, network("bfloat16"))


def test_weights_are_cast_between_the_same_networks_only() -> None:
    images = keras.Input((4,))
    small = keras.Model(images, layers.Dense(2)(images))
    large = keras.Model(images, layers.Dense(3)(images))
    with pytest.raises(ValueError, match=r"\(4, 3\).*\(4, 2\)"):
        cast_weights(small, large)
    with pytest.raises(ValueError, match="2 weights"):
        cast_weights(network(), small)
