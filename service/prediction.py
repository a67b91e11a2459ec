"""Tensors or images in, tensors out: a request's walk between the protocols' edges."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Final, Protocol, TypeVar

from models.card import DEFAULT_SIGNATURE, ModelCard
from service.batching import Priority, expired
from service.decoding import Decoder
from service.errors import BlockserveError, VersionGone
from service.repository import Repository, Target
from service.served_version import ServedVersion
from service.settings import Settings
from service.telemetry.metrics import VersionMetrics
from service.telemetry.observation import Observation
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
class Call:
    """A request for inference, whatever it asks for, over whatever protocol.

    Attributes:
        target: The model that answers.
        deadline: Moment of `time.monotonic`, in seconds.
        priority: Whose turn it is.
        caller: Who waits.
        observation: Told how far it has come.
    """

    target: Target
    deadline: float
    priority: Priority
    caller: Caller
    observation: Observation


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

    def check(self, target: Target, *, observation: Observation) -> None:
        """Refuse a request whose tensors need not be read: nobody would take them.

        Raises:
            BlockserveError: As `predict` would.
        """
        with self._repository.lease(target) as served:
            observation.version = served.metrics

    def version_of(self, target: Target) -> VersionMetrics | None:
        """Which version would answer, if one would."""
        with suppress(BlockserveError), self._repository.lease(target) as served:
            return served.metrics
        return None

    def announce_image(
        self,
        target: Target,
        *,
        deadline: float,
        priority: Priority,
        observation: Observation,
    ) -> None:
        """Refuse a request that need not be read further, or expect its image.

        Raises:
            BlockserveError: As `predict_images` would.
        """
        with self._repository.lease(target) as served:
            observation.version = served.metrics
            _, _, batcher = served.for_images
            batcher.announce(deadline=deadline, priority=priority)

    async def predict(
        self,
        read: Callable[[Signature], Awaitable[Tensors]],
        call: Call,
        *,
        signature_name: str | None,
    ) -> Prediction:
        """Run tensors.

        Where the tensors are encoded images in place of pixels, they are decoded first.

        Args:
            read: Makes the inputs `{name: array[rows, …]}`, given the signature whose
                names and dtypes they are to have. Not called where the request would be
                refused anyway.
            call: Who asks whom, and until when.
            signature_name: What to run; `None` or empty is `serving_default`.

        Raises:
            BlockserveError: Any of the errors in `service.errors`.
        """

        async def run(served: ServedVersion) -> Prediction:
            signature, batcher = served.signature(signature_name or DEFAULT_SIGNATURE)
            batcher.check(rows=1, deadline=call.deadline, priority=call.priority)
            started = monotonic()
            tensors = await read(signature)
            call.observation.has_been_decoded(since=started)
            images = served.encoded_images(signature, tensors)
            if images is None:
                rows = signature.validate(tensors)
                place = batcher.submit(
                    tensors,
                    rows=rows,
                    deadline=call.deadline,
                    priority=call.priority,
                    span=call.observation.span,
                )
                call.observation.place = place
                outputs = await call.caller.unless_gone(place.answer)
            else:
                self._decoder.check(images)
                outputs = await self._run_images(images, call, served)
            return Prediction(card=served.card, signature=signature, outputs=outputs)

        return await self._run(run, call)

    async def predict_images(self, images: Sequence[bytes], call: Call) -> Prediction:
        """Run encoded images, all in one batch.

        Args:
            images: Encoded images, at least one.
            call: Who asks whom, and until when.

        Raises:
            BlockserveError: Any of the errors in `service.errors`.
        """
        self._decoder.check(images)

        async def run(served: ServedVersion) -> Prediction:
            outputs = await self._run_images(images, call, served)
            signature = served.for_images.signature
            return Prediction(card=served.card, signature=signature, outputs=outputs)

        return await self._run(run, call)

    def close(self) -> None:
        """End the decoding threads."""
        self._decoder.close()

    async def _run(
        self, run: Callable[[ServedVersion], Awaitable[Prediction]], call: Call
    ) -> Prediction:
        """Run on the version that is meant; on its successor, should it be gone."""
        observation = call.observation
        successors_left = SUCCESSORS
        while True:
            try:
                with self._repository.lease(call.target) as served:
                    observation.version = served.metrics
                    prediction = await run(served)
            except VersionGone:
                if not successors_left:
                    raise
                successors_left -= 1
                await self._look_for_successor(call)
            else:
                observation.has_been_predicted()
                return prediction

    async def _look_for_successor(self, call: Call) -> None:
        """Wait for a look at the versions, which goes on where the call gives up.

        Raises:
            DeadlineExceeded: The call's time is up before that.
            ClientDisconnected: The caller went away.
        """
        look = asyncio.ensure_future(self._repository.reconcile())
        try:
            async with asyncio.timeout(call.deadline - monotonic()):
                await call.caller.unless_gone(look)
        except TimeoutError as error:
            raise expired() from error

    async def _run_images(
        self, images: Sequence[bytes], call: Call, served: ServedVersion
    ) -> dict[str, Array]:
        observation, caller = call.observation, call.caller
        image_input, _, batcher = served.for_images
        started = monotonic()
        with batcher.admit(
            rows=len(images),
            deadline=call.deadline,
            priority=call.priority,
            span=observation.span,
        ) as place:
            observation.place = place
            rows = self._decoder.at_once(images, image_input)
            if rows is None:
                decoded = self._decoder.in_threads(images, image_input, call.deadline)
                rows = await caller.unless_gone(asyncio.ensure_future(decoded))
            observation.has_been_decoded(since=started)
            return await caller.unless_gone(place.submit({image_input.tensor: rows}))
