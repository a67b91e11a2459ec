"""From a plan to a published version: the build step, step by step."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console

from models import charts, preprocessing_parity, report
from models.architectures import drawable
from models.card import (
    ASSETS_DIRECTORY,
    CONFUSION_FILE,
    DEFAULT_SIGNATURE,
    GRAPH_FILE,
    INT8_FILE,
    SAMPLE_FILE,
    SUMMARY_FILE,
    TRAINING_FILE,
    WARMUP_FILE,
    FloatPrecision,
    ModelCard,
    Parity,
    PrecisionMeasurement,
    Preprocessing,
)
from models.datasets import Images
from models.export import (
    check_parity,
    decoder_in_graph,
    draft_directory,
    png,
    predict_with,
    publish,
    write_saved_model,
)
from models.plan import Plan
from models.plot import draw
from models.precision import (
    Candidate,
    check_accuracy_drop,
    measure,
    table,
    tensorflow_candidate,
)
from models.preprocessing import from_array
from models.subjects import Subject, imported, made
from models.summary import summarise
from models.tasks import Predict, Scores
from models.training import EPOCHS, PATIENCE_EPOCHS, History, Schedule, train
from models.warmup import write_warmup_requests

FRAMEWORKS: Final = (keras, tf, np)
PARITY_SAMPLES: Final = 32
CALIBRATION_SAMPLES: Final = 300


def build(
    plan: Plan, *, name: str, repository: Path, console: Console
) -> tuple[Path, ModelCard]:
    """Build a version and publish it, or nothing.

    Args:
        plan: What to build.
        name: The model's name in the repository.
        repository: Directory of models.
        console: Where progress and tables go.

    Returns:
        The new version's directory and its card.

    Raises:
        WrongPlan: The plan does not fit the model or the data.
        UnusableFolder: The data set's directory is none.
        ImportFailed: The file to import cannot be.
        ParityError, PrecisionError, PreprocessingMismatch: The result is not good
            enough.
        OSError: The repository cannot be written to.
    """
    keras.utils.set_random_seed(plan.seed)
    if plan.source is None:
        subject = made(plan, console)
        history = _train(plan, subject)
    else:
        subject, history = imported(plan, plan.source, console), None
    drawing = _drawing(subject, console)
    with draft_directory(repository) as draft:
        exported = _export(plan, subject, draft)
        if exported.precisions:
            console.print(table(exported.precisions))
            check_accuracy_drop(
                *exported.precisions, max_drop_points=plan.max_accuracy_drop
            )
        preprocessing = _compare_preprocessing(subject)
        console.print(preprocessing_parity.table(preprocessing))
        if not plan.untrained:
            preprocessing_parity.check(
                preprocessing, max_changed_percent=plan.max_changed_predictions
            )
        scores = _score(subject, exported.predict)
        if scores is not None:
            console.print(report.accuracy_by_label(scores.accuracy))
            if warning := report.warning(scores, trained=history is not None):
                console.print(warning, style="yellow", markup=False, highlight=False)
        interface, dataset = subject.interface, subject.dataset
        card = ModelCard(
            name=name,
            version=1,
            architecture=subject.architecture,
            created=datetime.now(UTC),
            image_input=interface.image_input,
            encoded_input=interface.image_input
            and interface.encoded_name(interface.image_input),
            outputs=interface.outputs,
            labels=subject.labels,
            parameters=subject.network.count_params(),
            precision=plan.precision,
            precisions=exported.precisions,
            batch_sizes=plan.batch_sizes,
            recipe=plan.describe(),
            data=None if dataset is None else dataset.describe(),
            training=None if history is None else history.describe(),
            accuracy=() if scores is None else scores.accuracy,
            parity=exported.parity,
            preprocessing=preprocessing,
            frameworks={module.__name__: module.__version__ for module in FRAMEWORKS},
        )
        _write_assets(draft, name, subject, plan.batch_sizes)
        if drawing is not None:
            (draft / GRAPH_FILE).write_text(drawing, encoding="utf-8")
        _write_charts(draft, subject, history, scores)
        return publish(draft, card, repository)


def _train(plan: Plan, subject: Subject) -> History | None:
    if subject.dataset is None:
        return None
    schedule = Schedule(
        epochs=plan.epochs or EPOCHS,
        patience_epochs=plan.patience or PATIENCE_EPOCHS,
        learning_rate=plan.learning_rate or subject.learning_rate,
        seed=plan.seed,
    )
    return train(subject.network, subject.task, subject.dataset, schedule)


def _score(subject: Subject, predict: Predict) -> Scores | None:
    if subject.dataset is None:
        return None
    return subject.task.score(predict, subject.dataset)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Exported:
    """A draft's SavedModel: how far it is from the original, and what it answers.

    `precisions` compares float32 with what was wanted instead, if anything.
    """

    parity: Parity
    precisions: tuple[PrecisionMeasurement, ...] = ()
    predict: Predict


def _export(plan: Plan, subject: Subject, draft: Path) -> _Exported:
    """Write the SavedModel in the wanted precision, and compare it with float32."""
    xla = plan.xla
    match plan.precision:
        case "float32":
            parity = _export_float32(subject, draft, xla=xla)
            return _Exported(
                parity=parity, predict=predict_with(subject.network, subject.interface)
            )
        case "int8":
            parity = _export_float32(subject, draft)
            baseline, candidate = _int8_candidates(subject, draft)
            precisions = _measure(subject, baseline, candidate)
        case half:
            parity = _export_half(subject, half, draft, xla=xla)
            candidate = tensorflow_candidate(half, draft)
            with draft_directory(draft.parent) as float32:
                _export_float32(subject, float32, xla=xla)
                baseline = tensorflow_candidate("float32", float32)
                precisions = _measure(subject, baseline, candidate)
    return _Exported(parity=parity, precisions=precisions, predict=candidate.predict)


def _export_float32(subject: Subject, directory: Path, *, xla: bool = False) -> Parity:
    samples = _named(subject, _samples(subject))
    write_saved_model(subject.network, subject.interface, directory, xla=xla)
    expected = subject.original(samples)
    return check_parity(directory, subject.interface, samples, expected)


def _export_half(
    subject: Subject, precision: FloatPrecision, directory: Path, *, xla: bool
) -> Parity:
    """Held to the same network in Keras; what it lost is told by its accuracy."""
    samples, interface = _named(subject, _samples(subject)), subject.interface
    network = subject.in_precision(precision)
    write_saved_model(network, interface, directory, xla=xla)
    expected = predict_with(network, interface)(samples)
    return check_parity(directory, interface, samples, expected, precision=precision)


def _int8_candidates(subject: Subject, draft: Path) -> tuple[Candidate, Candidate]:
    from models.quantisation import (  # noqa: PLC0415, an extra of its own
        openvino_candidate,
        quantise,
    )

    data = subject.dataset
    # A few hundred show the range of every activation.
    images = (
        _samples(subject) if data is None else data.train.images[:CALIBRATION_SAMPLES]
    )
    quantise(draft, _named(subject, images), draft / INT8_FILE)
    return openvino_candidate("float32", draft), openvino_candidate(
        "int8", draft / INT8_FILE
    )


def _measure(
    subject: Subject, float32: Candidate, other: Candidate
) -> tuple[PrecisionMeasurement, ...]:
    dataset, task = subject.dataset, subject.task
    score = (lambda p: task.score(p, dataset).overall) if dataset is not None else None
    return measure((float32, other), _named(subject, _samples(subject)), score)


def _samples(subject: Subject) -> Images:
    """Images of the network's size: held-out ones, or photographs."""
    if subject.dataset is not None:
        return subject.dataset.held_out.images[:PARITY_SAMPLES]
    image_input = subject.interface.inputs[0]
    return np.stack(
        [
            from_array(photograph, image_input)
            for photograph in preprocessing_parity.photographs()
        ]
    )


def _named(subject: Subject, images: Images) -> Mapping[str, Images]:
    """The same images for every input, but in another order for each."""
    return {
        image_input.tensor: np.roll(images, shift, axis=0)
        for shift, image_input in enumerate(subject.interface.inputs)
    }


def _compare_preprocessing(subject: Subject) -> tuple[Preprocessing, ...]:
    image_input = subject.interface.inputs[0]
    dataset = subject.dataset
    return preprocessing_parity.compare(
        preprocessing_parity.photographs() if dataset is None else dataset.originals,
        image_input,
        decoder_in_graph(image_input),
        _scores_of(subject),
    )


def _scores_of(subject: Subject) -> Callable[[Images], Any]:
    """What a network says of images: a number for each class."""
    interface = subject.interface
    predict = predict_with(subject.network, interface)
    (output, *_) = (o.name for o in interface.outputs if o.role != "other")

    def scores(images: Images) -> Any:
        return predict({i.tensor: images for i in interface.inputs})[output]

    return scores


def _write_assets(
    draft: Path, name: str, subject: Subject, batch_sizes: Sequence[int]
) -> None:
    """Write what people look at, and what TensorFlow Serving warms up with."""
    (draft / ASSETS_DIRECTORY).mkdir(exist_ok=True)
    summary = summarise(drawable(subject.network))
    (draft / SUMMARY_FILE).write_text(summary, encoding="utf-8")
    samples = _samples(subject)
    (draft / SAMPLE_FILE).write_bytes(png(samples[0]))
    batches = (
        _named(subject, np.resize(samples, (size, *samples.shape[1:])))
        for size in batch_sizes
    )
    write_warmup_requests(
        draft / WARMUP_FILE,
        model_name=name,
        requests=[(DEFAULT_SIGNATURE, batch) for batch in batches],
    )


def _drawing(subject: Subject, console: Console) -> str | None:
    """The network as a graph; a model that nothing here can draw serves as well."""
    try:
        return draw(drawable(subject.network))
    except ImportError as error:
        message = f"the version has no {GRAPH_FILE}: {error}"
        console.print(message, style="yellow", markup=False, highlight=False)
        return None


def _write_charts(
    draft: Path, subject: Subject, history: History | None, scores: Scores | None
) -> None:
    """Draw how the training went and what was taken for what, where there was any."""
    if history is not None:
        curve = charts.training_curve(history.epochs, best_epoch=history.best_epoch)
        (draft / TRAINING_FILE).write_text(curve, encoding="utf-8")
    if scores is not None:
        matrix = charts.confusion_matrix(scores.confusion, subject.labels)
        (draft / CONFUSION_FILE).write_text(matrix, encoding="utf-8")
