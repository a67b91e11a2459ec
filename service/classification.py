"""Images in, predictions out: the walk of a request between the protocols' edges."""

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from time import monotonic, perf_counter
from typing import Protocol, TypeVar

import numpy as np

from models.card import ImageInput, ModelCard
from service import imaging
from service.batching import Priority
from service.errors import (
    BlockserveError,
    DeadlineExceeded,
    InvalidRequest,
    TooLarge,
)
from service.metrics import RequestScope
from service.repository import Repository
from service.served_version import ServedVersion
from service.settings import Settings
from service.tensors import Array

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Which model a request means; `None` everywhere is the default model's latest."""

    name: str | None = None
    version: int | None = None
    label: str | None = None


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


class Caller(Protocol):
    """Who waits for an answer, and may stop waiting."""

    async def unless_gone(self, work: asyncio.Future[T]) -> T:
        """Wait for the work; cancel it when the caller goes away.

        Raises:
            ClientDisconnected: The caller went away.
        """


class Classifier:
    """Decodes images, runs them in the target's batcher and names the classes."""

    def __init__(self, settings: Settings, repository: Repository) -> None:
        self._settings = settings
        self._repository = repository
        self._decoders = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode")

    def check(
        self,
        target: Target,
        *,
        deadline: float,
        priority: Priority,
        scope: RequestScope,
    ) -> None:
        """Refuse a request that need not be read further; see `classify`.

        Raises:
            BlockserveError: As `classify` would.
        """
        with self._lease(target) as served:
            scope.resolved(served.name, served.version)
            _, batcher = served.for_images
            batcher.announce(deadline=deadline, priority=priority)

    async def classify(
        self,
        images: Sequence[bytes],
        *,
        target: Target,
        top_k: int | None,
        deadline: float,
        priority: Priority,
        caller: Caller,
        scope: RequestScope,
    ) -> Classification:
        """Classify encoded images, all in one batch.

        Args:
            images: Encoded images, at least one.
            target: The model that answers.
            top_k: Predictions wanted for each image; more than there are classes gives
                all of them, `None` the number from the settings.
            deadline: Moment of `time.monotonic`, in seconds.
            priority: Whose turn it is.
            caller: Who waits.
            scope: Told which version answers.

        Raises:
            BlockserveError: Any of the errors in `service.errors`.
        """
        self._check(images, top_k)
        with self._lease(target) as served:
            scope.resolved(served.name, served.version)
            image_input, batcher = served.for_images
            started = perf_counter()
            with batcher.admit(
                rows=len(images), deadline=deadline, priority=priority
            ) as place:
                if len(images) == 1 and not imaging.is_slow(images[0]):
                    instance = self._decode(images[0], image_input)
                    rows = instance[None].astype(image_input.dtype, copy=False)
                else:
                    rows = await caller.unless_gone(
                        asyncio.ensure_future(
                            self._decode_in_threads(images, image_input, deadline)
                        )
                    )
                served.metrics.decode_seconds.observe(perf_counter() - started)
                outputs = await caller.unless_gone(
                    place.submit({image_input.tensor: rows})
                )
        scores = _probabilities(served.card, outputs)
        # The methods, for numpy's functions of that name look for others first.
        order = (-scores).argsort(axis=1, kind="stable")
        indices = order[:, : top_k or self._settings.top_k]
        return Classification(
            model=served.name,
            version=served.version,
            labels=served.card.labels,
            indices=indices,
            probabilities=scores[np.arange(len(scores))[:, None], indices],
        )

    def close(self) -> None:
        """End the decoding threads."""
        self._decoders.shutdown()

    def _lease(self, target: Target) -> AbstractContextManager[ServedVersion]:
        return self._repository.lease(
            target.name, version=target.version, label=target.label
        )

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

    async def _decode_in_threads(
        self, images: Sequence[bytes], image_input: ImageInput, deadline: float
    ) -> Array:
        """Decode to `dtype[len(images), H, W, C]`, each image into its place."""
        loop = asyncio.get_running_loop()
        rows = np.empty((len(images), *image_input.shape), image_input.dtype)

        def decode(index: int) -> None:
            which = f"image {index}: " if len(images) > 1 else ""
            rows[index] = self._decode(images[index], image_input, which)

        jobs = [
            loop.run_in_executor(self._decoders, decode, index)
            for index in range(len(images))
        ]
        try:
            async with asyncio.timeout(deadline - monotonic()):
                await asyncio.gather(*jobs)
        except TimeoutError as error:
            raise DeadlineExceeded(
                "the request's time ran out while its images were decoded; allow more "
                "time, or send fewer or smaller images"
            ) from error
        finally:
            for job in jobs:
                job.cancel()  # those that have not begun cost nothing
        return rows

    def _decode(self, data: bytes, image_input: ImageInput, which: str = "") -> Array:
        limit = self._settings.max_image_pixels
        try:
            return imaging.decode(data, image_input, max_pixels=limit)
        except BlockserveError as error:
            error.message = which + error.message
            raise


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
