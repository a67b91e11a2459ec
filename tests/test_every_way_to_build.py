"""Every architecture, and models from elsewhere: built, then served by the gateway."""

import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import tensorflow as tf
from rich.console import Console

from models.architectures import ARCHITECTURES
from models.build import build
from models.card import ModelCard
from models.datasets import Dataset
from models.plan import Plan
from models.precision import AccuracyDrop
from service.repository import Target
from tests.photographs import SOURCES, write_crops
from tests.support import BLOCKSERVE, encode, serving, started

LABELS = tuple(sorted(SOURCES))
# Starting takes less, 500 epochs many times more.
CPU_SECONDS_IN_TRAINING = 20


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few photographs of each of five labels."""
    return write_crops(tmp_path_factory.mktemp("pictures"), of_each=12)


def built(plan: Plan, repository: Path, name: str) -> ModelCard:
    with (repository.parent / "printed.txt").open("a", encoding="utf-8") as printed:
        console = Console(file=printed, width=200)
        _, card = build(plan, name=name, repository=repository, console=console)
    return card


@pytest.fixture(scope="module")
def every_architecture(
    pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Mapping[str, ModelCard]]:
    """A repository with each architecture, trained for an epoch at its smallest."""
    repository = tmp_path_factory.mktemp("every") / "repository"
    cards = {}
    for name, architecture in ARCHITECTURES.items():
        side = max(24, architecture.smallest_side)
        plan = Plan(
            architecture=name,
            dataset=str(pictures),
            size=(side, side),
            width=0.125,
            epochs=1,
            # An epoch teaches too little for predictions that a pixel cannot change.
            max_changed_predictions=100,
        )
        cards[name] = built(plan, repository, name)
    return repository, cards


@pytest.mark.slow
async def test_all_architectures_are_built_and_classify_over_http(
    every_architecture: tuple[Path, Mapping[str, ModelCard]], pictures: Path
) -> None:
    repository, cards = every_architecture
    picture = (pictures / "cat" / "0.png").read_bytes()
    assert len(cards) == 9
    async with serving(repository, engine="openvino") as served:
        listed = (await served.client.get("/models")).json()
        assert {model["name"] for model in listed["models"]} == set(ARCHITECTURES)
        for name, card in cards.items():
            answer = await served.client.post(
                f"/models/{name}/classify?top_k=5", content=picture
            )
            if card.image_input is None:
                assert answer.status_code == 400
                continue
            assert answer.status_code == 200, (name, answer.text)
            (result,) = answer.json()["results"]
            predictions = result["predictions"]
            assert {p["label"] for p in predictions} == set(LABELS), name
            assert sum(p["probability"] for p in predictions) == pytest.approx(
                1, abs=1e-4
            )


@pytest.mark.slow
async def test_siamese_answers_two_named_images_by_name(
    every_architecture: tuple[Path, Mapping[str, ModelCard]],
) -> None:
    """Through the gateway's batcher, where the endpoints for tensors come in."""
    repository, cards = every_architecture
    outputs = {output.name for output in cards["siamese"].outputs}
    assert outputs == {"same", "left_probabilities", "right_probabilities"}
    random = np.random.default_rng(0)
    left, right = random.integers(0, 256, (2, 3, 24, 24, 3), np.uint8)
    async with serving(repository, engine="openvino") as served:
        with served.running.gateway.repository.lease(Target(name="siamese")) as version:
            signature = version.engine.signatures["serving_default"]
            assert set(signature.inputs) == {"left", "right"}
            assert set(signature.outputs) == outputs

            async def ask(**images: Any) -> Mapping[str, Any]:
                rows = signature.validate(images)
                submit = version.batchers["serving_default"].submit
                return await submit(images, rows=rows, deadline=float("inf")).answer

            answer = await ask(left=left, right=right)
            swapped = await ask(left=right, right=left)
    assert answer["same"].shape == (3, 1)
    assert answer["left_probabilities"].shape == (3, len(LABELS))
    np.testing.assert_allclose(answer["same"], swapped["same"], atol=1e-5)
    np.testing.assert_allclose(
        answer["left_probabilities"], swapped["right_probabilities"], atol=1e-5
    )


@pytest.mark.slow
def test_every_card_tells_what_was_built_on_what_and_how_well(
    every_architecture: tuple[Path, Mapping[str, ModelCard]],
) -> None:
    _, cards = every_architecture
    for name, card in cards.items():
        assert card.architecture == name
        assert card.labels == LABELS
        assert card.data is not None
        assert card.data.images == dict.fromkeys(LABELS, 12)
        assert card.recipe["epochs"] == 1
        assert card.recipe["width"] == 0.125
        assert card.parity is not None
        assert card.parity.max_abs_difference <= 1e-4
        assert {row.path for row in card.preprocessing} == {"gateway", "serving_bytes"}
        assert set(card.frameworks) == {"keras", "tensorflow", "numpy"}
        assert set(card.accuracy[-1].labels) == set(LABELS)


def run(*arguments: str, cwd: Path) -> str:
    """Run the program as a user does; what it printed."""
    done = subprocess.run(
        [*BLOCKSERVE, *arguments], capture_output=True, text=True, check=False, cwd=cwd
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("resize", ["stretch", "pad"])
def test_a_folder_of_photographs_is_learned_and_served(
    tmp_path: Path, resize: str
) -> None:
    """From a folder to a label in two commands, one file of it being damaged."""
    write_crops(tmp_path / "pictures", of_each=60)
    (tmp_path / "pictures" / "cat" / "damaged.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    printed = run(
        *("build", "inception", "--dataset", "pictures", "--name", "photographs"),
        *("--size", "48", "--resize", resize, "--epochs", "12"),
        *("--repository", "repository"),
        cwd=tmp_path,
    )
    assert "skipped cat/damaged.jpg: " in printed
    card = ModelCard.read(tmp_path / "repository" / "photographs" / "1")
    assert card is not None
    assert card.image_input is not None
    assert (card.image_input.channels, card.image_input.resize) == (3, resize)
    (accuracy,) = card.accuracy
    assert accuracy.value >= 0.85
    fresh = write_crops(tmp_path / "fresh", of_each=8, seed=1)
    right = 0
    with started("--repository", "repository", cwd=tmp_path) as (_, url, _):
        for label in LABELS:
            for path in (fresh / label).iterdir():
                answer = httpx.post(f"{url}/classify", content=path.read_bytes())
                (result,) = answer.raise_for_status().json()["results"]
                right += result["predictions"][0]["label"] == label
    assert right / (8 * len(LABELS)) >= 0.8


@pytest.mark.slow
def test_twenty_pictures_of_each_label_are_enough_for_the_default_recipe(
    tmp_path: Path,
) -> None:
    pictures = write_crops(tmp_path / "pictures", of_each=20)
    plan = Plan(dataset=str(pictures), size=(64, 64))
    card = built(plan, tmp_path / "repository", "few")
    (accuracy,) = card.accuracy
    assert accuracy.value >= 0.7


OLD_KERAS = """
import sys, numpy as np, tf_keras as keras
images = keras.Input((32, 32, 3))
x = keras.layers.Conv2D(8, 3, activation="relu")(images)
x = keras.layers.BatchNormalization()(x)
x = keras.layers.GlobalAveragePooling2D()(x)
model = keras.Model(images, keras.layers.Dense(3, activation="softmax")(x))
model.save(sys.argv[1])
pixels = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3)).astype("float32")
np.save(sys.argv[2], model.predict(pixels / 255, verbose=0))
"""


@pytest.mark.slow
def test_a_file_of_an_old_keras_is_imported_and_served(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", OLD_KERAS, "old.h5", "answer.npy"],
        check=True,
        capture_output=True,
        cwd=tmp_path,
    )
    (tmp_path / "labels.txt").write_text("ant\nbee\ncow\n")
    run(
        *("build", "--from", "old.h5", "--preprocess", "scale01"),
        *("--labels", "labels.txt", "--repository", "repository"),
        cwd=tmp_path,
    )
    card = ModelCard.read(tmp_path / "repository" / "old" / "1")
    assert card is not None
    assert card.labels == ("ant", "bee", "cow")
    assert card.architecture == "imported from h5"
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    with started("--repository", "repository", cwd=tmp_path) as (_, url, _):
        answer = httpx.post(f"{url}/classify?top_k=3", content=encode(pixels))
    (result,) = answer.raise_for_status().json()["results"]
    got = {p["label"]: p["probability"] for p in result["predictions"]}
    (expected,) = np.load(tmp_path / "answer.npy")
    assert [got[label] for label in card.labels] == pytest.approx(expected, abs=1e-3)


@pytest.mark.slow
def test_a_version_of_our_own_is_imported_with_its_labels_and_its_name(
    every_architecture: tuple[Path, Mapping[str, ModelCard]], tmp_path: Path
) -> None:
    repository, _ = every_architecture
    version = repository / "googlenet" / "1"
    # After its one epoch the network has no opinion that a pixel could not change.
    anything_goes = ("--max-changed-predictions", "100")
    command = ("build", "--from", str(version), "--repository", "again")
    run(*command, *anything_goes, cwd=tmp_path)
    card = ModelCard.read(tmp_path / "again" / "googlenet" / "1")
    assert card is not None
    assert card.labels == LABELS
    assert card.architecture == "imported from SavedModel"


@pytest.mark.slow
def test_ctrl_c_publishes_the_best_weights_so_far(tmp_path: Path) -> None:
    command = [*BLOCKSERVE, "build", "lenet", "--epochs", "500", "--patience", "500"]
    with subprocess.Popen(
        [*command, "--repository", str(tmp_path / "repository")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        program = psutil.Process(process.pid)
        while program.cpu_times().user < CPU_SECONDS_IN_TRAINING:
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0, printed
    assert "ending the training; the best weights so far are kept" in printed
    card = ModelCard.read(tmp_path / "repository" / "lenet" / "1")
    assert card is not None
    assert card.training is not None
    assert card.training.interrupted
    assert 1 <= card.training.best_epoch <= card.training.epochs < 500


@pytest.mark.slow
def test_siamese_learns_to_tell_digits_apart(tmp_path: Path) -> None:
    """In half of the recipe's epochs."""
    run(
        *("build", "siamese", "--epochs", "8", "--repository", "repository"),
        cwd=tmp_path,
    )
    card = ModelCard.read(tmp_path / "repository" / "siamese" / "1")
    assert card is not None
    values = {accuracy.data: accuracy.value for accuracy in card.accuracy}
    assert len(values) == 4
    assert all(value >= 0.96 for value in values.values()), values


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A quantised version of a short training, and what its build printed."""
    directory = tmp_path_factory.mktemp("int8")
    printed = run(
        *("build", "--epochs", "4", "--precision", "int8", "--max-accuracy-drop", "3"),
        *("--repository", "repository"),
        cwd=directory,
    )
    return directory / "repository", printed


@pytest.mark.slow
async def test_int8_is_compared_with_float32_and_served(
    int8: tuple[Path, str], digit_data: Dataset
) -> None:
    repository, printed = int8
    card = ModelCard.read(repository / "inception" / "1")
    assert card is not None
    assert card.precision == "int8"
    float32, quantised = card.precisions
    assert (float32.precision, quantised.precision) == ("float32", "int8")
    assert quantised.size_bytes < float32.size_bytes / 2
    assert float32.accuracy is not None
    assert quantised.accuracy is not None
    assert abs(float32.accuracy - quantised.accuracy) <= 0.03
    assert re.search(r"│ int8 +│ openvino +│", printed)
    held_out = digit_data.held_out
    right = 0
    async with serving(repository, engine="openvino") as served:
        for pixels, label in zip(held_out.images[:100], held_out.classes, strict=False):
            body = encode(pixels[:, :, 0])
            answer = await served.client.post("/classify", content=body)
            (result,) = answer.json()["results"]
            right += result["predictions"][0]["index"] == label
    assert right / 100 >= quantised.accuracy - 0.1


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_halves_the_size_and_is_served(
    tmp_path: Path, precision: Any, pictures: Path
) -> None:
    plan = Plan(
        architecture="inception",
        dataset=str(pictures),
        size=(24, 24),
        epochs=2,
        precision=precision,
        max_accuracy_drop=20,
        max_changed_predictions=100,
    )
    card = built(plan, tmp_path / "repository", "half")
    float32, half = card.precisions
    assert (float32.precision, half.precision) == ("float32", precision)
    assert half.size_bytes < 0.75 * float32.size_bytes
    assert card.precision == precision
    directory = tmp_path / "repository" / "half" / "1"
    kinds = {
        tf.train.load_variable(str(directory / "variables/variables"), name).dtype.name
        for name, shape in tf.train.list_variables(
            str(directory / "variables/variables")
        )
        if len(shape) == 4
    }
    assert kinds == {precision}
    assert [path.name for path in (tmp_path / "repository").iterdir()] == ["half"]


@pytest.mark.slow
def test_a_precision_that_costs_too_much_accuracy_is_not_published(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here, one whose weights are lost on the way."""

    def lose_weights(_: Any, target: Any) -> None:
        target.set_weights([0 * weight for weight in target.get_weights()])

    monkeypatch.setattr("models.subjects.precision.cast_weights", lose_weights)
    plan = Plan(
        architecture="inception",
        dataset=str(pictures),
        size=(24, 24),
        epochs=8,
        precision="float16",
    )
    with pytest.raises(AccuracyDrop, match="--max-accuracy-drop allows 1"):
        built(plan, tmp_path / "repository", "lost")
    assert list((tmp_path / "repository").iterdir()) == []


def test_a_build_is_compiled_and_warmed_up_as_its_plan_says(tmp_path: Path) -> None:
    plan = Plan(architecture="lenet", untrained=True, xla=True, batch_sizes=(1, 3))
    card = built(plan, tmp_path / "repository", "compiled")
    assert (card.recipe["xla"], card.recipe["batch_sizes"]) == (True, "1,3")
    assert card.batch_sizes == (1, 3)
    directory = tmp_path / "repository" / "compiled" / "1"
    assert b"_XlaMustCompile" in (directory / "saved_model.pb").read_bytes()
    records = str(directory / "assets.extra/tf_serving_warmup_requests")
    assert len(list(tf.data.TFRecordDataset(records))) == 2


@pytest.mark.slow
def test_an_untrained_build_has_random_weights_and_measures_nothing(
    tmp_path: Path,
) -> None:
    run(
        *("build", "googlenet", "--untrained", "--classes", "7", "--size", "64"),
        *("--repository", "repository"),
        cwd=tmp_path,
    )
    card = ModelCard.read(tmp_path / "repository" / "googlenet" / "1")
    assert card is not None
    assert card.accuracy == ()
    assert card.data is None
    assert card.labels == tuple("0123456")
    assert card.image_input is not None
    assert card.image_input.shape == (64, 64, 3)
    assert card.parity is not None
    assert card.recipe["untrained"] is True
