"""Images in, predictions out: the walk of a request between the protocols' edges."""

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from models.card import ImageInput, ModelCard
from service import imaging
from service.errors import (
    BlockserveError,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    TooLarge,
)
from service.metrics import RequestScope
from service.repository import Repository
from service.served_version import ServedVersion
from service.settings import Settings
from service.tensors import Array, Signature


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Which model a request means; `None` everywhere is the default model's latest."""

    name: str | None = None
    version: int | None = None
    label: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One class of the model and how probable it is for an image."""

    label: str
    index: int
    probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a model says of one image, most probable class first."""

    predictions: Sequence[Prediction]


@dataclass(frozen=True, slots=True, kw_only=True)
class Classification:
    """What a model version says of each image."""

    model: str
    version: int
    results: Sequence[Result]


class Classifier:
    """Decodes images, runs them in the target's batcher and names the classes."""

    def __init__(self, settings: Settings, repository: Repository) -> None:
        self._settings = settings
        self._repository = repository
        self._decoders = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode")
        self._decoding = 0  # requests whose images are in those threads

    async def classify(
        self,
        images: Sequence[bytes],
        *,
        target: Target,
        top_k: int | None,
        deadline: float,
        scope: RequestScope,
    ) -> Classification:
        """Classify encoded images, all in one batch.

        Args:
            images: Encoded images, at least one.
            target: The model that answers.
            top_k: Predictions wanted for each image; more than there are classes gives
                all of them, `None` the number from the settings.
            deadline: Moment on the event loop's clock, in seconds.
            scope: Told which version answers.

        Raises:
            BlockserveError: Any of the errors in `service.errors`.
        """
        self._check(images, top_k)
        with self._repository.lease(
            target.name, version=target.version, label=target.label
        ) as served:
            scope.resolved(served.name, served.version)
            signature, image_input = _image_signature(served)
            rows = await self._decode(images, image_input, served, deadline)
            tensors = {image_input.tensor: rows}
            outputs = await served.batchers[signature.name].submit(
                tensors, rows=signature.validate(tensors), deadline=deadline
            )
        return Classification(
            model=served.name,
            version=served.version,
            results=_top_predictions(
                served.card, outputs, top_k or self._settings.top_k
            ),
        )

    def close(self) -> None:
        """End the decoding threads."""
        self._decoders.shutdown()

    def _check(self, images: Sequence[bytes], top_k: int | None) -> None:
        if not images:
            raise InvalidRequest("the request holds no image", code="no_image")
        limit = self._settings.max_images_per_request
        if len(images) > limit:
            raise TooLarge(
                f"the request holds {len(images)} images; at most {limit} are allowed",
                code="too_many_images",
            )
        if top_k is not None and top_k < 1:
            raise InvalidRequest(f"top_k must be at least 1, got {top_k}")

    async def _decode(
        self,
        images: Sequence[bytes],
        image_input: ImageInput,
        served: ServedVersion,
        deadline: float,
    ) -> Array:
        """Decode to `dtype[len(images), H, W, C]`; long work leaves the event loop."""
        started = perf_counter()
        if len(images) == 1 and not imaging.is_slow(images[0]):
            rows = [self._decode_one(images[0], image_input)]
        else:
            rows = await self._decode_in_threads(images, image_input, deadline)
        served.metrics.decode_seconds.observe(perf_counter() - started)
        batch: Array = rows[0][None] if len(rows) == 1 else np.stack(rows)
        return batch.astype(image_input.dtype, copy=False)

    async def _decode_in_threads(
        self, images: Sequence[bytes], image_input: ImageInput, deadline: float
    ) -> list[Array]:
        limit = self._settings.max_queue_depth
        if self._decoding >= limit:
            raise Overloaded(f"{limit} requests are being decoded; try again later")
        loop = asyncio.get_running_loop()
        several = len(images) > 1
        jobs = [
            loop.run_in_executor(
                self._decoders,
                self._decode_one,
                image,
                image_input,
                f"image {index}: " if several else "",
            )
            for index, image in enumerate(images)
        ]
        self._decoding += 1
        try:
            async with asyncio.timeout_at(deadline):
                return await asyncio.gather(*jobs)
        except TimeoutError as error:
            raise DeadlineExceeded(
                "the request's time ran out while its images were decoded; allow more "
                "time, or send fewer or smaller images"
            ) from error
        finally:
            self._decoding -= 1
            for job in jobs:
                job.cancel()  # those that have not begun cost nothing

    def _decode_one(
        self, data: bytes, image_input: ImageInput, which: str = ""
    ) -> Array:
        limit = self._settings.max_image_pixels
        try:
            return imaging.decode(data, image_input, max_pixels=limit)
        except BlockserveError as error:
            error.message = which + error.message
            raise


def _image_signature(served: ServedVersion) -> tuple[Signature, ImageInput]:
    """The signature whose only input is the card's image tensor."""
    image_input = served.card.image_input
    if image_input is not None:
        for signature in served.engine.signatures.values():
            if signature.inputs.keys() == {image_input.tensor}:
                return signature, image_input
    raise InvalidRequest(
        f"model {served.name!r} version {served.version} has no image input to "
        "classify with",
        code="not_an_image_model",
    )


def _top_predictions(
    card: ModelCard, outputs: dict[str, Array], top_k: int
) -> list[Result]:
    scores = _probabilities(card, outputs)
    top = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    best = np.take_along_axis(scores, top, axis=1)
    return [
        Result(
            predictions=[
                Prediction(
                    label=_label(card, index), index=index, probability=probability
                )
                for index, probability in zip(indices, probabilities, strict=True)
            ]
        )
        for indices, probabilities in zip(top.tolist(), best.tolist(), strict=True)
    ]


def _label(card: ModelCard, index: int) -> str:
    return card.labels[index] if index < len(card.labels) else str(index)


def _probabilities(card: ModelCard, outputs: dict[str, Array]) -> Array:
    """The output `[rows, classes]` that the card calls probabilities or logits."""
    for output in card.outputs:
        if output.role == "probabilities":
            return outputs[output.name]
        if output.role == "logits":
            logits = outputs[output.name]
            exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
            result: Array = exponents / exponents.sum(axis=1, keepdims=True)
            return result
    raise InvalidRequest(
        f"model {card.name!r} has no output with probabilities",
        code="not_an_image_model",
    )
