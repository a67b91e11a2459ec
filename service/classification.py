"""Images in, classes out: what the outputs of a classifier say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from models.card import ModelCard
from service.errors import InvalidRequest
from service.prediction import Call, Predictor
from service.served_version import CLASSES_RANK
from service.tensors import Array, describe


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Classification:
    """What a model version says of each image, most probable class first.

    Attributes:
        model: Its name.
        version: Its number.
        labels: Names of the classes by index; those beyond have their index for a name.
        indices: Classes, `int64[images, top_k]`.
        probabilities: How probable each is, `float[images, top_k]`.
    """

    model: str
    version: int
    labels: Sequence[str]
    indices: Array
    probabilities: Array

    def label(self, index: int) -> str:
        """The name of a class."""
        return self.labels[index] if index < len(self.labels) else str(index)


class Classifier:
    """Runs images and names their classes.

    Args:
        predictor: Runs them.
        top_k: Predictions that an image gets where the request does not say.
    """

    def __init__(self, predictor: Predictor, *, top_k: int) -> None:
        self._predictor = predictor
        self._top_k = top_k

    async def classify(
        self,
        images: Sequence[bytes],
        call: Call,
        *,
        top_k: int | None,
    ) -> Classification:
        """Classify encoded images, all in one batch; see `Predictor.predict_images`.

        Args:
            images: Encoded images, at least one.
            call: Who asks whom, and until when.
            top_k: Predictions wanted for each image; more than there are classes gives
                all of them, `None` the number from the settings.

        Raises:
            BlockserveError: Any of the errors in `service.errors`.
        """
        if top_k is not None and top_k < 1:
            raise InvalidRequest(f"top_k must be at least 1, got {top_k}")
        prediction = await self._predictor.predict_images(images, call)
        card = prediction.card
        scores = _probabilities(card, prediction.outputs)
        indices, probabilities = most_probable(scores, top_k or self._top_k)
        return Classification(
            model=card.name,
            version=card.version,
            labels=card.labels,
            indices=indices,
            probabilities=probabilities,
        )


def most_probable(scores: Array, top_k: int) -> tuple[Array, Array]:
    """The largest of each row, in order.

    Args:
        scores: Numbers or booleans `[rows, classes]`.
        top_k: How many are wanted; more than there are classes gives all of them.

    Returns:
        Their classes, `int64[rows, top_k]`, and themselves, `float[rows, top_k]`.
    """
    scores = _as_floats(scores)
    # The methods, for numpy's functions of that name look for others first.
    indices = (-scores).argsort(axis=1, kind="stable")[:, :top_k]
    return indices, scores[np.arange(len(scores))[:, None], indices]


def _as_floats(scores: Array) -> Array:
    # A difference of integers may wrap, and booleans have none.
    return scores if scores.dtype.kind == "f" else scores.astype(np.float64)


def _probabilities(card: ModelCard, outputs: Mapping[str, Array]) -> Array:
    """The output `[rows, classes]` that the card calls probabilities or logits.

    Raises:
        InvalidRequest: It calls none so, or one that is no such table of numbers.
    """
    output = card.scores
    if output is None:
        raise _no_classifier(card, "")
    scores = outputs[output.name]
    if scores.ndim != CLASSES_RANK or scores.dtype.hasobject:
        found = describe(scores.dtype, scores.shape)
        raise _no_classifier(
            card, f": expected {output.name} [rows,classes], got {found}"
        )
    if output.role == "probabilities":
        return scores
    logits = _as_floats(scores)
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: Array = exponents / exponents.sum(axis=1, keepdims=True)
    return result


def _no_classifier(card: ModelCard, why: str) -> InvalidRequest:
    return InvalidRequest(
        f"model {card.name!r} has no output with probabilities{why}",
        code="not_an_image_model",
    )
