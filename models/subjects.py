"""The network that a build is about, and its data: made here, or imported."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import keras
from rich.console import Console

from models import importing, precision, report
from models.architectures import Architecture, named
from models.card import FloatPrecision, ImageInput, ModelCard, OutputTensor
from models.datasets import DIGIT_SHAPE, Dataset, digits
from models.export import Interface, predict_with
from models.folders import channels_of, folder
from models.labels import numbers, read_labels
from models.plan import DEFAULT_ARCHITECTURE, DIGITS, Plan, WrongPlan
from models.tasks import Classification, Comparison, Predict, Task

VALIDATION_SHARE: Final = 0.15
SHOWN_LABELS: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Subject:
    """What a build is about.

    Attributes:
        architecture: What the card calls it.
        network: In float32.
        interface: The names of its inputs and outputs.
        labels: The classes' names.
        task: What it is trained for and how it is scored.
        learning_rate: What its training begins to fall from, unless the plan says.
        original: What its export has to agree with.
        in_precision: Makes the same network, with the same weights, in another one.
        dataset: The images that it is trained on and measured with, if any.
    """

    architecture: str
    network: keras.Model
    interface: Interface
    labels: tuple[str, ...]
    task: Task
    learning_rate: float = 0.0
    original: Predict
    in_precision: Callable[[FloatPrecision], keras.Model]
    dataset: Dataset | None


def made(plan: Plan, console: Console) -> Subject:
    """An architecture with fresh weights, and the data set to train it on.

    Raises:
        WrongPlan: The plan does not fit the architecture.
        UnusableFolder: The data set's directory is none.
    """
    architecture = named(plan.architecture or DEFAULT_ARCHITECTURE)
    options = architecture.defaults.changed(
        size=plan.size or _size_of_data(plan, architecture),
        channels=plan.channels or _channels_of_data(plan),
        classes=plan.classes,
        width=plan.width,
        dropout=plan.dropout,
    )
    inputs = tuple(
        _image_input(name, options.image_shape, plan) for name in architecture.inputs
    )
    try:
        architecture.check_size(options)
    except ValueError as error:
        raise WrongPlan(f"--size: {error}") from error
    dataset = None if plan.untrained else _dataset(plan, inputs[0], console)
    labels = numbers(options.classes) if dataset is None else dataset.labels
    options = options.changed(classes=len(labels))
    network = architecture.build(options)

    def in_precision(wanted: FloatPrecision) -> keras.Model:
        other = architecture.build(options, precision=wanted)
        precision.cast_weights(network, other)
        return other

    outputs = tuple(
        OutputTensor(name=name, role=role)
        for name, role in architecture.outputs.items()
    )
    interface = Interface(inputs=inputs, outputs=outputs)
    return Subject(
        architecture=architecture.name,
        network=network,
        interface=interface,
        labels=labels,
        task=Classification() if len(inputs) == 1 else Comparison(),
        learning_rate=architecture.learning_rate,
        original=predict_with(network, interface),
        in_precision=in_precision,
        dataset=dataset,
    )


def imported(plan: Plan, source: Path, console: Console) -> Subject:
    """Someone else's model, and the data set to measure it with.

    Raises:
        ImportFailed: It cannot be read, is no classifier of single images, or cannot be
            had in the plan's precision.
        CardError: The card beside it cannot be read.
        WrongPlan: The labels are not those of the model.
        UnusableFolder: The data set's directory is none.
    """
    # Where it is a version of our own.
    card = ModelCard.read(source) if source.is_dir() else None
    if card is not None and card.image_input is not None:
        plan = replace(plan, resize=plan.resize or card.image_input.resize)
    model = importing.read(source, preprocess=plan.preprocess or "none", size=plan.size)
    importing.check_precision(model, plan.precision)
    image_input = _image_input("images", model.image_shape, plan)
    dataset = None if plan.dataset is None else _dataset(plan, image_input, console)
    labels, dataset = _labelled(plan, model.classes, dataset, card)
    interface = Interface(inputs=(image_input,), outputs=model.outputs)
    (scored, *_) = (o.name for o in model.outputs if o.role != "other")
    return Subject(
        architecture=f"imported from {model.kind}",
        network=model.network,
        interface=interface,
        labels=labels,
        task=Classification(scored),
        original=lambda images: model.original_outputs(images["images"]),
        in_precision=lambda wanted: importing.cast(model, wanted),
        dataset=dataset,
    )


def _size_of_data(plan: Plan, architecture: Architecture) -> tuple[int, int] | None:
    """Digits are small; photographs have the size that the architecture wants."""
    if plan.untrained or plan.dataset not in {None, DIGITS}:
        return None
    side = max(DIGIT_SHAPE[0], architecture.smallest_side)
    return side, side


def _channels_of_data(plan: Plan) -> int | None:
    if plan.untrained:
        return None
    if plan.dataset in {None, DIGITS}:
        return DIGIT_SHAPE[-1]
    return channels_of(Path(plan.dataset))


def _image_input(name: str, shape: tuple[int, int, int], plan: Plan) -> ImageInput:
    height, width, channels = shape
    return ImageInput.model_validate(
        {
            "tensor": name,
            "height": height,
            "width": width,
            "channels": channels,
            "resize": plan.resize or "stretch",
            "colour_order": "grey" if channels == 1 else "rgb",
        }
    )


def _dataset(plan: Plan, image_input: ImageInput, console: Console) -> Dataset:
    if plan.dataset in {None, DIGITS}:
        return digits(image_input)
    dataset = folder(
        Path(plan.dataset),
        image_input,
        validation_share=plan.validation_share or VALIDATION_SHARE,
        seed=plan.seed,
        console=console,
    )
    for line in report.skipped(dataset):
        console.print(line, markup=False, highlight=False)
    console.print(report.balance(dataset))
    return dataset


def _labelled(
    plan: Plan, classes: int, dataset: Dataset | None, card: ModelCard | None
) -> tuple[tuple[str, ...], Dataset | None]:
    """The labels from their file, else its card, else the data set, else numbers.

    A data set's labels are in alphabetical order, a model's in any.
    """
    if plan.labels is not None:
        labels = read_labels(plan.labels, classes)
    elif card is not None and len(card.labels) == classes:
        labels = card.labels
    else:
        labels = numbers(classes) if dataset is None else dataset.labels
    if dataset is None:
        return labels, None
    more = ", …" if len(dataset.labels) > SHOWN_LABELS else ""
    shown = ", ".join(dataset.labels[:SHOWN_LABELS]) + more
    if len(labels) != classes or set(labels) != set(dataset.labels):
        raise WrongPlan(
            f"--dataset: its labels ({shown}) are not those of the model "
            f"({classes} classes); name these in order with --labels FILE"
        )
    return labels, dataset.with_labels(labels)
