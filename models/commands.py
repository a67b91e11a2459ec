"""The build side's sub-commands of `blockserve`.

Frameworks are imported inside the commands: the command line lists them without.
"""

# ruff: noqa: PLC0415, see above

import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Final, Literal, NoReturn

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from models.card import ModelCard
from models.native import silenced

if TYPE_CHECKING:
    from models.architectures import Architecture

NAME_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
PARITY_SAMPLES: Final = 32
SEEDS: Final = range(2**32)  # what numpy takes

RepositoryOption = Annotated[Path, Parameter(env_var="BLOCKSERVE_REPOSITORY")]
DEFAULT_REPOSITORY: Final = Path("model_repository")


def build(
    architecture: str = "inception",
    *,
    dataset: Literal["digits"] = "digits",
    name: str | None = None,
    repository: RepositoryOption = DEFAULT_REPOSITORY,
    epochs: int | None = None,
    seed: int = 0,
) -> None:
    """Train an architecture and export it as a new version of a model.

    Args:
        architecture: What to build; `blockserve architectures` lists them.
        dataset: What to train on: the MNIST digits that come with the build step.
        name: The model's name; the architecture's if not given.
        repository: Directory of models.
        epochs: Passes over the training images; the recipe's number if not given.
        seed: Makes weights, order and augmentation repeatable.
    """
    started = perf_counter()
    name = architecture if name is None else name
    if not NAME_PATTERN.fullmatch(name):
        _fail(
            f"--name: {name!r} cannot be a model's name; use up to 100 letters, "
            "digits, '.', '_' and '-'"
        )
    if epochs is not None and epochs < 1:
        _fail(f"--epochs: expected at least 1, got {epochs}")
    if seed not in SEEDS:
        _fail(f"--seed: expected 0 to {SEEDS[-1]}, got {seed}")
    _check_writable(repository / name)
    chosen = _architecture(architecture)
    import keras

    from models.datasets import digits
    from models.export import ParityError, export
    from models.training import evaluate, train

    keras.utils.set_random_seed(seed)
    data = {"digits": digits}[dataset]()
    model = chosen.build(data.train_images.shape[1:], len(data.labels))
    train(model, data, epochs=epochs)
    try:
        path, card = export(
            model,
            name=name,
            architecture=architecture,
            labels=data.labels,
            samples=data.held_out_images[:PARITY_SAMPLES],
            accuracy=evaluate(model, data),
            repository=repository,
        )
    except ParityError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"--repository: cannot write to {repository}: {error.strerror}")
    Console().print(_built(card, path, seconds=perf_counter() - started))
    _say(f"wrote {path}")


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
        parameters = entry.build(entry.image_shape, entry.classes).count_params()
        table.add_row(
            entry.name,
            entry.style,
            "x".join(map(str, entry.image_shape)),
            str(entry.classes),
            f"{parameters:,}",
            entry.description,
        )
    Console().print(table)


def summary(architecture: str) -> None:
    """Print Keras' summary of an architecture.

    Args:
        architecture: Its name; `blockserve architectures` lists them.
    """
    chosen = _architecture(architecture)
    from models.summary import summarise

    _say(summarise(chosen.build(chosen.image_shape, chosen.classes)), end="")


def plot(architecture: str, *, output: Path | None = None) -> None:
    """Draw an architecture as a graph.

    Args:
        architecture: Its name; `blockserve architectures` lists them.
        output: The SVG file to write; NAME.svg if not given.
    """
    chosen = _architecture(architecture)
    from models.plot import draw

    output = output or Path(f"{architecture}.svg")
    if output.suffix != ".svg":
        _fail(f"--output: only .svg can be written, got {output}")
    model = chosen.build(chosen.image_shape, chosen.classes)
    try:
        output.write_text(draw(model), encoding="utf-8")
    except OSError as error:
        _fail(f"--output: cannot write {output}: {error.strerror}")
    _say(f"wrote {output}")


def _architecture(name: str) -> "Architecture":
    _start_tensorflow()
    from models.architectures import ARCHITECTURES

    if name not in ARCHITECTURES:
        _fail(f"there is no architecture {name!r}; there is {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def _built(card: ModelCard, path: Path, *, seconds: float) -> Table:
    table = Table(title=f"{card.name} version {card.version}", show_header=False)
    rows = {
        "architecture": f"{card.architecture}, {card.parameters:,} parameters",
        "size": f"{_size_bytes(path) / 1e6:.1f} MB",
        **{
            f"accuracy, {a.data}": f"{a.value:.1%} of {a.samples:,}"
            for a in card.accuracy
        },
        "build time": f"{seconds:.0f} s",
    }
    if card.parity is not None:
        rows["largest difference from Keras"] = (
            f"{card.parity.max_abs_difference:.1e} over {card.parity.samples} images"
        )
    for row in rows.items():
        table.add_row(*row)
    return table


def _size_bytes(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


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


def _check_writable(directory: Path) -> None:
    """Say before the training whether a version can be written afterwards."""
    nearest = next(path for path in (directory, *directory.parents) if path.exists())
    if not nearest.is_dir():
        _fail(f"--repository: cannot write to {directory}: {nearest} is no directory")
    if not os.access(nearest, os.W_OK | os.X_OK):
        _fail(f"--repository: cannot write to {directory}: {nearest} is read-only")


def _say(text: str, *, end: str = "\n") -> None:
    """Print a text as it is: not wrapped, and brackets are no markup."""
    Console(soft_wrap=True).print(text, end=end, markup=False, highlight=False)


def _fail(message: str) -> NoReturn:
    console = Console(stderr=True, soft_wrap=True)
    console.print("[red]blockserve:[/red]", end=" ")
    console.print(message, markup=False, highlight=False)
    sys.exit(1)
