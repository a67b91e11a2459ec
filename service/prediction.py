"""Tensors or images in, tensors out: a request's walk between the protocols' edges."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Final, Protocol, TypeVar

from models.card import DEFAULT_SIGNATURE, ModelCard
from service.batching import Priority
from service.decoding import Decoder
from service.errors import VersionGone
from service.metrics import RequestScope
from service.repository import Repository, Target
from service.served_version import ServedVersion
from service.settings import Settings
from service.tensors import Array, Signature, Tensors

T = TypeVar("T")

# How often a request may find that its version has just been replaced.
SUCCESSORS: Final = 3


class Caller(Protocol):
    """Who waits for an answer, and may stop waiting."""

    async def unless_gone(self, work: asyncio.Future[T]) -> T:
        """Wait for the work; cancel it when the caller goes away.

        Raises:
            ClientDisconnected: The caller went away.
        """


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prediction:
    """What a model version answers.

    Attributes:
        card: The version's.
        signature: What was called.
        outputs: `{name: array}`, with as many rows as the inputs had.
    """

    card: ModelCard
    signature: Signature
    outputs: dict[str, Array]


class Predictor:
    """Runs tensors, or images that it decodes, in the batcher that they are for."""

    def __init__(self, settings: Settings, repository: Repository) -> None:
        self._repository = repository
        self._decoder = Decoder(settings)

    def check(self, target: Target, *, scope: RequestScope) -> None:
        """Refuse a request whose tensors need not be read: nobody would take them.

        Raises:
            BlockserveError: As `predict` would.
        """
        with self._repository.lease(target) as served:
            scope.resolved(served.metrics)

    def announce_image(
        self,
        target: Target,
        *,
        deadline: float,
        priority: Priority,
        scope: RequestScope,
    ) -> None:
        """Refuse a request that need not be read further, or expect its image.

        Raises:
            BlockserveError: As `predict_images` would.
        """
        with self._repository.lease(target) as served:
            scope.resolved(served.metrics)
            _, _, batcher = served.for_images
            batcher.announce(deadline=deadline, priority=priority)

    async def predict(
        self,
        read: Callable[[Signature], Awaitable[Tensors]],
        *,
        target: Target,
        signature_name: str | None,
        deadline: float,
        priority: Priority,
        caller: Caller,
        scope: RequestScope,
    ) -> Prediction:
        """Run one request.

        Where the tensors are encoded images in place of pixels, they are decoded first.

        Args:
            read: Makes the inputs `{name: array[rows, …]}`, given the signature whose
                names and dtypes they are to have. Not called where the request would be
                refused anyway.
            target: The model that answers.
            signature_name: What to call; `None` or empty is `serving_default`.
            deadline: Moment of `time.monotonic`, in seconds.
            priority: Whose turn it is.
            caller: Who waits.
            scope: Told which version answers.

        Raises:
            BlockserveError: Any of the errors in `service.errors`.
        """

        async def run(served: ServedVersion) -> Prediction:
            signature, batcher = served.signature(signature_name or DEFAULT_SIGNATURE)
            batcher.check(rows=1, deadline=deadline, priority=priority)
            tensors = await read(signature)
            images = served.encoded_images(signature, tensors)
            if images is None:
                rows = signature.validate(tensors)
                answer = batcher.submit(
                    tensors, rows=rows, deadline=deadline, priority=priority
                )
                outputs = await caller.unless_gone(answer)
            else:
                self._decoder.check(images)
                outputs = await self._run_images(
                    images, served, deadline, priority, caller
                )
            return Prediction(card=served.card, signature=signature, outputs=outputs)

        return await self._run(run, target, scope)

    async def predict_images(
        self,
        images: Sequence[bytes],
        *,
        target: Target,
        deadline: float,
        priority: Priority,
        caller: Caller,
        scope: RequestScope,
    ) -> Prediction:
        """Run encoded images, all in one batch.

        Args:
            images: Encoded images, at least one.
            target: The model that answers.
            deadline: Moment of `time.monotonic`, in seconds.
            priority: Whose turn it is.
            caller: Who waits.
            scope: Told which version answers.

        Raises:
            BlockserveError: Any of the errors in `service.errors`.
        """
        self._decoder.check(images)

        async def run(served: ServedVersion) -> Prediction:
            outputs = await self._run_images(images, served, deadline, priority, caller)
            signature = served.for_images.signature
            return Prediction(card=served.card, signature=signature, outputs=outputs)

        return await self._run(run, target, scope)

    def close(self) -> None:
        """End the decoding threads."""
        self._decoder.close()

    async def _run(
        self,
        run: Callable[[ServedVersion], Awaitable[Prediction]],
        target: Target,
        scope: RequestScope,
    ) -> Prediction:
        """Run on the version that is meant; on its successor, should it be gone."""
        for _ in range(SUCCESSORS):
            try:
                with self._repository.lease(target) as served:
                    scope.resolved(served.metrics)
                    return await run(served)
            except VersionGone:
                await self._repository.reconcile()
        with self._repository.lease(target) as served:
            scope.resolved(served.metrics)
            return await run(served)

    async def _run_images(
        self,
        images: Sequence[bytes],
        served: ServedVersion,
        deadline: float,
        priority: Priority,
        caller: Caller,
    ) -> dict[str, Array]:
        image_input, _, batcher = served.for_images
        started = perf_counter()
        with batcher.admit(
            rows=len(images), deadline=deadline, priority=priority
        ) as place:
            rows = self._decoder.at_once(images, image_input)
            if rows is None:
                decoded = self._decoder.in_threads(images, image_input, deadline)
                rows = await caller.unless_gone(asyncio.ensure_future(decoded))
            served.metrics.decode_seconds.observe(perf_counter() - started)
            return await caller.unless_gone(place.submit({image_input.tensor: rows}))
