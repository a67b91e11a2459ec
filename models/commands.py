"""The build side's sub-commands of `blockserve`.

Frameworks are imported inside the commands: the command line lists them without.
"""

# ruff: noqa: PLC0415, see above

import os
import re
import signal
import sys
from collections.abc import Collection
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Final, Literal, NoReturn

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.table import Table

from models.card import CardError, ModelCard, Precision, Resize
from models.native import silenced
from models.plan import (
    DEFAULT_ARCHITECTURE,
    DEFAULT_BATCH_SIZES,
    DIGITS,
    Plan,
    Preprocess,
    WrongPlan,
)
from models.serving_config import (
    DEFAULT_BASE,
    ServingConfigError,
    read_models,
    versions_in,
    write_serving_config,
)

if TYPE_CHECKING:
    import keras

NAME_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
SIZE_PATTERN: Final = re.compile(r"([1-9]\d{0,3})(?:x([1-9]\d{0,3}))?")
BATCH_SIZES_PATTERN: Final = re.compile(r"[1-9]\d{0,3}(,[1-9]\d{0,3})*")
# SIGHUP is a terminal that was closed; some systems have none.
ENDINGS: Final = (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM))
SIGNALLED: Final = 128  # what shells add to the signal that has ended a program
FILE_COLUMNS: Final = 150
DEFAULT_REPOSITORY: Final = Path("model_repository")

AtLeastOne = Annotated[int | None, Parameter(validator=Number(gte=1))]
AboveZero = Annotated[float | None, Parameter(validator=Number(gt=0))]
Percent = Annotated[float, Parameter(validator=Number(gte=0, lte=100))]
LessThanHalf = Annotated[float | None, Parameter(validator=Number(gt=0, lt=0.5))]
RepositoryOption = Annotated[Path, Parameter(env_var="BLOCKSERVE_REPOSITORY")]


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkOptions:
    """The options that all architectures share.

    Attributes:
        size: Height and width of the images, as in 96 or 96x128.
        channels: 1 for grey images, 3 for colour.
        classes: How many labels there are, where no data set tells.
        width: Multiplies the filters of every layer but the last.
        dropout: The share of features left out in training before the last layer.
    """

    size: str | None = None
    channels: Literal[1, 3] | None = None
    classes: Annotated[int | None, Parameter(validator=Number(gte=2))] = None
    width: Annotated[float | None, Parameter(validator=Number(gt=0, lte=16))] = None
    dropout: Annotated[float | None, Parameter(validator=Number(gte=0, lt=1))] = None


NO_OPTIONS: Final = NetworkOptions()


def build(
    architecture: str | None = None,
    *,
    dataset: str | None = None,
    source: Annotated[Path | None, Parameter(name="--from")] = None,
    preprocess: Preprocess | None = None,
    labels: Path | None = None,
    name: str | None = None,
    repository: RepositoryOption = DEFAULT_REPOSITORY,
    network: NetworkOptions = NO_OPTIONS,
    resize: Resize | None = None,
    precision: Precision = "float32",
    xla: Annotated[bool, Parameter(negative=())] = False,
    batch_sizes: str | None = None,
    version_label: tuple[str, ...] = (),
    tfserving_path: PurePosixPath = DEFAULT_BASE,
    if_missing: Annotated[bool, Parameter(negative=())] = False,
    max_accuracy_drop: Percent = 1.0,
    max_changed_predictions: Percent = 2.0,
    untrained: Annotated[bool, Parameter(negative=())] = False,
    epochs: AtLeastOne = None,
    patience: AtLeastOne = None,
    learning_rate: AboveZero = None,
    validation_share: LessThanHalf = None,
    seed: Annotated[int, Parameter(validator=Number(gte=0, lt=2**32))] = 0,
) -> None:
    """Train an architecture, or import a model, and export it as a new version.

    Ctrl-C ends the training early and keeps the best weights so far. Beside the models
    it leaves TensorFlow Serving's configuration.

    Args:
        architecture: What to build, inception if not given; `blockserve architectures`
            lists them.
        dataset: What to train on: a directory with one sub-folder of pictures for each
            label, or `digits`, the MNIST digits that come with the build step.
        source: A model to import instead: a .keras or .h5 file, or a SavedModel's
            directory.
        preprocess: How the imported model was fed: with 0 to 255 (none), 0 to 1
            (scale01), -1 to 1 (scale11), BGR without ImageNet's mean (imagenet-mean),
            or ImageNet's mean and deviation taken out (imagenet-standard).
        labels: A file with the imported model's labels, one a line.
        name: The model's name; the architecture's or the file's if not given.
        repository: Directory of models.
        network: The network's own options.
        resize: How an image of another shape is made to fit: stretched, cropped to
            its middle, or padded with black; stretched if not given.
        precision: Of the weights and the arithmetic: float16 and bfloat16 are for GPUs,
            int8 for the embedded engine.
        xla: Have TensorFlow compile the network where it is served, anew for each batch
            size: for TensorFlow Serving on GPU.
        batch_sizes: What TensorFlow Serving is warmed up with and may pad batches to,
            as in 1,8,32; 1,2,4,8,16 if not given.
        version_label: A name for the new version in TensorFlow Serving, like stable; it
            leaves the version that had it. May be repeated.
        tfserving_path: Where TensorFlow Serving sees the repository.
        if_missing: Build only if the model has no version yet.
        max_accuracy_drop: Percentage points of accuracy that a precision may cost.
        max_changed_predictions: Percent of predictions that may differ between the
            training's way from file to pixels and the server's.
        untrained: Leave the weights random: for benchmarks.
        epochs: Passes over the training images at most; several of few images count as
            one.
        patience: Epochs without a smaller validation loss that end the training.
        learning_rate: The highest learning rate; the architecture's if not given.
        validation_share: The share of a directory's pictures to steer training by, 0.15
            if not given; as many again are held out to measure with.
        seed: Makes weights, order and augmentation repeatable.
    """
    started = perf_counter()
    for ending in ENDINGS:  # as an exception, so that nothing half-written stays
        signal.signal(ending, lambda number, _: sys.exit(SIGNALLED + number))
    plan = Plan(
        architecture=architecture,
        source=source,
        preprocess=preprocess,
        labels=labels,
        dataset=dataset,
        size=_size(network.size),
        channels=network.channels,
        classes=network.classes,
        resize=resize,
        width=network.width,
        dropout=network.dropout,
        precision=precision,
        xla=xla,
        batch_sizes=_batch_sizes(batch_sizes),
        max_accuracy_drop=max_accuracy_drop,
        max_changed_predictions=max_changed_predictions,
        untrained=untrained,
        epochs=epochs,
        patience=patience,
        learning_rate=learning_rate,
        validation_share=validation_share,
        seed=seed,
    )
    name = _name(name, plan)
    _check(plan)
    for label in version_label:
        _check_label(label)
    if not tfserving_path.is_absolute():
        _fail(f"--tfserving-path: expected an absolute path, got {tfserving_path}")
    for directory in (repository, repository / name):
        _check_writable(directory)
    if if_missing and repository.exists() and name in versions_in(repository):
        _configure(repository, base=tfserving_path)
        _say(f"{repository / name} has a version: nothing to build")
        return
    _check_configuration(repository)
    _start_tensorflow()
    from tensorflow.errors import OpError

    from models.architectures import UnknownArchitecture
    from models.build import build as run
    from models.export import ParityError
    from models.folders import UnusableFolder
    from models.importing import ImportFailed
    from models.precision import PrecisionError
    from models.preprocessing_parity import PreprocessingMismatch
    from models.report import built
    from models.training import Diverged

    console = _console()
    refusals = (WrongPlan, UnknownArchitecture, UnusableFolder, ImportFailed, CardError)
    failures = (Diverged, ParityError, PrecisionError, PreprocessingMismatch)
    try:
        path, card = run(plan, name=name, repository=repository, console=console)
    except (*refusals, *failures) as error:
        _fail(str(error))
    except ImportError as error:  # an extra is missing, and the message names it
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename or repository}: {error.strerror or error}")
    except OpError as error:  # TensorFlow's own, of full disks and full memories
        _fail(f"TensorFlow gave up: {error.message.splitlines()[0]}")
    console.print(built(card, path, seconds=perf_counter() - started))
    _say(f"wrote {path}")
    _configure(repository, base=tfserving_path, built=card, labels=version_label)


def architectures() -> None:
    """List the architectures that can be built."""
    _start_tensorflow()
    from models.architectures import ARCHITECTURES

    table = Table()
    for heading in ("architecture", "style", "input", "classes"):
        table.add_column(heading)
    table.add_column("parameters", justify="right")
    table.add_column("description")
    for entry in ARCHITECTURES.values():
        options = entry.defaults
        table.add_row(
            entry.name,
            entry.style,
            "x".join(map(str, options.image_shape)),
            str(options.classes),
            f"{entry.outline(options).count_params():,}",
            entry.description,
        )
    _console().print(table)


def summary(architecture: str, *, network: NetworkOptions = NO_OPTIONS) -> None:
    """Print Keras' summary of an architecture, and what it costs to run.

    Args:
        architecture: Its name; `blockserve architectures` lists them.
        network: The network's own options.
    """
    model = _network(architecture, network)
    from models.summary import summarise

    _say(summarise(model), end="")


def plot(
    architecture: str,
    *,
    output: Path | None = None,
    network: NetworkOptions = NO_OPTIONS,
) -> None:
    """Draw an architecture as a graph.

    Args:
        architecture: Its name; `blockserve architectures` lists them.
        output: The .svg or .png file to write; NAME.svg if not given.
        network: The network's own options.
    """
    output = output or Path(f"{architecture}.svg")
    if output.suffix not in {".svg", ".png"}:
        _fail(f"--output: expected a .svg or .png file, got {output}")
    model = _network(architecture, network)
    from models.plot import draw, draw_png

    try:
        drawing = draw(model).encode() if output.suffix == ".svg" else draw_png(model)
        output.write_bytes(drawing)
    except ImportError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"--output: cannot write {output}: {error.strerror}")
    _say(f"wrote {output}")


def _network(name: str, chosen: NetworkOptions) -> "keras.Model":
    """An architecture with these options, as a graph of its layers."""
    size = _size(chosen.size)
    _start_tensorflow()
    from models.architectures import UnknownArchitecture, drawable, named

    try:
        architecture = named(name)
        options = architecture.defaults.changed(
            size=size,
            channels=chosen.channels,
            classes=chosen.classes,
            width=chosen.width,
            dropout=chosen.dropout,
        )
        return drawable(architecture.outline(options))
    except UnknownArchitecture as error:
        _fail(str(error))
    except ValueError as error:
        _fail(f"--size: {error}")


def _name(name: str | None, plan: Plan) -> str:
    """The model's name: as given, else of the file, else of the architecture."""
    wanted = plan.architecture or DEFAULT_ARCHITECTURE if name is None else name
    if name is None and plan.source is not None:
        source = plan.source.resolve()
        # A version's directory is called by its number, and its parent by its name.
        stem = source.parent.name if source.name.isdecimal() else source.stem
        wanted = re.sub(r"[^A-Za-z0-9._-]+", "-", stem)
    if not NAME_PATTERN.fullmatch(wanted):
        _fail(
            f"--name: {wanted!r} cannot be a model's name; use up to 100 letters, "
            "digits, '.', '_' and '-'"
        )
    return wanted


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = SIZE_PATTERN.fullmatch(text)
    if not found:
        _fail(f"--size: expected pixels as in 96 or 96x128, got {text!r}")
    return int(found[1]), int(found[2] or found[1])


def _batch_sizes(text: str | None) -> tuple[int, ...]:
    if text is None:
        return DEFAULT_BATCH_SIZES
    if not BATCH_SIZES_PATTERN.fullmatch(text):
        _fail(f"--batch-sizes: expected numbers of images as in 1,8,32, got {text!r}")
    return tuple(sorted(set(map(int, text.split(",")))))


def _check(plan: Plan) -> None:
    """Say before frameworks are loaded, and models trained, what cannot work."""
    try:
        plan.check()
    except WrongPlan as error:
        _fail(str(error))
    dataset = plan.dataset
    is_directory = bool(dataset) and Path(dataset or "").is_dir()
    if dataset is not None and dataset != DIGITS and not is_directory:
        _fail(
            f"--dataset: expected {DIGITS!r} or a directory with a sub-folder for each "
            f"label, and {dataset!r} is no directory"
        )
    if plan.precision == "int8" and find_spec("nncf") is None:
        _fail("--precision int8 needs NNCF: pip install 'blockserve[int8]'")


def _check_writable(directory: Path) -> None:
    nearest = next(path for path in (directory, *directory.parents) if path.exists())
    cannot = f"--repository: cannot write to {directory}: {nearest} is"
    if not nearest.is_dir():
        _fail(f"{cannot} no directory")
    if not os.access(nearest, os.W_OK | os.X_OK):
        _fail(f"{cannot} read-only")


def _check_label(label: str) -> None:
    if not NAME_PATTERN.fullmatch(label):
        _fail(f"--version-label: {label!r} cannot be a label; use a name like stable")


def _check_configuration(repository: Path) -> None:
    try:
        read_models(repository)
    except ServingConfigError as error:
        _fail(str(error))


def _configure(
    repository: Path,
    *,
    base: PurePosixPath,
    built: ModelCard | None = None,
    labels: Collection[str] = (),
) -> None:
    """Write TensorFlow Serving's configuration."""
    try:
        write_serving_config(repository, base=base, built=built, labels=labels)
    except ServingConfigError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename or repository}: {error.strerror or error}")


def _start_tensorflow() -> None:
    """Import TensorFlow and configure it before its first operation."""
    if find_spec("keras") is None:
        _fail("the build step is not installed: pip install 'blockserve[build]'")
    # Native code logs what concerns its authors; errors reach us as exceptions.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with silenced():
        import tensorflow as tf

        # Parallel branches side by side: on two cores 30 % less time than one by one.
        tf.config.threading.set_inter_op_parallelism_threads(2)
        tf.config.threading.set_intra_op_parallelism_threads(
            max(1, (os.cpu_count() or 1) // 2)
        )
        tf.constant(0) + 1  # the first operation has its say, too


def _console() -> Console:
    """As wide as the terminal; a file or a pipe has room for every table."""
    return Console(width=None if sys.stdout.isatty() else FILE_COLUMNS)


def _say(text: str, *, end: str = "\n") -> None:
    """Print a text as it is: not wrapped, and brackets are no markup."""
    Console(soft_wrap=True).print(text, end=end, markup=False, highlight=False)


def _fail(message: str) -> NoReturn:
    console = Console(stderr=True, soft_wrap=True)
    console.print("[red]blockserve:[/red]", end=" ")
    console.print(message, markup=False, highlight=False)
    sys.exit(1)
